"""The classifiers of kktorch.nn: loops over samples, the C++ modules, script, compile, export."""

import copy
import os
import subprocess

import pytest
import torch
from kktorch.nn import SmallViT, TimeSeriesClassifier, TokenClassifier
from nn_cases import padding_mask, randomised, script_round_trip
from torch.nn import functional as F

VARIANTS = ["softmax", "bn", "bnsh"]
SMALL = {"width": 8, "heads": 2, "ffn": 10, "layers": 2, "beta_mode": "per_head"}


# The models of WritesModelsForPython in tests/cpp/test_torchscript.cpp.
def series_model(variant: str, **options) -> TimeSeriesClassifier:
    return TimeSeriesClassifier(2, 3, 6, attention=variant, **{**SMALL, **options})


def token_model(variant: str, **options) -> TokenClassifier:
    options = {"head_width": 5, "norm": "batch", **SMALL, **options}
    return TokenClassifier(7, 3, 6, attention=variant, **options)


def image_model(variant: str, **options) -> SmallViT:
    options = {"image_channels": 3, "patch": 2, **SMALL, **options}
    return SmallViT(6, 4, 5, attention=variant, **options)


MODELS = [series_model, token_model, image_model]
EVERY_MODEL = pytest.mark.parametrize("make", MODELS, ids=["series", "tokens", "images"])
EVERY_VARIANT = pytest.mark.parametrize("variant", VARIANTS)


def inputs_of(make, lengths=(5, 1, 3)) -> tuple[torch.Tensor, ...]:
    """A batch for a model: its data and, for sequences, the mask."""
    batch, longest = len(lengths), max(lengths)
    if make is image_model:
        return (torch.randn(batch, 3, 6, 4),)
    padding = padding_mask(list(lengths), longest)
    if make is token_model:
        return torch.randint(7, (batch, longest)), padding
    return torch.randn(batch, longest, 2), padding


# ---- one model after the other ----------------------------------------------------------------


@EVERY_VARIANT
def test_series_are_raw_and_ragged(variant):
    model = randomised(series_model(variant)).double()
    mean, std = torch.tensor([3.0, -1.0]).double(), torch.tensor([2.0, 0.0]).double()
    x, lengths = torch.randn(3, 6, 2, dtype=torch.float64), [6, 1, 4]
    padding = padding_mask(lengths, 6)
    expected = torch.cat([model(x[b : b + 1, :n]) for b, n in enumerate(lengths)])
    model.standardise_with(mean, std)  # the second channel is constant: centred only
    raw = x * torch.tensor([2.0, 1.0]) + mean
    raw = raw.masked_fill(padding.unsqueeze(-1), torch.nan)
    torch.testing.assert_close(model(raw, padding), expected)


@EVERY_VARIANT
def test_series_without_ragged_masks_have_max_length_steps(variant):
    model = randomised(series_model(variant, ragged_masks=False))
    x = torch.randn(3, 4, 2)
    padded = torch.cat([x, torch.full((3, 2, 2), torch.nan)], dim=1)
    torch.testing.assert_close(model(padded, padding_mask([4, 4, 4], 6)), model(x))
    masked = series_model(variant).eval()
    masked.load_state_dict(model.state_dict())
    assert not torch.allclose(masked(x), model(x))


@EVERY_VARIANT
def test_tokens_are_ragged_and_averaged(variant):
    model = randomised(token_model(variant)).double()
    ids, lengths = torch.randint(7, (3, 6)), [6, 1, 4]
    padding = padding_mask(lengths, 6)
    expected = []
    for b, length in enumerate(lengths):
        h = model.encoder(model.embedding(ids[b : b + 1, :length]))
        mean = h.sum(1) / length
        hidden = (mean @ model.hidden.weight.T + model.hidden.bias).clamp_min(0)
        expected.append(hidden @ model.head.weight.T + model.head.bias)
    padded = ids.masked_fill(padding, -99)  # padding is not looked up
    torch.testing.assert_close(model(padded, padding), torch.cat(expected))


