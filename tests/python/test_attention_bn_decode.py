"""attention_bn_decode: chunk by chunk it is causal attention_bn over the whole sequence."""

import io
import re
from typing import NamedTuple

import pytest
import reference
import torch
from attention_bn_cases import (
    DTYPES,
    HALVES,
    Shape,
    assert_close,
    assert_identical,
    cast,
    problem,
)

op = torch.ops.kktorch.attention_bn_decode
attention_bn = torch.ops.kktorch.attention_bn

SHAPE = Shape(B=3, H=4, Hk=2, M=11, N=11, D=4, Dv=3)


class Cache(NamedTuple):
    """The tensors that the op writes."""

    key: torch.Tensor
    value: torch.Tensor
    length: torch.Tensor
    mean: torch.Tensor
    m2: torch.Tensor

    @staticmethod
    def empty(shape=SHAPE, capacity=11, dtype=torch.float64):
        """No token yet, and rubbish where tokens will be."""
        acc = torch.float64 if dtype == torch.float64 else torch.float32
        return Cache(
            torch.full((shape.B, shape.Hk, capacity, shape.D), torch.nan, dtype=dtype),
            torch.full((shape.B, shape.Hk, capacity, shape.Dv), torch.nan, dtype=dtype),
            torch.zeros(shape.B, dtype=torch.int64),
            torch.zeros(shape.B, shape.Hk, shape.D, dtype=acc),
            torch.zeros(shape.B, shape.Hk, shape.D, dtype=acc),
        )

    def select(self, samples):
        return Cache(*(t.index_select(0, torch.as_tensor(samples)) for t in self))

    def clone(self):
        return Cache(*(t.clone() for t in self))


def sequences(shape=SHAPE, **options):
    """Tensors and options of causal attention_bn, and the options as decoding takes them."""
    tensors, options = problem(shape, "prefix", **options)
    return tensors, options, {n: o for n, o in options.items() if n != "is_causal"}


def chunks_of(size, length=SHAPE.N):
    return [min(size, length - start) for start in range(0, length, size)]


def decode(tensors, cache, chunks, options):
    """The outputs of appending chunks of these sizes, one after the other."""
    outs = [
        op(*parts, *cache, **options)
        for parts in zip(*(t[:, :, : sum(chunks)].split(chunks, 2) for t in tensors), strict=True)
    ]
    return torch.cat(outs, 2)


# Values


@pytest.mark.parametrize("use_std", [True, False])
@pytest.mark.parametrize(
    "beta", [("fixed", 1.0), ("[]", 0.3), ("[1]", -0.5), ("[H]", 0.7)], ids=str
)
@pytest.mark.parametrize("chunks", [chunks_of(1), chunks_of(3), [11], [7, 1, 1, 2]], ids=str)
def test_chunks_are_causal_attention_over_the_whole(chunks, beta, use_std):
    tensors, causal, options = sequences(beta=beta, use_std=use_std)
    out = decode(tensors, Cache.empty(), chunks, options)
    assert_close(out, reference.attention_bn(*tensors, **causal), 1e-10)
    assert_close(out, attention_bn(*tensors, **causal), 1e-10)


@pytest.mark.parametrize("size", [1, 3, 11])
def test_chunks_in_single_precision(size):
    for seed in range(4):
        tensors, causal, options = sequences(seed=seed, beta=("[H]", 0.5))
        tensors, options = cast(torch.float32, tensors, options)
        _, causal = cast(torch.float32, tensors, causal)
        out = decode(tensors, Cache.empty(dtype=torch.float32), chunks_of(size), options)
        assert_close(out, attention_bn(*tensors, **causal), 2e-5)


def test_defaults_are_those_of_the_schema():
    (q, k, v), _, _ = sequences(SHAPE._replace(H=2))
    out = op(q, k, v, *Cache.empty(), torch.ones(()), use_std=True, eps=1e-5, scale=0.5)
    assert_identical(op(q, k, v, *Cache.empty()), out)


@pytest.mark.parametrize("scale", [0.0, -0.3, 2.0])
def test_scale_and_eps(scale):
    tensors, causal, options = sequences(scale=scale, eps=0.3)
    out = decode(tensors, Cache.empty(), [4, 1, 6], options)
    assert_close(out, reference.attention_bn(*tensors, **causal), 1e-10)


