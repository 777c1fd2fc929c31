"""Plots of a suite's results. A suite names its plots; `groups` are its cases by dtype and variant.

Every function returns a matplotlib figure of one panel or more.
"""

import math

from attention import length
from harness import TOTAL
from matplotlib.figure import Figure


def draw(name: str, suite, groups: dict, memory: list[dict]) -> Figure:
    """The plot ``name`` of KINDS."""
    return KINDS[name](suite, groups, memory)


def _panels(count: int, columns: int, height: float, **shared):
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(6.5 * columns, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **shared).ravel()
    for axis in axes[count:]:
        axis.set_visible(False)
    return figure, axes


def _ratios(suite, groups, memory):
    """A panel per group: the ratio to MAIN_PEER of every case and phase, with its interval."""
    figure, axes = _panels(len(groups), min(2, len(groups)), 3.4, sharey=True)
    most = max(map(len, groups.values()))  # the same distances in all panels
    for axis, (group, cases) in zip(axes, groups.items(), strict=False):
        axis.axhline(1, color="0.4", linewidth=1)
        phases = list(cases[0]["peak_percent"])
        for number, phase in enumerate(phases):
            shift = 0.16 * (number - (len(phases) - 1) / 2)
            points = [
                (place + shift, case["ratios"][suite.MAIN_PEER][phase])
                for place, case in enumerate(cases)
                if suite.MAIN_PEER in case["ratios"]
            ]
            places, ratios = zip(*points, strict=True)
            (dots,) = axis.plot(places, [ratio["median"] for ratio in ratios], "o", label=phase)
            for place, ratio in points:
                if ratio["low"]:
                    axis.vlines(place, ratio["low"], ratio["high"], color=dots.get_color())
        names = [case["key"][suite.ROW] for case in cases]
        axis.set_xticks(range(len(cases)), names, rotation=25, ha="right", fontsize=8)
        axis.set_xlim(-0.6, most - 0.4)
        axis.set_ylim(bottom=0)
        axis.grid(axis="y", alpha=0.3)
        axis.set_title(", ".join(group))
    figure.supylabel(f"time of {suite.MAIN_PEER} / time of {suite.SUBJECT}")
    figure.supxlabel(suite.ROW)
    axes[0].legend(frameon=False)
    return figure


def _ceiling(suite, groups, memory):
    """A panel per dtype: the share of the ceiling that a whole step reaches, against the length."""
    dtypes = list(dict.fromkeys(group[0] for group in groups))
    figure, axes = _panels(len(dtypes), len(dtypes), 3.8, sharey=True)
    for axis, dtype in zip(axes, dtypes, strict=True):
        for group, cases in groups.items():
            if group[0] != dtype:
                continue
            points = sorted(
                (length(case["key"]["shape"]), case["peak_percent"][TOTAL]) for case in cases
            )
            axis.plot(*zip(*points, strict=True), "o-", label=", ".join(group[1:]), alpha=0.8)
        axis.set_xscale("log", base=2)
        axis.set_ylim(0, 100)
        axis.grid(alpha=0.3)
        axis.set_title(dtype)
    figure.supylabel(f"% of the ceiling, {suite.SUBJECT}, {TOTAL}")
    figure.supxlabel("length")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", frameon=False)
    return figure


def _curves(suite, groups, memory):
    """A row per group: time and peak memory of every contender against the length, log-log."""
    figure, axes = _panels(2 * len(groups), 2, 4)
    for (group, cases), (time, space) in zip(groups.items(), axes.reshape(-1, 2), strict=True):
        style = {}  # one colour per contender in both panels
        series = {"seconds": {}, "bytes": {}}
        for case in cases:
            for name, phases in case["seconds"].items():
                point = (length(case["key"]["shape"]), 1e3 * phases[TOTAL])
                series["seconds"].setdefault(name, []).append(point)
        for row in memory:
            if all(row["key"][k] == v for k, v in zip(suite.GROUPS, group, strict=True)):
                for name, peak in row["peaks"].items():
                    point = (length(row["key"]["shape"]), max(peak / 2**20, 0.1))
                    series["bytes"].setdefault(name, []).append(point)
        for axis, lines, unit in (
            (time, series["seconds"], "time of a step [ms]"),
            (space, series["bytes"], "peak memory [MiB]"),
        ):
            for name, points in lines.items():
                style.setdefault(name, f"C{len(style)}")
                xs, ys = zip(*sorted(points), strict=True)
                axis.loglog(xs, ys, "o-", color=style[name], label=name, alpha=0.8, markersize=4)
            axis.set_xscale("log", base=2)
            axis.grid(alpha=0.3)
            axis.set_ylabel(unit)
            axis.set_title(", ".join(group))
        time.legend(frameon=False, fontsize=8)
    figure.supxlabel("length")
    return figure


def _gap(suite, groups, memory):
    """A panel per shape and loss: certified gap of every contender against the time that it took;
    the groups are gaps."""
    points = {}
    for cases in groups.values():
        for case in cases:
            loss = suite.VARIANTS[case["key"]["variant"]][0]
            panel = points.setdefault((case["key"][suite.ROW], loss), {})
            for name, phases in case["seconds"].items():
                gap = max(case["errors"][name]["gap"], 1e-16)
                panel.setdefault(name, []).append((phases[TOTAL], gap))
    figure, axes = _panels(len(points), min(2, len(points)), 3.4)
    for axis, (panel, series) in zip(axes, points.items(), strict=False):
        for name, times in series.items():
            axis.loglog(*zip(*sorted(times), strict=True), "o-", label=name, alpha=0.8)
        axis.set_title(", ".join(panel))
        axis.grid(alpha=0.3)
        axis.legend(frameon=False, fontsize=8)
    figure.supxlabel("seconds")
    figure.supylabel("certified relative gap")
    return figure


KINDS = {"gap": _gap, "ratios": _ratios, "ceiling": _ceiling, "curves": _curves}
