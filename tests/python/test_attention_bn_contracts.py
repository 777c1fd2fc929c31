"""What the dispatcher, compilers and transforms may expect of attention_bn."""

import pytest
import torch
from attention_bn_cases import (
    HALVES,
    MODES,
    Shape,
    assert_close,
    assert_identical,
    cast,
    cotangent,
    evaluate,
    op,
    problem,
    ref,
)
from op_contracts import (
    SelfAttention,
    check_backward_op,
    check_compiles_once,
    check_exported,
    check_torchscript,
    exported,
    sequences,
)
from torch.autograd import forward_ad

# TorchScript stays supported here after its deprecation upstream
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")

private_forward = torch.ops.kktorch._attention_bn_forward
private_backward = torch.ops.kktorch._attention_bn_backward


def wanting_gradients(tensors, options):
    """The same problem with requires_grad on all that the op differentiates."""
    for name in ("beta", "attn_mask"):
        if name in options and options[name].is_floating_point():
            options[name].requires_grad_()
    return tuple(t.requires_grad_() for t in tensors), options


# Operator registration


@pytest.mark.parametrize(
    "mode, mask",
    [
        ("global", "none"),
        ("global", "all"),
        ("causal-global", "bool[M,N]"),
        ("prefix", "padding"),
        ("support", "bool[B,H,M,N]"),
    ],
)
@pytest.mark.parametrize("gradients", [False, True])
def test_opcheck(mode, mask, gradients):
    tensors, options = problem(Shape(H=4, Hk=2), mode, mask)
    if gradients:
        tensors, options = wanting_gradients(tensors, options)
    torch.library.opcheck(op.default, tensors, options)


@pytest.mark.parametrize("gradients", [False, True])
def test_opcheck_of_the_reference_op(gradients):
    tensors, options = problem(mode="prefix", mask="all")
    if gradients:
        tensors, options = wanting_gradients(tensors, options)
    torch.library.opcheck(ref.default, tensors, options)


def private_arguments(gradients, stats, mask):
    """Positional arguments of _attention_bn_forward, and the numbers among them."""
    tensors, options = problem(Shape(H=4, Hk=2), mask=mask)
    if gradients:
        options.pop("attn_mask", None)  # its gradient is the public op's business
        tensors, options = wanting_gradients(tensors, options)
    optional = ("beta", "key_padding_mask", "attn_mask", "key_weight")
    numbers = (1.0, True, 1e-5, stats, stats == "prefix", 2, 0.0, 0.5)
    return (*tensors, *(options.get(name) for name in optional)), numbers


@pytest.mark.parametrize("stats", ["global", "prefix"])
@pytest.mark.parametrize("mask", ["none", "all"])
@pytest.mark.parametrize("gradients", [False, True])
def test_opcheck_of_the_private_forward_op(gradients, stats, mask):
    operands, numbers = private_arguments(gradients, stats, mask)
    torch.library.opcheck(private_forward.default, (*operands, *numbers))


@pytest.mark.parametrize("stats", ["global", "prefix"])
@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("output_mask", [(True,) * 4, (False, True, False, True)])
def test_opcheck_of_the_private_backward_op(gradients, stats, output_mask):
    operands, numbers = private_arguments(gradients, stats, "all")
    grad_out = cotangent((2, 4, 5, 3)).requires_grad_(gradients)
    check_backward_op(private_forward, private_backward, operands, numbers, grad_out, output_mask)


def test_ops_are_tagged_for_the_compiler():
    for function in (op, ref, private_forward, private_backward):
        assert torch.Tag.pt2_compliant_tag in function.default.tags


# Compilers


@pytest.mark.parametrize(
    "called, mode",
    [*((op, mode) for mode in ("global", "prefix", "support")), (ref, "global")],
    ids=["global", "prefix", "support", "ref"],
)
def test_compile_with_dynamic_shapes(called, mode):
    shapes = Shape(6, 4, 2, 5, 7, 8, 3), Shape(9, 4, 2, 11, 13, 8, 3)
    check_compiles_once(called, [problem(shape, mode, "padding") for shape in shapes])


def test_compile_with_the_default_backend():
    def function(query, key, value, beta, padding):
        return op(query.sin(), key, value, beta, padding).square()

    compiled = torch.compile(function, fullgraph=True, dynamic=True)
    for shape in (Shape(N=7), Shape(N=9)):
        (q, k, v), options = problem(shape, mask="padding")
        arguments = {"beta": options["beta"], "padding": options["key_padding_mask"]}
        expected = evaluate(function, (q, k, v), arguments)
        assert_close(evaluate(compiled, (q, k, v), arguments), expected, 1e-12)


class Layer(SelfAttention):
    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, padding: torch.Tensor):
        return torch.ops.kktorch.attention_bn(
            q, k, v, self.beta, padding, key_weight=None, is_causal=self.is_causal
        )


@pytest.mark.filterwarnings("ignore:The given buffer is not writable")
@pytest.mark.parametrize("is_causal", [False, True])
def test_export(is_causal):
    module = Layer(is_causal=is_causal).eval()
    program = exported(module)
    names = {str(node.target) for node in program.graph.nodes}
    assert any(name.startswith("kktorch.") for name in names)
    check_exported(program, module, (11, 6, 5))


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
def test_ahead_of_time_package(tmp_path):
    module = Layer().eval()
    with torch.no_grad():
        path = torch._inductor.aoti_compile_and_package(
            exported(module), package_path=str(tmp_path / "attention.pt2")
        )
        packaged = torch._inductor.aoti_load_package(path)
        for inputs in (sequences(3, 6), sequences(2, 11)):
            assert_close(packaged(*inputs), module(*inputs), 1e-6)


