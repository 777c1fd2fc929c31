"""Strides, expanded inputs, output layout, sizes 0 and 1 of attention_bn, forward and backward."""

import pytest
import torch
from attention_bn_cases import (
    DTYPES,
    MODES,
    Shape,
    assert_close,
    assert_identical,
    cast,
    cotangent,
    evaluate,
    op,
    problem,
)


def heads_last(t):
    """[B, H, L, D] stored as (B, L, H, D), as projections leave it."""
    return t.transpose(1, 2).contiguous().transpose(1, 2)


def width_strided(t):
    """Channels two apart."""
    return t.repeat_interleave(2, -1)[..., ::2]


def width_outermost(t):
    return t.movedim(-1, 0).contiguous().movedim(0, -1)


@pytest.mark.parametrize("layout", [heads_last, width_strided, width_outermost])
@pytest.mark.parametrize("mode", MODES)
def test_strides_do_not_matter(mode, layout):
    tensors, options = problem(Shape(H=4, Hk=2, D=8, Dv=8), mode, "all")
    expected = evaluate(op, tensors, options)
    strided = [layout(t) for t in tensors]
    assert not any(t.is_contiguous() for t in strided)
    assert_close(evaluate(op, strided, options), expected, 1e-12)
    # masks and weights too
    options = {
        name: t.mT.contiguous().mT if torch.is_tensor(t) and t.dim() > 1 else t
        for name, t in options.items()
    }
    grad_out = layout(cotangent(expected["out"].shape))
    assert_close(evaluate(op, strided, options, grad_out), expected, 1e-12)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("mask", ["padding", "weight"])
def test_strides_of_one_mask_do_not_matter(mode, mask):
    """Alone: combined masks are a new tensor, whatever the strides of its parts."""
    tensors, options = problem(Shape(H=4, Hk=2, D=8, Dv=8), mode, mask)
    expected = evaluate(op, tensors, options)
    options = {
        name: t.mT.contiguous().mT if torch.is_tensor(t) and t.dim() > 1 else t
        for name, t in options.items()
    }
    assert_close(evaluate(op, tensors, options), expected, 1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_expanded_inputs(mode):
    """One key sequence for all samples and heads, one query for all rows, one row of the mask."""
    (q, k, v), options = problem(mode=mode, mask="bool[M,N]")
    q, k, v = q[:, :, :1].expand_as(q), k[:1, :1].expand_as(k), v[:1, :1].expand_as(v)
    options["attn_mask"] = options["attn_mask"][1:2].expand(5, -1)
    options["beta"] = options["beta"][:1].expand(2)
    packed = {n: t.contiguous() if torch.is_tensor(t) else t for n, t in options.items()}
    expected = evaluate(op, [t.contiguous() for t in (q, k, v)], packed)
    assert_close(evaluate(op, (q, k, v), options), expected, 1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", MODES)
def test_a_broadcast_cotangent(mode, dtype):
    """The backward pass of sum() hands over strides 0."""
    tensors, options = cast(dtype, *problem(mode=mode))
    shape = (2, 2, 5, 3)
    broadcast, packed = torch.ones((), dtype=dtype).expand(shape), torch.ones(shape, dtype=dtype)
    actual = evaluate(op, tensors, options, broadcast)
    assert_identical(actual, evaluate(op, tensors, options, packed))


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", MODES)
def test_output_is_stored_heads_last(mode, dtype, device):
    tensors, options = cast(dtype, *problem(mode=mode))
    options["beta"] = options["beta"].to(device)
    out = op(*(heads_last(t).to(device) for t in tensors), **options)
    assert out.shape == (2, 2, 5, 3) and out.dtype == dtype and out.device.type == device
    assert out.transpose(1, 2).is_contiguous()


@pytest.mark.parametrize("mode", MODES)
def test_inputs_are_left_alone_and_not_returned(mode):
    tensors, options = problem(mode=mode, mask="all")
    before = [t.clone() for t in tensors]
    out = evaluate(op, tensors, options)["out"]
    assert_identical(list(tensors), before)
    assert out.data_ptr() not in {t.data_ptr() for t in tensors}


# Sizes 0 and 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("mask", ["none", "padding", "bool[B,H,M,N]", "float[B,1,M,N]"])
@pytest.mark.parametrize("empty", ["B", "M", "N", "Dv", "BMN"])
def test_empty_sizes_give_zeros(empty, mask, mode, dtype):
    shape = Shape(M=5, N=5)._replace(**dict.fromkeys(("Dv",) if empty == "Dv" else empty, 0))
    named = ("query", "key", "value", "beta", "attn_mask")
    tensors, options = cast(dtype, *problem(shape, mode, mask))
    if not torch.is_floating_point(options.get("attn_mask", torch.ones(()))):
        named = named[:4]
    for wrt in (named, named[:4]):
        result = evaluate(op, tensors, options, wrt=wrt)
        assert result.pop("out").shape == (shape.B, shape.H, shape.M, shape.Dv)
        for name, tensor in result.items():
            expected = options.get(name, dict(zip(named, tensors, strict=False)).get(name))
            assert_identical(tensor, torch.zeros_like(expected))
    assert not op(*tensors, **options).any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("use_std", [True, False])
def test_a_single_key_is_its_value(use_std, mode, dtype):
    (q, k, v), options = cast(dtype, *problem(Shape(N=1), mode, use_std=use_std))
    result = evaluate(op, (q, k, v), options)
    assert_identical(result["out"], v.expand(2, 2, 5, 3))
    assert not result["query"].any() and not result["key"].any() and not result["beta"].any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", ["global", "prefix", "support"])
def test_a_single_valid_key_is_its_value(mode, dtype):
    (q, k, v), options = cast(dtype, *problem(mode=mode))
    padding = (torch.arange(7) != 1).expand(2, 7)
    result = evaluate(op, (q, k, v), options | {"key_padding_mask": padding})
    assert_identical(result["out"], v[:, :, 1:2].expand(2, 2, 5, 3))
    assert not result["query"].any() and not result["key"].any() and not result["beta"].any()
