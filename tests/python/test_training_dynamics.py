"""The experiments on training dynamics from outside: every one at preset smoke with its bounds
enforced, resuming after SIGKILL, and the same results with one worker and with two."""

import csv
import json
import signal
import subprocess
import time

import pytest
import torch
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


WRONG = [
    ("shallow e3", "rho=1", "shallow: expected rho >= nu, but got 1 and 3"),
    ("shallow e3", "m=[7,9,11]", "expected an even number of heads, but got"),
    ("shallow e3", "steps=0", "expected steps, samples >= 1, but got 0"),
    ("shallow e3", "n=0", "expected n, T, d >= 1, but got 0"),
    ("shallow e3", "anchors=0", "expected n, T, d >= 1, but got 0"),
    ("shallow e3", "seeds=0", "seeds: expected at least 1, but got 0"),
    ("shallow e2", "m=[8,16,2000]", "expected m <= pool / 8, but got 2000 and 8192"),
    ("shallow e7", "alpha=1", "expected |alpha| < 1, but got 1"),
    ("shallow e7", "lags=[0,1,2]", "expected lag, n >= 1, but got 0"),
    ("shallow e7", "extra_window=-1", "expected a window of"),
    ("shallow e7", "rho=-1", "expected rho >= 0, but got -1"),
    ("multihead e3", "d=9", "expected d >= M + 2, but got 9"),
    ("multihead e3", "zeta=0.01", "expected 1 <= zeta T <= T - 1"),
    ("multihead e3", "H=[0,1,2]", "expected H >= 1, but got 0"),
    ("multihead e3", "step_size=0", "expected a finite step size > 0, but got 0"),
    ("multihead e3", "n1=0", "expected n >= 1, but got 0"),
    ("multihead e6", "H=[2,3,4]", "expected an even H"),
]


@pytest.mark.parametrize("experiment, change, message", WRONG)
def test_wrong_settings_are_refused(kk, tmp_path, experiment, change, message):
    words = command(*experiment.split(), tmp_path / "run", "--set", change)
    refused = kk(*words, code=1).stderr
    assert message in refused
    assert not list(tmp_path.rglob("result.json"))


@pytest.mark.parametrize(
    "experiment, changes",
    [
        ("shallow e1", ["query=fixed"]),
        ("shallow e7", ["windows=sliding", "position=none", "rho=3", "extra_window=2"]),
        ("multihead e3", ["location=first", "basis=canonical", "noise_sigma=0.2"]),
        ("multihead e2", ["margin_min=0.05"]),
    ],
)
def test_other_data_and_balls(kk, tmp_path, experiment, changes):
    options = [word for change in changes for word in ("--set", change)]
    kk(*command(*experiment.split(), tmp_path / "run", *options))


def test_samples_are_saved_and_must_stay_those_of_the_seed(kk, tmp_path):
    words = command("multihead", "e5", tmp_path / "run", "--set", "save_data=yes")
    kk(*words)
    part = tmp_path / "run/zero-H2-seed1"
    saved = torch.load(part / "train.pt")
    assert saved["X"].shape == (10, 10, 10) and saved["X"].dtype == torch.float64
    assert set(saved["y"].tolist()) == {-1.0, 1.0} and saved["seed"] == 1
    assert saved["relevant"].sum(1).tolist() == [2] * 10
    assert saved["R"] == pytest.approx(saved["X"].norm(dim=-1).max().item())
    # Another sample: the hash tells, whatever the file claims.
    for name in ("result.json", "zero-H2-seed1/summary.json"):
        (tmp_path / "run" / name).unlink()
    changed = saved["X"].clone()
    changed[0, 0, 0] += 1
    torch.save(saved | {"X": changed}, part / "train.pt")
    refused = kk(*words, "--resume", code=1).stderr
    assert "train.pt: expected the samples of its hash, but got others" in refused
    torch.save({"X": changed}, part / "train.pt")
    assert "train.pt: expected an array y, but got none" in kk(*words, "--resume", code=1).stderr


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
