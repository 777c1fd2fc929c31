"""The report page, from run folders made here: finished, incomplete, single, malformed."""

import base64
import html.parser
import json
import math
import re

import pytest
import torch
from kktorch.report import load, load_experiment, render
from kktorch.report.__main__ import main
from kktorch.report.page import _percent
from kktorch.report.runs import Spread

EPOCHS, CLASSES, TEST_SIZE = 12, ["1", "2", "3"], 60
# Final test accuracy by (method, seed): means 0.96 and 0.95, sample standard deviations 0.01, 0.02.
FINAL = {
    ("softmax", 0): 0.95,
    ("softmax", 1): 0.96,
    ("softmax", 2): 0.97,
    ("bn", 0): 0.93,
    ("bn", 1): 0.95,
    ("bn", 2): 0.97,
}


def write_json(path, value):
    path.write_text(json.dumps(value))


def write_run(folder, attention, seed, epochs=EPOCHS):
    """One run; with fewer epochs than EPOCHS it is an interrupted one."""
    folder.mkdir(parents=True)
    data = {"name": "Toy", "train_size": 40, "validation_size": 8, "test_size": TEST_SIZE}
    data |= {"class_labels": CLASSES, "channels": 2, "max_length": 5}
    model = {"type": "TimeSeriesClassifier", "encoder": {"attention": attention, "width": 16}}
    training = {"epochs": EPOCHS, "lr": 0.001, "seed": seed}
    config = {"kktorch": "0.1.0", "model": model, "data": data, "training": training}
    write_json(folder / "config.json", config)
    final = FINAL[attention, seed]
    with open(folder / "metrics.jsonl", "w") as rows:
        for epoch in range(1, epochs + 1):
            row = {"epoch": epoch, "step": 2 * epoch, "lr": 0.001, "seconds": 0.5}
            for split, gap in (("train", 0.02), ("valid", 0.0), ("test", 0.0)):
                row[f"{split}_loss"] = math.exp(-epoch / 4) + 0.1 * (seed + 1)
                row[f"{split}_accuracy"] = min(1.0, final * (1 - math.exp(-epoch / 2)) + gap)
            rows.write(json.dumps(row) + "\n")
    if epochs < EPOCHS:
        return
    result = {"epoch": EPOCHS, "test_loss": 0.2, "valid_accuracy": 0.9}
    right = round(final * TEST_SIZE)
    summary = {
        "attention": attention,
        "seed": seed,
        "parameters": 1234,
        "seconds": 6.0,
        "test_size": TEST_SIZE,
        "final": result | {"test_accuracy": final},
        "best_validation": result | {"test_accuracy": final - 0.01, "epoch": 7},
        "best_test": result | {"test_accuracy": final + 0.02, "epoch": 9},
        "confusion": [[right - 40, TEST_SIZE - right, 0], [0, 20, 0], [0, 0, 20]],
        "class_labels": CLASSES,
    }
    write_json(folder / "summary.json", summary)


@pytest.fixture
def experiment(tmp_path):
    folder = tmp_path / "Toy"
    for attention, seed in FINAL:
        write_run(folder / f"{attention}-seed{seed}", attention, seed)
    write_json(folder / "config.json", {"data": "Toy"})
    difference = {"a": "bn", "b": "softmax", "mean": -0.01, "ci95": [-0.0348, 0.0148]}
    summary = {"data": "Toy", "differences": [difference | {"column": "final"}]}
    write_json(folder / "summary.json", summary)
    return folder


class Page(html.parser.HTMLParser):
    """Text of a page, its tables as rows of cells, its images decoded."""

    VOID = {"meta", "br", "img", "li", "link"}

    def __init__(self, text):
        super().__init__()
        self.text, self.rows, self.plots, self.open = "", [], [], []
        self.feed(text)
        self.close()
        assert self.open == [], "an element is not closed"

    def handle_starttag(self, tag, attributes):
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        elif tag == "img":
            kind, _, data = dict(attributes)["src"].partition(",")
            assert kind == "data:image/svg+xml;base64"
            self.plots.append(base64.b64decode(data).decode())

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data

    def row(self, *start):
        (found,) = [row for row in self.rows if tuple(row[: len(start)]) == start]
        return found


def page_of(*folders):
    return Page(render([load_experiment(folder) for folder in folders]))


def test_table_shows_mean_and_sd_of_three_labelled_columns(experiment):
    page = page_of(experiment)
    columns = ["final epoch[%]", "best on validation[%]", "best on test (optimistic)[%]"]
    assert page.row("method", columns[0])[:4] == ["method", *columns]
    softmax, bn = page.row("softmax", "96.00 ± 1.00"), page.row("bn", "95.00 ± 2.00")
    assert softmax[2:] == ["95.00 ± 1.00", "98.00 ± 1.00", "3", "1,234", "6.0 s"]
    assert bn[2:4] == ["94.00 ± 2.00", "97.00 ± 2.00"]
    assert page.rows.index(softmax) < page.rows.index(bn), "the baseline leads"
    assert "One test series is 1.67 %" in page.text


