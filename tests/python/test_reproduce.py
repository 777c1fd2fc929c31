"""`kktorch reproduce` from outside, and the report of its run folders."""

import json
import re

import numpy as np
import pytest
from kktorch.report import load, render
from kktorch.report.__main__ import main
from test_report import Page

EXPERIMENTS = ["uea", "digits", "listops", "controls", "redundancy", "retrieval", "svr"]
DOCUMENTS = {
    "primal-dual": "docs/primal_dual.md",
    "convex": "docs/convex_attention.md",
    "shallow": "docs/training_dynamics.md",
    "multihead": "docs/training_dynamics.md",
}


@pytest.fixture(scope="module", params=EXPERIMENTS)
def finished(kk, request, tmp_path_factory):
    """A finished run in preset smoke: its folder and what the program printed."""
    folder = tmp_path_factory.mktemp("reproduce") / request.param
    command = ["reproduce", "primal-dual", "--experiment", request.param, "--preset", "smoke"]
    return folder, kk(*command, "--out", folder, "--threads", 1).stdout


def read_json(path):
    return json.loads(path.read_text())


@pytest.mark.parametrize("paper", DOCUMENTS)
def test_list_names_every_experiment_with_its_times(kk, root, paper):
    header, _, *rows = kk("reproduce", "--list").stdout.splitlines()
    assert header.split() == ["paper", "experiment", "title", "smoke", "quick", "full"]
    rows = [row for row in rows if row.startswith(f"{paper} ")]
    documented = (root / DOCUMENTS[paper]).read_text()
    written = [re.split(" {2,}", line.strip()) for line in documented.splitlines()]
    assert rows and all(re.split(" {2,}", row.strip()) in written for row in rows)
    assert f"kktorch reproduce {paper} --experiment" in documented


def test_settings_can_be_changed_one_by_one(kk, tmp_path):
    command = ["reproduce", "shallow", "--experiment", "e7", "--preset", "smoke", "--threads", 1]
    changes = ["windows=sliding", "position=unit", "lags=[1,2,3,5]", "rho=3", "seeds=1"]
    options = [word for change in changes for word in ("--set", change)]
    kk(*command, *options, "--out", tmp_path / "run")
    settings = read_json(tmp_path / "run/result.json")["settings"]
    assert settings["windows"] == "sliding" and settings["position"] == "unit"
    assert settings["lags"] == [1, 2, 3, 5] and settings["rho"] == 3 and settings["seeds"] == 1
    kk(*command, *options, "--out", tmp_path / "run", "--resume")
    refused = kk(*command, "--out", tmp_path / "run", "--resume", code=1).stderr
    assert "windows" in refused or "settings" in refused


@pytest.mark.parametrize(
    "change, message",
    [
        ("lags", "--set: expected NAME=VALUE, but got lags"),
        ("lag=3", "--set: expected the name of a setting, but got lag"),
        ("lags=3", "--set: expected lags to be of the kind list of integers, but got 3"),
        (
            "lags=[1,0.5]",
            "of the kind list of integers, but got [1,0.5]",
        ),
        ("m=many", "--set: expected m to be of the kind integer, but got many"),
        ("position=learned", "--set: expected position to be raw or unit or none, but got learned"),
    ],
)
def test_wrong_settings_are_refused(kk, tmp_path, change, message):
    command = ["reproduce", "shallow", "--experiment", "e7", "--preset", "smoke"]
    refused = kk(*command, "--set", change, "--out", tmp_path / "run", code=1).stderr
    assert message in refused and not (tmp_path / "run").exists()


def test_a_setting_without_choices_is_fixed(kk, tmp_path):
    command = ["reproduce", "multihead", "--experiment", "e1", "--set", "start=onestep"]
    refused = kk(*command, "--out", tmp_path / "run", code=1).stderr
    assert "--set: expected a setting that can be changed, but start is always zero" in refused


def test_run_folder_holds_configuration_claim_and_tables(finished):
    folder, printed = finished
    result, config = read_json(folder / "result.json"), read_json(folder / "config.json")
    assert result["experiment"] == config["experiment"]
    assert config["experiment"]["preset"] == "smoke" and config["experiment"]["first_seed"] == 1
    assert result["settings"] == config["settings"] and result["seeds"] == [1, 2]
    table = (folder / "table.txt").read_text()
    assert table in printed, "the table is printed"
    for name, value in config["settings"].items():
        shown = value if isinstance(value, str) else json.dumps(value)
        assert re.search(rf"^{name} +{re.escape(shown[:5])}", printed, re.M), name
    for text in (result["claim"], result["limits"], *(t["title"] for t in result["tables"])):
        assert text in table


