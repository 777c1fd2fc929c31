"""kktorch.svm.MarginTracker along training, and on the heads of an attention layer."""

import math

import kktorch
import pytest
import torch
from conftest import needs_cuda
from kktorch import svm
from kktorch.nn import AttentionBNSH

UNDEFINED = pytest.approx(math.nan, nan_ok=True)


def unit(*shape):
    return torch.nn.functional.normalize(torch.randn(*shape, dtype=torch.float64), dim=-1)


def descent(steps: int, n=4, T=5, d=6, **options):
    """Normalised descent of the logistic loss on W; yields tracker, W and record of every step."""
    x, z, v = unit(n * T, d), unit(n, d), unit(d)
    labels = torch.tensor([1.0, -1.0] * (n // 2), dtype=torch.float64)
    tracker = svm.MarginTracker(x, z, torch.arange(n + 1) * T, **options)
    W = torch.randn(d, d, dtype=torch.float64) * 0.1
    X = x.view(n, T, d)
    for _ in range(steps):
        logits = torch.einsum("ntd,de,ne->nt", X, W, z).requires_grad_()
        scores = labels[:, None] * (X @ v)
        loss = torch.nn.functional.softplus(-(logits.softmax(1) * scores).sum(1)).mean()
        (g,) = torch.autograd.grad(loss, logits)
        record = tracker.step(W=W, dlogits=g.flatten(), score=scores.flatten(), loss=loss.item())
        yield tracker, W, record
        dW = torch.einsum("nt,ntd,ne->de", g, X, z)
        W = W - 0.1 * dW / dW.norm()


def test_bracket_holds_the_margin_and_the_certified_cosine_is_one():
    *_, (tracker, W, record) = descent(800)
    assert record.status == "separated" and record.stable >= 20
    assert record.gap_frobenius <= 1e-10 and record.gap_nuclear <= 1e-6
    assert 0 < record.cos_certified <= record.cos_frobenius + 1e-9
    assert record.lower <= record.upper
    assert record.locally_optimal in (0.0, 1.0)
    assert record.loss > 0 and record.excess_loss == UNDEFINED
    assert "1/|Wmm|" in repr(record)
    with pytest.raises(AttributeError):
        _ = record.no_such_field


def test_every_bracket_holds_the_margin_of_the_solved_svm():
    runs = list(descent(400))
    tracker, W, last = runs[-1]
    for norm, suffix, slack in (("frobenius", "", 1e-9), ("nuclear", "_nuclear", 1e-5)):
        solution = svm.att_svm(*tracker.data[:3], last.alpha, norm=norm)
        assert solution.status == "optimal"
        length = (
            solution.w.norm()
            if norm == "frobenius"
            else torch.linalg.matrix_norm(solution.w, "nuc")
        )
        margin = 1 / float(length)
        for _, W, record in runs[::10]:
            if record.hash != last.hash:
                continue
            assert record.fields["lower" + suffix] <= margin * (1 + slack)
            assert record.fields["upper" + suffix] >= margin * (1 - slack)
            if norm == "frobenius" and record.lower > 0:
                cosine = float((W * solution.w).sum() / (W.norm() * solution.w.norm()))
                assert record.cos_certified <= cosine + 1e-9


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_narrow_tokens_are_read_exactly(dtype):
    x, z = torch.randn(6, 4).to(dtype), torch.randn(2, 3)
    row_ptr, W = torch.tensor([0, 2, 6]), torch.randn(4, 3)
    narrow = svm.MarginTracker(x, z, row_ptr).step(W=W)
    wide = svm.MarginTracker(x.double(), z.double(), row_ptr).step(W=W.double())
    assert narrow.fields == pytest.approx(wide.fields, nan_ok=True, rel=1e-13)


def test_path_is_the_way_of_descent():
    runs = list(descent(50))
    tracker, W, _ = runs[-1]
    W0, alpha = runs[0][1], torch.zeros(4, dtype=torch.int64)
    arguments = *tracker.data[:3], alpha
    steps = tracker.path  # of all 50 steps, the last of which W has not made yet
    plus = torch.ops.kktorch.attn_dual(*arguments, steps)[0]
    minus = torch.ops.kktorch.attn_dual(*arguments, -steps)[0]
    moved = 0.1 * (plus - minus)
    assert float((W - W0 - moved).norm()) == pytest.approx(0.1, rel=1e-9)


def test_a_tracker_goes_on_where_its_state_was_taken(tmp_path):
    *_, (tracker, W, record) = descent(60)
    assert record.gap_frobenius <= 1e-10, "solved: part of the state"
    torch.save(tracker.state_dict(), tmp_path / "state.pt")
    resumed = svm.MarginTracker(*tracker.data)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt"))
    dlogits = torch.randn(20, dtype=torch.float64)
    step = {"W": W, "dlogits": dlogits, "score": torch.randn(20, dtype=torch.float64)}
    assert resumed.step(**step).fields == pytest.approx(
        tracker.step(**step).fields, nan_ok=True, rel=0, abs=0
    )
    other = svm.MarginTracker(unit(6, 6), unit(2, 6), torch.tensor([0, 3, 6]))
    with pytest.raises(RuntimeError, match="expected the state of these token sets"):
        other.load_state_dict(tracker.state_dict())


@needs_cuda
def test_cuda_is_the_cpu_within_rounding():
    sets = svm.sequence(torch.randn(2, 5, 6, dtype=torch.float64), causal=True)
    device = [t.cuda() for t in sets]
    W, dlogits = torch.randn(6, 6, dtype=torch.float64), torch.randn(30, dtype=torch.float64)
    for solve_after in (0, 1):
        here = svm.MarginTracker(*sets, solve_after=solve_after)
        there = svm.MarginTracker(*device, solve_after=solve_after)
        for _ in range(3):
            a, b = here.step(W=W, dlogits=dlogits), there.step(W=W.cuda(), dlogits=dlogits.cuda())
            assert a.hash == b.hash and b.alpha.is_cuda
            assert b.fields == pytest.approx(a.fields, nan_ok=True, rel=1e-9, abs=a.slack)


# ---- layers


def layer_and_inputs(**options):
    layer = AttentionBNSH(8, 2, variant="softmax", batch_first=True, **options).double()
    with torch.no_grad():
        layer.in_proj_bias.normal_()
    return layer, torch.randn(3, 5, 8, dtype=torch.float64)


def head_logits(layer, x, head):
    """Scaled logits [B, L, S] by the definition, biases of queries and keys included."""
    q, k, _ = torch.nn.functional.linear(x, layer.in_proj_weight, layer.in_proj_bias).chunk(3, -1)
    rows = slice(4 * head, 4 * head + 4)
    return q[..., rows] @ k[..., rows].transpose(1, 2) / 2


@pytest.mark.parametrize("causal", [False, True])
def test_margins_of_a_layer_are_those_of_its_heads(causal):
    layer, x = layer_and_inputs()
    tracker = svm.LayerTracker(layer)
    padding = torch.zeros(3, 5, dtype=torch.bool)
    padding[1, 3:] = True
    out, _ = layer(x, x, x, padding, is_causal=causal)
    out.square().sum().backward()
    records = tracker.step(loss=1.0)
    for head, record in enumerate(records):
        logits = head_logits(layer, x, head).detach() * 2  # unscaled
        logits = logits.masked_fill(padding[:, None], -math.inf)
        if causal:
            logits = logits.masked_fill(torch.ones(5, 5, dtype=torch.bool).triu(1), -math.inf)
        top = logits.topk(2, dim=2).values
        least = (top[..., 0] - top[..., 1]).flatten()
        torch.testing.assert_close(record.margin, least, rtol=0, atol=1e-12)
        entropy = torch.distributions.Categorical(logits=logits / 2).entropy().mean()
        assert record.entropy == pytest.approx(float(entropy), abs=1e-12)
        assert record.lower <= record.upper and record.mass > 0
    tracker.detach()
    assert not layer._forward_pre_hooks and not layer.out_proj._forward_pre_hooks


def test_gradient_of_a_layer_is_that_of_its_logits():
    layer, x = layer_and_inputs()
    tracker = svm.LayerTracker(layer)
    layer(x, x, x)[0].square().sum().backward()
    found = tracker.step()
    v = torch.nn.functional.linear(x, layer.in_proj_weight, layer.in_proj_bias).chunk(3, -1)[2]
    logits = [head_logits(layer, x, head).detach().requires_grad_() for head in range(2)]
    heads = [s.softmax(2) @ v[..., 4 * h : 4 * h + 4] for h, s in enumerate(logits)]
    loss = layer.out_proj(torch.cat(heads, 2)).square().sum()
    for record, s, g in zip(found, logits, torch.autograd.grad(loss, logits), strict=True):
        g = (g / 2).scatter(2, s.argmax(2, keepdim=True), 0)  # of the unscaled logits
        assert record.mass == pytest.approx(float(g.clamp_min(0).sum()), rel=1e-10)


def test_a_layer_in_evaluation_gives_lower_bounds_only():
    layer, x = layer_and_inputs()
    tracker = svm.LayerTracker(layer)
    with pytest.raises(RuntimeError, match="expected a forward pass before step, but got none"):
        tracker.step()
    with torch.no_grad():
        layer(x, x, x)
    assert [record.upper for record in tracker.step()] == [UNDEFINED, UNDEFINED]


@pytest.mark.parametrize(
    ("layer", "what"),
    [
        (torch.nn.Linear(2, 2), "a Linear"),
        (AttentionBNSH(8, 2), "AttentionBNSH of variant 'bn'"),
        (AttentionBNSH(8, 2, variant="sh"), "AttentionBNSH of variant 'sh'"),
        (AttentionBNSH(8, 2, variant="linear"), "AttentionBNSH of variant 'linear'"),
        (
            AttentionBNSH(8, 2, variant="softmax", conv="1d"),
            "AttentionBNSH with a convolution of queries and keys",
        ),
        (
            AttentionBNSH(8, 2, variant="softmax", dropout=0.1),
            "AttentionBNSH with dropout 0.1 on its probabilities",
        ),
    ],
)
def test_other_logits_are_refused_by_name(layer, what):
    with pytest.raises(ValueError) as error:
        svm.LayerTracker(layer)
    assert str(error.value) == f"margin_tracker: expected bilinear logits, but got {what}"


def test_masks_that_add_or_differ_by_head_are_refused():
    layer, x = layer_and_inputs()
    tracker = svm.LayerTracker(layer)
    with pytest.raises(ValueError, match="but got an additive attn_mask"):
        layer(x, x, x, attn_mask=torch.zeros(5, 5, dtype=torch.float64))
    layer(x, x, x, attn_mask=torch.zeros(6, 5, 5, dtype=torch.bool))
    with pytest.raises(ValueError, match="but got an attn_mask per head"):
        tracker.step()


# ---- errors


def test_errors_name_what_was_expected():
    x, z, row_ptr = unit(6, 4), unit(3, 5), torch.tensor([0, 2, 4, 6])
    tracker = svm.MarginTracker(x, z, row_ptr)
    W = torch.full((4, 5), math.inf, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="expected finite logits, but got NaN or Inf in query 0"):
        tracker.step(W=W)
    with pytest.raises(RuntimeError, match="expected W or K and Q, but got neither"):
        tracker.step()
    with pytest.raises(RuntimeError, match="margin_tracker: expected x of shape"):
        svm.MarginTracker(x.long(), z, row_ptr)
    assert kktorch.svm is svm
