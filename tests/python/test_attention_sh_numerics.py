"""Half types, conditioning, dropout and repeatability of attention_sh."""

import pytest
import sh_reference
import torch
from attention_bn_cases import (
    DTYPES,
    Shape,
    assert_close,
    assert_identical,
    cast,
    cotangent,
    evaluate,
)
from attention_sh_cases import MODES, op, problem, ref

P = 0.3


def distance(actual, expected):
    return (actual.double() - expected.double()).abs().max().item()


# At most twice the error of the literal formula in that dtype, outputs and gradients


@pytest.mark.parametrize("mask", ["none", "padding"])
@pytest.mark.parametrize("windows, norm", [("2,1", "plain"), ("2,1", "bn"), ("3,2-counted", "bn")])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "dtype, slack", [(torch.bfloat16, 1e-3), (torch.float16, 1e-3), (torch.float32, 1e-5)]
)
def test_error_is_at_most_twice_the_literal_one(dtype, slack, mode, windows, norm, mask):
    """Over a few seeds: the gradient of beta is one number, where errors may cancel by luck."""
    shape = Shape(B=1, H=2, Hk=2, M=9, N=9, D=16, Dv=16)
    # eps: a query with few keys in its statistics has r near eps^-1/2, and the literal logits,
    # centre and all, overflow in float16
    eps = 1e-2 if dtype == torch.float16 else 1e-5
    # float32: two windows may have a variance near 0 in some channel, and its reciprocal squared
    # multiplies the rounding; the tail of either form shows over a dozen seeds only
    seeds = 12 if dtype == torch.float32 else 4
    errors, literal_errors = {}, {}
    for seed in range(seeds):
        tensors, options = problem(shape, mode, mask, windows, norm, ("[H]", 0.5), seed, eps=eps)
        tensors, options = cast(dtype, tensors, options)
        grad_out = cotangent((1, 2, 9, 16), dtype)
        in_double = cast(torch.float64, tensors, options)
        exact = evaluate(sh_reference.attention_sh, *in_double, grad_out.double())
        literal = evaluate(sh_reference.attention_sh, tensors, options, grad_out)
        actual = evaluate(op, tensors, options, grad_out)
        for name in exact:
            assert actual[name].dtype == dtype
            errors.setdefault(name, []).append(distance(actual[name], exact[name]))
            literal_errors.setdefault(name, []).append(distance(literal[name], exact[name]))
    for name in errors:
        assert max(errors[name]) <= 2 * max(literal_errors[name]) + slack, name


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_constant_key_channel_in_half_precision(dtype, mode):
    """1 / (0 + eps) = 1e5 does not fit into float16. A small cotangent: gradients have it too."""
    (q, k, v), options = cast(dtype, *problem(Shape(M=16, N=16, D=8), mode, windows="2,1"))
    k[..., 3] = 1.0
    grad_out = cotangent((2, 2, 16, 3), dtype) / 64
    for name, tensor in evaluate(op, (q, k, v), options, grad_out).items():
        assert tensor.isfinite().all(), name


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("offset, bound", [(10, 1e-5), (1000, 1e-4)])
def test_a_common_offset_of_keys_and_queries(offset, bound, mode):
    """float32 against float64 on the same inputs; rounding a pooled key of 1000 costs 6e-5."""
    shape = Shape(B=1, H=2, Hk=2, M=16, N=16, D=8, Dv=4)
    (q, k, v), options = problem(shape, mode, beta=("fixed", 0.5), eps=0.1, scales=[2, 4])
    (q, k, v), _ = cast(torch.float32, (q + 0.5 * offset, k + offset, v), {})
    exact = sh_reference.attention_sh(q.double(), k.double(), v.double(), **options)
    # windows of 2 and 4 are sums of few bits: the pooled keys of either type agree to the last
    assert distance(op(q, k, v, **options), exact) <= bound


# Dropout on the probabilities


def seeded(function):
    def call(*args, **kwargs):
        torch.manual_seed(5)
        return function(*args, **kwargs, dropout_p=P)

    return call


@pytest.mark.parametrize("function", [op, ref], ids=["op", "ref"])
@pytest.mark.parametrize("norm", ["plain", "bn"])
def test_dropout_scales_the_probabilities_of_windows(norm, function):
    """The mask depends on the seed and the shape alone, so v = 1 reveals the one v will see."""
    shape = Shape(B=2, H=4, Hk=2, M=6, N=8, D=3, Dv=8)
    (q, k, v), options = problem(shape, mask="padding", norm=norm, scales=[2, 3])
    identity = torch.zeros(2, 2, 8, 8, dtype=v.dtype)  # token j -> the unit vector of its window
    for head, scale in enumerate(options["scales"]):
        for j in range(8):
            identity[:, head, j, j // scale] = 1
    probabilities = sh_reference.attention_sh(q, k, identity, **options)
    dropped = seeded(function)(q, k, identity, **options)
    used = probabilities > 0
    z = dropped / probabilities.masked_fill(~used, 1)
    assert ((z.abs() < 1e-9) | ((z - 1 / (1 - P)).abs() < 1e-9)).all()
    assert z[used].any() and not z[used].all()
    expected = evaluate(sh_reference.attention_sh, (q, k, v), options | {"dropout": z})
    assert_close(evaluate(seeded(function), (q, k, v), options), expected, 1e-9)


@pytest.mark.parametrize("norm", ["plain", "bn"])
@pytest.mark.parametrize("mode", MODES)
def test_the_mean_over_many_draws_is_attention_without_dropout(mode, norm):
    tensors, options = problem(Shape(B=1, H=2, Hk=2, M=7, N=7), mode, norm=norm)
    draws = 1000
    many = op(*(t.expand(draws, -1, -1, -1) for t in tensors), **options, dropout_p=P)
    deviation = many.std(0) / draws**0.5
    assert ((many.mean(0) - op(*tensors, **options)[0]).abs() < 5 * deviation + 1e-12).all()
    assert deviation.min() > 0


@pytest.mark.parametrize("mode", MODES)
def test_dropout_follows_the_default_generator(mode):
    tensors, options = problem(mode=mode)
    torch.manual_seed(1)
    first, second = (op(*tensors, **options, dropout_p=P) for _ in range(2))
    torch.manual_seed(1)
    assert_identical(op(*tensors, **options, dropout_p=P), first)
    assert not torch.equal(first, second)
    state = torch.get_rng_state()
    op(*tensors, **options, dropout_p=0.0)
    assert torch.equal(torch.get_rng_state(), state)


# Repeatability


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_results_do_not_depend_on_the_number_of_threads(dtype, mode):
    shape = Shape(B=2, H=4, Hk=2, M=130, N=130, D=8, Dv=8)
    tensors, options = cast(dtype, *problem(shape, mode, "padding", "3,2-counted"))
    results = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        results.append(evaluate(op, tensors, options))
    assert_identical(results[1], results[0])


@pytest.mark.parametrize("norm", ["plain", "bn"])
@pytest.mark.parametrize("mode", MODES)
def test_long_sequences_cross_every_block(mode, norm):
    shape = Shape(1, 1, 1, 40, 530, 4, 4)
    tensors, options = problem(shape, mode, "padding", norm=norm, scales=[3])
    expected = sh_reference.attention_sh(*tensors, **options)
    assert_close(op(*tensors, **options), expected, 1e-10)
