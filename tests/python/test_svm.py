"""Attention SVMs from Python: results, certificates, errors, and what the dispatcher may expect."""

import math
import signal
import threading
import time

import kktorch
import pytest
import torch
from kktorch import svm

ops = torch.ops.kktorch


def problem(n=4, length=5, dx=6, dz=5, seed=0):
    """Unit tokens and queries; alpha is the argmax of a random W, so that it is feasible."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*sizes):
        return torch.randn(*sizes, generator=generator, dtype=torch.float64)

    unit = torch.nn.functional.normalize
    tokens, queries, w = unit(draw(n, length, dx), dim=-1), unit(draw(n, dz), dim=-1), draw(dx, dz)
    alpha = torch.einsum("ntd,dk,nk->nt", tokens, w, queries).argmax(1)
    return svm.cross(tokens, queries), alpha


def pair_features(sets, alpha):
    """Rows a_j z_j^T [pairs, dx dz], and the entries of the pairs."""
    rows, entries = [], []
    for q in range(len(alpha)):
        begin, end = sets.row_ptr[q : q + 2].tolist()
        for e in range(begin, end):
            if e == begin + alpha[q]:
                continue
            tokens = sets.x if sets.tok is None else sets.x[sets.tok]
            rows.append(torch.outer(tokens[begin + alpha[q]] - tokens[e], sets.z[q]).flatten())
            entries.append(e)
    return torch.stack(rows), torch.tensor(entries)


def solve(sets, alpha, **options):
    return svm.att_svm(sets.x, sets.z, sets.row_ptr, alpha, tok=sets.tok, **options)


# ---- results ----


@pytest.mark.parametrize("norm", ["frobenius", "nuclear"])
def test_the_certificate_follows_from_the_formulas(norm):
    sets, alpha = problem()
    result = solve(sets, alpha, norm=norm, tol=1e-8)
    assert result.status == "optimal" and result.gap <= 1e-8
    rows, entries = pair_features(sets, alpha)
    margins = rows @ result.w.flatten()
    lam = result.lam[entries]
    dual = (lam @ rows).reshape(result.w.shape)
    sigma, dual_sigma = torch.linalg.svdvals(result.w), torch.linalg.svdvals(dual)
    assert (lam >= 0).all() and result.lam.count_nonzero() == lam.count_nonzero()
    assert math.isclose(margins.min(), 1, rel_tol=1e-9)
    if norm == "frobenius":
        lower, upper = margins.min() / sigma.norm(), dual_sigma.norm() / lam.sum()
        assert math.isclose(lam.sum(), result.w.square().sum(), rel_tol=1e-7)
        assert math.isclose(result.cosine, result.lower / result.upper)
        assert math.isclose(result.gap, max(0, 1 - (lower / upper) ** 2), abs_tol=1e-12)
    else:
        lower, upper = margins.min() / sigma.sum(), dual_sigma[0] / lam.sum()
        assert math.isclose(dual_sigma[0], 1, rel_tol=1e-9)
        assert math.isnan(result.cosine)
        assert result.rank == (sigma > 1e-4 * sigma[0]).sum()
        assert result.mu == (dual_sigma >= (1 - 1e-4) * dual_sigma[0]).sum()
    assert math.isclose(result.lower, lower, rel_tol=1e-12)
    assert math.isclose(result.upper, upper, rel_tol=1e-12)
    again = svm.certificate(*sets[:3], alpha, result.w, result.lam, norm=norm)
    assert str(vars(again)) == str(vars(result.certificate)), "as text: NaN is not itself"


def test_readable():
    sets, alpha = problem()
    result = solve(sets, alpha)
    text = repr(result)
    assert text.startswith("Result(optimal, frobenius: ") and "<= margin <=" in text
    assert repr(result.certificate).startswith("Certificate(frobenius: ")
    assert "KKT residual" in repr(solve(sets, alpha, h=torch.ones(20)))
    with pytest.raises(AttributeError, match="Result has no attribute 'weights'"):
        result.weights  # noqa: B018


def test_float32_is_copied_and_nothing_has_history():
    sets, alpha = problem()
    x, z = sets.x.float().requires_grad_(), sets.z.float()
    result = svm.att_svm(x, z, sets.row_ptr, alpha)
    assert result.w.dtype == result.lam.dtype == torch.float64
    assert not result.w.requires_grad and not result.lam.requires_grad
    exact = svm.att_svm(x.detach().double(), z.double(), sets.row_ptr, alpha)
    assert torch.equal(result.w, exact.w)


def test_builders():
    tokens = torch.randn(2, 3, 4, dtype=torch.float64)
    sets = svm.self_attention(tokens, 1)
    assert torch.equal(sets.z, tokens[:, 1]) and sets.row_ptr.tolist() == [0, 3, 6]
    full, causal = svm.sequence(tokens), svm.sequence(tokens, causal=True)
    assert full.tok.tolist() == [0, 1, 2] * 3 + [3, 4, 5] * 3
    assert causal.tok.tolist() == [0, 0, 1, 0, 1, 2, 3, 3, 4, 3, 4, 5]
    assert causal.row_ptr.tolist() == [0, 1, 3, 6, 7, 9, 12]
    assert torch.equal(causal.x, tokens.reshape(6, 4)) and torch.equal(causal.z, causal.x)


def test_infeasible_has_no_w():
    x = torch.tensor([[1.0, 0], [0, 1], [0, 0], [2, 0], [-1, 2]], dtype=torch.float64)
    # the selected token lies between others
    sets = svm.TokenSets(
        torch.cat([x[2:3], x[:1], -x[:1]]),
        torch.ones(1, 1, dtype=torch.float64),
        torch.tensor([0, 3]),
    )
    result = solve(sets, torch.tensor([0]))
    assert result.status == "infeasible" and result.w is None
    assert result.kappa >= 1e7 and math.isclose(result.lam.sum(), 1)
    assert "infeasible" in repr(result)


def test_trivial_and_zero_pairs():
    one = torch.ones(2, 3, dtype=torch.float64)
    alone = svm.TokenSets(one, one, torch.tensor([0, 1, 2]))
    result = solve(alone, torch.tensor([0, 0]))
    assert result.status == "trivial" and not result.w.any() and result.lam.numel() == 0
    assert result.gap == 0 and result.lower == result.upper == math.inf
    equal = svm.TokenSets(one, one[:1], torch.tensor([0, 2]))
    result = solve(equal, torch.tensor([0]))
    assert (result.status, result.reason) == ("infeasible", "zero_pair")
    assert solve(equal, torch.tensor([0]), drop_zero_pairs=True).status == "trivial"


# ---- several tokens ----


def selection(sets, alpha, second):
    sel = torch.zeros(len(sets.x), dtype=torch.bool)
    sel[sets.row_ptr[:-1] + alpha] = True
    sel[sets.row_ptr[:-1][second] + (alpha[second] + 1) % 5] = True
    return sel


def test_finite_part_of_a_softmax_is_its_projection():
    sets, alpha = problem(dx=8, dz=7)
    sel = selection(sets, alpha, torch.tensor([0, 2, 3]))
    w = torch.randn(8, 7, dtype=torch.float64)
    logits = torch.einsum("etd,dk,ek->et", sets.x.reshape(4, 5, 8), w, sets.z)
    result = svm.gen_svm(*sets[:3], sel, s=logits.softmax(1).flatten())
    assert result.status == "optimal" and result.fin_residual < 1e-12
    inside, outside = result.project(w)
    assert (inside - result.w_fin).norm() <= 1e-12 * w.norm()
    assert abs((inside * outside).sum()) < 1e-12 * w.norm() ** 2
    # w is orthogonal to S_fin, and so its own outer part
    assert (result.project(result.w)[0]).norm() < 1e-10 * result.w.norm()
    again = svm.certificate(*sets[:3], sel, result.w + result.w_fin, result.lam)
    assert math.isclose(again.lower, result.lower, rel_tol=1e-9)
    assert result.nu[~sel].abs().max() == 0 and result.lam[sel].abs().max() == 0


def test_one_selected_token_is_att_svm():
    sets, alpha = problem()
    sel = selection(sets, alpha, torch.tensor([], dtype=torch.long))
    assert torch.equal(svm.gen_svm(*sets[:3], sel).w, solve(sets, alpha).w)


# ---- a head and a prompt ----


def test_joint_svm_relaxes_what_does_not_support_the_head():
    x = torch.tensor([[0, 0], [1, 1], [0, 0], [1, -1], [0, 0], [0.5, 1]], dtype=torch.float64)
    row_ptr, alpha = torch.tensor([0, 2, 4, 6]), torch.ones(3, dtype=torch.long)
    labels = torch.tensor([1, -1, 1])
    found = svm.joint_svm(x, row_ptr, alpha, labels)
    assert found.v.status == found.p.status == "optimal" and found.support.all()
    torch.testing.assert_close(found.v.w.flatten(), torch.tensor([0.0, 1]).double())
    assert math.isclose(found.p.w.square().sum() / 2, 17 / 18, rel_tol=1e-8)
    x[5, 1] = 1.5  # beyond the margin of v
    found = svm.joint_svm(x, row_ptr, alpha, labels)
    assert found.support.tolist() == [True, True, False]
    assert math.isclose(found.p.w.square().sum() / 2, 0.5, rel_tol=1e-8)
    entries = torch.arange(6)
    same = svm.joint_svm(x.float(), row_ptr, alpha, labels, keys=2 * x, tok=entries)
    torch.testing.assert_close(same.p.w, found.p.w / 2)
    x[5] = -x[1]  # no head separates a feature from its opposite
    assert svm.joint_svm(x, row_ptr, alpha, labels).p is None
    with pytest.raises(ValueError, match=r"joint_svm: expected labels \+1 or -1, but got 2 at 1"):
        svm.joint_svm(x, row_ptr, alpha, torch.tensor([1, 2, 1]))


# ---- interruptions ----


def hard_problem():
    sets, _ = problem(900, 16, 34, 34)
    return sets, torch.zeros(900, dtype=torch.long)  # infeasible, slow to prove by descent


def test_time_limit_returns_the_best_certificate():
    sets, alpha = hard_problem()
    result = solve(sets, alpha, method="dcd", max_epochs=10**9, polish_max=1, time_limit=0.05)
    assert (result.status, result.reason) == ("not_certified", "time_limit")
    assert result.w.shape == (34, 34) and result.upper > 0


@pytest.fixture
def listens_to_interrupts():
    """Test processes that run side by side ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("listens_to_interrupts")
