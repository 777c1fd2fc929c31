"""linear_attention, and the layers of every variant, on CUDA against the CPU."""

import copy

import pytest
import torch
from attention_bn_cases import Shape, assert_close, assert_identical, cast, evaluate
from conftest import needs_cuda
from kktorch.nn import AttentionBNSH
from linear_attention_cases import FORMS, op, problem
from nn_cases import padding_mask, randomised

pytestmark = needs_cuda

DOUBLE_AND_SINGLE = [(torch.float64, 1e-9), (torch.float32, 1e-5)]


def evaluate_on_cuda(tensors, options):
    moved = {n: t.cuda() if torch.is_tensor(t) else t for n, t in options.items()}
    result = evaluate(op, [t.cuda() for t in tensors], moved)
    assert all(t.is_cuda for t in result.values())
    return {name: t.cpu() for name, t in result.items()}


@pytest.mark.parametrize("bn", [True, False])
@pytest.mark.parametrize("mask", ["none", "both"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [Shape(H=4), Shape(2, 4, 2, 40, 150, 33, 8), Shape(N=0)])
@pytest.mark.parametrize("dtype, tolerance", DOUBLE_AND_SINGLE)
def test_cuda_is_cpu(dtype, tolerance, shape, form, mask, bn):
    # eps: a row with two keys that nearly agree would amplify float32 rounding by 1 / eps
    beta = ("[H]", 0.7) if bn else ("fixed", 1.0)
    tensors, options = cast(dtype, *problem(shape, form, mask, beta, bn=bn, eps=0.1))
    assert_close(evaluate_on_cuda(tensors, options), evaluate(op, tensors, options), tolerance)


@pytest.mark.parametrize("form", FORMS)
def test_deterministic_mode_repeats_bit_for_bit(form):
    tensors, options = cast(torch.float32, *problem(Shape(N=150), form, "both"))
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (evaluate_on_cuda(tensors, options) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert_identical(first, second)


@pytest.mark.parametrize(
    "variant",
    ["softmax", "bn", "sh", "bnsh", "linear", "linear_bn", "linear_sh", "linear_bnsh"],
)
def test_the_layer_on_cuda_is_the_layer_on_cpu(variant):
    layer = randomised(AttentionBNSH(16, 4, variant=variant, batch_first=True, eps=0.1)).double()
    x, padding = torch.randn(2, 9, 16, dtype=torch.float64), padding_mask([9, 4], 9)
    on_cuda = copy.deepcopy(layer).cuda()
    actual = on_cuda(x.cuda(), x.cuda(), x.cuda(), padding.cuda())[0]
    expected = layer(x, x, x, padding)[0]
    actual.square().sum().backward(), expected.square().sum().backward()
    torch.testing.assert_close(actual.cpu(), expected, rtol=0, atol=1e-9)
    for p, q in zip(on_cuda.parameters(), layer.parameters(), strict=True):
        torch.testing.assert_close(p.grad.cpu(), q.grad, rtol=1e-9, atol=1e-9)
