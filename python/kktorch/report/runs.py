"""The run folders of `kktorch train`, finished or not.

- `<experiment>/config.json`; `summary.json` appears when every run has finished
- `<experiment>/<attention>-seed<k>/config.json`: model, data and training settings
- `<experiment>/<attention>-seed<k>/metrics.jsonl`: one row per epoch
- `<experiment>/<attention>-seed<k>/summary.json` appears when the run has finished
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

#: Which epoch a number comes from -> heading. In this order everywhere.
COLUMNS = {
    "final": "final epoch",
    "best_validation": "best on validation",
    "best_test": "best on test (optimistic)",
}


@dataclass(frozen=True)
class Run:
    """One training run: one attention, one seed."""

    folder: Path
    attention: str
    seed: int
    config: dict
    metrics: list[dict]  # one per epoch; a value that is missing or null is NaN
    summary: dict | None  # None until the run has finished

    @property
    def status(self) -> str:
        if self.summary:
            return "finished"
        epochs = self.config.get("training", {}).get("epochs", "?")
        return f"incomplete: {len(self.metrics)} of {epochs} epochs"

    def result(self, column: str) -> dict | None:
        """The chosen epoch of a column; None before the end, or without validation data."""
        return self.summary and self.summary.get(column)

    def curve(self, column: str) -> list[float]:
        return [row.get(column, math.nan) for row in self.metrics]


@dataclass(frozen=True)
class Experiment:
    """The runs of one folder on one data set."""

    folder: Path
    runs: list[Run]
    summary: dict | None  # the comparison over all runs; None until they have finished

    @property
    def data(self) -> dict:
        return self.runs[0].config.get("data", {})

    @property
    def finished(self) -> bool:
        return all(run.summary for run in self.runs)

    @property
    def one_sample_percent(self) -> float:
        """What one test sample weighs in the accuracy, in percent."""
        return 100 / self.data["test_size"] if self.data.get("test_size") else math.nan

    def methods(self) -> dict[str, list[Run]]:
        """Runs by attention, in the order of ``runs``."""
        groups: dict[str, list[Run]] = {}
        for run in self.runs:
            groups.setdefault(run.attention, []).append(run)
        return groups


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (n - 1) over seeds."""

    mean: float
    sd: float  # NaN for one seed

    @staticmethod
    def of(values: list[float]) -> "Spread":
        if not values:
            return Spread(math.nan, math.nan)
        return Spread(mean(values), stdev(values) if len(values) > 1 else math.nan)


def load_experiment(folder: str | Path) -> Experiment:
    """Reads an experiment folder, or the folder of one run as an experiment of one.

    Raises:
        ValueError: not a run folder, or a file in it is malformed; the file is named.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise ValueError(f"expected a run folder (with config.json), but got {folder}")
    inner = [path.parent for path in folder.glob("*-seed*/config.json")]
    if not inner:
        return Experiment(folder, [_load_run(folder)], None)
    runs = [_load_run(path) for path in inner]
    # The baseline leads; the others follow by name.
    runs.sort(key=lambda run: (run.attention != "softmax", run.attention, run.seed))
    return Experiment(folder, runs, read_json(folder / "summary.json"))


def _load_run(folder: Path) -> Run:
    config = read_json(folder / "config.json")
    summary = read_json(folder / "summary.json")
    if "model" not in config:
        raise ValueError(f"{folder}/config.json: expected a key 'model', but got {sorted(config)}")
    attention, _, seed = folder.resolve().name.rpartition("-seed")
    return Run(
        folder,
        config.get("method", attention),
        int(config.get("training", {}).get("seed", seed if seed.isdecimal() else 0)),
        config,
        _read_metrics(folder / "metrics.jsonl"),
        summary,
    )


def read_json(path: Path) -> dict | None:
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: expected JSON, but got: {error}") from None


def _read_metrics(path: Path) -> list[dict]:
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines):  # being written, or killed in the middle of a row
                break
            raise ValueError(f"{path}:{number}: expected JSON, but got: {error}") from None
        rows.append({key: math.nan if value is None else value for key, value in row.items()})
    return rows
