"""Every wrong argument of attention_bn: one message that says what was expected and what came."""

import math
import re

import pytest
import torch
from attention_bn_cases import op, problem, ref


def zeros(*shape, dtype=torch.float64, **kwargs):
    return torch.zeros(shape, dtype=dtype, **kwargs)


# The good call: B = 2, H = 2, M = 5, N = 7, D = 4, Dv = 3. Each case replaces some arguments.
CASES = [
    # shapes, dtypes
    (
        {"query": zeros(2, 5, 4)},
        RuntimeError,
        "expected query, key, value of shape [B, heads, length, width], but got [2, 5, 4], "
        "[2, 2, 7, 4], [2, 2, 7, 3]",
    ),
    (
        {"query": zeros(2, 2, 5, 4, dtype=torch.float32)},
        RuntimeError,
        "expected query, key, value of one dtype in {float16, bfloat16, float32, float64}, "
        "but got Float, Double, Double",
    ),
    (
        {
            "query": zeros(2, 2, 5, 4, dtype=torch.int64),
            "key": zeros(2, 2, 7, 4, dtype=torch.int64),
            "value": zeros(2, 2, 7, 3, dtype=torch.int64),
        },
        RuntimeError,
        "expected query, key, value of one dtype in {float16, bfloat16, float32, float64}, "
        "but got Long, Long, Long",
    ),
    ({"query": zeros(3, 2, 5, 4)}, RuntimeError, "expected equal batch sizes, but got 3, 2, 2"),
    (
        {"value": zeros(2, 2, 6, 3)},
        RuntimeError,
        "expected equal key and value lengths and heads, but got",
    ),
    (
        {"value": zeros(2, 1, 7, 3)},
        RuntimeError,
        "expected equal key and value lengths and heads, but got",
    ),
    (
        {"query": zeros(2, 2, 5, 3)},
        RuntimeError,
        "expected query and key of equal width >= 1, but got 3, 4",
    ),
    (
        {"query": zeros(2, 2, 5, 0), "key": zeros(2, 2, 7, 0)},
        RuntimeError,
        "expected query and key of equal width >= 1, but got 0, 0",
    ),
    (
        {"query": zeros(2, 4, 5, 4)},
        RuntimeError,
        "expected 4 query heads to equal 2 key heads (pass enable_gqa=True if a multiple is "
        "intended), but got",
    ),
    (
        {"query": zeros(2, 3, 5, 4), "enable_gqa": True},
        RuntimeError,
        "expected 3 query heads to equal 2 key heads (pass enable_gqa=True if a multiple is "
        "intended), but got",
    ),
    # beta
    (
        {"beta": torch.ones(3)},
        RuntimeError,
        "expected beta floating of shape [], [1] or [2], but got Float [3]",
    ),
    (
        {"beta": torch.ones(1, 2)},
        RuntimeError,
        "expected beta floating of shape [], [1] or [2], but got Float [1, 2]",
    ),
    (
        {"beta": torch.ones(2, dtype=torch.int64)},
        RuntimeError,
        "expected beta floating of shape [], [1] or [2], but got Long [2]",
    ),
    (
        {"beta": torch.ones(2), "beta_value": 0.5},
        ValueError,
        "expected beta_value=1.0 when beta is given, but got 0.5",
    ),
    # masks
    (
        {"key_padding_mask": zeros(2, 7)},
        RuntimeError,
        "expected key_padding_mask bool [2,7], True = ignore, but got Double [2, 7]",
    ),
    (
        {"key_padding_mask": zeros(2, 5, dtype=torch.bool)},
        RuntimeError,
        "expected key_padding_mask bool [2,7], True = ignore, but got Bool [2, 5]",
    ),
    (
        {"key_weight": torch.ones(2, 7, dtype=torch.int64)},
        RuntimeError,
        "expected key_weight floating [2,7] without requires_grad, but got Long [2, 7]",
    ),
    (
        {"key_weight": torch.ones(7)},
        RuntimeError,
        "expected key_weight floating [2,7] without requires_grad, but got Float [7]",
    ),
    (
        {"key_weight": torch.ones(2, 7, requires_grad=True)},
        RuntimeError,
        "expected key_weight floating [2,7] without requires_grad, but got Float [2, 7]",
    ),
    *(
        (
            {"attn_mask": mask},
            RuntimeError,
            "expected attn_mask bool or floating (float32 or the dtype of query), broadcastable "
            f"from [M,N] or [B|1,H|1,M,N] = [2,2,5,7], but got {got}",
        )
        for mask, got in (
            (zeros(5, 7, dtype=torch.int64), "Long [5, 7]"),
            (zeros(5, 7, dtype=torch.float16), "Half [5, 7]"),
            (zeros(7, 5), "Double [7, 5]"),
            (zeros(1, 7), "Double [1, 7]"),
            (zeros(5, 1), "Double [5, 1]"),
            (zeros(2, 5, 7), "Double [2, 5, 7]"),
            (zeros(3, 1, 5, 7), "Double [3, 1, 5, 7]"),
            (zeros(1, 3, 5, 7, dtype=torch.bool), "Bool [1, 3, 5, 7]"),
        )
    ),
    # numbers
    *(
        ({"eps": eps}, ValueError, f"expected finite eps >= 0, but got {eps}")
        for eps in (-0.5, math.nan, math.inf)
    ),
    *(
        ({"dropout_p": p}, ValueError, f"expected 0 <= dropout_p < 1, but got {p:g}")
        for p in (-0.5, 1.0, math.nan)
    ),
    *(
        ({"scale": scale}, ValueError, f"expected a finite scale, but got {scale}")
        for scale in (math.nan, math.inf)
    ),
    ({"beta_value": math.nan}, ValueError, "expected a finite beta_value, but got nan"),
    # statistics, causality
    (
        {"stats": "batch"},
        ValueError,
        "expected one of auto, global, prefix, support, but got 'batch' for stats",
    ),
    (
        {"stats": "prefix"},
        ValueError,
        "expected is_causal=True with stats='prefix'",
    ),
    (
        {"is_causal": True},
        ValueError,
        "expected query_offset >= 0 to be given because M=5 differs from N=7, but got None",
    ),
    (
        {"is_causal": True, "query_offset": -1},
        ValueError,
        "expected query_offset >= 0",
    ),
]


