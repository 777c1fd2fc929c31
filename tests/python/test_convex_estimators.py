"""The estimators of kktorch.convex: what scikit-learn expects, and what they fit."""

import numpy as np
import pytest
import torch
from kktorch import convex
from sklearn.utils.estimator_checks import parametrize_with_checks

ESTIMATORS = [
    convex.ConvexAttentionRegressor(),
    convex.ConvexAttentionClassifier(rho=0.1, tol=1e-3),  # unscaled data take many iterations
]


@parametrize_with_checks(ESTIMATORS)
def test_scikit_learn_accepts_the_estimator(estimator, check):
    check(estimator)


def planted(classes=0):
    """Sequences of which tokens 2 and 5 matter."""
    generator = np.random.default_rng(0)
    X = generator.standard_normal((300, 8, 3))
    A = np.stack([X[:, 2, 0] - X[:, 5, 1], X[:, 2, 1], X[:, 5, 2]], 1)
    return X, A.argmax(1) if classes else A + 3 + 0.01 * generator.standard_normal(A.shape)


def test_regression_finds_the_tokens_and_certifies_them():
    X, Y = planted()
    model = convex.ConvexAttentionRegressor(rho=0.1).fit(X, Y)
    assert model.certificate_.status == "converged"
    assert model.certificate_.gap <= 1e-6 * model.certificate_.objective
    assert model.token_importance_.nonzero()[0].tolist() == [2, 5]
    assert model.score(X, Y) > 0.97
    flat = convex.ConvexAttentionRegressor(rho=0.1, tokens=8).fit(X.reshape(300, -1), Y)
    assert np.array_equal(flat.coef_, model.coef_)
    Z = torch.from_numpy(model.coef_)
    again = torch.einsum("lkq,ikq->il", Z[0], torch.from_numpy(X)).numpy() + model.intercept_
    assert np.allclose(model.predict(X), again)


def test_classification_with_labels_of_any_kind():
    X, ids = planted(classes=3)
    labels = np.array(["a", "b", "c"])[ids]
    model = convex.ConvexAttentionClassifier(rho=0.05, gates=4).fit(X[:200], labels[:200])
    assert model.score(X[200:], labels[200:]) > 0.9
    assert model.predict_proba(X).sum(1) == pytest.approx(1)
    assert len(model.token_importance_) == 8 and model.token_importance_[[2, 5]].sum() > 0.5


def test_wrong_arguments_are_named():
    X, Y = planted()
    with pytest.raises(ValueError, match="expected tokens to divide 24 features, but got 7"):
        convex.ConvexAttentionRegressor(tokens=7).fit(X.reshape(300, -1), Y)
    with pytest.raises(ValueError, match="expected X of 2 or 3 dimensions, but got 4"):
        convex.ConvexAttentionRegressor().fit(X[..., None], Y)
