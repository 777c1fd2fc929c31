"""attention_sh against the list of its windows, and the statements made about it."""

from itertools import cycle, product

import pytest
import reference
import sh_reference
import torch
from attention_bn_cases import (
    BETA_KINDS,
    Shape,
    assert_close,
    assert_identical,
    error,
)
from attention_sh_cases import DEFAULT, MASKS, MODES, NORMS, WINDOWS, op, problem, ref

attention_bn = torch.ops.kktorch.attention_bn
token_pool = torch.ops.kktorch.token_pool
sdpa = torch.nn.functional.scaled_dot_product_attention

SHAPES = [Shape(1, 2, 2, 1, 1, 1, 1), Shape(2, 2, 2, 3, 4, 8, 3), DEFAULT]

# Every case of the grid takes the next strength and kind of beta; 17 and the grid are not in step.
_betas = cycle([*product(BETA_KINDS, (0.0, 0.3, 1.0, -0.5)), ("[H]", 0.7)])
GRID = [
    pytest.param(*case, next(_betas), id=f"{'x'.join(map(str, shape))}-{mask}-{windows}-{norm}")
    for case in product(SHAPES, MASKS, WINDOWS, NORMS)
    for shape, mask, windows, norm in [case]
    # no more special tokens than tokens, and a window that is not dropped
    if shape.N >= (4 if "special" in windows or "drop" in windows else 1)
]


@pytest.mark.parametrize("shape, mask, windows, norm, beta", GRID)
def test_value_is_the_definition(shape, mask, windows, norm, beta):
    tensors, options = problem(shape, "global", mask, windows, norm, beta)
    expected = sh_reference.attention_sh(*tensors, **options)
    assert_close(op(*tensors, **options), expected, 1e-10)
    for literal in (False, True):
        assert_close(ref(*tensors, **options, literal=literal), expected, 1e-10)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("mask", MASKS)
def test_the_loop_over_windows_of_one_token_is_the_loop_over_tokens(mask, mode):
    """The two references of these tests agree where their subjects do."""
    tensors, options = problem(mode=mode, mask=mask, windows="1")
    expected = reference.attention_bn(
        *tensors, **{n: o for n, o in options.items() if n not in ("bn", "scales")}
    )
    assert_close(sh_reference.attention_sh(*tensors, **options), expected, 1e-12)


@pytest.mark.parametrize("scale", [0.0, -0.3, 2.0])
def test_scale_and_eps(scale):
    tensors, options = problem(mask="padding", scale=scale, eps=0.3)
    expected = sh_reference.attention_sh(*tensors, **options)
    assert_close(op(*tensors, **options), expected, 1e-10)


@pytest.mark.parametrize(
    "scales", [[2, 1, 2, 1], [3, 1, 2, 3], [1, 1, 2, 2], [1, 2, 3, 50]], ids=str
)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("mask", ["padding", "bool[B,H,M,N]"])
@pytest.mark.parametrize("heads", [4, 8])
def test_heads_keep_their_order(heads, mask, mode, scales):
    """Scales need not be sorted or grouped: every head is the op on that head alone."""
    (q, k, v), options = problem(MODES[mode]._replace(H=heads, Hk=4), mode, mask, scales=scales)
    together = op(q, k, v, **options)
    beta, allowed = options["beta"], options.pop("attn_mask", None)
    for h in range(heads):
        g = h * 4 // heads
        alone = options | {"scales": scales[g : g + 1], "beta": beta[h : h + 1]}
        if allowed is not None:
            alone["attn_mask"] = allowed[:, h : h + 1]
        out = op(q[:, h : h + 1], k[:, g : g + 1], v[:, g : g + 1], **alone)
        assert_close(together[:, h : h + 1], out, 1e-12)


def test_defaults_are_those_of_the_schema():
    (q, k, v), _ = problem(DEFAULT._replace(H=2))
    spelled_out = op(
        q,
        k,
        v,
        [2, 3],
        bn=False,
        count_weighting=False,
        tail="ceil",
        num_special=0,
        is_causal=False,
        query_offset=3,
        dropout_p=0.0,
        scale=3**-0.5,
        enable_gqa=False,
    )
    assert_close(op(q, k, v, [2, 3]), spelled_out, 1e-14)
    normalised = op(q, k, v, [2, 3], torch.ones(()), bn=True, use_std=True, eps=1e-5)
    assert_close(op(q, k, v, [2, 3], bn=True), normalised, 1e-14)
    assert error(normalised, spelled_out) > 1e-2


# Statements of the paper


@pytest.mark.parametrize("mask", MASKS)
def test_windows_of_one_token_are_ordinary_attention(mask):
    (q, k, v), options = problem(DEFAULT._replace(H=2), mask=mask, windows="1")
    rest = {n: o for n, o in options.items() if n not in ("bn", "scales")}
    assert_close(op(q, k, v, **options), attention_bn(q, k, v, **rest), 1e-12)
    if mask == "none":
        assert_close(op(q, k, v, [1, 1]), sdpa(q, k, v), 1e-12)


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("scales", [[1], [1, 1]])
def test_windows_of_one_token_take_float_masks(scales, norm, kind):
    (q, k, v), options = problem(mask="padding", norm=norm, scales=scales)
    options["attn_mask"] = torch.randn(5, 11).to(kind)
    options["attn_mask"][1, 2:5] = -torch.inf
    expected = sh_reference.attention_sh(q, k, v, **options)
    assert_close(op(q, k, v, **options), expected, 1e-10)
    assert_close(ref(q, k, v, **options), expected, 1e-10)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("scale", [11, 12, 1000])
