"""attention_bn on CUDA against the CPU."""

import pytest
import torch
from attention_bn_cases import (
    HALVES,
    MODES,
    Shape,
    assert_close,
    assert_identical,
    cast,
    evaluate,
    op,
    problem,
)
from conftest import needs_cuda

pytestmark = needs_cuda

SHAPES = [
    Shape(),
    Shape(2, 4, 2, 40, 65, 33, 8),
    Shape(1, 2, 2, 300, 300, 64, 64),
    Shape(0, 2, 2, 5, 7, 4, 3),
    Shape(2, 2, 2, 5, 0, 4, 3),
    Shape(2, 2, 2, 5, 1, 4, 3),
]


def on_cuda(tensors, options):
    moved = {n: t.cuda() if torch.is_tensor(t) else t for n, t in options.items()}
    return tuple(t.cuda() for t in tensors), moved


def evaluate_on_cuda(tensors, options):
    result = evaluate(op, *on_cuda(tensors, options))
    assert all(t.is_cuda for t in result.values())
    return {name: t.cpu() for name, t in result.items()}


@pytest.mark.parametrize("mask", ["none", "float[B,1,M,N]", "all"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_cuda_is_cpu(dtype, tolerance, shape, mode, mask):
    # eps: a row with two keys that nearly agree would amplify float32 rounding by 1 / eps
    tensors, options = cast(dtype, *problem(shape, mode, mask, eps=0.1))
    assert_close(evaluate_on_cuda(tensors, options), evaluate(op, tensors, options), tolerance)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", HALVES)
def test_cuda_halves_are_near_float64(dtype, mode):
    tensors, options = cast(dtype, *problem(SHAPES[2], mode, "padding", eps=0.1))
    exact = evaluate(op, *cast(torch.float64, tensors, options))
    # both round inputs of the products and the result once: errors are those of the dtype
    assert_close(evaluate_on_cuda(tensors, options), exact, 16 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("mode", ["global", "prefix"])
def test_deterministic_mode_repeats_bit_for_bit(mode):
    tensors, options = cast(torch.float32, *problem(SHAPES[2], mode))
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (evaluate_on_cuda(tensors, options) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert_identical(first, second)


def test_mixed_devices_are_refused():
    (q, k, v), options = problem()
    with pytest.raises(
        RuntimeError, match="attention_bn: expected query, key, value on one device"
    ):
        op(q.cuda(), k, v, **options)