@EVERY_VARIANT
def test_images_are_raw_and_convolved_with_a_stride(variant):
    model = randomised(image_model(variant)).double()
    images = torch.randn(2, 3, 6, 4, dtype=torch.float64)
    kernel = model.embedding.weight.view(8, 3, 2, 2)
    patches = F.conv2d(images, kernel, model.embedding.bias, stride=2).flatten(2).transpose(1, 2)
    tokens = torch.cat([model.class_token.repeat(2, 1, 1), patches], 1)
    h = model.encoder(tokens)[:, 0]
    expected = model.head(F.layer_norm(h, [8], model.norm.weight, model.norm.bias))
    torch.testing.assert_close(model(images), expected)
    mean, std = torch.tensor([3.0, -1.0, 0.0]).double(), torch.tensor([2.0, 0.5, 0.0]).double()
    model.standardise_with(mean, std)  # the third channel is constant: centred only
    gain = torch.tensor([2.0, 0.5, 1.0]).view(3, 1, 1)
    torch.testing.assert_close(model(images * gain + mean.view(3, 1, 1)), expected)


def test_attention_of_images_knows_the_class_token_and_the_grid():
    options = {"scales": [1, 3], "tail": "drop", "count_weighting": True, "conv": "2d"}
    model = image_model("bnsh", **options)
    for layer in model.encoder.layers:
        attention = layer.self_attn
        assert (attention.num_special, attention.scales, attention.tail) == (1, [1, 3], "drop")
        assert attention.count_weighting and attention.conv_q.columns == 2
    inputs = inputs_of(image_model)
    model.eval()
    torch.testing.assert_close(script_round_trip(model)(*inputs), model(*inputs))


# ---- all models -------------------------------------------------------------------------------


@EVERY_MODEL
def test_unknown_keywords_are_named(make):
    with pytest.raises(TypeError, match="EncoderOptions.*unexpected keyword argument 'widht'"):
        make("bn", widht=8)


@pytest.mark.parametrize("norm", ["layer", "batch", "batch_masked"])
@EVERY_VARIANT
@EVERY_MODEL
def test_every_parameter_is_trained(make, variant, norm):
    model = make(variant, norm=norm, norm_first=make is image_model)
    x, *padding = inputs_of(make, [6, 2, 4])
    if make is series_model:
        x = x.masked_fill(padding[0].unsqueeze(-1), torch.nan)
    model(x, *padding).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.any(), name


@EVERY_MODEL
def test_empty_batch(make):
    model = make("bn").eval()
    inputs = [part[:0] for part in inputs_of(make)]
    assert model(*inputs).shape == (0, model.head.out_features)


# ---- the C++ modules --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cpp_models(build_dir, tmp_path_factory):
    """Folder of the models that tests/cpp/test_torchscript.cpp writes."""
    program = build_dir / "bin" / "kktorch_tests"
    if not program.is_file():
        pytest.skip(f"the C++ tests are not built: {program}")
    folder = tmp_path_factory.mktemp("models")
    subprocess.run(
        [program, "--gtest_filter=TorchScript.WritesModelsForPython"],
        env={**os.environ, "KKTORCH_TEST_ARTIFACTS": str(folder)},
        check=True,
        capture_output=True,
    )
    return folder


@EVERY_VARIANT
@EVERY_MODEL
def test_cpp_model_loads_in_python_and_agrees(make, variant, cpp_models):
    model = make(variant).eval()
    saved = torch.jit.load(cpp_models / f"{type(model).__name__}-{variant}.ts")
    inputs, logits = saved.example_inputs, saved.example_logits
    torch.testing.assert_close(saved(*inputs), logits, rtol=0, atol=1e-6)

    state = {k: v for k, v in saved.state_dict().items() if not k.startswith("example_")}
    model.load_state_dict(state, strict=True)
    torch.testing.assert_close(model(*inputs), logits, rtol=0, atol=1e-6)


