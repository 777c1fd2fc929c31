"""The experiments on training dynamics from outside: every one at preset smoke with its bounds
enforced, resuming after SIGKILL, and the same results with one worker and with two."""

import csv
import json
import signal
import subprocess
import time

import pytest
from kktorch.report import load, render
from test_report import Page

EXPERIMENTS = [("shallow", f"e{i}") for i in range(1, 10)]
EXPERIMENTS += [("multihead", f"e{i}") for i in range(1, 9)]
TIMES = {"wall_s"}


def command(paper, experiment, folder, *more):
    options = ["--preset", "smoke", "--invariants", "error", "--out", folder, *more]
    return ["reproduce", paper, "--experiment", experiment, *options]


def numbers(folder):
    """Rows of all metrics.csv below the folder, without columns of time."""
    rows = {}
    for path in sorted(folder.rglob("metrics.csv")):
        with path.open() as file:
            rows[str(path.relative_to(folder))] = [
                {name: text for name, text in row.items() if name not in TIMES}
                for row in csv.DictReader(file)
            ]
    return rows


@pytest.mark.parametrize("paper, experiment", EXPERIMENTS)
def test_smoke_run_holds_its_bounds_and_is_drawn(kk, tmp_path, paper, experiment):
    kk(*command(paper, experiment, tmp_path / "run"))
    result = json.loads((tmp_path / "run/result.json").read_text())
    for table in result["tables"]:
        assert all(len(row) == len(table["columns"]) for row in table["rows"])
        for row in table["rows"]:
            if row[0] in ("violated invariants", "diverged"):
                assert all(cell["value"] == 0 for cell in row[1:]), row
    page = Page(render([load(tmp_path / "run")]))
    assert result["claim"] in page.text and result["limits"] in page.text
    assert len(page.plots) == sum(table["figure"] is not None for table in result["tables"])


@pytest.mark.parametrize("paper", ["shallow", "multihead"])
def test_rows_do_not_depend_on_the_number_of_workers(kk, tmp_path, paper):
    for threads in (1, 2):
        kk(*command(paper, "e3", tmp_path / str(threads), "--threads", threads))
    one, two = numbers(tmp_path / "1"), numbers(tmp_path / "2")
    assert one and one == two
    tables = [json.loads((tmp_path / n / "result.json").read_text())["tables"] for n in "12"]
    assert tables[0] == tables[1]


@pytest.mark.parametrize("paper", ["shallow", "multihead"])
def test_a_killed_run_resumes_to_the_same_rows(kk, program, tmp_path, paper):
    kk(*command(paper, "e3", tmp_path / "whole"))
    killed = tmp_path / "killed"
    arguments = [program, *map(str, command(paper, "e3", killed, "--threads", 1))]
    with subprocess.Popen(arguments, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None and not list(killed.rglob("metrics.csv")):
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL, "the run was to be killed before its end"
    assert not (killed / "result.json").exists()
    kk(*command(paper, "e3", killed, "--resume"))
    assert numbers(killed) == numbers(tmp_path / "whole")
