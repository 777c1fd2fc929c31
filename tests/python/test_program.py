"""The program `kktorch` from outside: train, stop, resume, predict, export, and what it refuses."""

import csv
import importlib.util
import json
import math
import os
import random
import re
import resource
import shutil
import signal
import statistics
import subprocess
import time

import kktorch
import pytest
import torch
from kktorch.data import read_ts_file
from kktorch.run import load_run

SMALL = "--width 8 --heads 2 --ffn 16 --layers 1 --batch-size 8 --threads 1".split()
RUNS = ["bn-seed1", "bn-seed2", "softmax-seed1", "softmax-seed2"]


def write_ts(path, cases, seed):
    """Three classes of ragged series with two channels, told apart by their level."""
    rng = random.Random(seed)
    lines = ["@problemName Toy", "@univariate false", "@dimensions 2", "@classLabel true x y z"]
    for case in range(cases):
        label, length = case % 3, rng.randint(3, 7)
        channels = [[rng.gauss(label, 0.4) for _ in range(length)] for _ in range(2)]
        values = [",".join(f"{value:.4f}" for value in channel) for channel in channels]
        lines += ["@data"] * (case == 0) + [":".join([*values, "xyz"[label]])]
    path.write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """A folder of data sets, in a form that --data-dir takes."""
    folder = tmp_path_factory.mktemp("data") / "Toy"
    folder.mkdir()
    write_ts(folder / "Toy_TRAIN.ts", 45, seed=1)
    write_ts(folder / "Toy_TEST.ts", 24, seed=2)
    return folder


@pytest.fixture(scope="session")
def toy(kk, data):
    """`kktorch train` on the toy data set with a small model."""

    def train(out, *args, **options):
        return kk("train", "--data", data, "--out", out, *SMALL, *args, **options)

    return train


@pytest.fixture(scope="session")
def finished(toy, tmp_path_factory):
    """A finished comparison: its folder and what the program printed."""
    folder = tmp_path_factory.mktemp("runs") / "toy"
    return folder, toy(folder, "--seeds", 2, "--epochs", 6, "--attention", "softmax,bn")


def read_json(path):
    return json.loads(path.read_text())


