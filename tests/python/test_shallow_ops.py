"""The ops of shallow transformers and of the recurrent baseline: values, gradients, contracts."""

import dynamics_reference
import pytest
import torch
from attention_bn_cases import assert_close, assert_identical

ops = torch.ops.kktorch
ACTIVATIONS = {"tanh": torch.tanh, "sigmoid": torch.sigmoid, "identity": lambda s: s}
# samples, tokens, width, heads: single ones, odd ones, more than a block of heads and a group of
# queries hold
SIZES = [(1, 1, 1, 1), (5, 7, 3, 9), (37, 16, 8, 20), (4, 33, 17, 2), (3, 70, 5, 33)]


def problem(n=5, T=7, d=3, m=9, dtype=torch.float64):
    draw = torch.Generator().manual_seed(1)
    sizes = {"X": (n, T, d), "q": (n, d), "y": (n,), "W": (m, d, d), "U": (m, d), "c": (m,)}
    return {
        name: torch.randn(size, generator=draw, dtype=torch.float64).to(dtype)
        for name, size in sizes.items()
    }


def model_of(p, *names):
    return [p[name] for name in names or "XqWUc"]


def parameters(p):
    return [p[name].detach().requires_grad_() for name in "WUc"]


@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("sizes", SIZES[:3])
def test_output_is_the_formula_head_by_head(sizes, act):
    p = problem(*sizes)
    expected = dynamics_reference.shallow_output(*model_of(p), ACTIVATIONS[act])
    assert_close(ops.shk_output(*model_of(p), act=act), expected, 1e-12)
    assert_close(ops.shk_output_ref(*model_of(p), act=act), expected, 1e-12)


@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("sizes", SIZES)
def test_gradients_are_those_of_autograd(sizes, act):
    p = problem(*sizes)
    W, U, c = parameters(p)
    f = ops.shk_output_ref(p["X"], p["q"], W, U, c, act=act)
    loss = (f - p["y"]).square().mean()
    expected = torch.autograd.grad(loss, (W, U, c))
    actual = ops.shk_loss_grad(*model_of(p, *"XqyWUc"), act=act)
    assert_close(actual[0], loss.detach(), 1e-12)
    assert_close(actual[1], f.detach(), 1e-11)
    for gradient, wanted in zip(actual[2:], expected, strict=True):
        assert (gradient - wanted).norm() <= 1e-10 * wanted.norm()

    out = ops.shk_output(p["X"], p["q"], W, U, c, act=act)
    through_op = torch.autograd.grad((out - p["y"]).square().mean(), (W, U, c))
    for gradient, wanted in zip(through_op, expected, strict=True):
        assert (gradient - wanted).norm() <= 1e-10 * wanted.norm()


def test_gradients_are_central_differences():
    p, step = problem(), 1e-5
    gradients = ops.shk_loss_grad(*model_of(p, *"XqyWUc"))[2:]
    for name, gradient in zip("WUc", gradients, strict=True):
        direction = torch.randn_like(p[name])
        losses = [
            ops.shk_loss_grad(*model_of(p | {name: p[name] + s * direction}, *"XqyWUc"))[0]
            for s in (step, -step)
        ]
        slope = (losses[0] - losses[1]) / (2 * step)
        assert abs(slope - (gradient * direction).sum()) <= 1e-6 * abs(slope) + 1e-9


def test_features_are_the_factors_of_the_gradient():
    p = problem(6, 5, 4, 19)
    h, B, G = ops.shk_features(*model_of(p, *"XqWU"))
    W, U, c = parameters(p)
    for j in range(6):
        f = ops.shk_output_ref(p["X"][j : j + 1], p["q"][j : j + 1], W, U, c)
        gW, gU, gc = torch.autograd.grad(f.sum(), (W, U, c))
        scale = 19**-0.5
        assert_close(scale * h[j], gc, 1e-12)
        assert_close(scale * c.detach()[:, None] * B[j], gU, 1e-12)
        outer = G[j][:, :, None] * p["q"][j]
        assert_close(scale * c.detach()[:, None, None] * outer, gW, 1e-12)


@pytest.mark.parametrize("threads", [1, 2])
def test_chunks_and_threads(threads):
    p = problem(40, 9, 5, 70)
    whole = ops.shk_loss_grad(*model_of(p, *"XqyWUc"))
    torch.set_num_threads(threads)
    assert_identical(list(ops.shk_loss_grad(*model_of(p, *"XqyWUc"))), list(whole))
    for chunk_bytes in (1, 3 * 70 * 23 * 8, 1 << 20):
        chunked = ops.shk_loss_grad(*model_of(p, *"XqyWUc"), chunk_bytes=chunk_bytes)
        assert_close(dict(enumerate(chunked)), dict(enumerate(whole)), 1e-12)


