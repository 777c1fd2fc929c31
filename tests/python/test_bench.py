"""The benchmark harness: what it computes from times, its gate, its page. No speed is asserted."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))

import harness  # noqa: E402
import memory  # noqa: E402
import page  # noqa: E402
import run  # noqa: E402
from suites import b1  # noqa: E402

SHAPE = "2x3x17x8"


def test_interval_ends_at_order_statistics_of_the_paired_ratios():
    numerator = [float(n) for n in range(20, 0, -1)]  # ratios 1..20; 95 % interval: 6th to 15th
    assert harness.paired_ratio(numerator, [1.0] * 20) == {"median": 10.5, "low": 6, "high": 15}
    assert harness.paired_ratio([2.0, 9.0, 4.0], [1.0, 3.0, 2.0])["median"] == 2, "within rounds"
    assert harness.paired_ratio([1.0] * 5, [1.0] * 5) == {"median": 1, "low": None, "high": None}
    assert harness.paired_ratio([1.0] * 6, [1.0] * 6) == {"median": 1, "low": 1, "high": 1}


class Clock:
    """Replaces time.perf_counter: phases advance it, so that their seconds are known."""

    def __init__(self, monkeypatch):
        self.now, self.log = 0.0, []
        monkeypatch.setattr(harness.time, "perf_counter", lambda: self.now)

    def contender(self, name, **seconds):
        def phase(phase_name, duration):
            def work(state):
                self.log.append(name)
                self.now += duration
                return (*(state or ()), phase_name)

            return work

        phases = {key: phase(key, value) for key, value in seconds.items()}
        return harness.Contender(name, phases)


def make_case(subject, peers, check=lambda contenders: {}):
    key = {"shape": "1", "dtype": "float32", "variant": "std"}
    return harness.Case(key, subject, peers, check, flops={"forward": 2e9, "backward": 6e9})


def test_rounds_are_interleaved_and_start_one_further_each_time(monkeypatch):
    clock = Clock(monkeypatch)
    contenders = [clock.contender(name, forward=1.0) for name in "ABC"]
    samples = harness.measure(contenders, rounds=4)
    assert "".join(clock.log[-12:]) == "ABC" + "BCA" + "CAB" + "ABC"
    assert samples["A"] == {"forward": [1.0] * 4, harness.TOTAL: [1.0] * 4}


def test_case_reports_seconds_ratios_and_share_of_the_ceiling(monkeypatch):
    clock = Clock(monkeypatch)
    subject = clock.contender("ours", forward=1.0, backward=3.0)
    peer = clock.contender("peer", forward=2.0, backward=4.0)

    def fail(_):
        raise RuntimeError("no compiler\nat all")

    broken = harness.Contender("broken", {"forward": fail})
    row = harness.run_case(make_case(subject, [broken, peer]), rounds=6, peak=4e9)
    assert row["seconds"]["ours"] == {"forward": 1, "backward": 3, "total": 4}
    medians = {phase: ratio["median"] for phase, ratio in row["ratios"]["peer"].items()}
    assert medians == {"forward": 2, "backward": 1.333, "total": 1.5}
    assert row["peak_percent"] == {"forward": 50, "backward": 50, "total": 50}
    assert row["missing"] == {"broken": "RuntimeError: no compiler"}


def test_nothing_is_timed_behind_a_failed_gate(monkeypatch):
    clock = Clock(monkeypatch)

    def check(contenders):
        raise harness.GateError("wrong")

    with pytest.raises(harness.GateError):
        harness.run_case(make_case(clock.contender("ours", forward=1.0), [], check), 6, 1e9)
    assert clock.log == []


@pytest.mark.parametrize("variant", b1.VARIANTS)
@pytest.mark.parametrize("dtype", b1.DTYPES)
def test_b1_gate_passes_for_the_op_and_refuses_another_function(monkeypatch, dtype, variant):
    monkeypatch.setattr(torch, "compile", lambda function, dynamic: function)
    (case,) = b1.cases([SHAPE], [dtype], [variant])
    contenders = [case.subject, *case.peers]
    errors = case.check(contenders)
    tensors = {"out", "q", "k", "v"} | ({"beta"} if variant == "learned-beta" else set())
    assert set(errors) == {peer.name for peer in contenders} - {b1.PRICE}
    assert all(set(error) == tensors for error in errors.values())
    # Half the strength of beta: close to Attention-BN, and wrong.
    wrong = lambda q, k, v, beta, use_std: b1._fold_sdpa(q, k, v, 0.5 * beta, use_std)  # noqa: E731
    monkeypatch.setattr(b1, "_kktorch", wrong)
    (case,) = b1.cases([SHAPE], [dtype], [variant])
    with pytest.raises(harness.GateError, match="kktorch, .* expected an error of out <= .*"):
        case.check([case.subject, *case.peers])


@pytest.mark.parametrize("variant", b1.VARIANTS)
def test_b1_peers_compute_one_function(variant):
    use_std, learned = b1.VARIANTS[variant]
    inputs = b1._inputs(SHAPE, torch.float64, learned)
    expected = b1._exact(inputs, use_std)
    for function in (b1._literal, b1._fold_sdpa, b1._kktorch):
        contender = b1._contender("peer", function, inputs, use_std)
        out = contender.phases["forward"](None)
        gradients = contender.phases["backward"](out)
        torch.testing.assert_close([out, *gradients], list(expected.values()))


@pytest.fixture
def no_compiler(monkeypatch):
    """torch.compile fails, and the ceiling is known without measuring it."""

    def compile(function, dynamic):
        def fail(*_):
            raise RuntimeError("no compiler")

        return fail

    monkeypatch.setattr(torch, "compile", compile)
    monkeypatch.setattr(run, "fma_peak", lambda dtype: 1e9)


def bench(out, *options):
    tiny = ["--quick", "--rounds", "6", "--threads", "1", "--dtype", "float32"]
    return run.main(["--suite", "B1", *tiny, "--out", str(out), *options])


def test_run_stores_results_and_renders_the_page(no_compiler, tmp_path):
    assert bench(tmp_path, "--shapes", SHAPE, "--variants", "std,no-std") == 0
    (store,) = tmp_path.glob("*-1t/B1.json")
    result = json.loads(store.read_text())
    assert [case["key"]["variant"] for case in result["cases"]] == ["std", "no-std"]
    assert result["machine"]["torch"] == torch.__version__
    text = (tmp_path / "benchmarks.md").read_text()
    assert text.count(f"| {SHAPE} |") == 2 and "#### float32, no-std" in text
    assert "compile(literal) missing: RuntimeError: no compiler" in text
    assert f"]({store.parent.name}/B1.svg)" in text and store.with_name("B1.svg").is_file()
    times = result["cases"][0]["seconds"]["kktorch"]
    assert " / ".join(f"{1e3 * times[phase]:.3g}" for phase in times) in text


def test_a_later_run_replaces_its_cases_and_keeps_the_others(no_compiler, tmp_path, monkeypatch):
    assert bench(tmp_path, "--shapes", f"{SHAPE},1x1x4x4", "--variants", "std") == 0
    (tmp_path / "benchmarks.md").write_text(
        "before\n" + (tmp_path / "benchmarks.md").read_text() + "after\n"
    )
    monkeypatch.setattr(run, "run_case", lambda *a: harness.run_case(*a) | {"rounds": 99})
    assert bench(tmp_path, "--shapes", SHAPE, "--variants", "std") == 0
    (store,) = tmp_path.glob("*-1t/B1.json")
    cases = json.loads(store.read_text())["cases"]
    assert [(case["key"]["shape"], case["rounds"]) for case in cases] == [
        (SHAPE, 99),
        ("1x1x4x4", 6),
    ]
    text = (tmp_path / "benchmarks.md").read_text()
    assert text.startswith("before\n# Benchmarks") and text.endswith("<!-- /B1 -->\nafter\n")
    assert text.count("<!-- B1 -->") == 1 and "Rounds: 6, 99" in text


def test_a_wrong_op_ends_the_run_without_a_result(no_compiler, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(b1, "_kktorch", b1._sdpa)
    assert bench(tmp_path, "--shapes", SHAPE) == 1
    assert "bench: kktorch, [2, 3, 17, 8]" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "option, value, message",
    [
        ("--shapes", "1x2x3", "B1: expected a shape like 64x3x197x64, but got '1x2x3'"),
        ("--variants", "std,none", "--variants: expected some of std, .*, but got 'none'"),
    ],
)
def test_bad_choices_are_named(no_compiler, tmp_path, capsys, option, value, message):
    assert bench(tmp_path, option, value) == 1
    assert re.search(message, capsys.readouterr().err)


def test_quick_results_cannot_reach_the_repository(capsys):
    with pytest.raises(SystemExit):
        run.main(["--suite", "B1", "--quick"])
    assert "--quick measures nothing worth keeping: it needs --out" in capsys.readouterr().err


def test_peak_memory_holds_the_results_and_no_attention_matrix():
    peak = memory.peak_bytes("B1", "kktorch", "1x4x4096x32", threads=1)
    one_tensor, matrices = 4 * 4096 * 32 * 4, 4 * 4096**2 * 4
    assert 4 * one_tensor <= peak < matrices / 4, "output and three gradients; not H x T x T"


def test_memory_table(tmp_path):
    result = {"machine": {"cpu": "X", "threads": "1"}, "peaks": {}, "cases": []}
    peaks = {"kktorch": 3 * 2**20, "fold + SDPA": 4 * 2**20, "SDPA": 2 * 2**20}
    page.update(tmp_path / "page.md", b1, [(tmp_path, result | {"memory": {SHAPE: peaks}})])
    assert f"| {SHAPE} | 3 | 4 | 2 | 1.50 |" in (tmp_path / "page.md").read_text()


def test_memory_of_an_unknown_contender_fails_with_its_reason():
    with pytest.raises(RuntimeError, match="peak memory of nothing, 1x1x4x4: KeyError: 'nothing'"):
        memory.peak_bytes("B1", "nothing", "1x1x4x4", threads=1)