def test_paired_differences_with_their_interval(experiment):
    page = page_of(experiment)
    assert page.row("bn − softmax") == ["bn − softmax", "final epoch", "−1.00", "−3.48 … +1.48"]
    assert "percentage points" in page.plots[0]


def test_every_run_and_every_setting_is_listed(experiment):
    page = page_of(experiment)
    assert page.row("bn", "2") == [
        "bn", "2", "97.00 (12)", "96.00 (7)", "99.00 (9)", "6.0 s", "finished",
    ]  # fmt: skip
    assert page.row("lr") == ["lr", "0.001"]
    assert page.row("attention") == ["attention", "softmax", "bn"]
    assert page.row("seed") == ["seed", "0, 1, 2"]
    assert page.row("class_labels") == ["class_labels", "1, 2, 3"]


def test_plots_have_titles_and_units(experiment):
    difference, curves, softmax, bn = page_of(experiment).plots
    for text in ("training", "validation", "test", "epoch", "cross-entropy [nats]", "accuracy [%]"):
        assert f">{text}<" in curves
    for matrix, wrong in ((softmax, 7), (bn, 9)):
        assert ">true class<" in matrix and ">predicted class<" in matrix
        assert f">{wrong}<" in matrix, "off-diagonal count, summed over seeds"


def test_page_is_self_contained_and_the_same_every_time(experiment):
    text = render([load_experiment(experiment)])
    assert text == render([load_experiment(experiment)])
    assert not re.search(r"<script|<link|@import|(?:src|href)=[\"'](?!data:)|url\((?!#)", text)


def test_incomplete_runs_are_reported_as_such(experiment):
    (experiment / "summary.json").unlink()
    (experiment / "bn-seed2/summary.json").unlink()
    metrics = experiment / "bn-seed2/metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True)
    metrics.write_text("".join(lines[:5]) + lines[5][:20])  # killed in the middle of a row
    page = page_of(experiment)
    assert "bn-seed2 is incomplete: 5 of 12 epochs" in page.text
    assert page.row("bn", "94.00 ± 1.41")[4] == "2 of 3"
    assert page.row("bn", "2")[2:] == ["–", "–", "–", "–", "incomplete: 5 of 12 epochs"]
    assert "No paired differences" in page.text


def test_a_run_that_has_not_finished_an_epoch(tmp_path):
    write_run(tmp_path / "Toy/bn-seed0", "bn", 0, epochs=0)
    page = page_of(tmp_path / "Toy/bn-seed0")
    assert page.plots == [] and "No epoch has been completed yet." in page.text
    assert page.row("bn", "–")[1:] == ["–", "–", "–", "0 of 1", "–", "–"]


def test_one_run_and_several_experiments(experiment, tmp_path):
    single = page_of(experiment / "bn-seed1")
    assert single.row("bn", "95.00") and "One method: nothing to compare." in single.text
    write_run(tmp_path / "Other/softmax-seed0", "softmax", 0)
    write_json(tmp_path / "Other/config.json", {})
    assert len(page_of(experiment, tmp_path / "Other").plots) == 4 + 2


def test_one_seed_has_no_interval(tmp_path):
    for attention in ("softmax", "bn"):
        write_run(tmp_path / f"Toy/{attention}-seed0", attention, 0)
    difference = {"a": "bn", "b": "softmax", "column": "final", "mean": -0.02}
    summary = {"differences": [difference | {"ci95": [None, None]}]}
    write_json(tmp_path / "Toy/config.json", {})
    write_json(tmp_path / "Toy/summary.json", summary)
    page = page_of(tmp_path / "Toy")
    assert page.row("bn − softmax")[2:] == ["−2.00", "none from one seed"]
    assert len(page.plots) == 3, "no plot of intervals"


