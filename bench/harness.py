"""Measuring: implementations of one computation, interleaved in one process, compared in pairs.

Knows nothing about suites. A contender is a sequence of phases, for example forward and backward;
every round runs every contender once (A B C A B C …, starting one further each round), so that a
slow moment of the machine hits all of them, and ratios are taken within a round.
"""

import gc
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

TOTAL = "total"  # all phases of a step
SAMPLE_SECONDS = 0.02  # a shorter step is repeated within a round until it fills this time
_FEWEST_ROUNDS = 6  # fewer give no 95 % interval


@dataclass(frozen=True)
class Contender:
    """One implementation: phases in order, each called with what the one before returned. Where a
    step does a ``share`` of the work of the others, its times are divided by it."""

    name: str
    phases: dict[str, Callable[[Any], Any]]
    share: float = 1.0

    def step(self) -> dict[str, float]:
        """Runs every phase once; returns the seconds of each, and of all."""
        state, seconds = None, {}
        for name, phase in self.phases.items():
            start = time.perf_counter()
            state = phase(state)
            seconds[name] = time.perf_counter() - start
        return seconds | {TOTAL: sum(seconds.values())}


@dataclass(frozen=True)
class Case:
    """One row of a suite: what is compared, on which input."""

    key: dict[str, str]  # what identifies the row, for example shape, dtype and variant
    subject: Contender
    peers: list[Contender]
    check: Callable[[list[Contender]], dict]  # the gate: errors of each, or GateError
    work: dict[str, float]  # per phase, in the unit of the ceiling: FLOP or bytes
    notes: dict[str, str] = field(default_factory=dict)
    # Seconds without work before every contender: threads of other libraries spin after theirs.
    rest: float = 0.0
    # Peer -> its time over the subject's, if time followed the number of operations.
    expected: dict[str, float] = field(default_factory=dict)


class GateError(Exception):
    """The subject computes something else: there is nothing to time."""


def run_case(case: Case, rounds: int, limit: float, peak: float) -> dict:
    """Gate first, then ``rounds`` rounds, fewer where they would take more than ``limit`` seconds
    (at least 6). ``peak`` is the ceiling in work per second.

    Returns:
        Medians of seconds per contender and phase; per peer and phase the median of the paired
        ratios peer / subject with its 95 % interval; the subject's percentage of the ceiling.

    Raises:
        GateError: the subject is wrong.
    """
    missing, runnable = {}, []
    for peer in case.peers:
        try:
            peer.step()
            runnable.append(peer)
        except Exception as error:  # a peer that cannot run here is named in the table
            missing[peer.name] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    errors = case.check([case.subject, *runnable])
    samples = measure([case.subject, *runnable], rounds, limit, case.rest)
    ours = samples[case.subject.name]
    seconds = {
        name: {phase: _short(statistics.median(values)) for phase, values in phases.items()}
        for name, phases in samples.items()
    }
    work = case.work | {TOTAL: sum(case.work.values())}
    return {
        "key": case.key,
        "notes": case.notes,
        "rounds": len(ours[TOTAL]),
        "errors": errors,
        "seconds": seconds,
        "ratios": {
            peer.name: {
                phase: paired_ratio(samples[peer.name][phase], ours[phase]) for phase in ours
            }
            for peer in runnable
        },
        "peak_percent": {
            phase: _short(100 * work[phase] / time_taken / peak)
            for phase, time_taken in seconds[case.subject.name].items()
        },
        "expected": {name: _short(ratio) for name, ratio in case.expected.items()},
        "missing": missing,
    }


def measure(
    contenders: list[Contender], rounds: int, limit: float, rest: float = 0.0
) -> dict[str, dict[str, list[float]]]:
    """Seconds per contender and phase, one value per round; ``rest`` seconds before each."""
    repeats, round_seconds = {}, 0.0
    for contender in contenders:
        time.sleep(rest)
        seconds = contender.step()[TOTAL]  # warm: code paths, compilation, caches
        if seconds < 1:
            seconds = min(contender.step()[TOTAL] for _ in range(2))
        repeats[contender.name] = max(1, min(1000, math.ceil(SAMPLE_SECONDS / seconds)))
        round_seconds += repeats[contender.name] * seconds + rest
    rounds = min(rounds, max(_FEWEST_ROUNDS, int(limit / round_seconds)))
    samples = {contender.name: {} for contender in contenders}
    gc.collect()
    gc.disable()
    try:
        for round_number in range(rounds):
            first = round_number % len(contenders)
            for contender in contenders[first:] + contenders[:first]:
                time.sleep(rest)
                steps = [contender.step() for _ in range(repeats[contender.name])]
                for phase in steps[0]:
                    mean = sum(step[phase] for step in steps) / len(steps) / contender.share
                    samples[contender.name].setdefault(phase, []).append(mean)
    finally:
        gc.enable()
    return samples


def paired_ratio(numerator: list[float], denominator: list[float]) -> dict[str, float | None]:
    """Median of the ratios within rounds, with a distribution-free 95 % interval.

    The interval ends at order statistics: with n ratios, the k-th smallest and the k-th largest
    hold the median with probability 1 - 2 P[Binomial(n, 1/2) < k]; k is the largest that gives
    95 %. Fewer than 6 rounds give no such interval: low and high are None.
    """
    ratios = sorted(a / b for a, b in zip(numerator, denominator, strict=True))
    n = len(ratios)
    k = next(k for k in range(n + 1) if sum(math.comb(n, i) for i in range(k + 1)) > 0.025 * 2**n)
    low, high = (_short(ratios[k - 1]), _short(ratios[n - k])) if k else (None, None)
    return {"median": _short(statistics.median(ratios)), "low": low, "high": high}


def fma_peak(dtype: torch.dtype) -> float:
    """The ceiling in FLOP/s: the best rate of a large matrix product in ``dtype``."""
    best = 0.0
    for size in (1024, 2048, 3072):
        a, b = torch.randn(2, size, size, dtype=torch.float32).to(dtype)
        best = max(best, _best_rate(lambda _, a=a, b=b: a @ b, 2 * size**3))
    return best


def read_bandwidth(dtype: torch.dtype) -> float:
    """The ceiling in bytes/s: the best rate at which 512 MiB of float32 are summed, or multiplied
    as a matrix with a vector, by all threads. Of memory, whatever ``dtype`` lies there."""
    matrix = torch.ones(2**13, 2**14)
    vector, size = torch.ones(2**14), 4 * 2**27
    return max(
        _best_rate(lambda _: matrix.sum(), size), _best_rate(lambda _: matrix @ vector, size)
    )


CEILINGS = {"FLOP/s": fma_peak, "B/s": read_bandwidth}


def _best_rate(function: Callable[[Any], Any], work: float) -> float:
    contender = Contender("ceiling", {TOTAL: function})
    return max(work / contender.step()[TOTAL] for _ in range(6))


def _short(value: float) -> float:
    return float(f"{value:.4g}")
