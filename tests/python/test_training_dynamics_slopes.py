"""Exponents of the experiments on training dynamics in preset quick, against the intervals that
theory and the trials allow: minutes, run by `python -m pytest -m slow -k slopes`."""

import json

import pytest

pytestmark = pytest.mark.slow

# experiment, statistic: smallest and largest slope. Bounds from above are checked from one side.
INTERVALS = [
    ("shallow e1", {"aligned, sup": (-0.6, -0.4), "random, sup": (-1.2, -0.8)}),
    ("shallow e2", {"sup |f_lin - y|": (-0.6, -0.4)}),
    ("shallow e3", {"smallest L_n": (-0.7, -0.3)}),
    ("shallow e9", {"whole kernel": (-0.6, -0.4)}),
    ("multihead e4", {"training loss": (-9, -0.9)}),
    ("multihead e6", {"sup": (-9, -0.4)}),
]


@pytest.mark.parametrize("experiment, intervals", INTERVALS)
def test_slopes_lie_in_their_intervals(kk, tmp_path, experiment, intervals):
    paper, name = experiment.split()
    command = ["reproduce", paper, "--experiment", name, "--preset", "quick"]
    kk(*command, "--invariants", "error", "--out", tmp_path / "run")
    tables = json.loads((tmp_path / "run/result.json").read_text())["tables"]
    exponents = [table for table in tables if table["columns"][0] == "exponent of"]
    for statistic, (low, high) in intervals.items():
        rows = [row for table in exponents for row in table["rows"] if row[0] == statistic]
        assert rows, f"no exponent of {statistic}"
        for row in rows:
            assert low <= row[1]["value"] <= high, row
