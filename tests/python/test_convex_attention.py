"""convex_attention, convex_attention_seq and convex_predict: definitions, gradients, contracts."""

import io
import re

import pytest
import torch
from attention_bn_cases import DTYPES, HALVES, assert_close, assert_identical, cotangent

ops = torch.ops.kktorch
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")

N, n, d, c, h, P = 5, 4, 3, 2, 6, 3


def pooled(X, w1, w2, w3, gate=None, gate_id=None):
    S = torch.einsum("jk,ikq,jq->ij", w1, X, w2)
    if gate is not None:
        S = S * (gate if gate_id is None else gate[:, gate_id])
    return S @ w3


def sequence(X, W1, W2, w3):
    return torch.einsum("j,jrk,ikq,jql->irl", w3, W1, X, W2)


def predict(X, Z, gate=None):
    A = torch.einsum("plkq,ikq->ipl", Z, X)
    return (A if gate is None else A * gate[..., None]).sum(1)


def tensors(*sizes, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(size, generator=generator, dtype=torch.float64).to(dtype) for size in sizes]


GATE = torch.tensor([[1, 0, 1], [1, 1, 0], [0, 0, 0], [1, 1, 1], [0, 1, 1]], dtype=torch.bool)
ID = torch.tensor([0, 2, 1, 1, 0, 2])
POOLED = ((N, n, d), (h, n), (h, d), (h, c))
SEQUENCE = ((N, n, d), (h, n, n), (h, d, c), (h,))
GATED = ((N, n, d), (P, c, n, d))
PLAIN = ((N, n, d), (1, c, n, d))
CASES = {
    "pooled": (ops.convex_attention, pooled, POOLED, {}),
    "pooled-shared-gates": (ops.convex_attention, pooled, POOLED, {"gate": GATE, "gate_id": ID}),
    "pooled-gates": (ops.convex_attention, pooled, POOLED, {"gate": GATE[:, ID]}),
    "sequence": (ops.convex_attention_seq, sequence, SEQUENCE, {}),
    "predict": (ops.convex_predict, predict, PLAIN, {}),
    "predict-gates": (ops.convex_predict, predict, GATED, {"gate": GATE}),
}
EACH = pytest.mark.parametrize("op, definition, sizes, options", CASES.values(), ids=CASES)


def evaluate(function, inputs, options, grad_out=None):
    inputs = [t.detach().requires_grad_() for t in inputs]
    out = function(*inputs, **options)
    grad_out = cotangent(out.shape, out.dtype) if grad_out is None else grad_out
    grads = torch.autograd.grad(out, inputs, grad_out)
    return {"out": out.detach()} | {str(i): grad for i, grad in enumerate(grads)}


@EACH
def test_values_and_gradients_are_those_of_the_definition(op, definition, sizes, options):
    inputs = tensors(*sizes)
    expected = evaluate(definition, inputs, options)
    assert_close(evaluate(op, inputs, options), expected, 1e-12)
    strided = [t.mT.contiguous().mT if t.dim() > 1 else t for t in inputs]
    assert_close(evaluate(op, strided, options), expected, 1e-12)
    ones = torch.ones((), dtype=torch.float64).expand(expected["out"].shape)
    assert_close(
        evaluate(op, inputs, options, ones), evaluate(definition, inputs, options, ones), 1e-12
    )


@EACH
def test_gradcheck(op, definition, sizes, options):
    inputs = [t.requires_grad_() for t in tensors(*sizes)]
    assert torch.autograd.gradcheck(lambda *t: op(*t, **options), inputs)


@EACH
@pytest.mark.parametrize("dtype", HALVES)
def test_halves_are_computed_in_float32_and_rounded_once(dtype, op, definition, sizes, options):
    inputs = tensors(*sizes, dtype=dtype)
    grad_out = cotangent(op(*inputs, **options).shape, dtype)
    actual = evaluate(op, inputs, options, grad_out)
    exact = evaluate(op, [t.float() for t in inputs], options, grad_out.float())
    assert all(t.dtype == dtype for t in actual.values())
    assert_identical(actual, {name: t.to(dtype) for name, t in exact.items()})


@EACH
def test_no_samples(op, definition, sizes, options):
    X, *weights = tensors(*sizes)
    options = {k: v[:0] if k == "gate" else v for k, v in options.items()}
    out = op(X[:0], *weights, **options)
    assert out.shape[0] == 0 and out.shape[-1] == c


@EACH
@pytest.mark.parametrize("gradients", [False, True])
def test_opcheck(op, definition, sizes, options, gradients):
    inputs = [t.requires_grad_(gradients) for t in tensors(*sizes)]
    torch.library.opcheck(op.default, inputs, options)


@EACH
def test_opcheck_of_the_backward_op(op, definition, sizes, options):
    inputs = tensors(*sizes)
    backward = getattr(ops, f"_{op.__name__}_backward").default
    tail = [options.get("gate"), options.get("gate_id")]
    tail = tail[: {"convex_attention": 2, "convex_predict": 1}.get(op.__name__, 0)]
    grad = cotangent(op(*inputs, **options).shape, torch.float64)
    torch.library.opcheck(backward, (grad, *inputs, *tail))