def test_resume_reads_back_and_nothing_is_replaced(kk, finished):
    folder, printed = finished
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("result.json")}
    command = ["reproduce", "primal-dual", "--experiment", folder.name, "--out", folder]
    command += ["--preset", "smoke", "--threads", 1]
    assert kk(*command, "--resume").stdout == printed
    assert "expected a new run folder" in kk(*command, code=1).stderr
    refused = kk(*command, "--resume", "--seed", 2, code=1).stderr
    assert "experiment/first_seed is 1 there and 2 here" in refused
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("result.json")}


def test_same_seed_same_numbers_and_other_seed_others(kk, finished, tmp_path):
    folder, _ = finished
    command = ["reproduce", "primal-dual", "--experiment", folder.name, "--preset", "smoke"]
    kk(*command, "--threads", 1, "--out", tmp_path / "same")
    kk(*command, "--threads", 1, "--out", tmp_path / "other", "--seed", 7)
    tables = read_json(folder / "result.json")["tables"]
    assert read_json(tmp_path / "same/result.json")["tables"] == tables
    assert read_json(tmp_path / "other/result.json")["tables"] != tables
    assert read_json(tmp_path / "other/result.json")["seeds"] == [7, 8]


def test_wrong_command_lines_are_refused(kk, tmp_path):
    kk("reproduce", "primal-dual", "--experiment", "svr", "--preset", "huge", code=2)
    refused = kk("reproduce", "primal-dual", code=1, cwd=tmp_path).stderr
    assert f"reproduce: expected one of primal-dual {EXPERIMENTS[0]}, primal-dual" in refused
    assert list(tmp_path.iterdir()) == []


def test_default_folder(kk, tmp_path):
    kk("reproduce", "primal-dual", "--experiment", "svr", "--preset", "smoke", cwd=tmp_path)
    assert (tmp_path / "runs/primal-dual/svr-smoke/result.json").exists()


# ---- report


def test_page_shows_claim_and_limits_beside_every_table(finished):
    folder, _ = finished
    result = read_json(folder / "result.json")
    page = Page(render([load(folder)]))
    assert page.text.count(result["claim"]) == 1 + len(result["tables"])
    assert page.text.count(result["limits"]) == 1 + len(result["tables"])
    for table in result["tables"]:
        assert table["columns"] in page.rows
        for row in table["rows"]:
            assert [cell if isinstance(cell, str) else cell["text"] for cell in row] in page.rows


def test_plots_have_a_point_for_every_number(finished):
    folder, _ = finished
    result = read_json(folder / "result.json")
    tables = [table for table in result["tables"] if table["figure"]]
    plots = Page(render([load(folder)])).plots
    assert len(plots) == len(tables) + len(result["maps"]) and tables
    for table, plot in zip(tables, plots, strict=False):
        assert f">{table['figure']['axis']}<" in plot and f">{table['figure']['across']}<" in plot
        places = [] if table["figure"]["form"] == "scatter" else table["columns"][1:]
        for label in [*places, *(row[0] for row in table["rows"])]:
            assert f">{label}<" in plot


def test_maps_are_probabilities_and_are_drawn(finished):
    folder, _ = finished
    grids = read_json(folder / "result.json")["maps"]
    assert bool(grids) == (folder.name == "redundancy")
    page = Page(render([load(folder)]))
    for grid, plot in zip(grids, page.plots[len(page.plots) - len(grids) :], strict=True):
        assert [row["name"] for row in grid["rows"]] == ["softmax", "bn"]
        for row in grid["rows"]:
            maps = np.array(row["maps"])  # rounded to four decimals
            assert maps.shape[0] == len(grid["columns"]) and maps.shape[1] == maps.shape[2] > 1
            assert maps.min() >= 0 and np.abs(maps.sum(2) - 1).max() <= 5e-5 * maps.shape[2]
        for label in (*grid["columns"], grid["across"], grid["quantity"]):
            assert f">{label}<" in plot
        assert grid["title"] in page.text and grid["note"] in page.text


def test_page_of_a_run_that_has_not_finished(finished, tmp_path, capsys):
    folder, _ = finished
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    (unfinished / "config.json").write_text((folder / "config.json").read_text())
    assert main([str(unfinished)]) == 0
    page = Page((unfinished / "report.html").read_text())
    assert "Not finished." in page.text and page.plots == []
    (unfinished / "result.json").write_text("{")
    assert main([str(unfinished)]) == 1
    assert "unfinished/result.json: expected JSON, but got" in capsys.readouterr().err