def to(device, value):
    if not torch.is_tensor(value):
        return value
    return value.detach().to(device).requires_grad_(value.requires_grad)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("function", [op, ref], ids=["op", "ref"])
@pytest.mark.parametrize("change, exception, message", CASES)
def test_a_wrong_argument_is_named(change, exception, message, function, device):
    (q, k, v), _ = problem()
    arguments = {"query": q, "key": k, "value": v} | change
    with pytest.raises(Exception, match=re.escape(f"{function.__name__}: {message}")) as caught:
        function(**{name: to(device, argument) for name, argument in arguments.items()})
    assert caught.type is exception


@pytest.mark.parametrize(
    "moved", ["query", "key", "value", "beta", "key_padding_mask", "key_weight", "attn_mask"]
)
@pytest.mark.parametrize("function", [op, ref], ids=["op", "ref"])
def test_devices_do_not_mix(function, moved):
    (q, k, v), options = problem(mask="all")
    arguments = {"query": q, "key": k, "value": v} | options
    arguments[moved] = arguments[moved].to("meta")
    with pytest.raises(RuntimeError, match=f"{function.__name__}: expected .* but got .*meta"):
        function(**arguments)


def private_arguments(**change):
    """(_attention_bn_forward's arguments with the good call's tensors, the tensors it saves)"""
    (q, k, v), _ = problem()
    tensors = {"query": q, "key": k, "value": v} | dict.fromkeys(
        ("beta", "key_padding_mask", "attn_mask", "key_weight")
    )
    numbers = {"beta_value": 1.0, "use_std": True, "eps": 1e-5, "stats": "global"}
    numbers |= {"is_causal": False, "query_offset": 0, "dropout_p": 0.0, "scale": 0.5}
    saved = torch.ops.kktorch._attention_bn_forward(**tensors, **numbers)
    return tensors | numbers | change, dict(
        zip(("out", "logsumexp", "stats_saved", "rng_state"), saved, strict=True)
    )


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    "change, message",
    [
        ({"query": zeros(2, 5, 4)}, "attention_bn: expected query, key, value of shape [B, heads"),
        ({"beta": torch.ones(3)}, "attention_bn: expected beta floating of shape [], [1] or [2]"),
        (
            {"stats": "support"},
            "attention_bn: expected stats 'global' or 'prefix' below the public op, "
            "but got 'support'",
        ),
        (
            {"grad_out": zeros(2, 2, 5, 4)},
            "_attention_bn_backward: expected grad_out of shape [2, 2, 5, 3] and dtype Double, "
            "but got [2, 2, 5, 4] and Double",
        ),
        (
            {"grad_out": zeros(2, 2, 5, 3, dtype=torch.float32)},
            "_attention_bn_backward: expected grad_out of shape [2, 2, 5, 3] and dtype Double, "
            "but got [2, 2, 5, 3] and Float",
        ),
    ],
)
def test_the_private_ops_check_too(change, message, device):
    change = dict(change)
    grad_out = change.pop("grad_out", zeros(2, 2, 5, 3))
    arguments, saved = private_arguments(**change)

    def move(named):
        return {name: to(device, argument) for name, argument in named.items()}

    def forward():
        torch.ops.kktorch._attention_bn_forward(**move(arguments))

    def backward():
        tensors = move({"grad_out": grad_out} | arguments | saved)
        torch.ops.kktorch._attention_bn_backward(**tensors, output_mask=[True] * 4)

    for call in (forward, backward) if change else (backward,):
        with pytest.raises((RuntimeError, ValueError), match=re.escape(message)):
            call()


def test_the_good_call_is_good():
    """What the cases above change is accepted as it stands."""
    (q, k, v), _ = problem()
    op(q, k, v, beta=torch.ones(2), beta_value=1.0, key_weight=torch.ones(2, 7), eps=0.0)
    op(q, k, v, attn_mask=zeros(1, 2, 5, 7, dtype=torch.float32), stats="support")
    op(q, k, v, is_causal=True, query_offset=0, stats="prefix")