def test_interrupt_returns_the_best_certificate():
    sets, alpha = hard_problem()
    timer = threading.Timer(0.5, signal.raise_signal, [signal.SIGINT])
    timer.start()
    started = time.monotonic()
    result = solve(sets, alpha, method="dcd", max_epochs=10**9, polish_max=1, time_limit=60)
    timer.cancel()
    assert (result.status, result.reason) == ("not_certified", "interrupted")
    assert time.monotonic() - started >= 0.4 and result.w.shape == (34, 34)


# ---- errors ----


def replaced(tensor, index, value):
    tensor = tensor.clone()
    tensor[index] = value
    return tensor


def bad_inputs():
    sets, alpha = problem()
    x, z, row_ptr = sets[:3]
    good, nan = (x, z, row_ptr, alpha), math.nan
    h = torch.ones(20, dtype=torch.float64)
    none_selected = torch.zeros(20, dtype=torch.bool)
    none_selected[:5] = True
    two = none_selected | selection(sets, alpha, torch.tensor([0]))
    tok = torch.arange(20)
    return {
        "x NaN": ((replaced(x, (3, 1), nan), z, row_ptr, alpha), {}, r"finite x, .* at \[3, 1\]"),
        "z Inf": ((x, replaced(z, (0, 2), math.inf), row_ptr, alpha), {}, r"finite z, .*\[0, 2\]"),
        "dtype": ((x.half(), z.half(), row_ptr, alpha), {}, "x float32 or float64, but got Half"),
        "z dtype": (
            (x, z.float(), row_ptr, alpha),
            {},
            r"z Double \[4, dz\] on cpu, but",
        ),
        "row_ptr falls": (
            (x, z, torch.tensor([0, 10, 5, 15, 20]), alpha),
            {},
            "but got row_ptr 10 and 5 for query 1",
        ),
        "empty set": (
            (x, z, torch.tensor([0, 5, 5, 15, 20]), alpha),
            {},
            "sets of at least one token .*query 1",
        ),
        "row_ptr ends": ((x, z, replaced(row_ptr, 4, 19), alpha), {}, "row_ptr from 0 to nnz = 20"),
        "no query": ((x[:0], z[:0], row_ptr[:1], alpha[:0]), {}, "at least one query"),
        "alpha": ((x, z, row_ptr, replaced(alpha, 2, 5)), {}, "alpha in 0 ... 4 for query 2, but"),
        "alpha size": ((x, z, row_ptr, alpha[:3]), {}, r"alpha int64 \[4\] on cpu"),
        "tok": (
            (x, z, row_ptr, alpha),
            {"tok": replaced(tok, 7, 20)},
            "tok in 0 ... 19, but got 20",
        ),
        "empty O_q": ((x, z, row_ptr, none_selected), {}, "every set, but got none for query 1"),
        "sel size": ((x, z, row_ptr, none_selected[1:]), {}, r"bool \[20\] on cpu"),
        "h negative": (good, {"h": -h}, "h >= 0, but got -1"),
        "h NaN": (good, {"h": replaced(h, 4, nan)}, r"finite h, .* at \[4\]"),
        "h size": (good, {"h": h[:4]}, r"h floating \[20\]"),
        "h solver": (
            (x, z, row_ptr, alpha),
            {"h": h, "method": "dcd"},
            "h only with the Frobenius",
        ),
        "h norm": (
            (x, z, row_ptr, alpha),
            {"h": h, "norm": "nuclear"},
            "h only with the Frobenius",
        ),
        "tol": (good, {"tol": 0.0}, "tol > 0, but got 0"),
        "epochs": (good, {"max_epochs": 0}, "positive max_epochs"),
        "norm": (
            (x, z, row_ptr, alpha),
            {"norm": "l1"},
            "norm 'frobenius' or 'nuclear', but got 'l1'",
        ),
        "method": (good, {"method": "svm"}, "method 'auto', 'oracle', 'dcd' or"),
        "method norm": (
            good,
            {"norm": "nuclear", "method": "oracle"},
            "method 'auto' or 'pdhg' with the nuclear norm",
        ),
        "nuclear several": (
            (x, z, row_ptr, two),
            {"norm": "nuclear"},
            "one selected token per query",
        ),
        "lam0 NaN": (good, {"lam0": replaced(h, 0, nan)}, "finite lam0"),
    }


