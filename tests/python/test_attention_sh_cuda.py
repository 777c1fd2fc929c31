"""token_pool, attention_sh, attention_bn_decode and attention_bn_varlen on CUDA against the CPU."""

import pytest
import test_attention_bn_decode as decoding
import test_attention_bn_varlen as packed
import torch
from attention_bn_cases import (
    HALVES,
    Shape,
    assert_close,
    assert_identical,
    cast,
    cotangent,
    evaluate,
)
from attention_sh_cases import DEFAULT, MODES, NORMS, op, problem
from conftest import needs_cuda

pytestmark = needs_cuda

DOUBLE_AND_SINGLE = [(torch.float64, 1e-9), (torch.float32, 1e-5)]
LONG = Shape(1, 4, 2, 300, 300, 64, 64)
SHAPES = [DEFAULT, LONG, *(DEFAULT._replace(**{size: 0}) for size in ("B", "M", "N"))]


def on_cuda(tensors, options):
    moved = {n: t.cuda() if torch.is_tensor(t) else t for n, t in options.items()}
    return tuple(t.cuda() for t in tensors), moved


def evaluate_on_cuda(function, tensors, options):
    result = evaluate(function, *on_cuda(tensors, options))
    assert all(t.is_cuda for t in result.values())
    return {name: t.cpu() for name, t in result.items()}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("windows", ["2,1", "3,2-counted"])
@pytest.mark.parametrize("mask", ["none", "padding", "bool[B,H,M,N]"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
@pytest.mark.parametrize("dtype, tolerance", DOUBLE_AND_SINGLE)
def test_cuda_is_cpu(dtype, tolerance, shape, mode, mask, windows, norm):
    # eps: a row with two keys that nearly agree would amplify float32 rounding by 1 / eps
    tensors, options = cast(dtype, *problem(shape, mode, mask, windows, norm, eps=0.1))
    expected = evaluate(op, tensors, options)
    assert_close(evaluate_on_cuda(op, tensors, options), expected, tolerance)


@pytest.mark.parametrize("norm", ["plain", "bn"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", HALVES)
def test_cuda_halves_are_near_float64(dtype, mode, norm):
    tensors, options = cast(dtype, *problem(LONG, mode, "padding", norm=norm, eps=0.1))
    exact = evaluate(op, *cast(torch.float64, tensors, options))
    # both round inputs of the products and the result once: errors are those of the dtype
    assert_close(evaluate_on_cuda(op, tensors, options), exact, 16 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("mode", MODES)
def test_deterministic_mode_repeats_bit_for_bit(mode):
    tensors, options = cast(torch.float32, *problem(LONG, mode, windows="3,2-counted"))
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (evaluate_on_cuda(op, tensors, options) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert_identical(first, second)


@pytest.mark.parametrize("size", [(2, 3, 300, 40), (2, 301, 7), (0, 5, 3), (2, 2, 0, 3)])
@pytest.mark.parametrize("tail", ["ceil", "drop"])
@pytest.mark.parametrize("mode", ["avg", "max"])
@pytest.mark.parametrize("dtype, tolerance", DOUBLE_AND_SINGLE)
def test_pooling_on_cuda_is_pooling_on_cpu(dtype, tolerance, mode, tail, size):
    x = cotangent(size, dtype)
    mask = torch.arange(size[-2]).expand(size[0], -1) % 17 > 9
    special = min(2, size[-2])
    results = []
    for device in ("cuda", "cpu"):
        leaf = x.to(device).requires_grad_()
        pooled, count = torch.ops.kktorch.token_pool(
            leaf,
            4,
            mask.to(device),
            mode=mode,
            tail="ceil" if 0 in size else tail,
            num_special=special,
        )
        grad_out = cotangent(pooled.shape, dtype).to(device)
        (grad,) = torch.autograd.grad(pooled, leaf, grad_out)
        assert pooled.device.type == count.device.type == device
        results.append({"out": pooled.detach().cpu(), "count": count.cpu(), "grad": grad.cpu()})
    assert_close(*results, tolerance)


@pytest.mark.parametrize("size", [1, 3, 11])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-10), (torch.float32, 2e-5)])
def test_decoding_on_cuda_is_attention_on_cpu(dtype, tolerance, size):
    tensors, causal, options = decoding.sequences(eps=0.1)
    tensors, options = cast(dtype, tensors, options)
    _, causal = cast(dtype, (), causal)
    cache = decoding.Cache(*(t.cuda() for t in decoding.Cache.empty(dtype=dtype)))
    moved, options = on_cuda(tensors, options)
    out = decoding.decode(moved, cache, decoding.chunks_of(size), options)
    assert_close(out.cpu(), decoding.attention_bn(*tensors, **causal), tolerance)
    assert cache.length.tolist() == [11] * 3


@pytest.mark.parametrize("lengths, is_causal", [(packed.CROSS, False), (packed.SELF, True)])
@pytest.mark.parametrize("dtype, tolerance", DOUBLE_AND_SINGLE)
def test_packed_sequences_on_cuda_are_those_on_cpu(dtype, tolerance, lengths, is_causal):
    tensors, options = cast(dtype, *packed.problem(lengths, is_causal=is_causal, eps=0.1))
    expected = evaluate(packed.op, tensors, options)
    assert_close(evaluate_on_cuda(packed.op, tensors, options), expected, tolerance)
