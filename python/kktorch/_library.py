"""Finds libkktorch.so, checks that it belongs to the torch that is running, and loads it."""

import os
import re
from pathlib import Path

import torch

_ROOT = Path(__file__).resolve().parents[2]
_BUILD_HELP = (
    "Build it with `scripts/test.sh`, or with `cmake --preset release && cmake --build build`."
)


def find_library() -> Path:
    """Path of libkktorch.so.

    ``KKTORCH_LIBRARY`` (the file) wins, then ``KKTORCH_BUILD_DIR`` (a build tree), then ``build/``
    of the source tree that this package lies in. A variable that is set is binding: there is no
    silent fallback to another build.

    Raises:
        ImportError: there is no such file.
    """
    if file := os.environ.get("KKTORCH_LIBRARY"):
        path, source = Path(file), "KKTORCH_LIBRARY"
    elif build := os.environ.get("KKTORCH_BUILD_DIR"):
        path, source = Path(build) / "lib/libkktorch.so", "KKTORCH_BUILD_DIR"
    else:
        path, source = _ROOT / "build/lib/libkktorch.so", "the source tree"
    if not path.is_file():
        raise ImportError(
            f"kktorch: expected the op library in {path} (from {source}), but got no such file. "
            f"{_BUILD_HELP} A build elsewhere is named by KKTORCH_BUILD_DIR (its folder) or "
            "KKTORCH_LIBRARY (the file)."
        )
    return path.resolve()


def built_for_torch(path: Path) -> str:
    """The torch version that a library was compiled against, read from its bytes, not by loading.

    Raises:
        ImportError: the file carries no such marker, so it is not the op library.
    """
    marker = re.search(rb"kktorch-built-for-torch=([0-9][0-9A-Za-z.+]*)", path.read_bytes())
    if marker is None:
        raise ImportError(
            f"kktorch: expected the op library, but got {path}, which is another file. "
            f"{_BUILD_HELP}"
        )
    return marker[1].decode()


def load_library() -> Path:
    """Registers the ops in ``torch.ops.kktorch``; returns the path of the library.

    Raises:
        ImportError: not found, built for another torch, or refused by the loader.
    """
    path = find_library()
    built, running = built_for_torch(path), torch.__version__
    # LibTorch's C++ interface holds within a minor version only; across, loading may crash.
    if built.split(".")[:2] != running.split(".")[:2]:
        raise ImportError(
            f"kktorch: expected an op library built for torch {running}, but got {path} built for "
            f"torch {built}. Rebuild it against the torch of this interpreter: delete the build "
            "folder, then `scripts/test.sh`, or `cmake --preset release "
            "-DPython3_EXECUTABLE=$(which python) && cmake --build build`."
        )
    try:
        torch.ops.load_library(path)
    except OSError as error:
        raise ImportError(
            f"kktorch: expected {path} to load, but got: {error}. {_BUILD_HELP}"
        ) from error
    return path
