"""The margins of attention logits, as the margin tracker takes them at every step: for n queries
with T tokens of width d each, margins, argmax, least margin, largest probability, entropy and
largest token norm, from tokens in float32 or bfloat16. kktorch reads the tokens once and computes
in float64; the others compute in float32. `literal` forms the scores of all tokens and sorts them;
`gather + min` is the careful composition of batched products, max, gather and min. Shapes are
n x T x d; the ceiling is the rate of reading memory, which a set of tokens that fits the cache
exceeds.
"""

import kktorch  # noqa: F401
import torch
from harness import TOTAL, Case, Contender, GateError

NAME = "B7"
TITLE = "B7: margin tracker"
SUBJECT = "kktorch"
MAIN_PEER = "gather + min"
PRICE = None
GROUPS = ["dtype", "variant"]
ROW = "shape"
CEILING = "B/s"
PLOTS = ["ratios"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
VARIANTS = {"margins": None}


def shapes(variant: str, quick: bool) -> list[str]:
    return ["3x5x16"] if quick else ["64x32x64", "1024x128x128", "4096x512x256"]


def peers(shape: str, variant: str) -> list[str]:
    return [MAIN_PEER, "literal", f"compile({MAIN_PEER})"]


def work(shape: str, variant: str, itemsize: int = 4) -> dict[str, float]:
    """Bytes of the tokens."""
    n, tokens, width = map(int, shape.split("x"))
    return {TOTAL: n * tokens * width * itemsize}


def case(shape: str, dtype: str, variant: str) -> Case:
    n, tokens, width = map(int, shape.split("x"))
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, tokens, width, generator=generator).to(DTYPES[dtype])
    y = torch.randn(n, width, generator=generator, dtype=torch.float64)
    row_ptr = torch.arange(n + 1) * tokens
    torch._dynamo.reset()

    def subject(_):
        return torch.ops.kktorch.attn_margin(x.flatten(0, 1), y, row_ptr)

    def make(name: str) -> Contender:
        plain = name.removeprefix("compile(").removesuffix(")")
        function = {MAIN_PEER: _gather_min, "literal": _literal}[plain]
        if plain != name:
            function = torch.compile(function, dynamic=False)
        single = y.to(DTYPES[dtype])
        return Contender(name, {TOTAL: lambda _: function(x, single)})

    def check(contenders):
        top = torch.einsum("ntd,nd->nt", x.double(), y).topk(2, dim=1).values
        expected = top[:, 0] - top[:, 1]
        errors = {
            c.name: {"qmin": float((c.phases[TOTAL](None)[2].double() - expected).abs().max())}
            for c in contenders
        }
        if errors[SUBJECT]["qmin"] > 1e-12 * width**0.5:
            raise GateError(f"least margins are off by {errors[SUBJECT]['qmin']}")
        return errors

    return Case(
        key={"shape": shape, "dtype": dtype, "variant": variant},
        subject=Contender(SUBJECT, {TOTAL: subject}),
        peers=[make(name) for name in peers(shape, variant)],
        check=check,
        work=work(shape, variant, DTYPES[dtype].itemsize),
    )


def _gather_min(x, y):
    logits = torch.bmm(x, y.unsqueeze(2)).squeeze(2).float()
    top, alpha = logits.max(1, keepdim=True)
    margin = top - logits
    least, place = margin.scatter(1, alpha, torch.inf).min(1)
    shifted = logits - top
    weight = shifted.exp()
    total = weight.sum(1)
    entropy = total.log() - (weight * shifted).sum(1) / total
    longest = torch.linalg.vector_norm(x, dim=2, dtype=torch.float32).amax(1)
    return margin, alpha, least, place, 1 / total, entropy, longest


def _literal(x, y):
    logits = (x.float() * y.float().unsqueeze(1)).sum(2)
    s = logits.softmax(1)
    order = logits.sort(1, descending=True)
    alpha, top = order.indices[:, 0], order.values
    margin = top[:, :1] - logits
    entropy = -(s * s.log()).sum(1)
    longest = x.float().norm(dim=2).amax(1)
    return margin, alpha, top[:, 0] - top[:, 1], order.indices[:, 1], s.amax(1), entropy, longest