@EVERY_VARIANT
@EVERY_MODEL
def test_a_seed_gives_the_values_of_the_cpp_model(make, variant, cpp_models):
    torch.manual_seed(0)
    model = make(variant)
    expected = torch.jit.load(cpp_models / f"{type(model).__name__}-{variant}.ts").state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


# ---- script, compile, export ------------------------------------------------------------------


@EVERY_VARIANT
@EVERY_MODEL
def test_script(make, variant):
    model = randomised(make(variant))
    scripted = script_round_trip(model)
    inputs = inputs_of(make)
    torch.testing.assert_close(scripted(*inputs), model(*inputs))
    torch.testing.assert_close(scripted(inputs[0]), model(inputs[0]))


@pytest.mark.parametrize("norm", ["layer", "batch", "batch_masked"])
def test_script_trains(norm):
    model = series_model("bn", norm=norm, dropout=0.0).train()
    scripted = torch.jit.script(copy.deepcopy(model))
    inputs = inputs_of(series_model)
    for module in (model, scripted):
        module(*inputs).square().sum().backward()
    torch.testing.assert_close(scripted.state_dict(), model.state_dict())
    expected = dict(model.named_parameters())
    for name, parameter in scripted.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name].grad, msg=name)


@EVERY_VARIANT
@EVERY_MODEL
def test_compile(make, variant):
    """One graph, in training, outputs and gradients."""
    model = randomised(make(variant, dropout=0.0)).train()
    expected = copy.deepcopy(model)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    inputs = inputs_of(make)
    actual, reference = compiled(*inputs), expected(*inputs)
    torch.testing.assert_close(actual, reference)
    actual.square().sum().backward()
    reference.square().sum().backward()
    for (name, p), q in zip(model.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, msg=name)


def test_compile_with_inductor():
    model, inputs = randomised(series_model("bn")), inputs_of(series_model)
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    torch.testing.assert_close(compiled(*inputs), model(*inputs))


@pytest.mark.parametrize("options", [{}, {"ragged_masks": False}], ids=["ragged", "unmasked"])
@EVERY_VARIANT
def test_exported_series_have_free_batch_and_length(variant, options):
    check_free_sizes(randomised(series_model(variant, **options)), series_model)


@EVERY_VARIANT
def test_exported_tokens_have_free_batch_and_length(variant):
    check_free_sizes(randomised(token_model(variant)), token_model)


def check_free_sizes(model, make):
    # torch.export treats a size of 1 as a constant, so heads with windows of 2 need a second one.
    pools = model.encoder.layers[0].self_attn.pools
    shortest = 3 if pools else 2
    sizes = {0: torch.export.Dim("B", max=64), 1: torch.export.Dim("L", min=shortest, max=6)}
    example = inputs_of(make, [4, 1, 3])
    exported = torch.export.export(model, example, dynamic_shapes=(sizes, sizes)).module()
    for lengths in ([4, 1, 3], [6, 2], [shortest, 2, 1, 2, 2]):
        inputs = inputs_of(make, lengths)
        torch.testing.assert_close(exported(*inputs), model(*inputs))


@EVERY_VARIANT
def test_exported_images_have_a_free_batch(variant):
    model, example = randomised(image_model(variant)), inputs_of(image_model)
    sizes = ({0: torch.export.Dim("B", max=64)},)
    exported = torch.export.export(model, example, dynamic_shapes=sizes).module()
    for batch in (1, 2, 5):
        images = torch.randn(batch, 3, 6, 4)
        torch.testing.assert_close(exported(images), model(images))


