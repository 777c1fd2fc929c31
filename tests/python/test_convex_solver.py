"""kktorch.convex: solutions against their programs, recomputed outside of the solver; heads, gates,
certificates; errors."""

import math
import re

import pytest
import torch
from convex_cases import (
    LOSSES,
    data_loss,
    factored_objective,
    golden,
    objective,
    predictions,
    sines,
)
from kktorch import convex, nn

BOTH = pytest.mark.parametrize("gated", [False, True], ids=["", "gated"])
EACH = pytest.mark.parametrize("loss", LOSSES)


def solved(loss, gated, rho=0.3, tol_rel=1e-10):
    X, Y, gates = golden(loss, gated)
    beta = rho * convex.beta_max(X, Y, loss=loss, gates=gates)
    return X, Y, gates, convex.solve(X, Y, beta, loss=loss, gates=gates, tol_rel=tol_rel)


@EACH
@BOTH
def test_optimality_conditions_hold_outside_of_the_solver(loss, gated):
    X, Y, gates, s = solved(loss, gated)
    assert s.status == "converged" and 0 <= s.gap <= 1e-10 * s.F
    assert abs(objective(X, Y, s.Z, s.beta, loss, gates) - s.F) <= 1e-12 * s.F
    Z = s.Z.clone().requires_grad_()
    (G,) = torch.autograd.grad(data_loss(predictions(X, Z, gates), Y, loss), Z)
    norm, active = s.Z.norm(dim=-1, keepdim=True), s.Z.norm(dim=-1) > 0
    assert int(active.sum()) == s.active_groups
    stationary = (G + s.beta * s.Z / norm)[active]
    assert stationary.norm(dim=-1).max() <= 1e-6 * s.beta
    assert (G.norm(dim=-1)[~active] <= s.beta * (1 + 1e-6)).all()
    mu = {"half_squared": 1, "squared": 2, "logistic": 0.25, "cross_entropy": 0.5}[loss]
    op = torch.linalg.matrix_norm(X.transpose(0, 1), 2).max()
    gap = s.gap + 1e-14 * s.F  # the objective is known to rounding
    assert G.norm(dim=-1).max() <= s.beta + op * math.sqrt(2 * mu * gap)
    # the dual point is feasible, and its value is the bound
    Phi = X if gates is None else X[:, None] * gates[:, :, None, None]
    feasible = torch.einsum("ipkq,il->plkq" if gated else "ikq,il->lkq", Phi, s.multipliers)
    assert feasible.norm(dim=-1).max() <= s.beta * (1 + 1e-12)


@EACH
def test_history_ends_at_the_result(loss):
    s = solved(loss, True)[-1]
    assert s.history.shape == (s.iterations, 4)
    assert s.history[:, 0].tolist() == list(range(1, s.iterations + 1))
    assert (s.history[:, 1].diff() >= 0).all()
    assert abs(s.history[-1, 2] - s.F) <= 1e-12 * s.F
    assert s.reads >= s.iterations


def test_an_orthonormal_design_is_solved_by_one_shrinkage():
    Phi = torch.linalg.qr(sines(20, 12)).Q
    X, Y = Phi.view(20, 4, 3), sines(20, 2, factor=3)
    top = convex.beta_max(X, Y)
    target = (Phi.T @ Y).T.view(2, 4, 3)
    for loss, mu in (("half_squared", 1), ("squared", 2)):
        beta = 0.4 * mu * top
        s = convex.solve(X, Y, beta, loss=loss, tol_rel=1e-14)
        expected = torch.ops.kktorch.group_soft_threshold(
            target, torch.tensor(beta / mu, dtype=torch.float64)
        )
        assert (s.Z[0] - expected).abs().max() <= 1e-12


