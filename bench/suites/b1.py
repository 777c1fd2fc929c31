"""Shapes are batch x heads x length x width, stored (batch, length, heads, width) as projections
leave them; a step is a forward with autograd and the backward of all inputs. Variants: `std`
divides by the standard deviation, `no-std` does not (beta is 1 in both), `learned-beta` divides and
has a parameter per head; `padding` ignores up to half of the keys of every sample, `window` lets
every query attend to a quarter of the keys around it (a boolean mask), `causal` has the statistics
of the keys up to the query (eps 0.1); `heads-first` is `std` on tensors that are stored as their
shape reads. `literal` is the formula as it stands, with T x T probabilities. `fold + SDPA` is the
honest peer: the same function on the stock attention. `SDPA` is attention without BN, under the
same mask; kktorch over it is the price of BN. These two run everywhere; the literal and the
compiled peers for `std` only, and up to a length of 4096. The variants besides `std` run on three
of the shapes. The table of tier avx512 is of a machine that has AVX512_BF16, which the variables
`KKTORCH_CPU_CAPABILITY=avx512 ONEDNN_MAX_CPU_ISA=AVX512_CORE` keep both sides from: PyTorch's
bfloat16 product, its ceiling, is then slower than that of float32.
"""

import dataclasses
import functools

import attention
import kktorch
import torch
import torch.nn.functional as F
from harness import Case

NAME = "B1"
TITLE = "B1: Attention-BN"
SUBJECT = "kktorch"
MAIN_PEER = "fold + SDPA"
PRICE = "SDPA"  # computes another function: the attention without BN
GROUPS = ["dtype", "variant"]  # a table each
ROW = "shape"
CEILING = "FLOP/s"
PLOTS = ["ratios", "ceiling"]
DTYPES = attention.DTYPES


@dataclasses.dataclass(frozen=True)
class Variant:
    use_std: bool = True
    learned_beta: bool = False
    mask: str | None = None  # "padding", "window" or "causal"
    heads_first: bool = False  # storage


VARIANTS = {
    "std": Variant(),
    "no-std": Variant(use_std=False),
    "learned-beta": Variant(learned_beta=True),
    "padding": Variant(mask="padding"),
    "window": Variant(mask="window"),
    "causal": Variant(mask="causal"),
    "heads-first": Variant(heads_first=True),
}


@dataclasses.dataclass(frozen=True)
class Problem:
    use_std: bool
    eps: float
    padding: torch.Tensor | None  # [B, T], True = ignore
    window: torch.Tensor | None  # [T, T], True = may attend
    causal: bool

    def at(self, sample: int, head: int) -> "Problem":
        if self.padding is None:
            return self
        return dataclasses.replace(self, padding=self.padding[sample : sample + 1])

    @property
    def visible(self) -> torch.Tensor | None:
        """The mask of keys for SDPA, which has the causal one as a flag."""
        return self.window if self.padding is None else ~self.padding[:, None, None]


def shapes(variant: str, quick: bool) -> list[str]:
    if quick:
        return attention.QUICK_SHAPES
    return attention.SHAPES if variant == "std" else attention.FEW_SHAPES


def peers(shape: str, variant: str) -> list[str]:
    names = [MAIN_PEER, PRICE]
    if variant == "std" and attention.length(shape) <= attention.LONGEST:
        names += [f"compile({MAIN_PEER})", "literal", "compile(literal)"]
    return names


def work(shape: str, variant: str) -> dict[str, float]:
    """FLOP as without a mask: what a mask hides is computed by none of the implementations, or by
    all, as they choose. Causal attention needs half."""
    return attention.flops(shape, 0.5 if VARIANTS[variant].mask == "causal" else 1)


