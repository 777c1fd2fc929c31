"""Padding, strides, expanded inputs, sizes 0 and 1, and wrong arguments of linear_attention."""

import math
import re
from itertools import product

import pytest
import torch
from attention_bn_cases import (
    DTYPES,
    Shape,
    assert_close,
    assert_identical,
    cast,
    cotangent,
    evaluate,
)
from linear_attention_cases import FORMS, op, problem

# Padding


@pytest.mark.parametrize("form", FORMS)
def test_a_padded_batch_is_the_loop_over_its_samples(form):
    lengths = (7, 4, 1)
    (q, k, v), options = problem(Shape(B=3, M=7), form)
    padding = torch.arange(7) >= torch.tensor(lengths)[:, None]
    out = op(q, k, v, **options, key_padding_mask=padding)
    for b, n in enumerate(lengths):
        rows = n if form == "causal" else 7
        sample = op(q[b : b + 1, :, :rows], k[b : b + 1, :, :n], v[b : b + 1, :, :n], **options)
        assert_close(out[b : b + 1, :, :rows], sample, 1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bn", [True, False])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rubbish", [torch.nan, torch.inf, 6e4])
def test_padding_may_hold_anything(rubbish, form, bn, dtype):
    beta = ("[H]", 0.7) if bn else ("fixed", 1.0)
    (q, k, v), options = cast(dtype, *problem(form=form, mask="padding", beta=beta, bn=bn))
    padding = options["key_padding_mask"]
    spoilt = [t.masked_fill(padding[:, None, :, None], rubbish) for t in (k, v)]
    clean = evaluate(op, (q, k, v), options)
    assert_identical(evaluate(op, (q, *spoilt), options), clean)
    dead = padding[:, None, :, None].expand_as(k)
    assert not clean["key"][dead].any() and not clean["value"][dead[..., :3]].any()


