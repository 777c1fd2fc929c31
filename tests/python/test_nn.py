"""The layers of kktorch.nn against torch.nn, and under script, compile and export."""

import copy

import kktorch
import pytest
import torch
from kktorch.nn import AttentionBNSH, EncoderLayer, TokenNorm
from nn_cases import padding_mask, randomised, script_round_trip
from torch import nn

VARIANTS = ["softmax", "bn"]
WIDTH, HEADS = 12, 3


def attention(variant: str, **options) -> AttentionBNSH:
    return randomised(
        AttentionBNSH(
            WIDTH, HEADS, **{"variant": variant, "batch_first": True, "beta_init": 0.7, **options}
        )
    )


def encoder(variant: str, **options) -> EncoderLayer:
    attention_options = {
        "embed_dim": WIDTH,
        "num_heads": HEADS,
        "variant": variant,
        "beta_mode": "per_head",
    }
    return randomised(EncoderLayer(attention_options, 20, **{"dropout": 0.0, **options}))


# Every module with an example of its arguments; keys of the second dictionary are optional ones.
def attention_case(variant):
    x, memory = torch.randn(3, 5, WIDTH), torch.randn(3, 4, WIDTH)
    masks = {"key_padding_mask": padding_mask([4, 1, 2], 4), "attn_mask": torch.randn(5, 4)}
    return attention(variant, beta_mode="scalar"), (x, memory, memory), masks


def encoder_case(variant):
    x = torch.randn(3, 5, WIDTH)
    return encoder(variant), (x,), {"key_padding_mask": padding_mask([5, 1, 3], 5)}


CASES = pytest.mark.parametrize(
    "make_case", [attention_case, encoder_case], ids=lambda f: f.__name__[:-5]
)


def first(result):
    return result[0] if isinstance(result, tuple) else result


# ---- AttentionBNSH ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{}, {"bias": False}, {"kdim": 5, "vdim": 7}, {"batch_first": True}],
    ids=["default", "no_bias", "other_widths", "batch_first"],
)
@pytest.mark.parametrize("variant", VARIANTS)
def test_loads_and_reproduces_multihead_attention(variant, options):
    """Attention-BN that neither re-centres nor divides is softmax attention."""
    expected = randomised(nn.MultiheadAttention(WIDTH, HEADS, **options))
    layer = AttentionBNSH(WIDTH, HEADS, variant=variant, beta_init=0.0, use_std=False, **options)
    layer.load_state_dict(expected.state_dict(), strict=True)
    layer.eval()
    queries, keys, batch = 4, 5, 2

    def tokens(length, width):
        shape = (batch, length) if options.get("batch_first") else (length, batch)
        return torch.randn(*shape, width)

    query = tokens(queries, WIDTH)
    key, value = tokens(keys, options.get("kdim", WIDTH)), tokens(keys, options.get("vdim", WIDTH))
    padding = padding_mask([5, 3], keys)
    masks = [
        None,
        torch.ones(queries, keys, dtype=torch.bool).triu(3),
        torch.randn(queries, keys),
        torch.rand(batch * HEADS, queries, keys).argsort(-1) > 3,  # a key or two forbidden
    ]
    for mask in masks:
        for pad in (None, padding):
            # nn.MultiheadAttention wants both masks of one type.
            additive = mask is not None and mask.is_floating_point()
            peer_pad = (
                torch.zeros(2, 5).masked_fill(pad, -torch.inf)
                if additive and pad is not None
                else pad
            )
            kwargs = {"need_weights": True, "attn_mask": mask}
            for average in (True, False):
                out, weights = layer(query, key, value, pad, average_attn_weights=average, **kwargs)
                out2, weights2 = expected(
                    query, key, value, peer_pad, average_attn_weights=average, **kwargs
                )
                torch.testing.assert_close(out, out2, rtol=0, atol=1e-5)
                torch.testing.assert_close(weights, weights2, rtol=0, atol=1e-5)
            fused, none = layer(query, key, value, pad, attn_mask=mask)
            torch.testing.assert_close(fused, out2, rtol=0, atol=1e-5)
            assert none is None
    if not options.get("batch_first"):
        alone = (query[:, 0], key[:, 0], value[:, 0])
        torch.testing.assert_close(layer(*alone)[0], expected(*alone)[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"kdim": 5, "vdim": 7}])