def metrics(run):
    """The rows of a run without its times."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def weights(run):
    return torch.load(run / "checkpoint.pt", weights_only=True)["model"]


def assert_same_run(run, other):
    assert metrics(run) == metrics(other)
    assert weights(run).keys() == weights(other).keys()
    for name, tensor in weights(run).items():
        assert torch.equal(tensor, weights(other)[name]), name


# ---- train


def test_run_folder(finished, data):
    folder, _ = finished
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        ["config.json", "summary.json", "table.txt", *RUNS]
    )
    for name in RUNS:
        run = folder / name
        assert {path.name for path in run.iterdir()} == {
            *("config.json", "metrics.jsonl", "metrics.csv"),
            *("checkpoint.pt", "model.ts", "summary.json"),
        }
        config = read_json(run / "config.json")
        assert config["model"]["type"] == "TimeSeriesClassifier"
        assert name == f"{config['method']}-seed{config['training']['seed']}"
        assert config["model"]["encoder"]["attention"] == config["method"]
        sizes = [config["data"][f"{part}_size"] for part in ("train", "validation", "test")]
        assert sizes == [36, 9, 24]
        assert config["data"]["class_labels"] == ["x", "y", "z"]
        assert config["data"]["origin"]["train_file"] == str(data / "Toy_TRAIN.ts")
        summary = read_json(run / "summary.json")
        assert sum(map(sum, summary["confusion"])) == summary["test_size"] == 24
        correct = sum(summary["confusion"][k][k] for k in range(3))
        assert correct / 24 == summary["final"]["test_accuracy"]
        assert summary["parameters"] == sum(p.numel() for p in load_run(run).parameters())


def test_metrics_in_both_files(finished):
    folder, _ = finished
    for name in RUNS:
        rows = [json.loads(line) for line in (folder / name / "metrics.jsonl").open()]
        assert [row["epoch"] for row in rows] == [1, 2, 3, 4, 5, 6]
        assert [row["step"] for row in rows] == [5, 10, 15, 20, 25, 30]
        assert rows[-1]["train_loss"] < rows[0]["train_loss"]
        with (folder / name / "metrics.csv").open() as file:
            table = list(csv.DictReader(file))
        assert [{key: float(value) for key, value in row.items()} for row in table] == rows
        summary = read_json(folder / name / "summary.json")
        assert summary["final"]["test_accuracy"] == rows[-1]["test_accuracy"]
        for kind, part in (("best_validation", "valid"), ("best_test", "test")):
            best = min(rows, key=lambda row, p=part: (-row[f"{p}_accuracy"], row[f"{p}_loss"]))
            assert summary[kind]["epoch"] == best["epoch"]


def test_summary_and_table(finished):
    folder, done = finished
    summary = read_json(folder / "summary.json")
    assert summary["one_sample_percent"] == pytest.approx(100 / 24)
    assert summary["majority_percent"] == pytest.approx(100 * 8 / 24)
    assert done.stdout.startswith((folder / "table.txt").read_text())
    accuracy = {}
    for method in summary["methods"]:
        name = method["method"]
        runs = [read_json(folder / f"{name}-seed{seed}/summary.json") for seed in (1, 2)]
        for column in ("final", "best_validation", "best_test"):
            values = [run[column]["test_accuracy"] for run in runs]
            mean, sd = statistics.mean(values), statistics.stdev(values)
            assert method[column] == pytest.approx({"mean": mean, "sd": sd})
            assert f"{100 * mean:.2f} ± {100 * sd:.2f}" in done.stdout
        accuracy[name] = [run["final"]["test_accuracy"] for run in runs]
    (difference,) = summary["differences"]
    pairs = [a - b for a, b in zip(accuracy["bn"], accuracy["softmax"], strict=True)]
    half = 12.7062 * statistics.stdev(pairs) / math.sqrt(2)  # Student's t, 1 degree of freedom
    assert (difference["a"], difference["b"], difference["column"]) == ("bn", "softmax", "final")
    assert difference["mean"] == pytest.approx(statistics.mean(pairs))
    center = statistics.mean(pairs)
    assert difference["ci95"] == pytest.approx([center - half, center + half], abs=1e-5)


def test_without_validation_nothing_is_chosen_by_it(toy, tmp_path):
    done = toy(tmp_path / "run", *"--attention bn --seeds 1 --epochs 2 --validation 0".split())
    assert read_json(tmp_path / "run/bn-seed1/summary.json")["best_validation"] is None
    assert read_json(tmp_path / "run/bn-seed1/config.json")["data"]["train_size"] == 45
    assert "nan" not in done.stdout + done.stderr


def test_existing_run_needs_a_decision(finished, toy, tmp_path):
    folder, done = finished
    job = "--seeds 2 --epochs 6 --attention softmax,bn".split()
    refused = toy(folder, *job, code=1)
    assert "--resume" in refused.stderr and "--overwrite" in refused.stderr
    assert toy(folder, *job, "--resume").stdout == done.stdout  # nothing left to do

    changed = toy(folder, *job, "--resume", "--lr", "0.5", code=1)
    assert "training/learning_rate is 0.001 there and 0.5 here" in changed.stderr

    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "notes.txt").write_text("mine")
    toy(copy, *"--seeds 1 --epochs 6 --attention bn --overwrite".split())
    assert sorted(path.name for path in copy.iterdir()) == sorted(
        ["bn-seed1", "config.json", "notes.txt", "summary.json", "table.txt"]
    )
    assert_same_run(copy / "bn-seed1", folder / "bn-seed1")  # the same seed on one thread


def test_resume_takes_more_seeds(finished, toy, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    toy(tmp_path / "run", *"--seeds 3 --epochs 6 --attention softmax,bn --resume".split())
    assert (tmp_path / "run/bn-seed3/summary.json").exists()
    assert read_json(tmp_path / "run/summary.json")["methods"][1]["seeds"] == 3


LONG = "--attention bn --seeds 1 --epochs 150".split()


@pytest.fixture(scope="module")
def uninterrupted(toy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("long") / "run"
    toy(folder, *LONG)
    return folder


def interrupt(command, run, number):
    """Starts `kktorch train`, and sends it the signal after some epochs of `run`."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 120
        while not (run / "metrics.jsonl").exists() or len(metrics(run)) < 5:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(number)
        message = process.communicate(timeout=60)[1].decode()
    killed = number == signal.SIGKILL
    assert process.returncode == (-number if killed else 128 + number)
    assert killed or "--resume continues it" in message
    assert not (run / "summary.json").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_stopped_run_resumes_to_the_same_bits(number, program, data, toy, uninterrupted, tmp_path):
    folder, run = tmp_path / "run", tmp_path / "run/bn-seed1"
    interrupt([program, "train", "--data", data, "--out", folder, *SMALL, *LONG], run, number)
    assert len(metrics(run)) < 150
    toy(folder, *LONG, "--resume")
    assert_same_run(run, uninterrupted / "bn-seed1")


