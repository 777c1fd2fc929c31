"""Gradients of attention_bn: differences, the definition, the reference op, what is asked for."""

from itertools import combinations

import pytest
import reference
import torch
from attention_bn_cases import (
    DTYPES,
    MASKS,
    MODES,
    Shape,
    assert_close,
    assert_identical,
    cast,
    cotangent,
    evaluate,
    op,
    problem,
    ref,
)

EVERYTHING = ("query", "key", "value", "beta", "attn_mask")


def differentiable(options):
    """What has a gradient in a problem with these options; a boolean mask has none."""
    mask = options.get("attn_mask")
    is_float = mask is not None and mask.is_floating_point()
    return EVERYTHING if is_float else EVERYTHING[:-1]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("mask, use_std", [("none", False), ("all", True)])
def test_gradcheck(mode, mask, use_std):
    # eps: rows with two visible keys have curvature 1 / eps, which finite differences cannot follow
    shape = Shape(B=1, H=2, Hk=1, M=3, N=4, D=2, Dv=2)
    tensors, options = problem(shape, mode, mask, use_std=use_std, eps=0.1)
    named = dict(zip(EVERYTHING, tensors, strict=False)) | options
    names = [name for name in differentiable(options) if name in named]

    def function(*leaves):
        return op(**(named | dict(zip(names, leaves, strict=True))))

    leaves = [named[name].detach().clone().requires_grad_() for name in names]
    assert torch.autograd.gradcheck(function, leaves)


@pytest.mark.parametrize("use_std", [True, False])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("mode", MODES)
def test_gradient_is_that_of_the_definition(mode, mask, use_std):
    tensors, options = problem(Shape(H=4, D=8), mode, mask, use_std=use_std)
    wrt = differentiable(options)
    expected = evaluate(reference.attention_bn, tensors, options, wrt=wrt)
    assert_close(evaluate(op, tensors, options, wrt=wrt), expected, 1e-9)
    assert_close(evaluate(ref, tensors, options, wrt=wrt), expected, 1e-9)
    if "attn_mask" in wrt:  # a mask without a gradient may take another path
        del expected["attn_mask"]
        assert_close(evaluate(op, tensors, options), expected, 1e-9)


@pytest.mark.parametrize("mode", ["global", "prefix"])
def test_gradients_know_that_a_common_shift_changes_nothing(mode):
    """Keys shifted by t and queries by beta t give the same output: a zero derivative."""
    (q, k, v), options = problem(Shape(H=4, Hk=2), mode, "all", ("[]", 0.3))
    grad = evaluate(op, (q, k, v), options)
    along_queries = grad["query"].sum(2).unflatten(1, (2, 2)).sum(2)
    assert_close(grad["key"].sum(2), -0.3 * along_queries, 1e-12)


@pytest.mark.parametrize("kind", ["fixed", "[]", "[1]"])
@pytest.mark.parametrize("mode", ["global", "prefix"])
def test_gradient_of_a_shared_beta(kind, mode):
    tensors, options = problem(mode=mode, beta=(kind, -0.5))
    expected = evaluate(reference.attention_bn, tensors, options)
    assert_close(evaluate(op, tensors, options), expected, 1e-9)


@pytest.mark.parametrize(
    "shape, mode",
    [
        (Shape(1, 1, 1, 4, 1100, 8, 8), "global"),
        (Shape(1, 1, 1, 40, 65, 8, 8), "global"),
        (Shape(1, 2, 1, 70, 70, 4, 6), "prefix"),
        (Shape(1, 1, 1, 5, 300, 5, 5), "prefix"),
    ],
)
def test_gradient_over_long_sequences(shape, mode):
    tensors, options = problem(shape, mode, "padding")
    expected = evaluate(reference.attention_bn, tensors, options)
    assert_close(evaluate(op, tensors, options), expected, 1e-9)


@pytest.mark.parametrize("mask", ["none", "weight", "bool[M,N]", "all"])
@pytest.mark.parametrize("mode", ["global", "causal-global", "prefix"])
@pytest.mark.parametrize("literal", [False, True])
def test_backward_op_is_autograd_of_the_reference_op(mode, mask, literal):
    tensors, options = problem(Shape(H=4), mode, mask)
    expected = evaluate(lambda **o: ref(**o, literal=literal), tensors, options)
    out, *grads = backward_op(tensors, options)
    assert_close(dict(zip(expected, [out, *grads], strict=True)), expected, 1e-9)


@pytest.mark.parametrize("skipped", range(4))
def test_backward_op_leaves_out_what_is_not_asked_for(skipped):
    tensors, options = problem()
    asked = [i != skipped for i in range(4)]
    _, *all_grads = backward_op(tensors, options)
    _, *grads = backward_op(tensors, options, asked)
    assert grads[skipped].shape == (0,)
    for i in set(range(4)) - {skipped}:
        assert_identical(grads[i], all_grads[i])


def backward_op(tensors, options, output_mask=(True,) * 4):
    """(out, grad_query, grad_key, grad_value, grad_beta) by the two private ops."""
    operands = (
        *tensors,
        *(options.get(o) for o in ("beta", "key_padding_mask", "attn_mask", "key_weight")),
    )
    causal = options.get("is_causal", False)
    stats = options.get("stats", "prefix" if causal else "global")
    settings = (stats, causal, options.get("query_offset", 0), 0.0, tensors[0].shape[-1] ** -0.5)
    numbers = (1.0, True, 1e-5, *settings)
    saved = torch.ops.kktorch._attention_bn_forward(*operands, *numbers)
    grad_out = cotangent(saved[0].shape)
    backward = torch.ops.kktorch._attention_bn_backward
    return saved[0], *backward(grad_out, *operands, *saved, *numbers, output_mask)


@pytest.mark.parametrize("mode", MODES)
def test_any_subset_of_inputs_may_want_a_gradient(mode):
    tensors, options = problem(mode=mode, mask="float[B,1,M,N]")
    full = evaluate(op, tensors, options, wrt=EVERYTHING)
    for size in range(1, 5):
        for wrt in combinations(EVERYTHING, size):
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


def test_an_output_that_needs_no_gradient_has_none():
    (q, k, v), options = problem()
    assert not op(q, k, v, **options).requires_grad
    with torch.no_grad():
        assert not op(q.requires_grad_(), k, v, **options).requires_grad


def test_gradients_accumulate_over_calls():
    """Saved tensors belong to one call: two graphs alive at once do not disturb each other."""
    tensors, options = problem()
    q, k, v = (t.requires_grad_() for t in tensors)
    first, second = op(q, k, v, **options), op(2 * q, k, v, **options)
    together = torch.autograd.grad(first.sum() + second.sum(), (q, k, v), retain_graph=True)
    parts = [torch.autograd.grad(out.sum(), (q, k, v)) for out in (second, first)]
    for both, a, b in zip(together, *parts, strict=True):
        assert_close(both, a + b, 1e-12)
