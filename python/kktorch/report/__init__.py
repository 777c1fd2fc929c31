"""`python -m kktorch.report RUN…`: one self-contained HTML page about runs of the program."""

from pathlib import Path

from kktorch.report.page import render
from kktorch.report.reproductions import Reproduction, load_reproduction
from kktorch.report.runs import Experiment, Run, load_experiment

__all__ = [
    "Experiment",
    "Reproduction",
    "Run",
    "load",
    "load_experiment",
    "load_reproduction",
    "render",
]


def load(folder: str | Path) -> Experiment | Reproduction:
    """Reads a folder of `kktorch reproduce` or of `kktorch train`.

    Raises:
        ValueError: it is none, or a file in it is malformed; the file is named.
    """
    return load_reproduction(folder) or load_experiment(folder)