def test_squared_is_twice_half_squared_and_mean_is_a_scaled_sum():
    X, Y, _ = golden()
    half = convex.solve(X, Y, 0.7, tol_rel=1e-12)
    twice = convex.solve(X, Y, 1.4, loss="squared", tol_rel=1e-12)
    assert abs(twice.F - 2 * half.F) <= 1e-10 * twice.F
    assert (twice.Z - half.Z).abs().max() <= 1e-6
    mean = convex.solve(X, Y, 0.7 / 12, reduction="mean", tol_rel=1e-12)
    assert torch.equal(mean.Z, half.Z) and abs(mean.F * 12 - half.F) <= 1e-12 * half.F
    assert abs(mean.D * 12 - half.D) <= 1e-12 * half.F
    top = convex.beta_max(X, Y)
    assert abs(convex.beta_max(X, Y, reduction="mean") * 12 - top) <= 1e-12 * top


def test_centring_fits_an_intercept():
    X, Y, _ = golden()
    X, Y = X + 2, Y + 5
    s = convex.solve(X, Y, 0.7, center=True, tol_rel=1e-12)
    shifted = convex.solve(X - X.mean(0), Y - Y.mean(0), 0.7, tol_rel=1e-12)
    assert torch.equal(s.Z, shifted.Z)
    A = predictions(X, s.Z) + s.intercept
    assert ((A - Y).mean(0)).abs().max() <= 1e-12
    assert abs(data_loss(A, Y, "half_squared") + 0.7 * s.Z.norm(dim=-1).sum() - s.F) <= 1e-10


def test_float32_is_certified_in_float64():
    X, Y, gates = golden(gated=True)
    s = convex.solve(X.float(), Y.float(), 1.0, gates=gates)
    assert s.Z.dtype == torch.float32 and s.status == "converged" and s.gap <= 1e-4 * s.F
    exact = objective(X.float().double(), Y.float().double(), s.Z.double(), 1.0, gates=gates)
    assert abs(exact - s.F) <= 1e-12 * s.F
    too_much = convex.solve(X.float(), Y.float(), 1.0, gates=gates, tol_rel=1e-13)
    assert too_much.status == "precision_limit"


def test_a_path_is_warm_and_monotone():
    X, Y, gates = golden(gated=True)
    rhos = [10 ** (-k / 5) for k in range(11)]
    path = convex.solve_path(X, Y, rhos, gates=gates, tol_rel=1e-8)
    assert path[0].status == "null_solution" and path[0].gap <= 1e-12 * path[0].F
    F = [s.F for s in path]
    omega = [s.Z.norm(dim=-1).sum() for s in path]
    fit = [data_loss(predictions(X, s.Z, gates), Y, "half_squared") for s in path]
    for before, after in zip(range(10), range(1, 11), strict=True):
        assert F[after] <= F[before] * (1 + 1e-8) and fit[after] <= fit[before] * (1 + 1e-5)
        assert omega[after] >= omega[before] - 1e-4
    cold = convex.solve(X, Y, path[-1].beta, gates=gates, tol_rel=1e-8)
    assert abs(cold.F - path[-1].F) <= 1e-8 * cold.F
    assert path[-1].iterations < cold.iterations


def test_token_ids_are_one_hot_features():
    ids = (sines(40, 3) * 3.5 + 3.5).long()
    Y = torch.arange(40) % 5
    X = torch.nn.functional.one_hot(ids, 7).double()
    gates = convex.sample_gates(X, 4, seed=0).pattern
    top = convex.beta_max(X, Y, loss="cross_entropy", gates=gates)
    options = {"loss": "cross_entropy", "gates": gates, "tol_rel": 1e-12}
    dense = convex.solve(X, Y, 0.2 * top, **options)
    sparse = convex.solve(ids, Y, 0.2 * top, num_values=7, **options)
    assert abs(dense.F - sparse.F) <= 1e-11 * dense.F and sparse.Z.shape == (4, 5, 3, 7)


def test_bits_do_not_depend_on_the_threads():
    X, Y = sines(700, 12, 5), sines(700, 6, factor=3)
    beta = 0.2 * convex.beta_max(X, Y)
    solutions = []
    for threads in (2, 1):
        torch.set_num_threads(threads)
        solutions.append(convex.solve(X, Y, beta))
    one, two = solutions
    assert torch.equal(one.Z, two.Z) and (one.F, one.D) == (two.F, two.D)


