"""Experiment e1 of shallow transformers (error of linearisation at four points of the balls),
written the straightforward way from the formulas: autograd for gradients, torch.func for the
linearised model, one trial after the other. Nothing of kktorch."""

import math

import torch
from torch.func import jvp


def heads(X, q, W, U):
    """tanh(U_i^T a_i), [n, m]."""
    p = torch.softmax(torch.einsum("ntd,mde,ne->nmt", X, W, q), -1)
    return torch.tanh((p @ X * U).sum(-1))


def model(X, q, W, U, c):
    return heads(X, q, W, U) @ c / math.sqrt(len(c))


def gradients(X, q, W, U):
    """Of every head at one sample: [m, d, d], [m, d]."""
    W, U = W.detach().requires_grad_(), U.detach().requires_grad_()
    return torch.autograd.grad(heads(X[None], q[None], W, U).sum(), (W, U))


def norms(t):
    """Of every head."""
    return t.reshape(len(t), -1).norm(dim=1).view(-1, *[1] * (t.dim() - 1))


def unit(t):
    return t / norms(t)


def inside(t, radius):
    return t * (radius / norms(t)).clamp(max=1)


def tokens(n, length, width):
    X = torch.randn(n, length, width, dtype=torch.float64)
    return X * (1 / X.norm(dim=-1, keepdim=True)).clamp(max=1)


def transport(anchors, W, U, nu):
    """Means over the anchors of the maps of c, U and W."""
    parts = []
    for X in anchors:
        gW, gU = gradients(X, X[-1], W, U)
        parts.append((nu * heads(X[None], X[None, -1], W, U)[0], nu * gU, inside(gW, nu)))
    return [torch.stack(part).mean(0) for part in zip(*parts, strict=True)]


def ascent(X, q, start, point, radius, steps):
    """The largest |f - f_lin| of projected, block-normalised gradient ascent at one sample."""
    best, largest = point, -1.0
    for step in range(steps + 1):
        at = [t.detach().requires_grad_() for t in point]
        moved = tuple(a - s for a, s in zip(at, start, strict=True))
        error = (model(X, q, *at) - jvp(lambda *t: model(X, q, *t), tuple(start), moved)[1]).abs()
        if error.item() > largest:
            best, largest = point, error.item()
        if step < steps:
            slopes = torch.autograd.grad(error, at)
            point = [
                s + inside(p + 0.2 * radius * unit(g) - s, radius)
                for p, g, s in zip(point, slopes, start, strict=True)
            ]
    return best


def trial(n, length, width, m, rho, anchors, steps):
    """sup |f - f_lin| by point."""
    X = tokens(n, length, width)
    q = X[:, -1]
    W, U = torch.randn(m // 2, width, width), torch.randn(m // 2, width)
    c = torch.randint(2, (m // 2,)).double() * 2 - 1
    start = [torch.cat([t, t]).double() for t in (W, U)] + [torch.cat([c, -c])]
    radius = rho / math.sqrt(m)
    gW, gU = gradients(X[0], q[0], *start[:2])
    random = [t + radius * unit(torch.randn_like(t)) for t in start]
    aligned = [start[0] + radius * unit(gW), start[1] + radius * unit(gU), start[2] + radius]
    v = transport(tokens(anchors, length, width), *start[:2], rho)
    scale = start[2] / math.sqrt(m)
    comparator = [
        start[0] + scale.view(-1, 1, 1) * v[2],
        start[1] + scale.view(-1, 1) * v[1],
        start[2] + v[0] / math.sqrt(m),
    ]
    points = {"random": random, "aligned": aligned, "comparator": comparator}
    points["ascent"] = ascent(X[:1], q[:1], start, aligned, radius, steps)
    errors = {}
    for name, point in points.items():
        moved = tuple(p - s for p, s in zip(point, start, strict=True))
        linear = jvp(lambda *t: model(X, q, *t), tuple(start), moved)[1]
        errors[name] = float((model(X, q, *point) - linear).abs().max())
    return errors


def e1(trials, numbers_of_heads, n, length, width, rho, anchors, steps):
    """Mean over the trials of sup |f - f_lin|: {point: [one for each number of heads]}."""
    torch.manual_seed(1)
    means = {}
    for m in numbers_of_heads:
        found = [trial(n, length, width, m, rho, anchors, steps) for _ in range(trials)]
        for name in found[0]:
            mean = sum(errors[name] for errors in found) / trials
            means.setdefault(name, []).append(mean)
    return means