def test_float32_is_float64_rounded():
    exact = ops.shk_loss_grad(*model_of(problem(30, 16, 8, 40), *"XqyWUc"))
    single = ops.shk_loss_grad(*model_of(problem(30, 16, 8, 40, torch.float32), *"XqyWUc"))
    assert single[0].dtype == torch.float64 and single[2].dtype == torch.float32
    for actual, wanted in zip(single, exact, strict=True):
        assert (actual.double() - wanted).norm() <= 1e-4 * wanted.norm()


def test_saturated_activations_and_scores_stay_finite():
    p = problem(dtype=torch.float32)
    for scale in (1e-20, 1e3, 1e6):
        q = {name: scale * p[name] for name in "WU"}
        assert all(t.isfinite().all() for t in ops.shk_loss_grad(*model_of(p | q, *"XqyWUc")))
    s = torch.linspace(-30, 30, 1001, dtype=torch.float64)
    one = torch.ones(1, 1, 1, dtype=torch.float64)
    h, B, _ = ops.shk_features(
        s[:, None, None], s[:, None], torch.zeros_like(one), one[0], act="tanh"
    )
    assert_close(h[:, 0], s.tanh(), 1e-15)
    assert_close(B[:, 0, 0], (1 - s.tanh().square()) * s, 1e-13)
    small = 1e-9 * s
    h, _, _ = ops.shk_features(small[:, None, None], small[:, None], 0 * one, one[0])
    assert ((h[:, 0] - small).abs() <= 7e-16 * small.abs()).all(), "relative accuracy near 0"


def test_strides_do_not_matter():
    p = problem()
    whole = ops.shk_loss_grad(*model_of(p, *"XqyWUc"))
    strided = {name: t.mT.contiguous().mT if t.dim() > 1 else t for name, t in p.items()}
    assert_identical(list(ops.shk_loss_grad(*model_of(strided, *"XqyWUc"))), list(whole))


def test_ops_pass_opcheck():
    p = problem(3, 4, 2, 5)
    W, U, c = parameters(p)
    torch.library.opcheck(ops.shk_output.default, (p["X"], p["q"], W, U, c))
    torch.library.opcheck(ops._shk_output_backward.default, (p["y"], *model_of(p)))
    torch.library.opcheck(ops.shk_loss_grad.default, tuple(model_of(p, *"XqyWUc")))
    torch.library.opcheck(ops.shk_features.default, tuple(model_of(p, *"XqWU")))
    torch.library.opcheck(ops.project_ball.default, (p["W"], 0 * p["W"], 0.5))
    rnn = (p["X"], p["y"], p["c"], p["U"], p["c"])
    torch.library.opcheck(ops.indrnn_loss_grad.default, rnn)
    torch.library.opcheck(ops.indrnn_jac.default, (p["X"], p["c"], p["U"]))


def test_what_is_not_differentiable_says_so():
    p = problem()
    W, U, c = parameters(p)
    with pytest.raises(RuntimeError, match="expected data that does not require gradients"):
        ops.shk_output(p["X"].requires_grad_(), p["q"], W, U, c)
    p = problem()
    (gU,) = torch.autograd.grad(ops.shk_output(p["X"], p["q"], W, U, c).sum(), U, create_graph=True)
    with pytest.raises(NotImplementedError, match="double backward.*use shk_output_ref"):
        gU.sum().backward()
    loss = ops.shk_loss_grad(p["X"], p["q"], p["y"], W, U, c)[0]
    with pytest.raises(NotImplementedError, match="shk_loss_grad: differentiation"):
        loss.backward()


@pytest.mark.parametrize(
    "change, message",
    {
        "dtype": ({"X": problem()["X"].half()}, "expected X float32 or float64"),
        "rank": ({"X": problem()["X"][0]}, r"expected X \[n, T, d\]"),
        "mixed dtype": ({"W": problem()["W"].float()}, r"expected W Double \[9, 3, 3\]"),
        "shape of q": ({"q": problem()["q"][1:]}, r"expected q Double \[5, 3\]"),
        "shape of c": ({"c": problem()["c"][1:]}, r"expected c Double \[9\]"),
        "device": ({"U": problem()["U"].to("meta")}, r"expected U .* on cpu, but got .* on meta"),
        "empty": ({"X": problem()["X"][:, :0]}, "expected n, T, d, m >= 1, but got 5, 0"),
    }.values(),
)
def test_wrong_inputs_are_named(change, message):
    p = problem() | change
    with pytest.raises((RuntimeError, ValueError), match="shk_.*: " + message):
        ops.shk_output(*model_of(p))


def test_wrong_options_are_named():
    p = problem()
    with pytest.raises(ValueError, match="expected act .* but got 'relu'"):
        ops.shk_output(*model_of(p), act="relu")
    with pytest.raises(ValueError, match="expected chunk_bytes >= 1, but got 0"):
        ops.shk_output(*model_of(p), chunk_bytes=0)
    with pytest.raises(RuntimeError, match=r"expected y Double \[5\]"):
        ops.shk_loss_grad(p["X"], p["q"], p["y"][:2], *model_of(p, *"WUc"))


# ---- projection


def test_projection_is_onto_the_balls():
    p, center = problem(m=50)["W"], 0.1 * problem(m=50)["W"].flip(0)
    for radius in (0.5, 2.0):
        projected, moved = ops.project_ball(p, center, radius)
        norm = (p - center).flatten(1).norm(dim=1)
        assert_identical(moved, norm > radius)
        assert_identical(projected[~moved], p[~moved])
        assert_close((projected - center).flatten(1).norm(dim=1), norm.clamp_max(radius), 1e-12)
        assert_close(ops.project_ball(projected, center, radius)[0], projected, 1e-12)
        other = p.flip(1)
        distance = (projected - ops.project_ball(other, center, radius)[0]).norm()
        assert distance <= (p - other).norm()


def test_radii_zero_and_infinity():
    p = problem()
    projected, moved = ops.project_ball(p["U"], p["U"] + 1, torch.inf)
    assert_identical(projected, p["U"])
    assert not moved.any()
    assert_identical(ops.project_ball(p["U"] + 1, p["U"], 0.0)[0], p["U"])
    assert_identical(ops.project_ball(p["c"], p["c"], 0.0)[0], p["c"])
    for radius in (-1.0, torch.nan):
        with pytest.raises(ValueError, match="expected radius >= 0, but got"):
            ops.project_ball(p["U"], p["U"], radius)


# ---- the recurrent baseline


def test_recurrent_network_is_its_recursion():
    p = problem(6, 9, 3, 5)
    X, y, u, c = (p[name] for name in "XyUc")
    w = (0.9 * p["c"].flip(0)).detach()
    expected, states = dynamics_reference.indrnn_output(X, w, u, c)
    assert_close(ops.indrnn_forward(X, w, u, c), expected, 1e-12)
    tensors = [t.clone().requires_grad_() for t in (w, u, c)]
    loss = (ops.indrnn_forward(X, *tensors) - y).square().mean()
    wanted = torch.autograd.grad(loss, tensors)
    actual = ops.indrnn_loss_grad(X, y, w, u, c)
    assert_close(actual[0], loss.detach(), 1e-12)
    for gradient, reference in zip(actual[2:], wanted, strict=True):
        assert (gradient - reference).norm() <= 1e-10 * reference.norm()
    e = ops.indrnn_jac(X, w, u)
    residual = (expected - y) * (2 / 6 / 5**0.5)
    assert_close((residual[:, None] * c * e).sum(0), wanted[0], 1e-10)


@pytest.mark.parametrize("w0", [0.5, 0.9, 1.1])
def test_identity_recurrent_jacobian_grows_as_predicted(w0):
    """E[e_T^2] = s^2 sum_k k^2 w^(2(k-1)) over heads and independent unit tokens."""
    m, d, scale = 256, 8, 0.05
    draw = torch.Generator().manual_seed(3)
    for T in (4, 8, 16, 32):
        X = torch.nn.functional.normalize(torch.randn(200, T, d, generator=draw).double(), dim=-1)
        u = scale * torch.randn(m, d, generator=draw).double()
        w = w0 * (2.0 * torch.randint(2, (m,), generator=draw).double() - 1)
        e = ops.indrnn_jac(X, w, u, act="identity")
        expected = scale**2 * sum(k * k * w0 ** (2 * (k - 1)) for k in range(1, T))
        assert abs(e.square().mean() / expected - 1) <= 0.2


def test_cutoff_of_the_recurrent_jacobian():
    def rms(T, w0):
        draw = torch.Generator().manual_seed(4)
        X = torch.nn.functional.normalize(torch.randn(200, T, 8, generator=draw).double(), dim=-1)
        u = 0.05 * torch.randn(256, 8, generator=draw).double()
        w = torch.full((256,), w0, dtype=torch.float64)
        return ops.indrnn_jac(X, w, u).square().mean().sqrt()

    assert rms(32, 0.5) / rms(16, 0.5) <= 1.2
    assert rms(32, 1.1) / rms(4, 1.1) >= 5


def test_wrong_recurrent_inputs_are_named():
    p = problem()
    with pytest.raises(RuntimeError, match=r"indrnn: expected w Double \[9\]"):
        ops.indrnn_jac(p["X"], p["c"][1:], p["U"])
    with pytest.raises(ValueError, match="indrnn: expected n, T, d, m >= 1"):
        ops.indrnn_jac(p["X"][:, :0], p["c"], p["U"])
    with pytest.raises(ValueError, match="indrnn: expected act"):
        ops.indrnn_forward(p["X"], p["c"], p["U"], p["c"], act="relu")