def test_importance_and_tokens():
    X, Y, _ = golden()
    s = convex.solve(X, Y, 0.3 * convex.beta_max(X, Y))
    size = s.Z.norm(dim=-1).sum((0, 1))
    assert torch.allclose(s.token_importance, size / size.sum())
    assert s.active_tokens.tolist() == size.nonzero()[:, 0].tolist()
    assert not convex.solve(X, Y, 1e9).token_importance.any()


# Heads


@EACH
@BOTH
def test_recovered_heads_attain_the_optimum(loss, gated):
    X, Y, gates, s = solved(loss, gated)
    heads = convex.recover_heads(s.Z)
    assert len(heads.w1) == s.active_groups
    value = factored_objective(X, Y, heads, s.beta, loss, gates)
    assert abs(value - s.F) <= 1e-13 * s.F
    A = torch.ops.kktorch.convex_attention(
        X, *heads[:3], gate=gates, gate_id=None if gates is None else heads.gate_id
    )
    expected = predictions(X, s.Z, gates)
    assert (A - expected).abs().max() <= 1e-13 * expected.abs().max()
    P = s.Z.shape[0]
    assert (convex.heads_to_z(heads, P) - s.Z).abs().max() <= 1e-14
    padded = convex.recover_heads(s.Z, len(heads.w1) + 3)
    assert not padded.w2[-3:].any() and (padded.w1.sum(1) == 1).all()
    assert torch.equal(convex.heads_to_z(padded, P), convex.heads_to_z(heads, P))
    bound = convex.certify_factored(
        X, Y, s.beta, heads, loss=loss, gates=gates, multipliers=s.multipliers
    )
    assert -1e-12 * s.F <= bound.gap <= 2e-10 * s.F
    with pytest.raises(
        ValueError,
        match=re.escape(
            f"recover_heads: expected h >= {s.active_groups} (active groups), but got 1; "
            "call reduce_heads first or raise h"
        ),
    ):
        convex.recover_heads(s.Z, 1)


def test_recovery_uses_the_token_of_the_group():
    Z = torch.zeros(1, 2, 5, 3, dtype=torch.float64)
    Z[0, 1, 4] = torch.tensor([0.0, 3.0, 4.0])
    heads = convex.recover_heads(Z)
    assert heads.w1.tolist() == [[0, 0, 0, 0, 1]] and heads.w3.tolist() == [[0, math.sqrt(5)]]


def random_heads(count, generator, P=4):
    def normal(*size):
        return torch.randn(size, generator=generator, dtype=torch.float64)

    w1 = torch.ops.kktorch.simplex_project(normal(count, 4))
    gate_id = torch.randint(P, (count,), generator=generator)
    return convex.Heads(w1, normal(count, 3), normal(count, 3), gate_id)


@EACH
def test_the_convex_program_is_below_every_network(loss):
    X, Y, gates, s = solved(loss, True)
    generator = torch.Generator().manual_seed(0)
    for _ in range(250):
        heads = random_heads(int(torch.randint(1, 12, (), generator=generator)), generator)
        Z = convex.heads_to_z(heads, 4)
        S = torch.einsum("jk,ikq,jq->ij", heads.w1, X, heads.w2) * gates[:, heads.gate_id]
        assert (predictions(X, Z, gates) - S @ heads.w3).abs().max() <= 1e-12
        value = factored_objective(X, Y, heads, s.beta, loss, gates)
        assert objective(X, Y, Z, s.beta, loss, gates) <= value * (1 + 1e-13)
        assert s.D <= value


def test_certificates_of_networks():
    X, Y, gates, s = solved("half_squared", True)
    heads = random_heads(7, torch.Generator().manual_seed(1))
    c = convex.certify_factored(X, Y, s.beta, heads, gates=gates, multipliers=s.multipliers)
    value = factored_objective(X, Y, heads, s.beta, gates=gates)
    assert abs(c.objective - value) <= 1e-12 * value
    assert c.D_own <= c.D <= s.F <= c.F * (1 + 1e-12) <= c.balanced * (1 + 2e-12)
    assert c.balanced <= c.objective
    assert abs(c.D - s.D) <= 1e-10 * s.F


