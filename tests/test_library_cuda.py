"""rnnfast.library for GPUs: CUDA C++ compiled by nvcc, here by a script in its place."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from rnnfast import library
from rnnfast._build import nvcc
from rnnfast.library import LibraryError, compiler

from .library_cases import fresh, needs_compiler

pytestmark = [
    needs_compiler,
    pytest.mark.skipif(torch.version.cuda is None, reason="torch is a build without CUDA"),
]

SOURCE = 'extern "C" int answer() { return 42; }\n'
SCRIPT = """#!/bin/sh
if [ "$1" = --version ]; then
  echo "Cuda compilation tools, release {release}, V{release}.1"; exit
fi
echo "$@" >> {calls}
{before}
for word; do
  case $last in -o) out=$word ;; esac
  case $word in *.cu) source=$word ;; esac
  last=$word
done
g++ -shared -fPIC -o "$out" -x c++ "$source"
"""


class FakeNvcc:
    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.home, self.calls = folder / "cuda", folder / "calls"
        self.path = self.home / "bin" / "nvcc"
        self.path.parent.mkdir(parents=True)
        self.is_there()
        patch.setenv("CUDA_HOME", str(self.home))
        library.forget()

    def is_there(self, before: str = "", release: str = str(torch.version.cuda)) -> None:
        self.path.write_text(SCRIPT.format(calls=self.calls, before=before, release=release))
        self.path.chmod(0o755)
        library.forget()

    def called(self) -> list[str]:
        return self.calls.read_text().splitlines() if self.calls.exists() else []


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeNvcc]:
    with fresh(tmp_path, monkeypatch):
        yield FakeNvcc(tmp_path, monkeypatch)


@pytest.fixture
def nothing_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No nvcc on PATH, among the wheels or in the toolkit's place."""
    monkeypatch.setattr(nvcc, "pip_site_dirs", lambda: [])
    monkeypatch.setattr(nvcc, "TOOLKIT", tmp_path / "none")
    monkeypatch.setenv("PATH", "/usr/bin:/bin")


def test_it_is_compiled_once_for_each_architecture(fake: FakeNvcc) -> None:
    assert library.why_not(target="sm_90") is None
    for target in ("sm_80", "sm_90"):
        assert library.status(SOURCE, target) == "not compiled yet"
        loaded = library.load(SOURCE, name="a", target=target)
        assert loaded.answer() == 42
        assert library.load(SOURCE, name="a", target=target) is loaded
        assert library.status(SOURCE, target).startswith("cached at ")
        library.forget()
        assert library.load(SOURCE, name="a", target=target).answer() == 42
    assert [word for call in fake.called() for word in call.split() if "arch" in word] == [
        "-arch=sm_80",
        "-arch=sm_90",
    ]
    assert len(library.listed()) == 2
    assert library.status(SOURCE) == "not compiled yet"  # for the host


def test_another_nvcc_makes_another_entry(fake: FakeNvcc) -> None:
    before = compiler.key(SOURCE, "sm_90")
    fake.is_there(before="# another one")
    after = compiler.key(SOURCE, "sm_90")
    assert after.code == before.code
    assert after.compiler != before.compiler
    assert fake.called() == []  # it was not run for this


def test_what_nvcc_says_is_told(fake: FakeNvcc) -> None:
    fake.is_there(before="echo 'cell.cu(3): error: no such thing' >&2; exit 2")
    for _ in range(2):
        with pytest.raises(
            LibraryError, match=r"ended with status 2\ncell.cu\(3\): error: no such"
        ):
            library.load(SOURCE, name="a", target="sm_90")
    assert len(fake.called()) == 1


@pytest.mark.usefixtures("nothing_else")
def test_without_nvcc_what_is_kept_is_used(fake: FakeNvcc) -> None:
    library.load(SOURCE, name="a", target="sm_90")
    fake.path.unlink()
    library.forget()
    problem = str(library.why_not(target="sm_90"))
    assert problem.startswith("no nvcc that fits torch (CUDA_HOME=")
    assert "no nvcc on PATH" in problem
    assert library.why_not() is None  # the host's compiler is another
    assert library.load(SOURCE, name="a", target="sm_90").answer() == 42
    with pytest.raises(LibraryError, match="can't be compiled here: no nvcc that fits torch"):
        library.load(SOURCE + "//", name="a", target="sm_90")


@pytest.mark.usefixtures("nothing_else")
def test_an_nvcc_that_does_not_fit_torch_is_refused(fake: FakeNvcc) -> None:
    fake.is_there(release="9.9")
    assert "does not fit torch" in str(library.why_not(target="sm_90"))


def test_the_runtime_is_the_one_that_torch_has() -> None:
    """A second one in the process would have streams and devices of its own."""
    found = compiler.recipe("sm_90")
    if found.libraries:
        assert "-cudart=none" in found.flags
        assert str(torch.version.cuda).partition(".")[0] in found.libraries[-1]
