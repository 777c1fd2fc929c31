"""`kktorch convex` on arrays in files, and the experiments on convex attention."""

import json
import signal
import subprocess
import time

import numpy as np
import pytest
import torch
from convex_cases import golden
from kktorch import convex
from kktorch.report import load, render
from test_report import Page


def write(folder, X, Y, **names):
    np.save(folder / "X.npy", X)
    np.save(folder / "Y.npy", Y)
    return ["--features", folder / "X.npy", "--targets", folder / "Y.npy"]


def test_solve_writes_what_the_solver_finds(kk, tmp_path):
    X, Y, _ = golden()
    files = write(tmp_path, X.numpy(), Y.numpy())
    out = tmp_path / "run"
    printed = kk("convex", "solve", *files, "--rho", 0.3, "--out", out).stdout
    assert "converged" in printed
    result = json.loads((out / "result.json").read_text())
    (found,) = result["solutions"]
    s = convex.solve(X, Y, 0.3 * convex.beta_max(X, Y))
    assert found["objective"] == pytest.approx(s.F, rel=1e-12)
    assert found["relative_gap"] <= 1e-6 and found["active_groups"] == s.active_groups
    saved = torch.load(out / "solutions.pt")
    assert torch.allclose(saved["Z"][0], s.Z, rtol=0, atol=1e-12)
    lines = (out / "metrics.csv").read_text().splitlines()
    assert (
        lines[0] == "point,beta,iteration,seconds,objective,gap" and len(lines) == s.iterations + 1
    )
    refused = kk("convex", "solve", *files, "--out", out, code=1).stderr
    assert "convex: expected a new run folder" in refused
    short = ["--max-iter", 2, "--out", tmp_path / "short"]
    assert "max_iter" in kk("convex", "solve", *files, *short, code=4).stdout


def test_path_with_gates_and_classes(kk, tmp_path):
    X, ids, _ = golden("cross_entropy")
    files = write(tmp_path, np.asfortranarray(X.numpy()), ids.numpy().astype(np.int32))
    options = ["--loss", "cross_entropy", "--gates", 3, "--points", 4, "--lowest", 0.1]
    kk("convex", "path", *files, *options, "--out", tmp_path / "run")
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert [s["rho"] for s in result["solutions"]] == pytest.approx(
        [10 ** (-k / 3) for k in range(4)]
    )
    saved = torch.load(tmp_path / "run/solutions.pt")
    gates = convex.apply_gates(X, convex.Gates(saved["u1"], saved["u2"], None))
    for s, Z in zip(result["solutions"], saved["Z"], strict=True):
        c = convex.certify(X, ids, s["beta"], Z, loss="cross_entropy", gates=gates)
        assert c.F == pytest.approx(s["objective"], rel=1e-12)


def test_a_killed_path_resumes_to_the_same_numbers(kk, program, tmp_path):
    torch.manual_seed(0)
    X = torch.randn(200, 20, 6, dtype=torch.float64).cumsum(1)  # tokens alike: slow enough to kill
    files = write(tmp_path, X.numpy(), torch.randint(3, (200,)).numpy())
    options = ["--loss", "cross_entropy", "--points", 12, "--lowest", 0.005, "--tol", 1e-8]
    kk("convex", "path", *files, *options, "--out", tmp_path / "whole")
    out = tmp_path / "killed"
    command = [program, "convex", "path", *files, *options, "--out", out]
    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL)
    while process.poll() is None and not (out / "points/2.json").exists():
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL, "the run ended before it was killed"
    assert not (out / "result.json").exists()
    refused = kk("convex", "path", *files, *options, "--out", out, code=1).stderr
    assert "--resume continues it" in refused
    other = [*options[:-1], 1e-7]
    refused = kk("convex", "path", *files, *other, "--out", out, "--resume", code=1).stderr
    assert "problem/tol is 1e-08 there and 1e-07 here" in refused
    kk("convex", "path", *files, *options, "--out", out, "--resume")
    one, two = (
        json.loads((tmp_path / name / "result.json").read_text()) for name in ("whole", out)
    )
    assert one == two
    saved = [torch.load(tmp_path / name / "solutions.pt")["Z"] for name in ("whole", out)]
    assert torch.equal(*saved)
    rows = [
        np.genfromtxt(tmp_path / name / "metrics.csv", delimiter=",", names=True)
        for name in ("whole", out)
    ]
    for name in ("point", "iteration", "objective", "gap"):
        assert np.array_equal(rows[0][name], rows[1][name])