def test_a_channel_without_variance_and_eps_is_ignored():
    (q, k, v), causal, options = sequences(eps=0.0)
    k[..., 2] = 0.1
    out = decode((q, k, v), Cache.empty(), chunks_of(3), options)
    assert_close(out, attention_bn(q, k, v, **causal), 1e-10)
    q[..., 2] += 1
    assert_close(decode((q, k, v), Cache.empty(), chunks_of(3), options), out, 1e-12)


@pytest.mark.parametrize("beta", [-0.5, 1.0])
def test_beta_value_and_beta_tensor_agree(beta):
    tensors, _, options = sequences(beta=("fixed", beta))
    number = decode(tensors, Cache.empty(), [5, 1], options)
    options.pop("beta_value")
    for size in ((), (1,), (4,)):
        tensor = options | {"beta": torch.tensor(beta).expand(size)}
        assert_identical(decode(tensors, Cache.empty(), [5, 1], tensor), number)


@pytest.mark.parametrize("heads", [1, 2, 6])
def test_grouped_heads(heads):
    tensors, causal, options = sequences(SHAPE._replace(H=heads, Hk=1 if heads < 6 else 3))
    shape = SHAPE._replace(Hk=tensors[1].shape[1])
    out = decode(tensors, Cache.empty(shape), chunks_of(3), options)
    assert_close(out, reference.attention_bn(*tensors, **causal), 1e-10)


def test_a_long_prefill_crosses_every_block():
    shape = Shape(B=1, H=2, Hk=1, M=300, N=300, D=4, Dv=4)
    tensors, causal, options = sequences(shape)
    out = decode(tensors, Cache.empty(shape, 400), [259, 1, 40], options)
    assert_close(out, attention_bn(*tensors, **causal), 1e-10)


def test_a_single_token_is_its_value():
    (q, k, v), _, options = sequences()
    for dtype in DTYPES:
        tensors = [t[:, :, :1].to(dtype) for t in (q, k, v)]
        out = op(*tensors, *Cache.empty(dtype=dtype), **options)
        assert_identical(out, tensors[2].repeat_interleave(2, 1))


# The cache


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_state_is_that_of_the_tokens_so_far(dtype):
    (q, k, v), _, options = sequences()
    (q, k, v), options = cast(dtype, (q, k, v), options)
    cache = Cache.empty(capacity=13, dtype=dtype)
    for length, chunk in ((1, 1), (4, 3), (11, 7)):
        decode([t[:, :, length - chunk :] for t in (q, k, v)], cache, [chunk], options)
        assert cache.length.tolist() == [length] * 3
        for stored, tokens in ((cache.key, k), (cache.value, v)):
            assert_identical(stored[:, :, :length], tokens[:, :, :length])  # raw, to the bit
            assert stored[:, :, length:].isnan().all()
        seen = k[:, :, :length].double()
        mean = seen.mean(2)
        tolerance = 1e-12 if dtype == torch.float64 else 1e-5
        assert_close(cache.mean, mean.to(cache.mean.dtype), tolerance)
        assert_close(
            cache.m2, ((seen - mean[:, :, None]) ** 2).sum(2).to(cache.m2.dtype), tolerance
        )
        if length == 1:
            assert_identical(cache.mean, k[:, :, 0].to(cache.mean.dtype))
            assert not cache.m2.any()


def test_a_constant_channel_has_no_deviation_at_all():
    (q, k, v), _, options = sequences()
    k[..., 2] = 0.1
    cache = Cache.empty()
    decode((q, k, v), cache, [5, 1, 3, 2], options)
    assert not cache.m2[..., 2].any() and cache.m2[..., [0, 1, 3]].all()
    assert_identical(cache.mean[..., 2], torch.full((3, 2), 0.1, dtype=torch.float64))


def test_samples_may_start_at_different_lengths():
    """Prompts of 1, 6 and 4 tokens, then chunks for all at once; the longest fills the cache."""
    (q, k, v), causal, options = sequences()
    prompts, chunks = (1, 6, 4), [1, 3, 1]
    caches = []
    for b, prompt in enumerate(prompts):
        caches.append(Cache.empty(SHAPE._replace(B=1)))
        decode([t[b : b + 1] for t in (q, k, v)], caches[-1], [prompt], options)
    cache = Cache(*(torch.cat(parts) for parts in zip(*caches, strict=True)))
    continued = [
        torch.stack([t[b, :, prompt : prompt + 5] for b, prompt in enumerate(prompts)])
        for t in (q, k, v)
    ]
    out = decode(continued, cache, chunks, options)
    whole = reference.attention_bn(q, k, v, **causal)
    expected = [whole[b, :, prompt : prompt + 5] for b, prompt in enumerate(prompts)]
    assert_close(out, torch.stack(expected), 1e-10)
    assert cache.length.tolist() == [6, 11, 9]


