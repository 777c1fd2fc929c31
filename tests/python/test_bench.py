"""The benchmark harness: what it computes from times, its gate, its page. No speed is asserted."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))

import attention  # noqa: E402
import attention_svm  # noqa: E402
import comparison  # noqa: E402
import harness  # noqa: E402
import memory  # noqa: E402
import run  # noqa: E402
from suites import b1, b2, b3, b4, b5, b6, b7, b8, b9, decode, e5bn, e5sh, layer  # noqa: E402

SHAPE = "2x3x17x8"
SOLVE = attention_svm.svm.att_svm
SUITES = [b1, b2, b8, decode, e5bn, e5sh, layer]


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny shapes: a second thread only waits for the first, long on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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

    def contender(self, name, share=1.0, **seconds):
        def phase(phase_name, duration):
            def work(state):
                self.log.append(name)
                self.now += duration
                return (*(state or ()), phase_name)

            return work

        phases = {key: phase(key, value) for key, value in seconds.items()}
        return harness.Contender(name, phases, share)


def make_case(subject, peers, check=lambda contenders: {}):
    key = {"shape": "1", "dtype": "float32", "variant": "std"}
    return harness.Case(key, subject, peers, check, work={"forward": 2e9, "backward": 6e9})


def test_rounds_are_interleaved_and_start_one_further_each_time(monkeypatch):
    clock = Clock(monkeypatch)
    contenders = [clock.contender(name, forward=1.0) for name in "ABC"]
    samples = harness.measure(contenders, rounds=4, limit=300)
    assert "".join(clock.log[-12:]) == "ABC" + "BCA" + "CAB" + "ABC"
    assert samples["A"] == {"forward": [1.0] * 4, harness.TOTAL: [1.0] * 4}


def test_a_share_of_the_work_counts_as_all_of_it(monkeypatch):
    clock = Clock(monkeypatch)
    contenders = [clock.contender("A", forward=1.0), clock.contender("B", 0.25, forward=3.0)]
    samples = harness.measure(contenders, rounds=100, limit=30)
    assert samples["B"][harness.TOTAL] == [12.0] * 7, "rounds are limited by the time they take"


def test_case_reports_seconds_ratios_and_share_of_the_ceiling(monkeypatch):
    clock = Clock(monkeypatch)
    subject = clock.contender("ours", forward=1.0, backward=3.0)
    peer = clock.contender("peer", forward=2.0, backward=4.0)

    def fail(_):
        raise RuntimeError("no compiler\nat all")

    broken = harness.Contender("broken", {"forward": fail})
    row = harness.run_case(make_case(subject, [broken, peer]), rounds=6, limit=300, peak=4e9)
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
        harness.run_case(make_case(clock.contender("ours", forward=1.0), [], check), 6, 300, 1e9)
    assert clock.log == []


def test_a_long_case_runs_fewer_rounds_but_enough_for_an_interval(monkeypatch):
    clock = Clock(monkeypatch)
    for seconds, rounds in (1.0, 20), (30.0, 10), (200.0, 6):
        samples = harness.measure([clock.contender("A", forward=seconds)], rounds=20, limit=300)
        assert len(samples["A"]["forward"]) == rounds


@pytest.fixture
def uncompiled(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, dynamic: function)


# Another function in place of the subject, close to it, and wrong: half the strength of beta; the
# first two heads exchange their scales; a new token that does not enter the statistics.
def wrong_b1(q, k, v, beta, problem):
    return b1._fold_sdpa(q, k, v, 0.5 * beta, problem)


def wrong_b2(q, k, v, problem):
    scales = [*problem.scales[1::-1], *problem.scales[2:]]
    return b2._groups(q, k, v, b2.Problem([2 * s for s in scales]))


def wrong_decode(query, key, value, keys, values, mean, m2):
    decode._append(key, value, keys, values)
    folded = (query - mean.unsqueeze(2)) / (m2.unsqueeze(2) / (2 * keys.shape[2]) + 1e-5)
    return torch.nn.functional.scaled_dot_product_attention(folded.to(query.dtype), keys, values)


GATED = [
    *((b1, SHAPE, variant, wrong_b1) for variant in b1.VARIANTS),
    *((b2, SHAPE, variant, wrong_b2) for variant in b2.VARIANTS),
    (decode, SHAPE, "std", wrong_decode),
]


@pytest.mark.parametrize("suite, shape, variant, wrong", GATED)
@pytest.mark.parametrize("dtype", attention.DTYPES)
def test_gate_passes_for_the_op_and_refuses_another_function(
    monkeypatch, uncompiled, suite, shape, variant, wrong, dtype
):
    case = suite.case(shape, dtype, variant)
    contenders = [case.subject, *case.peers]
    errors = case.check(contenders)
    assert set(errors) == {each.name for each in contenders} - {suite.PRICE}
    gradients = {"beta"} if variant == "learned-beta" else set()
    tensors = {"out"} if suite is decode else {"out", "q", "k", "v"} | gradients
    assert all(set(error) == tensors for error in errors.values())
    monkeypatch.setattr(suite, "_kktorch", wrong)
    case = suite.case(shape, dtype, variant)
    with pytest.raises(harness.GateError, match="kktorch, .* expected an error of .* <= .*"):
        case.check([case.subject, *case.peers])


@pytest.mark.parametrize("dtype", layer.DTYPES)
def test_layer_gate_passes_and_refuses_other_scales(monkeypatch, dtype):
    (shape,) = layer.shapes("1", quick=True)
    case = layer.case(shape, dtype, "1-1-2-2-4-4-8-8")
    assert {"out", "x", "in_proj_weight"} < set(case.check([case.subject])["kktorch sh"])
    monkeypatch.setitem(layer.VARIANTS, "wrong", [1, 1, 2, 2, 4, 4, 8, 4])
    wrong = layer.case(shape, dtype, "wrong")
    with pytest.raises(harness.GateError, match="kktorch sh, "):
        case.check([wrong.subject])


@pytest.mark.parametrize("variant", b1.VARIANTS)
def test_b1_peers_compute_one_function(variant):
    problem, tensors, grad = b1.inputs(SHAPE, torch.float64, b1.VARIANTS[variant])
    check_one_function([b1._fold_sdpa, b1._kktorch], b1._literal, problem, tensors, grad)


@pytest.mark.parametrize("variant", b2.VARIANTS)
def test_b2_peers_compute_one_function(variant):
    tensors, grad = attention.draw("2x5x17x8", torch.float64)
    problem = b2.Problem(b2.scales_of("2x5x17x8", variant))
    functions = [b2._groups, b2._heads, b2._padded, b2._kktorch]
    check_one_function(functions, b2._literal, problem, tensors, grad)


def check_one_function(functions, literal, problem, tensors, grad):
    expected = attention.outcome(literal, problem, tensors, grad, torch.float64)
    for function in functions:
        bound = lambda function=function, **t: function(**t, problem=problem)  # noqa: E731
        contender = attention.contender("peer", bound, tensors, grad)
        out = contender.phases["forward"](None)
        gradients = contender.phases["backward"](out)
        torch.testing.assert_close([out, *gradients], list(expected.values()))


def test_beyond_the_longest_literal_the_gate_checks_the_first_sample(monkeypatch):
    monkeypatch.setattr(attention, "LONGEST", 16)
    case = b1.case(SHAPE, "float32", "std")
    literal = lambda *a, **kw: pytest.fail("T x T probabilities")  # noqa: E731
    monkeypatch.setattr(b1, "_literal", literal)
    assert "literal" not in [peer.name for peer in case.peers]
    case.check([case.subject])
    monkeypatch.setattr(b1, "_kktorch", wrong_b1)
    case = b1.case(SHAPE, "float32", "std")
    with pytest.raises(harness.GateError):
        case.check([case.subject])


def test_scales_repeat_over_the_heads_and_say_what_remains():
    assert b2.scales_of("1x3x8x4", "1-2-4-8") == [1, 2, 4]
    assert b2.scales_of("1x6x8x4", "1-2-4-8") == [1, 2, 4, 8, 1, 2]
    assert b2.remaining("1x3x9x4", "1-2-4-8") == (9 + 5 + 3) / 27, "short windows count"
    assert b2.remaining("1x4x8x4", "1") == 1


def test_layer_work_is_that_of_the_cost_model():
    # 1x8x1024x64: N = 1024, d = 512, rho = 15/32; forward 4 N d^2 (1 + rho) + 4 N^2 d rho.
    forward = layer.work("1x8x1024x64", "1-1-2-2-4-4-8-8")["forward"]
    assert forward == 4 * 1024 * 512**2 * (47 / 32) + 4 * 1024**2 * 512 * (15 / 32)
    assert layer.work("1x8x1024x64", "1")["forward"] == 2**32, "8 N d^2 + 4 N^2 d"


@pytest.fixture
def no_compiler(monkeypatch):
    """torch.compile fails, and the ceiling is known without measuring it."""

    def compile(function, dynamic):
        def fail(*_, **__):
            raise RuntimeError("no compiler")

        return fail

    monkeypatch.setattr(torch, "compile", compile)
    for unit in harness.CEILINGS:
        monkeypatch.setitem(harness.CEILINGS, unit, lambda dtype: 1e9)


def bench(out, *options, suite="B1"):
    tiny = ["--quick", "--rounds", "6", "--threads", "1", "--dtype", "float32"]
    return run.main(["--suite", suite, *tiny, "--out", str(out), *options])


def test_run_stores_results_and_renders_the_page(no_compiler, tmp_path):
    assert bench(tmp_path, "--shapes", SHAPE, "--variants", "std,no-std") == 0
    (store,) = tmp_path.glob("*-1t/B1.json")
    result = json.loads(store.read_text())
    assert [case["key"]["variant"] for case in result["cases"]] == ["std", "no-std"]
    assert result["machine"]["torch"] == torch.__version__
    text = (tmp_path / "benchmarks.md").read_text()
    assert text.count(f"| {SHAPE} |") == 2 and "#### float32, no-std" in text
    assert "compile(literal) missing: RuntimeError: no compiler" in text
    for plot in b1.PLOTS:
        assert f"]({store.parent.name}/B1-{plot}.svg)" in text
        assert store.with_name(f"B1-{plot}.svg").is_file()
    times = result["cases"][0]["seconds"]["kktorch"]
    assert " / ".join(f"{1e3 * times[phase]:.3g}" for phase in times) in text


@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.NAME)
def test_every_suite_runs_and_has_its_plots(no_compiler, tmp_path, suite):
    variant = next(iter(suite.VARIANTS))
    assert bench(tmp_path, "--variants", variant, suite=suite.NAME) == 0
    text = (tmp_path / "benchmarks.md").read_text()
    for shape in suite.shapes(variant, quick=True):
        assert f"| {shape} |" in text
    plots = {path.name for path in tmp_path.glob("*-1t/*.svg")}
    assert plots == {f"{suite.NAME}-{plot}.svg" for plot in suite.PLOTS}


@pytest.mark.parametrize("suite", [b3, b4], ids=lambda suite: suite.NAME)
def test_suites_of_convex_attention(no_compiler, tmp_path, suite):
    variants = list(suite.VARIANTS)
    chosen = ["--dtype", *suite.DTYPES, "--variants", f"{variants[0]},{variants[-1]}"]
    assert bench(tmp_path, *chosen, suite=suite.NAME) == 0
    (store,) = tmp_path.glob(f"*-1t/{suite.NAME}.json")
    for case in json.loads(store.read_text())["cases"]:
        named = {*case["ratios"], *case["missing"]}
        assert named == set(suite.peers(case["key"]["shape"], case["key"]["variant"]))
        assert suite.MAIN_PEER in case["ratios"], "it needs torch alone"
    plots = {path.name for path in tmp_path.glob("*-1t/*.svg")}
    assert plots == {f"{suite.NAME}-{plot}.svg" for plot in suite.PLOTS}


def test_gate_of_convex_attention_refuses_a_larger_gap(monkeypatch):
    case = b4.case("40x5x3-2-1", "float64", "entropy 1e-6")
    assert case.check([case.subject])["kktorch"]["gap"] <= 1e-6
    solve = b4.convex.solve
    monkeypatch.setattr(
        b4.convex,
        "solve",
        lambda *inputs, tol_rel, **options: solve(*inputs, max_iter=2, **options),
    )
    with pytest.raises(harness.GateError, match="40x5x3-2-1: expected a gap of 1e-06, but"):
        case.check([case.subject])


@pytest.mark.parametrize("suite", [b5, b6], ids=lambda suite: suite.NAME)
def test_suites_of_attention_svms(tmp_path, suite):
    assert bench(tmp_path, "--dtype", "float64", suite=suite.NAME) == 0
    (store,) = tmp_path.glob(f"*-1t/{suite.NAME}.json")
    for case in json.loads(store.read_text())["cases"]:
        named = {*case["ratios"], *case["missing"]}
        assert named == set(suite.peers(case["key"]["shape"], case["key"]["variant"]))
    text = (tmp_path / "benchmarks.md").read_text()
    assert "ceiling |" not in text and "price" not in text, "neither is known for a solver"


def test_suite_of_the_margin_tracker_and_its_gate(uncompiled, monkeypatch):
    case = b7.case("3x5x16", "float32", "margins")
    errors = case.check([case.subject, *case.peers])
    assert errors["kktorch"]["qmin"] <= 1e-12 and errors["literal"]["qmin"] <= 1e-4
    wrong = harness.Contender("kktorch", {harness.TOTAL: lambda _: [torch.zeros(3)] * 7})
    with pytest.raises(harness.GateError, match="least margins are off by"):
        case.check([wrong])


def test_peer_of_whole_experiments_draws_the_same_data_and_disagreement_is_refused(monkeypatch):
    peer = b9.attention_svm_experiments
    v, labels, tokens, queries = peer.draw(3, 6, 8, 10)
    assert torch.equal(labels.abs(), torch.ones(6).double()) and tokens.shape == (6, 8, 10)
    logged, alpha = peer.descend((v, labels, tokens, queries), peer.weights(3, (10, 10)), 9, 8, 4)
    assert len(logged) == 3 and alpha.shape == (6,)
    assert logged[0][0].abs().max() <= 10**-0.5
    monkeypatch.setattr(b9, "_run", lambda *_: None)
    monkeypatch.setattr(b9, "_start", lambda: 0.5)
    monkeypatch.setattr(b9, "_means", lambda *_: {"5": 4.9})
    for mean, message in (4.95, None), (3.0, "svm_rank: expected the same means"):
        monkeypatch.setattr(peer, "svm_rank", lambda _, mean=mean: {"5": mean})
        case = b9.case("svm_rank", "float64", "quick")
        if message is None:
            assert case.check([case.subject, *case.peers]) == {
                "kktorch": {"means": pytest.approx(0.05)}
            }
            continue
        with pytest.raises(harness.GateError, match=message):
            case.check([case.subject, *case.peers])


def test_gate_of_attention_svms_refuses_a_larger_gap(monkeypatch):
    case = b5.case("6x5x4", "float64", "feasible")
    assert case.check([case.subject])["kktorch"]["gap"] <= 1e-6
    monkeypatch.setattr(
        attention_svm.svm, "att_svm", lambda *inputs, tol, **_: SOLVE(*inputs, norm="nuclear")
    )
    with pytest.raises(harness.GateError, match="6x5x4: expected a certified gap of 1e-06, but"):
        case.check([case.subject])


def test_the_time_is_estimated_before_it_is_spent(no_compiler, tmp_path, capsys):
    assert bench(tmp_path, "--shapes", SHAPE, "--variants", "std,no-std") == 0
    # 2 compiled peers at 30 s, and next to nothing else.
    assert "2 cases, about 2 min\n" in capsys.readouterr().out


def row_of(**medians):
    """A stored case with the total ratios of some peers."""
    ratios = {peer: {"total": {"median": median}} for peer, median in medians.items()}
    return {"key": {"shape": SHAPE, "dtype": "float32"}, "ratios": ratios}


def test_comparison_names_ratios_that_fell_by_more_than_a_tenth():
    earlier = [row_of(a=2.0, b=2.0, c=2.0, gone=1.0)]
    lines = comparison.fallen([row_of(a=1.79, b=1.81, c=3.0, new=0.1)], earlier)
    assert lines == [f"{SHAPE} float32, total: a / subject fell from 2.00 to 1.79"]
    assert comparison.fallen([row_of(a=1.0) | {"key": {"shape": "1"}}], earlier) == []


def test_compare_sets_the_exit_status(no_compiler, tmp_path, capsys):
    chosen = ["--shapes", SHAPE, "--variants", "no-std"]
    assert bench(tmp_path, *chosen) == 0
    (store,) = tmp_path.glob("*-1t/B1.json")
    result = json.loads(store.read_text())

    def store_ratios(median):  # far from what they will be
        for phases in result["cases"][0]["ratios"].values():
            for ratio in phases.values():
                ratio["median"] = median
        store.write_text(json.dumps(result))

    store_ratios(0.001)
    assert bench(tmp_path, *chosen, "--compare", str(store)) == 0
    store_ratios(1000)
    assert bench(tmp_path, *chosen, "--compare", str(store)) == 2
    assert "no-std, total: fold + SDPA / subject fell from 1000.00 to" in capsys.readouterr().err


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
        ("--shapes", "1x2x3", "expected a shape like 64x3x197x64, but got '1x2x3'"),
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
    peak = memory.peak_bytes("B1", "kktorch", ("1x4x4096x32", "float32", "std"), threads=1)
    one_tensor, matrices = 4 * 4096 * 32 * 4, 4 * 4096**2 * 4
    assert 4 * one_tensor <= peak < matrices / 4, "output and three gradients; not H x T x T"


def test_memory_table(tmp_path, monkeypatch):
    peaks = {"kktorch": 3 * 2**20, "groups": 4 * 2**20, "full attention": 2 * 2**20}
    measured = lambda suite, name, key, threads: peaks[name]  # noqa: E731
    monkeypatch.setattr(memory, "peak_bytes", measured)
    monkeypatch.setattr(b2, "peers", lambda *a: ["groups", "full attention", "compile(groups)"])
    assert bench(tmp_path, "--memory", "--shapes", SHAPE, "--variants", "1", suite="B2") == 0
    text = (tmp_path / "benchmarks.md").read_text()
    assert "#### float32, 1: peak memory" in text and f"| {SHAPE} | 3 | 4 | 2 | 1.50 |" in text


def test_memory_of_an_unknown_contender_fails_with_its_reason():
    key = ("1x1x4x4", "float32", "std")
    with pytest.raises(RuntimeError, match="of nothing, 1x1x4x4 float32 std: KeyError: 'nothing'"):
        memory.peak_bytes("B1", "nothing", key, threads=1)
