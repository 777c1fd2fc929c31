"""Whole experiments as `kktorch reproduce --preset quick` runs them, process start, tables and
files included, against scripts written from the formulas in PyTorch and cvxpy (bench/peers), in
this process with everything loaded. Of attention SVMs, `local_converge` has the 100 seeds of the
paper with both parametrisations and four SVMs each; the script, which takes one seed after the
other, runs 5 of them in every round, others each time, and its time counts 20 times. `svm_rank` has
the 800 instances of n = T = 5. Both sides draw the same data, and their means must agree, for
`local_converge` on 5 seeds. The remarks say how long the program takes to start. `e1` of shallow
transformers measures errors of linearisation for 8 to 1024 heads; each side draws its own data, and
the logarithms of their means must agree to the spread of four trials.
"""

import itertools
import json
import math
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import kktorch
import torch
from harness import TOTAL, Case, Contender, GateError
from peers import attention_svm_experiments, shallow_linearisation

NAME = "B9"
TITLE = "B9: whole experiments"
SUBJECT = "kktorch"
MAIN_PEER = "PyTorch + cvxpy"
PRICE = None
GROUPS = ["dtype", "variant"]
ROW = "shape"
CEILING = None
ERROR = "difference of means"
PLOTS = []
DTYPES = {"float64": torch.float64}
VARIANTS = {"quick": "quick"}
_PAPERS = {"local_converge": "attention-svm", "svm_rank": "attention-svm", "e1": "shallow"}
_SEEDS, _PER_ROUND = 100, 5  # of local_converge: of ours, and of the script in a round
_SCRIPTS = {  # of a number of seeds from a first one on
    "local_converge": lambda first: attention_svm_experiments.local_converge(
        range(first, first + _PER_ROUND)
    ),
    "svm_rank": lambda first: attention_svm_experiments.svm_rank(100),
    "e1": lambda first: _log_means(
        shallow_linearisation.e1(4, [2**i for i in range(3, 11)], 500, 16, 8, 3.0, 8, 50)
    ),
}
# Of a mean: the peer's solvers are not exact, and call some nearly infeasible problems infeasible;
# of e1, three standard deviations of a difference between the means of four trials.
_ALLOWED = {"local_converge": 0.005, "svm_rank": 0.1, "e1": 0.5}
_POINTS = {"aligned": "aligned, sup", "ascent": "ascent from aligned, sup", "random": "random, sup"}


def shapes(variant: str, quick: bool) -> list[str]:
    return list(_PAPERS)


def peers(shape: str, variant: str) -> list[str]:
    return [MAIN_PEER]


def work(shape: str, variant: str) -> dict[str, float]:
    return {TOTAL: 0.0}


def case(shape: str, dtype: str, variant: str) -> Case:
    shared = shape == "local_converge"
    share = _PER_ROUND / _SEEDS if shared else 1.0
    last, notes, firsts = {}, {}, itertools.cycle(range(0, _SEEDS, _PER_ROUND))

    def ours(_):
        last[SUBJECT] = _means(shape, _run(shape, variant, _SEEDS if shared else None))

    def script(_):
        last["first"] = next(firsts)
        last[MAIN_PEER] = _SCRIPTS[shape](last["first"])

    def check(contenders):
        for each in contenders:
            if each.name not in last:
                each.phases[TOTAL](None)
        notes[f"{SUBJECT} at {shape}"] = f"{_start():.2f} s of it start the program"
        if MAIN_PEER not in last:
            return {SUBJECT: {"means": 0.0}}
        found = last[SUBJECT]
        if shared:
            found = _means(shape, _run(shape, variant, _PER_ROUND, last["first"]))
        worst = max(abs(found[key] - value) for key, value in last[MAIN_PEER].items())
        if not worst <= _ALLOWED[shape]:
            raise GateError(f"{shape}: expected the same means, but got {found} and {last}")
        return {SUBJECT: {"means": worst}}

    return Case(
        key={"shape": shape, "dtype": dtype, "variant": variant},
        subject=Contender(SUBJECT, {TOTAL: ours}),
        peers=[Contender(MAIN_PEER, {TOTAL: script}, share)],
        check=check,
        work=work(shape, variant),
        notes=notes,
    )


def _program() -> Path:
    build = os.environ.get("KKTORCH_BUILD_DIR") or kktorch.library_path.parents[1]
    return Path(os.environ.get("KKTORCH_PROGRAM") or Path(build) / "bin/kktorch")


def _start() -> float:
    """Median of the seconds that the program takes to print its version."""
    seconds = []
    for _ in range(5):
        begin = time.perf_counter()
        subprocess.run([_program(), "--version"], capture_output=True, check=True)
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


def _run(name: str, preset: str, seeds: int | None = None, first: int = 0) -> dict:
    """result.json of the program."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [_program(), "reproduce", _PAPERS[name], "--experiment", name, "--out", out]
        command += ["--preset", preset, "--threads", torch.get_num_threads()]
        if seeds is not None:
            command += ["--set", f"seeds={seeds}", "--seed", first + 1]  # seed s draws data s - 1
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{name}: {done.stderr.strip()}")
        return json.loads((out / "result.json").read_text())


def _means(name: str, result: dict) -> dict[str, float]:
    """The numbers that the peer computes too."""
    table = result["tables"][0]
    columns = table["columns"]
    if name == "e1":
        rows = {row[0]: [cell["value"] for cell in row[1:]] for row in table["rows"]}
        return _log_means({point: rows[title] for point, title in _POINTS.items()})
    if name == "svm_rank":
        legacy = dict(zip(columns, table["rows"][0], strict=True))
        return {width: legacy[width]["value"] for width in columns[1:]}
    at_the_end = {row[0]: dict(zip(columns, row, strict=True)) for row in table["rows"]}
    return {
        "W": at_the_end["cos(W, Wmm)"]["W"]["value"],
        "(K, Q)": at_the_end["cos(W, Wmm*)"]["(K, Q)"]["value"],
    }


def _log_means(means: dict[str, list[float]]) -> dict[str, float]:
    """By point and place in the list of numbers of heads."""
    return {
        f"{point} {i}": math.log(mean) for point in _POINTS for i, mean in enumerate(means[point])
    }
