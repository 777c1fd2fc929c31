"""attention_bn_varlen: the loop of attention_bn over packed sequences."""

import io
import re

import pytest
import reference
import torch
from attention_bn_cases import (
    BETA_KINDS,
    DTYPES,
    HALVES,
    assert_close,
    assert_identical,
    cast,
    cotangent,
    evaluate,
)
from torch.autograd import forward_ad

# TorchScript stays supported here after its deprecation upstream
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")

op = torch.ops.kktorch.attention_bn_varlen
attention_bn = torch.ops.kktorch.attention_bn

# (lengths of the queries, lengths of the keys): no key, no query, neither, one of each
CROSS = ((3, 2, 0, 0, 1, 4), (5, 0, 2, 0, 1, 7))
SELF = ((5, 0, 1, 7), (5, 0, 1, 7))


def offsets(lengths):
    return torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)


def problem(lengths=CROSS, heads=4, kv_heads=2, beta=("[H]", 0.7), seed=0, width=4, **options):
    """(query, key, value) in float64 and the options of one problem."""
    generator = torch.Generator().manual_seed(seed)
    queries, keys = lengths

    def draw(*size):
        return torch.randn(size, generator=generator, dtype=torch.float64)

    tensors = (
        draw(sum(queries), heads, width),
        draw(sum(keys), kv_heads, width) + 0.5,
        draw(sum(keys), kv_heads, 3),
    )
    options = {
        "cu_seqlens_q": offsets(queries),
        "cu_seqlens_k": offsets(keys),
        "max_q": max(queries, default=0),
        "max_k": max(keys, default=0),
        **BETA_KINDS[beta[0]](beta[1], heads),
        "enable_gqa": heads != kv_heads,
        **options,
    }
    return tensors, options


def loop(query, key, value, cu_seqlens_q, cu_seqlens_k, max_q, max_k, one=None, **options):
    """`one` (the reference unless given) on every sequence by itself, [1, H, length, D]."""
    one = one or reference.attention_bn

    def cut(x, ends, b):
        return x[ends[b] : ends[b + 1]].transpose(0, 1)[None]

    outs = [
        one(
            cut(query, cu_seqlens_q, b), *(cut(x, cu_seqlens_k, b) for x in (key, value)), **options
        )
        for b in range(len(cu_seqlens_q) - 1)
    ]
    return torch.cat([out[0].transpose(0, 1) for out in outs])


@pytest.mark.parametrize("use_std", [True, False])
@pytest.mark.parametrize("beta", BETA_KINDS)
@pytest.mark.parametrize("heads, kv_heads", [(1, 1), (2, 2), (4, 2)])
@pytest.mark.parametrize("lengths, is_causal", [(CROSS, False), (SELF, False), (SELF, True)])
def test_value_and_gradient_are_those_of_the_loop(
    lengths, is_causal, heads, kv_heads, beta, use_std
):
    strength = (beta, 0.7)
    tensors, options = problem(
        lengths, heads, kv_heads, strength, use_std=use_std, is_causal=is_causal
    )
    actual = evaluate(op, tensors, options)
    assert_close(actual, evaluate(loop, tensors, options), 1e-9)
    expected = evaluate(loop, tensors, options | {"one": attention_bn})
    assert_close(actual, expected, 1e-9)


@pytest.mark.parametrize("is_causal", [False, True])
def test_it_is_the_padded_batch(is_causal):
    """Ragged sequences of one batch, packed and padded, give the same numbers."""
    lengths = (5, 2, 7)
    (q, k, v), options = problem((lengths, lengths), is_causal=is_causal)
    padding = torch.arange(7) >= torch.tensor(lengths)[:, None]

    def padded(x):
        whole = x.new_full((3, 7, *x.shape[1:]), torch.nan)
        whole[~padding] = x
        return whole.transpose(1, 2)

    def batch(query, key, value, beta, **_):
        out = attention_bn(
            padded(query).nan_to_num(),
            padded(key),
            padded(value),
            beta,
            padding,
            is_causal=is_causal,
            enable_gqa=True,
        )
        return out.transpose(1, 2)[~padding]

    assert_close(evaluate(op, (q, k, v), options), evaluate(batch, (q, k, v), options), 1e-12)


@pytest.mark.parametrize("scale", [0.0, -0.3, 2.0])
def test_scale_eps_and_generous_bounds(scale):
    tensors, options = problem(scale=scale, eps=0.3)
    expected = loop(*tensors, **options)
    assert_close(op(*tensors, **options), expected, 1e-10)
    assert_close(op(*tensors, **(options | {"max_q": 50, "max_k": 60})), expected, 1e-10)


