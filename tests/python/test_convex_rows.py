"""simplex_project and group_soft_threshold against definitions in float64, their gradients, and
what compilers expect of them."""

import io
import re

import pytest
import torch
from attention_bn_cases import DTYPES, HALVES, assert_close, assert_identical, cotangent

project = torch.ops.kktorch.simplex_project
project_backward = torch.ops.kktorch._simplex_project_backward
shrink = torch.ops.kktorch.group_soft_threshold
shrink_backward = torch.ops.kktorch._group_soft_threshold_backward

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


def sorted_projection(v, radius=1.0):
    """The projection by its definition with a sort, in float64, of slices along the last dim."""
    y = v.double() - v.double().amax(-1, keepdim=True)
    u = y.sort(-1, descending=True).values
    number = torch.arange(1, v.shape[-1] + 1, dtype=torch.float64)
    threshold = (torch.where(u == -torch.inf, 0, u).cumsum(-1) - radius) / number
    tau = torch.where(u > threshold, threshold, -torch.inf).amax(-1, keepdim=True)
    return (y - tau).clamp_min(0)


def slices(n, rows, generator):
    """Slices of every kind that rounding or ties could hurt, 7 * rows of them."""
    normal = torch.randn(rows, n, generator=generator, dtype=torch.float64)
    uniform = torch.rand(rows, n, generator=generator, dtype=torch.float64)
    ties = torch.randint(-2, 3, (rows, n), generator=generator).double()
    constant = normal[:, :1].expand(-1, n)
    scale = 10 ** (torch.rand(rows, 1, generator=generator, dtype=torch.float64) * 9 - 6)
    masked = normal.masked_fill(uniform < 0.5, -torch.inf)
    masked[:, 0] = 0
    offset = normal + 1e4 * normal[:, :1].sign()
    return torch.cat([normal, uniform, ties, constant, normal * scale, masked, offset])


@pytest.mark.parametrize("radius", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_projection_is_that_of_a_sort(dtype, radius):
    generator = torch.Generator().manual_seed(1)
    number = 0
    for n in (1, 2, 3, 8, 24, 25, 33, 64, 257, 1000):
        v = slices(n, 48, generator).to(dtype)
        w = project(v, radius=radius)
        expected = sorted_projection(v, radius)
        limit = (1e-6 if dtype == torch.float32 else 1e-13) * max(radius, 1)
        assert (w - expected).abs().max() <= limit
        off = (w.double().sum(-1) - radius).abs().max()
        assert off <= (1e-5 if dtype == torch.float32 else 1e-12) * radius
        assert (w >= 0).all() and w.dtype == dtype
        number += len(v)
    assert number * 3 >= 10**4


@pytest.mark.parametrize("dtype", HALVES)
def test_halves_are_projected_in_float32_and_rounded_once(dtype):
    v = slices(40, 16, torch.Generator().manual_seed(2))[: 16 * 4].to(dtype)
    assert_identical(project(v), project(v.float()).to(dtype))


def test_special_values_fill_their_slice_and_no_other():
    for n in (5, 40):
        v = torch.randn(6, n, dtype=torch.float64)
        v[1, 2] = torch.nan
        v[2, n - 1] = torch.inf
        v[3] = -torch.inf
        v[4, 1:] = -torch.inf
        w = project(v)
        assert w[1:4].isnan().all() and not w[[0, 4, 5]].isnan().any()
        assert_identical(w[4], torch.eye(n, dtype=torch.float64)[0])
        grad = project_backward(torch.ones_like(w), w, 1)
        assert not grad.isnan().any()


def test_any_dimension_and_any_strides():
    v = torch.randn(3, 5, 4, dtype=torch.float64)
    for dim in (0, 1, 2, -2):
        expected = sorted_projection(v.movedim(dim, -1)).movedim(-1, dim)
        for layout in (v, v.mT.contiguous().mT, v.repeat_interleave(2, -1)[..., ::2]):
            assert_close(project(layout, dim=dim), expected, 1e-13)
    assert project(torch.zeros(0, 3)).shape == (0, 3)


def test_results_do_not_depend_on_the_threads():
    v = torch.randn(5000, 40)
    torch.set_num_threads(2)
    two = project(v), shrink(v, torch.tensor(1.0))
    torch.set_num_threads(1)
    assert_identical((project(v), shrink(v, torch.tensor(1.0))), two)


def soft_threshold(u, tau, group_ndim=1):
    """The shrinkage by its definition."""
    norm = u.flatten(-group_ndim).norm(dim=-1)
    factor = torch.where(norm > tau, 1 - tau / norm, 0)
    return u * factor[(...,) + (None,) * group_ndim]


@pytest.mark.parametrize("dtype", DTYPES)
def test_shrinkage_is_the_definition(dtype):
    for size in ((4, 1), (3, 5, 7), (6, 33), (2, 3, 4, 5)):
        u = torch.randn(size, dtype=torch.float64).to(dtype)
        u[0, 0] = 0
        for group_ndim in (1, 2):
            if group_ndim == len(size):
                continue
            shape = size[: len(size) - group_ndim]
            for tau in (torch.tensor(0.0), torch.tensor(1.5), torch.rand(shape) * 2):
                expected = soft_threshold(u.double(), tau.double(), group_ndim)
                actual = shrink(u, tau, group_ndim=group_ndim)
                assert actual.dtype == dtype
                assert_close(actual.double(), expected, 4 * torch.finfo(dtype).eps)


def test_a_group_at_the_threshold_is_zero_and_nan_shows():
    u = torch.tensor([[3.0, 4.0], [3.0, 4.000001], [torch.nan, 1], [0, 0]])
    z = shrink(u, torch.tensor(5.0))
    assert not z[0].any() and z[1].any() and z[2].isnan().all() and not z[3].any()
    assert not shrink(u[3:], torch.tensor(0.0)).any()


# Gradients


def test_gradcheck():
    for n in (5, 30):
        v = torch.randn(4, n, dtype=torch.float64) * 0.2
        assert torch.autograd.gradcheck(project, v.requires_grad_())
    u = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    tau = torch.linspace(0.3, 2.9, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(shrink, (u, tau))
    scalar = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda u, t: shrink(u, t, group_ndim=2), (u, scalar))


def test_double_backward_and_forward_mode_are_refused():
    v = torch.randn(3, 4, requires_grad=True)
    for name, call in (
        ("simplex_project", project),
        ("group_soft_threshold", lambda x: shrink(x, torch.tensor(0.1))),
    ):
        (grad,) = torch.autograd.grad(call(v).square().sum(), v, create_graph=True)
        with pytest.raises(NotImplementedError, match=f"{name}: double backward is not supported"):
            grad.sum().backward()
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(v.detach(), torch.ones_like(v))
            with pytest.raises(NotImplementedError, match=f"{name}: forward-mode AD"):
                call(dual)


# Contracts


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_opcheck(dtype, gradients):
    v = torch.randn(3, 5, 4).to(dtype).requires_grad_(gradients)
    torch.library.opcheck(project.default, (v,), {"dim": 1, "radius": 2.0})
    tau = torch.rand(3, 5).to(dtype).requires_grad_(gradients)
    torch.library.opcheck(shrink.default, (v, tau))
    torch.library.opcheck(shrink.default, (v, torch.tensor(0.3)), {"group_ndim": 2})


def test_opcheck_of_the_backward_ops():
    v = torch.randn(3, 5)
    torch.library.opcheck(project_backward.default, (cotangent(v.shape, v.dtype), project(v), 1))
    arguments = (cotangent(v.shape, v.dtype), v, torch.tensor(0.3), 1)
    torch.library.opcheck(shrink_backward.default, arguments)


def test_ops_are_tagged_for_the_compiler():
    for function in (project, project_backward, shrink, shrink_backward):
        assert torch.Tag.pt2_compliant_tag in function.default.tags


class Rows(torch.nn.Module):
    def forward(self, v: torch.Tensor, tau: torch.Tensor) -> torch.Tensor:
        w = torch.ops.kktorch.simplex_project(v * 2, radius=2.0)
        return torch.ops.kktorch.group_soft_threshold(w - 0.1, tau) + 1


def test_compile_export_and_torchscript():
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return torch._dynamo.backends.debugging.aot_eager(graph, inputs)

    compiled = torch.compile(Rows(), backend=backend, fullgraph=True, dynamic=True)
    batch = torch.export.Dim("batch", min=2)
    example = torch.randn(6, 5), torch.rand(6)
    program = torch.export.export(Rows(), example, dynamic_shapes=({0: batch}, {0: batch}))
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(Rows()), file)
    file.seek(0)
    loaded = torch.jit.load(file)
    for rows in (6, 9):
        inputs = torch.randn(rows, 5), torch.rand(rows)
        expected = Rows()(*inputs)
        for called in (compiled, program.module(), loaded):
            assert_close(called(*inputs), expected, 1e-6)
    assert len(graphs) == 1


