"""The experiments local_converge and svm_rank of attention SVMs, written the straightforward way
from the formulas: PyTorch autograd for the descent, cvxpy for the SVMs, one trial after the other.

Nothing of kktorch. Data are drawn as its program draws them, so that both compute the same numbers.
"""

import contextlib
import io
import math

import torch
from torch.nn import functional as F


def draw(seed: int, n: int, length: int, width: int):
    """v, labels, tokens, queries."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*size):
        return torch.randn(*size, generator=generator)

    v, labels = F.normalize(normal(width), dim=0), normal(n).gt(0).double() * 2 - 1
    tokens, queries = (
        F.normalize(normal(*size), dim=-1) for size in [(n, length, width), (n, width)]
    )
    return v.double(), labels, tokens.double(), queries.double()


def weights(seed: int, *shapes):
    generator = torch.Generator().manual_seed(seed + 1000000)
    width = shapes[0][0]
    count = sum(rows * columns for rows, columns in shapes)
    numbers = (2 * torch.rand(count, generator=generator).double() - 1) / math.sqrt(width)
    parts = numbers.split([rows * columns for rows, columns in shapes])
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


def solve(tokens, queries, alpha, norm: str):
    """w [d, d], or None if the solver finds none."""
    import cvxpy

    n, length, width = tokens.shape
    keep = torch.arange(length)[None] != alpha[:, None]
    differences = (tokens[torch.arange(n), alpha][:, None] - tokens)[keep]
    queries = queries[:, None].expand(n, length, width)[keep]
    w = cvxpy.Variable((width, width))
    rows = (differences[:, :, None] * queries[:, None, :]).flatten(1).numpy()
    size = cvxpy.normNuc(w) if norm == "nuclear" else cvxpy.sum_squares(w)
    model = cvxpy.Problem(cvxpy.Minimize(size), [rows @ cvxpy.vec(w, order="C") >= 1])
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            model.solve(solver=cvxpy.SCS if norm == "nuclear" else cvxpy.CLARABEL)
    except cvxpy.SolverError:
        return None
    return None if w.value is None else torch.from_numpy(w.value)


def cosine(a, b) -> float:
    return float((a * b).sum() / (a.norm() * b.norm()))


def descend(data, parameters, iterations: int, until: int, every: int):
    """W at the logged iterations, and the selection at the end."""
    v, labels, tokens, queries = data
    parameters = [p.clone().requires_grad_() for p in parameters]
    eps, logged = 2.220446049250313e-16, []

    def merged():
        return parameters[0] if len(parameters) == 1 else parameters[0] @ parameters[1].t()

    for k in range(iterations + 1):
        s = torch.einsum("ntd,de,ne->nt", tokens, merged(), queries).softmax(1)
        if k <= until and k % every == 0:
            logged.append((merged().detach().clone(), float(s.detach().amax(1).mean())))
        if k == iterations:
            return logged, s.argmax(1)
        loss = F.softplus(-labels * torch.einsum("nt,ntd,d->n", s, tokens, v)).mean()
        if len(parameters) == 2:
            loss = loss + eps * sum(p.square().sum() for p in parameters)
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for p, g in zip(parameters, gradients, strict=True):
                p -= 0.1 * g / (g.norm() + eps)
    raise AssertionError("not reached")


def local_converge(seeds) -> dict[str, float]:
    """Means at iteration 1000 of cos(W, Wmm) for W, and of cos(W, Wmm*) for (K, Q)."""
    found = {"W": [], "(K, Q)": []}
    for seed in seeds:
        data = draw(seed, 6, 8, 10)
        for name, shapes in ("W", [(10, 10)]), ("(K, Q)", [(10, 10)] * 2):
            logged, alpha = descend(data, weights(seed, *shapes), 2000, 1000, 50)
            solutions = [solve(data[2], data[3], alpha, norm) for norm in ("frobenius", "nuclear")]
            curves = [[cosine(W, w) for w in solutions if w is not None] for W, _ in logged]
            found[name].append(curves[-1][0 if name == "W" else -1])
    return {name: sum(values) / len(values) for name, values in found.items()}


def svm_rank(seeds: int) -> dict[str, float]:
    """Mean rank of the Frobenius solution by width, infeasible counted as rank 1; both norms are
    solved."""
    means = {}
    for width in (1, 2, 3, 4, 5, 10, 15, 20):
        ranks = []
        for seed in range(1, seeds + 1):
            v, labels, tokens, queries = draw(seed, 5, 5, width)
            alpha = (labels[:, None] * (tokens @ v)).argmax(1)
            w = solve(tokens, queries, alpha, "frobenius")
            ranks.append(1 if w is None else int((torch.linalg.svdvals(w) > 1e-7).sum()))
            if w is not None:
                torch.linalg.svdvals(solve(tokens, queries, alpha, "nuclear"))
        means[str(width)] = sum(ranks) / len(ranks)
    return means
