"""Other solvers of the convex program of attention, a group lasso. Each maker takes the problem and
returns a function of a tolerance that returns Z [P, c, n, d]. Gates are kktorch.convex.Gates."""

import contextlib

import numpy as np
import torch


def eager_fista(X, Y, beta, loss, gates, c, compiled=False):
    """FISTA with restart in PyTorch; stops at the relative gap of its own dual point."""
    N, n, d = X.shape
    Phi = X.flatten(1)
    g = torch.ones(N, 1, dtype=X.dtype) if gates is None else gates.pattern.to(X.dtype)
    P = g.shape[1]
    entropy = loss == "cross_entropy"
    q = torch.nn.functional.one_hot(Y, c).to(X.dtype) if entropy else Y

    def predict(Z):
        return ((Phi @ Z.view(P * c, n * d).T).view(N, P, c) * g[..., None]).sum(1)

    def adjoint(R):
        return ((g[..., None] * R[:, None]).view(N, P * c).T @ Phi).view(P, c, n, d)

    def residual(A):
        return A.softmax(1) - q if entropy else A - q

    def data_loss(A):
        if entropy:
            return torch.logsumexp(A, 1).sum() - (q * A).sum()
        return (A - q).square().sum() / 2

    def dual(R, largest):
        if entropy:
            s = (beta / largest).clamp_max(1)
            p = q + s * R
            return -torch.xlogy(p, p).sum()
        rr, ry = R.square().sum(), (R * q).sum()
        s = (-ry / rr).clamp(-beta / largest, beta / largest)
        return -s * s * rr / 2 - s * ry

    def iteration(Z, V, t, lip):
        A = predict(V)
        R = residual(A)
        G = adjoint(R)
        U = V - G / lip
        size = torch.linalg.vector_norm(U, dim=-1, keepdim=True)
        Zn = U * (1 - beta / lip / size.clamp_min(beta / lip))
        restart = ((V - Zn) * (Zn - Z)).sum() > 0
        tn = torch.where(restart, 1.0, (1 + (1 + 4 * t * t).sqrt()) / 2)
        m = torch.where(restart, 0.0, (t - 1) / tn)
        F = data_loss(predict(Zn)) + beta * torch.linalg.vector_norm(Zn, dim=-1).sum()
        D = dual(R, torch.linalg.vector_norm(G, dim=-1).max())
        return Zn, Zn + m * (Zn - Z), tn, F, D

    if compiled:
        iteration = torch.compile(iteration, dynamic=False)

    def norm_squared():
        v = torch.randn(P, 1, n, d, generator=torch.Generator().manual_seed(1), dtype=X.dtype)
        for _ in range(50):
            v = v / v.norm()
            A = ((Phi @ v.view(P, n * d).T) * g).sum(1, keepdim=True)
            v = ((g * A).T @ Phi).view(P, 1, n, d)
        return float(v.norm())

    def solve(tolerance):
        lip = 1.01 * (0.5 if entropy else 1.0) * norm_squared()
        Z = V = torch.zeros(P, c, n, d, dtype=X.dtype)
        t, best = torch.ones((), dtype=X.dtype), -np.inf
        for _ in range(20000):
            Z, V, t, F, D = iteration(Z, V, t, lip)
            best = max(best, float(D))
            if float(F) - best <= tolerance * float(F):
                break
        return Z

    return solve


def compiled_fista(*problem):
    return eager_fista(*problem, compiled=True)


def celer(X, Y, beta, loss, gates, c):
    """1/(2N) |y - Phi w|^2 + alpha sum |w_g|, alpha = beta / N, for one output after another."""
    from celer import GroupLasso

    N, n, d = X.shape
    Phi = np.asfortranarray(X.flatten(1).numpy())

    def solve(tolerance):
        Z = np.zeros((1, c, n, d))
        for output in range(c):
            model = GroupLasso(
                groups=d, alpha=beta / N, tol=tolerance, fit_intercept=False, max_iter=1000
            )
            model.fit(Phi, Y[:, output].numpy())
            Z[0, output] = model.coef_.reshape(n, d)
        return torch.from_numpy(Z)

    return solve


