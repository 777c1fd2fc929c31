"""linear_attention against its kernel form in float64, and the statements made about it."""

from itertools import cycle, product

import pytest
import torch
from attention_bn_cases import (
    BETA_KINDS,
    DTYPES,
    HALVES,
    Shape,
    assert_close,
    assert_identical,
    cast,
    error,
    evaluate,
)
from linear_attention_cases import FORMS, MASK_NAMES, definition, op, phi, problem

SHAPES = [
    Shape(1, 1, 1, 1, 1, 1, 1),
    Shape(1, 2, 2, 3, 2, 3, 5),
    Shape(2, 3, 3, 7, 7, 8, 8),
    Shape(2, 4, 2, 4, 7, 33, 3),
    Shape(3, 3, 1, 5, 2, 1, 4),
    Shape(1, 2, 1, 9, 64, 8, 33),
]

# Every case of the grid takes the next strength and kind of beta.
_betas = cycle(product(BETA_KINDS, (0.0, 0.3, 1.0, -0.5)))
GRID = [
    pytest.param(*case, next(_betas), id=f"{'x'.join(map(str, shape))}-{form}-{mask}-{use_std}")
    for case in product(SHAPES, FORMS, MASK_NAMES, (True, False))
    for shape, form, mask, use_std in [case]
]


@pytest.mark.parametrize("shape, form, mask, use_std, beta", GRID)
def test_value_is_the_definition(shape, form, mask, use_std, beta):
    tensors, options = problem(shape, form, mask, beta, use_std=use_std)
    assert_close(op(*tensors, **options), definition(*tensors, **options), 1e-10)


