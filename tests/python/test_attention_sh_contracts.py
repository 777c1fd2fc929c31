"""What the dispatcher, compilers and transforms may expect of attention_sh."""

import pytest
import torch
from attention_bn_cases import (
    HALVES,
    Shape,
    assert_close,
    assert_identical,
    cast,
    cotangent,
    evaluate,
)
from attention_sh_cases import MODES, op, problem, ref
from op_contracts import (
    SelfAttention,
    check_backward_op,
    check_compiles_once,
    check_exported,
    check_torchscript,
    exported,
)
from torch.autograd import forward_ad

# TorchScript stays supported here after its deprecation upstream
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")

private_forward = torch.ops.kktorch._attention_sh_forward
private_backward = torch.ops.kktorch._attention_sh_backward


# Operator registration


@pytest.mark.parametrize(
    "mode, mask, windows, norm",
    [
        ("global", "none", "2,1", "plain"),
        ("global", "bool[B,H,M,N]", "3,2-special", "bn"),
        ("global", "padding", "3,2-counted", "bn"),
        ("prefix", "padding", "3,2-counted", "bn"),
        ("prefix", "none", "2,1", "plain"),
        ("prefix", "bool[M,N]", "3", "plain"),
    ],
)
@pytest.mark.parametrize("gradients", [False, True])
def test_opcheck(mode, mask, windows, norm, gradients):
    check(op, gradients, mode=mode, mask=mask, windows=windows, norm=norm)


@pytest.mark.parametrize("gradients", [False, True])
def test_opcheck_of_the_reference_op(gradients):
    # the longer of its two paths
    check(ref, gradients, mode="prefix", mask="padding", windows="3")


def check(function, gradients, **which):
    (q, k, v), options = problem(**which)
    tensors = q, torch.nan_to_num(k), torch.nan_to_num(v)  # NaN would differ from itself
    if gradients:
        tensors = [t.requires_grad_() for t in tensors]
        if "beta" in options:
            options["beta"].requires_grad_()
    torch.library.opcheck(function.default, (*tensors, options.pop("scales")), options)


def private_arguments(mode, mask, norm):
    """The positional arguments of _attention_sh_forward: causal heads have one scale."""
    (q, k, v), options = problem(mode=mode, mask=mask, norm=norm)
    tensors = q, torch.nan_to_num(k), torch.nan_to_num(v)
    is_causal = mode == "prefix"
    scales = [3] if is_causal else [3, 1]
    numbers = (scales, 1, "ceil", True, options["bn"], 1.0, True, 1e-5, is_causal, 0.5)
    return (*tensors, options.get("beta"), options.get("key_padding_mask")), numbers


@pytest.mark.parametrize("mode", ["global", "prefix"])
@pytest.mark.parametrize("norm", ["plain", "bn"])
@pytest.mark.parametrize("mask", ["none", "padding"])
@pytest.mark.parametrize("gradients", [False, True])
def test_opcheck_of_the_private_ops(gradients, mask, norm, mode):
    operands, numbers = private_arguments(mode, mask, norm)
    if gradients:
        operands = [
            t.requires_grad_() if t is not None and t.is_floating_point() else t for t in operands
        ]
    torch.library.opcheck(private_forward.default, (*operands, *numbers))
    queries = operands[0].shape
    grad_out = cotangent((*queries[:3], operands[2].shape[3])).requires_grad_(gradients)
    check_backward_op(private_forward, private_backward, operands, numbers, grad_out)


def test_ops_are_tagged_for_the_compiler():
    for function in (op, ref, private_forward, private_backward):
        assert torch.Tag.pt2_compliant_tag in function.default.tags


# Compilers


@pytest.mark.parametrize(
    "called, mode, windows, square",
    [
        (op, "global", "3,2-special", False),
        (op, "global", "3,2-counted", False),
        (op, "prefix", "3,2-special", True),
        (ref, "global", "3,2-special", False),
    ],
)
def test_compile_with_dynamic_shapes(called, mode, windows, square):
    shapes = [Shape(6, 4, 2, 9, 11, 8, 3), Shape(7, 4, 2, 13, 17, 8, 3)]
    if square:
        shapes = [shape._replace(M=shape.N) for shape in shapes]
    check_compiles_once(called, [problem(shape, mode, "padding", windows) for shape in shapes])


class Layer(SelfAttention):
    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, padding: torch.Tensor):
        return torch.ops.kktorch.attention_sh(
            q, k, v, [2, 3], self.beta, padding, bn=True, num_special=1, is_causal=self.is_causal
        )


@pytest.mark.filterwarnings("ignore:The given buffer is not writable")
@pytest.mark.parametrize("is_causal", [False, True])
def test_export(is_causal):
    module = Layer(is_causal=is_causal).eval()
    check_exported(exported(module, 6), module, (14, 9, 7))


@pytest.mark.parametrize("is_causal", [False, True])
def test_torchscript(is_causal):
    check_torchscript(Layer(is_causal=is_causal), (11, 6))


# Autocast


@pytest.mark.parametrize("norm", ["plain", "bn"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("mask", ["none", "bool[M,N]"])
def test_autocast_casts_what_softmax_attention_casts(mask, dtype, mode, norm):
    tensors, options = cast(torch.float32, *problem(mode=mode, mask=mask, norm=norm))
    grad_out = cotangent((2, 4, MODES[mode].M, 2), dtype)

    def autocasting(**arguments):
        with torch.autocast("cpu", dtype=dtype):
            return op(**arguments)

    actual = evaluate(autocasting, tensors, options, grad_out)
    halves, _ = cast(dtype, tensors, {})
    expected = evaluate(op, halves, options, grad_out)
    assert actual["out"].dtype == dtype
    assert {actual[name].dtype for name in ("query", "key", "value")} == {torch.float32}
    assert_identical(actual, {name: t.to(actual[name].dtype) for name, t in expected.items()})


def test_autocast_takes_mixed_floats_and_a_half_beta():
    (q, k, v), options = problem(mask="bool[M,N]")
    beta = options.pop("beta")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = op(q.float(), k.bfloat16(), v.half(), beta=beta.half(), **options)
    q, k, v = q.float().bfloat16(), k.bfloat16(), v.half().bfloat16()
    assert_identical(out, op(q, k, v, beta=beta.half().float(), **options))


@pytest.mark.parametrize("mode", MODES)
def test_autocast_leaves_float64_alone(mode):
    tensors, options = problem(mode=mode)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = op(*tensors, **options)
    assert_identical(out, op(*tensors, **options))


# Transforms


@pytest.mark.parametrize("mode", MODES)
def test_forward_mode_is_refused(mode):
    (q, k, v), options = problem(mode=mode)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(q, torch.ones_like(q))
        with pytest.raises(NotImplementedError, match="forward-mode AD is not supported; use att"):
            op(dual, k, v, **options)


@pytest.mark.parametrize("mode", MODES)
def test_vmap_is_the_loop(mode):
    (q, k, v), options = problem(mode=mode, mask="padding")
    both = torch.stack([q, 2 * q])
    mapped = torch.func.vmap(lambda query: op(query, k, v, **options))(both)
    assert_close(mapped, torch.stack([op(t, k, v, **options) for t in both]), 1e-10)
