"""Every wrong argument of attention_sh: one message that says what was expected and what came."""

import math
import re

import pytest
import torch
from attention_bn_cases import Shape
from attention_sh_cases import op, problem, ref


def zeros(*shape, dtype=torch.float64, **kwargs):
    return torch.zeros(shape, dtype=dtype, **kwargs)


DTYPES = "expected query, key, value of one dtype in {float16, bfloat16, float32, float64}, but got"
HEADS = (
    "expected {} query heads to equal 2 key heads (pass enable_gqa=True if a multiple is "
    "intended), but got"
)

# The good call: B = 2, H = Hk = 2, M = 5, N = 7, D = 4, Dv = 3, bn. Each case replaces some
# arguments.
CASES = [
    (
        {"query": zeros(2, 5, 4)},
        RuntimeError,
        "expected query, key, value of shape [B, heads, length, width], but got [2, 5, 4], "
        "[2, 2, 7, 4], [2, 2, 7, 3]",
    ),
    ({"query": zeros(2, 2, 5, 4, dtype=torch.float32)}, RuntimeError, f"{DTYPES} Float, Double"),
    ({"query": zeros(3, 2, 5, 4)}, RuntimeError, "expected equal batch sizes, but got 3, 2, 2"),
    *(
        (
            {"value": value},
            RuntimeError,
            "expected equal key and value lengths and heads, but got",
        )
        for value in (zeros(2, 2, 6, 3), zeros(2, 1, 7, 3))
    ),
    *(
        (
            {"query": zeros(2, 2, 5, width), "key": zeros(2, 2, 7, key_width)},
            RuntimeError,
            f"expected query and key of equal width >= 1, but got {width}, {key_width}",
        )
        for width, key_width in ((3, 4), (0, 0))
    ),
    ({"query": zeros(2, 4, 5, 4)}, RuntimeError, HEADS.format(4)),
    ({"query": zeros(2, 3, 5, 4), "enable_gqa": True}, RuntimeError, HEADS.format(3)),
    # beta
    (
        {"beta": torch.ones(3)},
        RuntimeError,
        "expected beta floating of shape [], [1] or [2], but got Float [3]",
    ),
    (
        {"beta": torch.ones(2), "beta_value": 0.5},
        ValueError,
        "expected beta_value=1.0 when beta is given, but got 0.5",
    ),
    # masks
    *(
        (
            {"key_padding_mask": mask},
            RuntimeError,
            f"expected key_padding_mask bool [2,7], True = ignore, but got {got}",
        )
        for mask, got in (
            (zeros(2, 7), "Double [2, 7]"),
            (zeros(2, 4, dtype=torch.bool), "Bool [2, 4]"),
        )
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
            (zeros(7, 5, dtype=torch.bool), "Bool [7, 5]"),
            (zeros(5, 4, dtype=torch.bool), "Bool [5, 4]"),  # as many columns as windows
            (zeros(3, 1, 5, 7, dtype=torch.bool), "Bool [3, 1, 5, 7]"),
        )
    ),
    *(
        (
            {"attn_mask": mask, "scales": scales},
            RuntimeError,
            "expected a bool attn_mask when a scale exceeds 1",
        )
        for mask in (zeros(5, 7), zeros(2, 2, 5, 7, dtype=torch.float32))
        for scales in ([2], [1, 2])
    ),
    # numbers
    *(
        ({"eps": eps}, ValueError, f"expected finite eps >= 0, but got {eps}")
        for eps in (-0.5, math.nan)
    ),
    *(
        ({"dropout_p": p}, ValueError, f"expected 0 <= dropout_p < 1, but got {p:g}")
        for p in (-0.5, 1.0)
    ),
    ({"scale": math.inf}, ValueError, "expected a finite scale, but got inf"),
    ({"beta_value": math.nan}, ValueError, "expected a finite beta_value, but got nan"),
    # windows
    *(
        ({"scales": scales}, ValueError, "expected 1 or 2 scales, each >= 1, but got")
        for scales in ([], [1, 2, 3], [0], [2, -1])
    ),
    ({"tail": "round"}, ValueError, "expected tail 'ceil' or 'drop', but got 'round'"),
    *(
        (
            {"tail": "drop", "scales": scales},
            ValueError,
            f"tail='drop' leaves no key for head {head} (N=7, scale=8)",
        )
        for scales, head in (([2, 8], 1), ([8], 0))
    ),
    *(
        ({"num_special": n}, ValueError, f"expected 0 <= num_special <= 7, but got {n}")
        for n in (-1, 8)
    ),
    # causality
    (
        {"is_causal": True},
        ValueError,
        "expected query_offset >= 0 to be given because M=5 differs from N=7, but got None",
    ),
    ({"is_causal": True, "query_offset": -1}, ValueError, "expected query_offset >= 0"),
]


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("function", [op, ref], ids=["op", "ref"])
@pytest.mark.parametrize("change, exception, message", CASES)
def test_a_wrong_argument_is_named(change, exception, message, function, device):
    (q, k, v), _ = problem(Shape())
    arguments = {"query": q, "key": k, "value": v, "scales": [2], "bn": True} | change
    moved = {n: t.to(device) if torch.is_tensor(t) else t for n, t in arguments.items()}
    with pytest.raises(Exception, match=re.escape(f"{function.__name__}: {message}")) as caught:
        function(**moved)
    assert caught.type is exception


@pytest.mark.parametrize("moved", ["query", "key", "value", "beta", "key_padding_mask"])
@pytest.mark.parametrize("function", [op, ref], ids=["op", "ref"])
def test_devices_do_not_mix(function, moved):
    (q, k, v), options = problem(mask="padding")
    arguments = {"query": q, "key": k, "value": v} | options
    arguments[moved] = arguments[moved].to("meta")
    with pytest.raises(RuntimeError, match=f"{function.__name__}: expected .* but got .*meta"):
        function(**arguments)


def test_the_good_call_is_good():
    """What the cases above change is accepted as it stands."""
    (q, k, v), _ = problem(Shape())
    op(q, k, v, [2], torch.ones(2), bn=True, beta_value=1.0, eps=0.0, num_special=7)
    op(q, k, v, [1, 1], attn_mask=zeros(1, 2, 5, 7, dtype=torch.float32))
    op(q, k, v, [2, 8], tail="ceil")
    op(q, k, v, [8], tail="drop", num_special=1)  # the special token is a key
    op(q, k, v, [2], is_causal=True, query_offset=0)
