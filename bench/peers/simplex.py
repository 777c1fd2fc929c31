"""Other ways to project rows onto the simplex."""

import ctypes
import subprocess
import tempfile
from pathlib import Path

import torch


def by_sort(v: torch.Tensor) -> torch.Tensor:
    """tau = (sum of the k largest - 1) / k at the last k whose entry is above it."""
    top, _ = v.sort(dim=1, descending=True)
    k = torch.arange(1, v.shape[1] + 1, dtype=v.dtype)
    tau = (top.cumsum(1) - 1) / k
    last = (top > tau).sum(1, keepdim=True) - 1
    return (v - tau.gather(1, last)).clamp_min(0)


def condat():
    """The scalar algorithm, compiled here."""
    source = Path(__file__).with_name("condat.cpp")
    library = Path(tempfile.mkdtemp(prefix="condat")) / "condat.so"
    flags = ["-O3", "-march=native", "-fopenmp", "-shared", "-fPIC"]
    subprocess.run(["c++", *flags, source, "-o", library], check=True, capture_output=True)
    project = ctypes.CDLL(str(library)).project_rows
    project.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p]

    def step(v):
        w = torch.empty_like(v)
        project(v.data_ptr(), *v.shape, w.data_ptr())
        return w

    return step


def sparsemax():
    from entmax import sparsemax as project

    return lambda v: project(v, dim=1)


def bisect():
    from entmax import sparsemax_bisect as project

    return lambda v: project(v, dim=1)
