"""One gradient of the training loss over all samples, with the CPU kernels of many small heads
against the same model in PyTorch. Variants: `multihead` (logistic loss of single-layer multi-head
attention, samples x tokens x width x heads) and `shallow` (squared loss of a shallow transformer).
`eager` is the formula with autograd; `closed form` is the published gradient as batched matrix
products, without autograd. `forward` is the output of the model alone: kktorch over it is the price
of a gradient.
"""

import dataclasses
import functools

import torch
import torch.nn.functional as F
from harness import TOTAL, Case, Contender, GateError

NAME = "B8"
TITLE = "B8: gradients of many small heads"
SUBJECT = "kktorch"
MAIN_PEER = "eager"
PRICE = "forward"
GROUPS = ["dtype", "variant"]
ROW = "shape"
CEILING = "FLOP/s"
PLOTS = ["ratios"]
DTYPES = {"float32": torch.float32, "float64": torch.float64}
VARIANTS = {"multihead": True, "shallow": False}  # is the query every token?
_ALLOWED = {torch.float32: 2e-4, torch.float64: 1e-9}  # error of a gradient, relative to its norm

_ops = torch.ops.kktorch


@dataclasses.dataclass
class State:
    """Samples and parameters; q and c belong to the shallow model."""

    X: torch.Tensor
    y: torch.Tensor
    W: torch.Tensor
    U: torch.Tensor
    q: torch.Tensor | None
    c: torch.Tensor | None

    @property
    def parameters(self):
        return [t for t in (self.W, self.U, self.c) if t is not None]


def shapes(variant: str, quick: bool) -> list[str]:
    if quick:
        return ["6x5x4x18"]
    return ["200x10x50x1000"] if VARIANTS[variant] else ["2000x16x8x256"]


def peers(shape: str, variant: str) -> list[str]:
    return [MAIN_PEER, PRICE, "compile(eager)", "closed form", "compile(closed form)"]


def work(shape: str, variant: str) -> dict[str, float]:
    """FLOP of forward and gradient in closed form."""
    n, T, d, heads = _sizes(shape)
    one = 4 * T * d * d + 8 * T * T * d if VARIANTS[variant] else 4 * d * d + 8 * T * d
    return {TOTAL: float(n * heads * one)}


def case(shape: str, dtype: str, variant: str) -> Case:
    state = _state(shape, DTYPES[dtype], variant)
    torch._dynamo.reset()
    functions = {
        SUBJECT: _kktorch, "eager": _eager, "closed form": _closed_form, PRICE: _forward
    }  # fmt: skip

    def make(name: str):
        plain = name.removeprefix("compile(").removesuffix(")")
        function = functools.partial(functions[plain], VARIANTS[variant])
        if plain == "eager":
            loss = torch.compile(_loss, dynamic=False) if plain != name else _loss
            function = functools.partial(_eager, loss, VARIANTS[variant])
        elif plain != name:
            function = torch.compile(function, dynamic=False)
        return Contender(name, {TOTAL: lambda _: function(**vars(state))})

    return Case(
        key={"shape": shape, "dtype": dtype, "variant": variant},
        subject=make(SUBJECT),
        peers=[make(name) for name in peers(shape, variant)],
        check=lambda contenders: _check(contenders, state, VARIANTS[variant]),
        work=work(shape, variant),
    )


def _sizes(shape: str) -> list[int]:
    numbers = [int(text) for text in shape.split("x")]
    if len(numbers) != 4:
        raise ValueError(f"expected a shape like 200x10x50x1000, but got '{shape}'")
    return numbers


def _state(shape: str, dtype: torch.dtype, variant: str) -> State:
    n, T, d, heads = _sizes(shape)
    generator = torch.Generator().manual_seed(1)

    def draw(*size):
        return torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)

    X = F.normalize(draw(n, T, d), dim=-1)
    y = torch.sign(draw(n))
    if VARIANTS[variant]:
        return State(X, y, draw(heads, d, d) / d**0.5, draw(heads, T, d), None, None)
    q = X[:, -1].contiguous()
    return State(X, y, draw(heads, d, d), draw(heads, d), q, torch.sign(draw(heads)))


