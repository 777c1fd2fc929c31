"""Problems of convex attention without a random generator, and their programs in plain torch."""

import torch

LOSSES = ["half_squared", "squared", "logistic", "cross_entropy"]
N, n, d, c, P = 12, 4, 3, 3, 4


def sines(*size, factor=1.0):
    """sin(factor m^2) for m = 1, 2, ... in C order."""
    m = torch.arange(1, torch.Size(size).numel() + 1, dtype=torch.float64)
    return (factor * m * m).sin().view(size)


def golden(loss="half_squared", gated=False):
    """X, Y and the gate patterns (or None) of the golden data."""
    X, Y = sines(N, n, d), sines(N, c, factor=3)
    if loss == "logistic":
        Y = torch.where(Y >= 0, 1.0, -1.0).double()
    if loss == "cross_entropy":
        Y = torch.arange(N) % c
    if not gated:
        return X, Y, None
    u1, u2 = sines(P, n, factor=5), sines(P, d, factor=7)
    u1[0] = u2[0] = 0
    return X, Y, torch.einsum("pk,ikq,pq->ip", u1, X, u2) >= 0


def predictions(X, Z, gates=None):
    """A_il = sum_p g_ip <Z[p,l], X_i>."""
    A = torch.einsum("plkq,ikq->ipl", Z, X)
    return (A if gates is None else A * gates[..., None]).sum(1)


def data_loss(A, Y, loss):
    if loss == "half_squared":
        return (A - Y).square().sum() / 2
    if loss == "squared":
        return (A - Y).square().sum()
    if loss == "logistic":
        return torch.nn.functional.softplus(-Y * A).sum()
    return torch.nn.functional.cross_entropy(A, Y, reduction="sum")


def objective(X, Y, Z, beta, loss="half_squared", gates=None):
    """F(Z) by its definition."""
    return data_loss(predictions(X, Z, gates), Y, loss) + beta * Z.norm(dim=-1).sum()


def factored_objective(X, Y, heads, beta, loss="half_squared", gates=None):
    """The objective of a network of heads by its definition."""
    S = torch.einsum("jk,ikq,jq->ij", heads.w1, X, heads.w2)
    S = S if gates is None else S * gates[:, heads.gate_id]
    penalty = heads.w2.square().sum() + heads.w3.abs().sum(1).square().sum()
    return data_loss(S @ heads.w3, Y, loss) + beta / 2 * penalty