def test_beams_are_reordered_by_index_select():
    (q, k, v), causal, options = sequences()
    cache = Cache.empty()
    decode((q, k, v), cache, [4], options)
    beams = [2, 0, 0, 1]
    cache = cache.select(beams)
    parents = [t[beams] for t in (q, k, v)]
    for t, tail in zip(parents, torch.randn(3, 1, 1, 7, 1, dtype=torch.float64), strict=True):
        t[:, :, 4:] += tail * torch.arange(4.0)[:, None, None, None]  # beams part ways
    out = decode([t[:, :, 4:] for t in parents], cache, [1, 1, 5], options)
    expected = reference.attention_bn(*parents, **causal)[:, :, 4:]
    assert_close(out, expected, 1e-10)


def strided(t):
    """[B, Hk, ...] as every other sample of a larger buffer, heads before the channels."""
    buffer = t.new_full((2 * t.shape[0], *t.movedim(1, -2).shape[1:]), 7)
    return buffer[::2].movedim(-2, 1)


def test_strided_caches_are_written_in_place():
    tensors, causal, options = sequences()
    plain = Cache.empty()
    cache = Cache(strided(plain.key), strided(plain.value), plain.length, plain.mean, plain.m2)
    assert not cache.key.is_contiguous() and not cache.value.is_contiguous()
    heads_last = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in tensors]
    out = decode(heads_last, cache, chunks_of(3), options)
    assert_close(out, reference.attention_bn(*tensors, **causal), 1e-10)
    assert_identical([cache.key, cache.value], list(tensors[1:]))
    assert (cache.key._base[1::2] == 7).all() and (cache.value._base[1::2] == 7).all()


@pytest.mark.parametrize("name", ["key_cache", "value_cache", "length", "mean", "m2"])
def test_a_strided_state_is_right_or_refused(name):
    """A tensor that is written cannot be copied: what a layout does not allow has its message."""
    (q, k, v), causal, options = sequences()
    cache = dict(zip(NAMES[3:], Cache.empty(), strict=True))
    cache[name] = cache[name].repeat_interleave(2, -1)[..., ::2]
    try:
        out = op(q, k, v, **cache, **options)
    except RuntimeError as refusal:
        assert str(refusal).startswith("attention_bn_decode: expected ")
        assert "but got strides" in str(refusal)
        assert not cache["length"].any() and cache["key_cache"].isnan().all()
    else:
        assert_close(out, reference.attention_bn(q, k, v, **causal), 1e-10)
        assert cache["length"].tolist() == [11] * 3
        assert_identical(cache["key_cache"], k)


def test_inputs_are_left_alone_and_not_returned():
    tensors, _, options = sequences()
    before = [t.clone() for t in tensors]
    cache = Cache.empty()
    out = op(*tensors, *cache, **options)
    assert_identical(list(tensors), before)
    assert out.data_ptr() not in {t.data_ptr() for t in (*tensors, *cache)}
    assert out.transpose(1, 2).is_contiguous()


def test_expanded_tokens():
    (q, k, v), _, options = sequences()
    q, k, v = q[:, :, :1].expand_as(q), k[:1, :1].expand_as(k), v[:1].expand_as(v)
    expected = decode([t.contiguous() for t in (q, k, v)], Cache.empty(), [4, 7], options)
    assert_close(decode((q, k, v), Cache.empty(), [4, 7], options), expected, 1e-12)


@pytest.mark.parametrize("size", ["B", "Dv"])
def test_empty_sizes(size):
    shape = SHAPE._replace(**{size: 0})
    tensors, _, options = sequences(shape)
    cache = Cache.empty(shape)
    out = decode(tensors, cache, [3, 8], options)
    assert out.shape == (shape.B, 4, 11, shape.Dv)
    assert cache.length.tolist() == [11] * shape.B


# Half types, conditioning


