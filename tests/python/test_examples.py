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

OPTIONS = {"channels": 3, "classes": 4, "max_length": 7}
ENCODER = {"width": 16, "heads": 2, "ffn": 32, "layers": 2, "attention": "bn"}
ENCODER |= {"beta_mode": "per_head"}


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


def test_cpp_example(programs):
    check_example(command(programs / "attention_bn"))


def run_loader(program, file, inputs, tmp_path):
    torch.save(inputs, tmp_path / "inputs.pt")
    printed = command(program, file, tmp_path / "inputs.pt", tmp_path / "output.pt")
    output = torch.load(tmp_path / "output.pt", weights_only=True)
    assert printed == f"output {list(output.shape)}\n"
    return output


def test_torchscript_of_python_runs_in_cpp(programs, model, tmp_path):
    torch.jit.script(model).save(str(tmp_path / "model.ts"))
    inputs = list(series(5))
    output = run_loader(programs / "load_torchscript", tmp_path / "model.ts", inputs, tmp_path)
    torch.testing.assert_close(output, model(*inputs), rtol=0, atol=1e-6)


def test_package_of_python_runs_in_cpp(programs, model, package, tmp_path):
    inputs = list(series(5))
    output = run_loader(programs / "load_aoti", package, inputs, tmp_path)
    torch.testing.assert_close(output, model(*inputs), rtol=0, atol=1e-6)


def test_cpp_loaders_name_what_is_missing(programs, tmp_path):
    program = str(programs / "load_aoti")
    for arguments, message in (([], "usage: load_aoti MODEL.pt2"), (["a", "b", "c"], "a")):
        result = subprocess.run([program, *arguments], capture_output=True, text=True)
        assert result.returncode == 1 and message in result.stderr
