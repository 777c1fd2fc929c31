"""The run folders of `kktorch reproduce`: config.json and, once finished, result.json."""

from dataclasses import dataclass
from pathlib import Path

from kktorch.report.runs import read_json


@dataclass(frozen=True)
class Reproduction:
    """One run of an experiment of a paper."""

    folder: Path
    config: dict
    result: dict  # empty until the run has finished


def load_reproduction(folder: str | Path) -> Reproduction | None:
    """Reads the run folder of an experiment; None if ``folder`` is none.

    Raises:
        ValueError: a file in it is malformed; it is named.
    """
    folder = Path(folder)
    config = read_json(folder / "config.json") or {}
    if not isinstance(config.get("experiment"), dict):
        return None
    return Reproduction(folder, config, read_json(folder / "result.json") or {})