def test_a_seed_gives_the_values_of_multihead_attention(options):
    torch.manual_seed(3)
    expected = nn.MultiheadAttention(WIDTH, HEADS, **options).state_dict()
    torch.manual_seed(3)
    actual = AttentionBNSH(WIDTH, HEADS, variant="softmax", **options).state_dict()
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


@pytest.mark.parametrize("mode, shape", [("fixed", None), ("scalar", ()), ("per_head", (HEADS,))])
@pytest.mark.parametrize("is_causal", [False, True])
def test_bn_is_the_op_on_the_projections(mode, shape, is_causal):
    layer = attention("bn", beta_mode=mode).double()
    assert (layer.beta is None) if shape is None else (layer.beta.shape == shape)
    x = torch.randn(2, 5, WIDTH, dtype=torch.float64)
    qkv = x @ layer.in_proj_weight.T + layer.in_proj_bias
    q, k, v = qkv.unflatten(-1, (3, HEADS, 4)).permute(2, 0, 3, 1, 4)
    beta = {"beta_value": 0.7} if shape is None else {"beta": layer.beta}
    heads = kktorch.attention_bn_ref(q, k, v, literal=True, is_causal=is_causal, **beta)
    expected = layer.out_proj(heads.transpose(1, 2).flatten(2))
    torch.testing.assert_close(layer(x, x, x, is_causal=is_causal)[0], expected)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_padded_batch_is_the_loop_over_samples(variant, is_causal):
    layer = attention(variant, num_kv_heads=1, value_head_dim=5).double()
    lengths = [5, 1, 3]
    padding = padding_mask(lengths, 5)
    query = torch.randn(3, 5, WIDTH, dtype=torch.float64)
    memory = query.clone().masked_fill(padding.unsqueeze(-1), torch.nan)
    out, weights = layer(query, memory, memory, padding, need_weights=True, is_causal=is_causal)
    for b, length in enumerate(lengths):
        rows = length if is_causal else 5
        valid = memory[b, :length]
        one, one_weights = layer(
            query[b, :rows], valid, valid, need_weights=True, is_causal=is_causal
        )
        torch.testing.assert_close(out[b, :rows], one)
        torch.testing.assert_close(weights[b, :rows, :length], one_weights)


@pytest.mark.parametrize("variant", VARIANTS)
def test_without_stats_mask_padding_is_ignored(variant):
    layer = attention(variant, stats_mask=False)
    x = torch.randn(2, 5, WIDTH)
    assert torch.equal(layer(x, x, x, padding_mask([5, 2], 5))[0], layer(x, x, x)[0])


# ---- TokenNorm, EncoderLayer ------------------------------------------------------------------


def test_masked_norm_is_batch_norm_of_the_valid_tokens():
    norm = randomised(TokenNorm("batch_masked", 4)).train()
    expected = nn.BatchNorm1d(4)
    expected.load_state_dict(norm.state_dict(), strict=True)
    padding = padding_mask([5, 2, 0], 5)
    for _ in range(3):
        x = torch.randn(3, 5, 4) * 2 + 1
        out = norm(x.masked_fill(padding.unsqueeze(-1), torch.nan), padding)[~padding]
        torch.testing.assert_close(out, expected(x[~padding]))
    torch.testing.assert_close(norm.state_dict(), expected.state_dict())


@pytest.mark.parametrize("norm_first", [False, True])
def test_encoder_layer_is_transformer_encoder_layer(norm_first):
    expected = randomised(
        nn.TransformerEncoderLayer(WIDTH, HEADS, 20, norm_first=norm_first, batch_first=True)
    )
    layer = EncoderLayer(
        {"embed_dim": WIDTH, "num_heads": HEADS, "variant": "softmax"},
        20,
        norm_first=norm_first,
        activation="relu",
    )
    layer.load_state_dict(expected.state_dict(), strict=True)
    x, padding = torch.randn(2, 5, WIDTH), padding_mask([5, 3], 5)
    actual, peer = layer.eval()(x, padding), expected(x, src_key_padding_mask=padding)
    # Padded rows are the caller's to drop; the fast path of torch.nn zeroes them.
    torch.testing.assert_close(actual[~padding], peer[~padding], rtol=0, atol=1e-5)


