"""Estimators in scikit-learn's style."""

from dataclasses import dataclass

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from kktorch.convex._gates import Gates, apply_gates, sample_gates
from kktorch.convex._solver import beta_max, solve


@dataclass(frozen=True)
class FitCertificate:
    """Of the fitted model: it is within ``gap`` of the global optimum of its program."""

    objective: float
    bound: float
    gap: float
    beta: float
    status: str
    iterations: int


class _ConvexAttention(BaseEstimator):
    def __init__(
        self,
        rho=0.01,
        beta=None,
        tokens=None,
        gates=0,
        fit_intercept=True,
        tol=1e-6,
        max_iter=20000,
        random_state=0,
    ):
        self.rho = rho
        self.beta = beta
        self.tokens = tokens
        self.gates = gates
        self.fit_intercept = fit_intercept
        self.tol = tol
        self.max_iter = max_iter
        self.random_state = random_state

    def _tokens(self, X):
        """[N, n, d] float64; rows of features are cut into ``tokens`` parts, by default into 1."""
        X = torch.from_numpy(np.array(X, dtype=np.float64, order="C"))
        if X.dim() == 2:
            n = X.shape[1] if self.tokens is None else self.tokens
            if n < 1 or X.shape[1] % n:
                raise ValueError(
                    f"{type(self).__name__}: expected tokens to divide {X.shape[1]} features, "
                    f"but got {n}"
                )
            X = X.view(len(X), n, -1)
        if X.dim() != 3:
            raise ValueError(
                f"{type(self).__name__}: expected X of 2 or 3 dimensions, but got {X.dim()}"
            )
        return X

    def _fit(self, X, Y, loss, center, classes=0):
        self.gates_ = None
        if self.gates:
            self.gates_ = tuple(
                t.numpy() for t in sample_gates(X, self.gates, seed=self.random_state)[:2]
            )
        options = {"loss": loss, "gates": self._pattern(X), "classes": classes}
        beta = self.beta
        if beta is None:
            centred = (X - X.mean(0), Y - Y.mean(0)) if center else (X, Y)
            beta = self.rho * beta_max(*centred, **options)
            beta = beta or 1.0  # constant targets: any penalty gives the null solution
        s = solve(X, Y, beta, center=center, tol_rel=self.tol, max_iter=self.max_iter, **options)
        self.certificate_ = FitCertificate(s.F, s.D, s.gap, beta, s.status, s.iterations)
        self.coef_ = s.Z.numpy()
        self.intercept_ = np.zeros(s.Z.shape[1]) if s.intercept is None else s.intercept.numpy()
        self.token_importance_ = s.token_importance.numpy()
        self.n_iter_ = max(1, s.iterations)
        return self

    def _pattern(self, X):
        if self.gates_ is None:
            return None
        u1, u2 = map(torch.from_numpy, self.gates_)
        return apply_gates(X, Gates(u1, u2, None))

    def _outputs(self, X):
        A = torch.ops.kktorch.convex_predict(X, torch.from_numpy(self.coef_), gate=self._pattern(X))
        return A.numpy() + self.intercept_


class ConvexAttentionRegressor(RegressorMixin, _ConvexAttention):
    """Least squares with convex attention, fitted to a certified global optimum.

    Args:
        rho: penalty as a share of the smallest one that makes all coefficients zero.
        beta: the penalty itself, in place of ``rho``; the loss is half the sum of squares.
        tokens: number of tokens into which a row of features is cut, None: one for each feature.
            X may also be [N, n, d].
        gates: number of sampled gates, 0: a linear model.
        fit_intercept: an unpenalised intercept; only without gates, ignored with them.
        tol: relative duality gap.

    Attributes:
        certificate_: objective, lower bound and gap.
        coef_: Z [P, c, n, d].  intercept_: [c].
        token_importance_: [n], share of every token in the penalty.
    """

    def fit(self, X, y):
        X, y = validate_data(
            self, X, y, dtype=np.float64, allow_nd=True, multi_output=True, y_numeric=True
        )
        self._flat_ = y.ndim == 1
        Y = torch.from_numpy(np.asarray(y, dtype=np.float64).reshape(len(y), -1))
        center = self.fit_intercept and not self.gates
        return self._fit(self._tokens(X), Y, "half_squared", center)

    def predict(self, X):
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, allow_nd=True, reset=False)
        A = self._outputs(self._tokens(X))
        return A[:, 0] if self._flat_ else A

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        tags.target_tags.single_output = True
        tags.input_tags.three_d_array = True
        return tags


class ConvexAttentionClassifier(ClassifierMixin, _ConvexAttention):
    """Softmax regression with convex attention, fitted to a certified global optimum.

    ``fit_intercept`` appends a constant token, whose coefficients are penalised like the others.
    The other arguments and the attributes are those of :class:`ConvexAttentionRegressor`;
    ``classes_`` are the labels.
    """

    def _extended(self, X):
        X = self._tokens(X)
        if not self.fit_intercept:
            return X
        constant = torch.zeros(len(X), 1, X.shape[2], dtype=X.dtype)
        constant[..., 0] = 1
        return torch.cat([X, constant], 1)

    def fit(self, X, y):
        X, y = validate_data(self, X, y, dtype=np.float64, allow_nd=True)
        check_classification_targets(y)
        self.classes_, ids = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(
                f"{type(self).__name__}: expected at least 2 classes, but got 1 class: "
                f"{self.classes_[0]}"
            )
        ids = torch.from_numpy(ids.astype(np.int64))
        self._fit(self._extended(X), ids, "cross_entropy", False, len(self.classes_))
        if self.fit_intercept:
            self.token_importance_ = self.token_importance_[:-1]
        return self

    def _logits(self, X):
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, allow_nd=True, reset=False)
        return self._outputs(self._extended(X))

    def decision_function(self, X):
        A = self._logits(X)
        return A[:, 1] - A[:, 0] if len(self.classes_) == 2 else A

    def predict_proba(self, X):
        return torch.from_numpy(self._logits(X)).softmax(1).numpy()

    def predict(self, X):
        ids = self._logits(X).argmax(1)
        return self.classes_[ids]

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags
