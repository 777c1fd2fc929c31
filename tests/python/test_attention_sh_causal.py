"""Causal attention_sh: finished windows pooled, the query's own window token by token."""

import pytest
import sh_reference
import torch
from attention_bn_cases import (
    DTYPES,
    Shape,
    assert_close,
    assert_identical,
    cast,
    evaluate,
)
from attention_sh_cases import MASKS, NORMS, SQUARE, WINDOWS, op, problem, ref

attention_bn = torch.ops.kktorch.attention_bn

# What happens to the remainder of the keys is a matter of windows that end: see the last test
CAUSAL_WINDOWS = [name for name in WINDOWS if "drop" not in name]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("windows", CAUSAL_WINDOWS)
@pytest.mark.parametrize("mask", MASKS)
def test_rows_are_those_of_the_definition(mask, windows, norm):
    tensors, options = problem(SQUARE, "prefix", mask, windows, norm)
    expected = sh_reference.attention_sh(*tensors, **options)
    assert_close(op(*tensors, **options), expected, 1e-10)
    for literal in (False, True):
        assert_close(ref(*tensors, **options, literal=literal), expected, 1e-10)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("offset", [0, 1, 6, 9, 30])
@pytest.mark.parametrize("windows", ["3", "3,2-special", "3,2-counted", "2,4-drop"])
@pytest.mark.parametrize("mask", ["none", "padding"])
def test_an_offset_moves_the_queries(mask, windows, offset, norm):
    """From the first window to beyond the last key, whose short window is pooled then."""
    shape = SQUARE._replace(M=4)
    tensors, options = problem(shape, "prefix", mask, windows, norm, query_offset=offset)
    expected = sh_reference.attention_sh(*tensors, **options)
    assert_close(op(*tensors, **options), expected, 1e-10)
    assert_close(ref(*tensors, **options), expected, 1e-10)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("mask", ["none", "padding"])
@pytest.mark.parametrize("scale", [1, 11, 12, 50])
def test_smallest_and_largest_windows_are_plain_causal_attention(scale, mask, norm):
    (q, k, v), options = problem(SQUARE, "prefix", mask, norm=norm, scales=[scale])
    plain = {n: options[n] for n in ("beta", "key_padding_mask", "use_std") if n in options}
    if norm == "plain":
        plain |= {"beta_value": 0.0, "use_std": False}
    expected = attention_bn(q, k, v, **plain, is_causal=True, enable_gqa=True)
    assert_close(op(q, k, v, **options), expected, 1e-12)


@pytest.mark.parametrize("norm", NORMS)
def test_windows_of_one_token_take_float_masks(norm):
    (q, k, v), options = problem(SQUARE, "prefix", "padding", norm=norm, scales=[1])
    options["attn_mask"] = torch.randn(11, 11, dtype=torch.float64)
    expected = sh_reference.attention_sh(q, k, v, **options)
    assert_close(op(q, k, v, **options), expected, 1e-10)


@pytest.mark.parametrize("i", [1, 2, 5, 6, 10])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("windows", ["2,1", "3,2-special", "3,2-counted", "2,4-drop"])
@pytest.mark.parametrize("mask", ["none", "padding", "bool[M,N]"])
def test_the_future_does_not_touch_the_past(mask, windows, dtype, i):
    for norm in ("plain", "bn"):
        (q, k, v), options = cast(dtype, *problem(SQUARE, "prefix", mask, windows, norm))
        before = op(q, k, v, **options)
        changed = [t.clone() for t in (q, k, v)]
        for t in changed:
            t[:, :, i:] = 7 - 5 * t[:, :, i:]
        after = op(*changed, **options)
        assert_identical(after[:, :, :i], before[:, :, :i])
        assert not torch.equal(after, before)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("i", [1, 4, 10])
def test_the_past_has_no_gradient_in_the_future(i, norm):
    tensors, options = problem(SQUARE, "prefix", "none", "3,2-special", norm)
    q, k, v = (t.requires_grad_() for t in tensors)
    loss = op(q, k, v, **options)[:, :, :i].square().sum()
    grads = torch.autograd.grad(loss, (q, k, v))
    assert not any(grad[:, :, i:].any() for grad in grads)
    assert grads[2][:, :, :i].any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", NORMS)
def test_one_visible_key_is_its_value(norm, dtype):
    (q, k, v), options = cast(dtype, *problem(SQUARE, "prefix", norm=norm, windows="3"))
    out = op(q, k, v, **options)
    assert_identical(out[:, :, :1], v[:, :, :1].repeat_interleave(2, 1))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("windows", ["2,1", "3,2-special", "3,2-counted"])
@pytest.mark.parametrize("chunk", [1, 3])
def test_chunks_at_their_offset_are_rows_of_the_whole(chunk, windows, norm):
    (q, k, v), options = problem(SQUARE, "prefix", "padding", windows, norm)
    rows = [
        op(q[:, :, i : i + chunk], k, v, **options, query_offset=i) for i in range(0, 11, chunk)
    ]
    assert_close(torch.cat(rows, 2), op(q, k, v, **options), 1e-12)


@pytest.mark.parametrize("norm", NORMS)
def test_repeated_tokens_show_which_windows_are_pooled(norm):
    """Tokens equal inside windows of 3, counted: a pooled window is its three tokens."""
    shape = SQUARE._replace(M=12, N=4)
    (q, k, v), options = problem(shape, "prefix", norm=norm, query_offset=0)
    k, v = (t.repeat_interleave(3, 2) for t in (k, v))
    counted = op(q, k, v, **(options | {"scales": [3], "count_weighting": True}))
    assert_close(counted, op(q, k, v, **(options | {"scales": [1]})), 1e-10)


@pytest.mark.parametrize("tail", ["ceil", "drop"])
@pytest.mark.parametrize("norm", NORMS)
def test_a_row_does_not_know_how_many_keys_follow(norm, tail):
    """Row i of a sequence is row i of every longer one, where its window may be complete."""
    (q, k, v), options = problem(SQUARE, "prefix", norm=norm, scales=[3, 2], tail=tail)
    whole = op(q, k, v, **options)
    for n in (6, 7, 8, 10):
        part = op(q[:, :, :n], k[:, :, :n], v[:, :, :n], **options)
        assert_close(part, whole[:, :, :n], 1e-12)


@pytest.mark.parametrize("norm", NORMS)
def test_padding_in_front_leaves_rows_without_a_key(norm):
    tensors, options = problem(SQUARE, "prefix", norm=norm, scales=[3, 2])
    padding = (torch.arange(11) < 4).expand(2, -1)
    result = evaluate(op, tensors, options | {"key_padding_mask": padding})
    assert not result["out"][:, :, :4].any() and result["out"][:, :, 4:].any()
    for name in ("query", "key", "value"):
        assert not result[name][:, :, :4].any() and result[name].isfinite().all(), name


@pytest.mark.parametrize("norm", ["plain", "bn"])
@pytest.mark.parametrize("special, count_weighting", [(0, False), (3, True)])
def test_long_sequences_cross_every_block(special, count_weighting, norm):
    """A dozen windows, a hundred tokens, neither a multiple of anything; gradients too."""
    how = {"scales": [7], "num_special": special, "count_weighting": count_weighting}
    shape = Shape(B=1, H=2, Hk=1, M=101, N=101, D=5, Dv=3)
    tensors, options = problem(shape, "prefix", "padding", norm=norm, **how)
    expected = evaluate(sh_reference.attention_sh, tensors, options)
    assert_close(evaluate(op, tensors, options), expected, 1e-9)
