"""Training of the factored network beside the convex program that bounds it."""

import pytest
import torch
from convex_cases import c, d, factored_objective, golden, n
from kktorch import convex


def problem(loss):
    X, Y, gates = golden(loss, True)
    beta = 0.3 * convex.beta_max(X, Y, loss=loss, gates=gates)
    best = convex.solve(X, Y, beta, loss=loss, gates=gates, tol_rel=1e-11)
    return X, Y, beta, {"loss": loss, "gates": gates}, best


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("loss", ["half_squared", "cross_entropy"])
def test_palm_with_escapes_meets_the_convex_optimum(loss, seed):
    X, Y, beta, options, best = problem(loss)
    t = convex.train_factored(X, Y, beta, heads=48, seed=seed, **options)
    assert t.objective - best.F <= 1e-6 * best.F and t.escapes <= 5
    assert t.gap <= 1e-4 * t.objective and t.D <= best.F * (1 + 1e-10)
    assert t.objective == pytest.approx(
        factored_objective(X, Y, t.heads, beta, **options).item(), rel=1e-12
    )
    certificate = convex.certify_factored(X, Y, beta, t.heads, **options)
    assert certificate.objective == pytest.approx(t.objective, rel=1e-12)
    assert certificate.gap_own == pytest.approx(t.gap, abs=1e-9 * t.objective)


def test_palm_never_raises_the_objective():
    X, Y, beta, options, best = problem("cross_entropy")
    t = convex.train_factored(X, Y, beta, heads=48, escape=False, **options)
    objective = t.history[:, 2]
    assert (objective.diff() <= 1e-12 * objective[:-1]).all()
    assert t.status in ("stationary", "converged") and t.escapes == 0


@pytest.mark.parametrize("optimiser", ["palm", "adam", "adam_softmax"])
def test_every_step_is_above_the_convex_optimum(optimiser):
    X, Y, beta, options, best = problem("half_squared")
    for heads in (3, 48):  # fewer than the active groups: still a bound
        t = convex.train_factored(
            X, Y, beta, heads=heads, optimiser=optimiser, max_iter=150, max_escapes=1, **options
        )
        assert t.history[:, 2].min() >= best.F * (1 - 1e-10)
        bounded = convex.certify_factored(
            X, Y, beta, t.heads, multipliers=best.multipliers, **options
        )
        assert 0 <= bounded.gap <= t.gap + 1e-9 * t.objective
        assert (t.heads.w1 >= 0).all() and torch.allclose(
            t.heads.w1.sum(1), torch.ones(heads, dtype=torch.float64), rtol=0, atol=1e-12
        )


def test_too_few_heads_are_said():
    X, Y, beta, options, best = problem("half_squared")
    t = convex.train_factored(X, Y, beta, heads=2, **options)
    assert t.status == "insufficient_heads" and t.objective >= best.F


def test_a_recovered_optimum_is_recognised():
    X, Y, beta, options, best = problem("cross_entropy")
    start = convex.recover_heads(best.Z)
    t = convex.train_factored(X, Y, beta, start=start, **options)
    assert t.status == "converged" and t.objective == pytest.approx(best.F, rel=1e-9)


def test_a_wrong_argument_is_named():
    X, Y, _ = golden()
    with pytest.raises(ValueError, match="train_factored: expected heads >= 1, but got 0"):
        convex.train_factored(X, Y, 1.0)
    with pytest.raises(ValueError, match="one of palm, adam, adam_softmax, but got sgd"):
        convex.train_factored(X, Y, 1.0, heads=2, optimiser="sgd")
    zero = convex.Heads(
        *(torch.zeros(2, m, dtype=torch.float64) for m in (n, d, c)), torch.zeros(2).long()
    )
    with pytest.raises(ValueError, match="expected a start with a head that is not zero"):
        convex.train_factored(X, Y, 1.0, start=zero)
    with pytest.raises(RuntimeError, match=r"expected a start w1 \[h, 4\], w2 \[h, 3\]"):
        convex.train_factored(
            X, Y, 1.0, start=convex.Heads(zero.w2, zero.w2, zero.w3, zero.gate_id)
        )
    good = convex.Heads(zero.w1 + 0.25, zero.w2 + 1, zero.w3 + 1, zero.gate_id)
    with pytest.raises(ValueError, match=r"expected gate_id int64 \[h\] with values in \[0, 1\)"):
        convex.train_factored(X, Y, 1.0, start=good._replace(gate_id=zero.gate_id + 1))
    with pytest.raises(RuntimeError, match=r"train_factored: expected gate_id int64 \[h\]"):
        convex.train_factored(X, Y, 1.0, start=good._replace(gate_id=zero.gate_id[1:]))
    with pytest.raises(ValueError, match=r"expected class ids in \[0, 2\), but got 2 at row 2"):
        ids = torch.arange(12) % 3
        convex.train_factored(X, ids, 1.0, heads=2, loss="cross_entropy", classes=2)
