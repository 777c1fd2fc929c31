"""The ops of multi-head gradient descent: values, gradients, symmetries, contracts."""

import dynamics_reference
import pytest
import torch
import torch.nn.functional as F
from attention_bn_cases import assert_close, assert_identical

ops = torch.ops.kktorch
# samples, tokens, width, heads
SIZES = [(1, 1, 1, 1), (5, 4, 3, 9), (7, 10, 22, 4), (3, 35, 6, 17), (9, 5, 50, 20)]


def problem(n=5, T=4, d=3, H=9, dtype=torch.float64, scale=0.7):
    draw = torch.Generator().manual_seed(2)
    sizes = {"X": (n, T, d), "W": (H, d, d), "U": (H, T, d)}
    p = {k: torch.randn(s, generator=draw, dtype=torch.float64) for k, s in sizes.items()}
    p["W"] *= scale / d**0.5
    p["y"] = 2.0 * torch.randint(2, (n,), generator=draw).double() - 1
    p["r"] = torch.randn(n, generator=draw, dtype=torch.float64)
    return {name: t.to(dtype) for name, t in p.items()}


def pick(p, names):
    return [p[name] for name in names]


def parameters(p):
    return [p[name].detach().requires_grad_() for name in "WU"]


def assert_relative(actual, expected, tolerance):
    for a, b in zip(actual, expected, strict=True):
        assert (a.double() - b).norm() <= tolerance * b.norm() + 1e-14


def loss_of(phi, y):
    return F.softplus(-y * phi, threshold=40).mean()  # exact in float64


@pytest.mark.parametrize("sizes", SIZES[:3])
def test_logits_are_the_formula_head_by_head(sizes):
    p = problem(*sizes)
    expected = dynamics_reference.multihead_logits(*pick(p, "XWU"))
    assert_close(ops.mhgd_logits(*pick(p, "XWU")), expected, 1e-12)
    assert_close(ops.mhgd_logits_ref(*pick(p, "XWU")), expected, 1e-12)


@pytest.mark.parametrize("sizes", SIZES)
def test_gradients_are_those_of_autograd(sizes):
    p = problem(*sizes)
    W, U = parameters(p)
    phi = ops.mhgd_logits_ref(p["X"], W, U)
    expected = torch.autograd.grad(loss_of(phi, p["y"]), (W, U))
    loss, outputs, *gradients = ops.mhgd_loss_grad(*pick(p, "XyWU"))
    assert_close(loss, loss_of(phi, p["y"]).detach(), 1e-12)
    assert_close(outputs, phi.detach(), 1e-11)
    assert_relative(gradients, expected, 1e-10)
    through_op = torch.autograd.grad(loss_of(ops.mhgd_logits(p["X"], W, U), p["y"]), (W, U))
    assert_relative(through_op, expected, 1e-10)


def test_gradients_are_central_differences():
    p, step = problem(), 1e-5
    gradients = ops.mhgd_loss_grad(*pick(p, "XyWU"))[2:]
    for name, gradient in zip("WU", gradients, strict=True):
        direction = torch.randn_like(p[name])
        losses = [
            ops.mhgd_loss_grad(*pick(p | {name: p[name] + s * direction}, "XyWU"))[0]
            for s in (step, -step)
        ]
        slope = (losses[0] - losses[1]) / (2 * step)
        assert abs(slope - (gradient * direction).sum()) <= 1e-6 * abs(slope) + 1e-9


@pytest.mark.parametrize("threads", [1, 2])
def test_chunks_and_threads(threads):
    p = problem(30, 6, 5, 40)
    whole = ops.mhgd_loss_grad(*pick(p, "XyWU"))
    torch.set_num_threads(threads)
    assert_identical(list(ops.mhgd_loss_grad(*pick(p, "XyWU"))), list(whole))
    for chunk_bytes in (1, 3 * 40 * 80 * 8, 1 << 19):
        chunked = ops.mhgd_loss_grad(*pick(p, "XyWU"), chunk_bytes=chunk_bytes)
        assert_close(dict(enumerate(chunked)), dict(enumerate(whole)), 1e-12)


def test_float32_is_float64_rounded():
    exact = ops.mhgd_loss_grad(*pick(problem(20, 10, 22, 20), "XyWU"))
    single = ops.mhgd_loss_grad(*pick(problem(20, 10, 22, 20, torch.float32), "XyWU"))
    assert single[0].dtype == torch.float64 and single[2].dtype == torch.float32
    assert_relative(single, exact, 1e-4)


def test_large_margins_and_scores_stay_finite():
    p = problem(dtype=torch.float32)
    for scale in (1e3, 1e6):
        large = {name: scale * p[name] for name in "WU"}
        assert all(t.isfinite().all() for t in ops.mhgd_loss_grad(*pick(p | large, "XyWU")))


