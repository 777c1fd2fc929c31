"""AttentionBNSH of every variant against the formulas, one head and one query at a time; decoding
against the causal forward; script and export; the C++ layer."""

import copy
import io
import os
import subprocess

import pytest
import torch
from kktorch.nn import AttentionBNSH, default_scales
from torch import nn

DECODING = ["softmax", "bn", "sh", "bnsh"]
LINEAR = ["linear", "linear_bn", "linear_sh", "linear_bnsh"]
VARIANTS = [*DECODING, *LINEAR]
POOLING = [variant for variant in VARIANTS if variant.endswith("sh")]
CAUSAL = [*DECODING, "linear", "linear_bn"]
WIDTH, HEADS = 16, 4

each_variant = pytest.mark.parametrize("variant", VARIANTS)
each_causality = pytest.mark.parametrize(
    "variant, is_causal", [(v, False) for v in VARIANTS] + [(v, True) for v in CAUSAL]
)


def padding_mask(lengths: list[int], longest: int) -> torch.Tensor:
    """[B, L], True beyond each length."""
    return torch.arange(longest) >= torch.tensor(lengths).unsqueeze(1)


def randomised(module: nn.Module) -> nn.Module:
    """Random float64 parameters, evaluation mode."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, 0.4)
    return module.double().eval()


def attention(variant: str, **options) -> AttentionBNSH:
    # eps: with one or two keys in the statistics of linear attention, exp(q / sqrt(1e-5)) is 0.
    defaults = {"variant": variant, "batch_first": True, "beta_init": 0.7, "eps": 0.1}
    return randomised(AttentionBNSH(WIDTH, HEADS, **{**defaults, **options}))


def tokens(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, WIDTH, dtype=torch.float64)


def close(actual, expected, tolerance=1e-10):
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


# ---- the formulas -------------------------------------------------------------------------------


def windows_of(layer, scale: int, length: int) -> list[list[int]]:
    special = layer.num_special
    windows = [[t] for t in range(special)]
    for start in range(special, length, scale):
        window = list(range(start, min(start + scale, length)))
        if len(window) == scale or layer.tail == "ceil":
            windows.append(window)
    return windows


def seen_by(layer, scale: int, p: int, length: int, is_causal: bool) -> list[list[int]]:
    """Windows, single tokens included, that query p may see, before any mask."""
    special = layer.num_special
    windows = windows_of(layer, scale, length)
    if not (is_causal and layer.pools):
        return [w for w in windows if not is_causal or w[-1] <= p]
    own = special + (p - special) // scale * scale  # where the window of p begins
    before = [w for w in windows if w[-1] < min(own, p + 1) or (w[0] < special and w[0] <= p)]
    return before + [[t] for t in range(max(own, special), p + 1)]


def statistics(keys, weights, layer):
    """Mean and 1 / sqrt(biased variance + eps) of weighted keys [n, D]."""
    n = weights.unsqueeze(1)
    mean = (n * keys).sum(0) / n.sum()
    variance = (n * (keys - mean) ** 2).sum(0) / n.sum()
    return mean, (variance + layer.eps).rsqrt() if layer.use_std else torch.ones_like(mean)


def pooled(x, windows, valid, layer):
    """Means [n, width] of the valid tokens of every window that has one, and their weights."""
    windows = [[t for t in w if valid[t]] for w in windows]
    windows = [w for w in windows if w]
    counts = [float(len(w)) if layer.count_weighting else 1.0 for w in windows]
    means = [x[w].mean(0) for w in windows]
    return (torch.stack(means) if means else x[:0]), x.new_tensor(counts)


def softmax_row(q, p, k, v, visible, valid, scale, beta, is_causal, layer):
    """Output [Dv] of query q [D] at position p over k [N, D], v [N, Dv]."""
    length = k.size(0)
    seen = seen_by(layer, scale, p, length, is_causal)
    seen = [w for w in seen if all(visible[t] for t in w if valid[t])]
    keys, weights = pooled(k, seen, valid, layer)
    if not weights.numel():
        return v.new_zeros(v.size(1))
    if layer.normalises:
        if is_causal:
            counted = [[t] for t in range(p + 1)]
        else:
            counted = windows_of(layer, scale, length)
        mean, r = statistics(*pooled(k, counted, valid, layer), layer)
        q, keys = (q - beta * mean) * r, (keys - beta * mean) * r
    logits = keys @ q / q.numel() ** 0.5 + weights.log()
    return logits.softmax(0) @ pooled(v, seen, valid, layer)[0]


def linear_row(q, p, k, v, valid, scale, beta, is_causal, layer):
    def phi(x):
        return nn.functional.elu(x) + 1

    def prefix(n):
        return statistics(*pooled(k, [[t] for t in range(n)], valid, layer), layer)

    seen = seen_by(layer, scale, p, k.size(0), is_causal)
    keys, weights = pooled(k, seen, valid, layer)
    values = pooled(v, seen, valid, layer)[0]
    if layer.normalises and is_causal:
        own = [prefix(t + 1) for t in range(p + 1) if valid[t]]
        keys = torch.stack([(x - beta * m) * r for x, (m, r) in zip(keys, own, strict=True)])
        mean, r = prefix(p + 1)
        q = (q - beta * mean) * r
    elif layer.normalises:
        mean, r = statistics(keys, weights, layer)
        q, keys = (q - beta * mean) * r, (keys - beta * mean) * r
    similarity = weights * (phi(keys) @ phi(q))
    return similarity @ values / similarity.sum()


def convolved(x, weight, layer, is_causal):
    """x [L, D] of one head, padded tokens already 0; weight [D, 1, 3] or [D, 1, 3, 3]."""
    special = layer.num_special
    y, rest = x.clone(), x[special:]

    def at(row, column=0, columns=1):
        inside = 0 <= row < len(rest) // columns and 0 <= column < columns
        return rest[row * columns + column] if inside else torch.zeros_like(x[0])

    for t in range(len(rest)):
        if layer.conv == "2d":
            columns = layer.conv_columns
            row, column = divmod(t, columns)
            taps = [
                weight[:, 0, i, j] * at(row + i - 1, column + j - 1, columns)
                for i in range(3)
                for j in range(3)
            ]
        else:
            offsets = (-1, 0, -2) if is_causal else (-1, 0, 1)
            taps = [weight[:, 0, i] * at(t + offset) for i, offset in enumerate(offsets)]
        y[special + t] = sum(taps)
    return y


def expected_output(layer, query, key, value, padding=None, attn_mask=None, is_causal=False):
    """The layer, batch first; attn_mask: True = forbidden, [L, S] or [B H, L, S]."""
    batch, queries = query.shape[:2]
    length = key.size(1)
    shared = layer.num_heads // layer.num_kv_heads
    if layer.in_proj_weight is not None:
        weights = layer.in_proj_weight.split(layer.rows)
    else:
        weights = layer.q_proj_weight, layer.k_proj_weight, layer.v_proj_weight
    biases = [0, 0, 0] if layer.in_proj_bias is None else layer.in_proj_bias.split(layer.rows)
    if padding is None:
        padding = torch.zeros(batch, length, dtype=torch.bool)
    visible = torch.ones(batch, layer.num_heads, queries, length, dtype=torch.bool)
    if attn_mask is not None:
        visible &= ~attn_mask.reshape(-1, 1 if attn_mask.dim() == 2 else HEADS, queries, length)

    out = []
    for b in range(batch):
        projected = [
            x[b] @ w.T + bias
            for x, w, bias in zip((query, key, value), weights, biases, strict=True)
        ]
        valid = ~padding[b]
        heads = []
        for h in range(layer.num_heads):
            kv = h // shared
            q, k, v = (
                x.unflatten(-1, (-1, width))[:, head]
                for x, width, head in zip(projected, layer.widths, (h, kv, kv), strict=True)
            )
            if layer.conv != "none":
                k = k.masked_fill(~valid[:, None], 0)
                if query is key:
                    q = q.masked_fill(~valid[:, None], 0)
                d = layer.head_dim
                q = convolved(q, layer.conv_q.weight[h * d : (h + 1) * d], layer, is_causal)
                k = convolved(k, layer.conv_k.weight[kv * d : (kv + 1) * d], layer, is_causal)
            beta = layer.beta_init
            if layer.beta is not None:
                beta = layer.beta.expand(layer.num_kv_heads if layer.is_linear else HEADS)
                beta = beta[kv if layer.is_linear else h]
            scale = layer.scales[kv]
            rows = []
            for p in range(queries):
                if layer.is_linear:
                    row = linear_row(q[p], p, k, v, valid, scale, beta, is_causal, layer)
                else:
                    row = softmax_row(
                        q[p], p, k, v, visible[b, h, p], valid, scale, beta, is_causal, layer
                    )
                rows.append(row)
            heads.append(torch.stack(rows))
        out.append(layer.out_proj(torch.cat(heads, -1)))
    return torch.stack(out)


OPTIONS = {
    "default": {},
    "grouped": {"num_kv_heads": 2, "value_head_dim": 3, "beta_mode": "per_head", "num_special": 2},
    "interleaved": {"scales": [3, 1, 3, 2], "count_weighting": True, "beta_mode": "scalar"},
    "drop": {"scales": [2], "tail": "drop", "num_special": 1, "use_std": False},
    "other_widths": {"kdim": 5, "vdim": 6, "bias": False, "beta_mode": "per_head"},
}
each_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


@each_option
@each_variant
def test_is_the_formula(variant, options):
    layer = attention(variant, **options)
    query = tokens(2, 3)
    key = torch.randn(2, 8, layer.kdim, dtype=torch.float64)
    value = torch.randn(2, 8, layer.vdim, dtype=torch.float64)
    for padding in (None, padding_mask([8, 5], 8)):
        expected = expected_output(layer, query, key, value, padding)
        # With weights, tokens are projected before they are pooled; without, after.
        close(layer(query, key, value, padding)[0], expected)
        close(layer(query, key, value, padding, need_weights=True)[0], expected)
        if layer.kdim == layer.vdim == WIDTH:
            close(
                layer(query, key, key, padding)[0], expected_output(layer, query, key, key, padding)
            )


@each_option
@pytest.mark.parametrize("variant", CAUSAL)
def test_causal_is_the_formula(variant, options):
    if "kdim" in options:
        options = {}
    layer = attention(variant, **options)
    x, padding = tokens(2, 8), padding_mask([8, 5], 8)
    for pad in (None, padding):
        actual = layer(x, x, x, pad, is_causal=True)[0]
        close(actual, expected_output(layer, x, x, x, pad, is_causal=True))


@each_option
@pytest.mark.parametrize("variant", DECODING)
def test_mask_hides_every_window_with_a_forbidden_token(variant, options):
    if "kdim" in options:
        options = {}
    layer = attention(variant, **options)
    query, key = tokens(2, 3), tokens(2, 8)
    padding = padding_mask([8, 5], 8)
    for shape in ((3, 8), (2 * HEADS, 3, 8)):
        mask = torch.rand(shape) < 0.15
        actual = layer(query, key, key, padding, attn_mask=mask)[0]
        close(actual, expected_output(layer, query, key, key, padding, mask))


@pytest.mark.parametrize("num_special", [0, 2])
@each_causality
def test_convolution_is_the_formula(variant, is_causal, num_special):
    layer = attention(variant, conv="1d", num_special=num_special)
    x, padding = tokens(2, 7), padding_mask([7, 4], 7)
    expected = expected_output(layer, x, x, x, padding, is_causal=is_causal)
    unseen = x.masked_fill(padding.unsqueeze(-1), torch.nan)
    actual = layer(unseen, unseen, unseen, padding, is_causal=is_causal)[0]
    # Rows of padded queries hold what the caller drops.
    close(actual[~padding], expected[~padding])
    if not is_causal:
        query = tokens(2, 5)
        close(layer(query, x, x, padding)[0], expected_output(layer, query, x, x, padding))


@pytest.mark.parametrize("num_special", [0, 1])
@each_variant
def test_convolution_on_the_grid_is_the_formula(variant, num_special):
    layer = attention(variant, conv="2d", conv_columns=3, num_special=num_special)
    x = tokens(2, 6 + num_special)
    close(layer(x, x, x)[0], expected_output(layer, x, x, x))


@pytest.mark.parametrize("options", [{"conv": "1d"}, {"conv": "2d", "conv_columns": 3}], ids=str)
@each_variant
def test_a_new_convolution_changes_nothing(variant, options):
    torch.manual_seed(1)
    plain = AttentionBNSH(WIDTH, HEADS, variant=variant, batch_first=True).double()
    torch.manual_seed(1)
    layer = AttentionBNSH(WIDTH, HEADS, variant=variant, batch_first=True, **options).double()
    x = tokens(2, 6)
    close(layer(x, x, x)[0], plain(x, x, x)[0])
    if options["conv"] == "1d" and not variant.endswith("sh"):
        close(layer(x, x, x, is_causal=True)[0], plain(x, x, x, is_causal=True)[0])
    assert {"conv_q.weight", "conv_k.weight"} == set(layer.state_dict()) - set(plain.state_dict())


# ---- what follows from the formulas -------------------------------------------------------------


def test_default_scales():
    assert [default_scales(n) for n in (1, 2, 3, 4)] == [[1], [1, 2], [1, 1, 2], [1, 1, 2, 2]]
    assert default_scales(8) == [1, 1, 2, 2, 4, 4, 8, 8]
    assert AttentionBNSH(WIDTH, HEADS, variant="sh").scales == [1, 1, 2, 2]
    assert AttentionBNSH(WIDTH, HEADS, variant="sh", num_kv_heads=2, scales=[3]).scales == [3, 3]


@pytest.mark.parametrize("is_causal", [False, True])
def test_windows_of_one_token_are_multihead_attention(is_causal):
    peer = randomised(nn.MultiheadAttention(WIDTH, HEADS, batch_first=True))
    layer = AttentionBNSH(WIDTH, HEADS, variant="sh", scales=[1], batch_first=True)
    layer.load_state_dict(peer.state_dict(), strict=True)
    layer.double().eval()
    x, padding = tokens(2, 6), padding_mask([6, 4], 6)
    forbidden = torch.ones(6, 6, dtype=torch.bool).triu(1) if is_causal else None
    out, weights = layer(x, x, x, padding, need_weights=True, is_causal=is_causal)
    peer_out, peer_weights = peer(x, x, x, padding, attn_mask=forbidden)
    close(out, peer_out)
    close(weights, peer_weights)


@pytest.mark.parametrize("variant", POOLING)
def test_counted_windows_of_equal_tokens_are_the_tokens(variant):
    scales = [1, 2, 4, 3]
    counted = attention(variant, scales=scales, count_weighting=True)
    plain = attention(variant, scales=[1])
    plain.load_state_dict(counted.state_dict())
    query = tokens(2, 3)
    memory = tokens(2, 2).repeat_interleave(12, 1)[:, :22]  # constant in windows of 1, 2, 3 and 4
    padding = padding_mask([22, 15], 22)
    close(counted(query, memory, memory, padding)[0], plain(query, memory, memory, padding)[0])


@each_option
@each_causality
def test_weights_are_those_of_the_output(variant, options, is_causal):
    if "kdim" in options or options.get("tail") == "drop":
        options = {"num_special": 1}
    layer = attention(variant, **options)
    x, padding = tokens(2, 7), padding_mask([7, 4], 7)
    out, weights = layer(
        x, x, x, padding, need_weights=True, average_attn_weights=False, is_causal=is_causal
    )
    close(weights.sum(-1), torch.ones_like(weights[..., 0]))
    assert not weights[1, :, :, 4:].any()
    v = x @ layer.in_proj_weight.split(layer.rows)[2].T + layer.in_proj_bias.split(layer.rows)[2]
    v = v.unflatten(-1, (-1, layer.value_head_dim)).transpose(1, 2)
    heads = weights @ v.repeat_interleave(HEADS // v.size(1), 1)
    close(layer.out_proj(heads.transpose(1, 2).flatten(2)), out)


@each_causality
def test_padded_batch_is_the_loop_over_samples(variant, is_causal):
    layer = attention(variant, num_special=1, conv="none")
    lengths = [7, 1, 4]
    padding = padding_mask(lengths, 7)
    x = tokens(3, 7)
    unseen = x.masked_fill(padding.unsqueeze(-1), torch.nan)
    out = layer(x, unseen, unseen, padding, is_causal=is_causal)[0]
    for b, n in enumerate(lengths):
        rows = n if is_causal else 7
        alone = layer(x[b, :rows], x[b, :n], x[b, :n], is_causal=is_causal)[0]
        close(out[b, :rows], alone)


@pytest.mark.parametrize("options", [{}, {"conv": "1d", "num_special": 1}], ids=str)
@each_variant
def test_trains_every_parameter(variant, options):
    layer = attention(variant, beta_mode="per_head", **options).train()
    x, padding = tokens(2, 6), padding_mask([6, 4], 6)
    layer(x, x, x, padding)[0].square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.any(), name
    if layer.normalises:
        assert layer.beta.shape == (HEADS,)


@pytest.mark.parametrize("batch, length", [(0, 5), (2, 0), (0, 0), (2, 1)])
@each_causality
def test_empty_and_single_tokens(variant, is_causal, batch, length):
    layer = attention(variant)
    x = tokens(batch, length).requires_grad_()
    out = layer(x, x, x, is_causal=is_causal)[0]
    assert out.shape == (batch, length, WIDTH)
    out.square().sum().backward()
    assert x.grad.shape == x.shape and all(p.grad is not None for p in layer.parameters())
    if length == 1:  # one key: its value
        value = x @ layer.in_proj_weight[-WIDTH:].T + layer.in_proj_bias[-WIDTH:]
        close(out, layer.out_proj(value))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@each_causality
def test_autocast_gives_the_autocast_dtype(variant, is_causal, dtype):
    layer = attention(variant, beta_mode="per_head").float()
    x, padding = tokens(2, 6).float(), padding_mask([6, 4], 6)
    with torch.autocast("cpu", dtype):
        out = layer(x, x, x, padding, is_causal=is_causal)[0]
    assert out.dtype == dtype
    out.float().square().sum().backward()
    assert all(
        p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in layer.parameters()
    )
    # roundings of the projections, of the heads and of the output, one after the other
    expected = layer(x, x, x, padding, is_causal=is_causal)[0]
    assert (out - expected).abs().max() <= 8 * torch.finfo(dtype).eps * expected.abs().max()


def test_learned_beta_of_linear_variants_belongs_to_key_heads():
    layer = attention("linear_bn", num_kv_heads=2, beta_mode="per_head")
    assert layer.beta.shape == (2,)
    assert attention("linear_sh", beta_mode="per_head").beta is None


# ---- decoding -----------------------------------------------------------------------------------

DECODE_OPTIONS = {
    "default": {},
    "grouped": {"num_kv_heads": 2, "value_head_dim": 3, "scales": [1, 3], "num_special": 2},
    "counted": {"scales": [3, 1, 4, 2], "count_weighting": True, "beta_mode": "per_head"},
    "no_std": {"use_std": False, "num_special": 3, "scales": [2], "batch_first": False},
}
each_decode_option = pytest.mark.parametrize("options", DECODE_OPTIONS.values(), ids=DECODE_OPTIONS)


def causal(layer, x):
    return layer(x, x, x, is_causal=True)[0]


@pytest.mark.parametrize("chunk", [1, 3, 11])
@each_decode_option
@pytest.mark.parametrize("variant", DECODING)
def test_decoding_is_the_causal_forward(variant, options, chunk):
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 2e-5)):
        layer = attention(variant, **options).to(dtype)
        time = 1 if layer.batch_first else 0
        x = tokens(2, 11).to(dtype)
        x = x if layer.batch_first else x.transpose(0, 1)
        cache = layer.make_cache(2, 11)
        parts = [layer.decode(part, cache) for part in x.split(chunk, time)]
        close(torch.cat(parts, time), causal(layer, x), tolerance)
        assert cache.lengths == cache.length.tolist() == [11, 11]


@each_decode_option
@pytest.mark.parametrize("variant", DECODING)
def test_sequences_of_different_lengths_decode_as_if_alone(variant, options):
    layer = attention(variant, **{**options, "batch_first": True})
    x = tokens(3, 12)
    expected = causal(layer, x)
    cache, done = layer.make_cache(3, 12), [0, 0, 0]
    for valid in ([5, 1, 3], [0, 2, 1], [1, 1, 1], [4, 3, 0], [2, 5, 4]):
        new = max(valid)
        chunk = torch.full((3, new, WIDTH), torch.nan, dtype=torch.float64)
        for b, n in enumerate(valid):
            chunk[b, :n] = x[b, done[b] : done[b] + n]
        out = layer.decode(chunk, cache, valid)
        for b, n in enumerate(valid):
            close(out[b, :n], expected[b, done[b] : done[b] + n])
            done[b] += n
    assert cache.lengths == cache.length.tolist() == done == [12, 12, 9]


@each_decode_option
@pytest.mark.parametrize("variant", DECODING)
def test_beams_are_reordered(variant, options):
    layer = attention(variant, **{**options, "batch_first": True})
    x, index = tokens(3, 9), torch.tensor([2, 0, 0, 1])
    cache = layer.make_cache(3, 9)
    layer.decode(x[:, :5], cache, [5, 3, 4])
    cache.reorder(index)
    assert cache.lengths == cache.length.tolist() == [4, 5, 5, 3]
    continued = torch.cat([tokens(4, 2), torch.full((4, 1, WIDTH), torch.nan).double()], 1)
    out = layer.decode(continued, cache, [2, 2, 2, 2])
    for b, (source, n) in enumerate(zip([2, 0, 0, 1], [4, 5, 5, 3], strict=True)):
        whole = torch.cat([x[source, :n], continued[b, :2]])[None]
        close(out[b, :2], causal(layer, whole)[0, n:])


@pytest.mark.parametrize("variant", DECODING)
def test_a_half_precision_cache_stays_finite(variant):
    layer = attention(variant, scales=[1, 2, 2, 4])
    x = tokens(2, 9)
    expected = causal(layer, x)
    for dtype in (torch.float16, torch.bfloat16):
        half = copy.deepcopy(layer).to(dtype)
        cache = half.make_cache(2, 9)
        out = torch.cat([half.decode(part.to(dtype), cache) for part in x.split(2, 1)], 1)
        prefill = causal(half, x.to(dtype))
        # Twice the error of the causal forward in that type.
        error, allowed = (out - expected).abs().max(), (prefill - expected).abs().max()
        assert out.isfinite().all() and error <= 2 * allowed + 1e-3
        assert cache.groups[0].key.dtype == dtype and cache.mean.dtype == torch.float32


def test_decoding_refuses():
    layer = attention("sh")
    cache = layer.make_cache(2, 4)
    layer.decode(tokens(2, 3), cache, [3, 1])
    before = copy.deepcopy(cache.groups[1].key)
    with pytest.raises(RuntimeError, match="KVCache: expected capacity >= 5, but got 4"):
        layer.decode(tokens(2, 2), cache)
    assert cache.lengths == [3, 1] and torch.equal(cache.groups[1].key, before)
    with pytest.raises(RuntimeError, match=r"expected 2 numbers of valid tokens in 0 ... 1, but"):
        layer.decode(tokens(2, 1), cache, [1, 2])
    with pytest.raises(RuntimeError, match=r"a batch of 2 as the cache, .* but got \[3, 1, 16\]"):
        layer.decode(tokens(3, 1), cache)
    with pytest.raises(RuntimeError, match=r"one token or more, but got \[2, 0, 16\]"):
        layer.decode(tokens(2, 0), cache)
    with pytest.raises(IndexError, match=r"KVCache: expected index in \[0, 2\), but got 2"):
        cache.reorder(torch.tensor([0, 2]))
    with pytest.raises(RuntimeError, match="KVCache: expected index int64"):
        cache.reorder(torch.tensor([0.0]))
    with pytest.raises(ValueError, match="KVCache: expected capacity >= 1, but got 0"):
        layer.make_cache(2, 0)
    with pytest.raises(NotImplementedError, match="to decode, but got 'linear_bn'"):
        attention("linear_bn").make_cache(1, 1)
    with pytest.raises(NotImplementedError, match="expected conv 'none' to decode, but got '1d'"):
        attention("bn", conv="1d").make_cache(1, 1)


# ---- script, compile, export --------------------------------------------------------------------

SCRIPT_OPTIONS = {**OPTIONS, "conv": {"conv": "1d"}, "grid": {"conv": "2d", "conv_columns": 3}}


@pytest.mark.parametrize("options", SCRIPT_OPTIONS.values(), ids=SCRIPT_OPTIONS)
@each_variant
def test_script(variant, options):
    layer = attention(variant, **options)
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(layer), file)
    file.seek(0)
    scripted = torch.jit.load(file)
    length = 6 + layer.num_special
    query = tokens(2, length)
    key = torch.randn(2, length, layer.kdim, dtype=torch.float64)
    value = torch.randn(2, length, layer.vdim, dtype=torch.float64)
    padding = padding_mask([length, length - 2], length)
    for args in ((query, key, value), *[(query,) * 3] * (layer.kdim == WIDTH)):
        close(scripted(*args, padding)[0], layer(*args, padding)[0])
        close(scripted(*args, padding, need_weights=True), layer(*args, padding, need_weights=True))
        if layer.conv != "2d" and variant in CAUSAL:
            close(scripted(*args, is_causal=True)[0], layer(*args, is_causal=True)[0])


@pytest.mark.parametrize("options", [{}, {"conv": "1d", "num_special": 1}], ids=str)
@each_variant
def test_compile(variant, options):
    """One graph, in training, outputs and gradients."""
    torch.compiler.reset()  # every variant is a recompilation of the one forward
    layer = attention(variant, beta_mode="per_head", **options).train()
    expected = copy.deepcopy(layer)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=True)
    for lengths in ([12, 4, 5], [6, 4]):
        x, padding = tokens(len(lengths), lengths[0]), padding_mask(lengths, lengths[0])
        actual, reference = compiled(x, x, x, padding)[0], expected(x, x, x, padding)[0]
        close(actual, reference)
    actual.square().sum().backward()
    reference.square().sum().backward()
    for (name, p), q in zip(layer.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, msg=name)


@each_causality
def test_export_has_free_batch_and_length(variant, is_causal):
    layer = attention(variant, num_special=1)
    shapes = {0: torch.export.Dim("B", max=64), 1: torch.export.Dim("L", min=9, max=64)}

    class SelfAttention(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x, padding):
            return self.layer(x, x, x, padding, is_causal=is_causal)[0]

    example = (tokens(3, 12), padding_mask([12, 1, 5], 12))
    exported = torch.export.export(SelfAttention(), example, dynamic_shapes=(shapes, shapes))
    for lengths in ([12, 1, 5], [20, 3], [9, 9, 2, 4]):
        inputs = tokens(len(lengths), max(lengths)), padding_mask(lengths, max(lengths))
        close(exported.module()(*inputs), SelfAttention()(*inputs))


# ---- the C++ layer ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cpp_layers(build_dir, tmp_path_factory):
    """Folder of the layers that tests/cpp/test_attention_layer.cpp writes."""
    program = build_dir / "bin" / "kktorch_tests"
    if not program.is_file():
        pytest.skip(f"the C++ tests are not built: {program}")
    folder = tmp_path_factory.mktemp("layers")
    subprocess.run(
        [program, "--gtest_filter=AttentionLayer.WritesLayersForPython"],
        env={**os.environ, "KKTORCH_TEST_ARTIFACTS": str(folder)},
        check=True,
        capture_output=True,
    )
    return folder


@each_variant
def test_a_seed_gives_the_layer_of_cpp(cpp_layers, variant):
    saved = torch.jit.load(cpp_layers / f"{variant}.ts")
    torch.manual_seed(0)
    conv = "none" if variant in DECODING else "1d"
    layer = AttentionBNSH(
        WIDTH, HEADS, batch_first=True, variant=variant, beta_mode="per_head", conv=conv
    ).eval()
    state = {k: v for k, v in saved.state_dict().items() if not k.startswith("example_")}
    assert layer.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in layer.state_dict().items())

    x, padding, out = saved.example_x, saved.example_padding, saved.example_out
    close(saved(x, x, x, padding)[0], out, 1e-6)
    close(layer(x, x, x, padding)[0], out, 1e-6)
    if variant in DECODING:
        close(layer.decode(x, layer.make_cache(x.size(0), x.size(1))), saved.example_decoded, 1e-6)


# ---- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, message",
    [
        (
            {"variant": "max"},
            "variant in {softmax, bn, sh, bnsh, linear, linear_bn, linear_sh, linear_bnsh}, "
            "but got 'max'",
        ),
        ({"scales": [1, 2]}, "1 or 4 scales, each >= 1, but got [1, 2]"),
        ({"scales": [0]}, "1 or 4 scales, each >= 1, but got [0]"),
        ({"tail": "wrap"}, "tail in {ceil, drop}, but got 'wrap'"),
        ({"num_special": -1}, "num_special >= 0, but got -1"),
        ({"conv": "3d"}, "conv in {none, 1d, 2d}, but got '3d'"),
        ({"conv": "2d"}, "conv_columns >= 1 with conv '2d', but got 0"),
        ({"variant": "linear", "dropout": 0.1}, "dropout 0 with variant 'linear'"),
    ],
    ids=str,
)
def test_options_are_refused(options, message):
    with pytest.raises(ValueError) as error:
        AttentionBNSH(WIDTH, HEADS, **{"variant": "sh", **options})
    assert f"AttentionBNSH: expected {message}" in str(error.value)


@pytest.mark.parametrize(
    "options, inputs, kind, message",
    [
        (
            {"variant": "linear_bn"},
            {"attn_mask": torch.zeros(6, 6, dtype=torch.bool)},
            NotImplementedError,
            "AttentionBNSH: expected no attn_mask with variant 'linear_bn', but got one",
        ),
        (
            {"variant": "linear_sh"},
            {"is_causal": True},
            NotImplementedError,
            "AttentionBNSH: expected is_causal=False with variant 'linear_sh', but got True",
        ),
        (
            {"conv": "2d", "conv_columns": 3},
            {"is_causal": True},
            NotImplementedError,
            "AttentionBNSH: expected is_causal=False with conv '2d', but got True",
        ),
        (
            {"conv": "2d", "conv_columns": 3, "num_special": 1},
            {},
            RuntimeError,
            "expected num_special=1 tokens and rows of conv_columns=3 with conv '2d', "
            "but got a length of 6",
        ),
        (
            {"num_special": 7, "scales": [2]},
            {},
            (RuntimeError, ValueError),
            "expected 0 <= num_special <= 6, but got 7",
        ),
        (
            {},
            {"attn_mask": torch.zeros(6, 6)},
            (RuntimeError, ValueError, NotImplementedError),
            "attention_sh: expected",
        ),
    ],
)
def test_inputs_are_refused(options, inputs, kind, message):
    layer = AttentionBNSH(WIDTH, HEADS, **{"variant": "sh", "batch_first": True, **options})
    x = torch.randn(2, 6, WIDTH)
    with pytest.raises(kind) as error:
        layer(x, x, x, **inputs)
    assert message in str(error.value)