@pytest.mark.parametrize("mask", MASK_NAMES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", SHAPES)
def test_value_without_normalisation(shape, form, mask):
    tensors, options = problem(shape, form, mask, bn=False)
    assert_close(op(*tensors, **options), definition(*tensors, **options), 1e-10)
    ignored = options | {"beta": None, "beta_value": 0.3, "use_std": False, "eps": 0.5}
    assert_identical(op(*tensors, **ignored), op(*tensors, **options))


@pytest.mark.parametrize("length", [32, 33, 64, 65, 128, 150])
@pytest.mark.parametrize("form", FORMS)
def test_long_sequences_cross_every_chunk(form, length):
    tensors, options = problem(Shape(1, 2, 1, 3, length, 4, 3), form, "both")
    assert_close(op(*tensors, **options), definition(*tensors, **options), 1e-10)


def test_unmasked_attention_is_one_batched_formula():
    (q, k, v), _ = problem()
    mean = k.mean(2, keepdim=True)
    r = (((k - mean) ** 2).mean(2, keepdim=True) + 1e-5).rsqrt()
    kernel = phi((q - 0.3 * mean) * r) @ phi((k - 0.3 * mean) * r).mT
    expected = kernel / kernel.sum(-1, keepdim=True) @ v
    assert_close(definition(q, k, v, beta_value=0.3), expected, 1e-12)
    assert_close(op(q, k, v, beta_value=0.3), expected, 1e-12)


def test_defaults_are_those_of_the_schema():
    (q, k, v), _ = problem()
    spelled_out = {"bn": True, "use_std": True, "eps": 1e-5, "is_causal": False}
    spelled_out |= {"beta": torch.ones(()), "feature_map": "elu1", "enable_gqa": False}
    assert_identical(op(q, k, v), op(q, k, v, **spelled_out))


def test_centring_the_keys_alone_is_another_function():
    """What softmax attention does not feel, phi does: folding does not apply."""
    (q, k, v), _ = problem()
    centred = k - k.mean(2, keepdim=True)
    assert error(op(q, centred, v, bn=False), op(q, k, v, bn=False)) > 1e-2
    q_centred = q - k.mean(2, keepdim=True)
    assert_close(op(q, k, v, use_std=False), op(q_centred, centred, v, bn=False), 1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_with_beta_one_a_common_shift_changes_nothing(form):
    (q, k, v), options = problem(form=form, beta=("[]", 1.0))
    shift = torch.tensor([5.0, -3.0, 0.0, 1.0], dtype=torch.float64)
    shifted = op(q + shift, k + shift, v, **options)
    assert_close(shifted, op(q, k, v, **options), 1e-12)


def test_permutations():
    (q, k, v), options = problem()
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
    for shape in ((), (1,), (2,)):
        tensor = torch.tensor(beta).expand(shape)
        assert_identical(op(q, k, v, beta=tensor), op(q, k, v, beta_value=beta))


@pytest.mark.parametrize("form", FORMS)
def test_grouped_heads_are_repeated_heads(form):
    (q, k, v), options = problem(Shape(H=6, Hk=2), form, "both")
    repeated = [t.repeat_interleave(3, 1) for t in (k, v)]
    beta = options["beta"].repeat_interleave(3)
    ungrouped = options | {"enable_gqa": False, "beta": beta}
    assert_close(op(q, k, v, **options), op(q, *repeated, **ungrouped), 1e-12)


# Causality


def test_without_normalisation_row_i_is_attention_over_the_first_keys():
    (q, k, v), options = problem(Shape(N=70), "causal", "weight", bn=False)
    weight = options["key_weight"]
    rows = [
        op(q[:, :, i : i + 1], k[:, :, :n], v[:, :, :n], bn=False, key_weight=weight[:, :n])
        for i, n in enumerate(range(1, 71))
    ]
    assert_close(op(q, k, v, **options), torch.cat(rows, 2), 1e-12)


@pytest.mark.parametrize("i", [1, 32, 33, 69])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mask", ["none", "both"])
@pytest.mark.parametrize("bn", [True, False])
def test_the_future_does_not_touch_the_past(bn, mask, dtype, i):
    shape = Shape(H=4, N=70, D=8, Dv=8)
    (q, k, v), options = cast(dtype, *problem(shape, "causal", mask, bn=bn))
    before = op(q, k, v, **options)
    changed = [t.clone() for t in (q, k, v)]
    for t in changed:
        t[:, :, i:] = 7 - 5 * t[:, :, i:].flip(2)
    if mask == "both":
        options["key_weight"] = options["key_weight"].clone()
        options["key_weight"][:, i:] += 3
    after = op(*changed, **options)
    assert_identical(after[:, :, :i], before[:, :, :i])
    assert not torch.equal(after, before)


@pytest.mark.parametrize("i", [2, 33, 69])
def test_the_past_has_no_gradient_in_the_future(i):
    tensors, options = problem(Shape(N=70), "causal", "padding")
    q, k, v = (t.requires_grad_() for t in tensors)
    grads = torch.autograd.grad(op(q, k, v, **options)[:, :, :i].square().sum(), (q, k, v))
    for grad in grads:
        assert not grad[:, :, i:].any()
        assert grad[:, :, :i].any()


def test_leading_padding_leaves_rows_without_a_key():
    (q, k, v), options = problem(Shape(N=6), "causal")
    padding = torch.tensor([[True, True, False, False, False, False]] * 2)
    out = op(q, k, v, **options, key_padding_mask=padding)
    assert not out[:, :, :2].any()
    cut = op(q[:, :, 2:], k[:, :, 2:], v[:, :, 2:], **options)
    assert_close(out[:, :, 2:], cut, 1e-12)


# Rounding


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("use_std", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_half_types_err_at_most_twice_as_much_as_the_definition(form, use_std, dtype):
    halves, options = cast(dtype, *problem(Shape(N=12), form, "padding", use_std=use_std, eps=0.1))
    exact = evaluate(definition, *cast(torch.float64, halves, options))
    literal = evaluate(definition, halves, options)
    actual = evaluate(op, halves, options)
    for name, expected in exact.items():
        allowed = 2 * (literal[name].double() - expected).abs().max() + 1e-3
        assert (actual[name].double() - expected).abs().max() <= allowed, name


@pytest.mark.parametrize("offset", [0.0, 10.0, 1000.0])
@pytest.mark.parametrize("form", FORMS)
def test_float32_keeps_its_digits_when_the_keys_share_an_offset(form, offset):
    """Queries share it too: what is left of q - mu are a few units, known as well as those of q."""
    tensors, options = problem(Shape(1, 1, 1, 64, 64, 32, 32), form, beta=("fixed", 1.0))
    q, k, v = (t.float() for t in tensors)
    q, k = q + offset, k + offset
    expected = definition(q.double(), k.double(), v.double(), **options)
    assert_close(op(q, k, v, **options), expected, 1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("eps", [0.0, 1e-5])
@pytest.mark.parametrize("form", FORMS)
def test_a_constant_channel(form, eps, dtype):
    (q, k, v), options = cast(dtype, *problem(Shape(N=12), form, beta=("fixed", 1.0), eps=eps))
    k[..., 1] = 7.0
    result = evaluate(op, (q, k, v), options)
    exact_k = k.double()
    if eps == 0:  # no variance: the channel is ignored; only at 0 does the definition see none
        exact_k[..., 1] = 0
    expected = definition(q.double(), exact_k, v.double(), **options)
    assert_close(result.pop("out"), expected, {2: 8e-3, 4: 1e-5, 8: 1e-10}[dtype.itemsize])
    assert all(tensor.isfinite().all() for tensor in result.values())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", FORMS)
def test_similarities_too_small_for_the_dtype_give_zero_not_nan(form, dtype):
    (q, k, v), options = cast(dtype, *problem(form=form, bn=False, beta=("fixed", 1.0)))
    q[:, :, 2] = -2000.0
    result = evaluate(op, (q, k, v), options)
    assert not result["out"][:, :, 2].any() and not result["query"][:, :, 2].any()
    assert all(tensor.isfinite().all() for tensor in result.values())
