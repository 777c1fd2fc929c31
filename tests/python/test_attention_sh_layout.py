"""Strides, padding, sizes 0 and 1 of attention_sh, forward and backward."""

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
from attention_sh_cases import MODES, NORMS, op, problem


def heads_last(t):
    """[B, H, L, D] stored as (B, L, H, D), as projections leave it."""
    return t.transpose(1, 2).contiguous().transpose(1, 2)


def width_strided(t):
    """Channels two apart."""
    return t.repeat_interleave(2, -1)[..., ::2]


@pytest.mark.parametrize("layout", [heads_last, width_strided])
@pytest.mark.parametrize("mode", MODES)
def test_strides_do_not_matter(mode, layout):
    tensors, options = problem(mode=mode, mask="padding", windows="3,2-special")
    expected = evaluate(op, tensors, options)
    options["key_padding_mask"] = options["key_padding_mask"].T.contiguous().T
    grad_out = layout(cotangent(expected["out"].shape))
    actual = evaluate(op, [layout(t) for t in tensors], options, grad_out)
    assert_close(actual, expected, 1e-12)
    options["attn_mask"] = torch.ones(11, MODES[mode].M, dtype=torch.bool).T
    actual = evaluate(op, [layout(t) for t in tensors], options, grad_out)
    assert_close(actual, expected, 1e-12)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("mask", ["padding", "bool[M,N]"])
def test_expanded_inputs(mask, mode):
    (q, k, v), options = problem(mode=mode, mask=mask)
    k, v = torch.nan_to_num(k), torch.nan_to_num(v)
    q, k, v = q[:, :, :1].expand_as(q), k[:1, :1].expand_as(k), v[:1, :1].expand_as(v)
    for name in {"attn_mask", "key_padding_mask"} & options.keys():
        options[name] = options[name][1:2].expand(len(options[name]), -1)
    packed = {n: t.contiguous() if torch.is_tensor(t) else t for n, t in options.items()}
    expected = evaluate(op, [t.contiguous() for t in (q, k, v)], packed)
    assert_close(evaluate(op, (q, k, v), options), expected, 1e-12)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_broadcast_cotangent(dtype, mode):
    """The backward pass of sum() hands over strides 0."""
    tensors, options = cast(dtype, *problem(mode=mode))
    packed = torch.ones(2, 4, MODES[mode].M, 2, dtype=dtype)
    broadcast = torch.ones((), dtype=dtype).expand(packed.shape)
    actual = evaluate(op, tensors, options, broadcast)
    assert_identical(actual, evaluate(op, tensors, options, packed))


@pytest.mark.parametrize("scales", [[1], [2], [1, 3]])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_output_is_stored_heads_last(device, mode, scales):
    tensors, options = cast(torch.float32, *problem(mode=mode, scales=scales))
    options["beta"] = options["beta"].to(device)
    out = op(*(t.to(device) for t in tensors), **options)
    assert (
        out.shape == (2, 4, MODES[mode].M, 2)
        and out.dtype == torch.float32
        and out.device.type == device
    )
    assert out.transpose(1, 2).is_contiguous()


@pytest.mark.parametrize("mode", MODES)
def test_inputs_are_left_alone_and_not_returned(mode):
    tensors, options = problem(mode=mode, mask="padding", scales=[1])
    before = [t.clone() for t in tensors]
    out = evaluate(op, tensors, options)["out"]
    assert_identical(list(tensors), before)
    assert out.data_ptr() not in {t.data_ptr() for t in tensors}


# Padding


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("mode", MODES)
def test_a_padded_batch_is_the_loop_over_its_samples(mode, norm):
    lengths = (11, 7, 1)
    (q, k, v), options = problem(Shape(B=3, H=4, Hk=2, M=11, N=11), mode, norm=norm, scales=[3, 2])
    padding = torch.arange(11) >= torch.tensor(lengths)[:, None]
    batch = evaluate(op, (q, k, v), options | {"key_padding_mask": padding})
    offset = {"query_offset": 0} if mode == "prefix" else {}

    def loop(query, key, value, **rest):
        samples = [
            op(query[b : b + 1], key[b : b + 1, :, :n], value[b : b + 1, :, :n], **rest)
            for b, n in enumerate(lengths)
        ]
        return torch.cat(samples)

    assert_close(batch, evaluate(loop, (q, k, v), options | offset), 1e-12)


@pytest.mark.parametrize("rubbish", [torch.nan, torch.inf, 6e4])
@pytest.mark.parametrize("windows", ["2,1", "3,2-counted"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_padding_may_hold_anything(dtype, mode, windows, rubbish):
    for norm in ("plain", "bn"):
        (q, k, v), options = cast(dtype, *problem(mode=mode, windows=windows, norm=norm))
        padding = torch.zeros(2, 11, dtype=torch.bool)
        padding[0, 2:7], padding[1, 9:] = True, True
        options["key_padding_mask"] = padding
        dead = padding[:, None, :, None]
        clean = evaluate(op, (q, k, v), options)
        spoilt = [t.masked_fill(dead, rubbish) for t in (k, v)]
        assert_identical(evaluate(op, (q, *spoilt), options), clean)
        for name in ("key", "value"):
            assert not clean[name][dead.expand_as(clean[name])].any(), name


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_sample_without_a_valid_key_is_zero(dtype, mode, norm):
    tensors, options = cast(dtype, *problem(mode=mode, norm=norm))
    padding = torch.tensor([[True], [False]]).expand(2, 11)
    result = evaluate(op, tensors, options | {"key_padding_mask": padding})
    for name in ("out", "query", "key", "value"):
        assert not result[name][0].any(), name
        assert result[name][1].any() and result[name].isfinite().all(), name


def test_nan_in_a_valid_key_propagates():
    (q, k, v), options = problem(scales=[3])
    k[0, 0, 2, 1] = torch.nan
    out = op(q, k, v, **options)
    assert out[0, :2].isnan().all() and out[0, 2:].isfinite().all() and out[1].isfinite().all()


# Sizes 0 and 1


@pytest.mark.parametrize("norm", ["plain", "bn"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("mask", ["none", "padding", "bool[B,H,M,N]"])
@pytest.mark.parametrize("empty", ["B", "M", "N", "Dv", "BMN"])
def test_empty_sizes_give_zeros(empty, mask, mode, norm):
    shape = Shape(M=5, N=5)._replace(**dict.fromkeys(("Dv",) if empty == "Dv" else empty, 0))
    tensors, options = problem(shape, mode, mask, norm=norm)
    tensors = [torch.nan_to_num(t) for t in tensors]
    result = evaluate(op, tensors, options)
    named = dict(zip(("query", "key", "value"), tensors, strict=True)) | options
    assert result.pop("out").shape == (shape.B, shape.H, shape.M, shape.Dv)
    for name, tensor in result.items():
        assert_identical(tensor, torch.zeros_like(named[name]))
    assert not op(*tensors, **options).any()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_single_key_is_its_value(dtype, mode, norm):
    """Also that of queries long after it."""
    (q, k, v), options = cast(dtype, *problem(Shape(N=1), mode, norm=norm))
    result = evaluate(op, (q, k, v), options)
    assert_identical(result["out"], v.expand(2, 2, 5, 3))
    for name in {"query", "key", "beta"} & result.keys():
        assert not result[name].any(), name


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_single_window_has_no_gradient_but_that_of_its_values(dtype, norm):
    tensors, options = cast(dtype, *problem(norm=norm, scales=[11]))
    result = evaluate(op, tensors, options)
    for name in {"query", "key", "beta"} & result.keys():
        assert not result[name].any(), name
    assert result["value"].all()