def test_reduced_heads_predict_the_same():
    X, Y = sines(5, 9, 4), sines(5, 2, factor=3)
    gates = convex.sample_gates(X, 3, seed=3).pattern
    beta = 0.05 * convex.beta_max(X, Y, gates=gates)
    Z = torch.randn(3, 2, 9, 4, dtype=torch.float64)
    for start in (convex.solve(X, Y, beta, gates=gates).Z, Z):
        reduced = convex.reduce_heads(start, X, gates)
        assert int((reduced.norm(dim=-1) > 0).sum()) <= 5 * 2
        before, after = predictions(X, start, gates), predictions(X, reduced, gates)
        assert (before - after).abs().max() <= 1e-9 * before.abs().max()
        assert reduced.norm(dim=-1).sum() <= start.norm(dim=-1).sum() * (1 + 1e-12)
        F = objective(X, Y, start, beta, gates=gates)
        assert objective(X, Y, reduced, beta, gates=gates) <= F * (1 + 1e-12)


# Sequences


def test_sequence_heads_attain_the_optimum():
    X, Y = sines(6, 3, 2), sines(6, 3, 2, factor=3)
    beta = 0.3 * convex.beta_max(X, Y, penalty="sequence")
    s = convex.solve_sequence(X, Y, beta, tol_rel=1e-11)
    assert s.Z.shape == (2, 2, 2, 3, 3) and (s.Z >= 0).all()
    heads = convex.recover_heads(s.Z)
    assert (heads.w1.sum(-1) - 1).abs().max() <= 1e-12
    A = torch.einsum("j,jrk,ikq,jql->irl", heads.w3, heads.w1, X, heads.w2)
    penalty = heads.w2.abs().sum((1, 2)).square().sum() + heads.w3.square().sum()
    value = (A - Y).square().sum() / 2 + beta / 2 * penalty
    assert abs(value - s.F) <= 1e-12 * s.F
    again = convex.heads_to_z(heads)
    assert (again - s.Z).abs().max() <= 1e-12
    c = convex.certify(X, Y, beta, again, penalty="sequence", multipliers=s.multipliers)
    assert c.gap <= 1e-10 * s.F
    relaxed = convex.solve_sequence(X, Y, beta, variant="substochastic", tol_rel=1e-10)
    assert relaxed.F <= s.F


def test_sequence_networks_that_are_trained_stay_above_the_optimum():
    X, Y = sines(6, 3, 2), sines(6, 3, 2, factor=3)
    beta = 0.3 * convex.beta_max(X, Y, penalty="sequence")
    best = convex.solve_sequence(X, Y, beta, tol_rel=1e-11)
    torch.manual_seed(0)
    for heads in (2, 8):
        network = nn.ConvexAttentionSeq(3, 2, 2, heads).double()
        network.project()
        optimiser = torch.optim.Adam(network.parameters(), 0.02)
        values = []
        for _ in range(300):
            optimiser.zero_grad()
            value = (network(X) - Y).square().sum() / 2 + beta * network.penalty()
            value.backward()
            optimiser.step()
            network.project()
            values.append(value.item())
        assert min(values) >= best.F * (1 - 1e-10)
        assert min(values) < values[0], "it was trained"


# Gates


def test_gates_are_distinct_repeatable_and_stored():
    X = torch.randn(40, 4, 3)
    gates = convex.sample_gates(X, 16, seed=5)
    assert gates.pattern[:, 0].all() and not gates.u1[0].any()
    assert len({tuple(column.tolist()) for column in gates.pattern.T}) == 16
    assert gates.pattern.any(0).all()
    assert torch.equal(convex.apply_gates(X, gates), gates.pattern)
    same = convex.sample_gates(X, 16, seed=5)
    assert torch.equal(same.u1, gates.u1) and torch.equal(same.pattern, gates.pattern)
    assert not torch.equal(convex.sample_gates(X, 16, seed=6).u1, gates.u1)
    simplex = convex.sample_gates(X, 8, seed=0, dist="simplex", include_open=False)
    assert torch.allclose(simplex.u1.sum(1), torch.ones(8, dtype=torch.float64))


