"""Deciding what to build, from the environment, the compilers and torch."""

from __future__ import annotations

import os
import re
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from . import host, nvcc, torchinfo

DEFAULT_ARCHS = "8.0;9.0+PTX"  # machine code for A100 and H100; PTX for what came after
WITHOUT_IT = "rnnfast works without it, on the reference, torch and Triton backends"


class BuildError(Exception):
    """A build is asked for that can't be made; the message says why and what mends it."""


@dataclass(frozen=True)
class Recipe:
    torch: torchinfo.TorchInfo
    compiler: host.Compiler
    ninja: str
    python_include: Path
    nvcc: nvcc.Nvcc | None
    cuda_note: str  # "CUDA on: …" or "CUDA off: …", one line
    archs: tuple[str, ...]  # ("8.0", "9.0+PTX"); empty without CUDA
    debug: bool
    fast_tanh: bool = False
    portable: bool = False  # without _C, which is for one Python

    def summary(self) -> str:
        mode = ("debug " if self.debug else "") + ("portable " if self.portable else "")
        return f"{mode}C++ by {self.compiler} against torch {self.torch.version}; {self.cuda_note}"


def make_recipe(env: Mapping[str, str] | None = None) -> Recipe | str:
    """The recipe, or the reason why no extension is built here.

    Raises BuildError where RNNFAST_CUDA=1 asks for what isn't there, or a switch has a bad value.
    """
    env = os.environ if env is None else env
    want_cuda = _switch(env, "RNNFAST_CUDA", "auto", ("auto", "0", "1"))
    if want_cuda == "auto" and _switch(env, "FORCE_CUDA", "0", ("0", "1")) == "1":
        want_cuda = "1"
    debug = _switch(env, "RNNFAST_DEBUG", "0", ("0", "1")) == "1"
    portable = _switch(env, "RNNFAST_PORTABLE", "0", ("0", "1")) == "1"
    torch = torchinfo.find_torch()
    compiler, no_compiler = host.find_compiler(env)
    include = host.python_header_dir()
    if torch is None or compiler is None or include is None:
        reason = _why_skipped(torch, no_compiler)
        if want_cuda == "1":
            raise BuildError(f"{_asking(env)} asks for CUDA, but there is {reason}")
        return reason
    ninja = host.find_ninja(env)
    if ninja is None:
        raise BuildError("ninja runs the build and is not installed: pip install ninja")
    if portable and want_cuda != "1":
        found, note = None, "CUDA off: RNNFAST_PORTABLE=1 without RNNFAST_CUDA=1"
    else:
        found, note = _choose_cuda(want_cuda, torch, env)
    archs = parse_archs(env.get("TORCH_CUDA_ARCH_LIST") or DEFAULT_ARCHS) if found else ()
    if found:
        note += f", architectures {' '.join(archs)}"
    fast_tanh = _switch(env, "RNNFAST_FAST_TANH", "0", ("0", "1")) == "1"
    return Recipe(torch, compiler, ninja, include, found, note, archs, debug, fast_tanh, portable)


def parse_archs(text: str) -> tuple[str, ...]:
    """Split TORCH_CUDA_ARCH_LIST ("8.0;9.0a 10.0+PTX"); BuildError for anything but numbers."""
    archs = tuple(a for a in re.split(r"[;,\s]+", text) if a)
    for arch in archs:
        if not re.fullmatch(r"\d+\.\d[af]?(\+PTX)?", arch):
            raise BuildError(
                f"TORCH_CUDA_ARCH_LIST: {arch!r} is no architecture; write numbers, "
                "such as '8.0;9.0+PTX'"
            )
    if not archs:
        raise BuildError("TORCH_CUDA_ARCH_LIST names no architecture")
    return archs


def gencode(archs: tuple[str, ...]) -> list[str]:
    """nvcc's flags for these architectures."""
    flags = []
    for arch in archs:
        number = arch.removesuffix("+PTX").replace(".", "")
        codes = [f"sm_{number}"] + [f"compute_{number}"] * arch.endswith("+PTX")
        flags += [f"-gencode=arch=compute_{number},code={code}" for code in codes]
    return flags


def extension_suffix() -> str:
    """`.cpython-311-x86_64-linux-gnu.so`: what the running Python imports."""
    return str(sysconfig.get_config_var("EXT_SUFFIX"))


def _choose_cuda(
    want: str, torch: torchinfo.TorchInfo, env: Mapping[str, str]
) -> tuple[nvcc.Nvcc | None, str]:
    if want == "0":
        return None, "CUDA off: RNNFAST_CUDA=0"
    if want == "auto" and not env.get("TORCH_CUDA_ARCH_LIST") and not host.gpu_visible(env):
        asks = "TORCH_CUDA_ARCH_LIST or FORCE_CUDA=1 compiles for one elsewhere"
        return None, f"CUDA off: no NVIDIA GPU is visible ({asks})"
    if torch.cuda is None:
        reason = f"torch {torch.version} is a build without CUDA"
    else:
        search = nvcc.find_nvcc(torch.cuda, env)
        if search.nvcc is not None:
            passed_over = f" (passed over: {'; '.join(search.unfit)})" if search.unfit else ""
            return search.nvcc, f"CUDA on: {search.nvcc}{passed_over}"
        reason = f"no nvcc for torch {torch.version}: {search.why_not()}"
    if want == "1":
        raise BuildError(f"{_asking(env)} asks for CUDA, but {reason}")
    return None, f"CUDA off: {reason}"


def _asking(env: Mapping[str, str]) -> str:
    return "RNNFAST_CUDA=1" if env.get("RNNFAST_CUDA") == "1" else "FORCE_CUDA=1"


def _why_skipped(torch: torchinfo.TorchInfo | None, no_compiler: str) -> str:
    if torch is None:
        return (
            "no torch in the build's environment; build against the installed one with "
            "`pip install --no-build-isolation .`"
        )
    return no_compiler or "no Python.h (the package python3-dev, or the like)"


def _switch(env: Mapping[str, str], name: str, default: str, allowed: tuple[str, ...]) -> str:
    value = env.get(name) or default
    if value not in allowed:
        raise BuildError(f"{name}={value!r}: it must be one of {', '.join(allowed)}")
    return value
