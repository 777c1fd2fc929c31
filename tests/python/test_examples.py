"""From a run folder to programs without Python: loading a run, exporting it, and examples/ against
an installed kktorch."""

import json
import os
import re
import shutil
import subprocess
import sys

import kktorch
import pytest
import torch
from kktorch import export
from kktorch.run import load_run
from torch import Tensor, nn

OPTIONS = {"channels": 3, "classes": 4, "max_length": 7}
ENCODER = {"width": 16, "heads": 2, "ffn": 32, "layers": 2, "attention": "bn"}
ENCODER |= {"beta_mode": "per_head"}
VARIANTS = ["softmax", "bn", "sh", "bnsh", "linear", "linear_bn", "linear_sh", "linear_bnsh"]


@pytest.fixture(scope="module")
def model():
    """A classifier whose buffers and running averages are those of a used one."""
    torch.manual_seed(0)
    model = kktorch.nn.TimeSeriesClassifier(**OPTIONS, **ENCODER)
    model.standardise_with(torch.tensor([1.0, -2, 0]), torch.tensor([1.0, 2, 0.5]))
    x, padding = series(16)
    model(x, padding)
    return model.eval()


@pytest.fixture(scope="module")
def run(model, tmp_path_factory):
    """The folder of a finished run, as far as Python reads it."""
    folder = tmp_path_factory.mktemp("runs") / "bn-seed1"
    folder.mkdir()
    config = {"model": {"type": "TimeSeriesClassifier", "encoder": ENCODER} | OPTIONS}
    (folder / "config.json").write_text(json.dumps(config))
    torch.save({"model": model.state_dict(), "epoch": 3}, folder / "checkpoint.pt")
    return folder


def series(batch):
    """x [batch, 7, 3] and its padding mask, lengths 1..7."""
    lengths = 1 + torch.arange(batch) % OPTIONS["max_length"]
    padding = torch.arange(OPTIONS["max_length"]) >= lengths[:, None]
    return torch.randn(batch, OPTIONS["max_length"], OPTIONS["channels"]), padding


def test_a_run_is_loaded_with_its_weights(model, run):
    loaded = load_run(run)
    x, padding = series(5)
    assert not loaded.training
    assert torch.equal(loaded(x, padding), model(x, padding))


