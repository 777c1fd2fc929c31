"""What the dispatcher, compilers and callers of the package may expect of linear_attention."""

import inspect

import kktorch
import pytest
import torch
from attention_bn_cases import HALVES, Shape, assert_close, assert_identical, cast, evaluate
from linear_attention_cases import FORMS, op, problem
from op_contracts import (
    SelfAttention,
    check_compiles_once,
    check_exported,
    check_torchscript,
    exported,
)

# TorchScript stays supported here after its deprecation upstream
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


# Operator registration


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("mask", ["none", "both"])
@pytest.mark.parametrize("gradients", [False, True])
def test_opcheck(gradients, mask, form):
    tensors, options = problem(Shape(H=4, Hk=2), form, mask)
    for t in (*tensors, options["beta"]):
        t.requires_grad_(gradients)
    torch.library.opcheck(op.default, tensors, options)


def test_op_is_tagged_for_the_compiler():
    assert torch.Tag.pt2_compliant_tag in op.default.tags


def test_function_has_the_arguments_and_defaults_of_the_op():
    parameters = inspect.signature(kktorch.linear_attention).parameters
    arguments = op.default._schema.arguments
    assert [argument.name for argument in arguments] == list(parameters)
    for argument in arguments:
        parameter = parameters[argument.name]
        assert argument.kwarg_only == (parameter.kind is inspect.Parameter.KEYWORD_ONLY)
        required = parameter.default is inspect.Parameter.empty
        assert required or argument.default_value == parameter.default, argument.name
        assert argument.has_default_value() != required


def test_function_calls_the_op():
    tensors, options = problem(Shape(H=4, Hk=2), "causal", "both", use_std=False, eps=0.5)
    expected = op(*tensors, **options, bn=False)
    assert_identical(kktorch.linear_attention(*tensors, **options, bn=False), expected)
    assert_identical(kktorch.linear_attention(*tensors, **options), op(*tensors, **options))


# Compilers


@pytest.mark.parametrize("form", FORMS)
def test_compile_with_dynamic_shapes(form):
    # 1, 2 and 3 chunks
    shapes = Shape(6, 4, 2, 5, 7, 8, 3), Shape(9, 4, 2, 12, 65, 8, 3), Shape(2, 4, 2, 5, 150, 8, 3)
    check_compiles_once(op, [problem(shape, form, "padding") for shape in shapes])


@pytest.mark.parametrize("form", FORMS)
def test_compile_with_the_default_backend(form):
    def function(query, key, value, beta, padding):
        causal = form == "causal"
        return op(query.sin(), key, value, beta, padding, is_causal=causal).square()

    compiled = torch.compile(function, fullgraph=True, dynamic=True)
    for shape in (Shape(N=7), Shape(N=66)):
        (q, k, v), options = problem(shape, form, "padding")
        arguments = {"beta": options["beta"], "padding": options["key_padding_mask"]}
        expected = evaluate(function, (q, k, v), arguments)
        assert_close(evaluate(compiled, (q, k, v), arguments), expected, 1e-12)


class Layer(SelfAttention):
    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, padding: torch.Tensor):
        return torch.ops.kktorch.linear_attention(
            q, k, v, self.beta, padding, key_weight=None, is_causal=self.is_causal
        )


@pytest.mark.filterwarnings("ignore:The given buffer is not writable")
@pytest.mark.parametrize("is_causal", [False, True])
def test_export(is_causal):
    module = Layer(is_causal=is_causal).eval()
    program = exported(module)
    # the op, and what it decomposes into
    for each in (program, program.run_decompositions()):
        check_exported(each, module, (11, 6, 129))


@pytest.mark.parametrize("is_causal", [False, True])
def test_torchscript(is_causal):
    check_torchscript(Layer(is_causal=is_causal), (6, 70))


# Autocast


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", HALVES)
def test_autocast_runs_in_float32(dtype, form):
    tensors, options = cast(dtype, *problem(form=form, mask="both"))

    def autocasting(**arguments):
        with torch.autocast("cpu", dtype=dtype):
            return op(**arguments)

    actual = evaluate(autocasting, tensors, options)
    assert actual["out"].dtype == torch.float32
    assert {actual[name].dtype for name in ("query", "key", "value", "beta")} == {dtype}
    expected = evaluate(op, *cast(torch.float32, tensors, options))
    assert_identical(actual, {name: t.to(actual[name].dtype) for name, t in expected.items()})


def test_autocast_takes_mixed_floats_and_leaves_float64_alone():
    (q, k, v), options = problem()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_identical(op(q, k, v, **options), op(q, k, v, **options))
        mixed = op(q.float(), k.bfloat16(), v.half(), **options)
        assert op(q, k, v, **options).dtype == torch.float64
    floats = (q.float(), k.bfloat16().float(), v.half().float())
    assert_close(mixed, op(*floats, **options), 1e-6)
