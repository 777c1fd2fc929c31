"""Shapes and steps are those of B1. A variant names the scales: with H heads, head h takes entry
h mod n of the n scales, so that heads of one scale are neighbours in one variant and scattered in
another. Lengths 197 and 1751 end in a short window. `groups` loops over the distinct scales: pools
keys and values, and calls the stock attention on the heads of that scale; `heads` does so head by
head; `padded` pads the pooled keys of all heads to one length and masks them in one call;
`compile(groups)` is the best of them compiled. `full attention` is SDPA without pooling, another
function: beside kktorch over it stands the fraction of the keys that is left. `padded` and
`compile(groups)` are left out where all scales are 1, and beyond a length of 4096.
"""

import dataclasses
import functools

import attention
import kktorch
import torch
import torch.nn.functional as F
from harness import Case

NAME = "B2"
TITLE = "B2: Attention-SH"
SUBJECT = "kktorch"
MAIN_PEER = "groups"
PRICE = "full attention"
GROUPS = ["dtype", "variant"]
ROW = "shape"
CEILING = "FLOP/s"
PLOTS = ["ratios", "ceiling"]
DTYPES = attention.DTYPES
VARIANTS = {"1": [1], "1-2-4-8": [1, 2, 4, 8], "1-1-2-2-4-4-8-8": [1, 1, 2, 2, 4, 4, 8, 8]}


@dataclasses.dataclass(frozen=True)
class Problem:
    scales: list[int]  # of every head

    def at(self, sample: int, head: int) -> "Problem":
        return Problem(self.scales[head : head + 1])

    def groups(self) -> dict[int, list[int]]:
        """Heads of every distinct scale."""
        heads = range(len(self.scales))
        return {s: [h for h in heads if self.scales[h] == s] for s in dict.fromkeys(self.scales)}


def shapes(variant: str, quick: bool) -> list[str]:
    return attention.QUICK_SHAPES if quick else attention.SHAPES


def peers(shape: str, variant: str) -> list[str]:
    names = [MAIN_PEER, PRICE, "heads"]
    if max(VARIANTS[variant]) > 1 and attention.length(shape) <= attention.LONGEST:
        names += [f"compile({MAIN_PEER})", "padded"]
    return names


def scales_of(shape: str, variant: str) -> list[int]:
    scales = VARIANTS[variant]
    return [scales[head % len(scales)] for head in range(attention.sizes(shape)[1])]


def remaining(shape: str, variant: str) -> float:
    """The fraction of the keys that is left after pooling, over all heads."""
    length, scales = attention.length(shape), scales_of(shape, variant)
    return sum(-(-length // scale) for scale in scales) / (length * len(scales))


def work(shape: str, variant: str) -> dict[str, float]:
    return attention.flops(shape, remaining(shape, variant))


def case(shape: str, dtype: str, variant: str) -> Case:
    problem = Problem(scales_of(shape, variant))
    tensors, grad = attention.draw(shape, DTYPES[dtype])
    torch._dynamo.reset()
    functions = {
        SUBJECT: _kktorch, "groups": _groups, "heads": _heads, "padded": _padded, PRICE: _full
    }  # fmt: skip

    def make(name: str):
        plain = name.removeprefix("compile(").removesuffix(")")
        function = functools.partial(functions[plain], problem=problem)
        if plain != name:
            function = torch.compile(function, dynamic=False)
        return attention.contender(name, function, tensors, grad)

    return Case(
        key={"shape": shape, "dtype": dtype, "variant": variant},
        subject=make(SUBJECT),
        peers=[make(name) for name in peers(shape, variant)],
        check=lambda contenders: attention.gate(
            contenders, problem, tensors, grad, _literal, _groups, {PRICE}
        ),
        work=work(shape, variant),
        notes=attention.sdpa_backend(tensors),
        expected={PRICE: 1 / remaining(shape, variant)},
    )


def _pool(x, scale):
    """Means of windows of ``scale`` tokens; the last window may be short."""
    if scale == 1:
        return x
    whole = x.shape[-2] // scale * scale
    means = x[..., :whole, :].unflatten(-2, (-1, scale)).mean(-2)
    if whole == x.shape[-2]:
        return means
    return torch.cat([means, x[..., whole:, :].mean(-2, keepdim=True)], -2)


def _take(x, heads):
    """The heads of x: a view where they are equally spaced."""
    step = heads[1] - heads[0] if len(heads) > 1 else 1
    if heads == list(range(heads[0], heads[-1] + 1, step)):
        return x[:, heads[0] : heads[-1] + 1 : step]
    return x.index_select(1, torch.tensor(heads))


def _groups(q, k, v, problem):
    groups = problem.groups()
    parts = [
        F.scaled_dot_product_attention(
            _take(q, heads), _pool(_take(k, heads), scale), _pool(_take(v, heads), scale)
        )
        for scale, heads in groups.items()
    ]
    if len(parts) == 1:
        return parts[0]
    out, order = torch.cat(parts, 1), sum(groups.values(), [])
    if order == sorted(order):
        return out
    return out.index_select(1, torch.tensor(order).argsort())


def _heads(q, k, v, problem):
    return torch.cat(
        [
            F.scaled_dot_product_attention(
                q[:, h : h + 1], _pool(k[:, h : h + 1], scale), _pool(v[:, h : h + 1], scale)
            )
            for h, scale in enumerate(problem.scales)
        ],
        1,
    )


def _padded(q, k, v, problem):
    def pooled(x):
        heads = [_pool(x[:, h], scale) for h, scale in enumerate(problem.scales)]
        longest = max(head.shape[1] for head in heads)
        return torch.stack([F.pad(head, (0, 0, 0, longest - head.shape[1])) for head in heads], 1)

    counts = torch.tensor([-(-k.shape[2] // scale) for scale in problem.scales])
    keys = pooled(k)
    visible = torch.arange(keys.shape[2]) < counts[:, None, None]
    return F.scaled_dot_product_attention(q, keys, pooled(v), attn_mask=visible[None])


def _literal(q, k, v, problem):
    """Head by head with T x T probabilities; windows as rows of a matrix of means."""
    outs = []
    for h, scale in enumerate(problem.scales):
        owner = torch.arange(k.shape[2]) // scale
        member = owner == torch.arange(owner[-1] + 1)[:, None]
        means = (member / member.sum(1, keepdim=True)).to(k.dtype)
        logits = q[:, h] @ (means @ k[:, h]).transpose(-1, -2) * q.shape[-1] ** -0.5
        outs.append(logits.softmax(-1) @ (means @ v[:, h]))
    return torch.stack(outs, 1)


def _full(q, k, v, problem):
    return F.scaled_dot_product_attention(q, k, v)


def _kktorch(q, k, v, problem):
    return kktorch.attention_sh(q, k, v, problem.scales)
