"""Small projects and fake compilers for the tests of the build."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

TINY_LIBRARY = """
#include "answer.h"
extern "C" __attribute__((visibility("default"))) int rnnfast_answer() { return answer(); }
"""
# An extension that compiles in a second: no pybind11 and no torch headers.
TINY_MODULE = """
#include <Python.h>
#include "answer.h"
static PyModuleDef def = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1};
PyMODINIT_FUNC PyInit__C() {
  PyObject* m = PyModule_Create(&def);
  PyModule_AddIntConstant(m, "answer", answer());
  return m;
}
"""


def fake_nvcc(path: Path, version: str) -> Path:
    """A script in the place of nvcc that says it is of `version`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    release = ".".join(version.split(".")[:2])
    path.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {release}, V{version}'\n")
    path.chmod(0o755)
    return path


def copy_project(folder: Path) -> Path:
    """The files that a build reads, without what an earlier build left among them."""
    ignore = shutil.ignore_patterns("__pycache__", "*.so", "_build_info.json", "results")
    for name in ("rnnfast", "csrc", "tests", "benchmarks", "docs", ".github"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, folder)
    return folder


def tiny_project(folder: Path) -> Path:
    """The real build with a package and an extension of a few lines."""
    for name in ("setup.py", "pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    (folder / "README.md").write_text("A project for a test.\n")
    shutil.copytree(
        ROOT / "rnnfast/_build",
        folder / "rnnfast/_build",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    shutil.copy(ROOT / "rnnfast/_version.py", folder / "rnnfast")
    (folder / "rnnfast/__init__.py").write_text("")
    (folder / "csrc/bindings").mkdir(parents=True)
    (folder / "csrc/bindings/module.cpp").write_text(TINY_MODULE)
    (folder / "csrc/ops").mkdir()
    (folder / "csrc/ops/library.cpp").write_text(TINY_LIBRARY)
    (folder / "csrc/answer.h").write_text("int answer();\n")
    (folder / "csrc/answer.cpp").write_text('#include "answer.h"\nint answer() { return 41; }\n')
    (folder / "csrc/sources.txt").write_text("# one file\nanswer.cpp\n")
    return folder


def run(command: list[str], cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run with `env` over the environment; stdout and stderr together in `stdout`."""
    return subprocess.run(
        command,
        cwd=cwd,
        env=clean_env(env),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def clean_env(env: Mapping[str, str]) -> dict[str, str]:
    """The environment without the switches of the build, and of make, that this run has."""
    switches = ["RNNFAST_CUDA", "FORCE_CUDA", "RNNFAST_DEBUG", "RNNFAST_PORTABLE"]
    switches += ["TORCH_CUDA_ARCH_LIST", "CUDA_HOME", "CXX", "MAKEFLAGS"]
    return {k: v for k, v in os.environ.items() if k not in switches} | dict(env)


def python(code: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process of its own, importing from `cwd` first."""
    return run([sys.executable, "-c", code], cwd, PYTHONPATH=str(cwd), **env)


def build_in_place(project: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return run([sys.executable, "setup.py", "-q", "build_ext", "--inplace"], project, **env)