@pytest.mark.parametrize("form", FORMS)
def test_weight_zero_is_padding(form):
    (q, k, v), options = problem(form=form, mask="padding")
    padding = options.pop("key_padding_mask")
    weight = (~padding).float()
    spoilt = [t.masked_fill(padding[:, None, :, None], torch.nan) for t in (k, v)]
    padded = evaluate(op, (q, k, v), options | {"key_padding_mask": padding})
    assert_close(evaluate(op, (q, *spoilt), options | {"key_weight": weight}), padded, 1e-12)
    # a weight under padding is padding too
    both = {"key_padding_mask": padding, "key_weight": weight.masked_fill(padding, torch.nan)}
    assert_close(evaluate(op, (q, *spoilt), options | both), padded, 1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", FORMS)
def test_a_sample_without_a_valid_key_is_zero(form, dtype):
    tensors, options = cast(dtype, *problem(form=form))
    padding = torch.tensor([[True], [False]]).expand(2, 7)
    result = evaluate(op, tensors, options | {"key_padding_mask": padding})
    for name in ("out", "query", "key", "value"):
        assert not result[name][0].any(), name
        assert result[name][1].any() and result[name].isfinite().all(), name
    grad_out = cotangent(result["out"].shape, dtype)
    alone = evaluate(op, [t[1:] for t in tensors], options, grad_out[1:])
    # one rounding to dtype, after sums whose order may differ
    assert_close(result["beta"], alone["beta"], 8 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("name", ["query", "key", "value"])
@pytest.mark.parametrize("length", [1, 7])
@pytest.mark.parametrize("form", FORMS)
def test_nan_in_a_valid_input_propagates(form, length, name):
    tensors, options = problem(Shape(M=length, N=length), form)
    named = dict(zip(("query", "key", "value"), tensors, strict=True))
    named[name][0, 0, 0] = torch.nan
    out = op(**named, **options)
    assert out[0, 0, 0].isnan().all() and out[1].isfinite().all() and out[0, 1].isfinite().all()


# Layout


def heads_last(t):
    """[B, H, L, D] stored as (B, L, H, D), as projections leave it."""
    return t.transpose(1, 2).contiguous().transpose(1, 2)


def width_strided(t):
    """Channels two apart."""
    return t.repeat_interleave(2, -1)[..., ::2]


@pytest.mark.parametrize("layout", [heads_last, width_strided])
@pytest.mark.parametrize("form", FORMS)
def test_strides_do_not_matter(form, layout):
    tensors, options = problem(Shape(H=4, Hk=2, D=8, Dv=8), form, "both")
    expected = evaluate(op, tensors, options)
    strided = [layout(t) for t in tensors]
    assert not any(t.is_contiguous() for t in strided)
    options = {
        name: t.mT.contiguous().mT if torch.is_tensor(t) and t.dim() > 1 else t
        for name, t in options.items()
    }
    grad_out = layout(cotangent(expected["out"].shape))
    assert_close(evaluate(op, strided, options, grad_out), expected, 1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_expanded_inputs_and_a_broadcast_cotangent(form):
    (q, k, v), options = problem(form=form)
    q, k, v = q[:, :, :1].expand_as(q), k[:1, :1].expand_as(k), v[:1, :1].expand_as(v)
    packed = [t.contiguous() for t in (q, k, v)]
    grad_out = torch.ones((), dtype=torch.float64).expand(op(q, k, v, **options).shape)
    expected = evaluate(op, packed, options, grad_out.contiguous())
    assert_close(evaluate(op, (q, k, v), options, grad_out), expected, 1e-12)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", FORMS)
def test_output_is_stored_heads_last(form, dtype, device):
    tensors, options = cast(dtype, *problem(Shape(M=7), form))
    options["beta"] = options["beta"].to(device)
    out = op(*(heads_last(t).to(device) for t in tensors), **options)
    assert out.shape == (2, 2, 7, 3) and out.dtype == dtype and out.device.type == device
    assert out.transpose(1, 2).is_contiguous()


@pytest.mark.parametrize("shape", [Shape(), Shape(1, 1, 1, 1, 1)])
@pytest.mark.parametrize("form", FORMS)
def test_inputs_are_left_alone_and_not_returned(form, shape):
    tensors, options = problem(shape, form, "both")
    before = [t.clone() for t in (*tensors, *filter(torch.is_tensor, options.values()))]
    out = evaluate(op, tensors, options)["out"]
    assert_identical([*tensors, *filter(torch.is_tensor, options.values())], before)
    assert out.data_ptr() not in {t.data_ptr() for t in tensors}


# Sizes 0 and 1


EMPTY = {"B": ["B"], "M": ["M"], "N": ["N"], "Dv": ["Dv"], "H": ["H", "Hk"], "BMN": ["B", "M", "N"]}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("mask", ["none", "both"])
@pytest.mark.parametrize(
    "form, empty", [*product(["global"], EMPTY), *product(["causal"], ("B", "N", "Dv", "H"))]
)
def test_empty_sizes_give_zeros(form, empty, mask, dtype):
    shape = Shape()._replace(**dict.fromkeys(EMPTY[empty], 0))
    tensors, options = cast(dtype, *problem(shape, form, mask))
    result = evaluate(op, tensors, options)
    assert result["out"].shape == (shape.B, shape.H, tensors[0].shape[2], shape.Dv)
    assert not any(tensor.any() for tensor in result.values())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bn", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_a_single_key_is_its_value(form, bn, dtype):
    beta = ("[H]", 0.7) if bn else ("fixed", 1.0)
    (q, k, v), options = cast(dtype, *problem(Shape(N=1), form, beta=beta, bn=bn))
    result = evaluate(op, (q, k, v), options)
    assert_identical(result.pop("out"), v.expand(2, 2, q.shape[2], 3).contiguous())
    result.pop("value")
    assert not any(gradient.any() for gradient in result.values())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", FORMS)
def test_a_single_valid_key_is_its_value(form, dtype):
    (q, k, v), options = cast(dtype, *problem(Shape(M=7), form))
    padding = (torch.arange(7) != 1).expand(2, 7)
    result = evaluate(op, (q, k, v), options | {"key_padding_mask": padding})
    first = 1 if form == "causal" else 0
    assert not result["out"][:, :, :first].any()
    assert_identical(result["out"][:, :, first:], v[:, :, 1:2].expand(2, 2, 7 - first, 3))
    assert not result["query"].any() and not result["key"].any() and not result["beta"].any()


# Wrong arguments


def zeros(*shape, dtype=torch.float64, **kwargs):
    return torch.zeros(shape, dtype=dtype, **kwargs)


# The good call: B = 2, H = 4, Hk = 2, M = 5, N = 7, D = 4, Dv = 3. Each case replaces arguments.
WRONG = [
    (
        {"query": zeros(2, 5, 4)},
        RuntimeError,
        "expected query, key, value of shape [B, heads, length, width], but got [2, 5, 4], "
        "[2, 2, 7, 4], [2, 2, 7, 3]",
    ),
    (
        {"query": zeros(2, 4, 5, 4, dtype=torch.float32)},
        RuntimeError,
        "expected query, key, value of one dtype in {float16, bfloat16, float32, float64}, "
        "but got Float, Double, Double",
    ),
    ({"query": zeros(3, 4, 5, 4)}, RuntimeError, "expected equal batch sizes, but got 3, 2, 2"),
    (
        {"value": zeros(2, 2, 6, 3)},
        RuntimeError,
        "expected equal key and value lengths and heads, but got",
    ),
    (
        {"query": zeros(2, 4, 5, 3)},
        RuntimeError,
        "expected query and key of equal width >= 1, but got 3, 4",
    ),
    *(
        (
            {"query": zeros(2, heads, 5, 4), "enable_gqa": gqa},
            RuntimeError,
            f"expected {heads} query heads to equal 2 key heads (pass enable_gqa=True if a "
            "multiple is intended), but got",
        )
        for heads, gqa in ((4, False), (3, True))
    ),
    *(
        (
            {"beta": beta},
            RuntimeError,
            f"expected beta floating of shape [], [1] or [2], but got {got}",
        )
        for beta, got in (
            (torch.ones(4), "Float [4]"),
            (torch.ones(1, 2), "Float [1, 2]"),
            (torch.ones(2, dtype=torch.int64), "Long [2]"),
        )
    ),
    (
        {"beta": torch.ones(2), "beta_value": 0.5},
        ValueError,
        "expected beta_value=1.0 when beta is given, but got 0.5",
    ),
    ({"beta_value": math.nan}, ValueError, "expected a finite beta_value, but got nan"),
    (
        {"key_padding_mask": zeros(2, 7)},
        RuntimeError,
        "expected key_padding_mask bool [2,7], True = ignore, but got Double [2, 7]",
    ),
    (
        {"key_weight": torch.ones(2, 7, requires_grad=True)},
        RuntimeError,
        "expected key_weight floating [2,7] without requires_grad, but got Float [2, 7]",
    ),
    *(
        ({"eps": eps}, ValueError, f"expected finite eps >= 0, but got {eps}")
        for eps in (-0.5, math.nan, math.inf)
    ),
    ({"feature_map": "relu"}, ValueError, "expected feature_map 'elu1', but got 'relu'"),
    (
        {"is_causal": True},
        ValueError,
        "expected equal query and key lengths with is_causal=True, but got M=5 and N=7",
    ),
]


def to(device, value):
    if not torch.is_tensor(value):
        return value
    return value.detach().to(device).requires_grad_(value.requires_grad)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("change, exception, message", WRONG)
def test_a_wrong_argument_is_named(change, exception, message, device):
    (q, k, v), _ = problem(Shape(H=4))
    arguments = {"query": q, "key": k, "value": v, "enable_gqa": True} | change
    with pytest.raises(Exception, match=re.escape(f"linear_attention: {message}")) as caught:
        op(**{name: to(device, argument) for name, argument in arguments.items()})
    assert caught.type is exception


@pytest.mark.parametrize("moved", ["query", "key", "value", "beta", "key_padding_mask"])
def test_devices_do_not_mix(moved):
    (q, k, v), options = problem(mask="padding")
    arguments = {"query": q, "key": k, "value": v} | options
    arguments[moved] = arguments[moved].to("meta")
    with pytest.raises(RuntimeError, match="linear_attention: expected .* but got .*meta"):
        op(**arguments)


def test_the_good_call_is_good():
    """What the cases above change is accepted as it stands."""
    (q, k, v), _ = problem(Shape(H=4))
    good = {"beta": torch.ones(2), "beta_value": 1.0, "eps": 0.0, "feature_map": "elu1"}
    op(q, k, v, **good, key_weight=torch.ones(2, 7), enable_gqa=True)