def test_steps_end_a_run_within_an_epoch(toy, tmp_path):
    toy(tmp_path / "run", *"--attention bn --seeds 1 --steps 7".split())
    assert [row["step"] for row in metrics(tmp_path / "run/bn-seed1")] == [5, 7]
    training = read_json(tmp_path / "run/bn-seed1/config.json")["training"]
    assert (training["steps"], training["epochs"]) == (7, 2)


def test_options_of_scaled_heads(toy, tmp_path):
    job = "--attention sh --seeds 1 --steps 2 --scales 1,3 --tail drop --count-weighting --conv 1d"
    toy(tmp_path, *job.split())
    encoder = read_json(tmp_path / "sh-seed1/config.json")["model"]["encoder"]
    assert (encoder["scales"], encoder["tail"]) == ([1, 3], "drop")
    assert (encoder["count_weighting"], encoder["conv"]) == (True, "1d")
    layer = load_run(tmp_path / "sh-seed1").encoder.layers[0].self_attn
    assert list(layer.scales) == [1, 3] and layer.tail == "drop" and layer.count_weighting


def test_methods_differ_in_their_attention_only(toy, tmp_path):
    names = "softmax bn bn-nostd sh bnsh linear linear_bn linear_bn-nostd linear_sh linear_bnsh"
    toy(tmp_path, "--attention", ",".join(names.split()), *"--seeds 1 --steps 2".split())
    models = {}
    for name in names.split():
        config = read_json(tmp_path / f"{name}-seed1/config.json")
        assert config["method"] == name
        encoder = config["model"]["encoder"]
        assert encoder.pop("attention") == name.removesuffix("-nostd")
        assert encoder.pop("use_std") == (not name.endswith("-nostd"))
        models[name] = config["model"]
    assert all(model == models["softmax"] for model in models.values())
    losses = {metrics(tmp_path / f"{name}-seed1")[0]["test_loss"] for name in models}
    assert len(losses) == len(models)


def test_checkpoint_of_another_model_is_refused(finished, kk, data, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished[0] / "bn-seed1", run)
    config = read_json(run / "config.json")
    config["model"]["encoder"]["ffn"] = 24
    (run / "config.json").write_text(json.dumps(config))
    refused = kk("predict", "--model", run, "--input", data / "Toy_TEST.ts", code=1)
    assert "linear1.bias [24] Float, but got [16] Float" in refused.stderr


def test_loss_that_is_not_finite_stops(toy, tmp_path):
    job = "--attention bn --seeds 1 --epochs 3 --lr 1e36".split()
    assert "expected" in toy(tmp_path / "run", *job, code=3).stderr
    assert not (tmp_path / "run/bn-seed1/summary.json").exists()


def test_full_disk(program, data, tmp_path):
    """A limit on the size of files stands in for it: the checkpoint (about 30 kB) does not fit."""
    command = [program, "train", "--data", data, "--out", tmp_path / "run", *SMALL]
    done = subprocess.run(
        [*command, "--attention", "bn", "--seeds", "1", "--epochs", "2"],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (8000, 8000)),
        restore_signals=False,  # Python ignores SIGXFSZ: the write fails instead of the process
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "checkpoint.pt.tmp: expected to write this file, but got: File too large" in done.stderr
    assert [path.name for path in (tmp_path / "run/bn-seed1").glob("checkpoint*")] == []