@EACH
def test_a_report_on_gates_bounds_the_enlarged_program(loss):
    X, Y, _ = golden(loss)
    old = convex.sample_gates(X, 3, seed=1).pattern
    candidates = convex.sample_gates(X, 12, seed=2, include_open=False).pattern
    beta = 0.3 * convex.beta_max(X, Y, loss=loss, gates=old)
    s = convex.solve(X, Y, beta, loss=loss, gates=old, tol_rel=1e-6)
    report = convex.gate_report(X, Y, s, candidates, loss=loss, gates=old)
    assert report.violation.max() > beta, "a candidate would help"
    for m in range(candidates.shape[1]):
        gates = torch.cat([old, candidates[:, m : m + 1]], 1)
        new = convex.solve(X, Y, beta, loss=loss, gates=gates, tol_rel=1e-9)
        assert new.F <= s.F - report.decrease[m] + 2e-9 * s.F
        assert new.F >= report.bound[m] and new.F >= report.all_gates
        if report.violation[m] <= beta:
            assert new.F >= s.F - s.gap - 1e-12 * s.F


# Against another solver


@EACH
@BOTH
def test_certificates_agree_with_cvxpy(loss, gated):
    cp = pytest.importorskip("cvxpy", reason="cvxpy is not installed (requirements/bench.txt)")
    X, Y, gates, s = solved(loss, gated)
    P, c, n, d = s.Z.shape
    Z = [[[cp.Variable(d) for _ in range(n)] for _ in range(c)] for _ in range(P)]
    open_ = torch.ones(len(X), P) if gates is None else gates.double()
    A = [
        sum(
            cp.multiply(open_[:, p].numpy(), X[:, k].numpy() @ Z[p][out][k])
            for p in range(P)
            for k in range(n)
        )
        for out in range(c)
    ]
    A = cp.vstack(A).T
    if loss == "logistic":
        fit = cp.sum(cp.logistic(-cp.multiply(Y.numpy(), A)))
    elif loss == "cross_entropy":
        own = torch.nn.functional.one_hot(Y, c).numpy()
        fit = cp.sum(cp.log_sum_exp(A, axis=1)) - cp.sum(cp.multiply(own, A))
    else:
        fit = cp.sum_squares(A - Y.numpy()) / (2 if loss == "half_squared" else 1)
    omega = sum(cp.norm(z) for gate in Z for output in gate for z in output)
    value = cp.Problem(cp.Minimize(fit + s.beta * omega)).solve(
        solver="CLARABEL", tol_gap_abs=1e-11, tol_gap_rel=1e-11, tol_feas=1e-11
    )
    assert abs(value - s.F) <= 1e-7 * s.F


def test_the_sequence_program_agrees_with_cvxpy():
    cp = pytest.importorskip("cvxpy", reason="cvxpy is not installed (requirements/bench.txt)")
    X, Y = sines(6, 3, 2), sines(6, 3, 2, factor=3)
    beta = 0.3 * convex.beta_max(X, Y, penalty="sequence")
    s = convex.solve_sequence(X, Y, beta, tol_rel=1e-11)
    blocks, sums, fit = [], [], 0
    A = {(i, out): 0 for i in range(6) for out in range(2)}
    for sign in (1, -1):
        for out in range(2):
            for q in range(2):
                block, t = cp.Variable((3, 3), nonneg=True), cp.Variable()
                blocks.append(cp.sum(block, axis=1) == t)
                sums.append(t)
                for i in range(6):
                    A[i, out] = A[i, out] + sign * (block @ X[i, :, q].numpy())
    fit = sum(cp.sum_squares(A[i, out] - Y[i, :, out].numpy()) for i, out in A) / 2
    value = cp.Problem(cp.Minimize(fit + beta * sum(sums)), blocks).solve(solver="CLARABEL")
    assert abs(value - s.F) <= 1e-7 * s.F


# Errors


def problem(**changes):
    X, Y, _ = golden()
    return {"X": X, "Y": Y, "beta": 1.0} | changes