def test_features_and_jvp():
    p = problem(6, 5, 4, 19)
    Z, G = ops.mhgd_features(*pick(p, "XWU"))
    W, U = parameters(p)
    for i in range(6):
        gW, gU = torch.autograd.grad(ops.mhgd_logits_ref(p["X"][i : i + 1], W, U).sum(), (W, U))
        assert_close(19**-0.5 * Z[i].transpose(0, 1), gU, 1e-12)
        assert_close(19**-0.5 * torch.einsum("tk,the->hke", p["X"][i], G[i]), gW, 1e-12)
    dW, dU = torch.randn_like(p["W"]), torch.randn_like(p["U"])
    jvp = ops.mhgd_jvp(p["X"], Z, G, dW, dU)
    step = 1e-5
    ahead, behind = (
        ops.mhgd_logits(p["X"], p["W"] + s * dW, p["U"] + s * dU) for s in (step, -step)
    )
    assert (jvp - (ahead - behind) / (2 * step)).norm() <= 1e-6 * jvp.norm()
    gW, gU = ops._mhgd_logits_backward(*pick(p, "rXWU"))
    assert abs(jvp @ p["r"] - (gW * dW).sum() - (gU * dU).sum()) <= 1e-10 * jvp.norm()


def test_symmetries():
    p = problem(6, 5, 4, 7)
    phi = ops.mhgd_logits(*pick(p, "XWU"))
    assert_close(ops.mhgd_logits(-p["X"], p["W"], p["U"]), -phi, 1e-12)
    rotation = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))[0]
    rotated = [p["X"] @ rotation, rotation.T @ p["W"] @ rotation, p["U"] @ rotation]
    assert_close(ops.mhgd_logits(*rotated), phi, 1e-10)


def test_strides_do_not_matter():
    p = problem()
    strided = {name: t.mT.contiguous().mT if t.dim() > 1 else t for name, t in p.items()}
    expected = ops.mhgd_loss_grad(*pick(p, "XyWU"))
    assert_identical(list(ops.mhgd_loss_grad(*pick(strided, "XyWU"))), list(expected))


def test_ops_pass_opcheck():
    p = problem(3, 4, 2, 5)
    W, U = parameters(p)
    Z, G = ops.mhgd_features(*pick(p, "XWU"))
    torch.library.opcheck(ops.mhgd_logits.default, (p["X"], W, U))
    torch.library.opcheck(ops._mhgd_logits_backward.default, tuple(pick(p, "rXWU")))
    torch.library.opcheck(ops.mhgd_loss_grad.default, tuple(pick(p, "XyWU")))
    torch.library.opcheck(ops.mhgd_features.default, tuple(pick(p, "XWU")))
    torch.library.opcheck(ops.mhgd_jvp.default, (p["X"], Z, G, p["W"], p["U"]))


def test_what_is_not_differentiable_says_so():
    p = problem()
    W, U = parameters(p)
    with pytest.raises(RuntimeError, match="expected data that does not require gradients"):
        ops.mhgd_logits(p["X"].clone().requires_grad_(), W, U)
    (gU,) = torch.autograd.grad(ops.mhgd_logits(p["X"], W, U).sum(), U, create_graph=True)
    with pytest.raises(NotImplementedError, match="double backward.*use mhgd_logits_ref"):
        gU.sum().backward()
    with pytest.raises(NotImplementedError, match="mhgd_loss_grad: differentiation"):
        ops.mhgd_loss_grad(p["X"], p["y"], W, U)[0].backward()


@pytest.mark.parametrize(
    "change, message",
    {
        "dtype": ({"X": problem()["X"].half()}, "expected X float32 or float64"),
        "rank": ({"X": problem()["X"][0]}, r"expected X \[n, T, d\]"),
        "mixed dtype": ({"W": problem()["W"].float()}, r"expected W Double \[9, 3, 3\]"),
        "shape of U": ({"U": problem()["U"][:, 1:]}, r"expected U Double \[9, 4, 3\]"),
        "device": ({"U": problem()["U"].to("meta")}, r"expected U .* on cpu, but got .* on meta"),
        "empty": ({"X": problem()["X"][:0]}, "expected n, T, d, H >= 1, but got 0"),
    }.values(),
)
def test_wrong_inputs_are_named(change, message):
    with pytest.raises((RuntimeError, ValueError), match="mhgd_.*: " + message):
        ops.mhgd_logits(*pick(problem() | change, "XWU"))


def test_wrong_options_and_labels_are_named():
    p = problem()
    with pytest.raises(ValueError, match="expected chunk_bytes >= 1, but got 0"):
        ops.mhgd_logits(*pick(p, "XWU"), chunk_bytes=0)
    with pytest.raises(RuntimeError, match=r"expected y Double \[5\]"):
        ops.mhgd_loss_grad(p["X"], p["y"][1:], p["W"], p["U"])
