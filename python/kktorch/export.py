"""`python -m kktorch.export RUN --out model.pt2`: a trained run as an AOTInductor package.

The package needs no Python: `torch::inductor::AOTIModelPackageLoader("model.pt2").run({x, mask})`
(examples/cpp/load_aoti.cpp).
"""

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor

from kktorch._files import write_whole
from kktorch.nn import SmallViT, TokenClassifier
from kktorch.run import load_run


def export_package(model: torch.nn.Module, example: tuple[Tensor, ...], out: str | Path) -> Path:
    """Compiles ``model`` ahead of time and writes the package ``out``.

    Args:
        model: in evaluation mode.
        example: positional inputs of ``model``, batch first and of size >= 2; the batch size of the
            package is free, every other size is fixed.
        out: path ending in `.pt2`. The package appears whole or not at all.

    Raises:
        ValueError: ``out`` does not end in `.pt2`.
    """
    out = Path(out)
    if out.suffix != ".pt2":
        raise ValueError(f"export: expected a file name ending in .pt2, but got {out}")
    batch = torch.export.Dim("batch", min=1)
    shapes = tuple({0: batch} for _ in example)
    with torch.no_grad():
        program = torch.export.export(model, example, dynamic_shapes=shapes)
    compile_to = torch._inductor.aoti_compile_and_package
    write_whole(out, lambda path: compile_to(program, package_path=str(path)))
    return out


def example_inputs(model: torch.nn.Module) -> tuple[Tensor, ...]:
    """The inputs of a classifier, of batch size 2 and the largest length, with a padding mask."""
    if isinstance(model, SmallViT):
        return (torch.randn(2, *model.image_shape),)
    length = model.max_length
    padding_mask = torch.arange(length) >= torch.tensor([[length], [1]])
    if isinstance(model, TokenClassifier):
        return torch.randint(model.vocabulary, (2, length)), padding_mask
    return torch.randn(2, length, model.channels), padding_mask


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m kktorch.export", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("run", type=Path, help="one run, e.g. runs/JapaneseVowels/bn-seed0")
    parser.add_argument("--out", type=Path, help="the package; default: model.pt2 in RUN")
    arguments = parser.parse_args(argv)
    try:
        model = load_run(arguments.run)
        out = arguments.out or arguments.run / "model.pt2"
        print(export_package(model, example_inputs(model), out))
    except (OSError, RuntimeError, ValueError) as error:
        print(f"export: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
