"""Loads kktorch once for all tests, makes them repeatable, and says why a test is skipped."""

import collections
import os
import subprocess
import zlib
from pathlib import Path

import kktorch
import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]

needs_cuda = pytest.mark.skipif(
    not torch.cuda.is_available(),
    reason=f"no CUDA device (torch {torch.__version__}, built with CUDA {torch.version.cuda})",
)


# Cases of a test function in the default run; sweeps over dtypes, layouts and masks have hundreds.
CASES = 8


def pytest_addoption(parser):
    parser.addoption(
        "--all-cases",
        action="store_true",
        help=f"run every case of every test, not {CASES} of those that have more",
    )


def pytest_collection_modifyitems(config, items):
    """Leaves a fixed sample of the cases of every function: those whose names hash lowest."""
    if config.getoption("--all-cases"):
        return
    functions = collections.defaultdict(list)
    for item in items:
        functions[item.nodeid.split("[")[0]].append(item)
    sampled = {
        item
        for cases in functions.values()
        for item in sorted(cases, key=lambda item: zlib.crc32(item.nodeid.encode()))[:CASES]
    }
    config.hook.pytest_deselected(items=[item for item in items if item not in sampled])
    items[:] = [item for item in items if item in sampled]


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
