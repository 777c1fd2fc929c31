"""Results as Markdown tables and plots, between the markers of a page.

A suite's docstring explains its tables. It names its SUBJECT, its MAIN_PEER (shown phase by phase),
its PRICE (a contender that does less, so the ratio is read the other way round), and the key fields
that make tables and rows.
"""

import math
import os
import statistics
from pathlib import Path

from harness import TOTAL
from kktorch._files import write_text, write_whole
from matplotlib.figure import Figure

SKELETON = """# Benchmarks

Written by `bench/run.py`; text between markers is replaced when a suite is run.

Every comparison passes a correctness gate first. Implementations run interleaved in one process,
with the same threads. A ratio is the time of the other implementation over that of kktorch: above 1
kktorch is faster. It is the median over rounds of the ratios within a round, with a 95 % interval
in brackets (order statistics). The ceiling is the best rate of a large matrix product in the same
precision on the same machine.
"""


def update(page: Path, suite, results: list[tuple[Path, dict]]) -> None:
    """Replaces the section of ``suite`` in ``page``; a page or section that is missing is begun.

    Args:
        results: the folder of each machine, and what is stored there for this suite.
    """
    begin, end = f"<!-- {suite.NAME} -->", f"<!-- /{suite.NAME} -->"
    machines = [_machine(page, suite, folder, result) for folder, result in results]
    parts = [f"## {suite.TITLE}", suite.__doc__.strip(), *(machines or ["No results yet."])]
    section = "\n\n".join([begin, *parts, end])
    text = page.read_text(encoding="utf-8") if page.exists() else SKELETON
    if begin not in text:
        text = f"{text.rstrip()}\n\n{begin}\n{end}\n"
    head, _, rest = text.partition(begin)
    write_text(page, head + section + rest.partition(end)[2])


def _machine(page, suite, folder, result):
    machine = result["machine"]
    facts = (f"{name} {text}" for name, text in machine.items() if name not in ("cpu", "threads"))
    parts = [f"### {machine['cpu']}, {machine['threads']} threads", "; ".join(facts) + "."]
    groups = {}
    for case in result["cases"]:
        groups.setdefault(tuple(case["key"][name] for name in suite.GROUPS), []).append(case)
    if groups:
        peaks = (f"{dtype} {peak / 1e9:.0f} GF/s" for dtype, peak in result["peaks"].items())
        parts.append(f"Ceiling: {', '.join(peaks)}.")
        plot = folder / f"{suite.NAME}.svg"
        _plot(plot, suite, groups)
        parts.append(f"![Ratios to {suite.MAIN_PEER}]({os.path.relpath(plot, page.parent)})")
    for group, cases in groups.items():
        parts += [f"#### {', '.join(group)}", _table(suite, cases)]
    if result["memory"]:
        parts += ["#### Peak memory of one step, without its inputs", _memory(suite, result)]
    return "\n\n".join(parts)


def _table(suite, cases):
    """A row per case, geometric means below; peers that could not run are named with the reason."""
    peers = [peer for case in cases for peer in (*case["ratios"], *case["missing"])]
    others = [peer for peer in dict.fromkeys(peers) if peer not in (suite.MAIN_PEER, suite.PRICE)]
    phases = list(cases[0]["peak_percent"])
    header = [suite.ROW, f"{suite.SUBJECT} [ms]: {' / '.join(phases)}", "of ceiling"]
    header += [f"{suite.MAIN_PEER}: {phase}" for phase in phases]
    header += [f"{peer}: {TOTAL}" for peer in others]
    header += [f"price: {suite.SUBJECT} / {suite.PRICE}"]
    rows = []
    for case in cases:
        times = case["seconds"][suite.SUBJECT]
        row = [case["key"][suite.ROW], " / ".join(f"{1e3 * times[phase]:.3g}" for phase in phases)]
        row += [f"{case['peak_percent'][TOTAL]:.0f} %"]
        row += [_ratio(case, suite.MAIN_PEER, phase) for phase in phases]
        row += [_ratio(case, peer, TOTAL) for peer in others]
        rows.append([*row, _ratio(case, suite.PRICE, TOTAL, inverse=True)])
    means = [_mean(cases, suite.MAIN_PEER, phase) for phase in phases]
    means += [_mean(cases, peer, TOTAL) for peer in others]
    rows.append(["geometric mean", "", "", *means, _mean(cases, suite.PRICE, TOTAL, inverse=True)])
    notes = dict.fromkeys(f"{k}: {v}" for case in cases for k, v in case["notes"].items())
    missing = dict.fromkeys(
        f"{k} missing: {v}" for case in cases for k, v in case["missing"].items()
    )
    rounds = sorted({case["rounds"] for case in cases})
    remarks = [f"Rounds: {', '.join(map(str, rounds))}", *notes, _errors(cases), *missing]
    return f"{_markdown(header, rows)}\n\n{'; '.join(remarks)}."


def _errors(cases):
    worst = {}
    for case in cases:
        for name, errors in case["errors"].items():
            worst[name] = max(worst.get(name, 0), *errors.values())
    texts = (f"{name} {error:.1g}" for name, error in worst.items())
    return f"largest relative error against float64: {', '.join(texts)}"


def _ratio(case, peer, phase, inverse=False):
    if peer in case["missing"]:
        return "missing"
    median, low, high = (case["ratios"][peer][phase][key] for key in ("median", "low", "high"))
    if inverse:
        median, low, high = 1 / median, high and 1 / high, low and 1 / low
    return f"{median:.2f}" + (f" [{low:.2f}, {high:.2f}]" if low else "")


def _mean(cases, peer, phase, inverse=False):
    logs = [
        math.log(case["ratios"][peer][phase]["median"]) for case in cases if peer in case["ratios"]
    ]
    if not logs:
        return "missing"
    return f"**{math.exp(statistics.mean(logs) * (-1 if inverse else 1)):.2f}**"


def _memory(suite, result):
    """MiB of every contender, and the subject's multiple of the price contender."""
    shapes = result["memory"]
    names = list(next(iter(shapes.values())))
    header = [suite.ROW, *(f"{name} [MiB]" for name in names)]
    rows = [
        [shape, *(f"{peaks[name] / 2**20:.0f}" for name in names)]
        + [f"{peaks[suite.SUBJECT] / peaks[suite.PRICE]:.2f}"]
        for shape, peaks in shapes.items()
    ]
    return _markdown([*header, f"{suite.SUBJECT} / {suite.PRICE}"], rows)


def _markdown(header, rows):
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _plot(path, suite, groups):
    """A panel per group: the ratio to MAIN_PEER of every case and phase, with its interval."""
    columns = min(2, len(groups))
    rows = math.ceil(len(groups) / columns)
    figure = Figure(figsize=(6.5 * columns, 3.4 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
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
        axis.set_ylim(bottom=0)
        axis.grid(axis="y", alpha=0.3)
        axis.set_title(", ".join(group))
    figure.supylabel(f"time of {suite.MAIN_PEER} / time of {suite.SUBJECT}")
    figure.supxlabel(suite.ROW)
    axes[0].legend(frameon=False)
    write_whole(path, lambda file: figure.savefig(file, format="svg", metadata={"Date": None}))
