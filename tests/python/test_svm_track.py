"""`kktorch svm track` from outside: rows, tables, page, ends, resumed runs, refusals."""

import json
import math
import signal
import subprocess
import time

import pytest
import torch
from kktorch import svm
from kktorch.nn import AttSvmModel
from kktorch.report import load, render
from test_report import Page
from test_svm import problem, replaced
from test_svm_program import save


@pytest.fixture
def data():
    sets, alpha = problem(4, 5, 6, 5)
    v = torch.nn.functional.normalize(torch.randn(6, dtype=torch.float64), dim=0)
    labels = torch.tensor([1, -1, -1, 1])
    W = 0.1 * torch.randn(6, 5, dtype=torch.float64)
    K, Q = torch.randn(6, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    arrays = {"X": sets.x.reshape(4, 5, 6), "Z": sets.z, "Y": labels, "v": v, "alpha": alpha}
    return arrays | {"W": W, "K": K, "Q": Q}


def rows_of(folder):
    lines = (folder / "run/metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def descend(model, sets, labels, steps):
    """Normalised descent by autograd; weights and losses before every update, and at the end."""
    losses = []
    for step in range(steps + 1):
        model.zero_grad()
        risk = model.risk(*sets[:3], labels)
        losses.append(float(risk.detach()))
        if step == steps:
            return losses
        risk.backward()
        with torch.no_grad():
            for p in model.parameters():
                p -= 0.1 * p.grad / p.grad.norm()


@pytest.mark.parametrize("columns", [0, 3])
def test_a_run_is_normalised_descent_with_the_tracker_beside_it(columns, data, kk, tmp_path):
    file, out = save(tmp_path / "a.npz", data), tmp_path / "run"
    options = ["--iterations", 60, "--start", "file", "--columns", columns, "--out", out]
    printed = kk("svm", "track", "--data", file, *options).stdout
    assert "At the end" in printed and "all iterations" in printed
    rows = rows_of(out)
    assert [row["step"] for row in rows] == list(range(61))
    model = AttSvmModel(6, 5, columns).double()
    start = {name: data[name] for name in ("KQ" if columns else "W")}
    model.load_state_dict(start | {"v": data["v"]})
    sets = svm.cross(data["X"], data["Z"])
    losses = descend(model, sets, data["Y"].double(), 60)
    assert [row["loss"] for row in rows] == pytest.approx(losses, rel=1e-9)
    saved = torch.load(out / "run/checkpoint.pt")["model"]
    for name in start:
        torch.testing.assert_close(saved[name], getattr(model, name).detach())
    last = rows[-1]
    assert last["lower"] <= last["upper"] and last["norm"] == pytest.approx(
        float(model.merged().norm().detach())
    )
    header = (out / "run/metrics.csv").read_text().splitlines()[0]
    assert header.split(",") == list(last)


def test_the_page_draws_bracket_and_cosines(data, kk, tmp_path):
    file, out = save(tmp_path / "a.npz", data), tmp_path / "run"
    done = kk("svm", "track", "--data", file, "--stop-cosine", "0.9", "--out", out, "--lr", "1")
    assert "ended by" in done.stdout and "certified cosine above 0.9" in done.stdout
    rows = rows_of(out)
    assert rows[-1]["cos_certified"] > 0.9
    assert all((row["cos_certified"] or 0) <= 0.9 for row in rows[:-1])
    result = json.loads((out / "result.json").read_text())
    page = Page(render([load(out)]))
    assert f"kktorch svm track --data {file}" in page.text and "preset" not in page.text
    figures = [t for t in result["tables"] if t["figure"]]
    assert len(page.plots) == len(figures) == 2
    for drawn, plot in zip(figures, page.plots, strict=True):
        assert all(f">{row[0]}<" in plot for row in drawn["rows"])


def test_selections(data, kk, tmp_path):
    file = save(tmp_path / "a.pt", data)
    track = ["svm", "track", "--data", file, "--iterations", 3]
    scores = data["Y"][:, None] * (data["X"] @ data["v"])
    sets = svm.cross(data["X"], data["Z"])
    for how, alpha in ("opt", scores.argmax(1)), ("file", data["alpha"]):
        out = tmp_path / how
        kk(*track, "--select", how, "--start", "file", "--out", out)
        expected = svm.MarginTracker(*sets, alpha=alpha).step(W=data["W"])
        assert rows_of(out)[0]["lower"] == pytest.approx(expected.lower, rel=1e-12)
    several = torch.zeros(20, dtype=torch.bool)
    several[[0, 1, 5, 10, 17]] = True
    file = save(tmp_path / "several.npz", data | {"sel": several})
    kk(
        "svm",
        "track",
        "--data",
        file,
        "--iterations",
        3,
        "--select",
        "file",
        "--out",
        tmp_path / "s",
    )
    assert rows_of(tmp_path / "s")[0]["lower_nuclear"] is None


def test_an_interrupted_run_goes_on_to_the_same_numbers(data, kk, program, tmp_path):
    file = save(tmp_path / "a.npz", data)
    track = ["svm", "track", "--data", file, "--iterations", 4000, "--threads", 1]
    whole, out = tmp_path / "whole", tmp_path / "run"
    kk(*track, "--out", whole)
    running = subprocess.Popen(
        [program, *map(str, track), "--out", out],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    metrics = out / "run/metrics.jsonl"
    while running.poll() is None and not (metrics.exists() and metrics.stat().st_size > 50_000):
        time.sleep(0.01)
    running.send_signal(signal.SIGINT)
    stderr = running.communicate()[1]
    assert running.returncode == 130 and "--resume" in stderr, stderr
    refused = kk(*track, "--out", out, code=1).stderr
    assert "pass --resume to continue it" in refused
    before = len(rows_of(out))
    assert 0 < before < 4001
    changed = kk(*track, "--lr", "0.2", "--out", out, "--resume", code=1).stderr
    assert "learning_rate is 0.1 there and 0.2 here" in changed
    kk(*track, "--out", out, "--resume")
    assert rows_of(out) == rows_of(whole)
    tables = [json.loads((folder / "result.json").read_text())["tables"] for folder in (out, whole)]
    assert tables[0] == tables[1]


def test_bad_data(data, kk, tmp_path):
    wrong = {
        "expected labels Y of +1 or -1, but got 0 at 1": {"Y": torch.tensor([1, 0, -1, 1])},
        "expected Y of shape [4], but got [3]": {"Y": data["Y"][:3]},
        "expected v of shape [6], but got [5]": {"v": data["v"][:5]},
        "expected W of shape [6, 5], but got [5, 6]": {"W": data["W"].t().contiguous()},
        "expected finite X, but got NaN or Inf at [2, 1, 3]": {
            "X": replaced(data["X"], (2, 1, 3), math.nan)
        },
        "expected finite W, but got NaN or Inf at [1, 2]": {
            "W": replaced(data["W"], (1, 2), math.inf)
        },
        "alpha in 0 ... 4 for query 1": {"alpha": replaced(data["alpha"], 1, 7)},
    }
    for number, (message, change) in enumerate(wrong.items()):
        file = save(tmp_path / f"{number}.npz", data | change)
        options = ["--start", "file", "--select", "file", "--out", tmp_path / "none"]
        refused = kk("svm", "track", "--data", file, *options, code=1).stderr
        assert f"{file}: " in refused and message in refused, refused
    factors = {"K": torch.ones(6, 2), "Q": torch.ones(5, 2)}
    for name in factors:
        bad = factors | {name: replaced(factors[name], (3, 1), math.nan)}
        file = save(tmp_path / f"{name}.npz", data | bad)
        options = ["--columns", 2, "--start", "file", "--out", tmp_path / "none"]
        refused = kk("svm", "track", "--data", file, *options, code=1).stderr
        assert f"{file}: expected finite {name}, but got NaN or Inf at [3, 1]" in refused
    missing = save(tmp_path / "missing.npz", {name: data[name] for name in "XZ"})
    refused = kk("svm", "track", "--data", missing, "--out", tmp_path / "none", code=1).stderr
    assert "expected an array Y [4], but got X, Z" in refused
    assert not (tmp_path / "none").exists()
    file = save(tmp_path / "a.npz", data)
    refused = kk("svm", "track", "--data", file, "--columns", 2, "--start", "zero", code=1).stderr
    assert "expected --start random or file with --columns" in refused


def test_a_risk_that_is_not_finite_ends_the_run(data, kk, tmp_path):
    file = save(tmp_path / "a.npz", data | {"v": 1e200 * data["v"]})
    options = ["--loss", "exponential", "--out", tmp_path / "run"]
    refused = kk("svm", "track", "--data", file, *options, code=3).stderr
    assert "svm track: expected a finite risk, but got inf at step 0" in refused
