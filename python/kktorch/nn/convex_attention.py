"""Convex attention in factored form: networks that recover_heads fills with a global optimum."""

import torch
from torch import Tensor, nn

_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}  # halves: 1e-2


@torch.no_grad()
def _check_simplex(module: str, name: str, w: Tensor) -> None:
    """That rows lie in the simplex; nothing while a compiler or an exporter looks on."""
    if torch.compiler.is_compiling() or w.is_meta:
        return
    least, sums = w.amin(-1).flatten(), w.sum(-1).flatten()
    away = torch.maximum(-least, (sums - 1).abs())
    row = int(away.argmax())
    if not away[row] <= _TOLERANCE.get(w.dtype, 1e-2):
        raise ValueError(
            f"{module}: expected {name} rows in the simplex, but got row {row} with sum "
            f"{sums[row]:.6g} and least entry {least[row]:.6g}; call simplex_project, or project()"
        )


def _check_gate_id(gate_id: Tensor, gates: int) -> None:
    """That heads have gates that exist: recovered heads bring ids of their own."""
    if torch.compiler.is_compiling() or gate_id.is_meta or gates == 0 or len(gate_id) == 0:
        return
    least, largest = int(gate_id.min()), int(gate_id.max())
    if least < 0 or largest >= gates:
        raise ValueError(
            f"ConvexAttention: expected gate_id int64 [h] with values in [0, {gates}), but got "
            f"{least if least < 0 else largest}"
        )


class ConvexAttention(nn.Module):
    """``f(X) = sum_j g_j(X) (w1_j' X w2_j) w3_j`` (arXiv 2211.11052, (11) and (13)).

    Args:
        tokens, width, outputs: n, d, c; X is [N, n, d], the result [N, c].
        heads: h.
        gates: number P of gates ``1{u1' X u2 >= 0}``, 0: none. Gate 0 is open everywhere, the
            others are Gaussian buffers, not trained; head j uses gate ``j mod P``.

    Attributes:
        w1: [h, n], rows in the simplex: call :meth:`project` after an optimiser's step; forward
            raises ValueError for a row outside, and for an id in ``gate_id`` without a gate.
        w2: [h, d].  w3: [h, c].
    """

    def __init__(self, tokens: int, width: int, outputs: int, heads: int, gates: int = 0):
        super().__init__()
        self.gates = gates
        start = torch.full((heads, tokens), 1 / tokens) + 0.1 * torch.randn(heads, tokens)
        self.w1 = nn.Parameter(torch.ops.kktorch.simplex_project(start))
        self.w2 = nn.Parameter(0.3 * torch.randn(heads, width))
        self.w3 = nn.Parameter(0.3 * torch.randn(heads, outputs))
        u1, u2 = torch.randn(gates, tokens), torch.randn(gates, width)
        if gates > 0:
            u1[0] = 0
            u2[0] = 0
        self.register_buffer("u1", u1)
        self.register_buffer("u2", u2)
        self.register_buffer("gate_id", torch.arange(heads) % max(1, gates))

    def forward(self, X: Tensor) -> Tensor:
        if not torch.jit.is_scripting():
            self._check()
        if self.gates == 0:
            return torch.ops.kktorch.convex_attention(X, self.w1, self.w2, self.w3)
        scores = (torch.matmul(X, self.u2.t()) * self.u1.t()).sum(1)
        return torch.ops.kktorch.convex_attention(
            X, self.w1, self.w2, self.w3, gate=scores >= 0, gate_id=self.gate_id
        )

    @torch.jit.ignore
    def _check(self) -> None:
        _check_simplex("ConvexAttention", "w1", self.w1)
        _check_gate_id(self.gate_id, self.gates)

    def penalty(self) -> Tensor:
        """``sum_j (|w2_j|^2 + |w3_j|_1^2) / 2``, which beta multiplies in the objective."""
        return (self.w2.square().sum() + self.w3.abs().sum(1).square().sum()) / 2

    @torch.jit.ignore
    @torch.no_grad()
    def project(self) -> None:
        """Puts the rows of w1 back into the simplex."""
        self.w1.copy_(torch.ops.kktorch.simplex_project(self.w1))

    @torch.jit.ignore
    @torch.no_grad()
    def balance(self) -> None:
        """Scales w2_j and 1 / w3_j so that the penalty is least; predictions stay."""
        size2, size3 = self.w2.norm(dim=1), self.w3.abs().sum(1)
        alive = (size2 > 0) & (size3 > 0)
        factor = torch.where(alive, (size3 / size2).sqrt(), 0.0)
        self.w2.mul_(factor[:, None])
        self.w3.mul_(torch.where(alive, 1 / factor, 0.0)[:, None])


