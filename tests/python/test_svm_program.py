"""`kktorch svm solve` from outside: data files, selections, outputs, exit codes, refusals."""

import json
import math

import numpy as np
import pytest
import torch
from kktorch import svm
from test_svm import problem, replaced


@pytest.fixture
def regular():
    """X, Z and everything that --alpha may read."""
    sets, alpha = problem(4, 5, 6, 5)
    generator = torch.Generator().manual_seed(3)
    v, w = (torch.randn(*size, generator=generator, dtype=torch.float64) for size in [(6,), (6, 5)])
    labels = torch.tensor([1, -1, -1, 1])
    return {
        "X": sets.x.reshape(4, 5, 6), "Z": sets.z, "alpha": alpha, "v": v, "Y": labels, "W": w
    }  # fmt: skip


def save(path, arrays):
    if path.suffix == ".pt":
        torch.save(arrays, path)
    else:
        save_npz = np.savez_compressed if "packed" in path.name else np.savez
        save_npz(path, **{name: array.numpy() for name, array in arrays.items()})
    return path


@pytest.mark.parametrize("name", ["a.npz", "packed.npz", "a.pt"])
def test_files_of_every_kind(name, regular, kk, tmp_path):
    file, out = save(tmp_path / name, regular), tmp_path / "out.pt"
    done = kk("svm", "solve", "--data", file, "--json", "--out", out)
    summary, solution = json.loads(done.stdout), torch.load(out, weights_only=True)
    sets = svm.cross(regular["X"], regular["Z"])
    expected = svm.att_svm(*sets[:3], regular["alpha"])
    assert (summary["status"], summary["method"]) == ("optimal", "oracle")
    assert math.isclose(summary["lower"], expected.lower) and summary["gap"] <= 1e-10
    assert summary["support_pairs"] == (expected.lam > 0).sum()
    names = ("w", "lam", "nu")
    torch.testing.assert_close(solution, {name: getattr(expected, name) for name in names})
    printed = kk("svm", "solve", "--data", file, "--norm", "nuc").stdout
    assert "nuclear" in printed and "pdhg" in printed and "rank_certified" in printed


def test_selections(regular, kk, tmp_path):
    file = save(tmp_path / "a.npz", regular)
    tokens, queries = regular["X"], regular["Z"]
    logits = torch.einsum("ntd,dk,nk->nt", tokens, regular["W"], queries)
    scores = regular["Y"][:, None] * (tokens @ regular["v"])
    for how, values in ("argmax", logits), ("opt", scores):
        done = kk("svm", "solve", "--data", file, "--alpha", how, "--json")
        sets = svm.cross(tokens, queries)
        expected = svm.att_svm(*sets[:3], values.argmax(1))
        assert math.isclose(json.loads(done.stdout)["norm_of_w"], expected.norm)


def test_ragged_sets_and_several_tokens(kk, tmp_path):
    sets, alpha = problem(4, 5, 8, 7)
    sel = torch.zeros(20, dtype=torch.bool)
    sel[sets.row_ptr[:-1] + alpha] = True
    sel[1] = sel[2] = True
    ragged = {"x": sets.x.float(), "z": sets.z.float(), "row_ptr": sets.row_ptr.int(), "sel": sel}
    ragged["tok"] = torch.arange(20)
    done = kk("svm", "solve", "--data", save(tmp_path / "r.npz", ragged), "--json")
    expected = svm.gen_svm(ragged["x"], ragged["z"], sets.row_ptr, sel)
    assert math.isclose(json.loads(done.stdout)["norm_of_w"], expected.norm)


def test_exit_codes(kk, tmp_path):
    line = torch.tensor([[[1.0], [0.1], [1.7]]])  # the selected token lies between the others
    arrays = {"X": line, "Z": torch.ones(1, 1), "alpha": torch.tensor([0])}
    done = kk("svm", "solve", "--data", save(tmp_path / "a.npz", arrays), "--json", code=1)
    summary = json.loads(done.stdout)
    assert summary["status"] == "infeasible" and summary["kappa"] >= 1e7
    single = arrays | {"X": line[:, :1]}
    done = kk("svm", "solve", "--data", save(tmp_path / "b.npz", single), "--json")
    assert json.loads(done.stdout)["status"] == "trivial"


def test_bad_data(regular, kk, tmp_path):
    cases = {
        "array X": {"Z": regular["Z"]},
        "got [4, 30]": regular | {"X": regular["X"].reshape(4, 30)},
        "expected Z of shape [4, dz], but got [3, 5]": regular | {"Z": regular["Z"][:3]},
        "expected alpha of shape [4], but got [3]": regular | {"alpha": regular["alpha"][:3]},
        "an array alpha [4], but got X, Z": {name: regular[name] for name in "XZ"},
        "alpha in 0 ... 4 for query 1": regular | {"alpha": replaced(regular["alpha"], 1, 7)},
        "finite X, but got NaN or Inf at [2, 1, 3]": regular
        | {"X": replaced(regular["X"], (2, 1, 3), math.nan)},
        "at least one query": regular | {name: regular[name][:0] for name in ("X", "Z", "alpha")},
        "but got dtype '<c16'": regular | {"X": regular["X"].to(torch.complex128)},
    }
    for number, (message, arrays) in enumerate(cases.items()):
        file = save(tmp_path / f"{number}.npz", arrays)
        refused = kk("svm", "solve", "--data", file, code=1).stderr
        wanted = message.replace("array X", "an array x [N, dx], but got Z").replace(
            "got [4, 30]", "expected X of shape [n, T, d], but got [4, 30]"
        )
        assert f"{file}: " in refused and wanted in refused, refused
    labels = save(tmp_path / "labels.pt", regular | {"Y": torch.tensor([1, 0, -1, 1])})
    refused = kk("svm", "solve", "--data", labels, "--alpha", "opt", code=1).stderr
    assert f"{labels}: expected labels Y of +1 or -1, but got 0 at 1" in refused
    for how, name, place in ("opt", "v", (2,)), ("argmax", "W", (1, 4)):
        changed = regular | {name: replaced(regular[name], place, math.nan)}
        file = save(tmp_path / f"{name}.npz", changed)
        refused = kk("svm", "solve", "--data", file, "--alpha", how, code=1).stderr
        assert f"{file}: expected finite {name}, but got NaN or Inf at {list(place)}" in refused


def test_bad_files(regular, kk, tmp_path):
    whole = save(tmp_path / "a.npz", regular).read_bytes()
    files = {
        "missing.npz": (None, "missing.npz"),
        "empty.npz": (b"", "expected arrays, but got an empty file"),
        "text.npz": (b"hello", "expected a .npz file, but got no zip archive"),
        "half.npz": (whole[: len(whole) // 2], "but got no zip archive"),
        "text.pt": (b"hello", "expected a .pt file with a dictionary of tensors"),
        "a.csv": (b"1,2", "expected a .npz or .pt file, but got another extension"),
    }
    for name, (content, message) in files.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        refused = kk("svm", "solve", "--data", tmp_path / name, code=1).stderr
        assert f"{tmp_path / name}" in refused and message in refused, refused
    refused = kk("svm", "solve", "--data", tmp_path / "a.npz", "--tol", "-1", code=2).stderr
    assert "--tol" in refused
