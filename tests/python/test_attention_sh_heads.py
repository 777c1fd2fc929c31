"""Heads of several scales in one op agree with one Attention-BN per scale."""

import kktorch
import pytest
import torch

SCALES = [3, 1, 8, 3]


def _results(shape, padded=False, **options):
    """Output and gradients; four query heads on as many key heads."""
    batch, length, width = shape
    generator = torch.Generator().manual_seed(0)
    q, k, v, grad = torch.randn(4, batch, 4, length, width, generator=generator).double().unbind()
    if padded:
        padding = torch.arange(length) >= torch.tensor([length, 0, 5])[:batch, None]
        options["key_padding_mask"] = padding
    inputs = [t.clone().requires_grad_() for t in (q, k, v)]
    beta = torch.tensor([1.0, 0.5, -1.0, 2.0], dtype=torch.float64, requires_grad=True)
    if options.get("bn"):
        options["beta"] = beta
        inputs.append(beta)
    out = kktorch.attention_sh(*inputs[:3], SCALES, **options)
    return [out.detach(), *torch.autograd.grad(out, inputs, grad)]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bn": True},
        {"bn": True, "padded": True, "num_special": 1},
        {"count_weighting": True, "bn": True, "use_std": False},
        {"count_weighting": True, "padded": True, "num_special": 2},
        {"tail": "drop", "bn": True},
    ],
    ids=str,
)
def test_together_as_one_by_one(monkeypatch, options):
    monkeypatch.setenv("KKTORCH_ATTENTION", "stock")
    apart = _results((3, 29, 8), **options)
    monkeypatch.delenv("KKTORCH_ATTENTION")
    together = _results((3, 29, 8), **options)
    for a, b in zip(together, apart, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)
    assert any(not torch.equal(a, b) for a, b in zip(together, apart, strict=True)), (
        "one and the same"
    )


def _ops_of(shape):
    q = torch.randn(shape[0], 4, *shape[1:])
    with torch.profiler.profile(acc_events=True) as profile:
        kktorch.attention_sh(q, q, q, SCALES)
    return {event.key for event in profile.key_averages()}


@pytest.mark.parametrize(
    "shape, together", [((1, 512, 4), True), ((1, 513, 4), False), ((4, 513, 4), True)]
)
def test_few_long_heads_take_turns(monkeypatch, shape, together):
    monkeypatch.delenv("KKTORCH_ATTENTION", raising=False)
    assert ("kktorch::_attention_sh_forward" in _ops_of(shape)) == together


def test_the_number_of_threads_changes_no_bit():
    results = []
    for threads in 1, 3:
        torch.set_num_threads(threads)
        results.append(_results((3, 53, 8), bn=True))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)