def _check(contenders, state: State, multihead: bool) -> dict:
    """Errors of the gradients against autograd of the formula in float64, a few samples at a time,
    relative to the norm."""
    exact = [torch.zeros_like(p, dtype=torch.float64) for p in state.parameters]
    n, step = len(state.X), 20
    for i in range(0, n, step):
        part = {
            name: t if t is None or name in "WUc" else t[i : i + step]
            for name, t in vars(state).items()
        }
        part = {name: t if t is None else t.double() for name, t in part.items()}
        weight = len(part["y"]) / n
        for total, gradient in zip(exact, _eager(_loss, multihead, **part), strict=True):
            total += weight * gradient
    errors = {}
    for each in contenders:
        if each.name == PRICE:
            continue
        gradients = each.phases[TOTAL](None)
        errors[each.name] = {
            name: float((g.double() - e).norm() / e.norm())
            for name, g, e in zip(["W", "U", "c"], gradients, exact, strict=False)
        }
        worst = max(errors[each.name].values())
        if worst > _ALLOWED[state.X.dtype]:
            raise GateError(f"{each.name}: expected gradients, but got an error of {worst:.1e}")
    return errors


def _kktorch(multihead, X, y, W, U, q, c):
    if multihead:
        return _ops.mhgd_loss_grad(X, y, W, U)[2:]
    return _ops.shk_loss_grad(X, q, y, W, U, c)[2:]


def _forward(multihead, X, y, W, U, q, c):
    return _ops.mhgd_logits(X, W, U) if multihead else _ops.shk_output(X, q, W, U, c)


def _loss(multihead, X, y, W, U, q, c):
    if multihead:
        scores = torch.einsum("ntk,hke,nse->nhts", X, W, X)
        attended = torch.einsum("nhts,nse->nhte", scores.softmax(-1), X)
        phi = torch.einsum("nhte,hte->n", attended, U) / len(W) ** 0.5
        return F.softplus(-y * phi, threshold=40).mean()  # exact in float64
    scores = torch.einsum("nte,hek,nk->nht", X, W, q)
    attended = torch.einsum("nht,nte->nhe", scores.softmax(-1), X)
    f = torch.tanh(torch.einsum("nhe,he->nh", attended, U)) @ c / len(c) ** 0.5
    return (f - y).square().mean()


def _eager(loss, multihead, X, y, W, U, q, c):
    parameters = [t.detach().requires_grad_() for t in (W, U, c) if t is not None]
    value = loss(multihead, X, y, *parameters[:2], q, c if multihead else parameters[2])
    return torch.autograd.grad(value, parameters)


def _closed_form(multihead, X, y, W, U, q, c):
    return _closed_multihead(X, y, W, U) if multihead else _closed_shallow(X, y, W, U, q, c)


def _closed_multihead(X, y, W, U):
    (n, T, d), H = X.shape, len(W)
    XW = (X.reshape(n * T, d) @ W.permute(1, 0, 2).reshape(d, H * d)).view(n, T * H, d)
    u = U.permute(1, 0, 2).reshape(T * H, d)
    P = torch.bmm(XW, X.transpose(1, 2)).softmax(-1)
    Z = torch.bmm(P, X)
    st = (Z * u).sum(-1, keepdim=True)
    G = torch.bmm(P * (u @ X.transpose(1, 2) - st), X)
    phi = st.sum((1, 2)) / H**0.5
    r = -y * torch.sigmoid(-y * phi) / (n * H**0.5)
    gU = torch.einsum("n,nte->te", r, Z).view(T, H, d).transpose(0, 1)
    gW = (r[:, None, None] * X).reshape(n * T, d).T @ G.view(n * T, H * d)
    return gW.view(d, H, d).transpose(0, 1), gU


def _closed_shallow(X, y, W, U, q, c):
    n, d, m = len(X), X.shape[2], len(W)
    V = (q @ W.view(m * d, d).T).view(n, m, d)
    P = torch.bmm(V, X.transpose(1, 2)).softmax(-1)
    A = torch.bmm(P, X)
    s = (A * U).sum(-1)
    h = torch.tanh(s)
    G = torch.bmm(P * (U @ X.transpose(1, 2)), X) - s[..., None] * A
    r = 2 * (h @ c / m**0.5 - y) / (n * m**0.5)
    k = r[:, None] * c * (1 - h * h)
    gW = (k[..., None] * G).view(n, m * d).T @ q
    return gW.view(m, d, d), torch.einsum("nm,nmd->md", k, A), r @ h
