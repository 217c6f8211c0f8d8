"""What an sdist and a wheel hold, and that what they install runs."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

from rnnfast._build import host
from rnnfast._build.nvcc import find_nvcc

from .support import build_in_place, copy_project, python, run, tiny_project

NOT_SHIPPED = (".so", ".pyc", "_build_info.json")

LIBRARY, CPU = "rnnfast/librnnfast.so", "rnnfast/_cpu.abi3.so"
CUDA = "rnnfast/librnnfast_cuda.so"
RUN_A_LAYER = """
import torch, rnnfast, rnnfast._ext as e
assert torch.isfinite(rnnfast.LSTM(3, 4)(torch.randn(5, 2, 3))[0]).all()
print(rnnfast.__file__); print(e.why_no_cpu())
"""


def run_build(project: Path, kind: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "build", "--no-isolation", f"--{kind}", "--outdir", "out", "."]
    return run(command, project, **env)


def build(project: Path, kind: str, **env: str) -> Path:
    done = run_build(project, kind, **env)
    assert done.returncode == 0, done.stdout
    (made,) = (project / "out").iterdir()
    return made


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return copy_project(tmp_path)


def test_the_sdist_holds_all_that_a_build_reads_and_nothing_built(project):
    (project / "rnnfast/_build_info.json").write_text("{}")
    (project / "rnnfast/_C.so").write_text("")
    with tarfile.open(build(project, "sdist")) as archive:
        names = {n.partition("/")[2] for n in archive.getnames()}
    wanted = {"setup.py", "pyproject.toml", "LICENSE", "README.md", "CMakeLists.txt", "Makefile"}
    wanted |= {"rnnfast/_build/command.py", "rnnfast/py.typed", "tests/build/support.py"}
    wanted |= {str(p.relative_to(project)) for p in (project / "csrc").rglob("*") if p.is_file()}
    assert any(name.endswith(".cu") for name in wanted)
    assert wanted - names == set()
    assert not [n for n in names if n.endswith(NOT_SHIPPED)]


def test_a_wheel_made_without_a_compiler_is_pure_runs_and_says_what_it_lacks(project, tmp_path):
    for name in ("_C.so", "_cpu.abi3.so", "librnnfast.so", "librnnfast_cuda.so"):
        (project / "rnnfast" / name).write_text("left by another build")
    wheel = build(project, "wheel", CXX="/no/such/compiler")
    assert wheel.name.endswith("-py3-none-any.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        assert json.loads(archive.read("rnnfast/_build_info.json"))["built"] is False
        archive.extractall(site)
    assert not [n for n in names if n.endswith(".so")]
    assert "rnnfast/_csrc/cuda/solo/sequence.cu" in names
    assert "rnnfast/_csrc/sources.txt" in names
    headers = {p.relative_to(project / "csrc") for p in (project / "csrc").rglob("*.h")}
    assert {Path("cpu/vec.h"), Path("cells/math.h"), Path("scan/rules.h")} <= headers
    assert {f"rnnfast/_csrc/{header}" for header in headers} <= set(names)
    done = python(RUN_A_LAYER, site)
    assert done.returncode == 0, done.stdout
    file, reason = done.stdout.splitlines()[-2:]
    assert Path(file).is_relative_to(site)
    assert reason.startswith("the extension was not built, for: no C++ compiler")


def test_a_wheel_holds_the_extension_and_its_record(tmp_path):
    if (compiler := host.find_compiler())[0] is None:
        pytest.skip(compiler[1])
    wheel = build(tiny_project(tmp_path), "wheel", RNNFAST_CUDA="0")
    assert "-linux_" in wheel.name or "-manylinux" in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        assert json.loads(archive.read("rnnfast/_build_info.json"))["built"] is True
    assert [n for n in names if n.startswith("rnnfast/_C.") and n.endswith(".so")]
    assert {LIBRARY, CPU} <= set(names)


@pytest.mark.parametrize("cuda", ["0", "1"])
def test_a_portable_wheel_is_for_every_python_and_holds_no_bindings(tmp_path, cuda):
    if (compiler := host.find_compiler())[0] is None:
        pytest.skip(compiler[1])
    search = find_nvcc(torch.version.cuda)
    if cuda == "1" and (torch.version.cuda is None or search.nvcc is None):
        pytest.skip(f"torch is built for CUDA {torch.version.cuda}; {search.why_not()}")
    project = tiny_project(tmp_path)
    build_in_place(project, RNNFAST_CUDA="0")
    wheel = build(project, "wheel", RNNFAST_PORTABLE="1", RNNFAST_CUDA=cuda)
    assert "-cp310-abi3-linux_" in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        record = json.loads(archive.read("rnnfast/_build_info.json"))
    assert (record["built"], record["portable"]) == (True, True)
    assert (record["cuda"] is None) == (cuda == "0")
    libraries = {LIBRARY, CPU, CUDA} if cuda == "1" else {LIBRARY, CPU}
    assert {n for n in names if n.endswith(".so")} == libraries


def test_the_tiny_wheel_has_nothing_that_was_since_removed(tmp_path):
    project = tiny_project(tmp_path)
    (project / "rnnfast/old.py").write_text("")
    old = build(project, "wheel", CXX="/no/such/compiler")
    assert "rnnfast/old.py" in zipfile.ZipFile(old).namelist()
    (project / "rnnfast/old.py").unlink()
    old.unlink()
    new = build(project, "wheel", CXX="/no/such/compiler")
    assert "rnnfast/old.py" not in zipfile.ZipFile(new).namelist()
