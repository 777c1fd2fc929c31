"""What classifiers repeat about their inputs: masks, and statistics that a saved model carries."""

import torch
from torch import Tensor


def check_padding_mask(module: str, padding_mask: Tensor | None, tokens: Tensor) -> None:
    """Raises unless ``padding_mask`` is None or bool of the first two sizes of ``tokens``."""
    if padding_mask is not None:
        shape = list(tokens.shape)[:2]
        if padding_mask.dtype != torch.bool or list(padding_mask.shape) != shape:
            raise RuntimeError(
                f"{module}: expected padding_mask bool {shape}, "
                f"but got {padding_mask.dtype} {list(padding_mask.shape)}"
            )


def set_standardisation(
    module: str, mean: Tensor, std: Tensor, input_mean: Tensor, input_std: Tensor
) -> None:
    """Copies mean and std [C] into the buffers of ``module``; a standard deviation of 0 becomes 1.

    Raises:
        RuntimeError: "<module>: expected mean and std of shape ..., but got ...".
        ValueError: "<module>: expected finite mean and std >= 0, but got ...".
    """
    if mean.shape != input_mean.shape or std.shape != input_std.shape:
        raise RuntimeError(
            f"{module}: expected mean and std of shape {list(input_mean.shape)}, "
            f"but got {list(mean.shape)} and {list(std.shape)}"
        )
    if not (mean.isfinite().all() and std.isfinite().all() and (std >= 0).all()):
        raise ValueError(f"{module}: expected finite mean and std >= 0, but got {mean} and {std}")
    with torch.no_grad():
        input_mean.copy_(mean)
        input_std.copy_(std.masked_fill(std == 0, 1.0))
