"""attention_bn_varlen: the loop of attention_bn over packed sequences."""

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

    batch = attention_bn(
        padded(q).nan_to_num(),
        padded(k),
        padded(v),
        options["beta"],
        padding,
        is_causal=is_causal,
        enable_gqa=True,
    )
    assert_close(op(q, k, v, **options), batch.transpose(1, 2)[~padding], 1e-12)


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


# Errors: totals 10 and 15, H = 4, Hk = 2, D = 4, Dv = 3; each case replaces some arguments

BAD = [
    {"query": torch.zeros(1, 10, 4, 4, dtype=torch.float64)},
    {"query": torch.zeros(10, 4, 4)},
    {"query": torch.zeros(10, 4, 5, dtype=torch.float64)},
    {"query": torch.zeros(10, 3, 4, dtype=torch.float64)},
    {"key": torch.zeros(14, 2, 4, dtype=torch.float64)},
    {"value": torch.zeros(15, 1, 3, dtype=torch.float64)},
    {"enable_gqa": False},
    {"beta": torch.ones(3)},
    {"beta_value": 0.5},
    {"eps": -1.0},
    {"scale": torch.inf},
    {"cu_seqlens_q": torch.tensor([0, 10])},
    {"cu_seqlens_q": torch.tensor([[0, 10]], dtype=torch.int32)},
    {"cu_seqlens_k": torch.tensor([0, 15], dtype=torch.int32)},
    {"cu_seqlens_k": torch.zeros(7)},
    dict.fromkeys(("cu_seqlens_q", "cu_seqlens_k"), torch.zeros(0, dtype=torch.int32)),
]

# what only the numbers show
BAD_NUMBERS = [
    {"cu_seqlens_q": offsets((3, 2, 0, 0, 1, 3))},
    {"cu_seqlens_q": offsets((3, 2, 0, 0, 1, 5))},
    {"cu_seqlens_q": offsets((3, 3, -1, 0, 1, 4))},
    {"cu_seqlens_k": offsets((5, 0, 2, 0, 1, 7)) + 1},
    {"max_q": 3},
    {"max_k": 6},
    {"is_causal": True},
]


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("change", BAD, ids=lambda c: "-".join(c))
def test_a_wrong_argument_is_named(change, device):
    (q, k, v), options = problem()
    arguments = {"query": q, "key": k, "value": v} | options | change
    moved = {n: t.to(device) if torch.is_tensor(t) else t for n, t in arguments.items()}
    with pytest.raises(
        (RuntimeError, ValueError), match="^attention_bn_varlen: expected .*but got"
    ):
        op(**moved)


@pytest.mark.parametrize("change", BAD_NUMBERS, ids=lambda c: "-".join(c))
def test_wrong_offsets_are_named(change):
    (q, k, v), options = problem()
    with pytest.raises(
        (RuntimeError, ValueError), match="^attention_bn_varlen: expected .*but got"
    ):
        op(q, k, v, **(options | change))
