"""Numerics of attention_bn: half types, conditioning, constant channels, threads."""

import pytest
import reference
import torch
from attention_bn_cases import (
    DTYPES,
    HALVES,
    MODES,
    Shape,
    assert_close,
    assert_identical,
    cast,
    cotangent,
    evaluate,
    op,
    problem,
)

# At most twice the error of the literal formula in that dtype, outputs and gradients


@pytest.mark.parametrize(
    "mask, use_std", [("none", True), ("none", False), ("padding", True), ("all", True)]
)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "dtype, slack", [(torch.bfloat16, 1e-3), (torch.float16, 1e-3), (torch.float32, 1e-5)]
)
def test_error_is_at_most_twice_the_literal_one(dtype, slack, mode, mask, use_std):
    """Over some seeds: the gradient of beta is one number, where errors may cancel by luck."""
    shape = Shape(B=1, H=2, Hk=1, M=9, N=9, D=16, Dv=16)
    # eps: a query with one key in its statistics has r = eps^-1/2 in every channel, and the literal
    # logits, centre and all, overflow in float16
    eps = 1e-2 if dtype == torch.float16 else 1e-5
    # float32: a row with two keys may have a variance near 0 in some channel, and its reciprocal
    # squared multiplies the rounding; the tail of either form shows over a dozen seeds only, and so
    # does that of the gradient of beta in bfloat16.
    seeds = 16
    errors, literal_errors = {}, {}
    for seed in range(seeds):
        tensors, options = problem(shape, mode, mask, ("[H]", 0.5), seed, use_std=use_std, eps=eps)
        tensors, options = cast(dtype, tensors, options)
        grad_out = cotangent((1, 2, 9, 16), dtype)
        in_double = cast(torch.float64, tensors, options)
        wrt = ("query", "key", "value", "beta", "attn_mask")  # a mask of "all" is floating
        exact = evaluate(reference.attention_bn, *in_double, grad_out.double(), wrt)
        literal = evaluate(reference.attention_bn, tensors, options, grad_out, wrt)
        actual = evaluate(op, tensors, options, grad_out, wrt)
        for name in exact:
            assert actual[name].dtype == dtype
            errors.setdefault(name, []).append(distance(actual[name], exact[name]))
            literal_errors.setdefault(name, []).append(distance(literal[name], exact[name]))
    for name in errors:
        assert max(errors[name]) <= 2 * max(literal_errors[name]) + slack, name


@pytest.fixture
def high_precision():
    """float32 products may be less exact: the tier amx then splits operands in two bfloat16."""
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision("highest")


def test_high_precision_keeps_16_bits(high_precision):
    tensors, options = problem(Shape(B=2, H=3, Hk=3, M=100, N=100, D=48, Dv=48), "global", "none")
    tensors, options = cast(torch.float32, tensors, options)
    grad_out = cotangent((2, 3, 100, 48), torch.float32)
    wrt = ("query", "key", "value")
    exact = evaluate(op, *cast(torch.float64, tensors, options), grad_out.double(), wrt)
    for name, value in evaluate(op, tensors, options, grad_out, wrt).items():
        relative = (value.double() - exact[name]).norm() / exact[name].norm()
        assert relative < 2**-15, name


def distance(actual, expected):
    return (actual.double() - expected.double()).abs().max().item()


@pytest.mark.parametrize("constant, queries", [(1.0, "stay"), (300.0, "follow")])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", HALVES)
def test_a_constant_key_channel_in_half_precision(dtype, mode, constant, queries):
    """1 / (0 + eps) = 1e5 does not fit into float16: the folded query would overflow.

    A small cotangent, because the gradient of that channel has the factor 1e5 too.
    """
    (q, k, v), options = cast(dtype, *problem(Shape(M=16, N=16, D=8), mode, "padding"))
    k[..., 3] = constant
    if queries == "follow":
        q[..., 3] += constant * options["beta"][:, None]
    grad_out = cotangent((2, 2, 16, 3), dtype) / 64
    actual = evaluate(op, (q, k, v), options, grad_out)
    in_double = cast(torch.float64, (q, k, v), options)
    exact = evaluate(reference.attention_bn, *in_double, grad_out.double())
    for name, tensor in actual.items():
        assert tensor.isfinite().all(), name
    # a dozen roundings of numbers of order 1
    for name in ("out", "query", "value"):
        assert distance(actual[name], exact[name]) <= 16 * torch.finfo(dtype).eps, name


# Conditioning: float32 against float64 on the same inputs