def test_autocast_projects_in_float32():
    v = torch.randn(4, 6, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_identical(project(v), project(v.float()))
        assert_identical(shrink(v, torch.tensor(0.5)), shrink(v.float(), torch.tensor(0.5)))


# Errors

SUPPORTED = "dtype in {float16, bfloat16, float32, float64}"
ERRORS = [
    (project, (torch.zeros(3, dtype=torch.int64),), {}, f"expected v dense and of a {SUPPORTED}"),
    (project, (torch.zeros(3, dtype=torch.complex64),), {}, f"v dense and of a {SUPPORTED}"),
    (project, (torch.tensor(1.0),), {}, "expected v with a dimension, but got a scalar"),
    (project, (torch.zeros(3, 0),), {}, "expected a dimension 1 that is not empty, but got v"),
    (project, (torch.zeros(3),), {"radius": 0.0}, "expected finite radius > 0, but got 0"),
    (project, (torch.zeros(3),), {"radius": -1.0}, "expected finite radius > 0, but got -1"),
    (project, (torch.zeros(3),), {"radius": torch.inf}, "expected finite radius > 0, but got inf"),
    (project, (torch.zeros(3),), {"radius": torch.nan}, "expected finite radius > 0, but got nan"),
    (
        shrink,
        (torch.zeros(3).int(), torch.tensor(1.0)),
        {},
        f"expected u dense and of a {SUPPORTED}",
    ),
    (shrink, (torch.zeros(3, 4), torch.zeros(4)), {}, "a scalar or of shape [3] on"),
    (shrink, (torch.zeros(3), torch.tensor(1)), {}, "expected tau floating, a scalar"),
    (
        shrink,
        (torch.zeros(3), torch.tensor(1.0)),
        {"group_ndim": 2},
        "expected 1 <= group_ndim <= 1",
    ),
]


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("op, arguments, options, message", ERRORS)
def test_a_wrong_argument_is_named(op, arguments, options, message, device):
    moved = [t.to(device) for t in arguments]
    with pytest.raises((RuntimeError, ValueError), match=re.escape(message)) as caught:
        op(*moved, **options)
    assert str(caught.value).startswith(f"{op.__name__}: expected")


def test_negative_tau_is_refused():
    for value in (-1, torch.nan):
        with pytest.raises(ValueError, match=f"expected tau >= 0, but got {value}"):
            shrink(torch.zeros(2, 3), torch.tensor([0.5, value]))
