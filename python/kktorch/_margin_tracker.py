"""What attention selects, by which margin, and how far that is from the largest margin there is."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_STATES = ("unknown", "separated", "infeasible")


@dataclass(frozen=True)
class MarginRecord:
    """One step of a :class:`MarginTracker`.

    ``fields`` holds the numbers by name, NaN where something is not known; each is an attribute,
    too, as in ``record.lower``. ``docs/margin_tracker.md`` says what they are.
    """

    fields: dict[str, float]
    alpha: Tensor  # int64 [Q], the selected position of every set
    margin: Tensor  # float64 [Q], the least margin of every query
    hash: int  # of the selection

    def __getattr__(self, name: str):
        try:
            return self.fields[name]
        except KeyError:
            raise AttributeError(name) from None

    @property
    def status(self) -> str:
        """ "separated": the lower bound is above 0; "infeasible": no W of moderate norm has this
        selection; or "unknown"."""
        return _STATES[int(self.fields["state"])]

    def __repr__(self) -> str:
        f = self.fields
        return (
            f"MarginRecord(step {f['step']:.0f}, {self.status}: {f['lower']:.6g} <= 1/|Wmm| <= "
            f"{f['upper']:.6g}, certified cosine {f['cos_certified']:.4f})"
        )


class MarginTracker:
    """Brackets the margin of what an attention layer selects, at every step of its training.

    Query q, a vector ``z[q]``, sees the tokens ``x[tok[e]]`` (``x[e]`` without ``tok``) of the
    entries ``row_ptr[q] <= e < row_ptr[q + 1]``, with logits ``x[e] @ W @ z[q]``. For the selected
    tokens alpha, with Wmm the solution of their attention SVM (arXiv 2308.16898)::

        lower = min margin / |W|  <=  1 / |Wmm|  <=  upper = |A*(lam)| / sum(lam)

    The multipliers lam come from the gradient with respect to the logits; no SVM is solved for the
    bracket. Two lines attach it to a loop that has W and this gradient::

        tracker = MarginTracker(x, z, row_ptr)
        record = tracker.step(W=W, dlogits=dlogits)

    Args:
        x: tokens [N, dx], float16, bfloat16, float32 or float64; all arithmetic is float64.
        z: queries [Q, dz].
        row_ptr: int64 [Q + 1].
        tok: int64 [nnz] or None.
        alpha: int64 [Q], a fixed selection (position in each set); None: the largest logits.
        selected: bool [nnz], several fixed tokens per query; W and the bounds are then those of the
            part of W that can grow, and the nuclear norm is left out.
        optimal: select the largest ``score`` of every step.
        nuclear: also the bracket of the nuclear norm (singular values of W and A*(lam) every step).
        solve_after: steps with one selection after which its SVMs are solved, for the fields
            cos_frobenius, cos_nuclear, cos_corrected and locally_optimal; 0: never.
        solve_seconds: time limit of each of these solves.
        kappa_max: the state is "infeasible" if no W with max|a||z| |W| below it has this selection.

    Raises:
        RuntimeError: "margin_tracker: expected <what>, but got <values>".
    """

    def __init__(
        self,
        x: Tensor,
        z: Tensor,
        row_ptr: Tensor,
        tok: Tensor | None = None,
        *,
        alpha: Tensor | None = None,
        selected: Tensor | None = None,
        optimal: bool = False,
        nuclear: bool = True,
        solve_after: int = 20,
        solve_seconds: float = 60.0,
        kappa_max: float = 1e7,
    ) -> None:
        tensors = [None if t is None else t.detach() for t in (x, z, row_ptr, tok, alpha, selected)]
        self._tracker = torch.classes.kktorch.MarginTracker(
            *tensors, optimal, nuclear, solve_after, solve_seconds, kappa_max
        )
        self.data = tuple(tensors[:4])  #: x, z, row_ptr, tok
        self._names = torch.classes.kktorch.MarginTracker.field_names()

    def step(
        self,
        *,
        W: Tensor | None = None,
        K: Tensor | None = None,
        Q: Tensor | None = None,
        dlogits: Tensor | None = None,
        queries: Tensor | None = None,
        score: Tensor | None = None,
        scale: float = 1.0,
        loss: float = math.nan,
        loss_star: float = math.nan,
        omega: float | None = None,
    ) -> MarginRecord:
        """Measures the weights before the update that ``dlogits`` belong to.

        Args:
            W: [dx, dz]; or ``K`` [dx, m] and ``Q`` [dz, m] with W = K Q^T.
            dlogits: [nnz], gradient of the loss with respect to ``scale`` times the logits.
            queries: int64, ``dlogits`` are of the entries of these queries only, in this order.
            score: [nnz], how good each token would be: label times its product with the head's
                gradient.
            scale: of the logits in the softmax.
            loss: and its infimum ``loss_star``, for the record.
            omega: weight of this step in the sum of multipliers; None: 1 / |dLoss/dW|.

        Raises:
            RuntimeError: "margin_tracker: expected finite logits, but got NaN or Inf in query <q>",
                and where an argument does not fit the data.
        """
        tensors = [None if t is None else t.detach() for t in (W, K, Q, dlogits, queries, score)]
        numbers = float(scale), float(loss), float(loss_star)
        values, alpha, margin, code = self._tracker.step(*tensors, *numbers, omega)
        return MarginRecord(dict(zip(self._names, values, strict=True)), alpha, margin, code)

    @property
    def path(self) -> Tensor:
        """Sum over steps of omega scale dlogits, float64 [nnz]. Where W was moved by omega times
        its gradient every time, ``W = W_0 + A*(path)`` for every selection."""
        return self._tracker.path()

    def state_dict(self) -> dict[str, Tensor]:
        """What the steps have left behind, for :meth:`load_state_dict` of a tracker of the same
        data and options."""
        return self._tracker.state()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Goes on where :meth:`state_dict` was taken.

        Raises:
            RuntimeError: "margin_tracker: expected the state of these token sets, but got <what>".
        """
        self._tracker.load_state(state)