def conditioned(kind, seed):
    """(q, k, v) in float32, B = H = 1, M = N = 64, D = 32."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v = torch.randn(3, 1, 1, 64, 32, generator=generator).unbind()
    if kind == "constant channel":
        k[..., 0] = 1.0
    else:
        offset, queries = kind
        k += offset
        q += 0.5 * offset if queries == "queries follow" else 0.0
    return q, k, v


@pytest.mark.parametrize(
    "kind, bound, share",
    [
        ("constant channel", 1e-6, 1.0),
        ((10, "queries follow"), 1e-5, 1.0),
        ((1000, "queries follow"), 1e-4, 1.0),
        # logits reach hundreds and the softmax saturates: near-ties amplify the last bit
        ((10, "queries stay"), 1e-5, 0.95),
        ((1000, "queries stay"), 1e-4, 0.95),
    ],
    ids=str,
)
def test_conditioning(kind, bound, share):
    errors, literal_errors = [], []
    for seed in range(50):
        inputs = conditioned(kind, seed)
        exact = reference.attention_bn_unmasked(*(t.double() for t in inputs), 0.5)
        literal = reference.attention_bn_unmasked(*inputs, 0.5)
        errors.append(distance(op(*inputs, beta_value=0.5), exact))
        literal_errors.append(distance(literal, exact))
    assert sum(e <= bound for e in errors) >= share * len(errors), max(errors)
    assert max(errors) <= 2 * max(literal_errors)


@pytest.mark.parametrize(
    "dtype, step, offset",
    [(torch.float64, 2**-20, 2**20), (torch.float32, 2**-9, 1024), (torch.float16, 2**-4, 32)],
)
@pytest.mark.parametrize("mode", MODES)
def test_a_common_offset_of_keys_and_queries_costs_no_digit(mode, dtype, step, offset):
    """Inputs are multiples of `step`, so that the shifted ones are exact too."""
    (q, k, v), options = problem(Shape(M=7), mode, "padding", ("fixed", 0.5))
    q, k, v = ((t.clamp(-4, 4) / step).round().mul(step).to(dtype) for t in (q, k, v))
    shifted = evaluate(op, (q + 0.5 * offset, k + offset, v), options)
    assert_close(shifted, evaluate(op, (q, k, v), options), 4 * torch.finfo(dtype).eps)


# eps = 0: a channel without variance is ignored


@pytest.mark.parametrize("mask", ["none", "padding", "weight"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_constant_channel_without_eps_is_no_channel(dtype, mode, mask):
    """Only an exact sigma^2 = 0 is recognised: 0.1 is no dyadic number, sums of it are rounded."""
    (q, k, v), options = cast(dtype, *problem(Shape(M=7, D=4), mode, mask, eps=0.0, scale=0.5))
    k[..., 2] = 0.1
    rest = [0, 1, 3]
    actual = evaluate(op, (q, k, v), options)
    expected = evaluate(op, (q[..., rest], k[..., rest], v), options)
    for name in ("query", "key"):
        assert not actual[name][..., 2].any(), name
        actual[name] = actual[name][..., rest]
    assert_close(actual, expected, 1e-12 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("mode", ["global", "prefix", "support"])
def test_without_variance_and_eps_attention_is_the_mean(mode):
    (q, k, v), options = problem(Shape(M=7), mode, eps=0.0)
    k[:] = k[:, :, :1]
    out = op(q, k, v, **options)
    count = torch.arange(1, 8, dtype=torch.float64)[:, None]
    mean = v.cumsum(2) / count if mode == "prefix" else v.mean(2, keepdim=True).expand_as(v)
    assert_close(out, mean, 1e-12)


# Repeatability


@pytest.mark.parametrize("mode", ["global", "causal-global", "prefix"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_results_do_not_depend_on_the_number_of_threads(dtype, mode):
    shape = Shape(B=2, H=3, Hk=1, M=300, N=300, D=24, Dv=24)
    tensors, options = cast(dtype, *problem(shape, mode, "padding"))
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(evaluate(op, tensors, options))
    assert_identical(results[1], results[0])
    assert_identical(results[2], results[0])


def test_long_problems_are_solved_in_slices_of_heads():
    """Few threads take few heads of a long problem at a time in backward: the same result."""
    generator = torch.Generator().manual_seed(0)
    q, k, v, grad_out = (
        torch.randn(2, heads, 8200, 2, generator=generator) for heads in (4, 2, 2, 4)
    )
    beta = torch.rand(4, generator=generator)
    inputs = [tensor.requires_grad_() for tensor in (q, k, v, beta)]
    gradients = {}
    for threads in (1, 16):  # one key head at a time, and both
        torch.set_num_threads(threads)
        out = op(*inputs, enable_gqa=True)
        gradients[threads] = torch.autograd.grad(out, inputs, grad_out)
    for sliced, whole in zip(gradients[1], gradients[16], strict=True):
        assert torch.equal(sliced, whole)
