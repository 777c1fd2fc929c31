"""Inputs of the attention_bn tests, and one way to evaluate whatever takes the op's arguments.

The op library is loaded by conftest.py.
"""

from typing import NamedTuple

import torch

op = torch.ops.kktorch.attention_bn
ref = torch.ops.kktorch.attention_bn_ref

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
HALVES = [torch.bfloat16, torch.float16]


class Shape(NamedTuple):
    B: int = 2
    H: int = 2
    Hk: int = 2
    M: int = 5
    N: int = 7
    D: int = 4
    Dv: int = 3


DEFAULT = Shape()

# Keys that enter the statistics, with and without causality: the names of MODES are the test ids.
MODES = {
    "global": {},
    "causal-global": {"is_causal": True, "stats": "global"},
    "prefix": {"is_causal": True},
    "support": {"stats": "support"},
    "causal-support": {"is_causal": True, "stats": "support"},
}


def _holes(generator, *shape):
    """Boolean mask, True = may attend; its first query row sees nothing."""
    mask = torch.rand(shape, generator=generator) < 0.7
    mask[..., :1, :] = False
    return mask


def _bias(generator, *shape):
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _padding(shape):
    """True = ignore: ragged ends, one hole at the start; a batch of one keeps at least a key."""
    padding = torch.zeros(shape.B, shape.N, dtype=torch.bool)
    for b in range(shape.B):
        padding[b, shape.N - (b + 1) * shape.N // (shape.B + 2) :] = True
    if shape.N > 2:
        padding[-1:, 0] = True
    return padding


def _weight(generator, shape):
    """Weights 0, 1, 2.5; the middle key of every sample counts."""
    choice = torch.randint(3, (shape.B, shape.N), generator=generator)
    weight = torch.tensor([0.0, 1.0, 2.5], dtype=torch.float64)[choice]
    weight[:, shape.N // 2 : shape.N // 2 + 1] = 1
    return weight


# name -> options that the shape [B, H, M, N] asks for
MASKS = {
    "none": lambda g, s: {},
    "padding": lambda g, s: {"key_padding_mask": _padding(s)},
    "weight": lambda g, s: {"key_weight": _weight(g, s)},
    "bool[M,N]": lambda g, s: {"attn_mask": _holes(g, s.M, s.N)},
    "bool[B,H,M,N]": lambda g, s: {"attn_mask": _holes(g, s.B, s.H, s.M, s.N)},
    "float[1,H,M,N]": lambda g, s: {"attn_mask": _bias(g, 1, s.H, s.M, s.N)},
    "float[B,1,M,N]": lambda g, s: {
        "attn_mask": _bias(g, s.B, 1, s.M, s.N).masked_fill(~_holes(g, s.M, s.N), -torch.inf)
    },
    "all": lambda g, s: {
        "key_padding_mask": _padding(s),
        "key_weight": _weight(g, s),
        "attn_mask": _bias(g, s.M, s.N).masked_fill(~_holes(g, s.M, s.N), -torch.inf),
    },
}

BETA_KINDS = {
    "fixed": lambda b, H: {"beta_value": b},
    "[]": lambda b, H: {"beta": torch.tensor(b, dtype=torch.float64)},
    "[1]": lambda b, H: {"beta": torch.tensor([b], dtype=torch.float64)},
    "[H]": lambda b, H: {"beta": b + 0.1 * torch.arange(H, dtype=torch.float64)},
}


def problem(shape=DEFAULT, mode="global", mask="none", beta=("[H]", 0.7), seed=0, **options):
    """(query, key, value) in float64 and the options of one problem."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*size):
        return torch.randn(size, generator=generator, dtype=torch.float64)

    tensors = (
        draw(shape.B, shape.H, shape.M, shape.D),
        draw(shape.B, shape.Hk, shape.N, shape.D) + 0.5,
        draw(shape.B, shape.Hk, shape.N, shape.Dv),
    )
    kind, strength = beta
    options = (
        MODES[mode]
        | MASKS[mask](generator, shape)
        | BETA_KINDS[kind](strength, shape.H)
        | ({"enable_gqa": True} if shape.H != shape.Hk else {})
        | options
    )
    if options.get("is_causal") and shape.M != shape.N:
        options.setdefault("query_offset", max(shape.N - shape.M, 0))
    return tensors, options


def cast(dtype, tensors, options):
    """The same problem with every floating tensor in `dtype` (and on the device it is on)."""

    def to(value):
        return value.to(dtype) if torch.is_tensor(value) and value.is_floating_point() else value

    return tuple(map(to, tensors)), {name: to(value) for name, value in options.items()}


def cotangent(shape, dtype=torch.float64):
    generator = torch.Generator().manual_seed(99)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def evaluate(function, tensors, options, grad_out=None, wrt=("query", "key", "value", "beta")):
    """Output and gradients, by name: {"out", "query", "key", "value", "beta" where it is a tensor}.

    `wrt` may also name "attn_mask". `grad_out` defaults to a fixed random cotangent.
    """
    named = dict(zip(("query", "key", "value"), tensors, strict=True)) | options
    leaves = {
        name: named[name].detach().requires_grad_()
        for name in wrt
        if torch.is_tensor(named.get(name))
    }
    out = function(**(named | leaves))
    if grad_out is None:
        grad_out = cotangent(out.shape, out.dtype).to(out.device)
    grads = torch.autograd.grad(out, list(leaves.values()), grad_out)
    return {"out": out.detach()} | dict(zip(leaves, grads, strict=True))


def error(actual, expected):
    """max |actual - expected| / max(1, |expected|); NaN where only one of the two holds NaN."""
    assert actual.shape == expected.shape
    if actual.numel() == 0:
        return 0.0
    actual, expected = actual.double(), expected.double()
    return ((actual - expected).abs() / expected.abs().clamp_min(1)).max().item()


def assert_close(actual, expected, tolerance):
    """Tensors, or results of `evaluate`, to error() <= tolerance."""
    if torch.is_tensor(actual):
        actual, expected = {"out": actual}, {"out": expected}
    assert actual.keys() == expected.keys()
    for name in actual:
        assert error(actual[name], expected[name]) <= tolerance, name


def assert_identical(actual, expected):
    """Tensors, or results of `evaluate`, bit for bit (NaN equals NaN)."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)