def test_bad_run_folders(run, tmp_path):
    with pytest.raises(ValueError, match="expected a run folder holding config.json, but got"):
        load_run(tmp_path)
    shutil.copytree(run, tmp_path / "copy")
    config = {"model": {"type": "Oracle"}}
    (tmp_path / "copy/config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"expected a model type in \[.*\], but got 'Oracle'"):
        load_run(tmp_path / "copy")
    config["model"] = {"type": "TimeSeriesClassifier", "encoder": ENCODER | {"layers": 1}} | OPTIONS
    (tmp_path / "copy/config.json").write_text(json.dumps(config))
    with pytest.raises(RuntimeError, match="layers.1"):
        load_run(tmp_path / "copy")


def test_export_refuses_what_it_cannot_do(run, tmp_path, capsys):
    assert export.main([str(run), "--out", str(tmp_path / "model.zip")]) == 1
    assert "expected a file name ending in .pt2, but got" in capsys.readouterr().err
    assert export.main([str(tmp_path)]) == 1
    assert "expected a run folder" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def package(run, tmp_path_factory):
    """The AOTInductor package of the run."""
    out = tmp_path_factory.mktemp("package") / "model.pt2"
    assert export.main([str(run), "--out", str(out)]) == 0
    assert list(out.parent.iterdir()) == [out]
    return out


@pytest.mark.parametrize("batch", [1, 2, 9])
def test_package_gives_the_model_for_any_batch_size(model, package, batch):
    x, padding = series(batch)
    loaded = torch._inductor.aoti_load_package(str(package))
    torch.testing.assert_close(loaded(x, padding), model(x, padding), rtol=0, atol=1e-6)


@pytest.fixture(scope="module")
def programs(root, build_dir, tmp_path_factory):
    """examples/cpp, built as a project of its own against an installed kktorch."""
    if not (build_dir / "cmake_install.cmake").is_file():
        pytest.skip(f"{build_dir} is no build tree to install from")
    folder = tmp_path_factory.mktemp("example")
    prefix, build = folder / "prefix", folder / "build"
    command("cmake", "--install", build_dir, "--prefix", prefix)
    search = f"-DCMAKE_PREFIX_PATH={prefix}"
    python = f"-DPython3_EXECUTABLE={sys.executable}"
    configure = ["-S", root / "examples/cpp", "-B", build, "-G", "Ninja", search, python]
    command("cmake", *configure, "-DCMAKE_BUILD_TYPE=Release")
    command("cmake", "--build", build)
    return build


def command(*arguments, **options):
    """Runs a program, those of the virtual environment first; returns its output."""
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
    environment = os.environ | {"PATH": path} | options.pop("env", {})
    texts = [str(argument) for argument in arguments]
    result = subprocess.run(texts, env=environment, capture_output=True, text=True, **options)
    assert result.returncode == 0, f"{texts}\n{result.stdout}\n{result.stderr}"
    return result.stdout


def check_example(output):
    """The op equals its specification, and the layer learns."""
    assert float(re.search(r"op - reference: (\S+)", output)[1]) < 1e-5
    losses = [float(text) for text in re.findall(r"loss (\S+)", output)]
    assert len(losses) == 3 and losses[2] < losses[0] / 2, losses


def test_python_example(root):
    script = root / "examples/python/attention_bn.py"
    check_example(command(sys.executable, script, env={"PYTHONPATH": str(root / "python")}))


def test_margin_tracker_example(root, tmp_path):
    """It stops where the cosine is certified, and the certificate holds."""
    script, figure = root / "examples/python/margin_tracker.py", tmp_path / "figure.svg"
    output = command(sys.executable, script, figure, env={"PYTHONPATH": str(root / "python")})
    certified, true = map(float, re.search(r"cosine (\S+), true cosine (\S+),", output).groups())
    assert 0.99 <= certified <= true + 1e-4
    assert figure.read_text().lstrip().startswith("<?xml")


def test_cpp_example(programs):
    check_example(command(programs / "attention_bn"))


def run_loader(program, file, inputs, tmp_path):
    torch.save(inputs, tmp_path / "inputs.pt")
    printed = command(program, file, tmp_path / "inputs.pt", tmp_path / "output.pt")
    output = torch.load(tmp_path / "output.pt", weights_only=True)
    assert printed == f"output {list(output.shape)}\n"
    return output


class EveryLayer(nn.Module):
    """Layers of every variant, causal and not, an encoder layer, an encoder, and the ops that no
    layer calls: one package tells what is missing of all. [B, L, width] of each, stacked."""

    def __init__(self, width: int = 16, heads: int = 2, length: int = 7):
        super().__init__()
        attention = {"embed_dim": width, "num_heads": heads}
        self.layers = nn.ModuleList(
            kktorch.nn.AttentionBNSH(width, heads, variant=variant, batch_first=True)
            for variant in VARIANTS
        )
        self.encoder_layer = kktorch.nn.EncoderLayer(attention, 2 * width, norm_first=True)
        self.encoder = kktorch.nn.Encoder(kktorch.nn.EncoderOptions(**ENCODER), length)
        self.width, self.heads = width, heads

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        outs = [self.encoder_layer(x, padding), self.encoder(x, padding, True)]
        for layer in self.layers:
            outs.append(layer(x, x, x, padding)[0])
            if not (layer.is_linear and layer.pools):
                outs.append(layer(x, x, x, padding, is_causal=True)[0])
        q = x.unflatten(-1, (self.heads, -1))
        outs.append(self.packed(q))
        q = q.transpose(1, 2)
        outs.append(torch.ops.kktorch.attention_bn_ref(q, q, q, is_causal=True))
        outs.append(torch.ops.kktorch.attention_sh_ref(q, q, q, [2, 3]))
        outs.append(self.decoded(q))
        return torch.stack(
            [out.transpose(1, 2).flatten(2) if out.dim() == 4 else out for out in outs]
        )

    def packed(self, q: Tensor) -> Tensor:
        offsets = torch.arange(q.size(0) + 1, dtype=torch.int32) * q.size(1)
        rows = q.flatten(0, 1)
        out = torch.ops.kktorch.attention_bn_varlen(
            rows, rows, rows, offsets, offsets, q.size(1), q.size(1)
        )
        return out.view(q.size(0), q.size(1), -1)

    def decoded(self, q: Tensor) -> Tensor:
        batch, width = q.size(0), q.size(3)
        length = torch.zeros(batch, dtype=torch.long)
        keys, values = torch.zeros_like(q), torch.zeros_like(q)
        mean = q.new_zeros(batch, self.heads, width)
        m2 = torch.zeros_like(mean)
        return torch.ops.kktorch.attention_bn_decode(
            q, q, q, keys.contiguous(), values.contiguous(), length, mean, m2
        )


def every_layer():
    layers = EveryLayer().eval()
    x = torch.randn(3, 7, 16)
    padding = torch.arange(7) >= torch.tensor([[7], [4], [1]])
    return layers, (x, padding)


def tokens():
    model = kktorch.nn.TokenClassifier(5, 3, 7, **ENCODER).eval()
    return model, export.example_inputs(model)


def images():
    model = kktorch.nn.SmallViT(6, 4, 5, patch=2, **ENCODER).eval()
    return model, export.example_inputs(model)


@pytest.fixture(params=[every_layer, tokens, images], ids=lambda f: f.__name__)
def other(request):
    """(module, inputs)"""
    torch.manual_seed(0)
    return request.param()


def check_torchscript(programs, model, inputs, tmp_path):
    torch.jit.script(model).save(str(tmp_path / "model.ts"))
    file = tmp_path / "model.ts"
    output = run_loader(programs / "load_torchscript", file, list(inputs), tmp_path)
    torch.testing.assert_close(output, model(*inputs), rtol=0, atol=1e-6)


def test_torchscript_of_python_runs_in_cpp(programs, model, tmp_path):
    check_torchscript(programs, model, series(5), tmp_path)


def test_torchscript_of_other_modules_runs_in_cpp(programs, other, tmp_path):
    check_torchscript(programs, *other, tmp_path)


def test_package_of_python_runs_in_cpp(programs, model, package, tmp_path):
    inputs = list(series(5))
    output = run_loader(programs / "load_aoti", package, inputs, tmp_path)
    torch.testing.assert_close(output, model(*inputs), rtol=0, atol=1e-6)


def test_packages_of_other_modules_run_in_python_and_cpp(programs, other, tmp_path):
    model, example = other
    package = export.export_package(model, example, tmp_path / "model.pt2")
    loaded = torch._inductor.aoti_load_package(str(package))
    for batch in (1, 5):
        inputs = [torch.cat([part] * 3)[:batch] for part in example]
        expected = model(*inputs)
        torch.testing.assert_close(loaded(*inputs), expected, rtol=0, atol=1e-6)
        output = run_loader(programs / "load_aoti", package, inputs, tmp_path)
        torch.testing.assert_close(output, expected, rtol=0, atol=1e-6)


def test_cpp_loaders_name_what_is_missing(programs, tmp_path):
    program = str(programs / "load_aoti")
    for arguments, message in (([], "usage: load_aoti MODEL.pt2"), (["a", "b", "c"], "a")):
        result = subprocess.run([program, *arguments], capture_output=True, text=True)
        assert result.returncode == 1 and message in result.stderr