def skglm(X, Y, beta, loss, gates, c):
    from skglm import GeneralizedLinearEstimator
    from skglm.datafits import QuadraticGroup
    from skglm.penalties import WeightedGroupL2
    from skglm.solvers import GroupBCD
    from skglm.utils.data import grp_converter

    N, n, d = X.shape
    Phi = np.asfortranarray(X.flatten(1).numpy())
    indices, pointers = grp_converter(d, n * d)

    def solve(tolerance):
        Z = np.zeros((1, c, n, d))
        for output in range(c):
            model = GeneralizedLinearEstimator(
                QuadraticGroup(pointers, indices),
                WeightedGroupL2(beta / N, np.ones(n), pointers, indices),
                GroupBCD(tol=tolerance, fit_intercept=False, max_iter=1000),
            )
            model.fit(Phi, Y[:, output].numpy())
            Z[0, output] = model.coef_.reshape(n, d)
        return torch.from_numpy(Z)

    return solve


def scnn(X, Y, beta, loss, gates, c):
    """Gated ReLU networks on one token, where its groups are ours: by R-FISTA,
    1/(2 N c) |Y - A|^2 + lam sum |z_pl|, lam = beta / (N c); gates are open at u'x > 0."""
    from scnn.metrics import Metrics
    from scnn.models import ConvexGatedReLU
    from scnn.optimize import optimize_model
    from scnn.regularizers import NeuronGL1
    from scnn.solvers import RFISTA

    N, n, d = X.shape
    assert n == 1
    vectors = (gates.u1 * gates.u2).numpy()  # [P, d]
    features, targets, lam = X[:, 0].numpy(), Y.numpy(), beta / (N * c)

    def solve(tolerance):
        model = ConvexGatedReLU(vectors.T.copy(), c=c)
        solver = RFISTA(model, max_iters=20000, tol=(tolerance * lam) ** 2)
        with _default_dtype():  # which it changes
            model, _ = optimize_model(
                model,
                solver,
                Metrics(),
                features,
                targets,
                regularizer=NeuronGL1(lam),
                return_convex=True,
                unitize_data=False,
                dtype="float64",
            )
        # Its gates come back in another order.
        place = [int(np.abs(vectors - own).max(1).argmin()) for own in model.G.T]
        Z = np.zeros((len(vectors), c, 1, d))
        Z[place] = model.parameters[0].transpose(1, 0, 2)[:, :, None]
        return torch.from_numpy(Z)

    return solve


@contextlib.contextmanager
def _default_dtype():
    before = torch.get_default_dtype()
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def clarabel(X, Y, beta, loss, gates, c):
    import cvxpy

    N, n, d = X.shape
    Phi = X.flatten(1).numpy()
    open_gates = np.ones((N, 1)) if gates is None else gates.pattern.double().numpy()
    P = open_gates.shape[1]

    def solve(tolerance):
        blocks = [[cvxpy.Variable(n * d) for _ in range(c)] for _ in range(P)]
        outputs = [
            sum(cvxpy.multiply(open_gates[:, p], Phi @ blocks[p][output]) for p in range(P))
            for output in range(c)
        ]
        penalty = sum(
            cvxpy.norm(z[k * d : (k + 1) * d]) for row in blocks for z in row for k in range(n)
        )
        if loss == "half_squared":
            data = sum(
                cvxpy.sum_squares(a - Y[:, output].numpy()) for output, a in enumerate(outputs)
            )
            data = data / 2
        else:
            A = cvxpy.vstack(outputs).T
            hot = torch.nn.functional.one_hot(Y, c).double().numpy()
            data = cvxpy.sum(cvxpy.log_sum_exp(A, axis=1)) - cvxpy.sum(cvxpy.multiply(hot, A))
        model = cvxpy.Problem(cvxpy.Minimize(data + beta * penalty))
        model.solve(solver=cvxpy.CLARABEL, tol_gap_rel=tolerance, tol_gap_abs=tolerance)
        Z = np.array([[z.value.reshape(n, d) for z in row] for row in blocks])
        return torch.from_numpy(Z)

    return solve


SOLVERS = {
    "eager FISTA": eager_fista,
    "compile(eager FISTA)": compiled_fista,
    "celer": celer,
    "skglm": skglm,
    "scnn": scnn,
    "cvxpy + Clarabel": clarabel,
}
