"""What a result depends on besides the code: the machine, torch's build, the commit, the day."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from rnnfast.backends import measured

ROOT = Path(__file__).resolve().parent.parent
# Variables that change how many threads run, where, or which kernels they take.
ENVIRONMENT = re.compile(r"^(OMP|KMP|GOMP|MKL|DNNL|ONEDNN|ATEN|RNNFAST|CUDA|CUBLAS|TORCH_ALLOW)_")


def facts(device: str) -> dict[str, Any]:
    """All of it, ready for JSON; what cannot be found out is None.

    device: `cpu`, `cuda` or `cuda:N`.
    """
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "git": git(),
        "cpu": cpu(),
        "gpu": gpu(device),
        "os": platform.platform(),
        "python": platform.python_version(),
        "torch": torch_build(),
        "environment": {k: v for k, v in sorted(os.environ.items()) if ENVIRONMENT.match(k)},
        "load_average": [round(load, 2) for load in os.getloadavg()],
    }


def cpu() -> dict[str, Any]:
    return {
        "model": cpu_model(),
        "logical_cores": os.cpu_count(),
        "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "caches": caches(),
        "capability": torch.backends.cpu.get_cpu_capability(),
    }


def cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return match[1].strip() if match else platform.processor() or platform.machine()


def caches(folder: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> dict[str, str]:
    """Of the first core, such as {'L1 Data': '48K', 'L2 Unified': '2048K'}; empty where unknown."""
    found = {}
    for index in sorted(folder.glob("index*")):
        level, kind, size = (
            (index / name).read_text().strip() for name in ("level", "type", "size")
        )
        found[f"L{level} {kind}"] = size
    return found


def gpu(device: str) -> dict[str, Any] | None:
    if not device.startswith("cuda"):
        return None
    properties = torch.cuda.get_device_properties(device)
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "cudnn": torch.backends.cudnn.version(),
        "cudnn_allow_tf32": torch.backends.cudnn.allow_tf32,
    }


def torch_build() -> dict[str, Any]:
    return {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "threads": torch.get_num_threads(),
        "interop_threads": torch.get_num_interop_threads(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "build": torch.__config__.show().splitlines(),
    }


def git(folder: Path = ROOT) -> dict[str, Any] | None:
    """The commit and whether tracked files differ from it; None outside a repository."""
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return None
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": bool(changes)}


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            check=False,
            capture_output=True,
            text=True,
            timeout=30,
        )
    except FileNotFoundError:  # no git on this machine
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def slug(device: str, threads: int) -> str:
    """The folder of a device's results: `cpu-amd-epyc-7b13-avx2-8-threads`, `cuda-nvidia-l4`."""
    if device.startswith("cuda"):
        return f"cuda-{_words(torch.cuda.get_device_name(device))}"
    isa = measured.isa()
    return f"cpu-{_words(cpu_model())}-{isa}-{threads}-thread{'s' if threads > 1 else ''}"


def _words(text: str) -> str:
    text = re.sub(r"\((R|TM|C)\)|@.*", " ", text, flags=re.IGNORECASE)
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
