"""Convex attention: attention networks trained to a certified global optimum.

The programs of arXiv 2211.11052 in the corrected form of ``docs/convex_attention.md``: one head is
``(w1' X w2) w3``, ``w1`` in the simplex over token positions. Everything here runs on the CPU;
certificates are float64.

- :func:`solve`, :func:`solve_path`, :func:`solve_sequence`: solutions with a duality gap
- :func:`certify`, :func:`certify_factored`, :func:`beta_max`: bounds for any point
- :func:`recover_heads`, :func:`heads_to_z`, :func:`reduce_heads`: solutions as networks, and back
- :func:`train_factored`: such a network trained by other means, with its gap
- :func:`sample_gates`, :func:`apply_gates`, :func:`gate_report`: the gated program
- :class:`ConvexAttentionRegressor`, :class:`ConvexAttentionClassifier`: estimators in the style of
  scikit-learn, which they need
"""

from kktorch.convex._gates import GateReport, Gates, apply_gates, gate_report, sample_gates
from kktorch.convex._heads import (
    FactoredCertificate,
    Heads,
    certify_factored,
    heads_to_z,
    recover_heads,
    reduce_heads,
)
from kktorch.convex._solver import (
    Certificate,
    Solution,
    beta_max,
    certify,
    solve,
    solve_path,
    solve_sequence,
)
from kktorch.convex._training import Training, train_factored

__all__ = [
    "Certificate",
    "ConvexAttentionClassifier",
    "ConvexAttentionRegressor",
    "FactoredCertificate",
    "GateReport",
    "Gates",
    "Heads",
    "Solution",
    "Training",
    "apply_gates",
    "beta_max",
    "certify",
    "certify_factored",
    "gate_report",
    "heads_to_z",
    "recover_heads",
    "reduce_heads",
    "sample_gates",
    "solve",
    "solve_path",
    "solve_sequence",
    "train_factored",
]


def __getattr__(name):
    if name in ("ConvexAttentionClassifier", "ConvexAttentionRegressor"):
        from kktorch.convex import _estimators  # scikit-learn is optional

        return getattr(_estimators, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