NAN = golden()[0].clone()
NAN[3, 2, 1] = torch.nan
ERRORS = [
    ({"X": torch.zeros(12, 4)}, "X of shape [N, n, d] with n, d >= 1, but got [12, 4]"),
    ({"X": torch.zeros(0, 4, 3)}, "N >= 1, but got [0, 4, 3]"),
    ({"X": torch.zeros(12, 0, 3)}, "X of shape [N, n, d] with n, d >= 1, but got [12, 0, 3]"),
    ({"X": torch.zeros(12, 4, 3, dtype=torch.int32)}, "dtype float32 or float64, but got X Int"),
    ({"X": torch.zeros(12, 4, 3).half()}, "dtype float32 or float64, but got X Half"),
    ({"X": torch.zeros(12, 4, 3).to(torch.complex128)}, "dtype float32 or float64, but got X Comp"),
    ({"X": torch.zeros(12, 4, 3).to_sparse()}, "dense X on the CPU, but got Sparse on cpu"),
    ({"X": torch.zeros(12, 4, 3, device="meta")}, "dense X on the CPU, but got Strided on meta"),
    ({"Y": torch.zeros(11, 3).double()}, "Y with 12 rows, but got [11, 3]"),
    ({"Y": torch.zeros(12).double()}, "Y of shape [N, c], but got [12]"),
    ({"Y": torch.zeros(12).long()}, "one device and one dtype for all tensors, but got X Double"),
    ({"Y": torch.zeros(12, 3)}, "one device and one dtype for all tensors, but got X Double"),
    ({"X": NAN}, "finite values in X, but got nan at [3, 2, 1]"),
    ({"Y": NAN[:, :, 1] * 1}, "finite values in Y, but got nan at [3, 2]"),
    ({"beta": 0.0}, "finite beta > 0, but got 0"),
    ({"beta": -1.0}, "finite beta > 0, but got -1"),
    ({"beta": math.inf}, "finite beta > 0, but got inf"),
    ({"beta": math.nan}, "finite beta > 0, but got nan"),
    (
        {"loss": "logistic", "Y": torch.eye(12, dtype=torch.float64) * 1.5 - 1},
        "logistic targets -1 or +1, but got 0.5 at [0, 0]",
    ),
    (
        {"loss": "hinge"},
        "loss one of half_squared, squared, logistic, cross_entropy, but got hinge",
    ),
    (
        {"loss": "cross_entropy", "Y": torch.tensor([3] * 12), "classes": 3},
        "class ids in [0, 3), but got 3 at row 0",
    ),
    (
        {"loss": "cross_entropy", "Y": torch.zeros(12, dtype=torch.int64) - 1, "classes": 3},
        "class ids in [0, 3), but got -1 at row 0",
    ),
    (
        {"loss": "cross_entropy", "Y": torch.full((12, 3), 0.5).double()},
        "target probabilities >= 0 with sum 1 (tolerance 1e-6), but got row 0 with sum 1.5",
    ),
    (
        {"loss": "cross_entropy", "Y": torch.tensor([[1.5, -0.5]] * 12).double()},
        "target probabilities >= 0 with sum 1 (tolerance 1e-6), but got row 0 with sum 1",
    ),
    (
        {"loss": "cross_entropy", "Y": torch.ones(12, 1).double()},
        "c >= 2 for cross_entropy, but got 1",
    ),
    (
        {"loss": "cross_entropy", "Y": torch.zeros(12, dtype=torch.int64)},
        "c >= 2 for cross_entropy, but got 1",
    ),
    ({"X": torch.zeros(12, 4).long(), "num_values": -1}, "dtype float32 or float64, but got X Lon"),
    ({"num_values": 3}, "token ids X int64 of shape [N, n] with N, n >= 1, but got Double"),
    (
        {"gates": torch.ones(11, 2)},
        "gate of shape [N, P] with entries 0 or 1, N = 12, but got [11, 2]",
    ),
    ({"gates": torch.full((12, 2), 0.5)}, "gate of shape [N, P] with entries 0 or 1"),
    ({"gates": torch.full((12, 2), 2)}, "gate of shape [N, P] with entries 0 or 1"),
    ({"gates": torch.zeros(12, 2)}, "at least one gate open on at least one sample, but got none"),
    ({"Z0": torch.zeros(1, 3, 4, 2)}, "Z0 of shape [P, c, n, d], [1, 3, 4, 3], but got"),
    (
        {"Z0": torch.full((1, 3, 4, 3), torch.inf)},
        "finite values in Z0, but got inf at [0, 0, 0, 0]",
    ),
    ({"penalty": "l1"}, "penalty one of group, nuclear, sequence, substochastic, but got l1"),
    ({"reduction": "none"}, "reduction sum or mean, but got none"),
    (
        {"center": True, "loss": "logistic"},
        "a squared loss without gates for center=true, but got logistic, P = 1",
    ),
    (
        {"center": True, "gates": torch.ones(12, 2)},
        "a squared loss without gates for center=true, but got half_squared, P = 2",
    ),
]


