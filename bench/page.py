"""Results as Markdown tables and plots, between the markers of a page.

A suite's docstring explains its tables. It names its SUBJECT, its MAIN_PEER (shown phase by phase),
its PRICE (a contender that computes another function, so the ratio is read the other way round),
the key fields that make tables and rows, and its PLOTS.
"""

import itertools
import os
import statistics
from pathlib import Path

import plots
from harness import TOTAL
from kktorch._files import write_text, write_whole

SKELETON = """# Benchmarks

Written by `bench/run.py`; text between markers is replaced when a suite is run.

Every comparison passes a correctness gate first. Implementations run interleaved in one process,
with the same threads. A ratio is the time of the other implementation over that of kktorch: above 1
kktorch is faster. It is the median over rounds of the ratios within a round, with a 95 % interval
in brackets (order statistics). The ceiling is measured on the same machine: the best rate of a
large matrix product in the same precision, or of reading memory where a suite says so.
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
    heading = f"### {machine['cpu']}, {machine['kktorch tier']}, {machine['threads']} threads"
    parts = [heading, "; ".join(facts) + "."]
    groups = {}
    for case in result["cases"]:
        groups.setdefault(_group(suite, case), []).append(case)
    memory = {}
    for row in result["memory"]:
        memory.setdefault(_group(suite, row), []).append(row)
    if groups:
        rates = [f"{dtype} {p / 1e9:.0f} G{suite.CEILING}" for dtype, p in result["peaks"].items()]
        parts += [f"Ceiling: {', '.join(rates)}."] if rates else []
        parts += [_plot(page, folder, suite, plot, groups, result) for plot in suite.PLOTS]
    for group, cases in groups.items():
        parts += [f"#### {', '.join(group)}", _table(suite, cases)]
    for group, rows in memory.items():
        parts += [f"#### {', '.join(group)}: peak memory of one step, without its inputs"]
        parts.append(_memory(suite, rows))
    return "\n\n".join(parts)


def _group(suite, row):
    return tuple(row["key"][name] for name in suite.GROUPS)


def _plot(page, folder, suite, plot, groups, result):
    path = folder / f"{suite.NAME}-{plot}.svg"
    figure = plots.draw(plot, suite, groups, result["memory"])
    write_whole(path, lambda file: figure.savefig(file, format="svg", metadata={"Date": None}))
    return f"![{suite.NAME}: {plot}]({os.path.relpath(path, page.parent)})"


def _table(suite, cases):
    """A row per case, geometric means below; peers that could not run are named with the reason."""
    peers = [peer for case in cases for peer in (*case["ratios"], *case["missing"])]
    others = [peer for peer in dict.fromkeys(peers) if peer not in (suite.MAIN_PEER, suite.PRICE)]
    phases = list(cases[0]["peak_percent"])
    main = [(suite.MAIN_PEER, phase) for phase in phases]
    columns = main + [(peer, TOTAL) for peer in others]
    expected = sorted({peer for case in cases for peer in case["expected"]})
    header = [
        suite.ROW,
        f"{suite.SUBJECT} [ms]: {' / '.join(phases)}",
        *_ceiling(suite, "of ceiling"),
    ]
    header += [f"{peer}: {phase}" for peer, phase in columns] + ["best peer"]
    header += [f"price: {suite.SUBJECT} / {suite.PRICE}"] if suite.PRICE else []
    header += [f"by operations: {suite.SUBJECT} / {peer}" for peer in expected]
    rows = []
    for case in cases:
        times = case["seconds"][suite.SUBJECT]
        row = [case["key"][suite.ROW], " / ".join(f"{1e3 * times[phase]:.3g}" for phase in phases)]
        row += _ceiling(suite, f"{case['peak_percent'][TOTAL]:.0f} %")
        row += [_ratio(case, peer, phase) for peer, phase in columns]
        row += [f"{best:.2f}" if (best := _best(suite, case)) else "–"]
        row += [_ratio(case, suite.PRICE, TOTAL, inverse=True)] if suite.PRICE else []
        rows.append(row + [f"{1 / case['expected'][peer]:.3f}" for peer in expected])
    means = [_mean(_medians(cases, peer, phase)) for peer, phase in columns]
    means += [_mean([best for case in cases if (best := _best(suite, case))])]
    if suite.PRICE:
        means += [_mean([1 / ratio for ratio in _medians(cases, suite.PRICE, TOTAL)])]
    rows.append(["geometric mean", "", *_ceiling(suite, ""), *means, *("" for _ in expected)])
    notes = dict.fromkeys(f"{k}: {v}" for case in cases for k, v in case["notes"].items())
    missing = dict.fromkeys(
        f"{k} missing: {v}" for case in cases for k, v in case["missing"].items()
    )
    rounds = sorted({case["rounds"] for case in cases})
    remarks = [f"Rounds: {', '.join(map(str, rounds))}", *notes, _errors(suite, cases), *missing]
    return f"{_markdown(header, rows)}\n\n{'; '.join(remarks)}."


def _errors(suite, cases):
    what = getattr(suite, "ERROR", "relative error against float64")
    worst = {}
    for case in cases:
        for name, errors in case["errors"].items():
            worst[name] = max(worst.get(name, 0), *errors.values())
    texts = (f"{name} {error:.1g}" for name, error in worst.items())
    return f"largest {what}: {', '.join(texts)}"


def _best(suite, case):
    """The smallest ratio to a peer that computes the same function, None if there is none."""
    ratios = case["ratios"].items()
    return min((r[TOTAL]["median"] for peer, r in ratios if peer != suite.PRICE), default=None)


def _ceiling(suite, cell):
    """The cell of a column that suites without a ceiling do not have."""
    return [cell] if suite.CEILING else []


def _ratio(case, peer, phase, inverse=False):
    if peer not in case["ratios"]:
        return "missing" if peer in case["missing"] else "–"
    median, low, high = (case["ratios"][peer][phase][key] for key in ("median", "low", "high"))
    if inverse:
        median, low, high = 1 / median, high and 1 / high, low and 1 / low
    return f"{median:.2f}" + (f" [{low:.2f}, {high:.2f}]" if low else "")


def _medians(cases, peer, phase):
    return [case["ratios"][peer][phase]["median"] for case in cases if peer in case["ratios"]]


def _mean(values):
    return f"**{statistics.geometric_mean(values):.2f}**" if values else "missing"


def _memory(suite, rows):
    """MiB of every contender, and the subject's multiple of the price contender."""
    names = list(dict.fromkeys(itertools.chain.from_iterable(row["peaks"] for row in rows)))
    header = [suite.ROW, *(f"{name} [MiB]" for name in names)]
    header += [f"{suite.SUBJECT} / {suite.PRICE}"] if suite.PRICE else []
    lines = []
    for row in rows:
        peaks = row["peaks"]
        cells = [f"{peaks[name] / 2**20:.0f}" if name in peaks else "–" for name in names]
        if suite.PRICE:
            cells.append(f"{peaks[suite.SUBJECT] / max(peaks[suite.PRICE], 1):.2f}")
        lines.append([row["key"][suite.ROW], *cells])
    return _markdown(header, lines)


def _markdown(header, rows):
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
