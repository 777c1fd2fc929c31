"""attention_bn against its definition in float64, and the statements made about it."""

import warnings
from itertools import cycle, product

import pytest
import reference
import torch
from attention_bn_cases import (
    BETA_KINDS,
    MASKS,
    MODES,
    Shape,
    assert_close,
    assert_identical,
    error,
    evaluate,
    op,
    problem,
    ref,
)

SHAPES = [
    Shape(1, 1, 1, 1, 1, 1, 1),
    Shape(1, 2, 2, 3, 2, 3, 5),
    Shape(2, 3, 3, 7, 7, 8, 8),
    Shape(2, 4, 2, 4, 7, 33, 3),
    Shape(3, 3, 1, 5, 2, 1, 4),
    Shape(1, 2, 1, 9, 64, 8, 33),
]

# Every case of the grid takes the next strength and kind of beta; 16 and the grid are not in step.
_betas = cycle(product(BETA_KINDS, (0.0, 0.3, 1.0, -0.5)))
GRID = [
    pytest.param(*case, next(_betas), id=f"{'x'.join(map(str, shape))}-{mode}-{mask}-{use_std}")
    for case in product(SHAPES, MODES, MASKS, (True, False))
    for shape, mode, mask, use_std in [case]
]


@pytest.mark.parametrize("shape, mode, mask, use_std, beta", GRID)
def test_value_is_the_definition(shape, mode, mask, use_std, beta):
    tensors, options = problem(shape, mode, mask, beta, use_std=use_std)
    expected = reference.attention_bn(*tensors, **options)
    assert_close(op(*tensors, **options), expected, 1e-10)
    for literal in (False, True):
        assert_close(ref(*tensors, **options, literal=literal), expected, 1e-10)


@pytest.mark.parametrize(
    "shape, mode",
    [
        (Shape(1, 1, 1, 2, 1500, 8, 8), "global"),
        (Shape(1, 1, 1, 70, 1100, 4, 4), "prefix"),
        (Shape(1, 2, 1, 130, 130, 5, 5), "prefix"),
        (Shape(1, 1, 1, 200, 65, 8, 8), "causal-global"),
    ],
)
def test_long_sequences_cross_every_block(shape, mode):
    tensors, options = problem(shape, mode, "padding")
    assert_close(op(*tensors, **options), reference.attention_bn(*tensors, **options), 1e-10)


@pytest.mark.parametrize("scale", [0.0, -0.3, 2.0])
@pytest.mark.parametrize("mode", MODES)
def test_scale_and_eps(scale, mode):
    tensors, options = problem(mode=mode, mask="all", scale=scale, eps=0.3)
    assert_close(op(*tensors, **options), reference.attention_bn(*tensors, **options), 1e-10)


def test_unmasked_attention_is_one_batched_formula():
    tensors, _ = problem()
    expected = reference.attention_bn_unmasked(*tensors, 0.3)
    assert_close(reference.attention_bn(*tensors, beta_value=0.3), expected, 1e-12)
    assert_close(op(*tensors, beta_value=0.3), expected, 1e-12)


def test_defaults_are_those_of_the_schema():
    (q, k, v), _ = problem()
    spelled_out = op(
        q,
        k,
        v,
        beta=torch.ones(()),
        use_std=True,
        eps=1e-5,
        stats="global",
        is_causal=False,
        query_offset=3,
        dropout_p=0.0,
        scale=0.5,
        enable_gqa=False,
    )
    assert_close(op(q, k, v), spelled_out, 1e-14)


# Statements of the paper and of the folded form


def test_beta_zero_without_std_is_softmax_attention():
    (q, k, v), _ = problem()
    plain = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    assert_close(op(q, k, v, beta_value=0.0, use_std=False), plain, 1e-12)
    assert error(op(q, k, v, use_std=False), plain) > 1e-2  # ... and beta matters


