"""attn_margin and attn_dual: results against a loop over queries, contracts, errors."""

import math

import pytest
import torch

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
attn_margin = torch.ops.kktorch.attn_margin
attn_dual = torch.ops.kktorch.attn_dual


def problem(dtype=torch.float64, sizes=(3, 1, 5, 2), dx=6, dz=4, tokens=9):
    """Token sets over a pool of tokens, queries, W and numbers for the entries."""
    row_ptr = torch.tensor([0, *sizes]).cumsum(0)
    return {
        "x": torch.randn(tokens, dx).to(dtype),
        "z": torch.randn(len(sizes), dz, dtype=torch.float64),
        "W": torch.randn(dx, dz, dtype=torch.float64),
        "row_ptr": row_ptr,
        "tok": torch.randint(tokens, (int(row_ptr[-1]),)),
        "q": torch.randn(int(row_ptr[-1]), dtype=torch.float64),
    }


def sets_of(p):
    """(tokens [T, dx] in float64, z_q, entries) of every query."""
    for q, (begin, end) in enumerate(zip(p["row_ptr"][:-1], p["row_ptr"][1:], strict=True)):
        entries = range(int(begin), int(end))
        yield p["x"].double()[p["tok"][begin:end]], p["z"][q], entries


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_margins_are_those_of_the_definition(dtype, scale):
    p = problem(dtype)
    y = p["z"] @ p["W"].t()
    found = attn_margin(p["x"], y, p["row_ptr"], tok=p["tok"], scale=scale)
    margin, alpha, qmin, qarg, smax, entropy, xmax = found
    for q, (x, z, entries) in enumerate(sets_of(p)):
        logits = x @ p["W"] @ z
        best = int(logits.argmax())
        assert alpha[q] == best
        expected = logits[best] - logits
        torch.testing.assert_close(margin[entries], expected, rtol=0, atol=1e-12)
        others = [(float(m), t) for t, m in enumerate(expected) if t != best]
        least, place = min(others, default=(math.inf, -1))
        assert qarg[q] == place and float(qmin[q]) == pytest.approx(least, abs=1e-12)
        s = (scale * logits).softmax(0)
        assert float(smax[q]) == pytest.approx(float(s.max()), abs=1e-13)
        assert float(entropy[q]) == pytest.approx(float(-(s * s.log()).sum()), abs=1e-13)
        assert float(xmax[q]) == pytest.approx(float(x.norm(dim=1).max()), rel=1e-14)
    assert all(t.dtype == torch.float64 for t in (margin, qmin, smax, entropy, xmax))


@pytest.mark.parametrize("dtype", DTYPES)
def test_dual_is_the_adjoint_at_the_positive_part(dtype):
    p = problem(dtype)
    alpha = torch.tensor([2, 0, 4, 0])
    M, mass = attn_dual(p["x"], p["z"], p["row_ptr"], alpha, p["q"], tok=p["tok"])
    expected = torch.zeros_like(p["W"])
    for q, (x, z, entries) in enumerate(sets_of(p)):
        lam = p["q"][entries].clamp_min(0)
        lam[alpha[q]] = 0
        expected += torch.outer(lam.sum() * x[alpha[q]] - lam @ x, z)
        assert float(mass[q]) == pytest.approx(float(lam.sum()), abs=1e-13)
    torch.testing.assert_close(M, expected, rtol=0, atol=1e-12)
    # <A*(lam), W> = <lam, A(W)>
    margin = attn_margin(p["x"], p["z"] @ p["W"].t(), p["row_ptr"], tok=p["tok"], alpha=alpha)[0]
    selected = p["row_ptr"][:-1] + alpha
    lam = p["q"].clamp_min(0).index_fill(0, selected, 0)
    assert float((M * p["W"]).sum()) == pytest.approx(float(lam @ margin), abs=1e-11)


def test_without_tok_the_sets_are_ranges_of_tokens():
    p = problem(tokens=11)
    listed = torch.arange(11)
    y = p["z"] @ p["W"].t()
    assert all(
        torch.equal(a, b)
        for a, b in zip(
            attn_margin(p["x"], y, p["row_ptr"]),
            attn_margin(p["x"], y, p["row_ptr"], tok=listed),
            strict=True,
        )
    )


def test_equal_logits_select_the_first_and_a_permutation_permutes():
    x = torch.ones(4, 2, dtype=torch.float64)
    row_ptr, y = torch.tensor([0, 4]), torch.ones(1, 2, dtype=torch.float64)
    margin, alpha, qmin, qarg, smax, entropy, _ = attn_margin(x, y, row_ptr)
    assert alpha.tolist() == [0] and qmin.tolist() == [0.0] and qarg.tolist() == [1]
    assert smax.tolist() == [0.25] and float(entropy) == pytest.approx(math.log(4))
    p = problem(sizes=(6,))
    order = torch.randperm(6)
    y = p["z"] @ p["W"].t()
    plain = attn_margin(p["x"], y, p["row_ptr"], tok=p["tok"])
    turned = attn_margin(p["x"], y, p["row_ptr"], tok=p["tok"][order])
    assert torch.equal(turned[0], plain[0][order])
    assert torch.equal(turned[2], plain[2]) and order[turned[1]] == plain[1]


