"""Puts numbers and plots into the page template."""

import base64
import json
import math

import jinja2

import kktorch
from kktorch.report import plots
from kktorch.report.reproductions import Reproduction
from kktorch.report.runs import COLUMNS, Experiment, Run, Spread


def render(experiments: list[Experiment | Reproduction]) -> str:
    """The page as HTML text: no script, no network, plots as inlined SVG."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("kktorch.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": _percent, "points": _points, "seconds": _seconds}
    return environment.get_template("page.html.jinja").render(
        sections=[
            _reproduction(experiment)
            if isinstance(experiment, Reproduction)
            else _training(experiment)
            for experiment in experiments
        ],
        columns=COLUMNS,
        version=kktorch.__version__,
    )


def _reproduction(reproduction: Reproduction) -> dict:
    result = reproduction.result
    return {
        "template": "reproduction.html.jinja",
        "folder": reproduction.folder,
        "experiment": reproduction.config["experiment"],
        "settings": reproduction.config["settings"],
        "result": result,
        "tables": [
            table | {"image": _image(table["figure"] and plots.cells(table))}
            for table in result.get("tables", [])
        ],
        "maps": [grid | {"image": _image(plots.maps(grid))} for grid in result.get("maps", [])],
    }


def _training(experiment: Experiment) -> dict:
    methods = experiment.methods()
    rows = [
        row | {"bounded": None not in row["ci95"]}  # null: no interval from one seed
        for row in (experiment.summary or {}).get("differences", [])
    ]
    plotted = [row for row in rows if row["column"] == "final" and row["bounded"]]
    return {
        "template": "training.html.jinja",
        "folder": experiment.folder,
        "experiment": experiment,
        "methods": [
            {"name": name, "colour": colour} | _method(methods[name])
            for name, colour in plots.colours(methods).items()
        ],
        "differences": rows,
        "difference_plot": _image(plots.differences(plotted, experiment.one_sample_percent)),
        "curves": _image(plots.curves(experiment)),
        "confusions": {
            name: image
            for name, runs in methods.items()
            if (image := _image(plots.confusion(runs)))
        },
        "settings": _settings(methods),
        "class_labels": experiment.data.get("class_labels", []),
    }


def _method(runs: list[Run]) -> dict:
    finished = [run.summary for run in runs if run.summary]
    return {
        "seeds": len(runs),
        "finished": len(finished),
        "parameters": finished[0]["parameters"] if finished else None,
        "seconds": Spread.of([summary["seconds"] for summary in finished]),
        "accuracy": {
            column: Spread.of(
                [result["test_accuracy"] for run in runs if (result := run.result(column))]
            )
            for column in COLUMNS
        },
    }


def _settings(methods: dict[str, list[Run]]) -> list[dict]:
    """[{name, rows: [(setting, values)]}]: one value per method, or one if all methods agree."""
    sections = []
    every = [run for runs in methods.values() for run in runs]
    for section in ("model", "training", "data"):
        names = dict.fromkeys(name for run in every for name in _flat(run.config.get(section, {})))
        rows = []
        for name in names:
            values = [_joined(runs, section, name) for runs in methods.values()]
            rows.append((name, values[:1] if len(set(values)) == 1 else values))
        sections.append({"name": section, "rows": rows})
    return sections


def _joined(runs: list[Run], section: str, name: str) -> str:
    """The distinct values of a setting over seeds."""
    values = dict.fromkeys(_text(_flat(run.config.get(section, {})).get(name)) for run in runs)
    return ", ".join(values)


def _flat(settings: dict) -> dict:
    """The settings, those of an object inside (the encoder of a model) next to the others."""
    flat = {}
    for name, value in settings.items():
        flat |= value if isinstance(value, dict) else {name: value}
    return flat


def _text(value) -> str:
    if value is None:
        return "–"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return value if isinstance(value, str) else json.dumps(value)


def _image(svg: str | None) -> str | None:
    """A data URI: an inlined <svg> would share its ids with the other plots of the page."""
    return svg and "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


def _percent(spread: Spread | float) -> str:
    """A fraction as percent; a spread as mean ± sd."""
    if not isinstance(spread, Spread):
        return "–" if math.isnan(spread) else f"{100 * spread:.2f}"
    return _percent(spread.mean) + ("" if math.isnan(spread.sd) else f" ± {100 * spread.sd:.2f}")


def _points(fraction: float) -> str:
    return f"{100 * fraction:+.2f}".replace("-", "−")


def _seconds(value: float) -> str:
    if math.isnan(value):
        return "–"
    return f"{value:.1f} s" if value < 120 else f"{value / 60:.1f} min"
