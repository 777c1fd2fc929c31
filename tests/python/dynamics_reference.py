"""Naive float64 evaluation of the models of training dynamics, sample by sample, head by head."""

import math

import torch


def shallow_output(X, q, W, U, c, act=torch.tanh):
    """f [n] of the shallow transformer, differentiable."""
    outputs = []
    for tokens, query in zip(X, q, strict=True):
        total = 0
        for Wi, Ui, ci in zip(W, U, c, strict=True):
            scores = torch.stack([token @ Wi @ query for token in tokens])
            attended = sum(p * token for p, token in zip(scores.softmax(0), tokens, strict=True))
            total = total + ci * act(Ui @ attended)
        outputs.append(total / math.sqrt(len(c)))
    return torch.stack(outputs)


def indrnn_output(X, w, u, c):
    """f [n] of the recurrent network, and its states [T + 1, n, m]."""
    states = [X.new_zeros(len(X), len(w))]
    for t in range(X.shape[1]):
        states.append(torch.tanh(w * states[-1] + X[:, t] @ u.T))
    return states[-1] @ c / math.sqrt(len(w)), states


def multihead_logits(X, W, U):
    """Phi [n] of single-layer multi-head attention, differentiable."""
    outputs = []
    for tokens in X:
        total = 0
        for Wh, Uh in zip(W, U, strict=True):
            attended = (tokens @ Wh @ tokens.T).softmax(-1) @ tokens
            total = total + (Uh * attended).sum()
        outputs.append(total / math.sqrt(len(W)))
    return torch.stack(outputs)