def case(shape: str, dtype: str, variant: str) -> Case:
    problem, tensors, grad = inputs(shape, DTYPES[dtype], VARIANTS[variant])
    torch._dynamo.reset()  # every shape is compiled for itself
    functions = {SUBJECT: _kktorch, MAIN_PEER: _fold_sdpa, "literal": _literal, PRICE: _sdpa}

    def make(name: str):
        plain = name.removeprefix("compile(").removesuffix(")")
        function = functools.partial(functions[plain], problem=problem)
        if plain != name:
            function = torch.compile(function, dynamic=False)
        # The price is that of a layer without beta.
        wanted = {"q", "k", "v"} if name == PRICE else None
        return attention.contender(name, function, tensors, grad, wanted)

    return Case(
        key={"shape": shape, "dtype": dtype, "variant": variant},
        subject=make(SUBJECT),
        peers=[make(name) for name in peers(shape, variant)],
        check=lambda contenders: attention.gate(
            contenders, problem, tensors, grad, _literal, _fold_sdpa, {PRICE}
        ),
        work=work(shape, variant),
        notes=attention.sdpa_backend(tensors),
    )


def inputs(shape: str, dtype: torch.dtype, variant: Variant):
    """Problem, tensors (beta is 1.0 or a parameter [H, 1, 1]) and gradient of the output."""
    batch, heads, length, _ = attention.sizes(shape)
    tensors, grad = attention.draw(shape, dtype, variant.heads_first)
    beta = torch.linspace(0.5, 1.0, heads, dtype=dtype)[:, None, None]
    tensors["beta"] = beta.requires_grad_() if variant.learned_beta else 1.0
    place = torch.arange(length)
    padding = window = None
    if variant.mask == "padding":
        valid = torch.linspace(length / 2, length, batch).round()
        padding = place >= valid[:, None]
    if variant.mask == "window":
        window = (place[:, None] - place).abs() <= length // 8
    causal = variant.mask == "causal"
    # The first queries divide by the variance of a few keys, which may be tiny: results in float32
    # could not be told apart from wrong ones.
    problem = Problem(variant.use_std, 0.1 if causal else 1e-5, padding, window, causal)
    return problem, tensors, grad


def _statistics(k, problem):
    """Mean and variance of the valid keys; causal: of the keys up to each query."""
    if problem.causal:
        count = torch.arange(1, k.shape[-2] + 1)[:, None]
        x0 = k[..., :1, :].detach()
        x = (k - x0).to(torch.promote_types(k.dtype, torch.float32))
        m = x.cumsum(-2) / count
        variance = (x.square().cumsum(-2) / count - m.square()).clamp_min(0)
        return (x0 + m).to(k.dtype), variance.to(k.dtype)
    if problem.padding is None:
        return k.mean(-2, keepdim=True), k.var(-2, correction=0, keepdim=True)
    valid = ~problem.padding[:, None, :, None]
    count = valid.sum(-2, keepdim=True)
    mean = (k * valid).sum(-2, keepdim=True) / count
    return mean, ((k - mean).square() * valid).sum(-2, keepdim=True) / count


def _literal(q, k, v, beta, problem):
    """The formula of the paper as it stands: normalise queries and keys, T x T probabilities."""
    mean, variance = _statistics(k, problem)
    r = (variance + problem.eps).rsqrt() if problem.use_std else 1
    centred, visible = (q - beta * mean) * r, problem.visible
    if problem.causal:  # a mean and deviation per query, so that the keys are not the same for all
        logits = (centred * r) @ k.transpose(-1, -2)
        logits = logits - (centred * r * beta * mean).sum(-1, keepdim=True)
        visible = torch.ones(logits.shape[-2:], dtype=torch.bool).tril()
    else:
        logits = centred @ ((k - beta * mean) * r).transpose(-1, -2)
    logits = logits * q.shape[-1] ** -0.5
    if visible is not None:
        logits = logits.masked_fill(~visible, -torch.inf)
    return logits.softmax(-1) @ v


def _fold_sdpa(q, k, v, beta, problem):
    """The same function: BN of the keys cancels in the softmax but for what the query takes."""
    mean, variance = _statistics(k, problem)
    a = 1 / (variance + problem.eps) if problem.use_std else 1
    return _sdpa((q - beta * mean) * a, k, v, beta, problem)


def _sdpa(q, k, v, beta, problem):
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=problem.visible, is_causal=problem.causal
    )


def _kktorch(q, k, v, beta, problem):
    options = {"beta": beta.flatten()} if torch.is_tensor(beta) else {"beta_value": beta}
    return kktorch.attention_bn(
        q,
        k,
        v,
        **options,
        key_padding_mask=problem.padding,
        attn_mask=problem.window,
        use_std=problem.use_std,
        eps=problem.eps,
        is_causal=problem.causal,
    )