def test_one_window_is_the_mean_of_the_values(scale, norm):
    (q, k, v), options = problem(norm=norm, scales=[scale])
    mean = v.mean(2, keepdim=True).repeat_interleave(2, 1).expand(-1, -1, 5, -1)
    assert_close(op(q, k, v, **options), mean, 1e-12)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("scale", [2, 3])
def test_repeated_tokens_are_pooled_back(scale, norm):
    (q, k, v), options = problem(norm=norm)
    plain = op(q, k, v, **(options | {"scales": [1]}))
    repeated = [t.repeat_interleave(scale, 2) for t in (k, v)]
    for count_weighting in (False, True):
        how = {"scales": [scale], "count_weighting": count_weighting}
        assert_close(op(q, *repeated, **(options | how)), plain, 1e-12)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("is_padded", [False, True])
@pytest.mark.parametrize("special", [0, 2])
def test_counted_constant_windows_are_attention_over_tokens(special, is_padded, norm):
    """Windows of 3 and a tail, tokens equal inside each: with the counts, nothing is lost."""
    mask = "padding" if is_padded else "none"
    shape = DEFAULT._replace(N=special + 11)
    (q, k, v), options = problem(shape, mask=mask, norm=norm)
    first = torch.tensor([*range(special), *(special + j // 3 * 3 for j in range(11))])
    k, v = torch.nan_to_num(k)[:, :, first], torch.nan_to_num(v)[:, :, first]
    pooled = options | {"scales": [3], "num_special": special, "count_weighting": True}
    expected = op(q, k, v, **(options | {"scales": [1]}))
    assert_close(op(q, k, v, **pooled), expected, 1e-12)
    if is_padded:  # ... and without the counts, something is
        assert error(op(q, k, v, **(pooled | {"count_weighting": False})), expected) > 1e-3


@pytest.mark.parametrize("mask", ["none", "padding"])
@pytest.mark.parametrize("count_weighting", [False, True])
@pytest.mark.parametrize("how", [{}, {"tail": "drop"}, {"num_special": 2}], ids=str)
def test_normalised_it_is_attention_bn_on_the_pooled_keys(how, count_weighting, mask):
    (q, k, v), options = problem(mask=mask, scales=[3], count_weighting=count_weighting, **how)
    padding = options.get("key_padding_mask")
    (pooled_k, count), (pooled_v, _) = (token_pool(t, 3, padding, **how) for t in (k, v))
    expected = attention_bn(
        q,
        pooled_k,
        pooled_v,
        options["beta"],
        count == 0,
        key_weight=count if count_weighting else None,
        enable_gqa=True,
    )
    assert_close(op(q, k, v, **options), expected, 1e-12)


def test_probabilities_spread_over_their_windows():
    """o = W v with W_ij = P_i,w(j) / n_w(j): rows of W sum to 1 over the valid tokens."""
    (q, k, v), options = problem(mask="padding", windows="3,2-special")
    v = torch.nan_to_num(v)
    identity = torch.eye(11, dtype=v.dtype).expand(2, 2, -1, -1)
    weights = op(q, k, identity, **options)
    assert_close(weights.sum(-1), torch.ones(2, 4, 5, dtype=v.dtype), 1e-12)
    padding = options["key_padding_mask"][:, None, None, :].expand_as(weights)
    assert not weights[padding].any()
    assert_close(weights @ v.repeat_interleave(2, 1), op(q, k, v, **options), 1e-12)


def test_a_window_is_visible_where_all_its_valid_tokens_are():
    """Windows {0,1} {2,3} {4,5}: 0 is forbidden, 3 is forbidden but padded."""
    (q, k, v), _ = problem(Shape(B=1, H=1, Hk=1, M=1, N=6))
    allowed = torch.tensor([[False, True, True, False, True, True]])
    padding = torch.tensor([[False, False, False, True, False, False]])
    out = op(q, k, v, [2], None, padding, allowed)
    pooled = [torch.stack([t[0, 0, 2], t[0, 0, 4:].mean(0)])[None, None] for t in (k, v)]
    assert_close(out, sdpa(q, *pooled), 1e-12)
    assert not op(q, k, v, [3], None, padding, allowed & (torch.arange(6) < 5)).any()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("beta", [-0.5, 1.0])
def test_beta_value_and_beta_tensor_agree(beta, norm):
    (q, k, v), options = problem(norm=norm, beta=("fixed", beta))
    number = op(q, k, v, **options)
    for size in ((), (1,), (4,)):
        rest = {n: o for n, o in options.items() if n != "beta_value"}
        assert_identical(op(q, k, v, beta=torch.tensor(beta).expand(size), **rest), number)


@pytest.mark.parametrize("mode", MODES)
def test_without_normalisation_its_options_do_nothing(mode):
    (q, k, v), options = problem(mode=mode, norm="plain", beta=("fixed", 1.0))
    out = op(q, k, v, **options)
    assert_identical(op(q, k, v, **(options | {"beta_value": 0.3, "eps": 1.0})), out)
    assert_identical(op(q, k, v, **(options | {"use_std": False})), out)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("norm", NORMS)
def test_grouped_heads_are_repeated_heads(norm, mode):
    (q, k, v), options = problem(mode=mode, mask="padding", norm=norm, scales=[3, 2])
    repeated = [t.repeat_interleave(2, 1) for t in (k, v)]
    ungrouped = options | {"enable_gqa": False, "scales": [3, 3, 2, 2]}
    assert_close(op(q, k, v, **options), op(q, *repeated, **ungrouped), 1e-12)
