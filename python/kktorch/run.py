"""The run folders of `kktorch train`, as trained models in Python."""

import json
from pathlib import Path

import torch

from kktorch.nn import SmallViT, TimeSeriesClassifier, TokenClassifier

_MODELS = {model.__name__: model for model in (SmallViT, TimeSeriesClassifier, TokenClassifier)}


def load_run(folder: str | Path) -> torch.nn.Module:
    """The trained model of one run folder (`<method>-seed<k>`), in evaluation mode.

    config.json names the type and the constructor keywords, those of the encoder in an object of
    their own; checkpoint.pt holds the weights of the last epoch.

    Raises:
        ValueError: not a run folder, or a model type that this version does not know.
        RuntimeError: the weights do not fit the configuration; the first differences are named.
    """
    folder = Path(folder)
    for name in ("config.json", "checkpoint.pt"):
        if not (folder / name).is_file():
            raise ValueError(f"load_run: expected a run folder holding {name}, but got {folder}")
    options = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model"]
    kind, encoder = options.pop("type"), options.pop("encoder", {})
    if kind not in _MODELS:
        raise ValueError(f"load_run: expected a model type in {sorted(_MODELS)}, but got '{kind}'")
    model = _MODELS[kind](**options, **encoder)
    model.load_state_dict(torch.load(folder / "checkpoint.pt", weights_only=True)["model"])
    return model.eval()
