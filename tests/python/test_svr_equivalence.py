"""Attention is the dual form of a support vector regression: scikit-learn's against the ops."""

import math

import pytest
import torch
from kktorch import attention_bn
from sklearn.svm import SVR

M, N, D, DV = 16, 40, 6, 3
BOX, TUBE, EPS = 1e4, 0.05, 1e-5


def similarity(x, y):
    return torch.exp(x @ y.T / math.sqrt(D))


def regress(query, key, target):
    """Predictions [M, DV] of a regression per channel, its dual coefficients [N, DV], bias, h."""
    of_keys, of_queries = similarity(key, key), similarity(query, key)
    h_key, h_query = of_keys.sum(1), of_queries.sum(1)
    gram = of_keys / torch.outer(h_key, h_key)
    cross = of_queries / torch.outer(h_query, h_key)
    predictions, dual, bias = [], torch.zeros(N, DV, dtype=torch.float64), []
    for channel in range(DV):
        svr = SVR(kernel="precomputed", C=BOX, epsilon=TUBE, tol=1e-8)
        svr.fit(gram.numpy(), target[:, channel].numpy())
        predictions.append(torch.from_numpy(svr.predict(cross.numpy())))
        dual[svr.support_, channel] = torch.from_numpy(svr.dual_coef_[0])
        bias.append(svr.intercept_[0])
    return torch.stack(predictions, 1), dual, torch.tensor(bias), h_key


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("beta", "use_std"), [(0.0, False), (0.5, True), (1.0, True), (1.0, False)]
)
def test_predictions_are_attention_of_the_dual_coefficients(beta, use_std, seed):
    torch.manual_seed(seed)
    query, key, target = (
        torch.randn(rows, width, dtype=torch.float64) for rows, width in [(M, D), (N, D), (N, DV)]
    )
    mean, variance = key.mean(0), key.var(0, unbiased=False)
    root = (variance + EPS).rsqrt() if use_std else torch.ones(D, dtype=torch.float64)
    q, k = (query - beta * mean) * root, (key - beta * mean) * root
    predictions, dual, bias, h_key = regress(q, k, target)
    value = dual / h_key[:, None]

    softmax = torch.softmax(q @ k.T / math.sqrt(D), dim=1)
    torch.testing.assert_close(predictions, softmax @ value + bias, rtol=0, atol=1e-9)
    out = attention_bn(
        *(x[None, None] for x in (query, key, value)), beta_value=beta, use_std=use_std, eps=EPS
    )
    torch.testing.assert_close(predictions, out[0, 0] + bias, rtol=0, atol=1e-9)

    # BOX / h_key would multiply by a reciprocal, and move coefficients on the box off it.
    box = torch.full_like(h_key, BOX) / h_key
    assert (value.abs() <= box[:, None]).all()
    assert dual.sum(0).abs().max() <= 1e-6
    assert (dual != 0).any(0).all(), "a regression without support vectors shows nothing"
