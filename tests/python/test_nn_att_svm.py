"""AttSvmModel: its formula, its closed-form gradient, scripts and exports."""

import math

import pytest
import torch
from kktorch import svm
from kktorch.nn import AttSvmModel
from nn_cases import script_round_trip
from torch.autograd import gradcheck

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


def sets(kind="cross", n=4, T=5, dx=3, dz=2):
    """Token sets as (x, z, row_ptr, tok), and labels."""
    tokens = torch.randn(n, T, dx, dtype=torch.float64)
    if kind == "cross":
        built = svm.cross(tokens, torch.randn(n, dz, dtype=torch.float64))
    elif kind == "self":
        built = svm.self_attention(tokens, 1)
    else:
        built = svm.sequence(tokens, causal=True)
    labels = torch.ones(len(built.z), dtype=torch.float64)
    labels[1::2] = -1
    return built, labels


def by_the_formula(model, built):
    """f [Q], set by set."""
    W = model.W if model.W is not None else model.K @ model.Q.t()
    values = []
    for q, z in enumerate(built.z):
        entries = torch.arange(int(built.row_ptr[q]), int(built.row_ptr[q + 1]))
        tokens = built.x[entries if built.tok is None else built.tok[entries]]
        o = (tokens @ W @ z).softmax(0) @ tokens
        linear = {"linear": 0, "quad": model.lbd}.get(model.head)
        values.append(
            (model.v @ o).clamp_min(0).sum() if linear is None else model.v @ o - linear * o @ o
        )
    return torch.stack(values)


@pytest.mark.parametrize("kind", ["cross", "self", "causal"])
@pytest.mark.parametrize("m", [0, 3])
@pytest.mark.parametrize(
    ("head", "loss"), [("linear", "logistic"), ("relu", "exponential"), ("quad", "linear")]
)
def test_closed_form_is_autograd_and_both_are_the_formula(kind, m, head, loss):
    built, labels = sets(kind, dz=2 if kind == "cross" else 3)
    model = AttSvmModel(3, built.z.size(1), m, head=head, units=4, lbd=0.2, loss=loss).double()
    torch.testing.assert_close(model(*built), by_the_formula(model, built), rtol=0, atol=1e-13)
    risk = model.risk(*built[:3], labels, tok=built.tok, inputs=2)
    risk.backward()
    found = model.analytic_grad(*built[:3], labels, tok=built.tok, inputs=2)
    assert float(found.risk) == pytest.approx(float(risk.detach()), rel=1e-13)
    torch.testing.assert_close(found.s, model.probabilities(*built).detach(), rtol=0, atol=1e-14)
    for name in "WKQ":
        parameter, closed = getattr(model, name), getattr(found, f"d{name}")
        assert (parameter is None) == (closed is None)
        if parameter is not None:
            assert (closed - parameter.grad).norm() <= 1e-9 * parameter.grad.norm()


def test_gradcheck():
    built, _ = sets()
    model = AttSvmModel(3, 2).double()
    x, z = built.x.requires_grad_(), built.z.requires_grad_()
    assert gradcheck(lambda x, z: model(x, z, built.row_ptr), (x, z))


def test_saturated_gradients_keep_their_relative_accuracy():
    x = torch.tensor([[1.0], [0.0]], dtype=torch.float64)
    z, row_ptr = torch.ones(1, 1, dtype=torch.float64), torch.tensor([0, 2])
    model = AttSvmModel(1, 1).double()
    with torch.no_grad():
        model.v.fill_(1)
        model.W.fill_(100)
    found = model.analytic_grad(x, z, row_ptr, torch.ones(1))
    weight = 1 / (1 + torch.e)
    # f = s_0 = 1 / (1 + e^-W): d risk / dW = -sigmoid(-f) e^-W up to e^-2W.
    assert float(found.dW) == pytest.approx(-weight * float(torch.tensor(-100.0).double().exp()))


@pytest.mark.parametrize("m", [0, 2])
def test_torchscript_and_export(m):
    built, _ = sets("causal", dz=3)
    model = AttSvmModel(3, 3, m, head="relu").double()
    loaded = script_round_trip(model)
    torch.testing.assert_close(loaded(*built), model(*built))
    torch.testing.assert_close(loaded.probabilities(*built), model.probabilities(*built))
    dims = {name: torch.export.Dim(name, min=2) for name in ("tokens", "queries", "entries")}
    shapes = [{0: dims["tokens"]}, {0: dims["queries"]}, None, {0: dims["entries"]}]
    shapes[2] = {0: dims["queries"] + 1}
    program = torch.export.export(model, tuple(built), dynamic_shapes=tuple(shapes))
    other, _ = sets("causal", n=3, T=4, dz=3)
    for each in (built, other):
        torch.testing.assert_close(program.module()(*each), model(*each))


def test_refusals():
    for options, message in (
        ({"dx": 0}, "expected dx >= 1, but got 0"),
        ({"dx": 2, "m": -1}, "expected m >= 0, but got -1"),
        ({"dx": 2, "head": "cubic"}, "expected head in {linear, relu, quad}, but got 'cubic'"),
        ({"dx": 2, "loss": "hinge"}, "expected loss in {logistic, exponential, linear}"),
    ):
        with pytest.raises(ValueError) as error:
            AttSvmModel(**options)
        assert str(error.value).startswith(f"AttSvmModel: {message}")
    built, labels = sets()
    model = AttSvmModel(3, 2)
    labels[2] = 0
    with pytest.raises(ValueError, match=r"expected labels \+1 or -1, but got 0 at 2"):
        model.analytic_grad(*built[:3], labels)
    with pytest.raises(ValueError, match=r"expected labels \[4\], but got \[3\]"):
        model.risk(*built[:3], labels[:3])


@pytest.mark.parametrize("name", ["x", "z", "W", "K", "Q", "v"])
def test_what_is_not_finite_is_named(name):
    built, labels = sets()
    model = AttSvmModel(3, 2, m=2 if name in ("K", "Q") else 0).double()
    tensors = {"x": built[0].clone(), "z": built[1].clone()}
    target = tensors[name] if name in tensors else getattr(model, name).detach()
    target.view(-1)[1] = math.nan
    at = [1] if name == "v" else [0, 1]
    with pytest.raises(ValueError, match="AttSvmModel: expected finite") as error:
        model.analytic_grad(*tensors.values(), built[2], labels)
    assert str(error.value).endswith(f"finite {name}, but got NaN or Inf at {at}")
