"""Peak memory of one step, in a process of its own (arguments: SUITE NAME SHAPE DTYPE VARIANT
THREADS).

The peak is the high-water mark of the resident set during the step, above what is resident before
it: interpreter, libraries and inputs. Outputs, gradients and everything between are in it.
"""

import ctypes
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import torch

_ROOT = Path(__file__).resolve().parents[1]


def peak_bytes(suite: str, name: str, key: tuple[str, str, str], threads: int) -> int:
    """Peak of one step of the contender ``name`` of a case, measured in a child process.

    Args:
        key: shape, dtype and variant of the case.

    Raises:
        RuntimeError: the child failed; its message is passed on.
    """
    command = [sys.executable, __file__, suite, name, *key, str(threads)]
    environment = os.environ | {"PYTHONPATH": str(_ROOT / "python")}
    child = subprocess.run(command, env=environment, capture_output=True, text=True)
    if child.returncode:
        reason = child.stderr.strip().splitlines()[-1:] or [f"exit status {child.returncode}"]
        raise RuntimeError(f"peak memory of {name}, {' '.join(key)}: {reason[0]}")
    return int(child.stdout)


def main(suite: str, name: str, shape: str, dtype: str, variant: str, threads: str) -> None:
    torch.set_num_threads(int(threads))
    module = importlib.import_module(f"suites.{suite.lower()}")

    def contender(of_shape):
        case = module.case(of_shape, dtype, variant)
        return {each.name: each for each in (case.subject, *case.peers)}[name]

    # A small step first, so that code and thread pools are loaded and not counted.
    contender(module.shapes(variant, quick=True)[0]).step()
    measured = contender(shape)
    # What making the inputs left free in the heap would be used again, and not be seen.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # starts the high-water mark anew
    before = _status("VmRSS")
    measured.step()
    print(_status("VmHWM") - before)


def _status(key: str) -> int:
    text = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(rf"^{key}:\s+(\d+) kB", text, re.MULTILINE)[1])


if __name__ == "__main__":
    main(*sys.argv[1:])
