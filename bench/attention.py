"""What the suites of attention share: shapes, inputs, work, and the gate.

A suite states its problem (scales, masks, …) as an object whose ``at(sample, head)`` is the problem
of one head, and writes every implementation as a function of the tensors and the problem.
"""

import itertools
from collections.abc import Callable

import torch
from harness import Contender, GateError

SHAPES = [
    "64x3x197x64",
    "16x12x197x64",
    "16x8x96x64",
    "16x8x512x64",
    "8x8x1751x32",
    "4x8x1024x64",
    "2x8x2048x64",
    "1x8x4096x128",
    "1x3x197x64",
]
FEW_SHAPES = ["16x12x197x64", "16x8x512x64", "4x8x1024x64"]  # of variants that are not the main one
QUICK_SHAPES = ["2x2x33x16", "1x2x64x32"]
LENGTHS = [f"2x4x{2**n}x64" for n in range(8, 15)]  # of curves
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Longest sequence on which the T x T probabilities are formed, and what is compiled is timed;
# beyond, the gate looks at the first sample and refers to a form that needs no T x T matrix.
LONGEST = 4096
# What an implementation may add to twice the error of the literal formula in the same dtype,
# relative to the largest entry: rounding of the operands that another order of operations costs.
_ALLOWED = {torch.float32: 1e-5, torch.bfloat16: 1e-3}

Tensors = dict[str, torch.Tensor]


def sizes(shape: str) -> list[int]:
    """Batch, heads, length and width of a shape like 64x3x197x64."""
    numbers = [int(text) for text in shape.split("x") if text.isdecimal()]
    if len(numbers) != 4 or 0 in numbers:
        raise ValueError(f"expected a shape like 64x3x197x64, but got '{shape}'")
    return numbers


def length(shape: str) -> int:
    return sizes(shape)[2]


def draw(shape: str, dtype: torch.dtype, heads_first: bool = False) -> tuple[Tensors, torch.Tensor]:
    """q, k, v, normal and with gradients, and the gradient of the output.

    Stored (batch, length, heads, width), as the projections of a layer leave q, k and v, or as
    their shape reads.
    """
    generator = torch.Generator().manual_seed(1)
    drawn = torch.randn((4, *sizes(shape)), generator=generator).to(dtype)
    if not heads_first:
        drawn = drawn.transpose(2, 3).contiguous().transpose(2, 3)
    *qkv, grad = drawn
    return {name: t.requires_grad_() for name, t in zip("qkv", qkv, strict=True)}, grad


def flops(shape: str, keys: float = 1.0) -> dict[str, float]:
    """FLOP of forward and backward on the fraction ``keys`` of the keys: 2 and 5 products."""
    batch, heads, tokens, width = sizes(shape)
    product = 2 * batch * heads * tokens**2 * width * keys
    return {"forward": 2 * product, "backward": 5 * product}


def contender(name: str, function: Callable, tensors: Tensors, grad, wanted=None) -> Contender:
    """Forward and backward of ``function(**tensors)``; ``wanted``: names, default all leaves."""
    leaves = [t for key, t in tensors.items() if needs_grad(t) and (not wanted or key in wanted)]

    def forward(_):
        return function(**tensors)

    def backward(out):
        return torch.autograd.grad(out, leaves, grad)

    return Contender(name, {"forward": forward, "backward": backward})


def needs_grad(value) -> bool:
    return torch.is_tensor(value) and value.requires_grad


def sdpa_backend(tensors: Tensors) -> dict[str, str]:
    choice = torch._fused_sdp_choice(tensors["q"], tensors["k"], tensors["v"])
    return {"SDPA backend": torch.nn.attention.SDPBackend(choice).name}


def outcome(function: Callable, problem, tensors: Tensors, grad, dtype, samples=None) -> Tensors:
    """Output and gradients computed in ``dtype``, one (sample, head) at a time.

    Args:
        function: of the tensors and ``problem``.
        samples: the first ones only.
    """
    leaves = {
        name: t[: samples if name in "qkv" else None].detach().to(dtype).requires_grad_()
        for name, t in tensors.items()
        if needs_grad(t)
    }
    out = torch.empty(leaves["q"].shape[:3] + leaves["v"].shape[3:], dtype=dtype)
    for sample, head in itertools.product(*map(range, out.shape[:2])):
        one = (slice(sample, sample + 1), slice(head, head + 1))
        own = {name: t[one] if name in "qkv" else t[one[1]] for name, t in leaves.items()}
        part = function(**(tensors | own), problem=problem.at(sample, head))
        part.backward(grad[one].to(dtype))
        out[one] = part.detach()
    return {"out": out} | {name: leaf.grad for name, leaf in leaves.items()}


def gate(contenders, problem, tensors, grad, literal, folded, another=()) -> dict:
    """Errors of output and gradients against the formula in float64; see :func:`compare`.

    Args:
        literal, folded: the formula with and without T x T probabilities.
        another: names of contenders that compute another function.
    """
    is_long = tensors["k"].shape[2] > LONGEST
    reference, samples = (folded, 1) if is_long else (literal, None)

    def formula(dtype):
        return outcome(reference, problem, tensors, grad, dtype, samples)

    def got(each):
        out = each.phases["forward"](None)
        results = [out.detach(), *each.phases["backward"](out)]
        names = ["out", *(name for name, t in tensors.items() if needs_grad(t))]
        return {name: t[:samples] for name, t in zip(names, results, strict=True)}

    results = {each.name: got(each) for each in contenders if each.name not in another}
    return compare(results, formula, tensors["q"])


def compare(results: dict[str, Tensors], formula: Callable, like: torch.Tensor) -> dict:
    """Largest errors against ``formula(float64)``, relative to the largest entry of each tensor.

    The subject, which comes first, may make twice the error of the formula in the dtype of
    ``like``, plus _ALLOWED; the errors of peers are recorded only.

    Raises:
        GateError: the subject makes a larger one.
    """
    expected = formula(torch.float64)

    def errors_of(got: Tensors) -> dict[str, float]:
        return {
            name: float((got[name].double() - e).abs().max() / e.abs().max().clamp_min(1))
            for name, e in expected.items()
        }

    errors = {name: errors_of(got) for name, got in results.items()}
    naive, subject = errors_of(formula(like.dtype)), next(iter(results))
    for name, error in errors[subject].items():
        allowed = 2 * naive[name] + _ALLOWED[like.dtype]
        if not error <= allowed:
            raise GateError(
                f"{subject}, {list(like.shape)} {like.dtype}: expected an error of {name} <= "
                f"{allowed:.2g} against the float64 formula, but got {error:.2g}"
            )
    return errors