@pytest.mark.parametrize("form", ["pt", "dictionary"])
def test_torch_files_are_read(kk, tmp_path, form):
    X, Y, _ = golden()
    both = {"X": X, "Y": Y}
    for name, tensor in both.items():
        torch.save(both if form == "dictionary" else tensor, tmp_path / f"{name}.pt")
    files = ["--features", tmp_path / "X.pt", "--targets", tmp_path / "Y.pt"]
    kk("convex", "solve", *files, "--out", tmp_path / "run")


@pytest.mark.parametrize("version, dtype, order", [(1, "f8", "F"), (2, "f4", "C"), (3, "f8", "C")])
def test_every_version_of_npy_is_read(kk, tmp_path, version, dtype, order):
    arrays = {name: t.numpy().astype(dtype) for name, t in zip("XY", golden(), strict=False)}
    for name, array in arrays.items():
        with open(tmp_path / f"{name}.npy", "wb") as file:
            np.lib.format.write_array(file, np.asarray(array, order=order), (version, 0))
    files = ["--features", tmp_path / "X.npy", "--targets", tmp_path / "Y.npy"]
    kk("convex", "solve", *files, "--out", tmp_path / "run")
    (found,) = json.loads((tmp_path / "run/result.json").read_text())["solutions"]
    X, Y = (torch.from_numpy(array) for array in arrays.values())
    expected = convex.solve(X, Y, 0.1 * convex.beta_max(X, Y))
    assert found["objective"] == pytest.approx(expected.F, rel=1e-6)


def bad_files(folder):
    X = golden()[0].numpy()
    np.savez(folder / "archive.npz", X=X)
    (folder / "archive.npz").rename(folder / "archive.npy")
    yield "archive.npy", "expected an array in .npy format, but got something else (an archive)"
    np.save(folder / "big.npy", X.astype(">f8"))
    yield (
        "big.npy",
        ("expected little-endian floating, integer or bool numbers, but got dtype '>f8'"),
    )
    np.save(folder / "objects.npy", np.array([None]), allow_pickle=True)
    yield "objects.npy", "expected little-endian"
    (folder / "short.npy").write_bytes(b"\x93NUMPY")
    yield "short.npy", "expected an array in .npy format"
    np.save(folder / "cut.npy", X)
    (folder / "cut.npy").write_bytes((folder / "cut.npy").read_bytes()[:-8])
    yield "cut.npy", "expected 1280 bytes, but got 1272"
    torch.save(torch.ones(3), folder / "legacy.pt", _use_new_zipfile_serialization=False)
    yield "legacy.pt", "expected a .pt file with a tensor or a dictionary of tensors"
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 3)), folder / "script.pt")
    yield "script.pt", "expected a .pt file with a tensor or a dictionary of tensors"
    torch.save({"other": torch.ones(3)}, folder / "key.pt")
    yield "key.pt", "expected an entry X, but got none"
    torch.save([1, 2], folder / "list.pt")
    yield "list.pt", "expected a .pt file with a tensor or a dictionary of tensors, but got a"
    np.savez(folder / "arrays.npz", X=X)
    yield "arrays.npz", "expected a .npy or .pt file, but got another extension"
    (folder / "text.csv").write_text("1,2")
    yield "text.csv", "expected a .npy or .pt file, but got another extension"
    yield "absent.npy", "expected a file, but got none"