def test_defaults_are_those_of_the_schema():
    (q, k, v), options = problem(kv_heads=4, beta=("fixed", 1.0))
    where = [options[n] for n in ("cu_seqlens_q", "cu_seqlens_k", "max_q", "max_k")]
    spelled_out = op(
        q, k, v, *where, None, beta_value=1.0, use_std=True, eps=1e-5, is_causal=False, scale=0.5
    )
    assert_identical(op(q, k, v, *where), spelled_out)


def test_gradcheck():
    tensors, options = problem(((2, 1), (3, 1)), 2, 1, width=2, eps=0.1)
    leaves = [t.requires_grad_() for t in (*tensors, options.pop("beta"))]

    def function(q, k, v, beta):
        return op(q, k, v, beta=beta, **options)

    assert torch.autograd.gradcheck(function, leaves)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("dtype", HALVES)
def test_error_of_halves_is_at_most_twice_the_literal_one(dtype, is_causal):
    # eps: a query with one key has r = eps^-1/2, and its literal logits overflow in float16
    errors, literal_errors = {}, {}
    for seed in range(4):
        tensors, options = problem(SELF, seed=seed, eps=1e-2, is_causal=is_causal, width=8)
        tensors, options = cast(dtype, tensors, options)
        grad_out = cotangent((13, 4, 3), dtype)
        in_double = cast(torch.float64, tensors, options)
        exact = evaluate(loop, *in_double, grad_out.double())
        literal = evaluate(loop, tensors, options, grad_out)
        for name, tensor in evaluate(op, tensors, options, grad_out).items():
            assert tensor.dtype == dtype
            for table, result in ((errors, tensor), (literal_errors, literal[name])):
                distance = (result.double() - exact[name]).abs().max().item()
                table[name] = max(table.get(name, 0.0), distance)
    for name in errors:
        assert errors[name] <= 2 * literal_errors[name] + 1e-3, name


@pytest.mark.parametrize("dtype", DTYPES)
def test_strides_do_not_matter(dtype):
    tensors, options = cast(dtype, *problem())
    expected = evaluate(op, tensors, options)
    strided = [t.mT.contiguous().mT for t in tensors]
    grad_out = cotangent(expected["out"].shape, dtype).transpose(0, 1).contiguous().transpose(0, 1)
    assert_identical(evaluate(op, strided, options, grad_out), expected)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("dtype", HALVES)
def test_a_constant_key_channel_in_half_precision(dtype, is_causal):
    """1 / (0 + eps) = 1e5 does not fit into float16. A small cotangent: gradients have it too."""
    (q, k, v), options = cast(dtype, *problem(SELF, is_causal=is_causal))
    k[..., 3] = 1.0
    result = evaluate(op, (q, k, v), options, cotangent((13, 4, 3), dtype) / 64)
    for name, tensor in result.items():
        assert tensor.isfinite().all(), name


@pytest.mark.parametrize("offset, bound", [(10, 1e-5), (1000, 1e-4)])
def test_a_common_offset_of_keys_and_queries(offset, bound):
    """float32 against float64 on the same inputs."""
    (q, k, v), options = problem(SELF, beta=("fixed", 0.5), eps=0.1)
    q, k, v = (t.float() for t in (q + 0.5 * offset, k + offset, v))
    exact = loop(q.double(), k.double(), v.double(), **options)
    assert_close(op(q, k, v, **options), exact, bound)


def test_expanded_inputs_and_a_broadcast_cotangent():
    (q, k, v), options = problem()
    q, k, v = q[:1, :1].expand_as(q), k[:, :1].expand_as(k), v[:1].expand_as(v)
    ones = torch.ones((), dtype=torch.float64).expand(10, 4, 3)
    packed = [t.contiguous() for t in (q, k, v)]
    expected = evaluate(op, packed, options, ones.contiguous())
    assert_close(evaluate(op, (q, k, v), options, ones), expected, 1e-12)


@pytest.mark.parametrize(
    "lengths", [((), ()), ((0, 0), (0, 0)), ((0, 0), (2, 3)), ((2, 3), (0, 0))]
)
def test_empty_sizes_give_zeros(lengths):
    tensors, options = problem(lengths)
    result = evaluate(op, tensors, options)
    assert result["out"].shape == (sum(lengths[0]), 4, 3)
    for name, tensor in result.items():
        assert not tensor.any(), name


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("gradients", [False, True])
def test_opcheck(gradients, is_causal):
    tensors, options = problem(((3, 4), (3, 4)), is_causal=is_causal)
    if gradients:
        tensors, options["beta"] = (
            [t.requires_grad_() for t in tensors],
            options["beta"].requires_grad_(),
        )
    names = ("cu_seqlens_q", "cu_seqlens_k", "max_q", "max_k", "beta")
    torch.library.opcheck(op.default, (*tensors, *(options.pop(n) for n in names)), options)
    assert torch.Tag.pt2_compliant_tag in op.default.tags