@pytest.mark.parametrize("change, message", ERRORS)
def test_a_wrong_argument_is_named(change, message):
    with pytest.raises((RuntimeError, ValueError)) as caught:
        convex.solve(**problem(**change))
    assert str(caught.value).startswith(f"solve: expected {message}")


def test_errors_of_the_other_functions():
    X, Y, _ = golden()
    for rhos in ([0.5, 0.5], [1.5], [0.1, 0.2], [0.0]):
        with pytest.raises(ValueError, match=r"solve_path: expected rhos in \(0, 1\], descending"):
            convex.solve_path(X, Y, rhos)
    with pytest.raises(RuntimeError, match="beta_max: expected Y with 12 rows"):
        convex.beta_max(X, Y[1:])
    with pytest.raises(RuntimeError, match=r"certify: expected Z of shape \[P, c, n, d\]"):
        convex.certify(X, Y, 1.0, torch.zeros(2, 3, 4, 3))
    with pytest.raises(RuntimeError, match=r"certify: expected multipliers of shape \[12, 3\]"):
        convex.certify(X, Y, 1.0, torch.zeros(1, 3, 4, 3), multipliers=Y[1:])
    with pytest.raises(ValueError, match="solve_sequence: expected at most 2e8 variables, but got"):
        big = torch.zeros(1, 3000, 4)
        convex.solve_sequence(big, torch.zeros(1, 3000, 3), 1.0)
    with pytest.raises(ValueError, match="expected token ids in .*0, 3.*, but got 3 at"):
        convex.solve(torch.tensor([[0, 3]]), torch.ones(1, 1), 1.0, num_values=3)
    ids = torch.zeros(4, dtype=torch.int64)
    with pytest.raises(
        ValueError, match=r"heads_to_z: expected gate_id int64 \[h\] with values in"
    ):
        convex.heads_to_z(convex.Heads(*[torch.ones(4, 2)] * 3, ids + 5), 2)
    for wrong in (ids[1:], ids.int()):
        with pytest.raises(RuntimeError, match=r"heads_to_z: expected gate_id int64 \[h\]"):
            convex.heads_to_z(convex.Heads(*[torch.ones(4, 2)] * 3, wrong), 2)
    with pytest.raises(ValueError, match="reduce_heads: expected at most 5e7 entries"):
        convex.reduce_heads(torch.ones(1, 600, 50, 1), torch.zeros(40, 50, 1))


def test_errors_of_gates():
    X, Y, _ = golden()
    s = convex.solve(X, Y, 1.0)
    with pytest.raises(RuntimeError, match=r"gate_report: expected gate of shape \[N, P\] with"):
        convex.gate_report(X, Y, s, torch.full((12, 2), 3))
    with pytest.raises(RuntimeError, match="gate_report: expected Y with 12 rows"):
        convex.gate_report(X, Y[1:], s, torch.ones(12, 2))
    with pytest.raises(RuntimeError, match=r"gate_report: expected Z of shape \[P, c, n, d\]"):
        convex.gate_report(X, Y, s, torch.ones(12, 2), gates=torch.ones(12, 2))
    with pytest.raises(ValueError, match="sample_gates: expected P >= 1, but got 0"):
        convex.sample_gates(X, 0, seed=1)
    with pytest.raises(ValueError, match="expected dist one of gaussian, simplex, but got uniform"):
        convex.sample_gates(X, 2, seed=1, dist="uniform")
    with pytest.raises(RuntimeError, match=r"apply_gates: expected X \[N, n, d\], u1 \[P, n\]"):
        convex.apply_gates(X[:, 1:], convex.sample_gates(X, 2, seed=1))
