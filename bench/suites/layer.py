"""The layer `kktorch.nn.AttentionBNSH` with its projections, self-attention; shapes are batch x
heads x length x width of a head. `softmax` is the layer without pooling, `nn.MultiheadAttention`
that of PyTorch. The cost model counts multiply-adds of projections and attention (scaled heads pool
the input first, so that keys and values are projected less often too; pooling itself is not
counted); backward is 2 times the projections and 2.5 times the attention. `by operations` is what
the ratio to the softmax layer would be if time followed that number.
"""

import attention
import torch
import torch.nn.functional as F
from harness import Case
from kktorch.nn import AttentionBNSH
from suites import b2

NAME = "LAYER"
TITLE = "Layer with scaled heads"
SUBJECT = "kktorch sh"
MAIN_PEER = "softmax"
PRICE = "nn.MultiheadAttention"
GROUPS = ["dtype", "variant"]
ROW = "shape"
CEILING = "FLOP/s"
PLOTS = ["ratios"]
DTYPES = attention.DTYPES
VARIANTS = {"1-1-2-2-4-4-8-8": [1, 1, 2, 2, 4, 4, 8, 8], "1": [1] * 8}


def shapes(variant: str, quick: bool) -> list[str]:
    return ["2x8x33x4"] if quick else ["4x8x1024x64", "2x8x2048x64", "1x8x4096x64"]


def peers(shape: str, variant: str) -> list[str]:
    return [MAIN_PEER, PRICE]


def work(shape: str, variant: str) -> dict[str, float]:
    """FLOP of projections and attention: 4 N d^2 (1 + rho) + 4 N^2 d rho, rho = mean of 1/scale."""
    batch, heads, tokens, width = attention.sizes(shape)
    d, scales = heads * width, VARIANTS[variant]
    rho = sum(1 / scale for scale in scales) / len(scales)
    projections = 4 * batch * tokens * d**2 * (1 + rho)
    attention_ = 4 * batch * tokens**2 * d * rho
    return {
        "forward": projections + attention_,
        "backward": 2 * projections + 2.5 * attention_,
    }


def case(shape: str, dtype: str, variant: str) -> Case:
    batch, heads, tokens, width = attention.sizes(shape)
    d, scales = heads * width, VARIANTS[variant]
    torch.manual_seed(1)
    pooling = AttentionBNSH(d, heads, variant="sh", scales=scales, batch_first=True)
    layers = {
        SUBJECT: pooling,
        MAIN_PEER: AttentionBNSH(d, heads, variant="softmax", batch_first=True),
        PRICE: torch.nn.MultiheadAttention(d, heads, batch_first=True),
    }
    for layer in layers.values():
        layer.load_state_dict(pooling.state_dict())
        layer.to(DTYPES[dtype])
    x, grad = torch.randn(2, batch, tokens, d).to(DTYPES[dtype]).unbind()

    def make(name: str):
        tensors = {"x": x.clone().requires_grad_(), **dict(layers[name].named_parameters())}

        def function(**tensors):
            x = tensors["x"]
            return layers[name](x, x, x, need_weights=False)[0]

        return attention.contender(name, function, tensors, grad)

    full = sum(work(shape, "1").values()) / sum(work(shape, variant).values())
    return Case(
        key={"shape": shape, "dtype": dtype, "variant": variant},
        subject=make(SUBJECT),
        peers=[make(name) for name in peers(shape, variant)],
        check=lambda contenders: _gate(contenders[0], layers[SUBJECT], x, grad, scales),
        work=work(shape, variant),
        expected={MAIN_PEER: full},
    )


def _gate(subject, layer, x, grad, scales):
    """The subject against the formula; the peers compute another function."""
    leaves = {"x": x, **dict(layer.named_parameters())}

    def formula(dtype):
        own = {name: t.detach().to(dtype).requires_grad_() for name, t in leaves.items()}
        out = _literal(own, scales)
        return _named(own, out, torch.autograd.grad(out, list(own.values()), grad.to(dtype)))

    out = subject.phases["forward"](None)
    got = _named(leaves, out, subject.phases["backward"](out))
    return attention.compare({subject.name: got}, formula, x)


def _named(leaves, out, gradients):
    return {"out": out.detach(), **dict(zip(leaves, gradients, strict=True))}


def _literal(p, scales):
    """Projects all tokens, then pools the keys and values of every head."""
    projected = F.linear(p["x"], p["in_proj_weight"], p["in_proj_bias"])
    q, k, v = (t.unflatten(-1, (len(scales), -1)).transpose(1, 2) for t in projected.chunk(3, -1))
    heads = b2._literal(q, k, v, b2.Problem(scales)).transpose(1, 2).flatten(2)
    return F.linear(heads, p["out_proj.weight"], p["out_proj.bias"])
