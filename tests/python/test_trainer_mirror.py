"""The C++ trainer against the same training written in PyTorch: split, batches, losses, weights."""

import json
import math
import os
import subprocess
from pathlib import Path

import pytest
import torch
from kktorch.data import load_dataset
from kktorch.nn import TimeSeriesClassifier
from torch.nn import functional as F

DATA, EPOCHS, BATCH, SEED, LR, CLIP, WARMUP = "BasicMotions", 5, 16, 1, 1e-3, 4.0, 0.1
PARTS = ("train", "valid", "test")
MODEL = {"width": 16, "heads": 2, "ffn": 32, "layers": 2, "dropout": 0.0}
BITS = 2**64 - 1


class SeedStream:
    """SplitMix64 from (seed, purpose, index), as in train/loop/seed_stream.h."""

    def __init__(self, seed, purpose, index=0):
        text = 0xCBF29CE484222325
        for byte in purpose.encode():
            text = (text ^ byte) * 0x100000001B3 & BITS
        self.state = self.mix(self.mix(self.mix(seed) ^ text) ^ index)

    @staticmethod
    def mix(z):
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & BITS
        z = (z ^ z >> 27) * 0x94D049BB133111EB & BITS
        return z ^ z >> 31

    def next(self):
        self.state = self.state + 0x9E3779B97F4A7C15 & BITS
        return self.mix(self.state)

    def permutation(self, n):
        # Rejection of the lowest 2^64 mod i values happens with probability < n / 2^64.
        order = list(range(n))
        for i in range(n, 1, -1):
            j = self.next() % i
            order[i - 1], order[j] = order[j], order[i - 1]
        return order


def split(labels):
    """Rows to fit and to validate with: a fifth of every class is held out."""
    rest, held_out = [], []
    for label in labels.unique().tolist():
        rows = (labels == label).nonzero().flatten().tolist()
        order = SeedStream(SEED, "validation split", label).permutation(len(rows))
        held = round(0.2 * len(rows))
        held_out += [rows[i] for i in order[:held]]
        rest += [rows[i] for i in order[held:]]
    return sorted(rest), sorted(held_out)


def train(attention, options):
    """(mean training loss, validation loss, test loss) of every epoch, and the model."""
    cases, test = load_dataset(DATA)
    rest, held_out = split(cases.labels)
    fit = [part[rest] for part in (cases.x, cases.padding_mask, cases.labels)]
    valid = [part[held_out] for part in (cases.x, cases.padding_mask, cases.labels)]

    torch.manual_seed(SeedStream(SEED, "initial weights").next())
    sizes = (cases.channels, len(cases.class_labels), cases.max_length)
    model = TimeSeriesClassifier(*sizes, attention=attention, **MODEL, **options)
    steps = fit[0].double()[~fit[1]]
    model.standardise_with(steps.mean(0), steps.std(0, unbiased=False))

    is_beta = [name.endswith("beta") for name, _ in model.named_parameters()]
    beta = [p for p, yes in zip(model.parameters(), is_beta, strict=True) if yes]
    rest_of_them = [p for p, yes in zip(model.parameters(), is_beta, strict=True) if not yes]
    groups = [{"params": rest_of_them}, {"params": beta, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups if beta else groups[:1], lr=LR, weight_decay=5e-4)
    total = EPOCHS * math.ceil(len(rest) / BATCH)
    warmup = math.ceil(WARMUP * total)

    def factor(step):
        if step < warmup:
            return (step + 1) / warmup
        return (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2

    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, factor)

    @torch.no_grad()
    def loss_on(x, padding_mask, labels):
        return F.cross_entropy(model.eval()(x, padding_mask).double(), labels).item()

    losses = []
    for epoch in range(EPOCHS):
        order = torch.tensor(SeedStream(SEED, "batches", epoch).permutation(len(rest)))
        sum_of_losses = 0.0
        for rows in order.split(BATCH):
            x, padding_mask, labels = (part[rows] for part in fit)
            optimiser.zero_grad()
            loss = F.cross_entropy(model.train()(x, padding_mask), labels)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimiser.step()
            schedule.step()
            sum_of_losses += loss.item() * len(rows)
        tested = loss_on(test.x, test.padding_mask, test.labels)
        losses.append((sum_of_losses / len(rest), loss_on(*valid), tested))
    return losses, model


@pytest.mark.parametrize(
    "attention, options, flags",
    [
        ("softmax", {"norm": "layer"}, []),
        ("softmax", {"norm": "batch"}, []),
        ("bn", {"norm": "layer", "beta_mode": "per_head"}, ["--beta-mode", "per_head"]),
        ("bnsh", {"norm": "layer"}, []),
    ],
)
def test_ten_steps_give_the_same_losses_and_weights(attention, options, flags, build_dir, tmp_path):
    try:
        load_dataset(DATA)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    program = Path(os.environ.get("KKTORCH_PROGRAM") or build_dir / "bin/kktorch")
    sizes = [word for name, value in MODEL.items() for word in (f"--{name}", str(value))]
    job = f"--data {DATA} --epochs {EPOCHS} --batch-size {BATCH} --lr {LR} --clip {CLIP}".split()
    job += f"--warmup {WARMUP} --seeds 1 --threads 1 --attention {attention}".split()
    command = [program, "train", *job, *sizes, *flags, "--norm", options["norm"], "--out", tmp_path]
    subprocess.run(command, check=True, capture_output=True)

    losses, model = train(attention, options)
    run = tmp_path / f"{attention}-seed1"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    assert rows[-1]["step"] == 10
    ours = torch.tensor([[row[f"{part}_loss"] for part in PARTS] for row in rows])
    # A bias in front of a batch norm has no effect in training, and for a gradient rounding noise,
    # which Adam scales up to whole steps; they show in the running means, that is, in evaluation.
    compared = 1 if options["norm"] == "batch" else 3
    theirs = torch.tensor(losses)
    torch.testing.assert_close(ours[:, :compared], theirs[:, :compared], rtol=0, atol=1e-5)
    if options["norm"] == "batch":
        return
    weights = torch.load(run / "checkpoint.pt", weights_only=True)["model"]
    assert weights.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        if not name.endswith("in_proj_bias"):  # the keys' part has no effect, as above
            torch.testing.assert_close(weights[name], tensor, rtol=0, atol=1e-5)