@pytest.mark.parametrize("size", [1, 3, 11])
@pytest.mark.parametrize("dtype", HALVES)
def test_error_of_halves_is_at_most_twice_the_literal_one(dtype, size):
    shape = SHAPE._replace(D=16, Dv=16)
    # eps: the first query has r = eps^-1/2, and its literal logits overflow in float16
    eps = 1e-2 if dtype == torch.float16 else 1e-5
    error, literal_error = 0.0, 0.0
    for seed in range(4):
        tensors, causal, options = sequences(shape, seed=seed, beta=("[H]", 0.5), eps=eps)
        tensors, causal = cast(dtype, tensors, causal)
        _, options = cast(dtype, tensors, options)
        out = decode(tensors, Cache.empty(shape, dtype=dtype), chunks_of(size), options)
        assert out.dtype == dtype
        literal = reference.attention_bn(*tensors, **causal).double()
        tensors, causal = cast(torch.float64, tensors, causal)
        exact = reference.attention_bn(*tensors, **causal)
        error = max(error, (out.double() - exact).abs().max().item())
        literal_error = max(literal_error, (literal - exact).abs().max().item())
    assert error <= 2 * literal_error + 1e-3


@pytest.mark.parametrize("dtype", HALVES)
def test_a_constant_key_channel_in_half_precision(dtype):
    (q, k, v), causal, options = sequences()
    k[..., 3] = 1.0
    (q, k, v), options = cast(dtype, (q, k, v), options)
    out = decode((q, k, v), Cache.empty(dtype=dtype), chunks_of(1), options)
    (q, k, v), causal = cast(torch.float64, (q, k, v), cast(dtype, (), causal)[1])
    assert_close(out, reference.attention_bn(q, k, v, **causal), 16 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("offset, bound", [(10, 1e-5), (1000, 1e-4)])
def test_a_common_offset_of_keys_and_queries(offset, bound):
    (q, k, v), causal, options = sequences(beta=("fixed", 0.5), eps=0.1)
    q, k, v = (t.float() for t in (q + 0.5 * offset, k + offset, v))
    out = decode((q, k, v), Cache.empty(dtype=torch.float32), [5, 1, 5], options)
    exact = reference.attention_bn(q.double(), k.double(), v.double(), **causal)
    assert_close(out, exact, bound)


# Errors: B = 3, H = 4, Hk = 2, T = 11, D = 4, Dv = 3, C = 11; each case replaces some arguments

NAMES = ("query", "key_new", "value_new", "key_cache", "value_cache", "length", "mean", "m2")


def good():
    tensors, _, options = sequences()
    return dict(zip(NAMES, (*tensors, *Cache.empty()), strict=True)) | options


def zeros(*size, dtype=torch.float64):
    return torch.zeros(size, dtype=dtype)


ONE_DTYPE = "one dtype in {float16, bfloat16, float32, float64}, but got"
HEADS = "query heads to equal 2 key heads (pass enable_gqa=True if a multiple is intended), but got"
TOKENS = "as many new queries as keys, at least 1, but got"

BAD = [
    (
        {"query": zeros(3, 11, 4)},
        "query, key, value of shape [B, heads, length, width], but got [3, 11, 4], [3, 2, 11, 4], ",
    ),
    (
        {"query": zeros(3, 4, 11, 4, dtype=torch.float32)},
        f"query, key, value of {ONE_DTYPE} Float, Double, Double",
    ),
    (
        {"value_new": zeros(3, 2, 11, 3, dtype=torch.float32)},
        f"query, key, value of {ONE_DTYPE} Double, Double, Float",
    ),
    ({"query": zeros(2, 4, 11, 4)}, "equal batch sizes, but got 2, 3, 3"),
    ({"query": zeros(3, 4, 11, 5)}, "query and key of equal width >= 1, but got 5, 4"),
    ({"query": zeros(3, 3, 11, 4)}, f"3 {HEADS}"),
    ({"enable_gqa": False}, f"4 {HEADS}"),
    ({"query": zeros(3, 4, 10, 4)}, f"{TOKENS} [3, 4, 10, 4] and [3, 2, 11, 4]"),
    (
        {"query": zeros(3, 4, 0, 4), "key_new": zeros(3, 2, 0, 4), "value_new": zeros(3, 2, 0, 3)},
        f"{TOKENS} [3, 4, 0, 4] and [3, 2, 0, 4]",
    ),
    *(
        (
            {name: zeros(*size)},
            "equal key and value lengths and heads, but got",
        )
        for name, size in (
            ("key_new", (3, 2, 10, 4)),
            ("key_new", (3, 1, 11, 4)),
            ("value_new", (3, 2, 10, 3)),
        )
    ),
    ({"key_cache": zeros(2, 11, 4)}, "key_cache [B, heads, capacity, width], but got [2, 11, 4]"),
    *(
        ({name: zeros(*size, dtype=dtype)}, f"{name} {expected} on {{}}, but got {got}")
        for name, expected, size, dtype, got in (
            ("key_cache", "Double [3, 2, 11, 4]", (3, 2, 11, 4), torch.float32, "Float"),
            ("key_cache", "Double [3, 2, 11, 4]", (3, 2, 11, 5), torch.float64, "Double"),
            ("key_cache", "Double [3, 2, 11, 4]", (3, 1, 11, 4), torch.float64, "Double"),
            ("key_cache", "Double [3, 2, 11, 4]", (2, 2, 11, 4), torch.float64, "Double"),
            ("value_cache", "Double [3, 2, 11, 3]", (3, 2, 12, 3), torch.float64, "Double"),
            ("value_cache", "Double [3, 2, 11, 3]", (3, 2, 11, 4), torch.float64, "Double"),
            ("value_cache", "Double [3, 2, 11, 3]", (3, 2, 11, 3), torch.float16, "Half"),
            ("length", "Long [3]", (3,), torch.int32, "Int [3]"),
            ("length", "Long [3]", (2,), torch.int64, "Long [2]"),
            ("length", "Long [3]", (), torch.int64, "Long []"),
            ("mean", "Double [3, 2, 4]", (3, 2, 4), torch.float32, "Float"),
            ("mean", "Double [3, 2, 4]", (3, 4), torch.float64, "Double [3, 4]"),
            ("m2", "Double [3, 2, 4]", (3, 2, 5), torch.float64, "Double [3, 2, 5]"),
            ("m2", "Double [3, 2, 4]", (3, 2, 4), torch.float32, "Float"),
        )
    ),
    ({"beta": torch.ones(3)}, "beta floating of shape [], [1] or [4], but got Float [3]"),
    (
        {"beta": torch.ones(4, dtype=torch.int64)},
        "beta floating of shape [], [1] or [4], but got Long [4]",
    ),
    ({"beta_value": 0.5}, "beta_value=1.0 when beta is given, but got 0.5"),
    ({"beta": None, "beta_value": torch.inf}, "a finite beta_value, but got inf"),
    ({"eps": -1.0}, "finite eps >= 0, but got -1"),
    ({"scale": torch.inf}, "a finite scale, but got inf"),
]


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("change, message", BAD)
def test_a_wrong_argument_is_named(change, message, device):
    arguments = good() | change
    moved = {n: t.to(device) if torch.is_tensor(t) else t for n, t in arguments.items()}
    before = {n: t.clone() for n, t in moved.items() if torch.is_tensor(t)}
    message = message.replace("on {}", f"on {device}")
    expected = re.escape(f"attention_bn_decode: expected {message}")
    with pytest.raises((RuntimeError, ValueError), match=f"^{expected}"):
        op(**moved)
    if device == "cpu":
        assert_identical({n: moved[n] for n in before}, before)


@pytest.mark.parametrize("moved", [*NAMES, "beta"])
def test_devices_do_not_mix(moved):
    arguments = good()
    arguments[moved] = arguments[moved].to("meta")
    with pytest.raises(RuntimeError, match="attention_bn_decode: expected .* but got .*meta"):
        op(**arguments)


@pytest.mark.parametrize("capacity, prompt, chunk", [(11, 8, 4), (2, 0, 3), (0, 0, 1)])
def test_too_small_a_capacity_is_refused_and_nothing_is_written(capacity, prompt, chunk):
    tensors, _, options = sequences()
    cache = Cache.empty(capacity=capacity)
    if prompt:
        decode(tensors, cache, [prompt], options)
        cache.length[1] -= 1  # the longest sample decides
    before = cache.clone()
    message = f"attention_bn_decode: expected capacity >= {prompt + chunk}, but got {capacity}"
    with pytest.raises(Exception, match=re.escape(message)):
        op(*(t[:, :, :chunk] for t in tensors), *cache, **options)
    assert_identical(list(cache), list(before))


@pytest.mark.parametrize("name", ["query", "key_new", "value_new", "beta"])
def test_an_input_that_requires_grad_is_refused(name):
    arguments = good()
    arguments[name].requires_grad_()
    message = "attention_bn_decode: expected no input requiring grad"
    with pytest.raises(RuntimeError, match=message):
        op(**arguments)


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_parameters_are_accepted_where_no_gradient_is_recorded(guard):
    arguments = good()
    arguments["beta"].requires_grad_()
    with guard():
        out = op(**arguments)
    assert_identical(out, op(**good()))


# The dispatcher and compilers


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_opcheck(dtype):
    (q, k, v), _, options = sequences()
    (q, k, v), options = cast(dtype, (q, k, v), options)
    cache = Cache.empty(dtype=dtype)
    decode((q, k, v), cache, [4], options)
    chunk = [t[:, :, 4:7] for t in (q, k, v)]
    cache.key.nan_to_num_(), cache.value.nan_to_num_()  # NaN would differ from itself
    torch.library.opcheck(op.default, (*chunk, *cache, options.pop("beta")), options)


def test_the_schema_names_what_is_written():
    written = [a.name for a in op.default._schema.arguments if a.alias_info is not None]
    assert written == list(NAMES[3:])
    assert torch.Tag.pt2_compliant_tag in op.default.tags


@pytest.mark.parametrize("dynamic", [True, None])
def test_compile(dynamic):
    def step(query, key, value, *cache, **options):
        return op(query * 2, key, value, *cache, **options) + 1

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    (q, k, v), _, options = sequences()
    cache, eager = Cache.empty(), Cache.empty()
    for start, size in ((0, 3), (3, 2), (5, 4)):
        chunk = [t[:, :, start : start + size] for t in (q, k, v)]
        expected = step(*chunk, *eager, **options)
        assert_close(compiled(*chunk, *cache, **options), expected, 1e-12)
        assert_identical(list(cache), list(eager))


class Step(torch.nn.Module):
    """Decodes a chunk behind a prompt; the cache is made on the way."""

    def forward(self, prompt: torch.Tensor, chunk: torch.Tensor) -> torch.Tensor:
        batch, heads, width = prompt.size(0), prompt.size(1), prompt.size(3)
        keys = prompt.new_zeros(batch, heads, 20, width)
        values = prompt.new_zeros(batch, heads, 20, width)
        length = torch.zeros(batch, dtype=torch.long)
        mean = prompt.new_zeros(batch, heads, width)
        m2 = prompt.new_zeros(batch, heads, width)
        out = prompt
        for x in (prompt, chunk):
            out = torch.ops.kktorch.attention_bn_decode(
                x, x, x, keys, values, length, mean, m2, beta_value=0.5
            )
        return out + length.view(-1, 1, 1, 1)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_export_and_torchscript():
    def inputs(batch, new):
        generator = torch.Generator().manual_seed(batch)
        return [torch.randn(batch, 2, n, 4, generator=generator) for n in (3, new)]

    batch, new = torch.export.Dim("batch", min=2), torch.export.Dim("new", min=2, max=17)
    program = torch.export.export(
        Step(), tuple(inputs(3, 5)), dynamic_shapes=({0: batch}, {0: batch, 2: new})
    )
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(Step()), file)
    file.seek(0)
    scripted = torch.jit.load(file)
    for example in (inputs(3, 5), inputs(2, 9)):
        whole = torch.cat(example, 2)
        expected = attention_bn(whole, whole, whole, beta_value=0.5, is_causal=True)[:, :, 3:]
        expected = expected + whole.size(2)
        for step in (Step(), program.module(), scripted):
            assert_close(step(*example), expected, 2e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_casts_new_tokens_to_the_dtype_of_the_cache(dtype):
    (q, k, v), _, options = sequences()
    cache, expected_cache = Cache.empty(dtype=dtype), Cache.empty(dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = op(q.float(), k.bfloat16(), v.half(), *cache, **options)
    tokens = (q.float().to(dtype), k.bfloat16().to(dtype), v.half().to(dtype))
    assert_identical(out, op(*tokens, *expected_cache, **options))
    assert_identical(list(cache), list(expected_cache))