# ---- errors -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: TimeSeriesClassifier(2, 0, 6), "TimeSeriesClassifier: expected classes >= 1"),
        (lambda: series_model("bn", width=0), "TimeSeriesClassifier: expected width >= 1"),
        (lambda: series_model("bn", layers=0), "Encoder: expected layers >= 1, but got 0"),
        (
            lambda: series_model("bn").standardise_with(torch.zeros(2), torch.tensor([1.0, -1.0])),
            "TimeSeriesClassifier: expected finite mean and std >= 0",
        ),
        (lambda: TokenClassifier(0, 3, 6), "TokenClassifier: expected vocabulary >= 1, but got 0"),
        (lambda: TokenClassifier(7, 0, 6), "TokenClassifier: expected classes >= 1, but got 0"),
        (lambda: TokenClassifier(7, 3, 0), "TokenClassifier: expected max_length >= 1, but got 0"),
        (lambda: token_model("bn", head_width=0), "TokenClassifier: expected head_width >= 1"),
        (lambda: token_model("bn", width=0), "TokenClassifier: expected width >= 1, but got 0"),
        (lambda: SmallViT(0, 4, 5), "SmallViT: expected image_height >= 1, but got 0"),
        (lambda: SmallViT(6, 0, 5), "SmallViT: expected image_width >= 1, but got 0"),
        (lambda: SmallViT(6, 4, 0), "SmallViT: expected classes >= 1, but got 0"),
        (lambda: image_model("bn", image_channels=0), "SmallViT: expected image_channels >= 1"),
        (lambda: image_model("bn", patch=0), "SmallViT: expected patch >= 1, but got 0"),
        (lambda: image_model("bn", width=0), "SmallViT: expected width >= 1, but got 0"),
        (
            lambda: series_model("bn", conv="2d"),
            "AttentionBNSH: expected conv_columns >= 1 with conv '2d', but got 0",
        ),
        (
            lambda: image_model("bn", patch=4),
            "SmallViT: expected image_height and image_width divisible by patch, "
            "but got 6, 4 and 4",
        ),
    ],
)
def test_options_are_refused(make, message):
    with pytest.raises(ValueError) as error:
        make()
    assert message in str(error.value)


IDS = torch.zeros(2, 3, dtype=torch.int64)


@pytest.mark.parametrize(
    "make, inputs, message",
    [
        (
            series_model,
            (torch.zeros(1, 7, 2),),
            "TimeSeriesClassifier: expected x floating [B, L <= 6, 2], "
            "but got torch.float32 [1, 7, 2]",
        ),
        (
            series_model,
            (torch.zeros(1, 6, 2), torch.zeros(1, 5, dtype=torch.bool)),
            "TimeSeriesClassifier: expected padding_mask bool [1, 6], but got torch.bool [1, 5]",
        ),
        (
            token_model,
            (torch.zeros(1, 7, dtype=torch.int64),),
            "TokenClassifier: expected ids int64 [B, 1 <= L <= 6], but got torch.int64 [1, 7]",
        ),
        (
            token_model,
            (IDS.float(),),
            "TokenClassifier: expected ids int64 [B, 1 <= L <= 6], but got torch.float32 [2, 3]",
        ),
        (
            token_model,
            (IDS, IDS),
            "TokenClassifier: expected padding_mask bool [2, 3], but got torch.int64 [2, 3]",
        ),
        (token_model, (IDS + 7,), "TokenClassifier: expected ids in [0, 7), but got 7 to 7"),
        (token_model, (IDS - 1,), "TokenClassifier: expected ids in [0, 7), but got -1 to -1"),
        (
            token_model,
            (IDS, padding_mask([2, 0], 3)),
            "TokenClassifier: expected a valid token in every sequence, but got none in sequence 1",
        ),
        (
            image_model,
            (torch.zeros(1, 3, 4, 6),),
            "SmallViT: expected images floating [B, 3, 6, 4], but got torch.float32 [1, 3, 4, 6]",
        ),
    ],
)
def test_inputs_are_refused(make, inputs, message):
    with pytest.raises((RuntimeError, IndexError)) as error:
        make("bn")(*inputs)
    assert message in str(error.value)


def test_statistics_of_another_task_are_refused():
    with pytest.raises(RuntimeError) as error:
        series_model("bn").standardise_with(torch.zeros(3), torch.ones(3))
    assert "expected mean and std of shape [2], but got [3] and [3]" in str(error.value)
