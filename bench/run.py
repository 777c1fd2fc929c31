"""`python bench/run.py --suite B1`: measures a suite and writes results, tables and plots.

Results of a machine go to `bench/results/<machine>/<suite>.json`; a later run on the same machine
and versions replaces the cases that it measures and keeps the others. `docs/benchmarks.md` is
rendered from the results of all machines.
"""

import argparse
import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

_BENCH = Path(__file__).resolve().parent
sys.path.insert(0, str(_BENCH.parent / "python"))

import machine  # noqa: E402
import memory  # noqa: E402
import page  # noqa: E402
import torch  # noqa: E402
from harness import TOTAL, GateError, fma_peak, run_case  # noqa: E402
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
    measure = _measure_memory if arguments.memory else _measure_time
    try:
        # Stored after every row: a run that is cut short keeps its part.
        for _ in measure(suite, arguments, result):
            write_text(store, json.dumps(result, indent=1) + "\n")
    except (GateError, RuntimeError, ValueError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    everywhere = [
        (path.parent, json.loads(path.read_text()))
        for path in sorted(root.glob(f"*/{suite.NAME}.json"))
    ]
    document = root / "benchmarks.md" if arguments.out else _BENCH.parent / "docs/benchmarks.md"
    page.update(document, suite, everywhere)
    print(f"wrote {store} and {document}")
    return 0


def _parse(argv):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    suites = sorted(path.stem.upper() for path in (_BENCH / "suites").glob("b*.py"))
    parser.add_argument("--suite", required=True, choices=suites)
    comma = {"type": lambda text: text.split(","), "metavar": "A,B"}
    parser.add_argument("--shapes", **comma, help="default: those of the suite")
    parser.add_argument("--dtype", **comma, help="default: all of the suite")
    parser.add_argument("--variants", **comma, help="default: all of the suite")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, help="default: as torch chooses")
    parser.add_argument("--memory", action="store_true", help="peak memory instead of time")
    parser.add_argument("--quick", action="store_true", help="tiny shapes: shows that all works")
    parser.add_argument("--out", type=Path, help="folder for results and page; default: the tree's")
    arguments = parser.parse_args(argv)
    if arguments.quick and not arguments.out:
        parser.error("--quick measures nothing worth keeping: it needs --out")
    return arguments


def _stored(store: Path, here: dict) -> dict:
    """What an earlier run left, if it was made by the same machine and software."""
    if store.is_file() and (earlier := json.loads(store.read_text()))["machine"] == here:
        return earlier
    return {"machine": here, "peaks": {}, "cases": [], "memory": {}}


def _measure_memory(suite, arguments, result) -> Iterator[None]:
    """Adds peak memory per shape and contender to ``result``; yields after every shape."""
    shapes = suite.QUICK_MEMORY_SHAPES if arguments.quick else suite.MEMORY_SHAPES
    for shape in arguments.shapes or shapes:
        peaks = {
            name: memory.peak_bytes(suite.NAME, name, shape, torch.get_num_threads())
            for name in suite.MEMORY_CONTENDERS
        }
        result["memory"][shape] = peaks
        print(shape, ", ".join(f"{name} {peak / 2**20:.0f} MiB" for name, peak in peaks.items()))
        yield


def _measure_time(suite, arguments, result) -> Iterator[None]:
    """Adds or replaces the chosen cases in ``result``; yields after every case."""
    shapes = arguments.shapes or (suite.QUICK_SHAPES if arguments.quick else suite.SHAPES)
    dtypes = _chosen("--dtype", arguments.dtype, suite.DTYPES)
    variants = _chosen("--variants", arguments.variants, suite.VARIANTS)
    result["peaks"] |= {name: fma_peak(suite.DTYPES[name]) for name in dtypes}
    rows = {tuple(row["key"].values()): row for row in result["cases"]}
    for case in suite.cases(shapes, dtypes, variants):
        row = run_case(case, arguments.rounds, result["peaks"][case.key["dtype"]])
        rows[tuple(case.key.values())] = row
        result["cases"] = list(rows.values())
        _print(suite, row)
        yield


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
