"""token_pool against the list of its windows, its backward op, and what compilers expect of it."""

import io
import re
from itertools import product

import pytest
import sh_reference
import torch
from attention_bn_cases import DTYPES, HALVES, assert_close, assert_identical, cotangent

op = torch.ops.kktorch.token_pool
forward_op = torch.ops.kktorch._token_pool_forward
backward_op = torch.ops.kktorch._token_pool_backward

# TorchScript stays supported here after its deprecation upstream
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")

LAYOUTS = {"[B,N,C]": (), "[B,H,N,C]": (2,)}


def tokens(length=11, heads=(2,), width=3, batch=3):
    generator = torch.Generator().manual_seed(0)
    size = (batch, *heads, length, width)
    return torch.randn(size, generator=generator, dtype=torch.float64)


def padding(length=11, batch=3):
    """Ragged ends, a hole that swallows windows, and a sample without any valid token."""
    mask = torch.zeros(batch, length, dtype=torch.bool)
    mask[0, 2:7] = True
    mask[1:2, -1:] = True
    mask[1:2, :1] = True
    mask[2:3] = True
    return mask


def rubbish(x, mask):
    """`x` with NaN in the padded tokens."""
    mask = mask[:, :, None] if x.dim() == 3 else mask[:, None, :, None]
    return x.masked_fill(mask, torch.nan)


GRID = [
    (length, window, options)
    for length, window, tail, special in product(
        (1, 7, 11), (1, 2, 3, 20), ("ceil", "drop"), (0, 2)
    )
    for options in [{"tail": tail, "num_special": min(special, length)}]
    if sh_reference.windows(length, window, tail, min(special, length))
]


def evaluate(function, x, *args, grad_out=None, **options):
    """Pooled values, counts and the gradient of one call."""
    x = x.detach().requires_grad_()
    pooled, count = function(x, *args, **options)
    assert not count.requires_grad
    grad_out = cotangent(pooled.shape, pooled.dtype) if grad_out is None else grad_out
    (grad,) = torch.autograd.grad(pooled, x, grad_out)
    return {"out": pooled.detach(), "count": count, "grad": grad}


# Values