# Compilers, autocast, transforms


class SelfAttention(torch.nn.Module):
    """The op between two linear maps, as a layer has it."""

    def __init__(self):
        super().__init__()
        self.projection = torch.nn.Linear(8, 24)
        self.beta = torch.nn.Parameter(torch.linspace(0.5, 1, 2))

    def forward(self, x: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        q, k, v = self.projection(x).unflatten(-1, (3, 2, -1)).unbind(1)
        out = torch.ops.kktorch.attention_bn_varlen(
            q, k, v, offsets, offsets, 9, 9, self.beta, is_causal=True
        )
        return out.flatten(1)


def packed_tokens(lengths):
    return torch.randn(sum(lengths), 8), offsets(lengths)


def test_compile_with_dynamic_shapes():
    torch.compiler.reset()
    module = SelfAttention()
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True, dynamic=True)
    for lengths in ((3, 5), (9, 2, 4)):
        inputs = packed_tokens(lengths)
        out = compiled(*inputs)
        assert_close(out, module(*inputs), 1e-6)
        grads, expected = (
            torch.autograd.grad(y.square().sum(), list(module.parameters()))
            for y in (out, module(*inputs))
        )
        for actual, grad in zip(grads, expected, strict=True):
            assert_close(actual, grad, 1e-5)


def test_export_and_torchscript():
    module = SelfAttention().eval()
    total, batch = torch.export.Dim("total", min=2), torch.export.Dim("batch", min=3)
    program = torch.export.export(
        module, packed_tokens((3, 5)), dynamic_shapes=({0: total}, {0: batch})
    )
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(module), file)
    file.seek(0)
    scripted = torch.jit.load(file)
    for lengths in ((3, 5), (9, 2, 4, 1)):
        inputs = packed_tokens(lengths)
        assert_close(program.module()(*inputs), module(*inputs), 1e-6)
        assert_close(scripted(*inputs), module(*inputs), 1e-6)


@pytest.mark.parametrize("dtype", HALVES)
def test_autocast_casts_what_softmax_attention_casts(dtype):
    (q, k, v), options = problem()
    with torch.autocast("cpu", dtype=dtype):
        out = op(q.float(), k.float(), v.half(), **options)
        assert op(q, k, v, **options).dtype == torch.float64  # left alone
    q, k, v = q.float().to(dtype), k.float().to(dtype), v.half().to(dtype)
    assert_identical(out, op(q, k, v, **(options | {"beta": options["beta"].float()})))


@pytest.mark.parametrize("is_causal", [False, True])
def test_create_graph_alone_works_and_double_backward_is_refused_by_name(is_causal):
    tensors, options = problem(SELF, is_causal=is_causal)
    leaves = [t.requires_grad_() for t in (*tensors, options["beta"])]
    loss = op(*tensors, **options).square().sum()
    plain = torch.autograd.grad(loss, leaves, retain_graph=True)
    recorded = torch.autograd.grad(loss, leaves, create_graph=True)
    for a, b in zip(recorded, plain, strict=True):
        assert_identical(a.detach(), b)
    message = "attention_bn: double backward is not supported; use attention_bn_ref"
    with pytest.raises(NotImplementedError, match=message):
        torch.autograd.grad(recorded[0].sum(), leaves[1])


def test_forward_mode_is_refused():
    (q, k, v), options = problem()
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(q, torch.ones_like(q))
        with pytest.raises(NotImplementedError, match="forward-mode AD is not supported"):
            op(dual, k, v, **options)


# Errors: totals 10 and 15, H = 4, Hk = 2, D = 4, Dv = 3; each case replaces some arguments

DTYPE = "one dtype in {float16, bfloat16, float32, float64}, but got"
HEADS = "query heads to equal 2 key heads (pass enable_gqa=True if a multiple is intended), but got"
OFFSETS = "int32 [B + 1] on {}, but got"