# ---- images and tokens

OTHER_DATA = {
    "digits": ["--data", "digits"],
    "ListOps-small": "--data ListOps-small --train-size 40 --test-size 16".split(),
}
OTHER_JOB = "--attention softmax,bnsh --seeds 1".split()


@pytest.fixture(scope="module", params=OTHER_DATA)
def other(request, kk, tmp_path_factory):
    """Name and folder of a comparison on images or tokens."""
    if request.param == "digits" and not importlib.util.find_spec("sklearn"):
        pytest.skip("scikit-learn is missing")
    folder = tmp_path_factory.mktemp("other") / "run"
    job = [*OTHER_DATA[request.param], *OTHER_JOB, *SMALL]
    kk("train", *job, "--epochs", 20, "--out", folder)
    return request.param, folder


@pytest.fixture
def cases(other, tmp_path):
    """A file of three cases for these models, their inputs as in Python, their labels."""
    random.seed(1)
    if other[0] == "digits":
        rows = [[random.randint(0, 16) for _ in range(64)] + [digit] for digit in (3, 0, 9)]
        text = "\n".join(",".join(map(str, row)) for row in rows)
        inputs = (torch.tensor([row[:64] for row in rows]).float().view(3, 1, 8, 8),)
        labels = ["3", "0", "9"]
    else:
        symbols = ["", *"0123456789", "[MAX", "[MIN", "[MED", "[SM", "]"]
        expressions = ["[MAX 2 9 [MIN 4 7 ] 0 ]", "5", "[SM 8 [MED 1 2 4 8 ] ]"]
        labels = ["9", "5", "1"]
        text = "\n".join(map("\t".join, zip(expressions, labels, strict=True)))
        ids = [torch.tensor([symbols.index(s) for s in line.split()]) for line in expressions]
        padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
        inputs = padded, padded == 0
    (tmp_path / "cases").write_text(text + "\n")
    return tmp_path / "cases", inputs, labels


def test_run_of_another_model(other):
    name, folder = other
    config = read_json(folder / "bnsh-seed1/config.json")
    sizes = [config["data"][f"{part}_size"] for part in ("train", "validation", "test")]
    assert config["data"]["name"] == name
    if name == "digits":
        assert config["model"]["type"] == "SmallViT" and sizes == [1077, 269, 451]
        assert config["data"]["origin"]["file"].endswith("digits.csv.gz")
        assert config["training"]["weight_decay"] == 0.05
    else:
        assert config["model"]["type"] == "TokenClassifier" and sizes == [40, 16, 16]
        assert re.fullmatch("[0-9a-f]{16}", config["data"]["origin"]["checksum"])
        assert config["training"]["steps"] == 0, "--epochs has its way against the preset"
        assert config["training"]["decay"] == "linear"
    for method in ("softmax", "bnsh"):
        rows = metrics(folder / f"{method}-seed1")
        assert len(rows) == 20 and rows[-1]["train_loss"] < rows[0]["train_loss"]
        assert read_json(folder / f"{method}-seed1/summary.json")["method"] == method


@pytest.mark.parametrize("method", ["softmax", "bnsh"])
def test_prediction_and_export_of_another_model(method, other, cases, kk, tmp_path):
    run, (file, inputs, labels) = other[1] / f"{method}-seed1", cases
    rows, _ = predictions(kk, run, file, tmp_path / "out.csv")
    assert [row["true"] for row in rows] == labels
    ours = torch.tensor([[float(row[f"p({digit})"]) for digit in range(10)] for row in rows])
    kk("export", "--run", run, "--out", tmp_path / "exported.ts")
    with torch.no_grad():
        for model in (load_run(run), torch.jit.load(tmp_path / "exported.ts")):
            theirs = model(*inputs).softmax(1)
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_stopped_run_of_another_model_resumes_to_the_same_bits(other, program, kk, tmp_path):
    name, folder = other
    job = [*OTHER_DATA[name], *OTHER_JOB, *SMALL, "--epochs", "20", "--out", tmp_path]
    interrupt([program, "train", *job], tmp_path / "softmax-seed1", signal.SIGINT)
    kk("train", *job, "--resume")
    for method in ("softmax", "bnsh"):
        assert_same_run(tmp_path / f"{method}-seed1", folder / f"{method}-seed1")


