"""Gradients of linear_attention: differences, the definition, higher derivatives."""

from itertools import combinations

import pytest
import torch
from attention_bn_cases import DTYPES, Shape, assert_close, cast, cotangent, evaluate
from linear_attention_cases import FORMS, MASK_NAMES, definition, op, problem
from torch.autograd import forward_ad

# forward mode scripts ATen's own formulas
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")

SMALL = Shape(B=1, H=2, Hk=1, M=3, N=4, D=2, Dv=2)


def function_of_leaves(form, mask="none", **changes):
    # eps: rows with two keys have curvature 1 / eps, which finite differences cannot follow
    tensors, options = problem(SMALL, form, mask, eps=0.1, **changes)
    leaves = [t.requires_grad_() for t in (*tensors, options.pop("beta"))]
    return lambda *leaves: op(*leaves, **options), leaves


@pytest.mark.parametrize("mask, use_std", [("none", False), ("both", True), ("padding", True)])
@pytest.mark.parametrize("form", FORMS)
def test_gradcheck(form, mask, use_std):
    assert torch.autograd.gradcheck(*function_of_leaves(form, mask, use_std=use_std))


@pytest.mark.parametrize("form", FORMS)
def test_double_backward(form):
    assert torch.autograd.gradgradcheck(*function_of_leaves(form, "weight"))


@pytest.mark.parametrize("bn", [True, False])
@pytest.mark.parametrize("mask", MASK_NAMES)
@pytest.mark.parametrize("form", FORMS)
def test_gradient_is_that_of_the_definition(form, mask, bn):
    beta = ("[H]", 0.7) if bn else ("fixed", 1.0)
    tensors, options = problem(Shape(H=4, Hk=2, D=8), form, mask, beta, bn=bn)
    expected = evaluate(definition, tensors, options)
    assert_close(evaluate(op, tensors, options), expected, 1e-9)


@pytest.mark.parametrize("kind", ["fixed", "[]", "[1]"])
@pytest.mark.parametrize("use_std", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_gradient_of_a_shared_beta(form, use_std, kind):
    tensors, options = problem(form=form, beta=(kind, -0.5), use_std=use_std)
    assert_close(evaluate(op, tensors, options), evaluate(definition, tensors, options), 1e-9)


@pytest.mark.parametrize("form", FORMS)
def test_gradient_over_long_sequences(form):
    tensors, options = problem(Shape(1, 2, 1, 3, 130, 4, 3), form, "padding")
    assert_close(evaluate(op, tensors, options), evaluate(definition, tensors, options), 1e-9)


@pytest.mark.parametrize("form", FORMS)
def test_any_subset_of_inputs_may_want_a_gradient(form):
    tensors, options = problem(form=form, mask="padding")
    full = evaluate(op, tensors, options)
    for size in range(1, 4):
        for wrt in combinations(("query", "key", "value", "beta"), size):
            part = evaluate(op, tensors, options, wrt=wrt)
            assert_close(part, {name: full[name] for name in part}, 1e-12)


@pytest.mark.parametrize("beta_dtype", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_have_the_dtype_of_their_input(dtype, beta_dtype):
    tensors, options = problem()
    tensors, _ = cast(dtype, tensors, {})
    options["beta"] = options["beta"].to(beta_dtype)
    result = evaluate(op, tensors, options)
    assert result.pop("beta").dtype == beta_dtype
    assert all(tensor.dtype == dtype for tensor in result.values())


@pytest.mark.parametrize("form", FORMS)
def test_forward_mode_is_the_difference(form):
    (q, k, v), options = problem(form=form, mask="padding")
    step = 1e-6
    tangent = cotangent(k.shape)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(k, tangent)
        derivative = forward_ad.unpack_dual(op(q, dual, v, **options)).tangent
    difference = op(q, k + step * tangent, v, **options) - op(q, k - step * tangent, v, **options)
    # causal: the first rows have curvatures of 1 / eps
    assert_close(derivative, difference / (2 * step), 1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_vmap_is_the_loop(form):
    tensors, options = problem(form=form, mask="padding")
    stacked = [torch.stack([t, 2 * t]) for t in tensors]

    def mapped(query, key, value):
        return torch.func.vmap(lambda *t: op(*t, **options))(query, key, value)

    def loop(query, key, value):
        samples = zip(query, key, value, strict=True)
        return torch.stack([op(*t, **options) for t in samples])

    assert_close(evaluate(mapped, stacked, {}), evaluate(loop, stacked, {}), 1e-10)