@EACH
def test_double_backward_and_forward_mode_are_refused(op, definition, sizes, options):
    X, *weights = tensors(*sizes)
    X.requires_grad_()
    (grad,) = torch.autograd.grad(op(X, *weights, **options).sum(), X, create_graph=True)
    with pytest.raises(NotImplementedError, match=f"{op.__name__}: double backward"):
        (grad.sum() + 0 * X.sum()).backward() if not grad.requires_grad else grad.sum().backward()
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(X.detach(), torch.ones_like(X))
        with pytest.raises(NotImplementedError, match=f"{op.__name__}: forward-mode AD"):
            op(dual, *weights, **options)


@EACH
def test_autocast_runs_in_its_dtype(op, definition, sizes, options):
    inputs = tensors(*sizes, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = op(*inputs, **options)
    assert_identical(out, op(*[t.bfloat16() for t in inputs], **options))


class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.w = torch.nn.ParameterList(tensors(*POOLED[1:]))
        self.s = torch.nn.ParameterList(tensors(*SEQUENCE[1:]))

    def forward(self, X: torch.Tensor, gate: torch.Tensor, gate_id: torch.Tensor) -> torch.Tensor:
        A = torch.ops.kktorch.convex_attention(
            X, self.w[0], self.w[1], self.w[2], gate=gate, gate_id=gate_id
        )
        S = torch.ops.kktorch.convex_attention_seq(X * 2, self.s[0], self.s[1], self.s[2])
        return A + S.sum(1)


def test_compile_export_and_torchscript():
    network, graphs = Network(), []

    def backend(graph, inputs):
        graphs.append(graph)
        return torch._dynamo.backends.debugging.aot_eager(graph, inputs)

    compiled = torch.compile(network, backend=backend, fullgraph=True, dynamic=True)
    batch = torch.export.Dim("batch", min=2)
    X = tensors((7, n, d))[0]
    gate = torch.ones(7, P, dtype=torch.bool)
    program = torch.export.export(
        network, (X, gate, ID), dynamic_shapes=({0: batch}, {0: batch}, None)
    )
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(network), file)
    file.seek(0)
    loaded = torch.jit.load(file)
    for rows in (7, 9):
        X = tensors((rows, n, d))[0]
        gate = torch.arange(rows)[:, None] % (2 + torch.arange(P)) > 0
        expected = network(X, gate, ID)
        for called in (compiled, program.module(), loaded):
            assert_close(called(X, gate, ID), expected, 1e-12)
    assert len(graphs) == 1


# Errors: each case replaces some arguments of a correct call

CALLS = {
    "convex_attention": dict(zip(("X", "w1", "w2", "w3"), tensors(*POOLED), strict=True)),
    "convex_attention_seq": dict(zip(("X", "W1", "W2", "w3"), tensors(*SEQUENCE), strict=True)),
    "convex_predict": dict(zip(("X", "Z"), tensors(*PLAIN), strict=True)),
}
ERRORS = [
    *(
        (name, change, message)
        for name in CALLS
        for change, message in (
            ({"X": torch.zeros(N, n)}, "X of shape [N, n, d] with n, d >= 1, but got [5, 4]"),
            ({"X": torch.zeros(N, n, d).int()}, "X dense and of a dtype in {float16"),
            (
                {"X": torch.zeros(N, n, d)},
                "one device and one dtype for all tensors, but got Float",
            ),
        )
    ),
    ("convex_attention", {"w1": torch.zeros(h, 5).double()}, "w1 [h, 4], w2 [h, 3], w3 [h, c]"),
    ("convex_attention", {"gate": torch.ones(4, h)}, "gate of shape [N, P] with entries 0 or 1"),
    ("convex_attention", {"gate": GATE}, "P == h without gate_id, but got P = 3, h = 6"),
    ("convex_attention", {"gate_id": ID}, "gate_id int64 [h] with values in [0, P) and a gate"),
    ("convex_attention", {"gate": GATE, "gate_id": ID[:2]}, "gate_id int64 [h] with values"),
    ("convex_attention_seq", {"W1": torch.zeros(h, 4, 3).double()}, "W1 [h, 4, 4], W2 [h, 3, c]"),
    ("convex_predict", {"Z": torch.zeros(1, c, 4, 4).double()}, "Z [P, c, 4, 3], but got"),
    ("convex_predict", {"gate": GATE}, "Z with P = 3 gates, but got [1, 2, 4, 3]"),
]


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("name, change, message", ERRORS)
def test_a_wrong_argument_is_named(name, change, message, device):
    arguments = {key: t.to(device) for key, t in (CALLS[name] | change).items()}
    with pytest.raises(RuntimeError, match=re.escape(f"{name}: expected {message}")):
        getattr(ops, name)(**arguments)


def test_every_op_is_tagged_for_the_compiler():
    for name in CALLS:
        for op in (getattr(ops, name), getattr(ops, f"_{name}_backward")):
            assert torch.Tag.pt2_compliant_tag in op.default.tags


def test_dtypes_of_the_results():
    for dtype in DTYPES:
        for op, _, sizes, options in CASES.values():
            assert op(*tensors(*sizes, dtype=dtype), **options).dtype == dtype
