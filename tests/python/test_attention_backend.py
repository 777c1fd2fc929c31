"""KKTORCH_ATTENTION chooses between the attention core and the stock back end."""

import kktorch
import pytest
import torch


def _results(width=16, **options):
    generator = torch.Generator().manual_seed(0)
    q, k, v, grad = torch.randn(4, 2, 3, 37, width, generator=generator).double().unbind()
    inputs = [t.clone().requires_grad_() for t in (q, k, v)]
    out = kktorch.attention_bn(*inputs, **options)
    return [out.detach(), *torch.autograd.grad(out, inputs, grad)]


@pytest.mark.parametrize(
    "options", [{}, {"is_causal": True}, {"use_std": False, "beta_value": 0.0}], ids=str
)
def test_back_ends_agree(monkeypatch, options):
    monkeypatch.setenv("KKTORCH_ATTENTION", "stock")
    stock = _results(**options)
    monkeypatch.setenv("KKTORCH_ATTENTION", "core")
    core = _results(**options)
    for a, b in zip(core, stock, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)
    assert any(not torch.equal(a, b) for a, b in zip(core, stock, strict=True)), "one and the same"


def test_default_is_the_core(monkeypatch):
    monkeypatch.delenv("KKTORCH_ATTENTION", raising=False)
    default = _results()
    monkeypatch.setenv("KKTORCH_ATTENTION", "core")
    for a, b in zip(default, _results(), strict=True):
        assert torch.equal(a, b)


def test_wide_heads_go_to_the_stock_back_end(monkeypatch):
    monkeypatch.delenv("KKTORCH_ATTENTION", raising=False)
    default = _results(width=257)
    monkeypatch.setenv("KKTORCH_ATTENTION", "stock")
    for a, b in zip(default, _results(width=257), strict=True):
        assert torch.equal(a, b)
    monkeypatch.setenv("KKTORCH_ATTENTION", "core")
    with pytest.raises(NotImplementedError, match="KKTORCH_ATTENTION=core: expected .* 256 wide"):
        _results(width=257)


def test_unknown_back_end_is_an_error(monkeypatch):
    monkeypatch.setenv("KKTORCH_ATTENTION", "fast")
    with pytest.raises(ValueError, match="expected stock or core, but got 'fast'"):
        _results()
