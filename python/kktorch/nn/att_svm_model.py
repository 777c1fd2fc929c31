"""One layer of softmax attention with a fixed head: the model that attention SVMs are about."""

import copy
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kktorch.nn._option_checks import check_choice, check_positive


class AttSvmGradient(NamedTuple):
    """The risk and its gradient in closed form, float64."""

    risk: Tensor
    f: Tensor  #: [Q], outputs of the model
    s: Tensor  #: [nnz], probabilities
    score: Tensor  #: [nnz], Y grad h(o).x
    dlogits: Tensor  #: [nnz], d risk / d logit; sums to 0 over every set
    dW: Tensor | None = None
    dK: Tensor | None = None
    dQ: Tensor | None = None


class AttSvmModel(nn.Module):
    """``f_q = h(o_q)``, ``o_q = sum_t s_qt x_qt``, ``s_q = softmax_t(x_qt @ W @ z_q)``, without a
    scale of the logits (arXiv 2308.16898, section 2).

    Token sets are those of :mod:`kktorch.svm`: query q, row q of ``z``, sees the entries
    ``row_ptr[q] <= e < row_ptr[q + 1]``, row ``tok[e]`` (or ``e``) of ``x``.

    Args:
        dx, dz: widths of tokens and queries; ``dz`` 0: dx.
        m: W = K Q^T with m columns each; 0: the merged W itself.
        head: "linear" ``v.o``, "relu" ``sum_r [V_r.o]+`` or "quad" ``v.o - lbd |o|^2``.
        units: relu: rows of V; 0: dx.
        loss: "logistic" ``log(1 + e^-u)``, "exponential" ``e^-u`` or "linear" ``-u``.

    Attributes:
        W: [dx, dz]; or ``K`` [dx, m] and ``Q`` [dz, m]. Uniform in +-1/sqrt(width of their input).
        v: buffer [dx], or [units, dx] with the head relu; normal with norm 1, and fixed.

    Raises:
        ValueError: "AttSvmModel: expected <option>, but got <value>".
    """

    def __init__(
        self,
        dx: int,
        dz: int = 0,
        m: int = 0,
        *,
        head: str = "linear",
        units: int = 0,
        lbd: float = 0.0,
        loss: str = "logistic",
    ):
        super().__init__()
        check_positive("AttSvmModel: expected dx", dx)
        dz, units = dz or dx, units or dx
        check_positive("AttSvmModel: expected dz", dz)
        check_positive("AttSvmModel: expected units", units)
        if m < 0:
            raise ValueError(f"AttSvmModel: expected m >= 0, but got {m}")
        check_choice("AttSvmModel: expected head", head, ("linear", "relu", "quad"))
        check_choice("AttSvmModel: expected loss", loss, ("logistic", "exponential", "linear"))
        self.head, self.loss, self.lbd = head, loss, lbd

        def uniform(rows: int, columns: int, width: int) -> nn.Parameter:
            return nn.Parameter((2 * torch.rand(rows, columns) - 1) / math.sqrt(width))

        self.register_parameter("K", uniform(dx, m, dx) if m > 0 else None)
        self.register_parameter("Q", uniform(dz, m, dz) if m > 0 else None)
        self.register_parameter("W", None if m > 0 else uniform(dx, dz, dz))
        v = torch.randn(units, dx) if head == "relu" else torch.randn(dx)
        self.register_buffer("v", v / v.norm())

    def forward(self, x: Tensor, z: Tensor, row_ptr: Tensor, tok: Tensor | None = None) -> Tensor:
        """f [Q], differentiable."""
        rows, query = _entries(x, row_ptr, tok)
        s = self._softmax(rows, z, query)
        return self._head(_sum_of_sets(s.unsqueeze(1) * rows, query, z.size(0)))

    def _softmax(self, rows: Tensor, z: Tensor, query: Tensor) -> Tensor:
        logits = (rows * torch.matmul(z, self.merged().t())[query]).sum(1)
        none = torch.zeros_like(z[:, 0], dtype=logits.dtype)
        top = none.scatter_reduce(0, query, logits.detach(), "amax", include_self=False)
        weight = (logits - top[query]).exp()
        return weight / _sum_of_sets(weight, query, z.size(0))[query]

    def _head(self, o: Tensor) -> Tensor:
        if self.head == "relu":
            return torch.relu(torch.matmul(o, self.v.t())).sum(1)
        linear = torch.matmul(o, self.v)
        if self.head == "quad":
            return linear - self.lbd * o.square().sum(1)
        return linear

    def merged(self) -> Tensor:
        """W, or K Q^T."""
        W, K, Q = self.W, self.K, self.Q
        if W is not None:
            return W
        assert K is not None and Q is not None
        return torch.matmul(K, Q.t())

    @torch.jit.export
    def probabilities(
        self, x: Tensor, z: Tensor, row_ptr: Tensor, tok: Tensor | None = None
    ) -> Tensor:
        """s [nnz]."""
        rows, query = _entries(x, row_ptr, tok)
        return self._softmax(rows, z, query)

    @torch.jit.ignore
    def risk(
        self,
        x: Tensor,
        z: Tensor,
        row_ptr: Tensor,
        labels: Tensor,
        tok: Tensor | None = None,
        inputs: int = 0,
    ) -> Tensor:
        """``(1/inputs) sum_q l(labels_q f_q)``, differentiable.

        Args:
            labels: [Q], +1 or -1.
            inputs: 0: Q.

        Raises:
            ValueError: "AttSvmModel: expected labels +1 or -1, but got <value> at <query>".
        """
        _check_labels(labels, z.size(0))
        losses, _ = self._losses(labels * self(x, z, row_ptr, tok))
        return losses.sum() / (inputs or z.size(0))

    def _losses(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """l(u) and -l'(u)."""
        if self.loss == "linear":
            return -u, torch.ones_like(u)
        if self.loss == "exponential":
            return (-u).exp(), (-u).exp()
        return nn.functional.softplus(-u), torch.sigmoid(-u)

    @torch.jit.ignore
    @torch.no_grad()
    def analytic_grad(
        self,
        x: Tensor,
        z: Tensor,
        row_ptr: Tensor,
        labels: Tensor,
        tok: Tensor | None = None,
        inputs: int = 0,
    ) -> AttSvmGradient:
        """The risk and its gradient without autograd, in float64. It keeps its relative accuracy
        where the softmax is saturated: the gradient at the largest probability is minus the sum
        of the others, and enters as differences of tokens.

        Raises:
            ValueError: as :meth:`risk`; or "AttSvmModel: expected finite <x, z, W, K, Q or v>, but
                got NaN or Inf at <index>".
        """
        _check_labels(labels, z.size(0))
        model = self._in_float64()
        x, z, labels = x.double(), z.double(), labels.double()
        rows, query = _entries(x, row_ptr, tok)
        s = model._softmax(rows, z, query)
        o = _sum_of_sets(s.unsqueeze(1) * rows, query, len(z))
        f = model._head(o)
        if not f.isfinite().all():
            _check_finite(x=x, z=z, W=self.W, K=self.K, Q=self.Q, v=self.v)
        losses, weight = model._losses(labels * f)
        inputs = inputs or len(z)
        score = labels[query] * (rows * model._head_gradient(o)[query]).sum(1)
        mean = _sum_of_sets(s * score, query, len(z))
        g = (weight / inputs)[query] * s * (mean[query] - score)
        top = _first_largest(s, query, len(z))
        g[top] = 0
        g[top] = -_sum_of_sets(g, query, len(z))
        u = _sum_of_sets(g.unsqueeze(1) * (rows - rows[top][query]), query, len(z))
        dW = u.t() @ z
        found = AttSvmGradient(losses.sum() / inputs, f, s, score, g)
        if self.W is not None:
            return found._replace(dW=dW)
        return found._replace(dK=dW @ model.Q, dQ=dW.t() @ model.K)

    def _head_gradient(self, o: Tensor) -> Tensor:
        """grad h at the rows of o."""
        if self.head == "relu":
            return (torch.matmul(o, self.v.t()) > 0).to(o.dtype) @ self.v
        if self.head == "quad":
            return self.v - 2 * self.lbd * o
        return self.v.expand_as(o)

    def _in_float64(self) -> "AttSvmModel":
        if self.v.dtype == torch.float64:
            return self
        return copy.deepcopy(self).double()

    def extra_repr(self) -> str:
        weights = self.W if self.W is not None else self.K
        m = 0 if self.W is not None else weights.size(1)
        return f"dx={weights.size(0)}, m={m}, head={self.head}, loss={self.loss}"


def _entries(x: Tensor, row_ptr: Tensor, tok: Tensor | None) -> tuple[Tensor, Tensor]:
    """Tokens of all entries [nnz, dx], and the query that sees each [nnz]."""
    rows = x if tok is None else x[tok]
    queries = torch.arange(row_ptr.size(0) - 1, device=row_ptr.device)
    query = torch.repeat_interleave(queries, row_ptr.diff(), output_size=rows.size(0))
    return rows, query


def _sum_of_sets(values: Tensor, query: Tensor, queries: int) -> Tensor:
    shape = [queries, values.size(1)] if values.dim() == 2 else [queries]
    return values.new_zeros(shape).index_add(0, query, values)


def _first_largest(s: Tensor, query: Tensor, queries: int) -> Tensor:
    """The entry of the largest s of every set; ties: the first."""
    top = s.new_zeros(queries).scatter_reduce(0, query, s, "amax", include_self=False)
    place = torch.arange(len(s), device=s.device).masked_fill(s < top[query], len(s))
    return place.new_zeros(queries).scatter_reduce(0, query, place, "amin", include_self=False)


def _check_finite(**tensors: Tensor | None) -> None:
    """For a model whose output is not finite: names the first of the tensors that is to blame."""
    for name, tensor in tensors.items():
        if tensor is not None and len(bad := tensor.isfinite().logical_not().nonzero()) > 0:
            raise ValueError(
                f"AttSvmModel: expected finite {name}, but got NaN or Inf at {bad[0].tolist()}"
            )


def _check_labels(labels: Tensor, queries: int) -> None:
    if labels.shape != (queries,):
        raise ValueError(f"AttSvmModel: expected labels [{queries}], but got {list(labels.shape)}")
    wrong = (labels.abs() != 1).nonzero()
    if len(wrong) > 0:
        place = int(wrong[0])
        raise ValueError(
            f"AttSvmModel: expected labels +1 or -1, but got {labels[place].item():g} at {place}"
        )
