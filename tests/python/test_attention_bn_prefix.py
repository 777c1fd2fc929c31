"""Prefix statistics of attention_bn: causal in values, statistics and gradients."""

import pytest
import torch
from attention_bn_cases import DTYPES, Shape, assert_close, assert_identical, cast, op, problem

SQUARE = Shape(B=2, H=2, Hk=1, M=70, N=70, D=8, Dv=8)


@pytest.mark.parametrize("mask", ["none", "padding", "weight"])
def test_row_i_is_attention_over_the_first_keys(mask):
    """The loop over rows, each with global statistics of the keys it sees."""
    (q, k, v), options = problem(SQUARE._replace(M=12, N=12), "prefix", mask)
    plain = {name: o for name, o in options.items() if name != "is_causal"}
    rows = []
    for i in range(12):
        seen = {name: o[:, : i + 1] for name, o in plain.items() if name.startswith("key_")}
        rows.append(op(q[:, :, i : i + 1], k[:, :, : i + 1], v[:, :, : i + 1], **(plain | seen)))
    assert_close(op(q, k, v, **options), torch.cat(rows, 2), 1e-9)


@pytest.mark.parametrize("i", [1, 33, 64, 69])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mask", ["none", "all"])
def test_the_future_does_not_touch_the_past(dtype, mask, i):
    (q, k, v), options = cast(dtype, *problem(SQUARE, "prefix", mask))
    before = op(q, k, v, **options)
    changed = [t.clone() for t in (q, k, v)]
    for t in changed:
        t[:, :, i:] = 7 - 5 * t[:, :, i:].flip(2)
    if mask == "all":
        options["key_weight"] = options["key_weight"].clone()
        options["key_weight"][:, i:] += 3
    after = op(*changed, **options)
    assert_identical(after[:, :, :i], before[:, :, :i])
    assert not torch.equal(after, before)


@pytest.mark.parametrize("i", [2, 33, 69])
def test_the_past_has_no_gradient_in_the_future(i):
    tensors, options = problem(SQUARE, "prefix", "padding")
    q, k, v = (t.requires_grad_() for t in tensors)
    grads = torch.autograd.grad(op(q, k, v, **options)[:, :, :i].square().sum(), (q, k, v))
    for grad in grads:
        assert not grad[:, :, i:].any()
        assert grad[:, :, :i].any()


@pytest.mark.parametrize("stats", ["prefix", "support", "global"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_one_visible_key_is_its_value(dtype, stats):
    (q, k, v), options = cast(dtype, *problem(SQUARE, "prefix"))
    out = op(q, k, v, **options, stats=stats)
    assert_identical(out[:, :, :1], v[:, :, :1].expand(-1, 2, -1, -1))


@pytest.mark.parametrize("chunk", [1, 3, 69, 70])
def test_chunks_at_their_offset_are_rows_of_the_whole(chunk):
    (q, k, v), options = problem(SQUARE, "prefix", "padding")
    rows = [
        op(q[:, :, i : i + chunk], k, v, **options, query_offset=i) for i in range(0, 70, chunk)
    ]
    assert_close(torch.cat(rows, 2), op(q, k, v, **options), 1e-12)


def test_an_offset_beyond_the_keys_sees_all_of_them():
    (q, k, v), options = problem(mode="prefix", query_offset=100)
    options.pop("is_causal"), options.pop("query_offset")
    everything = op(q, k, v, **options)
    assert_close(op(q, k, v, **options, is_causal=True, query_offset=100), everything, 1e-12)


def test_leading_padding_leaves_rows_without_a_key():
    (q, k, v), options = problem(SQUARE._replace(M=6, N=6), "prefix")
    padding = torch.tensor([[True, True, False, False, False, False]] * 2)
    out = op(q, k, v, **options, key_padding_mask=padding)
    assert not out[:, :, :2].any()
    cut = op(q[:, :, 2:], k[:, :, 2:], v[:, :, 2:], **options)
    assert_close(out[:, :, 2:], cut, 1e-12)
