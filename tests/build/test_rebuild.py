"""Building again: nothing when nothing changed, and only what a change reaches."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rnnfast._build import host, record
from rnnfast._build.recipe import extension_suffix

from .support import build_in_place, python, tiny_project


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small project, built once; a test that edits it leaves sources that compile."""
    compiler, reason = host.find_compiler()
    if compiler is None:
        pytest.skip(reason)
    project = tiny_project(tmp_path_factory.mktemp("project"))
    first = build_in_place(project, RNNFAST_CUDA="0")
    assert first.returncode == 0, first.stdout
    return project


@pytest.fixture
def broken(project: Path) -> Iterator[Path]:
    """The project with a source that doesn't compile."""
    source = project / "csrc/answer.cpp"
    good = source.read_text()
    edit(source, "int answer() { return nonsense; }\n")
    yield project
    edit(source, good)


def answer(project: Path) -> str:
    done = python("import rnnfast._C as c; print(c.answer)", project)
    assert done.returncode == 0, done.stdout
    return done.stdout.strip()


def edit(path: Path, text: str) -> None:
    """Write, with a time later than that of anything built before."""
    path.write_text(text)
    later = time.time() + 2
    os.utime(path, (later, later))


def test_a_second_build_compiles_nothing_and_leaves_the_extension_as_it_is(project):
    extension = project / f"rnnfast/_C{extension_suffix()}"
    before = extension.stat().st_mtime_ns
    second = build_in_place(project, RNNFAST_CUDA="0")
    assert second.returncode == 0, second.stdout
    assert "no work to do" in second.stdout
    assert extension.stat().st_mtime_ns == before
    assert answer(project) == "41"
    assert ctypes.CDLL(str(project / "rnnfast/librnnfast.so")).rnnfast_answer() == 41


def test_a_changed_source_is_compiled_alone(project):
    edit(project / "csrc/answer.cpp", '#include "answer.h"\nint answer() { return 42; }\n')
    changed = build_in_place(project, RNNFAST_CUDA="0")
    assert "cxx answer.cpp.o" in changed.stdout
    assert "cxx bindings/module.cpp.o" not in changed.stdout
    assert answer(project) == "42"


def test_a_changed_header_compiles_what_includes_it(project):
    edit(project / "csrc/answer.h", "int answer();  // changed\n")
    changed = build_in_place(project, RNNFAST_CUDA="0")
    assert "cxx answer.cpp.o" in changed.stdout
    assert "cxx bindings/module.cpp.o" in changed.stdout


def test_an_error_of_the_compiler_fails_the_build_and_is_shown(broken):
    failed = build_in_place(broken, RNNFAST_CUDA="0")
    assert failed.returncode != 0
    assert "nonsense" in failed.stdout
    assert "rnnfast build: the compiler failed" in failed.stdout


def test_debug_builds_beside_and_the_record_tells(project):
    built = build_in_place(project, RNNFAST_CUDA="0", RNNFAST_DEBUG="1")
    assert built.returncode == 0, built.stdout
    assert record.read(project / "rnnfast")["debug"] is True
    assert "-O0" in record.read(project / "rnnfast")["flags"]
    assert len(list((project / "build").glob("ext*/_C.so"))) == 2


def test_a_build_without_compiler_removes_the_old_extension_and_says_so(project):
    skipped = build_in_place(project, CXX="/no/such/compiler")
    assert skipped.returncode == 0, skipped.stdout
    lines = [x for x in skipped.stdout.splitlines() if x.startswith("rnnfast build:")]
    assert len(lines) == 1
    assert "extension skipped: no C++ compiler (CXX=/no/such/compiler does not run)" in lines[0]
    assert not list((project / "rnnfast").glob("*.so"))
    assert record.read(project / "rnnfast")["built"] is False


def test_cuda_that_cannot_be_had_fails_in_one_line(project):
    failed = build_in_place(project, CXX="/no/such/compiler", RNNFAST_CUDA="1")
    assert failed.returncode != 0
    assert "Traceback" not in failed.stdout
    assert "rnnfast build: RNNFAST_CUDA=1 asks for CUDA" in failed.stdout
