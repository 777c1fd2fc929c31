"""Padded keys of attention_bn: absent from values, statistics and gradients, whatever they hold."""

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


@pytest.mark.parametrize("mode", MODES)
def test_a_padded_batch_is_the_loop_over_its_samples(mode):
    lengths = (7, 4, 1)
    (q, k, v), options = problem(Shape(B=3, M=7), mode)
    padding = torch.arange(7) >= torch.tensor(lengths)[:, None]
    batch = evaluate(op, (q, k, v), options | {"key_padding_mask": padding})

    def loop(query, key, value, **rest):
        samples = [
            op(query[b : b + 1], key[b : b + 1, :, :n], value[b : b + 1, :, :n], **rest)
            for b, n in enumerate(lengths)
        ]
        return torch.cat(samples)

    offset = {"query_offset": 0} if options.get("is_causal") else {}
    assert_close(batch, evaluate(loop, (q, k, v), options | offset), 1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("rubbish", [torch.nan, torch.inf, 6e4])
def test_padding_may_hold_anything(mode, dtype, rubbish):
    (q, k, v), options = cast(dtype, *problem(mode=mode, mask="padding"))
    padding = options["key_padding_mask"]
    spoilt = [t.masked_fill(padding[:, None, :, None], rubbish) for t in (k, v)]
    clean = evaluate(op, (q, k, v), options)
    assert_identical(evaluate(op, (q, *spoilt), options), clean)
    dead = padding[:, None, :, None].expand_as(k)
    assert not clean["key"][dead].any() and not clean["value"][dead[..., :3]].any()


@pytest.mark.parametrize("mode", MODES)
def test_weight_zero_is_padding(mode):
    (q, k, v), options = problem(mode=mode, mask="padding")
    padding = options.pop("key_padding_mask")
    weight = (~padding).float()
    spoilt = [t.masked_fill(padding[:, None, :, None], torch.nan) for t in (k, v)]
    padded = evaluate(op, (q, k, v), options | {"key_padding_mask": padding})
    assert_close(evaluate(op, (q, *spoilt), options | {"key_weight": weight}), padded, 1e-12)
    # a weight under padding is padding too
    weight.masked_fill_(padding, torch.nan)
    both = {"key_padding_mask": padding, "key_weight": weight}
    assert_close(evaluate(op, (q, *spoilt), options | both), padded, 1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", MODES)
def test_a_sample_without_a_valid_key_is_zero(mode, dtype):
    tensors, options = cast(dtype, *problem(mode=mode))
    padding = torch.tensor([[True], [False]]).expand(2, 7)
    result = evaluate(op, tensors, options | {"key_padding_mask": padding})
    for name in ("out", "query", "key", "value"):
        assert not result[name][0].any(), name
        assert result[name][1].any() and result[name].isfinite().all(), name
    grad_out = cotangent(result["out"].shape, dtype)
    alone = evaluate(op, [t[1:] for t in tensors], options, grad_out[1:])
    # one rounding to dtype, after sums whose order may differ
    assert_close(result["beta"], alone["beta"], 8 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("mode", MODES)
def test_nan_in_a_valid_key_propagates(mode):
    (q, k, v), options = problem(mode=mode)
    k[0, 0, 2, 1] = torch.nan
    out = op(q, k, v, **options)
    assert out[0, 0, -1].isnan().all() and out[1].isfinite().all() and out[0, 1].isfinite().all()