class LayerTracker:
    """A :class:`MarginTracker` for every head of a trained :class:`kktorch.nn.AttentionBNSH` with
    bilinear logits (variant "softmax")::

        tracker = LayerTracker(layer)
        ...
        loss.backward()
        records = tracker.step()  # one record per head

    It watches the layer's last forward pass. The tokens of an inner layer change with every step,
    so that records of different steps are about different data, and every step starts anew: the
    multipliers are those of this step. Biases are taken in by z' = [z; 1]; the bias of the keys
    adds one number to all logits of a query and changes nothing. Keys that are masked out leave the
    sets; queries that see no key are left out.

    Args:
        layer: variant "softmax", without convolution.
        options: of :class:`MarginTracker`; ``nuclear`` is False by default.

    Raises:
        ValueError: "margin_tracker: expected bilinear logits, but got <what>".
    """

    def __init__(self, layer: nn.Module, **options) -> None:
        _check_bilinear(layer)
        self.layer = layer
        self.options = {"nuclear": False, "solve_after": 0} | options
        self._inputs = self._heads = self._gradient = None
        self._hooks = [
            layer.register_forward_pre_hook(self._note_inputs, with_kwargs=True),
            layer.out_proj.register_forward_pre_hook(self._note_heads),
        ]

    def detach(self) -> None:
        """Leaves the layer as it was."""
        for hook in self._hooks:
            hook.remove()

    def _note_inputs(self, layer, args, kwargs) -> None:
        names = ("query", "key", "value", "key_padding_mask", "need_weights", "attn_mask")
        names += ("average_attn_weights", "is_causal")
        given = dict(zip(names, args, strict=False)) | kwargs
        mask = given.get("attn_mask")
        if mask is not None and mask.dtype != torch.bool:
            raise ValueError(
                "margin_tracker: expected bilinear logits, but got an additive attn_mask"
            )
        self._inputs = given
        self._gradient = None

    def _note_heads(self, module, args) -> None:
        if args[0].requires_grad:
            args[0].register_hook(self._note_gradient)

    def _note_gradient(self, gradient: Tensor) -> None:
        self._gradient = gradient

    @torch.no_grad()
    def step(self, **step) -> list[MarginRecord]:
        """Records of the heads for the last forward pass; after ``backward()`` with upper bounds.

        Args:
            step: ``loss`` and ``loss_star`` of :meth:`MarginTracker.step`.

        Raises:
            RuntimeError: there was no forward pass; and as :meth:`MarginTracker.step`.
        """
        if self._inputs is None:
            raise RuntimeError("margin_tracker: expected a forward pass before step, but got none")
        layer = self.layer
        query, key, value = (
            _batched(self._inputs[name], layer.batch_first).double()
            for name in ("query", "key", "value")
        )
        visible = self._visible(query, key)
        rows = visible.flatten(0, 1)  # [B L, S]
        seen = rows.any(1)
        row_ptr = torch.nn.functional.pad(rows[seen].sum(1).cumsum(0), (1, 0))
        base = torch.arange(key.size(0)).repeat_interleave(query.size(1)) * key.size(1)
        entry = rows.nonzero()  # of queries that see a key, in order
        tok = base[entry[:, 0]] + entry[:, 1]
        ones = torch.ones(*query.shape[:2], 1, dtype=torch.float64)
        z = torch.cat([query, ones], 2).flatten(0, 1)[seen]
        x = key.flatten(0, 1)
        records = []
        for head in range(layer.num_heads):
            K, Q = self._factors(head)
            dlogits = self._logit_gradient(head, query, key, value, visible, entry)
            tracker = MarginTracker(x, z, row_ptr, tok, **self.options)
            records.append(
                tracker.step(K=K, Q=Q, dlogits=dlogits, scale=layer.head_dim**-0.5, **step)
            )
        return records

    def _visible(self, query: Tensor, key: Tensor) -> Tensor:
        """bool [B, L, S]."""
        visible = torch.ones(query.size(0), query.size(1), key.size(1), dtype=torch.bool)
        padding, mask = self._inputs.get("key_padding_mask"), self._inputs.get("attn_mask")
        if padding is not None and self.layer.stats_mask:
            visible &= ~padding.view(query.size(0), 1, key.size(1))
        if mask is not None:
            if mask.dim() == 3:
                raise ValueError(
                    "margin_tracker: expected bilinear logits with one mask for all heads, but got "
                    "an attn_mask per head"
                )
            visible &= ~mask
        if self._inputs.get("is_causal"):
            visible = visible.tril()
        return visible

    def _projection(self, part: int, head: int) -> tuple[Tensor, Tensor]:
        """Weight [D, width] and bias [D] of a query (0), key (1) or value (2) head."""
        weight, bias = self.layer._projection(part)
        if part > 0:
            head //= self.layer.queries_per_key
        size = self.layer.value_head_dim if part == 2 else self.layer.head_dim
        rows = slice(head * size, (head + 1) * size)
        weight = weight[rows].double()
        return weight, weight.new_zeros(size) if bias is None else bias[rows].double()

    def _factors(self, head: int) -> tuple[Tensor, Tensor]:
        """K [dx, D] and Q [dz + 1, D]."""
        weight, bias = self._projection(0, head)
        return self._projection(1, head)[0].t(), torch.cat([weight, bias[:, None]], 1).t()

    def _logit_gradient(self, head, query, key, value, visible, entry) -> Tensor | None:
        """d loss / d (scaled logit) of the entries: s (g.v - sum s g.v), g = d loss / d output."""
        if self._gradient is None:
            return None
        layer = self.layer
        (q_weight, q_bias), (k_weight, _) = self._projection(0, head), self._projection(1, head)
        v_weight, v_bias = self._projection(2, head)
        q, k = query @ q_weight.t() + q_bias, key @ k_weight.t()
        logits = q @ k.transpose(1, 2) * layer.head_dim**-0.5
        s = logits.masked_fill(~visible, -math.inf).softmax(2).nan_to_num()
        size = layer.value_head_dim
        gradient = self._gradient.double()[..., head * size : (head + 1) * size]
        dot = gradient @ (value @ v_weight.t() + v_bias).transpose(1, 2)
        dlogits = s * (dot - (s * dot).sum(2, keepdim=True))
        return dlogits.flatten(0, 1)[entry[:, 0], entry[:, 1]]


