"""The plots of the page, as SVG text."""

import io
import itertools
import math
import warnings
from collections.abc import Iterable

import matplotlib

matplotlib.use("Agg")

import numpy as np  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

from kktorch.report.runs import Experiment, Run  # noqa: E402

_STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["Inter", "Segoe UI", "Helvetica Neue", "Arial", "DejaVu Sans"],
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8a94a0",
    "axes.labelcolor": "#39424e",
    "axes.titleweight": "bold",
    "axes.axisbelow": True,
    "axes.titlesize": 10.5,
    "text.color": "#1d2530",
    "xtick.color": "#5a6675",
    "ytick.color": "#5a6675",
    "axes.grid": True,
    "grid.color": "#e6eaee",
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "kktorch",
}
# Colours that stay apart for colour-blind readers (Okabe & Ito).
_COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#222222"]
_SPLITS = {"train": "training", "valid": "validation", "test": "test"}


def colours(methods: Iterable[str]) -> dict[str, str]:
    """A colour per method, the same in every plot and table of an experiment."""
    return dict(zip(methods, itertools.cycle(_COLOURS), strict=False))


def _svg(draw, width: float, height: float) -> str:
    """SVG text of a figure of ``width`` x ``height`` inches that ``draw(figure)`` fills."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None}, transparent=True)
    return text.getvalue()


def _stack(runs: list[Run], column: str) -> np.ndarray:
    """[seeds, epochs] of a metric; NaN where a run has not come that far."""
    curves = [run.curve(column) for run in runs]
    out = np.full((len(curves), max(map(len, curves), default=0)), np.nan)
    for row, curve in zip(out, curves, strict=True):
        row[: len(curve)] = curve
    return out


def curves(experiment: Experiment) -> str | None:
    """Loss and accuracy against the epoch, a column per split. None before the first epoch."""
    methods = experiment.methods()
    splits = [
        split for split in _SPLITS if np.isfinite(_stack(experiment.runs, f"{split}_loss")).any()
    ]
    if not splits:
        return None

    def draw(figure):
        axes = figure.subplots(2, len(splits), sharex=True, sharey="row", squeeze=False)
        for column, split in enumerate(splits):
            axes[0, column].set_title(_SPLITS[split])
            axes[1, column].set_xlabel("epoch")
            for row, quantity in enumerate(["loss", "accuracy"]):
                for method, colour in colours(methods).items():
                    axis, metric = axes[row, column], f"{split}_{quantity}"
                    _band(axis, methods[method], metric, colour, method)
        axes[0, 0].set_yscale("log")
        axes[0, 0].set_ylabel("cross-entropy [nats]")
        axes[1, 0].set_ylabel("accuracy [%]")
        axes[1, 0].set_ylim(_floor(experiment.runs, splits), 100.5)
        axes[1, 0].legend(loc="lower right")

    return _svg(draw, 3.4 * len(splits) + 0.4, 5.2)


def _floor(runs, splits):
    """Lowest accuracy [%] after the first tenth of the epochs: the climb from chance is no news."""
    stacks = [_stack(runs, f"{split}_accuracy") for split in splits]
    late = np.concatenate([stack[:, stack.shape[1] // 10 :].ravel() for stack in stacks])
    return 100 * min(late[np.isfinite(late)], default=0) - 1


def _band(axis, runs, column, colour, label):
    values = _stack(runs, column) * (100 if column.endswith("accuracy") else 1)
    if not np.isfinite(values).any():
        return
    epochs = np.arange(1, values.shape[1] + 1)
    with warnings.catch_warnings():
        # An epoch without a value in any seed stays NaN: a gap in the line.
        warnings.simplefilter("ignore", RuntimeWarning)
        middle, low, high = np.nanmean(values, 0), np.nanmin(values, 0), np.nanmax(values, 0)
    axis.fill_between(epochs, low, high, color=colour, alpha=0.16, linewidth=0)
    axis.plot(epochs, middle, color=colour, linewidth=1.6, label=label)


def differences(rows: list[dict], one_sample_percent: float) -> str | None:
    """Paired differences in percentage points with their 95 % intervals. None without any.

    The grey band is less than one test sample.
    """
    if not rows:
        return None

    def draw(figure):
        axis = figure.subplots()
        places = range(len(rows))[::-1]
        if math.isfinite(one_sample_percent):
            band = {"color": "#e6eaee", "label": "± one test series"}
            axis.axvspan(-one_sample_percent, one_sample_percent, **band)
            axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
        axis.axvline(0, color="#8a94a0", linewidth=1)
        for place, row in zip(places, rows, strict=True):
            low, high = (100 * end for end in row["ci95"])
            axis.plot([low, high], [place, place], color="#1d2530", linewidth=1.6)
            axis.plot(100 * row["mean"], place, "o", color="#1d2530", markersize=6)
        axis.set_yticks(list(places), [f"{row['a']} − {row['b']}" for row in rows])
        axis.set_ylim(-0.7, len(rows) - 0.3)
        axis.grid(False, axis="y")
        axis.set_xlabel("difference of test accuracy at the final epoch [percentage points]")

    return _svg(draw, 7.6, 1.0 + 0.42 * len(rows))


def cells(table: dict) -> str:
    """What the figure of a result table says: series over its columns, or points in a plane."""
    forms = {
        "curves": _curves,
        "log-curves": _curves,
        "stacked": _stacked,
        "scatter": _scatter,
        "cloud": _plane,
        "plane": _plane,
        "power": _power,
    }
    return forms.get(table["figure"]["form"], _series)(table)


def _curves(table):
    """The rows as lines over columns that are numbers, with a band of their spreads. On a
    logarithmic axis of "log-curves" 0 has a place, too."""
    figure, rows = table["figure"], table["rows"]
    places = [float(name) for name in table["columns"][1:]]

    def draw(drawing):
        axis = drawing.subplots()
        for index, (label, *row) in enumerate(rows):
            drawn = [
                (place, cell["value"], *_ends(cell))
                for place, cell in zip(places, row, strict=True)
                if isinstance(cell, dict) and (cell["value"] > 0 or not figure["logarithmic"])
            ]
            x, y, low, high = np.array(drawn, dtype=float).reshape(-1, 4).T
            colour, style = _COLOURS[index % len(_COLOURS)], "-:"[index // len(_COLOURS) % 2]
            axis.fill_between(x, low, high, color=colour, alpha=0.16, linewidth=0)
            axis.plot(x, y, style, color=colour, linewidth=1.6, label=label)
        if figure["form"] == "log-curves":
            axis.set_xscale("symlog", linthresh=1, linscale=0.3)
        if figure["logarithmic"]:
            axis.set_yscale("log")
        axis.set_xlabel(figure["across"])
        axis.set_ylabel(figure["axis"])
        axis.legend(loc="upper left", bbox_to_anchor=(1, 1))

    return _svg(draw, 8.6, 4.2)


def _stacked(table):
    """Shares on top of each other, a bar for each column."""
    figure, names = table["figure"], table["columns"][1:]

    def draw(drawing):
        axis = drawing.subplots()
        bottom = np.zeros(len(names))
        for index, (label, *row) in enumerate(table["rows"]):
            heights = np.array([cell["value"] if isinstance(cell, dict) else 0.0 for cell in row])
            colour = _COLOURS[index % len(_COLOURS)]
            axis.bar(names, heights, 0.65, bottom, color=colour, label=label)
            bottom += heights
        axis.grid(False, axis="x")
        axis.set_xlabel(figure["across"])
        axis.set_ylabel(figure["axis"])
        axis.legend(loc="upper left", bbox_to_anchor=(1, 1))

    return _svg(draw, 3.4 + max(1.1, 0.09 * max(map(len, names))) * len(names), 4.2)


def _plane(table):
    """Rows whose second cell has "points" or a "path" [[x, y], ...], or a "line" a, b, c with
    a x + b y = c. A cloud may have logarithmic axes."""
    figure = table["figure"]

    def draw(drawing):
        axis = drawing.subplots()
        lines = []
        for index, (label, cell, *_) in enumerate(table["rows"]):
            colour = _COLOURS[index % len(_COLOURS)]
            if points := cell.get("points"):
                x, y = np.array(points, dtype=float).T
                axis.plot(x, y, "o", color=colour, markersize=4.5, alpha=0.8, label=label)
            elif path := cell.get("path"):
                x, y = np.array(path, dtype=float).T
                axis.plot(x, y, color=colour, linewidth=1.6, label=label)
            elif line := cell.get("line"):
                lines.append((label, colour, line))
        for index, (label, colour, (a, b, c)) in enumerate(lines):
            style = {"color": colour, "linestyle": ["--", ":"][index % 2], "label": label}
            if abs(b) > 1e-12 * abs(a):
                axis.axline((0, c / b), slope=-a / b, **style)
            else:
                axis.axvline(c / a, **style)
        if figure["logarithmic"]:
            axis.set_xscale("log")
            axis.set_yscale("log")
        if figure["form"] == "plane":
            axis.set_aspect("equal", adjustable="datalim")
        axis.set_xlabel(figure["across"])
        axis.set_ylabel(figure["axis"])
        axis.legend(loc="upper left", bbox_to_anchor=(1, 1))

    return _svg(draw, 7.0, 4.2)


def _series(table):
    """The rows as series over the columns, with their spreads or intervals."""
    figure, names, rows = table["figure"], table["columns"][1:], table["rows"]

    def draw(drawing):
        axis = drawing.subplots()
        for index, (label, *row) in enumerate(rows):
            shift = 0.7 * ((index + 0.5) / len(rows) - 0.5)
            drawn = [
                (place + shift, cell["value"], *_ends(cell))
                for place, cell in enumerate(row)
                if isinstance(cell, dict) and (cell["value"] > 0 or not figure["logarithmic"])
            ]
            x, y, low, high = np.array(drawn, dtype=float).reshape(-1, 4).T
            style = {"yerr": [list(y - low), list(high - y)], "label": label}
            if figure["form"] == "bars":
                colour = _COLOURS[index % len(_COLOURS)]
                width = 0.65 / len(rows)
                axis.bar(x, y, width, color=colour, ecolor="#1d2530", capsize=3, **style)
            else:
                axis.errorbar(x, y, **style, **_marker(index))
        if figure["logarithmic"]:
            axis.set_yscale("log")
        axis.set_xticks(range(len(names)), names)
        axis.grid(False, axis="x")
        axis.set_xlabel(figure["across"])
        axis.set_ylabel(figure["axis"])
        axis.legend(loc="upper left", bbox_to_anchor=(1, 1))

    column = max(1.1, 0.09 * max(map(len, names)))  # no label reaches the next one
    return _svg(draw, 3.4 + column * len(names), 4.2)


def _scatter(table):
    """A point per row at its first two numbers, with the spread or interval of the second."""
    figure = table["figure"]

    def draw(drawing):
        axis = drawing.subplots()
        for index, (label, place, cell, *_) in enumerate(table["rows"]):
            value, (low, high) = cell["value"], _ends(cell)
            spread = [[value - low], [high - value]]
            axis.errorbar(place["value"], value, spread, label=label, **_marker(index))
        if figure["logarithmic"]:
            axis.set_yscale("log")
        axis.set_xlabel(figure["across"])
        axis.set_ylabel(figure["axis"])
        axis.legend(loc="upper left", bbox_to_anchor=(1, 1))

    return _svg(draw, 7.0, 4.2)


def _power(table):
    """Log-log: intervals of the numbers; for each row its line, with the interval of the slope."""
    figure, places = table["figure"], np.array(table["columns"][1:], dtype=float)

    def draw(drawing):
        axis = drawing.subplots()
        for index, ((label, *row), line) in enumerate(
            zip(table["rows"], figure["lines"], strict=True)
        ):
            drawn = [
                (x, cell["value"], *_ends(cell))
                for x, cell in zip(places, row, strict=True)
                if isinstance(cell, dict) and cell["value"] > 0
            ]
            x, y, low, high = np.array(drawn, dtype=float).reshape(-1, 4).T
            low = np.where(low > 0, low, y)  # an interval below zero has no place here
            style = {"yerr": [y - low, high - y], "label": label} | _marker(index)
            axis.errorbar(x, y, **style)
            if line["slope"] is not None and len(x):
                ends = np.array([x.min(), x.max()])
                centre, height = np.exp(np.log(x).mean()), np.exp(np.log(y).mean())
                slopes = {key: height * (ends / centre) ** line[key] for key in line}
                colour = style["color"]
                axis.plot(ends, slopes["slope"], color=colour, linewidth=1.2)
                fan = {"color": colour, "alpha": 0.14, "linewidth": 0}
                middle = np.array([ends[0], centre, ends[1]])
                edges = [height * (middle / centre) ** line[key] for key in ("low", "high")]
                axis.fill_between(middle, *edges, **fan)
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xticks(places, table["columns"][1:])
        axis.minorticks_off()
        axis.set_xlabel(figure["across"])
        axis.set_ylabel(figure["axis"])
        axis.legend(loc="upper left", bbox_to_anchor=(1, 1))

    return _svg(draw, 7.6, 4.2)


def _marker(index):
    return {
        "color": _COLOURS[index % len(_COLOURS)],
        "marker": "os^"[index // len(_COLOURS) % 3],  # colours come back
        "linestyle": "none",
        "markersize": 4.5,
    }


def _ends(cell: dict) -> tuple[float, float]:
    """Of the interval of a cell, of its mean ± sd, or of the number itself."""
    value, sd = cell["value"], cell.get("sd", 0.0)
    return cell.get("low", value - sd), cell.get("high", value + sd)


def confusion(runs: list[Run]) -> str | None:
    """Confusion matrix at the final epoch, summed over the finished runs; rows = true class."""
    finished = [run.summary for run in runs if run.summary and run.summary.get("confusion")]
    if not finished:
        return None
    counts = np.sum([summary["confusion"] for summary in finished], axis=0)
    labels = [str(label) for label in finished[0]["class_labels"]]
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)

    def draw(figure):
        axis = figure.subplots()
        image = axis.imshow(100 * shares, cmap="Blues", vmin=0, vmax=100)
        size = 9 if len(labels) <= 12 else 6
        for (row, column), count in np.ndenumerate(counts):
            if count:
                colour = "white" if shares[row, column] > 0.55 else "#1d2530"
                style = {"ha": "center", "va": "center", "color": colour, "fontsize": size}
                axis.text(column, row, int(count), **style)
        rotate = {"rotation": 45, "ha": "right"} if max(map(len, labels)) > 3 else {}
        axis.set_xticks(range(len(labels)), labels, **rotate)
        axis.set_yticks(range(len(labels)), labels)
        axis.set_xlabel("predicted class")
        axis.set_ylabel("true class")
        axis.grid(False)
        axis.spines[:].set_visible(False)
        axis.tick_params(length=0)
        bar = figure.colorbar(image, ax=axis, shrink=0.8, label="share of the true class [%]")
        bar.outline.set_visible(False)

    side = min(max(3.6, 0.42 * len(labels) + 1.2), 9)
    return _svg(draw, side + 1, side)


def maps(grid: dict) -> str:
    """An image for each matrix of a grid; the images of a row share their scale of colours."""
    rows, columns = grid["rows"], grid["columns"]

    def draw(figure):
        axes = figure.subplots(len(rows), len(columns), squeeze=False, sharex=True, sharey=True)
        for line, row in zip(axes, rows, strict=True):
            largest = np.max(row["maps"])
            for axis, matrix in zip(line, row["maps"], strict=True):
                image = axis.imshow(matrix, vmin=0, vmax=largest, interpolation="nearest")
                axis.grid(False)
            line[0].set_ylabel(f"{row['name']}\n{grid['down']}")
            bar = figure.colorbar(image, ax=line, label=grid["quantity"], pad=0.01)
            bar.outline.set_visible(False)
        for column, name in zip(axes.T, columns, strict=True):
            column[0].set_title(name)
            column[-1].set_xlabel(grid["across"])

    return _svg(draw, 1.5 + 1.25 * len(columns), 0.6 + 1.5 * len(rows))