def test_centring_the_keys_alone_changes_nothing():
    """Control C4: a re-implementation that subtracts the mean from the keys only is softmax."""
    (q, k, v), _ = problem()
    centred = k - k.mean(2, keepdim=True)
    plain = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    assert_close(op(q, centred, v, beta_value=0.0, use_std=False), plain, 1e-12)


@pytest.mark.parametrize("use_std", [True, False])
def test_shifting_keys_and_queries_together_changes_nothing(use_std):
    (q, k, v), options = problem(beta=("[]", 0.3), use_std=use_std)
    shift = torch.tensor([5.0, -3.0, 0.0, 1.0], dtype=torch.float64)
    shifted = op(q + 0.3 * shift, k + shift, v, **options)
    assert_close(shifted, op(q, k, v, **options), 1e-12)


def test_permutations():
    (q, k, v), options = problem(beta=("[H]", 0.5))
    out = op(q, k, v, **options)
    keys, queries = torch.randperm(k.shape[2]), torch.randperm(q.shape[2])
    assert_close(op(q, k[:, :, keys], v[:, :, keys], **options), out, 1e-12)
    assert_close(op(q[:, :, queries], k, v, **options), out[:, :, queries], 1e-12)


@pytest.mark.parametrize("use_std", [True, False])
def test_a_weight_counts_like_copies(use_std):
    (q, k, v), options = problem(use_std=use_std)
    copies = torch.tensor([1, 3, 2, 0, 1, 1, 4])
    weighted = evaluate(op, (q, k, v), options | {"key_weight": copies.double().expand(2, 7)})

    def copied(query, key, value, **rest):
        repeat = [t.repeat_interleave(copies, 2) for t in (key, value)]
        return op(query, *repeat, **rest)

    assert_close(weighted, evaluate(copied, (q, k, v), options), 1e-12)


@pytest.mark.parametrize("beta", [-0.5, 1.0])
def test_beta_value_and_beta_tensor_agree(beta):
    (q, k, v), _ = problem()
    for kind in ("[]", "[1]", "[H]"):
        tensor = torch.tensor(beta).expand({"[]": (), "[1]": (1,), "[H]": (2,)}[kind])
        assert_identical(op(q, k, v, beta=tensor), op(q, k, v, beta_value=beta))


@pytest.mark.parametrize("mode", MODES)
def test_grouped_heads_are_repeated_heads(mode):
    (q, k, v), options = problem(Shape(H=6, Hk=2), mode, "all")
    repeated = [t.repeat_interleave(3, 1) for t in (k, v)]
    ungrouped = options | {"enable_gqa": False}
    assert_close(op(q, k, v, **options), op(q, *repeated, **ungrouped), 1e-12)


@pytest.mark.parametrize("mode", ["global", "support"])
def test_a_float_mask_of_zeros_and_infinities_is_the_boolean_mask(mode):
    tensors, options = problem(mode=mode, mask="bool[B,H,M,N]")
    allowed = options["attn_mask"]
    additive = torch.zeros(allowed.shape, dtype=torch.float32).masked_fill(~allowed, -torch.inf)
    actual = evaluate(op, tensors, options | {"attn_mask": additive})
    assert_close(actual, evaluate(op, tensors, options), 1e-12)


def test_support_of_a_pure_causal_mask_is_prefix():
    tensors, options = problem(Shape(M=7), "prefix")
    support = evaluate(op, tensors, options | {"stats": "support"})
    # the second row has two keys: a variance near 0 and 1 / (variance + eps) in the hundreds
    assert_close(evaluate(op, tensors, options), support, 1e-10)


def test_global_statistics_under_causality_warn_once(capfd):
    """torch 2.11 has no warning handler in the dispatcher's Python door and writes to stderr."""
    tensors, options = problem(mode="causal-global")

    def messages():
        with warnings.catch_warnings(record=True, action="always") as caught:
            op(*tensors, **options)
        return capfd.readouterr().err + "".join(str(warning.message) for warning in caught)

    messages()
    assert not messages()
    torch.set_warn_always(True)
    try:
        assert "attention_bn: is_causal with stats='global'" in messages()
    finally:
        torch.set_warn_always(False)