# ---- script, compile, export ------------------------------------------------------------------


@CASES
@pytest.mark.parametrize("variant", VARIANTS)
def test_script(make_case, variant):
    module, args, options = make_case(variant)
    scripted = script_round_trip(module)
    for kwargs in ({}, options):
        torch.testing.assert_close(scripted(*args, **kwargs), module(*args, **kwargs))


@CASES
@pytest.mark.parametrize("variant", VARIANTS)
def test_compile(make_case, variant):
    """One graph, in training, outputs and gradients."""
    module, args, options = make_case(variant)
    expected = copy.deepcopy(module).train()
    compiled = torch.compile(module.train(), backend="aot_eager", fullgraph=True)
    actual, reference = first(compiled(*args, **options)), first(expected(*args, **options))
    torch.testing.assert_close(actual, reference)
    actual.square().sum().backward()
    reference.square().sum().backward()
    for (name, p), q in zip(module.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, msg=name)


@CASES
@pytest.mark.parametrize("variant", VARIANTS)
def test_export(make_case, variant):
    module, args, options = make_case(variant)
    exported = torch.export.export(module, args, options).module()
    torch.testing.assert_close(exported(*args, **options), module(*args, **options))


# ---- errors -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda: AttentionBNSH(12, 3, beta_mode="each"),
            "beta_mode in {fixed, scalar, per_head}, but got 'each'",
        ),
        (lambda: AttentionBNSH(0, 3), "embed_dim >= 1, but got 0"),
        (lambda: AttentionBNSH(12, 5), "embed_dim divisible by num_heads, but got 12 and 5"),
        (
            lambda: AttentionBNSH(12, 3, num_kv_heads=2),
            "num_heads divisible by num_kv_heads, but got 3 and 2",
        ),
        (lambda: AttentionBNSH(12, 3, value_head_dim=0), "value_head_dim >= 1, but got 0"),
        (lambda: AttentionBNSH(12, 3, dropout=1.0), "dropout in [0, 1), but got 1.0"),
        (lambda: AttentionBNSH(12, 3, beta_init=torch.nan), "a finite beta_init, but got nan"),
        (lambda: AttentionBNSH(12, 3, eps=-1), "finite eps >= 0, but got -1"),
        (lambda: TokenNorm("group", 4), "kind in {layer, batch, batch_masked}, but got 'group'"),
        (lambda: encoder("bn", activation="tanh"), "activation in {gelu, relu}, but got 'tanh'"),
        (lambda: encoder("bn", dropout=-0.1), "dropout in [0, 1), but got -0.1"),
    ],
)
def test_options_are_refused(make, message):
    with pytest.raises(ValueError) as error:
        make()
    assert f"expected {message}" in str(error.value)


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda x: attention("bn")(x[..., 0], x, x),
            "AttentionBNSH: expected query, key, value of 2 or 3 dimensions and widths 12, 12, 12, "
            "but got [2, 5], [2, 5, 12], [2, 5, 12]",
        ),
        (
            lambda x: attention("bn")(x, x, x[:, :4]),
            "AttentionBNSH: expected key and value of equal length and the batch size of query, "
            "but got [2, 5, 12], [2, 5, 12], [2, 4, 12]",
        ),
        (
            lambda x: attention("softmax")(x[:, :4], x, x, is_causal=True),
            "AttentionBNSH: expected as many queries as keys with is_causal, but got 4 and 5",
        ),
        (
            lambda x: attention("bn")(x, x, x, torch.zeros(2, 5)),
            "AttentionBNSH: expected key_padding_mask bool [2, 5], but got torch.float32 [2, 5]",
        ),
        (
            lambda x: attention("bn")(x, x, x, attn_mask=torch.zeros(2, 5, 5)),
            "AttentionBNSH: expected attn_mask bool or floating [5, 5] or [6, 5, 5], "
            "but got torch.float32 [2, 5, 5]",
        ),
    ],
)
def test_inputs_are_refused(call, message):
    with pytest.raises(RuntimeError) as error:
        call(torch.zeros(2, 5, WIDTH))
    assert message in str(error.value)
