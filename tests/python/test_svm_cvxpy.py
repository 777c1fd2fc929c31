"""Attention SVMs against cvxpy with the interior-point solver Clarabel."""

import pytest
import torch
from kktorch import svm
from test_svm import pair_features, problem

cvxpy = pytest.importorskip("cvxpy", reason="needs cvxpy and clarabel (requirements/bench.txt)")

TOLERANCES = {f"tol_{name}": 1e-12 for name in ("gap_abs", "gap_rel", "feas")}


@pytest.mark.parametrize("seed", range(50))
def test_frobenius_solution(seed):
    sets, alpha = problem(2 + seed % 4, 3 + seed % 3, 4 + seed % 5, 4 + seed % 3, seed)
    result = svm.att_svm(*sets[:3], alpha)
    assert result.status == "optimal"
    rows, _ = pair_features(sets, alpha)
    w = cvxpy.Variable(rows.shape[1])
    model = cvxpy.Problem(cvxpy.Minimize(cvxpy.sum_squares(w)), [rows.numpy() @ w >= 1])
    model.solve(solver=cvxpy.CLARABEL, **TOLERANCES)
    assert (torch.from_numpy(w.value) - result.w.flatten()).norm() <= 1e-6


@pytest.mark.parametrize("seed", range(5))
def test_nuclear_value(seed):
    sets, alpha = problem(3, 4, 5, 4, seed)
    result = svm.att_svm(*sets[:3], alpha, norm="nuclear", tol=1e-9)
    assert result.status == "optimal"
    rows, _ = pair_features(sets, alpha)
    w = cvxpy.Variable(result.w.shape)
    margins = rows.numpy() @ cvxpy.vec(w, order="C")
    model = cvxpy.Problem(cvxpy.Minimize(cvxpy.normNuc(w)), [margins >= 1])
    value = model.solve(solver=cvxpy.CLARABEL)
    assert abs(value - result.norm) <= 1e-6 * value