def test_nan_metrics_and_missing_validation(experiment):
    for path in experiment.glob("*/metrics.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for row in rows:
            row["valid_loss"] = row["valid_accuracy"] = None
        rows[3]["train_loss"] = None
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        summary = json.loads(path.with_name("summary.json").read_text())
        write_json(path.with_name("summary.json"), summary | {"best_validation": None})
    page = page_of(experiment)
    assert ">test<" in page.plots[1] and ">validation<" not in page.plots[1]
    assert page.row("bn", "95.00 ± 2.00")[2] == "–"
    assert page.row("bn", "2")[3] == "–"


def test_labels_are_escaped(experiment):
    config = json.loads((experiment / "bn-seed0/config.json").read_text())
    config["data"]["class_labels"] = ["<b>", "&", '"']
    write_json(experiment / "bn-seed0/config.json", config)
    assert '<b>, &, "' in page_of(experiment / "bn-seed0").text


def test_spread_is_the_sample_standard_deviation():
    values = torch.randn(5, dtype=torch.float64)
    spread = Spread.of(values.tolist())
    assert spread.mean == pytest.approx(values.mean().item())
    assert spread.sd == pytest.approx(values.std().item())
    assert _percent(Spread.of([0.5])) == "50.00", "no deviation from one seed"


def test_program_writes_beside_the_runs_or_where_told(experiment, tmp_path, capsys):
    assert main([str(experiment)]) == 0
    assert capsys.readouterr().out == f"{experiment / 'report.html'}\n"
    assert main([str(experiment), "--out", str(tmp_path / "new/page.html")]) == 0
    assert (tmp_path / "new/page.html").read_text() == (experiment / "report.html").read_text()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["page.html"]


def test_bad_folders_are_named_and_nothing_is_written(experiment, tmp_path, capsys):
    assert main([str(tmp_path)]) == 1
    assert "expected a run folder (with config.json), but got" in capsys.readouterr().err
    (experiment / "bn-seed0/summary.json").write_text("{")
    assert main([str(experiment)]) == 1
    assert "bn-seed0/summary.json: expected JSON, but got" in capsys.readouterr().err
    (experiment / "bn-seed0/metrics.jsonl").write_text("{\n{}\n")
    (experiment / "bn-seed0/summary.json").unlink()
    assert main([str(experiment)]) == 1
    assert "bn-seed0/metrics.jsonl:1: expected JSON, but got" in capsys.readouterr().err
    assert not (experiment / "report.html").exists()


# ---- results of `kktorch reproduce`


@pytest.fixture
def reproduction(tmp_path):
    """A result with bars, of which one is missing, and with a grid of maps."""
    cell = {"text": "0.50 ± 0.10", "value": 0.5, "sd": 0.1}
    experiment = {"paper": "p", "name": "e", "preset": "smoke", "first_seed": 1}
    config = {"experiment": experiment, "settings": {"seeds": 1}}
    figure = {"axis": "distance", "across": "method", "logarithmic": False, "form": "bars"}
    table = {"title": "Distances", "columns": ["model", "first", "second"], "note": ""}
    table |= {"rows": [["before", cell, cell], ["after", cell, "–"]], "figure": figure}
    grid = {"title": "Maps", "down": "query", "across": "key", "quantity": "probability"}
    grid |= {"columns": ["head 1", "head 2"], "note": "Of one example."}
    grid["rows"] = [
        {"name": "softmax", "maps": [[[1, 0], [0.5, 0.5]], [[0, 1], [0.2, 0.8]]]},
        {"name": "bn", "maps": [[[0.5, 0.5], [0.5, 0.5]], [[0.1, 0.9], [0.2, 0.8]]]},
    ]
    result = config | {"title": "T", "claim": "C", "limits": "L", "seeds": [1], "threads": 1}
    result |= {"seconds": 1.0, "tables": [table], "maps": [grid]}
    write_json(tmp_path / "config.json", config)
    write_json(tmp_path / "result.json", result)
    return tmp_path


def test_curves_are_drawn_and_their_table_is_folded(reproduction):
    cells = [{"text": str(v), "value": v, "low": 0.9 * v, "high": 1.1 * v} for v in (0.8, 0.2, 0.1)]
    figure = {"axis": "loss", "across": "step", "logarithmic": True, "form": "log-curves"}
    table = {"title": "Loss by step", "columns": ["step", "0", "1", "64"], "note": "Of two trials."}
    table |= {"rows": [["H = 1", *cells], ["H = 4", cells[0], "–", cells[2]]]}
    result = json.loads((reproduction / "result.json").read_text())
    result["tables"] = [table | {"figure": figure | {"only": True}}]
    write_json(reproduction / "result.json", result)
    text = render([load(reproduction)])
    page = Page(text)
    assert page.row("H = 4") == ["H = 4", "0.8", "–", "0.1"]
    assert text.index("<summary>Numbers</summary>") > text.index("Loss by step")
    plot = page.plots[0]
    for label in ("loss", "step", "H = 1", "H = 4"):
        assert f">{label}<" in plot
    curve = plot.count("stroke: #0072b2"), plot.count("stroke: #d55e00")
    assert min(curve) >= 2, "a line and its entry in the legend"


def test_bars_and_maps_of_a_result_are_drawn(reproduction):
    page = Page(render([load(reproduction)]))
    assert page.row("after") == ["after", "0.50 ± 0.10", "–"]
    bars, maps = page.plots
    for label in ("distance", "method", "first", "second", "before", "after"):
        assert f">{label}<" in bars
    # A bar per number, and one in the legend.
    assert bars.count("fill: #0072b2") == 2 + 1 and bars.count("fill: #d55e00") == 1 + 1
    for label in ("softmax", "bn", "query", "key", "head 1", "head 2", "probability"):
        assert f">{label}<" in maps
    # An image per matrix, and a scale per row.
    assert maps.count("<image") == 4 + 2 and "Maps. Of one example." in page.text