def test_results_do_not_depend_on_the_number_of_threads():
    p = problem(torch.float32, sizes=(40,) * 200, dx=32, tokens=500)
    y, alpha = p["z"] @ p["W"].t(), torch.arange(200) % 40
    runs = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        runs.append(
            [
                *attn_margin(p["x"], y, p["row_ptr"], tok=p["tok"]),
                *attn_dual(p["x"], p["z"], p["row_ptr"], alpha, p["q"], tok=p["tok"]),
            ]
        )
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_outputs_are_not_differentiable():
    p = problem()
    x, y = p["x"].requires_grad_(), (p["z"] @ p["W"].t()).requires_grad_()
    outputs = attn_margin(x, y, p["row_ptr"], tok=p["tok"])
    outputs += attn_dual(x, p["z"], p["row_ptr"], outputs[1], p["q"], tok=p["tok"])
    assert not any(t.requires_grad for t in outputs)


def test_ops_keep_what_compilers_expect():
    p = problem()
    alpha = torch.zeros(4, dtype=torch.int64)
    y = p["z"] @ p["W"].t()
    for tensors in (
        (p["x"], y),
        (p["x"].float(), y.float()),
        (p["x"].requires_grad_(), y.detach().requires_grad_()),
    ):
        options = {"tok": p["tok"], "scale": 0.5}
        torch.library.opcheck(attn_margin.default, (*tensors, p["row_ptr"]), options)
    torch.library.opcheck(
        attn_margin.default, (p["x"][p["tok"]], y, p["row_ptr"]), {"alpha": alpha}
    )
    torch.library.opcheck(
        attn_dual.default, (p["x"], p["z"], p["row_ptr"], alpha, p["q"]), {"tok": p["tok"]}
    )
    compiled = torch.compile(
        lambda x, y, rows: attn_margin(x * 2, y, rows)[2] + 1, fullgraph=True, backend="aot_eager"
    )
    x = p["x"].detach()[p["tok"]]
    expected = attn_margin(x * 2, y, p["row_ptr"])[2] + 1
    assert torch.equal(compiled(x, y, p["row_ptr"]), expected)


def test_strided_inputs_are_accepted():
    p = problem()
    y = p["z"] @ p["W"].t()
    expected = attn_margin(p["x"], y, p["row_ptr"], tok=p["tok"])
    strided = attn_margin(
        p["x"].t().contiguous().t(),
        y.t().contiguous().t(),
        p["row_ptr"].repeat_interleave(2)[::2],
        tok=p["tok"].repeat_interleave(2)[::2],
    )
    assert all(torch.equal(a, b) for a, b in zip(strided, expected, strict=True))


MARGIN_ERRORS = {
    "expected x of shape [N, dx] and a dtype in {float16, bfloat16, float32, float64}": (
        {"x": torch.zeros(9, 6, dtype=torch.int64)},
        {"x": torch.zeros(9)},
    ),
    "expected y floating [4, 6]": ({"y": torch.zeros(4, 5)}, {"y": torch.zeros(3, 6)}),
    "expected row_ptr int64 [Q + 1]": ({"row_ptr": torch.tensor([0, 1, 2, 3, 4]).int()},),
    "expected row_ptr from 0 to nnz = 11, but got 0 to 9": (
        {"row_ptr": torch.tensor([0, 3, 4, 5, 9])},
    ),
    "(row_ptr increases), but got row_ptr 4 and 4 for query 2": (
        {"row_ptr": torch.tensor([0, 3, 4, 4, 11])},
    ),
    "expected tok int64 [nnz]": ({"tok": torch.zeros(11)},),
    "expected tok in 0 ... 8, but got 9 at 3": (
        {"tok": torch.tensor([0, 1, 2, 9, 4, 5, 6, 7, 8, 0, 0])},
    ),
    "expected alpha int64 [4]": ({"alpha": torch.zeros(3, dtype=torch.int64)},),
    "expected alpha in 0 ... 0 for query 1, but got 1": ({"alpha": torch.tensor([0, 1, 0, 0])},),
    "expected a finite scale > 0, but got -1": ({"scale": -1.0},),
}


@pytest.mark.parametrize(
    ("message", "change"),
    [(message, change) for message, changes in MARGIN_ERRORS.items() for change in changes],
)
def test_errors_of_attn_margin(message, change):
    p = problem()
    arguments = {"x": p["x"], "y": p["z"] @ p["W"].t(), "row_ptr": p["row_ptr"]}
    arguments |= {"tok": p["tok"], "alpha": None, "scale": 1.0} | change
    with pytest.raises((RuntimeError, ValueError)) as error:
        attn_margin(**arguments)
    assert "attn_margin: expected" in str(error.value) and message in str(error.value)


@pytest.mark.parametrize(
    ("message", "change"),
    [
        ("expected z floating [4, dz]", {"z": torch.zeros(5, 2)}),
        ("expected alpha int64 [4]", {"alpha": torch.zeros(4)}),
        ("expected alpha in 0 ... 2 for query 0, but got -1", {"alpha": -torch.ones(4).long()}),
        ("expected q floating [11]", {"q": torch.zeros(10)}),
    ],
)
def test_errors_of_attn_dual(message, change):
    p = problem()
    arguments = {name: p[name] for name in ("x", "z", "row_ptr", "q", "tok")}
    arguments |= {"alpha": torch.zeros(4, dtype=torch.int64)} | change
    with pytest.raises(RuntimeError) as error:
        attn_dual(**arguments)
    assert f"attn_dual: {message}" in str(error.value)
