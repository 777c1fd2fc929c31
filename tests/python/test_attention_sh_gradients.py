"""Gradients of attention_sh: differences, the definition, the reference op, what is asked for."""

from itertools import combinations

import pytest
import sh_reference
import torch
from attention_bn_cases import DTYPES, Shape, assert_close, assert_identical, cast, evaluate
from attention_sh_cases import MASKS, MODES, NORMS, WINDOWS, op, problem, ref

EVERYTHING = ("query", "key", "value", "beta")
SHAPE = Shape(B=2, H=4, Hk=2, M=7, N=7, D=3, Dv=2)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("windows", ["2,1", "1,4-special-counted"])
def test_gradcheck(windows, mode, norm):
    # eps: rows with two visible keys have curvature 1 / eps, which finite differences cannot follow
    shape = Shape(B=1, H=2, Hk=2, M=5, N=5, D=2, Dv=1)
    tensors, options = problem(shape, mode, "none", windows, norm, eps=0.1)
    named = dict(zip(EVERYTHING, tensors, strict=False)) | options
    names = [name for name in EVERYTHING if name in named]

    def function(*leaves):
        return op(**(named | dict(zip(names, leaves, strict=True))))

    leaves = [named[name].detach().clone().requires_grad_() for name in names]
    assert torch.autograd.gradcheck(function, leaves)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("windows", WINDOWS)
@pytest.mark.parametrize("mode", MODES)
def test_gradient_is_that_of_the_reference_op(mode, windows, mask, norm):
    tensors, options = problem(SHAPE, mode, mask, windows, norm)
    assert_close(evaluate(op, tensors, options), evaluate(ref, tensors, options), 1e-9)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("mask", ["padding", "bool[B,H,M,N]"])
@pytest.mark.parametrize("windows", ["2,1", "3,2-counted", "3,2-special"])
@pytest.mark.parametrize("mode", MODES)
def test_gradient_is_that_of_the_definition(mode, windows, mask, norm):
    tensors, options = problem(SHAPE, mode, mask, windows, norm)
    expected = evaluate(sh_reference.attention_sh, tensors, options)
    assert_close(evaluate(op, tensors, options), expected, 1e-9)


@pytest.mark.parametrize("kind", ["fixed", "[]", "[1]"])
@pytest.mark.parametrize("mode", MODES)
def test_gradient_of_a_shared_beta(mode, kind):
    tensors, options = problem(SHAPE, mode, beta=(kind, -0.5))
    expected = evaluate(sh_reference.attention_sh, tensors, options)
    assert_close(evaluate(op, tensors, options), expected, 1e-9)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("mode", MODES)
def test_gradient_of_a_float_mask(mode, norm):
    tensors, options = problem(SHAPE, mode, norm=norm, windows="1")
    options["attn_mask"] = torch.randn(4, 7, 7, dtype=torch.float64)[None]
    wrt = (*EVERYTHING, "attn_mask")
    expected = evaluate(sh_reference.attention_sh, tensors, options, wrt=wrt)
    assert_close(evaluate(op, tensors, options, wrt=wrt), expected, 1e-9)


@pytest.mark.parametrize("mode", MODES)
def test_any_subset_of_inputs_may_want_a_gradient(mode):
    tensors, options = problem(SHAPE, mode, "padding")
    full = evaluate(op, tensors, options)
    for size in range(1, 4):
        for wrt in combinations(EVERYTHING, size):
            part = evaluate(op, tensors, options, wrt=wrt)
            assert_close(part, {name: full[name] for name in part}, 1e-12)


@pytest.mark.parametrize("beta_dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", MODES)
def test_gradients_have_the_dtype_of_their_input(mode, dtype, beta_dtype):
    tensors, options = problem(SHAPE, mode)
    tensors, _ = cast(dtype, tensors, {})
    options["beta"] = options["beta"].to(beta_dtype)
    result = evaluate(op, tensors, options)
    assert result.pop("beta").dtype == beta_dtype
    assert all(tensor.dtype == dtype for tensor in result.values())


def test_dropped_tokens_have_no_gradient():
    tensors, options = problem(SHAPE, scales=[2, 3], tail="drop")
    result = evaluate(op, tensors, options)
    for name in ("key", "value"):
        assert not result[name][:, :, 6:].any()
        assert result[name][:, :, :6].all()


def test_an_output_that_needs_no_gradient_has_none():
    (q, k, v), options = problem()
    assert not op(q, k, v, **options).requires_grad
    with torch.no_grad():
        assert not op(q.requires_grad_(), k, v, **options).requires_grad


@pytest.mark.parametrize("mode", MODES)
def test_create_graph_alone_works_and_double_backward_is_refused_by_name(mode):
    tensors, options = problem(SHAPE, mode)
    leaves = [t.requires_grad_() for t in (*tensors, options["beta"])]
    loss = op(*tensors, **options).square().sum()
    plain = torch.autograd.grad(loss, leaves, retain_graph=True)
    recorded = torch.autograd.grad(loss, leaves, create_graph=True)
    for a, b in zip(recorded, plain, strict=True):
        assert_identical(a.detach(), b)
    message = "double backward is not supported; use attention_"
    with pytest.raises(NotImplementedError, match=message):
        torch.autograd.grad(recorded[0].sum(), leaves[1])


@pytest.mark.parametrize("literal", [False, True])
@pytest.mark.parametrize("norm", ["plain", "bn"])
@pytest.mark.parametrize("mode", MODES)
def test_reference_op_supports_double_backward(mode, norm, literal):
    shape = Shape(B=1, H=2, Hk=2, M=3, N=3, D=2, Dv=1)
    tensors, options = problem(shape, mode, norm=norm, beta=("[]", 0.7), eps=0.1)
    leaves = [t.requires_grad_() for t in (*tensors, options.pop("beta", None)) if t is not None]

    def function(q, k, v, beta=None):
        return ref(q, k, v, beta=beta, **options, literal=literal)

    assert torch.autograd.gradgradcheck(function, leaves)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("mode", MODES)
def test_reference_op_is_differentiable_forward_and_vectorised(mode):
    (q, k, v), options = problem(SHAPE, mode, "padding")
    tangent, step = torch.ones_like(q), 1e-6
    _, derivative = torch.func.jvp(lambda q: ref(q, k, v, **options), (q,), (tangent,))
    difference = ref(q + step * tangent, k, v, **options) - ref(q - step * tangent, k, v, **options)
    assert_close(derivative, difference / (2 * step), 1e-7)
    both = torch.stack([q, 2 * q])
    mapped = torch.func.vmap(lambda q: ref(q, k, v, **options))(both)
    assert_close(mapped, torch.stack([ref(t, k, v, **options) for t in both]), 1e-10)