def test_other_files_are_refused_by_name_and_reason(kk, tmp_path):
    for name, message in bad_files(tmp_path):
        command = ["convex", "solve", "--features", tmp_path / name, "--targets", tmp_path / name]
        refused = kk(*command, "--out", tmp_path / "run", code=1).stderr
        assert f"{name}: {message}" in refused


@pytest.fixture(scope="module")
def sparsity(kk, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sparsity") / "run"
    command = ["reproduce", "convex", "--experiment", "sparsity_path", "--preset", "smoke"]
    kk(*command, "--seed", 0, "--set", "seeds=5", "--threads", 1, "--out", folder)
    return folder


def test_the_path_keeps_the_planted_tokens(sparsity):
    for seed in range(5):
        part = json.loads((sparsity / f"seed{seed}/summary.json").read_text())
        part = part["result"]
        points = part["points"]
        assert len(points) == 31 and points[0]["active tokens"] == 0
        for k in (5, 10, 15):  # rho 0.316, 0.1, 0.0316
            assert points[k]["exact"] == 1 and points[k]["active tokens"] == 4
        for before, after in zip(points, points[1:], strict=False):
            assert after["objective"] <= before["objective"] * (1 + 1e-6)
            assert after["train loss"] <= before["train loss"] * (1 + 1e-3)
            assert after["penalty"] >= before["penalty"] * (1 - 1e-3)
        assert all(point["gap"] <= 1e-6 for point in points)
        work = part["work"]
        assert work["warm, screened"]["reads"] < work["cold, screened"]["reads"]
        others = [point["largest norm of others"] for point in points]
        assert not any(others[:16]) and all(points[15]["norms of planted tokens"])


def reproduced(kk, folder, name, *options):
    command = ["reproduce", "convex", "--experiment", name, "--preset", "smoke", "--threads", 1]
    kk(*command, *options, "--out", folder)
    tables = json.loads((folder / "result.json").read_text())["tables"]
    return {table["title"]: table["rows"] for table in tables}


SMALL = ["--set", "steps=10", "--set", "cycles=5", "--set", "path_points=2"]


def test_students_are_above_the_certified_optimum(kk, tmp_path):
    tables = reproduced(kk, tmp_path / "run", "student_teacher")
    gaps = tables["Certified relative gap of the students that share an objective"]
    gaps = {row[0]: row[1]["value"] for row in gaps}
    assert 0 <= gaps["convex, certified solver"] <= 1e-6
    assert all(gap >= gaps["convex, certified solver"] for gap in gaps.values())
    (maps,) = (rows for title, rows in tables.items() if title.startswith("Where attention lies"))
    for row in maps:
        assert sum(cell["value"] for cell in row[1:]) == pytest.approx(1, abs=1e-5)
    (objective,) = (rows for title, rows in tables.items() if title.startswith("Objective against"))
    solver = next(row for row in objective if row[0] == "convex, certified solver")
    bands = [cell for cell in solver[1:] if isinstance(cell, dict)]
    assert all(cell["low"] <= bands[-1]["value"] * (1 + 1e-12) for cell in bands)
    plots = Page(render([load(tmp_path / "run")])).plots
    assert sum("milliseconds" in plot for plot in plots) == 3


def test_a_trained_teacher_has_an_accuracy(kk, tmp_path):
    options = ["--set", "teacher=trained", *SMALL]
    tables = reproduced(kk, tmp_path / "run", "student_teacher", *options)
    quantities = {row[0]: row[1] for row in tables["Sparsity and entropy"]}
    assert 0 <= quantities["accuracy of the teacher in %"]["value"] <= 100


@pytest.mark.parametrize("form", ["vectors", "sequences", "classes"])
def test_students_learn_the_arrays_of_files(kk, tmp_path, form):
    generator = np.random.default_rng(0)
    X = generator.standard_normal((60, 5, 3)).astype(np.float32)
    Y = X[:, 2, :2] + 0.01 * generator.standard_normal((60, 2))
    if form == "sequences":
        Y = np.repeat(Y[:, None], 5, 1)
    if form == "classes":
        Y = (Y[:, 0] > 0).astype(np.int32)
    write(tmp_path, np.asfortranarray(X), Y)
    files = [f"features={tmp_path / 'X.npy'}", f"targets={tmp_path / 'Y.npy'}"]
    options = [word for change in ["teacher=file", *files] for word in ("--set", change)]
    tables = reproduced(kk, tmp_path / "run", "student_teacher", *options, *SMALL)
    (maps,) = (rows for title, rows in tables.items() if title.startswith("Where attention lies"))
    share = {row[0]: [cell["value"] for cell in row[1:]] for row in maps}
    assert "teacher" not in share
    assert np.argmax(share["convex, certified solver"]) == 2


def test_files_that_students_cannot_learn_are_refused(kk, tmp_path):
    X = np.zeros((10, 5, 3))
    cases = {
        "features [N, n, d], floating, N >= 2, but got Double 10x5": (X[..., 0], X[:, 0]),
        "targets [10, c], [10, 5, c] or class ids [10], but got Double 9x3": (X, X[1:, 0]),
        "finite numbers, but got others": (X, X[:, 0] * np.nan),
    }
    command = ["reproduce", "convex", "--experiment", "student_teacher", "--preset", "smoke"]
    for message, (features, targets) in cases.items():
        write(tmp_path, features, targets)
        names = ["teacher=file", f"features={tmp_path}/X.npy", f"targets={tmp_path}/Y.npy"]
        options = [word for change in names for word in ("--set", change)]
        refused = kk(*command, *options, "--out", tmp_path / "run", "--resume", code=1).stderr
        assert f"npy: expected {message}" in refused
    refused = kk(*command, "--set", "teacher=file", "--out", tmp_path / "other", code=1).stderr
    assert "expected settings features and targets for teacher=file" in refused


def test_gates_fit_division_where_additive_logits_cannot(kk, tmp_path):
    options = ["--set", "prime=23", "--set", "gates=[32]", "--set", "updates=50"]
    tables = reproduced(kk, tmp_path / "run", "modular", *options)
    rows = {row[0]: row for row in tables["Convex programs along the penalty"]}
    assert rows["32 gates, 50 %"][2]["value"] >= 99
    assert rows["no gates, 50 %"][2]["value"] < 99
    names = ["no gates", "32 gates", "4 gates, embeddings", "32 gates and more"]
    assert all(rows[f"{name}, 50 %"][4]["value"] <= 1e-4 for name in names)
    assert rows["32 gates, Adam on Z, 50 %"][4]["value"] >= 0
    (columns,) = tables["Column generation at the last penalty"]
    assert columns[1]["value"] >= 32 and columns[2]["value"] > 0
    blocks = {row[0] for row in tables["Convexified blocks, end to end"]}
    assert blocks == {
        f"{layers} blocks, {gates} gates, decay 1, 50 %"
        for layers in (1, 2)
        for gates in ("live", "fixed")
    }
    refits = tables["The gated program on the frozen features of the blocks"]
    assert len(refits) == 4 and all(row[4]["value"] >= 0 for row in refits)


def test_experiments_have_a_report(kk, sparsity, tmp_path):
    folder = tmp_path / "vowels"
    command = ["reproduce", "convex", "--experiment", "japanese_vowels", "--preset", "smoke"]
    kk(*command, "--out", folder)
    result = json.loads((folder / "result.json").read_text())
    rows = result["tables"][0]["rows"]
    assert [row[-1] for row in rows[1:]] == ["converged"] * 4
    assert rows[-1][2]["value"] > 75  # at rho 0.3; one class in nine by chance
    for run in (folder, sparsity):
        claim = json.loads((run / "result.json").read_text())["claim"]
        assert claim in Page(render([load(run)])).text
