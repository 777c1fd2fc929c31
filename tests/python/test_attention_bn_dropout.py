"""Dropout on the probabilities of attention_bn: reproducible, unbiased, in the gradients too."""

import pytest
import reference
import torch
from attention_bn_cases import (
    MODES,
    Shape,
    assert_close,
    assert_identical,
    evaluate,
    op,
    problem,
    ref,
)

P = 0.3
SHAPE = Shape(B=2, H=4, Hk=2, M=6, N=8, D=3, Dv=8)


def seeded(function, **options):
    def call(*args, **kwargs):
        torch.manual_seed(5)
        return function(*args, **kwargs, **options)

    return call


def kept(function, tensors, options):
    """The factors Z on the probabilities: with v = 1 the output is P o Z. 0 where P is 0."""
    q, k, v = tensors
    identity = torch.eye(k.shape[2], dtype=v.dtype).expand(*k.shape[:2], -1, -1)
    probabilities = reference.attention_bn(q, k, identity, **options)
    dropped = function(q, k, identity, **options)
    return dropped / probabilities.masked_fill(probabilities == 0, 1), probabilities > 0


@pytest.mark.parametrize("mask", ["none", "all"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("function", [op, ref], ids=["op", "ref"])
def test_dropout_scales_the_probabilities(function, mode, mask):
    """The mask depends on the seed and the shape alone, so v = 1 reveals the one v will see."""
    tensors, options = problem(SHAPE, mode, mask)
    dropping = seeded(function, dropout_p=P)
    z, used = kept(dropping, tensors, options)
    assert ((z.abs() < 1e-9) | ((z - 1 / (1 - P)).abs() < 1e-9)).all()
    assert z[used].any() and not z[used].all()
    expected = evaluate(reference.attention_bn, tensors, options | {"dropout": z})
    assert_close(evaluate(dropping, tensors, options), expected, 1e-9)


def test_the_share_of_dropped_probabilities_is_p():
    tensors, options = problem(Shape(B=8, H=4, Hk=4, M=32, N=32, D=4, Dv=32))
    tensors = (tensors[0], tensors[1] * 0.1, tensors[2])
    z, used = kept(seeded(op, dropout_p=P), tensors, options)
    share, count = (z[used] == 0).double().mean().item(), used.sum().item()
    assert abs(share - P) < 5 * (P * (1 - P) / count) ** 0.5  # five standard deviations


def test_the_mean_over_many_draws_is_attention_without_dropout():
    tensors, options = problem(Shape(B=1))
    many = op(*(t.expand(4000, -1, -1, -1) for t in tensors), **options, dropout_p=P)
    error_of_mean = many.std(0) / 4000**0.5
    assert ((many.mean(0) - op(*tensors, **options)[0]).abs() < 5 * error_of_mean + 1e-12).all()


def test_dropout_follows_the_default_generator():
    tensors, options = problem(SHAPE, dropout_p=P)
    torch.manual_seed(1)
    first, second = op(*tensors, **options), op(*tensors, **options)
    torch.manual_seed(1)
    assert_identical(op(*tensors, **options), first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("mode", MODES)
def test_no_dropout_draws_nothing(mode):
    tensors, options = problem(SHAPE, mode)
    state = torch.get_rng_state()
    out = op(*tensors, **options, dropout_p=0.0)
    assert torch.equal(torch.get_rng_state(), state)
    assert_identical(out, op(*tensors, **options))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dropout_in_other_dtypes(dtype):
    """Factors 0 and 1 / (1 - p) on a single key, which would be its value without dropout."""
    tensors, options = problem(Shape(B=64, N=1, Dv=4))
    q, k, v = (t.to(dtype) for t in tensors)
    out = op(q, k, v, **options, dropout_p=P)
    assert out.dtype == dtype
    ratio = (out / v).double()
    near = (ratio - 1 / (1 - P)).abs() < 4 * torch.finfo(dtype).eps
    assert (near | (ratio == 0)).all() and near.any() and not near.all()
