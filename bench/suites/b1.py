"""Shapes are batch x heads x length x width, contiguous; a step is a forward with autograd and the
backward of all inputs. Variants: `std` divides by the standard deviation, `no-std` does not (beta
is 1 in both), `learned-beta` divides and has a parameter per head. `literal` is the formula as it
stands, with T x T probabilities. `fold + SDPA` is the honest peer: the same function on the stock
attention. `SDPA` is attention without BN; kktorch over it is the price of BN.
"""

import itertools

import kktorch
import torch
import torch.nn.functional as F
from harness import Case, Contender, GateError

NAME = "B1"
TITLE = "B1: Attention-BN"
SUBJECT = "kktorch"
MAIN_PEER = "fold + SDPA"
PRICE = "SDPA"  # computes another function: the attention without BN
GROUPS = ["dtype", "variant"]  # a table each
ROW = "shape"
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
QUICK_SHAPES = ["2x2x33x16", "1x2x64x32"]
MEMORY_SHAPES = ["1x8x4096x64", "1x8x8192x64", "1x8x16384x64"]
QUICK_MEMORY_SHAPES = ["1x2x512x32", "1x2x1024x32"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# variant -> (use_std, is beta a learned parameter per head)
VARIANTS = {"std": (True, False), "no-std": (False, False), "learned-beta": (True, True)}
_EPS = 1e-5
# What an implementation may add to twice the error of the literal formula in the same dtype,
# relative to the largest entry: rounding of the operands that another order of operations costs.
_ALLOWED = {torch.float32: 1e-5, torch.bfloat16: 1e-3}


def cases(shapes: list[str], dtypes: list[str], variants: list[str]):
    """Every case, built when its turn comes."""
    for dtype in dtypes:
        for variant in variants:
            for shape in shapes:
                yield _case(shape, dtype, variant)


def memory_contender(name: str, shape: str) -> Contender:
    """What is run for its peak memory: float32, standard deviation on, beta fixed."""
    functions = {SUBJECT: _kktorch, MAIN_PEER: _fold_sdpa, PRICE: _sdpa}
    inputs = _inputs(shape, torch.float32, learned=False)
    return _contender(name, functions[name], inputs, use_std=True)


MEMORY_CONTENDERS = [SUBJECT, MAIN_PEER, PRICE]


def _literal(q, k, v, beta, use_std):
    """The formula of the paper as it stands: normalise queries and keys, T x T probabilities."""
    mean = k.mean(-2, keepdim=True)
    r = (k.var(-2, correction=0, keepdim=True) + _EPS).rsqrt() if use_std else 1
    logits = ((q - beta * mean) * r) @ ((k - beta * mean) * r).transpose(-1, -2)
    return (logits * q.shape[-1] ** -0.5).softmax(-1) @ v


def _fold_sdpa(q, k, v, beta, use_std):
    """The same function: the key's mean cancels in the softmax, all of BN moves into the query."""
    mean = k.mean(-2, keepdim=True)
    a = 1 / (k.var(-2, correction=0, keepdim=True) + _EPS) if use_std else 1
    return F.scaled_dot_product_attention((q - beta * mean) * a, k, v)


def _sdpa(q, k, v, beta, use_std):
    return F.scaled_dot_product_attention(q, k, v)


def _kktorch(q, k, v, beta, use_std):
    if not torch.is_tensor(beta):
        return kktorch.attention_bn(q, k, v, beta_value=beta, use_std=use_std, eps=_EPS)
    return kktorch.attention_bn(q, k, v, beta.flatten(), use_std=use_std, eps=_EPS)


def _sizes(shape: str) -> list[int]:
    sizes = [int(text) for text in shape.split("x") if text.isdecimal()]
    if len(sizes) != 4 or 0 in sizes:
        raise ValueError(f"{NAME}: expected a shape like 64x3x197x64, but got '{shape}'")
    return sizes


def _inputs(shape: str, dtype: torch.dtype, learned: bool) -> dict:
    """q, k, v, beta (1.0, or a parameter [H, 1, 1]) and the gradient of the output."""
    batch, heads, length, width = _sizes(shape)
    generator = torch.Generator().manual_seed(1)
    size = (4, batch, heads, length, width)
    q, k, v, grad = torch.randn(size, generator=generator).to(dtype).unbind()
    q, k, v = (tensor.clone().requires_grad_() for tensor in (q, k, v))
    beta = torch.linspace(0.5, 1.0, heads, dtype=dtype)[:, None, None]
    return {
        "q": q, "k": k, "v": v, "beta": beta.requires_grad_() if learned else 1.0, "grad": grad
    }  # fmt: skip


def _contender(name: str, function, inputs: dict, use_std: bool) -> Contender:
    q, k, v, beta, grad = inputs.values()
    # The price is that of a layer without beta.
    wanted = [q, k, v] if name == PRICE or not torch.is_tensor(beta) else [q, k, v, beta]

    def forward(_):
        return function(q, k, v, beta, use_std)

    def backward(out):
        return torch.autograd.grad(out, wanted, grad)

    return Contender(name, {"forward": forward, "backward": backward})


def _case(shape: str, dtype: str, variant: str) -> Case:
    use_std, learned = VARIANTS[variant]
    inputs = _inputs(shape, DTYPES[dtype], learned)
    torch._dynamo.reset()  # every shape is compiled for itself
    functions = {
        SUBJECT: _kktorch,
        MAIN_PEER: _fold_sdpa,
        "compile(fold + SDPA)": torch.compile(_fold_sdpa, dynamic=False),
        "literal": _literal,
        "compile(literal)": torch.compile(_literal, dynamic=False),
        PRICE: _sdpa,
    }
    subject, *peers = (
        _contender(name, function, inputs, use_std) for name, function in functions.items()
    )
    batch, heads, length, width = _sizes(shape)
    product = 2 * batch * heads * length**2 * width  # FLOP of one T x T x D product
    choice = torch._fused_sdp_choice(inputs["q"], inputs["k"], inputs["v"])
    return Case(
        key={"shape": shape, "dtype": dtype, "variant": variant},
        subject=subject,
        peers=peers,
        check=lambda contenders: _gate(contenders, inputs, use_std),
        flops={"forward": 2 * product, "backward": 5 * product},
        notes={"SDPA backend": torch.nn.attention.SDPBackend(choice).name},
    )


def _gate(contenders: list[Contender], inputs: dict, use_std: bool) -> dict[str, dict[str, float]]:
    """Largest error of output and gradients against the literal formula in float64.

    Relative to the largest entry of each. The subject may make twice the error that the literal
    formula makes in its own dtype, plus _ALLOWED; the errors of peers are recorded only.
    """
    expected = _exact(inputs, use_std)
    errors = {}
    for contender in contenders:
        if contender.name == PRICE:
            continue
        out = contender.phases["forward"](None)
        got = [out.detach(), *contender.phases["backward"](out)]
        errors[contender.name] = {
            name: float((a.double() - e).abs().max() / e.abs().max().clamp_min(1))
            for (name, e), a in zip(expected.items(), got, strict=True)
        }
    for name, error in errors[SUBJECT].items():
        allowed = 2 * errors["literal"][name] + _ALLOWED[inputs["q"].dtype]
        if not error <= allowed:
            raise GateError(
                f"{SUBJECT}, {list(inputs['q'].shape)} {inputs['q'].dtype}: expected an error of "
                f"{name} <= {allowed:.2g} against the float64 formula, but got {error:.2g}"
            )
    return errors


def _exact(inputs: dict, use_std: bool) -> dict[str, torch.Tensor]:
    """Output and gradients of the literal formula in float64, one (sample, head) at a time."""
    leaves = {
        name: tensor.detach().double().requires_grad_()
        for name, tensor in inputs.items()
        if torch.is_tensor(tensor) and tensor.requires_grad
    }
    out = torch.empty_like(leaves["q"], requires_grad=False)
    for sample, head in itertools.product(*map(range, out.shape[:2])):
        q, k, v = (leaves[name][sample, head] for name in "qkv")
        beta = leaves["beta"][head] if "beta" in leaves else inputs["beta"]
        part = _literal(q, k, v, beta, use_std)
        part.backward(inputs["grad"][sample, head].double())
        out[sample, head] = part.detach()
    return {"out": out} | {name: leaf.grad for name, leaf in leaves.items()}
