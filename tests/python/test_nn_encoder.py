"""A whole encoder that decodes, against its causal forward; under script, compile and export."""

import copy

import pytest
import torch
from kktorch.nn import Encoder, EncoderOptions
from nn_cases import padding_mask, randomised, script_round_trip

VARIANTS = ["softmax", "bn", "sh", "bnsh"]
WIDTH, LENGTH = 12, 11

each_variant = pytest.mark.parametrize("variant", VARIANTS)


def encoder(variant: str, norm_first: bool = True, **layout) -> Encoder:
    options = EncoderOptions(
        width=WIDTH,
        heads=4,
        ffn=20,
        layers=2,
        norm="layer" if norm_first else "batch",
        norm_first=norm_first,
        attention=variant,
        beta_mode="per_head",
        scales=(3, 1, 4, 2),
    )
    return randomised(Encoder(options, LENGTH, **layout)).double()


def tokens(batch: int, length: int) -> torch.Tensor:
    return torch.randn(batch, length, WIDTH, dtype=torch.float64)


def close(actual, expected, tolerance=1e-10):
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("chunk", [1, 3, LENGTH])
@pytest.mark.parametrize("num_special", [0, 2])
@pytest.mark.parametrize("norm_first", [False, True])
@each_variant
def test_decoding_is_the_forward(variant, norm_first, num_special, chunk):
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 2e-5)):
        module = encoder(variant, norm_first, num_special=num_special).to(dtype)
        x = tokens(2, LENGTH).to(dtype)
        caches = module.make_caches(2, LENGTH)
        parts = [module.decode(part, caches) for part in x.split(chunk, 1)]
        close(torch.cat(parts, 1), module(x, is_causal=True), tolerance)
        assert all(cache.lengths == [LENGTH] * 2 for cache in caches)


@each_variant
def test_sequences_of_different_lengths_and_reordered_beams(variant):
    module = encoder(variant)
    lengths, source = [9, 4, 6], [2, 0, 0, 1]
    padding, x = padding_mask(lengths, 9), tokens(3, 9)
    caches = module.make_caches(3, LENGTH)
    first = module.decode(x.masked_fill(padding.unsqueeze(-1), torch.nan), caches, lengths)
    close(first[~padding], module(x, padding, is_causal=True)[~padding])  # in one pass

    for cache in caches:
        cache.reorder(torch.tensor(source))
    more = tokens(4, 2)
    second = torch.cat([module.decode(part, caches) for part in more.split(1, 1)], 1)
    for b, parent in enumerate(source):
        n = lengths[parent]
        alone = torch.cat([x[parent, :n], more[b]])[None]
        close(second[b], module(alone, is_causal=True)[0, n:])


@each_variant
def test_the_future_does_not_touch_the_past(variant):
    module, x = encoder(variant, norm_first=False), tokens(2, LENGTH)
    changed = torch.cat([x[:, :5], -3 * x[:, 5:]], 1)
    before, after = module(x, is_causal=True), module(changed, is_causal=True)
    assert torch.equal(before[:, :5], after[:, :5]) and not torch.equal(before, after)


@pytest.mark.parametrize("is_causal", [False, True])
@each_variant
def test_script(variant, is_causal):
    module = encoder(variant)
    inputs = tokens(3, 9), padding_mask([9, 4, 6], 9), is_causal
    close(script_round_trip(module)(*inputs), module(*inputs))


@pytest.mark.parametrize("is_causal", [False, True])
def test_compile_and_export(is_causal):
    """Of one variant: tests/python/test_nn_attention.py has them all, one layer each."""
    module = encoder("bnsh")
    inputs = tokens(3, 9), padding_mask([9, 4, 6], 9), is_causal
    trained = copy.deepcopy(module)
    compiled = torch.compile(trained, backend="aot_eager", fullgraph=True, dynamic=True)
    compiled(*inputs).square().sum().backward()
    module(*inputs).square().sum().backward()
    for (name, p), q in zip(trained.named_parameters(), module.named_parameters(), strict=True):
        torch.testing.assert_close(p.grad, q[1].grad, msg=name)

    sizes = {0: torch.export.Dim("B", max=64), 1: torch.export.Dim("L", min=5, max=LENGTH)}
    shapes = (sizes, sizes, None)
    exported = torch.export.export(module, inputs, dynamic_shapes=shapes).module()
    for lengths in ([9, 4, 6], [11, 2], [5, 5, 1, 3]):
        longest = max(lengths)
        others = tokens(len(lengths), longest), padding_mask(lengths, longest), is_causal
        close(exported(*others), module(*others))


def test_wrong_inputs_are_named():
    module, x = encoder("bnsh"), tokens(2, 3)
    with pytest.raises(RuntimeError, match=r"x \[B, L <= 11, 12\], but got \[2, 12, 12\]"):
        module(tokens(2, LENGTH + 1))
    with pytest.raises(RuntimeError, match=r"x \[B, L <= 11, 12\], but got \[2, 3, 11\]"):
        module(x[..., 1:])
    message = "Encoder: expected capacity <= 11, the number of positions, but got 12"
    with pytest.raises(ValueError, match=message):
        module.make_caches(2, LENGTH + 1)
    caches = module.make_caches(2, 4)
    module.decode(x, caches, [3, 1])
    before = copy.deepcopy(caches)
    with pytest.raises(RuntimeError, match="KVCache: expected capacity >= 5, but got 4"):
        module.decode(x, caches, [2, 2])
    for wrong, got in ((x[0], r"\[3, 12\]"), (x[:1], r"\[1, 3, 12\]")):
        with pytest.raises(RuntimeError, match=rf"Encoder: expected x_new \[2, T, 12\].* {got}"):
            module.decode(wrong, caches)
    with pytest.raises(RuntimeError, match="expected evaluation mode to decode"):
        module.train().decode(x, caches, [1, 1])
    for cache, old in zip(caches, before, strict=True):
        assert cache.lengths == [3, 1]
        assert torch.equal(cache.groups[0].key, old.groups[0].key)
    with pytest.raises(RuntimeError, match="expected 2 caches, one per layer, but got 1"):
        module.decode(x, caches[:1])
    with pytest.raises(NotImplementedError, match="to decode, but got 'linear_bn'"):
        encoder("linear_bn").make_caches(1, 1)