def test_cases_that_another_model_does_not_take(other, kk, tmp_path):
    name, folder = other
    file, run = tmp_path / "cases", folder / "bnsh-seed1"
    file.write_text(",".join(["1"] * 63) if name == "digits" else "5 " * 300)
    refused = kk("predict", "--model", run, "--input", file, code=1).stderr
    expected = "expected 64 pixels" if name == "digits" else "TokenClassifier: expected"
    assert f"{file}:" in refused and expected in refused
    file.write_text("what")
    assert f"{file}:1: expected" in kk("predict", "--model", run, "--input", file, code=1).stderr


# ---- predict, export, info


def predictions(kk, run, file, out):
    done = kk("predict", "--model", run, "--input", file, "--out", out)
    with out.open() as table:
        return list(csv.DictReader(table)), done.stdout


@pytest.mark.parametrize("name", ["bn-seed1", "softmax-seed2"])
def test_predict_agrees_with_training_and_python(name, finished, kk, data, tmp_path):
    run, file = finished[0] / name, data / "Toy_TEST.ts"
    rows, printed = predictions(kk, run, file, tmp_path / "out.csv")
    accuracy = sum(row["predicted"] == row["true"] for row in rows) / len(rows)
    assert accuracy == read_json(run / "summary.json")["final"]["test_accuracy"]
    assert f"accuracy: {100 * accuracy:.2f} %" in printed

    ours = torch.tensor([[float(row[f"p({label})"]) for label in "xyz"] for row in rows])
    cases = read_ts_file(file).pad_to(7)
    with torch.no_grad():
        theirs = load_run(run)(cases.x, cases.padding_mask).softmax(1)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_predict_prints_a_table_and_needs_no_labels(finished, kk, tmp_path):
    file = tmp_path / "new.ts"
    file.write_text("@dimensions 2\n@data\n1.9,2.1,2:2,?,2\n0,0:0,0\n")
    lines = kk("predict", "--model", finished[0] / "bn-seed1", "--input", file).stdout.splitlines()
    assert lines[0].split() == ["case", "predicted", "p(x)", "p(y)", "p(z)"]
    assert len(lines) == 4  # header, rule, two cases, no accuracy
    for line in lines[2:]:
        assert sum(map(float, line.split()[2:])) == pytest.approx(1, abs=2e-3)


@pytest.mark.parametrize("name", ["bn-seed1", "softmax-seed1"])
def test_export_torchscript(name, finished, kk, data, tmp_path):
    run, file = finished[0] / name, tmp_path / "exported.ts"
    done = kk("export", "--run", run, "--format", "torchscript", "--out", file)
    assert done.stdout == f"{file}\n"
    cases = read_ts_file(data / "Toy_TEST.ts").pad_to(7)
    with torch.no_grad():
        expected = load_run(run)(cases.x, cases.padding_mask)
        for script in (file, run / "model.ts"):
            actual = torch.jit.load(script)(cases.x, cases.padding_mask)
            torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


def test_checkpoint_holds_what_its_description_says(finished):
    saved = torch.load(finished[0] / "bn-seed1/checkpoint.pt", weights_only=True)
    assert saved.keys() == {"model", "optimizer", "rng", "progress"}
    assert saved["progress"]["epoch"] == 6 and isinstance(saved["progress"]["epoch"], int)
    assert saved["optimizer"]["step/head.weight"].item() == saved["progress"]["step"] == 30


def test_info(kk):
    text = kk("info").stdout
    assert torch.__version__.split("+")[0] in text and kktorch.__version__ in text
    assert "attention_bn " in text and "attention_bn_ref" in text
    tier = kk("info", env=os.environ | {"KKTORCH_CPU_CAPABILITY": "generic"}).stdout
    assert "generic kernels" in tier


# ---- bad input