@pytest.mark.parametrize("case", bad_inputs())
def test_errors(case):
    arguments, options, message = bad_inputs()[case]
    with pytest.raises((RuntimeError, ValueError), match="svm_solve: expected .*" + message):
        ops.svm_solve(*arguments, **options)


def test_errors_of_the_certificate_and_the_finite_part():
    sets, alpha = problem()
    result = solve(sets, alpha)
    w, lam = result.w, result.lam
    for bad_w, bad_lam, message in [
        (replaced(w, (1, 2), math.nan), lam, r"finite w, but got NaN or Inf at \[1, 2\]"),
        (w[:2], lam, r"w floating \[6, 5\] on cpu, but got Double \[2, 5\]"),
        (w, lam[:4], r"lam floating \[20\] on cpu, but got Double \[4\]"),
        (w, lam - 1, "lam >= 0, but got -1"),
    ]:
        with pytest.raises(RuntimeError, match="svm_certificate: expected " + message):
            svm.certificate(*sets[:3], alpha, bad_w, bad_lam)
    sel = selection(sets, alpha, torch.tensor([1]))
    with pytest.raises(RuntimeError, match="svm_certificate: expected one selected token"):
        svm.certificate(*sets[:3], sel, w, lam, norm="nuclear")
    s = torch.zeros(20, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="svm_finite_part: expected s > 0 at selected entries"):
        svm.gen_svm(*sets[:3], sel, s=s)
    with pytest.raises(RuntimeError, match="svm_finite_part: expected either w or s, but got n"):
        ops.svm_finite_part(*sets[:3], sel)
    with pytest.raises(RuntimeError, match=r"svm_finite_part: expected the selection as bool"):
        ops.svm_finite_part(*sets[:3], alpha, w=w)
    with pytest.raises(ValueError, match=r"gen_svm: expected sel bool \[nnz\]"):
        svm.gen_svm(*sets[:3], alpha)


