"""What compilers may expect of every attention op; a test file brings its op and its problems."""

import io

import torch
from attention_bn_cases import assert_close, assert_identical, evaluate


class SelfAttention(torch.nn.Module):
    """An op between two linear maps, as a layer has it; subclasses say which, in ``attend``."""

    def __init__(self, width: int = 8, heads: int = 2, is_causal: bool = False):
        super().__init__()
        self.heads, self.is_causal = heads, is_causal
        self.projection = torch.nn.Linear(width, 3 * width)
        self.beta = torch.nn.Parameter(torch.linspace(0.5, 1, heads))

    def forward(self, x: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
        q, k, v = self.projection(x).unflatten(-1, (3, self.heads, -1)).unbind(2)
        out = self.attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), padding)
        return out.transpose(1, 2).flatten(2)


def sequences(batch: int, length: int):
    """Inputs of SelfAttention; the last two tokens are padding."""
    x = torch.randn(batch, length, 8)
    return x, torch.arange(length).expand(batch, -1) >= length - 2


def exported(module: SelfAttention, shortest: int = 3) -> torch.export.ExportedProgram:
    """The module for any batch and any length from ``shortest`` on."""
    batch, length = torch.export.Dim("batch", min=2), torch.export.Dim("length", min=shortest)
    sizes = {0: batch, 1: length}
    return torch.export.export(module, sequences(3, shortest + 3), dynamic_shapes=(sizes, sizes))


def check_exported(program: torch.export.ExportedProgram, module: SelfAttention, lengths):
    """The program, and what is left of it in a file, compute what the module does."""
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for batch, length in enumerate(lengths, 2):
        inputs = sequences(batch, length)
        assert_close(program.module()(*inputs), module(*inputs), 1e-6)
        assert_close(loaded(*inputs), module(*inputs), 1e-6)


def check_torchscript(module: SelfAttention, lengths):
    """The scripted module, and what is left of it in a file: outputs and gradients."""
    scripted = torch.jit.script(module)
    file = io.BytesIO()
    torch.jit.save(scripted, file)
    file.seek(0)
    loaded = torch.jit.load(file)
    for batch, length in enumerate(lengths, 2):
        inputs = sequences(batch, length)
        expected = module(*inputs)
        wanted = torch.autograd.grad(expected.square().sum(), list(module.parameters()))
        for compiled in (scripted, loaded):
            out = compiled(*inputs)
            assert_identical(out, expected)
            grads = torch.autograd.grad(out.square().sum(), list(compiled.parameters()))
            for actual, grad in zip(grads, wanted, strict=True):
                assert_close(actual, grad, 1e-6)


def check_compiles_once(called, problems):
    """One graph with dynamic shapes serves all problems, pairs (tensors, options).

    Sizes must differ from each other: equal ones would be compiled as one size.
    """
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return torch._dynamo.backends.debugging.aot_eager(graph, inputs)

    def function(query, key, value, **options):
        return called(query * 2, key, value, **options) + 1

    compiled = torch.compile(function, backend=backend, fullgraph=True, dynamic=True)
    for tensors, options in problems:
        expected = evaluate(function, tensors, options)
        assert_close(evaluate(compiled, tensors, options), expected, 1e-12)
    assert len(graphs) == 1


def check_backward_op(private_forward, private_backward, operands, numbers, grad_out, *more):
    """opcheck of a backward op on what its forward op saves; ``more`` arguments follow."""
    saved = [t.detach() for t in private_forward(*operands, *numbers)]
    checks = ["test_schema", "test_autograd_registration", "test_faketensor"]
    if (
        not grad_out.requires_grad
    ):  # the last check differentiates what refuses to be differentiated
        checks.append("test_aot_dispatch_dynamic")
    arguments = (grad_out, *operands, *saved, *numbers, *more)
    torch.library.opcheck(private_backward.default, arguments, test_utils=checks)
