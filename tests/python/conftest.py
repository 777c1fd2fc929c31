"""Loads kktorch once for all tests, makes them repeatable, and says why a test is skipped."""

import os
import subprocess
from pathlib import Path

import kktorch
import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]

needs_cuda = pytest.mark.skipif(
    not torch.cuda.is_available(),
    reason=f"no CUDA device (torch {torch.__version__}, built with CUDA {torch.version.cuda})",
)


def pytest_configure(config):
    """Test processes that run side by side share the cores."""
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
    torch.set_num_threads(max(1, torch.get_num_threads() // processes))


@pytest.fixture(autouse=True)
def repeatable():
    """Every test starts from one seed and leaves the number of threads as it was."""
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def root() -> Path:
    """The source tree."""
    return ROOT


@pytest.fixture(scope="session")
def build_dir() -> Path:
    """The build tree: the one that the op library comes from."""
    return Path(os.environ.get("KKTORCH_BUILD_DIR") or kktorch.library_path.parents[1])


@pytest.fixture(scope="session")
def program(build_dir):
    path = Path(os.environ.get("KKTORCH_PROGRAM") or build_dir / "bin/kktorch")
    if not path.exists():
        pytest.fail(f"expected the program {path}; build it, or set KKTORCH_PROGRAM")
    return path


@pytest.fixture(scope="session")
def kk(program):
    """Runs the program; the exit code is part of what a test expects."""

    def run(*args, code=0, **options):
        command = [program, *map(str, args)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, **options)
        assert done.returncode == code, f"{command}\n{done.stdout}\n{done.stderr}"
        return done

    return run