# ---- the dispatcher ----


def test_opcheck():
    sets, alpha = problem()
    sel = selection(sets, alpha, torch.tensor([0, 1]))
    w = solve(sets, alpha).w.requires_grad_()
    tok = {"tok": torch.arange(20).flip(0)}
    torch.library.opcheck(ops.svm_solve.default, (*sets[:3], alpha))
    torch.library.opcheck(ops.svm_solve.default, (*sets[:3], sel), tok)
    lam = torch.rand(20, dtype=torch.float64)
    torch.library.opcheck(ops.svm_certificate.default, (*sets[:3], alpha, w, lam))
    torch.library.opcheck(ops.svm_finite_part.default, (*sets[:3], sel), {"w": w})
    for op in (ops.svm_solve, ops.svm_certificate, ops.svm_finite_part):
        assert torch.Tag.pt2_compliant_tag in op.default.tags


def test_the_info_has_the_names_of_the_enum():
    sets, alpha = problem()
    info = ops.svm_solve(*sets[:3], alpha)[3]
    assert info.numel() == len(svm._INFO)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_is_refused_by_name():
    sets, alpha = problem()
    inputs = [t.cuda() for t in (*sets[:3], alpha)]
    with pytest.raises(NotImplementedError, match="expected tensors on cpu, but got cuda"):
        ops.svm_solve(*inputs)


def test_the_module_is_part_of_the_package():
    assert kktorch.svm is svm