BAD = [
    (
        {"query": torch.zeros(1, 10, 4, 4, dtype=torch.float64)},
        "query, key, value of shape [total, heads, width], but got [1, 10, 4, 4], [15, 2, 4], ",
    ),
    ({"query": torch.zeros(10, 4, 4)}, f"query, key, value of {DTYPE} Float, Double, Double"),
    (
        {"query": torch.zeros(10, 4, 5, dtype=torch.float64)},
        "query and key of equal width >= 1, but got 5, 4",
    ),
    ({"query": torch.zeros(10, 3, 4, dtype=torch.float64)}, f"3 {HEADS}"),
    ({"enable_gqa": False}, f"4 {HEADS}"),
    (
        {"key": torch.zeros(14, 2, 4, dtype=torch.float64)},
        "as many keys as values, but got [14, 2, 4] and [15, 2, 3]",
    ),
    (
        {"value": torch.zeros(15, 1, 3, dtype=torch.float64)},
        "equal key and value lengths and heads, but got",
    ),
    ({"beta": torch.ones(3)}, "beta floating of shape [], [1] or [4], but got Float [3]"),
    ({"beta_value": 0.5}, "beta_value=1.0 when beta is given, but got 0.5"),
    ({"beta": None, "beta_value": torch.nan}, "a finite beta_value, but got nan"),
    ({"eps": -1.0}, "finite eps >= 0, but got -1"),
    ({"scale": torch.inf}, "a finite scale, but got inf"),
    ({"cu_seqlens_q": torch.tensor([0, 10])}, f"cu_seqlens_q {OFFSETS} Long [2]"),
    (
        {"cu_seqlens_q": torch.tensor([[0, 10]], dtype=torch.int32)},
        f"cu_seqlens_q {OFFSETS} Int [1, 2]",
    ),
    (
        {"cu_seqlens_k": torch.tensor([0, 15], dtype=torch.int32)},
        "cu_seqlens_q and cu_seqlens_k of one size, but got [7] and [2]",
    ),
    ({"cu_seqlens_k": torch.zeros(7)}, f"cu_seqlens_k {OFFSETS} Float [7]"),
    (
        dict.fromkeys(("cu_seqlens_q", "cu_seqlens_k"), torch.zeros(0, dtype=torch.int32)),
        f"cu_seqlens_q {OFFSETS} Int [0]",
    ),
    ({"max_q": -1}, "max_q and max_k >= 0, but got -1 and 7"),
    (
        {"is_causal": True},
        "equal query and key lengths with is_causal, but got max_q=4 and max_k=7",
    ),
]

# what only the numbers show
BAD_NUMBERS = [
    {"cu_seqlens_q": offsets((3, 2, 0, 0, 1, 3))},
    {"cu_seqlens_q": offsets((3, 2, 0, 0, 1, 5))},
    {"cu_seqlens_q": offsets((3, 3, -1, 0, 1, 4))},
    {"cu_seqlens_k": offsets((5, 0, 2, 0, 1, 7)) + 1},
    {"max_q": 3},
    {"max_k": 6},
]


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("change, message", BAD)
def test_a_wrong_argument_is_named(change, message, device):
    (q, k, v), options = problem()
    arguments = {"query": q, "key": k, "value": v} | options | change
    moved = {n: t.to(device) if torch.is_tensor(t) else t for n, t in arguments.items()}
    message = message.replace("on {}", f"on {device}")
    expected = re.escape(f"attention_bn_varlen: expected {message}")
    with pytest.raises((RuntimeError, ValueError), match=f"^{expected}"):
        op(**moved)


@pytest.mark.parametrize("change", BAD_NUMBERS, ids=lambda c: "-".join(c))
def test_wrong_offsets_are_named(change):
    (q, k, v), options = problem()
    (name,) = change
    sizes = {"q": (10, 4), "k": (15, 7)}[name[-1]]
    total, longest = sizes[0], change[name] if name.startswith("max") else sizes[1]
    message = (
        f"cu_seqlens_{name[-1]} ascending from 0 to {total} in steps of at most {longest}, but"
    )
    with pytest.raises(ValueError, match=f"^attention_bn_varlen: expected {message}"):
        op(q, k, v, **(options | change))


def test_causality_wants_equal_lengths():
    tensors, options = problem(((3, 2), (2, 3)))
    message = r"equal query and key lengths with is_causal, but got cu_seqlens_q \[0, 3, 5\] and"
    with pytest.raises(ValueError, match=f"^attention_bn_varlen: expected {message}"):
        op(*tensors, **options, is_causal=True)


@pytest.mark.parametrize("moved", ["query", "key", "value", "beta", "cu_seqlens_q", "cu_seqlens_k"])
def test_devices_do_not_mix(moved):
    (q, k, v), options = problem()
    arguments = {"query": q, "key": k, "value": v} | options
    arguments[moved] = arguments[moved].to("meta")
    with pytest.raises(RuntimeError, match="attention_bn_varlen: expected .* but got .*meta"):
        op(**arguments)