class ConvexAttentionSeq(nn.Module):
    """``f(X) = sum_j w3_j W1_j X W2_j``, W1_j row-stochastic (arXiv 2211.11052, (30)).

    X is [N, n, d], the result [N, n, c]. W1 [h, n, n], W2 [h, d, c], w3 [h].
    """

    def __init__(self, tokens: int, width: int, outputs: int, heads: int):
        super().__init__()
        start = torch.full((heads, tokens, tokens), 1 / tokens)
        start = start + 0.1 * torch.randn(heads, tokens, tokens)
        self.W1 = nn.Parameter(torch.ops.kktorch.simplex_project(start))
        self.W2 = nn.Parameter(0.3 * torch.randn(heads, width, outputs))
        self.w3 = nn.Parameter(0.3 * torch.randn(heads))

    def forward(self, X: Tensor) -> Tensor:
        if not torch.jit.is_scripting():
            self._check()
        return torch.ops.kktorch.convex_attention_seq(X, self.W1, self.W2, self.w3)

    @torch.jit.ignore
    def _check(self) -> None:
        _check_simplex("ConvexAttentionSeq", "W1", self.W1)

    def penalty(self) -> Tensor:
        """``sum_j (|W2_j|_1^2 + w3_j^2) / 2``, entrywise."""
        return (self.W2.abs().sum((1, 2)).square().sum() + self.w3.square().sum()) / 2

    @torch.jit.ignore
    @torch.no_grad()
    def project(self) -> None:
        """Puts the rows of W1 back into the simplex."""
        self.W1.copy_(torch.ops.kktorch.simplex_project(self.W1))


class SoftmaxAttention(nn.Module):
    """Softmax attention as the paper prints it (2), for comparison; pooled at one query row.

    ``f(X) = sum_h softmax(qk_scale x_r Q K' X') X V O`` with r = ``readout_row``, [N, outputs];
    keys where ``key_padding_mask`` [N, n] is True are left out.
    """

    def __init__(
        self,
        width: int,
        outputs: int,
        heads: int,
        head_width: int | None = None,
        qk_scale: float = 1.0,
        readout_row: int = 0,
    ):
        super().__init__()
        dk = head_width or width
        self.qk_scale = qk_scale
        self.readout_row = readout_row
        self.Q = nn.Parameter(torch.randn(heads, width, dk) / width**0.5)
        self.K = nn.Parameter(torch.randn(heads, width, dk) / width**0.5)
        self.V = nn.Parameter(torch.randn(heads, width, dk) / width**0.5)
        self.O = nn.Parameter(torch.randn(heads, dk, outputs) / dk**0.5)

    def maps(self, X: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
        """Attention of the readout row, [N, h, n]."""
        # One row asks: its query, taken back to the width of the tokens, spares the keys.
        query = torch.matmul(torch.matmul(X[:, self.readout_row], self.Q), self.K.transpose(1, 2))
        logits = self.qk_scale * torch.matmul(query.transpose(0, 1), X.transpose(1, 2))  # [N, h, n]
        if key_padding_mask is not None:
            logits = logits.masked_fill(key_padding_mask.unsqueeze(1), -float("inf"))
        return logits.softmax(-1)

    def forward(self, X: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
        mixed = torch.matmul(self.maps(X, key_padding_mask), X)  # [N, h, d]
        value = torch.matmul(mixed.transpose(0, 1), self.V)  # [h, N, dk]
        return torch.matmul(value, self.O).sum(0)
