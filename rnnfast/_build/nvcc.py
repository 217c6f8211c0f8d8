"""Finding an nvcc that fits torch: CUDA_HOME, PATH, the pip wheels, then /usr/local/cuda."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

TOOLKIT = Path("/usr/local/cuda")  # where the toolkit's installer puts it, and PATH may lack it
PIP_INSTALL = "pip install 'rnnfast[cuda]' (or `RNNFAST_CUDA=1 make setup` in a checkout)"


@dataclass(frozen=True)
class Nvcc:
    path: Path
    version: str  # "13.0.88"
    source: str  # "CUDA_HOME", "PATH", "pip" or "toolkit"

    @property
    def major(self) -> str:
        return self.version.split(".")[0]

    def __str__(self) -> str:
        return f"nvcc {self.version} ({self.source}: {self.path})"


@dataclass(frozen=True)
class NvccSearch:
    """The first nvcc that fits, or None, and what was found in the other places."""

    nvcc: Nvcc | None
    unfit: tuple[str, ...]  # there is an nvcc, but of another version, or it does not run
    absent: tuple[str, ...]  # there is none
    advice: str

    def why_not(self) -> str:
        return "; ".join([*self.unfit, *self.absent, self.advice])


def find_nvcc(
    torch_cuda: str | None,
    env: Mapping[str, str] | None = None,
    site_dirs: Iterable[Path] | None = None,
    toolkit: Path | None = None,
) -> NvccSearch:
    """Look for an nvcc whose major version is that of `torch_cuda` ("13.0", torch.version.cuda).

    An nvcc that doesn't fit is passed over for the next place: a machine-wide CUDA_HOME of an older
    toolkit must not hide the pip wheels that fit torch. `torch_cuda=None` accepts any version.
    """
    env = os.environ if env is None else env
    unfit: list[str] = []
    absent: list[str] = []
    advice = install_advice(torch_cuda)
    site_dirs = pip_site_dirs() if site_dirs is None else site_dirs
    toolkit = TOOLKIT if toolkit is None else toolkit
    for source, path in _candidates(env, site_dirs, toolkit):
        if path is None:
            absent.append(_absent(source, env, toolkit))
            continue
        version = nvcc_version(path)
        if version is None:
            unfit.append(f"{source}: `{path} --version` does not run or tells no version")
            continue
        nvcc = Nvcc(path, version, source)
        if torch_cuda is None or nvcc.major == torch_cuda.split(".")[0]:
            return NvccSearch(nvcc, tuple(unfit), tuple(absent), advice)
        unfit.append(f"{nvcc} does not fit torch, which was built with CUDA {torch_cuda}")
    return NvccSearch(None, tuple(unfit), tuple(absent), advice)


def places(env: Mapping[str, str] | None = None) -> list[Path]:
    """Every nvcc that there is, of whatever version, in the order in which they are asked."""
    found = _candidates(os.environ if env is None else env, pip_site_dirs(), TOOLKIT)
    return [path for _, path in found if path is not None]


def install_advice(torch_cuda: str | None) -> str:
    """What to install so that an nvcc for this torch is found."""
    if torch_cuda is None or torch_cuda.split(".")[0] == "13":
        return f"install one: {PIP_INSTALL}"
    return f"install the CUDA {torch_cuda} toolkit and set CUDA_HOME to its folder"


def nvcc_version(path: Path) -> str | None:
    """The version that `nvcc --version` prints ("13.0.88"), or None where it doesn't."""
    try:
        out = subprocess.run(
            [path, "--version"], capture_output=True, text=True, timeout=60, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.search(r"release [\d.]+, V([\d.]+)", out.stdout)
    return match.group(1) if match else None


def toolkit_root(nvcc: Nvcc) -> Path:
    """The folder of bin/ and include/ as nvcc itself sees it: `path` may be a wrapper script."""
    dry_run = subprocess.run(
        [nvcc.path, "--dryrun", "-x", "cu", "-c", os.devnull, "-o", os.devnull],
        capture_output=True,
        text=True,
        timeout=60,
    )
    match = re.search(r"^#\$ TOP=(.+)$", dry_run.stderr, re.MULTILINE)
    return Path(match.group(1)).resolve() if match else nvcc.path.resolve().parent.parent


def pip_site_dirs() -> list[Path]:
    """Where the running interpreter's packages lie, also inside pip's isolated builds."""
    paths = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *sys.path]
    return [Path(p) for p in dict.fromkeys(paths) if p and Path(p).is_dir()]


def _candidates(
    env: Mapping[str, str], site_dirs: Iterable[Path], toolkit: Path
) -> Iterator[tuple[str, Path | None]]:
    home = env.get("CUDA_HOME")
    in_home = Path(home) / "bin" / "nvcc" if home else None
    yield "CUDA_HOME", in_home if in_home and in_home.is_file() else None
    on_path = shutil.which("nvcc", path=env.get("PATH", ""))
    yield "PATH", Path(on_path) if on_path else None
    wheels = [p for d in site_dirs for p in sorted(d.glob("nvidia/cu*/bin/nvcc"), reverse=True)]
    if not wheels:
        yield "pip", None
    for path in wheels:
        yield "pip", path
    installed = toolkit / "bin" / "nvcc"
    yield "toolkit", installed if installed.is_file() else None


def _absent(source: str, env: Mapping[str, str], toolkit: Path) -> str:
    if source == "CUDA_HOME":
        home = env.get("CUDA_HOME")
        return f"CUDA_HOME={home} has no bin/nvcc" if home else "CUDA_HOME is not set"
    return {
        "PATH": "no nvcc on PATH",
        "pip": "no nvcc among the pip wheels (nvidia-cuda-nvcc)",
        "toolkit": f"no nvcc in {toolkit}/bin",
    }[source]
