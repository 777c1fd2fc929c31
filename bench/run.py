"""`python bench/run.py --suite B1`: measures a suite and writes results, tables and plots.

Results of a machine go to `bench/results/<machine>/<suite>.json`; a later run on the same machine
and versions replaces the cases that it measures and keeps the others. `docs/benchmarks.md` is
rendered from the results of all machines. With `--compare STORED.json` the exit status is 2 if a
ratio has fallen by more than 10 % against those stored there.
"""

import argparse
import importlib
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path

_BENCH = Path(__file__).resolve().parent
sys.path.insert(0, str(_BENCH.parent / "python"))

import comparison  # noqa: E402
import machine  # noqa: E402
import memory  # noqa: E402
import page  # noqa: E402
import torch  # noqa: E402
from harness import CEILINGS, SAMPLE_SECONDS, TOTAL, GateError, run_case  # noqa: E402
from kktorch._files import write_text  # noqa: E402


def main(argv: list[str] | None = None) -> int:
    arguments = _parse(argv)
    suite = importlib.import_module(f"suites.{arguments.suite.lower()}")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    here = machine.describe()
    for name, value in here.items():
        print(f"{name:18} {value}")
    root = arguments.out or _BENCH / "results"
    store = root / machine.slug(here) / f"{suite.NAME}.json"
    result = _stored(store, here)
    # Read first: it may be the file that is written below.
    earlier = json.loads(arguments.compare.read_text())["cases"] if arguments.compare else []
    measured = []
    measure = _measure_memory if arguments.memory else _measure_time
    try:
        # Stored after every row: a run that is cut short keeps its part.
        for row in measure(suite, arguments, result):
            measured.append(row)
            write_text(store, json.dumps(result, indent=1) + "\n")
    except (GateError, RuntimeError, ValueError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    everywhere = [
        (path.parent, json.loads(path.read_text()))
        for path in sorted(root.glob(f"*/{suite.NAME}.json"))
    ]
    everywhere.sort(key=lambda result: -len(result[1]["cases"]))  # the fullest table first
    document = root / "benchmarks.md" if arguments.out else _BENCH.parent / "docs/benchmarks.md"
    page.update(document, suite, everywhere)
    print(f"wrote {store} and {document}")
    slower = comparison.fallen(measured, earlier) if earlier else []
    for line in slower:
        print(f"bench: slower: {line}", file=sys.stderr)
    return 2 if slower else 0


def _parse(argv):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    suites = sorted(path.stem.upper() for path in (_BENCH / "suites").glob("*.py"))
    parser.add_argument("--suite", required=True, choices=suites)
    comma = {"type": lambda text: text.split(","), "metavar": "A,B"}
    parser.add_argument("--shapes", **comma, help="default: those of the suite")
    parser.add_argument("--dtype", **comma, help="default: all of the suite")
    parser.add_argument("--variants", **comma, help="default: all of the suite")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument(
        "--case-seconds",
        type=float,
        default=300,
        help="a case that takes longer runs fewer rounds, at least 6",
    )
    parser.add_argument("--threads", type=int, help="default: as torch chooses")
    parser.add_argument("--memory", action="store_true", help="peak memory instead of time")
    parser.add_argument("--compare", type=Path, metavar="STORED.json", help="an earlier result")
    parser.add_argument("--quick", action="store_true", help="tiny shapes: shows that all works")
    parser.add_argument("--out", type=Path, help="folder for results and page; default: the tree's")
    arguments = parser.parse_args(argv)
    if arguments.quick and not arguments.out:
        parser.error("--quick measures nothing worth keeping: it needs --out")
    if arguments.memory and arguments.compare:
        parser.error("--compare is about times: it excludes --memory")
    return arguments


def _stored(store: Path, here: dict) -> dict:
    """What an earlier run left, if it was made by the same machine and software."""
    if store.is_file() and (earlier := json.loads(store.read_text()))["machine"] == here:
        return earlier
    return {"machine": here, "peaks": {}, "cases": [], "memory": []}


def _measure_memory(suite, arguments, result) -> Iterator[dict]:
    """Adds or replaces the peak memory of the chosen cases; yields after every case."""
    rows = {tuple(row["key"].values()): row for row in result["memory"]}
    for key in _keys(suite, arguments):
        # A compiler's own memory would be in the peak of what it compiles.
        peers = (name for name in suite.peers(key[0], key[2]) if not name.startswith("compile("))
        peaks = {
            name: memory.peak_bytes(suite.NAME, name, key, torch.get_num_threads())
            for name in (suite.SUBJECT, *peers)
        }
        row = {"key": dict(zip(("shape", "dtype", "variant"), key, strict=True)), "peaks": peaks}
        rows[key] = row
        result["memory"] = list(rows.values())
        peaks_text = ", ".join(f"{name} {peak / 2**20:.0f} MiB" for name, peak in peaks.items())
        print(f"{' '.join(key):40} {peaks_text}", flush=True)
        yield row


def _measure_time(suite, arguments, result) -> Iterator[dict]:
    """Adds or replaces the chosen cases in ``result``; yields after every case."""
    keys = _keys(suite, arguments)
    peaks = dict.fromkeys((dtype for _, dtype, _ in keys), math.inf)
    if suite.CEILING:  # a suite whose work is not known beforehand has none
        peaks = {name: CEILINGS[suite.CEILING](suite.DTYPES[name]) for name in peaks}
        result["peaks"] |= peaks
    minutes = _estimate(suite, keys, arguments, peaks) / 60
    print(f"{len(keys)} cases, about {math.ceil(minutes)} min", flush=True)
    rows = {tuple(row["key"].values()): row for row in result["cases"]}
    for key in keys:
        row = run_case(suite.case(*key), arguments.rounds, arguments.case_seconds, peaks[key[1]])
        rows[key] = row
        result["cases"] = list(rows.values())
        _print(suite, row)
        yield row


def _keys(suite, arguments) -> list[tuple[str, str, str]]:
    """Shape, dtype and variant of the chosen cases."""
    dtypes = _chosen("--dtype", arguments.dtype, suite.DTYPES)
    variants = _chosen("--variants", arguments.variants, suite.VARIANTS)
    return [
        (shape, dtype, variant)
        for dtype in dtypes
        for variant in variants
        for shape in arguments.shapes or suite.shapes(variant, arguments.quick)
    ]


def _estimate(suite, keys, arguments, peaks: dict[str, float]) -> float:
    """Seconds of a run, as on a machine where every contender reaches half of the ceiling."""
    compilation, other = 30, 2  # seconds per compiled contender, and per case for gate and inputs
    seconds = 0.0
    for shape, dtype, variant in keys:
        peers = suite.peers(shape, variant)
        step = sum(suite.work(shape, variant).values()) / (0.5 * peaks[dtype])
        # The warm-up takes some more rounds, and a round of short steps a minimum of time.
        samples = (1 + len(peers)) * arguments.rounds * max(step, SAMPLE_SECONDS)
        seconds += min(arguments.case_seconds, samples)
        seconds += 5 * (1 + len(peers)) * step + other
        seconds += compilation * sum(name.startswith("compile(") for name in peers)
    return seconds


def _chosen(option, names, known) -> list[str]:
    for name in names or ():
        if name not in known:
            raise ValueError(f"{option}: expected some of {', '.join(known)}, but got '{name}'")
    return names or list(known)


def _print(suite, row) -> None:
    seconds = row["seconds"][suite.SUBJECT][TOTAL]
    ratios = ", ".join(f"{name} {r[TOTAL]['median']:.2f}" for name, r in row["ratios"].items())
    missing = "".join(f"; {name} missing: {why}" for name, why in row["missing"].items())
    key = " ".join(row["key"].values())
    print(f"{key:40} {1e3 * seconds:9.3g} ms   {ratios}{missing}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
