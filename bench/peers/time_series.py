"""The time-series classifier of `kktorch train`, written the straightforward way in PyTorch, eager
or by torch.compile.

No op, layer or trainer of kktorch: nn modules, scaled_dot_product_attention, AdamW, gradient
clipping. It trains the same model on the same data with the same batches per epoch, and prints the
median seconds of the training batches of an epoch and the test accuracy. With --run, also those of
a run of `kktorch train`, and the ratio:

    kktorch train --attention softmax --seeds 1 --epochs 20 --out /tmp/run
    python bench/peers/time_series.py --epochs 20 --run /tmp/run/softmax-seed1
"""

import argparse
import json
import math
import statistics
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "python"))

from kktorch.data import load_dataset  # noqa: E402  (reads the files, nothing else)


class Attention(nn.Module):
    """Multi-head attention; with `bn` its keys are normalised, folded into the query."""

    def __init__(self, width, heads, bn):
        super().__init__()
        self.heads, self.bn = heads, bn
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x, padding):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        valid = ~padding[:, None, :, None]
        if self.bn:
            count = valid.sum(2, keepdim=True)
            mean = (k * valid).sum(2, keepdim=True) / count
            variance = ((k - mean).square() * valid).sum(2, keepdim=True) / count
            q = (q - mean) / (variance + 1e-5)
        mask = valid.transpose(-1, -2)
        h = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out(h.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    def __init__(self, width, heads, ffn, dropout, bn):
        super().__init__()
        self.attention = Attention(width, heads, bn)
        self.norm1, self.norm2 = nn.BatchNorm1d(width), nn.BatchNorm1d(width)
        self.ffn = nn.Sequential(
            nn.Linear(width, ffn), nn.GELU(), nn.Dropout(dropout), nn.Linear(ffn, width)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, padding):
        x = x + self.dropout(self.attention(x, padding))
        x = self.norm1(x.transpose(1, 2)).transpose(1, 2)
        x = x + self.dropout(self.ffn(x))
        return self.norm2(x.transpose(1, 2)).transpose(1, 2)


class Classifier(nn.Module):
    def __init__(
        self, channels, classes, length, bn, width=128, heads=8, ffn=256, layers=3, dropout=0.1
    ):
        super().__init__()
        self.width = width
        self.embedding = nn.Linear(channels, width)
        self.position = nn.Parameter(torch.empty(length, width).uniform_(-0.02, 0.02))
        self.layers = nn.ModuleList(Layer(width, heads, ffn, dropout, bn) for _ in range(layers))
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(length * width, classes)

    def forward(self, x, padding):
        h = self.dropout(self.embedding(x) * math.sqrt(self.width) + self.position)
        for layer in self.layers:
            h = layer(h, padding)
        h = self.dropout(F.gelu(h)).masked_fill(padding[:, :, None], 0)
        return self.head(h.flatten(1))


def split_by_class(labels, fraction=0.2):
    """Rows to train on, rows to hold out: ``fraction`` of every class."""
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        rows = (labels == label).nonzero()[:, 0]
        held_out[rows[torch.randperm(len(rows))[: round(fraction * len(rows))]]] = True
    return (~held_out).nonzero()[:, 0], held_out.nonzero()[:, 0]


def train(arguments) -> tuple[list[float], float]:
    """Seconds of every epoch, test accuracy after the last one."""
    torch.manual_seed(arguments.seed)
    data, test = load_dataset(arguments.data)
    rows, _ = split_by_class(data.labels)  # the held-out rows stay unused here
    steps = data.x[rows][~data.padding_mask[rows]]
    mean, std = steps.mean(0), steps.std(0, correction=0)
    x, test_x = ((part.x - mean) / std for part in (data, test))
    x[data.padding_mask], test_x[test.padding_mask] = 0, 0

    model = Classifier(
        data.channels, len(data.class_labels), data.max_length, arguments.attention == "bn"
    )
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=5e-4)
    total = arguments.epochs * math.ceil(len(rows) / arguments.batch_size)
    warmup = math.ceil(0.1 * total)

    def schedule(step):
        if step < warmup:
            return (step + 1) / warmup
        return (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup))) / 2

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimiser, schedule)
    # The last batch of an epoch is shorter: it has a program of its own.
    network = torch.compile(model, dynamic=False) if arguments.compile else model
    seconds = []
    for _ in range(arguments.epochs):
        model.train()
        start = time.perf_counter()
        for batch in rows[torch.randperm(len(rows))].split(arguments.batch_size):
            optimiser.zero_grad()
            output = network(x[batch], data.padding_mask[batch])
            loss = F.cross_entropy(output, data.labels[batch])
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 4.0)
            optimiser.step()
            scheduler.step()
        seconds.append(time.perf_counter() - start)
    model.eval()
    with torch.no_grad():
        predicted = model(test_x, test.padding_mask).argmax(1)
    return seconds, (predicted == test.labels).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", default="JapaneseVowels")
    parser.add_argument("--attention", choices=["softmax", "bn"], default="softmax")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--compile", action="store_true", help="the model by torch.compile")
    parser.add_argument("--run", type=Path, help="a run of `kktorch train` to compare with")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    seconds, accuracy = train(arguments)
    peer = statistics.median(seconds)
    name = "torch.compile" if arguments.compile else "eager"
    print(
        f"PyTorch {name} {torch.__version__}, {arguments.attention}, {arguments.threads} threads: "
        f"{peer:.4f} s per epoch (median of {arguments.epochs}), "
        f"test accuracy {100 * accuracy:.2f} %"
    )
    if arguments.run:
        rows = [json.loads(line) for line in open(arguments.run / "metrics.jsonl")]
        ours = statistics.median(row["seconds"] for row in rows)
        threads = json.loads((arguments.run / "summary.json").read_text())["threads"]
        print(
            f"kktorch train, {threads} threads: {ours:.4f} s per epoch (median of {len(rows)}), "
            f"test accuracy {100 * rows[-1]['test_accuracy']:.2f} %; {name} / kktorch "
            f"{peer / ours:.2f}"
        )


if __name__ == "__main__":
    main()
