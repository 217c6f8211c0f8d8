"""The sdist and the wheel, installed by the documented commands, run."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from rnnfast._build import host

from .installed import RUN_A_LAYER, SDIST, WHEEL, environment, install, main
from .support import ROOT, copy_project, run
from .test_packaging import build

COMPILER, WHY_NO_COMPILER = host.find_compiler()
needs_compiler = pytest.mark.skipif(COMPILER is None, reason=WHY_NO_COMPILER or "a compiler")
COMPILE_A_CELL = """
from pathlib import Path
import rnnfast
from rnnfast import library
source = '#include "cpu/panel.h"\\nextern "C" __attribute__((visibility("default"))) '
source += "int lanes() { return rnnfast::cpu::RNNFAST_ISA::Vec<float>::kLanes; }"
assert library.load(source, name="a").lanes() in (4, 8, 16)
assert library.include_folder() == Path(rnnfast.__file__).parent / "_csrc"
"""


def run_in(place: Path, code: str, **env: str) -> subprocess.CompletedProcess[str]:
    """In the environment in ``place``, in a folder without a checkout."""
    return run([str(place / "env/bin/python"), "-c", code], place, **env)


def test_these_are_the_documented_commands():
    page = (ROOT / "docs/build.md").read_text()
    assert "pip install rnnfast\n" in page
    assert "pip install --no-build-isolation rnnfast-" in page
    assert [word for word in SDIST if word != "--no-index"] == ["install", "--no-build-isolation"]
    assert [word for word in WHEEL if word != "--no-index"] == ["install"]


def test_the_sdist_installs_where_there_is_no_compiler_and_runs(tmp_path):
    sdist = build(copy_project(tmp_path / "project"), "sdist")
    python = environment(tmp_path)
    done = install(python, sdist, CXX="/no/such/compiler")
    assert done.returncode == 0, done.stdout
    done = run_in(tmp_path, RUN_A_LAYER)
    assert done.returncode == 0, done.stdout
    assert "the extension was not built, for: no C++ compiler" in done.stdout
    assert not [path for path in (tmp_path / "seen").iterdir() if "rnnfast" in path.name]


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("kind", ["sdist", "wheel"])
def test_what_is_released_installs_and_runs_with_its_extension(kind, tmp_path):
    """The wheel is made from the sdist, as `make wheel` makes it from a checkout."""
    made = build(copy_project(tmp_path / "project"), "sdist")
    no_compiler = {"CXX": "/no/such/compiler"} if kind == "wheel" else {}
    if kind == "wheel":
        with tarfile.open(made) as archive:
            archive.extractall(tmp_path / "unpacked", filter="data")
        (source,) = (tmp_path / "unpacked").iterdir()
        made = build(source, "wheel", RNNFAST_PORTABLE="1")
        assert "-cp310-abi3-" in made.name
    done = install(environment(tmp_path), made, RNNFAST_CUDA="0", **no_compiler)
    assert done.returncode == 0, done.stdout
    done = run_in(tmp_path, RUN_A_LAYER, **no_compiler)
    *_, bindings, missing = done.stdout.splitlines()
    assert (done.returncode, missing) == (0, "None"), done.stdout
    assert bindings.startswith("a wheel has no rnnfast._C" if kind == "wheel" else "None")
    done = run_in(tmp_path, COMPILE_A_CELL, RNNFAST_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 0, done.stdout


def test_a_wheel_that_does_not_run_is_told(tmp_path, capsys):
    done = run(
        [sys.executable, "-c", "import zipfile; zipfile.ZipFile('a-1-py3-none-any.whl', 'w')"],
        tmp_path,
    )
    assert done.returncode == 0, done.stdout
    assert main([str(tmp_path / "a-1-py3-none-any.whl")]) == 1
    assert main([]) == 1
    assert "a-1-py3-none-any.whl: " in capsys.readouterr().out
