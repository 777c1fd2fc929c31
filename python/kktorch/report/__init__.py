"""`python -m kktorch.report RUN…`: one self-contained HTML page about runs of `kktorch train`."""

from kktorch.report.page import render
from kktorch.report.runs import Experiment, Run, load_experiment

__all__ = ["Experiment", "Run", "load_experiment", "render"]