def test_unknown_data_lists_the_known(kk, data, tmp_path):
    where = ["--data-dir", data.parent, "--out", tmp_path]
    refused = kk("train", "--data", "Nowhere", *where, code=1)
    assert "but got 'Nowhere'" in refused.stderr and "Toy" in refused.stderr


def test_malformed_file_is_named_with_its_line(kk, data, tmp_path):
    shutil.copytree(data, tmp_path / "bad")
    file = tmp_path / "bad/Toy_TRAIN.ts"
    file.write_text(file.read_text() + "1,2:3,oops:x\n")
    refused = kk("train", "--data", tmp_path / "bad", "--out", tmp_path / "run", code=1)
    assert f"{file}:51: expected a number, NaN or ?, but got 'oops'" in refused.stderr
    assert not (tmp_path / "run").exists()


def test_folder_that_cannot_be_written(toy, tmp_path):
    (tmp_path / "file").write_text("")
    refused = toy(tmp_path / "file/run", code=1)
    assert "file/run: expected to create this folder" in refused.stderr


@pytest.mark.parametrize(
    "text, message",
    [
        (
            "@dimensions 1\n@data\n1,2\n",
            "expected x floating [B, L <= 7, 2], but got Float [1, 2, 1]",
        ),
        (
            "@data\n1,2,3,4,5,6,7,8:1,2,3,4,5,6,7,8\n",
            "expected x floating [B, L <= 7, 2], but got Float [1, 8, 2]",
        ),
        ("@classlabel true q\n@data\n1:1:q\n", "expected class labels of Toy (x y z), but got 'q'"),
    ],
)
def test_input_of_another_task(text, message, finished, kk, tmp_path):
    file = tmp_path / "other.ts"
    file.write_text(text)
    refused = kk("predict", "--model", finished[0] / "bn-seed1", "--input", file, code=1)
    assert message in refused.stderr and str(file) in refused.stderr


def test_folder_of_several_runs_names_them(finished, kk, data):
    refused = kk("predict", "--model", finished[0], "--input", data / "Toy_TEST.ts", code=1)
    assert "expected the folder of one run" in refused.stderr and "bn-seed1" in refused.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fly"],
        ["train", "--attention", "hard"],
        ["train", "--seeds", "0"],
        ["train", "--epochs", "-1"],
        ["train", "--validation", "1"],
        ["train", "--resume", "--overwrite"],
        ["train", "--steps", "5", "--epochs", "5"],
        ["train", "--model", "cnn"],
        ["train", "--scales", "1,0"],
        ["train", "--tail", "floor"],
        ["predict", "--input", "x.ts"],
        ["export", "--run", "x", "--format", "onnx"],
    ],
)
def test_wrong_command_lines(arguments, kk):
    assert kk(*arguments, code=2).stderr


def test_options_that_do_not_fit_together(kk, data, tmp_path):
    job = ["--data", data, "--out", tmp_path / "run"]
    assert "divisible" in kk("train", *job, "--width", 8, "--heads", 3, code=1).stderr
    assert "bn twice" in kk("train", *job, "--attention", "bn,bn", code=1).stderr
    refused = kk("train", *job, "--attention", "sh", "--scales", "1,1,2", code=1).stderr
    assert "1 or 8" in refused and "scales" in refused
    wrong = "expected --model timeseries for Toy, but got vit"
    assert wrong in kk("train", *job, "--model", "vit", code=1).stderr
    wrong = "expected options that the model timeseries has, but got --patch"
    assert wrong in kk("train", *job, "--patch", 2, code=1).stderr
    wrong = "but got --train-size or --test-size"
    assert wrong in kk("train", *job, "--train-size", 9, code=1).stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("missing", ["Toy_TRAIN.ts", "Toy_TEST.ts"])
def test_data_folder_with_a_missing_file(missing, kk, data, tmp_path):
    shutil.copytree(data, tmp_path / "half")
    (tmp_path / "half" / missing).unlink()
    refused = kk("train", "--data", tmp_path / "half", "--out", tmp_path / "run", code=1)
    assert f"half/{missing}: expected the pair Toy_TRAIN.ts and Toy_TEST.ts" in refused.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["train", "predict", "export"])
def test_help_has_examples(command, kk):
    assert "Example" in kk(command, "--help").stdout
