"""The machine and the software that a result belongs to."""

import os
import re
import subprocess
from pathlib import Path

import kktorch
import torch

_TELLING_FLAGS = ["avx2", "avx512f", "avx512_bf16", "amx_tile"]


def describe() -> dict[str, str]:
    """CPU, its instruction sets, the tier in use, threads, versions and precision."""
    cpuinfo = Path("/proc/cpuinfo").read_text()
    flags = set(re.search(r"^flags\s*: (.*)$", cpuinfo, re.MULTILINE)[1].split())
    return {
        "cpu": re.search(r"^model name\s*: (.*)$", cpuinfo, re.MULTILINE)[1].strip(),
        "instruction sets": ", ".join(flag for flag in _TELLING_FLAGS if flag in flags),
        "kktorch tier": _tier(),
        "torch tier": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
        "kktorch": kktorch.__version__,
        "torch": torch.__version__,
        "float32 precision": torch.get_float32_matmul_precision(),
    }


def slug(machine: dict[str, str]) -> str:
    """Short folder name: CPU, tier and threads, for example `amd-epyc-9354-avx512-bf16-2t`."""
    cpu = re.sub(r"\(.*?\)|\b(cpu|processor|\d+-core)\b|@.*", "", machine["cpu"].lower())
    parts = f"{cpu} {machine['kktorch tier']} {machine['threads']}t"
    return re.sub(r"[^a-z0-9]+", "-", parts).strip("-")


def _tier() -> str:
    program = kktorch.library_path.parents[1] / "bin/kktorch"
    if not program.is_file():
        return os.environ.get("KKTORCH_CPU_CAPABILITY") or "best of the machine"
    info = subprocess.run([program, "info"], capture_output=True, text=True, check=True).stdout
    return re.search(r"^CPU +(\w+) kernels", info, re.MULTILINE)[1]