def _batched(tensor: Tensor, batch_first: bool) -> Tensor:
    """[B, length, width] of a layer's input."""
    if tensor.dim() == 2:
        return tensor.detach()[None]
    return tensor.detach() if batch_first else tensor.detach().transpose(0, 1)


def _check_bilinear(layer: nn.Module) -> None:
    from kktorch.nn import AttentionBNSH

    def refuse(what: str):
        raise ValueError(f"margin_tracker: expected bilinear logits, but got {what}")

    if not isinstance(layer, AttentionBNSH):
        refuse(f"a {type(layer).__name__}")
    if layer.variant != "softmax":
        refuse(f"AttentionBNSH of variant '{layer.variant}'")
    if layer.conv_q is not None or layer.conv_k is not None:
        refuse("AttentionBNSH with a convolution of queries and keys")
    if layer.dropout > 0:
        refuse(f"AttentionBNSH with dropout {layer.dropout} on its probabilities")


def bracket_figure(records: Sequence[MarginRecord], axes) -> None:
    """Draws bounds and certified cosine of ``records`` over their steps.

    Args:
        axes: two matplotlib axes: for the bounds, and for the cosines.
    """
    steps = [record.step for record in records]
    for name in ("lower", "upper"):
        axes[0].plot(steps, [getattr(record, name) for record in records], label=name)
    axes[0].set_ylabel("bounds of 1/|Wmm|")
    axes[0].legend()
    for name, label in (("cos_certified", "certified"), ("cos_frobenius", "cos(W, Wmm)")):
        axes[1].plot(steps, [getattr(record, name) for record in records], label=label)
    axes[1].set_ylabel("cosine")
    axes[1].set_xlabel("step")
    axes[1].legend()