@pytest.mark.parametrize("is_causal", [False, True])
def test_torchscript(is_causal):
    check_torchscript(Layer(is_causal=is_causal), (11, 6))


# Autocast


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", HALVES)
def test_autocast_casts_what_softmax_attention_casts(dtype, mode):
    tensors, options = cast(torch.float32, *problem(mode=mode, mask="all"))
    grad_out = cotangent((2, 2, 5, 3), dtype)

    def autocasting(**arguments):
        with torch.autocast("cpu", dtype=dtype):
            return op(**arguments)

    actual = evaluate(autocasting, tensors, options, grad_out)
    halves, _ = cast(dtype, tensors, {})
    expected = evaluate(op, halves, options, grad_out)
    assert actual["out"].dtype == dtype
    assert {actual[name].dtype for name in ("query", "key", "value", "beta")} == {torch.float32}
    assert_identical(actual, {name: t.to(actual[name].dtype) for name, t in expected.items()})


def test_autocast_takes_mixed_floats_and_half_extras():
    (q, k, v), options = problem(mask="all")
    q, k, v = q.float(), k.bfloat16(), v.half()
    options = {n: t.half() if n in ("beta", "attn_mask") else t for n, t in options.items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = op(q, k, v, **options)
    options = {n: t.float() if n in ("beta", "attn_mask") else t for n, t in options.items()}
    assert_identical(out, op(q.bfloat16(), k, v.bfloat16(), **options))


def test_autocast_leaves_float64_alone():
    tensors, options = problem()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = op(*tensors, **options)
    assert_identical(out, op(*tensors, **options))


# Higher derivatives and transforms


@pytest.mark.parametrize("mode", ["global", "prefix"])
def test_double_backward_is_refused_by_name(mode):
    tensors, options = problem(mode=mode)
    tensors, options = wanting_gradients(tensors, options)
    (grad,) = torch.autograd.grad(
        op(*tensors, **options).square().sum(), tensors[0], create_graph=True
    )
    message = "attention_bn: double backward is not supported; use attention_bn_ref"
    with pytest.raises(NotImplementedError, match=message):
        torch.autograd.grad(grad.sum(), tensors[1])


@pytest.mark.parametrize("mode", MODES)
def test_create_graph_alone_works(mode):
    tensors, options = problem(mode=mode)
    tensors, options = wanting_gradients(tensors, options)
    leaves = [*tensors, options["beta"]]
    loss = op(*tensors, **options).square().sum()
    plain = torch.autograd.grad(loss, leaves, retain_graph=True)
    recorded = torch.autograd.grad(loss, leaves, create_graph=True)
    for a, b in zip(recorded, plain, strict=True):
        assert_identical(a.detach(), b)


@pytest.mark.parametrize("literal", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_reference_op_supports_double_backward(mode, literal):
    shape = Shape(B=1, H=2, Hk=1, M=2, N=3, D=2, Dv=1)
    tensors, options = problem(shape, mode, eps=0.1)
    q, k, v = (t.requires_grad_() for t in tensors)
    beta = options.pop("beta").requires_grad_()

    def function(q, k, v, beta):
        return ref(q, k, v, beta, **options, literal=literal)

    assert torch.autograd.gradgradcheck(function, (q, k, v, beta))


def test_forward_mode_is_refused_and_the_reference_op_has_it():
    (q, k, v), options = problem(mask="padding")
    step = 1e-6
    tangent = cotangent(q.shape)
    message = "attention_bn: forward-mode AD is not supported; use attention_bn_ref"
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(q, tangent)
        with pytest.raises(NotImplementedError, match=message):
            op(dual, k, v, **options)
        derivative = forward_ad.unpack_dual(ref(dual, k, v, **options)).tangent
    difference = op(q + step * tangent, k, v, **options) - op(q - step * tangent, k, v, **options)
    assert_close(derivative, difference / (2 * step), 1e-7)


def test_functional_gradients_are_refused_and_the_reference_op_has_them():
    (q, k, v), options = problem()

    def loss(function, query):
        return function(query, k, v, **options).square().sum()

    with pytest.raises(RuntimeError, match="functorch transforms"):
        torch.func.grad(lambda query: loss(op, query))(q)
    expected = torch.autograd.grad(loss(op, q.requires_grad_()), q)[0]
    assert_close(torch.func.grad(lambda query: loss(ref, query))(q), expected, 1e-10)


@pytest.mark.parametrize("function", [op, ref], ids=["op", "ref"])
@pytest.mark.parametrize("mode", MODES)
def test_vmap_is_the_loop(mode, function):
    tensors, options = problem(mode=mode)
    stacked = [torch.stack([t, 2 * t]) for t in tensors]

    def mapped(query, key, value):
        return torch.func.vmap(lambda *t: function(*t, **options))(query, key, value)

    def loop(query, key, value):
        samples = zip(query, key, value, strict=True)
        return torch.stack([function(*t, **options) for t in samples])

    assert_close(evaluate(mapped, stacked, {}), evaluate(loop, stacked, {}), 1e-10)