@pytest.mark.parametrize("heads", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("mode", ["avg", "max"])
@pytest.mark.parametrize("is_padded", [False, True], ids=["", "padded"])
def test_pooling_is_the_definition(is_padded, mode, heads):
    for length, window, options in GRID:
        x, mask = tokens(length, heads), None
        if is_padded:
            mask = padding(length)
            x = rubbish(x, mask)
        actual = evaluate(op, x, window, mask, mode=mode, **options)
        expected = evaluate(sh_reference.token_pool, x, window, mask, mode=mode, **options)
        assert actual["count"].dtype == torch.float32
        assert_close(actual, expected, 1e-12)


def test_defaults_are_those_of_the_schema():
    x = tokens()
    assert_identical(op(x, 3), op(x, 3, None, mode="avg", tail="ceil", num_special=0))


def test_a_window_of_all_tokens_is_the_mean():
    x = tokens()
    for window in (11, 12, 1000):
        pooled, count = op(x, window)
        assert_close(pooled, x.mean(2, keepdim=True), 1e-12)
        assert_identical(count, torch.full((3, 1), 11.0))


def test_an_empty_window_is_zero_and_counts_zero():
    x, mask = tokens(), padding()
    for mode in ("avg", "max"):
        result = evaluate(op, rubbish(x, mask), 2, mask, mode=mode)
        assert_identical(result["count"][0], torch.tensor([2.0, 0, 0, 1, 2, 1]))
        assert not result["out"][0, :, 1:3].any() and not result["out"][2].any()
        assert not result["grad"][0, :, 2:7].any() and not result["grad"][2].any()


def test_average_pooling_commutes_with_a_linear_map():
    x, mask = tokens(heads=()), padding()
    weight, bias = tokens(4, (), 3, 1)[0], tokens(1, (), 4, 1)[0, 0]
    for options in ({}, {"tail": "drop"}, {"num_special": 2}):
        pooled, count = op(x, 3, mask, **options)
        mapped, _ = op(torch.nn.functional.linear(x, weight, bias), 3, mask, **options)
        # an empty window is 0 on both sides of the map, and has no bias
        expected = torch.nn.functional.linear(pooled, weight, bias) * (count > 0)[..., None]
        assert_close(mapped, expected, 1e-12)


def test_pooling_undoes_repetition():
    x = tokens()
    assert_close(op(x.repeat_interleave(3, 2), 3)[0], x, 1e-12)


@pytest.mark.parametrize("mode", ["avg", "max"])
def test_nan_in_a_valid_token_stays_in_its_window(mode):
    x = tokens()
    x[0, 1, 4, 2] = torch.nan
    isnan = op(x, 3, mode=mode)[0].isnan()
    assert isnan.nonzero().tolist() == [[0, 1, 1, 2]]


# Dtypes, strides, sizes


@pytest.mark.parametrize("window", [3, 700])
@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_are_rounded_once(dtype, window):
    """Windows of hundreds of tokens would lose digits in a half accumulator."""
    x = (tokens(2000, (), 2) + 1).to(dtype)
    grad_out = cotangent(op(x, window)[0].shape, dtype)
    actual = evaluate(op, x, window, grad_out=grad_out)
    exact = evaluate(sh_reference.token_pool, x.double(), window, grad_out=grad_out.double())
    assert actual["out"].dtype == actual["grad"].dtype == dtype
    # halves are summed in float32; the other types round every addition
    roundings = 4 if dtype in HALVES else 4 + window
    assert_close(actual, exact, roundings * torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", HALVES)
def test_sums_of_halves_do_not_overflow(dtype):
    x = torch.full((1, 40, 2), 3e4, dtype=dtype)
    assert_identical(op(x, 40)[0], x[:, :1])


@pytest.mark.parametrize("mode", ["avg", "max"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_padding_may_hold_anything(dtype, mode):
    x, mask = tokens().to(dtype), padding()
    clean = evaluate(op, x, 3, mask, mode=mode)
    assert_identical(evaluate(op, rubbish(x, mask), 3, mask, mode=mode), clean)


@pytest.mark.parametrize("mode", ["avg", "max"])
def test_strides_do_not_matter(mode):
    x, mask = tokens(), padding()
    packed = evaluate(op, x, 3, mask, mode=mode)
    grad_out = cotangent(packed["out"].shape).mT.contiguous().mT
    for strided in (
        x.transpose(1, 2).contiguous().transpose(1, 2),
        x.mT.contiguous().mT,
        x.repeat_interleave(2, -1)[..., ::2],
    ):
        assert not strided.is_contiguous()
        mask_strided = mask.T.contiguous().T
        result = evaluate(op, strided, 3, mask_strided, mode=mode, grad_out=grad_out)
        assert_close(result, packed, 1e-12)


def test_expanded_inputs_and_cotangents():
    x, mask = tokens()[:1, :1].expand(3, 2, -1, -1), padding()[:1].expand(3, -1)
    packed = evaluate(op, x.contiguous(), 3, mask.contiguous())
    assert_close(evaluate(op, x, 3, mask), packed, 1e-12)
    ones = torch.ones((), dtype=torch.float64).expand(packed["out"].shape)
    expected = evaluate(op, x, 3, mask, grad_out=ones.contiguous())
    assert_identical(evaluate(op, x, 3, mask, grad_out=ones), expected)


@pytest.mark.parametrize("mode", ["avg", "max"])
def test_inputs_are_left_alone_and_not_returned(mode):
    x = tokens()
    before = x.clone()
    pooled, _ = op(x, 1, mode=mode)
    assert_identical(x, before)
    assert_identical(pooled, x)
    assert pooled.data_ptr() != x.data_ptr()


@pytest.mark.parametrize("mode", ["avg", "max"])
@pytest.mark.parametrize(
    "size", [(0, 2, 7, 3), (2, 0, 7, 3), (2, 2, 0, 3), (2, 2, 7, 0), (0, 7, 3)]
)
def test_empty_sizes(size, mode):
    for mask in (None, torch.zeros(size[0], size[-2], dtype=torch.bool)):
        result = evaluate(op, torch.zeros(size), 3, mask, mode=mode)
        count = -(-size[-2] // 3)
        assert result["out"].shape == (*size[:-2], count, size[-1])
        assert result["count"].shape == (size[0], count)
        assert_identical(result["grad"], torch.zeros(size))


# Gradients


@pytest.mark.parametrize("mode", ["avg", "max"])
@pytest.mark.parametrize("options", [{}, {"tail": "drop"}, {"num_special": 2}], ids=str)
def test_gradcheck(options, mode):
    x, mask = tokens(7, (), 2, batch=2).requires_grad_(), padding(7, batch=2)
    assert torch.autograd.gradcheck(lambda x: op(x, 3, mask, mode=mode, **options)[0], x)


@pytest.mark.parametrize("heads", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("is_padded", [False, True], ids=["", "padded"])
def test_backward_op_is_autograd_of_the_definition(is_padded, heads):
    mask = padding() if is_padded else None
    for window, tail, special in product((1, 3, 20), ("ceil", "drop"), (0, 2)):
        options = {"tail": tail, "num_special": special}
        if not sh_reference.windows(11, window, **options):
            continue
        expected = evaluate(sh_reference.token_pool, tokens(11, heads), window, mask, **options)
        grad_out = cotangent(expected["out"].shape)
        grad = backward_op(grad_out, expected["count"], mask, 11, window, tail, special)
        assert_close(grad, expected["grad"], 1e-12)


def test_double_backward():
    """Pooling is linear: the gradient of its gradient is pooling again."""
    x, mask = tokens(7, (), 2, batch=2).requires_grad_(), padding(7, batch=2)
    assert torch.autograd.gradgradcheck(lambda x: op(x, 3, mask)[0], x)


def test_an_output_that_needs_no_gradient_has_none():
    assert not op(tokens(), 3)[0].requires_grad
    with torch.no_grad():
        assert not op(tokens().requires_grad_(), 3)[0].requires_grad


# The dispatcher and compilers


@pytest.mark.parametrize(
    "options", [{}, {"tail": "drop", "num_special": 2}, {"mode": "max"}], ids=str
)
@pytest.mark.parametrize("gradients", [False, True])
def test_opcheck(gradients, options):
    x = tokens().requires_grad_(gradients)
    torch.library.opcheck(op.default, (x, 3, padding()), options)
    torch.library.opcheck(op.default, (x[:, 0].detach().requires_grad_(gradients), 3), options)


@pytest.mark.parametrize("mask", [None, padding()], ids=["", "padded"])
@pytest.mark.parametrize("gradients", [False, True])
def test_opcheck_of_the_private_ops(gradients, mask):
    x = tokens().requires_grad_(gradients)
    torch.library.opcheck(forward_op.default, (x, 3, mask, "ceil", 0))
    count = op(tokens(), 3, mask)[1]
    grad_out = cotangent((3, 2, 4, 3)).requires_grad_(gradients)
    arguments = (grad_out, count, mask, 11, 3, "ceil", 0)
    torch.library.opcheck(backward_op.default, arguments)


def test_ops_are_tagged_for_the_compiler():
    for function in (op, forward_op, backward_op):
        assert torch.Tag.pt2_compliant_tag in function.default.tags


@pytest.mark.parametrize("mode", ["avg", "max"])
def test_compile_with_dynamic_shapes(mode):
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return torch._dynamo.backends.debugging.aot_eager(graph, inputs)

    def function(x, mask):
        pooled, count = op(x * 2, 3, mask, mode=mode, num_special=1)
        return pooled + 1, count

    compiled = torch.compile(function, backend=backend, fullgraph=True, dynamic=True)
    # sizes that differ from each other: equal ones would be compiled as one size
    for batch, heads, length, width in ((4, 2, 11, 5), (6, 3, 13, 7)):
        x, mask = tokens(length, (heads,), width, batch), padding(length, batch)
        assert_close(evaluate(compiled, x, mask), evaluate(function, x, mask), 1e-12)
    assert len(graphs) == 1


def test_autocast_keeps_the_dtype():
    for dtype in DTYPES:
        x = tokens().to(dtype)
        expected = op(x, 3)[0]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert_identical(op(x, 3)[0], expected)


class Pool(torch.nn.Module):
    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        pooled, count = torch.ops.kktorch.token_pool(x, 3, mask, tail="drop", num_special=1)
        return pooled * count.unsqueeze(-1)


def test_export():
    batch, length = torch.export.Dim("batch", min=2), torch.export.Dim("length", min=5)
    program = torch.export.export(
        Pool(),
        (tokens(heads=()), padding()),
        dynamic_shapes=({0: batch, 1: length}, {0: batch, 1: length}),
    )
    for x, mask in ((tokens(heads=()), padding()), (tokens(8, (), 3, 4), padding(8, 4))):
        assert_identical(program.module()(x, mask), Pool()(x, mask))


def test_torchscript():
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(Pool()), file)
    file.seek(0)
    inputs = tokens(heads=()), padding()
    assert_identical(torch.jit.load(file)(*inputs), Pool()(*inputs))


# Errors: input [3, 2, 11, 3], window 3; each case replaces some arguments

ERRORS = [
    *(
        (
            {"input": torch.zeros(size, dtype=dtype)},
            RuntimeError,
            "expected input of shape [B, N, C] or [B, H, N, C] and a dtype in {float16, bfloat16, "
            f"float32, float64}}, but got {got}",
        )
        for size, dtype, got in (
            ((11, 3), torch.float32, "Float [11, 3]"),
            ((3, 2, 11, 3, 1), torch.float32, "Float [3, 2, 11, 3, 1]"),
            ((3, 2, 11, 3), torch.int64, "Long [3, 2, 11, 3]"),
        )
    ),
    *(
        ({"window": window}, ValueError, f"expected window >= 1, but got {window}")
        for window in (0, -3)
    ),
    ({"mode": "sum"}, ValueError, "expected mode 'avg' or 'max', but got 'sum'"),
    ({"tail": "round"}, ValueError, "expected tail 'ceil' or 'drop', but got 'round'"),
    *(
        ({"num_special": n}, ValueError, f"expected 0 <= num_special <= 11, but got {n}")
        for n in (-1, 12)
    ),
    *(
        (
            {"key_padding_mask": mask},
            RuntimeError,
            f"expected key_padding_mask bool [3,11], True = ignore, but got {got}",
        )
        for mask, got in (
            (torch.zeros(3, 11), "Float [3, 11]"),
            (torch.zeros(3, 10, dtype=torch.bool), "Bool [3, 10]"),
            (torch.zeros(11, dtype=torch.bool), "Bool [11]"),
        )
    ),
]


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("change, exception, message", ERRORS)
def test_a_wrong_argument_is_named(change, exception, message, device):
    arguments = {"input": tokens(), "window": 3} | change
    moved = {n: t.to(device) if torch.is_tensor(t) else t for n, t in arguments.items()}
    with pytest.raises(Exception, match=re.escape(f"token_pool: {message}")) as caught:
        op(**moved)
    assert caught.type is exception


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    "change, message",
    [
        ({"grad": torch.zeros(3, 2, 5, 3)}, "grad_pooled floating [B, 4, C] or [B, H, 4, C], but"),
        ({"grad": torch.zeros(3, 4)}, "grad_pooled floating [B, 4, C] or [B, H, 4, C], but"),
        ({"count": torch.zeros(3, 5)}, "count float32 [3,4], but got Float [3, 5]"),
        ({"count": torch.zeros(3, 4).double()}, "count float32 [3,4], but got Double [3, 4]"),
        ({"mask": torch.zeros(3, 4).bool()}, "key_padding_mask bool [3,11], True = ignore, but"),
        ({"window": 0}, "window >= 1, but got 0"),
        ({"special": 12}, "0 <= num_special <= 11, but got 12"),
    ],
)
def test_the_backward_op_checks_too(change, message, device):
    arguments = {"grad": torch.zeros(3, 2, 4, 3), "count": torch.zeros(3, 4), "mask": None}
    arguments |= {"length": 11, "window": 3, "tail": "ceil", "special": 0} | change
    moved = [t.to(device) if torch.is_tensor(t) else t for t in arguments.values()]
    with pytest.raises(
        (RuntimeError, ValueError), match=re.escape(f"token_pool: expected {message}")
    ):
        backward_op(*moved)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_dropped_tail_must_leave_a_window(device):
    x = tokens().to(device)
    with pytest.raises(ValueError, match="^token_pool: .*drop"):
        op(x, 12, tail="drop")
    assert op(x, 12, tail="drop", num_special=1)[0].shape == (3, 2, 1, 3)
    assert op(x, 11, tail="drop")[0].shape == (3, 2, 1, 3)


def test_devices_do_not_mix():
    with pytest.raises(RuntimeError, match="token_pool: expected .* but got .*meta"):
        op(tokens(), 3, padding().to("meta"))
