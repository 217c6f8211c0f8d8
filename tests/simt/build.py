"""Builds the CUDA kernels and their ops for the executor, on CPU tensors.

``library()`` compiles what changed, by ninja, into build/simt and gives the library's path;
``python -m tests.simt.build`` does the same from a shell.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import subprocess
from pathlib import Path

from rnnfast._build import host, ninja_file, schemas, torchinfo

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build" / "simt"
FLAGS = ["-O2", "-g1", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-DRNNFAST_SIMT"]
INCLUDES = [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'tests'}"]
LIBRARY, EXECUTOR = "rnnfast_simt.so", "rnnfast_executor.so"
SANITIZED = "rnnfast_executor_asan.so"
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize=vptr"]
KERNELS = ("solo", "stepwise", "team")
TORCH_INCLUDES = ("include", "include/torch/csrc/api/include")


def library(name: str = LIBRARY) -> Path:
    """``LIBRARY``; ``EXECUTOR``: the executor alone, ``SANITIZED``: with AddressSanitizer. Raises
    RuntimeError with the compiler's message where the build fails."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two test runs at once
        _write(FOLDER / "build.ninja", _ninja_file())
        ninja = host.find_ninja(os.environ)
        if ninja is None:
            raise RuntimeError("ninja runs the build and is not installed: pip install ninja")
        command = [ninja, "-C", str(FOLDER), "-j", os.environ.get("MAX_JOBS", "2"), name]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"the build of the kernels for the executor failed:\n{done.stdout}")
    return FOLDER / name


def sources() -> dict[str, list[Path]]:
    """What is compiled, by rule: the executor and kernels, and what includes torch's headers, those
    of its stable ABI alone for the ops."""
    kernels = [p for folder in KERNELS for p in sorted(ROOT.glob(f"csrc/cuda/{folder}/*.cu"))]
    executor = sorted(ROOT.glob("tests/simt/*.cpp"))
    ops = [p for p in sorted(ROOT.glob("csrc/ops_cuda/*.cpp")) if p.stem not in ("clip", "turn")]
    ops.append(ROOT / "csrc/ops/checks.cpp")
    plan = [ROOT / "csrc/scan/problem.cpp", *sorted(ROOT.glob("csrc/cuda/plan/*.cpp"))]
    settings = [ROOT / "tests/simt/ops/module.cpp"]
    return {
        "settings": settings,
        "ops": ops,
        "plan": plan,
        "kernels": kernels,
        "executor": executor,
    }


def _ninja_file() -> str:
    found = torchinfo.find_torch()
    compiler, why = host.find_compiler(os.environ)
    if found is None or compiler is None:
        raise RuntimeError(why or "torch is not installed")
    torch_flags = [
        f"-std={found.cxx_standard}",
        f"-DRNNFAST_TORCH_VERSION={found.version}",  # another torch: compile again
        *(f"-isystem{found.root / p}" for p in TORCH_INCLUDES),
    ]
    stable = [ninja_file.stable_target(), f'-DRNNFAST_INPUTS="{schemas.INPUTS}"']
    own = {"settings": torch_flags, "ops": [*torch_flags, *stable]}
    own |= {"plan": ["-std=c++17"], "kernels": ["-std=c++17", "-x", "c++"]}
    own["executor"] = ["-std=c++17", "-fvisibility=default"]  # for what is linked to it
    own["sanitized"] = [*own["executor"], "-O1", *SANITIZE]
    lines = ["ninja_required_version = 1.5"]
    objects: dict[str, list[str]] = {rule: [] for rule in own}
    for rule, flags in own.items():
        words = shlex.join([*compiler.command, *FLAGS, *INCLUDES, *flags])
        lines += [f"rule {rule}", f"  command = {words} -MMD -MF $out.d -c $in -o $out"]
        lines += ["  depfile = $out.d", "  deps = gcc", f"  description = {rule} $in"]
        sanitized = rule == "sanitized"
        for source in sources()["executor" if sanitized else rule]:
            objects[rule].append(f"{'asan/' * sanitized}{source.relative_to(ROOT)}.o")
            lines.append(f"build {objects[rule][-1]}: {rule} {source}")
    libraries = [f"-L{found.root / 'lib'}", "-lc10", "-ltorch_cpu", "-ltorch", "-pthread"]
    link = shlex.join([*compiler.command, "-shared", "-o", "$out"]).replace("'$out'", "$out")
    lines += ["rule link", f"  command = {link} $in {shlex.join(libraries)}"]
    every = " ".join(o for rule in sources() for o in objects[rule])
    lines += [f"build {LIBRARY}: link {every}"]
    lines += ["rule link_executor", f"  command = {link} $in -pthread"]
    lines += [f"build {EXECUTOR}: link_executor {' '.join(objects['executor'])}"]
    lines += ["rule link_sanitized", f"  command = {link} $in -pthread {shlex.join(SANITIZE)}"]
    lines += [f"build {SANITIZED}: link_sanitized {' '.join(objects['sanitized'])}", ""]
    return "\n".join(lines)


def _write(path: Path, text: str) -> None:
    if not path.is_file() or path.read_text() != text:
        path.write_text(text)


if __name__ == "__main__":
    print(library())
