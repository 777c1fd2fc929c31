"""Modules of convex attention: a recovered optimum fills them; scripts and exports."""

import io

import pytest
import torch
from attention_bn_cases import assert_close
from convex_cases import data_loss, golden
from kktorch import convex, nn

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")

MODULES = {
    "convex": lambda: nn.ConvexAttention(4, 3, 2, 5),
    "gated": lambda: nn.ConvexAttention(4, 3, 2, 5, gates=3),
    "sequence": lambda: nn.ConvexAttentionSeq(4, 3, 2, 5),
    "softmax": lambda: nn.SoftmaxAttention(3, 2, 5, qk_scale=0.5, readout_row=1),
}


def test_a_recovered_optimum_fills_the_module():
    X, Y, _ = golden()
    s = convex.solve(X, Y, 1.0, tol_rel=1e-10)
    heads = convex.recover_heads(s.Z)
    module = nn.ConvexAttention(4, 3, 3, len(heads.w1)).double()
    state = {"w1": heads.w1, "w2": heads.w2, "w3": heads.w3}
    module.load_state_dict(module.state_dict() | state)
    value = data_loss(module(X), Y, "half_squared") + 1.0 * module.penalty()
    assert abs(value.item() - s.F) <= 1e-12 * s.F
    before = module.penalty().item()
    with torch.no_grad():
        module.w2.mul_(3)
        module.w3.div_(3)
    module.balance()
    assert module.penalty().item() == pytest.approx(before, rel=1e-12)


def test_training_stays_in_the_simplex():
    for name in ("convex", "gated", "sequence"):
        module = MODULES[name]()
        weight = module.W1 if name == "sequence" else module.w1
        optimiser = torch.optim.Adam(module.parameters(), 0.1)
        module(torch.randn(6, 4, 3)).square().sum().backward()
        optimiser.step()
        module.project()
        assert (weight >= 0).all() and (weight.sum(-1) - 1).abs().max() <= 1e-5


@pytest.mark.parametrize("name, weight", [("convex", "w1"), ("gated", "w1"), ("sequence", "W1")])
def test_a_row_outside_of_the_simplex_is_named(name, weight):
    module, X = MODULES[name](), torch.randn(2, 4, 3)
    rows = getattr(module, weight).detach()
    rows.view(-1, 4)[2].copy_(torch.tensor([0.5, 0.75, -0.25, 0.5]))
    message = (
        f"{weight} rows in the simplex, but got row 2 with sum 1.5 and least entry -0.25; call"
    )
    with pytest.raises(ValueError, match=message):
        module(X)
    module.project()
    module(X)


def test_the_tolerance_of_the_simplex_is_that_of_the_dtype():
    for dtype, inside, outside in ((torch.float32, 5e-6, 5e-5), (torch.float64, 5e-10, 5e-9)):
        module, X = MODULES["convex"]().to(dtype), torch.randn(2, 4, 3, dtype=dtype)
        module.project()
        start = module.w1.detach().clone()
        for distance in (inside, outside):
            module.w1.detach().copy_(start)
            module.w1.detach()[1, 0] += distance
            if distance == inside:
                module(X)
                continue
            with pytest.raises(ValueError, match="w1 rows in the simplex, but got row 1 with sum"):
                module(X)


def test_an_id_without_a_gate_is_named():
    module, X = MODULES["gated"](), torch.randn(2, 4, 3)
    for value in (3, -1):
        module.gate_id[2] = value
        message = rf"expected gate_id int64 \[h\] with values in \[0, 3\), but got {value}"
        with pytest.raises(ValueError, match=f"ConvexAttention: {message}"):
            module(X)


@pytest.mark.parametrize("name", MODULES)
def test_torchscript_and_export(name):
    module = MODULES[name]()
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(module), file)
    file.seek(0)
    loaded = torch.jit.load(file)
    X = torch.randn(6, 4, 3)
    program = torch.export.export(module, (X,), dynamic_shapes=({0: torch.export.Dim("N", min=2)},))
    for rows in (6, 8):
        X = torch.randn(rows, 4, 3)
        assert_close(loaded(X), module(X), 1e-6)
        assert_close(program.module()(X), module(X), 1e-6)
