"""Loading the extension: what is said where it is missing, of another torch, or broken."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import pytest

from rnnfast import _ext
from rnnfast._build import record
from rnnfast._build.recipe import extension_suffix

from .support import ROOT, copy_project, python

GOOD = {
    "built": True,
    "portable": False,
    "torch": "2.9.0+cu130",
    "cuda": "13.0.88",
    "cuda_note": "CUDA on: nvcc 13.0.88",
    "python": sysconfig.get_config_var("SOABI"),
}


def test_a_record_that_fits_is_no_mismatch():
    assert _ext.mismatch(GOOD) is None
    assert _ext.no_cuda(GOOD, "13.0") is None
    assert _ext.no_cuda(GOOD, "13.2") is None  # of one major version they go together


@pytest.mark.parametrize(("cuda", "has"), [("12.8", "for CUDA 12.8"), (None, "without CUDA")])
def test_a_torch_of_another_cuda_names_both_and_the_command(cuda, has):
    message = _ext.no_cuda(GOOD, cuda)
    for part in ("were built for CUDA 13, and", f"this torch {has}", "make setup"):
        assert part in message


def test_without_cuda_the_note_is_told_and_of_a_wheel_the_command():
    without = GOOD | {"cuda": None, "cuda_note": "CUDA off: RNNFAST_CUDA=0"}
    assert _ext.no_cuda(without, "13.0") == (
        "rnnfast was built without CUDA (CUDA off: RNNFAST_CUDA=0)"
    )
    message = _ext.no_cuda(without | {"portable": True}, "13.0")
    assert f"\n{message.split('`')[1]}\n" in (ROOT / "docs/build.md").read_text()


def test_another_python_names_both():
    message = _ext.mismatch(GOOD | {"python": "cpython-27"})
    assert "cpython-27" in message
    assert GOOD["python"] in message


def test_a_wheel_names_the_command_of_the_documents():
    message = _ext.mismatch(GOOD | {"portable": True})
    assert "a wheel has no rnnfast._C" in message
    command = message.split("`")[1]
    assert f"\n{command}\n" in (ROOT / "docs/build.md").read_text()


@pytest.mark.parametrize("asked", [_ext.mismatch, lambda info: _ext.no_cuda(info, "13.0")])
def test_not_built_names_the_reason_or_the_command(asked):
    assert "make setup" in asked(None)
    message = asked({"built": False, "reason": "no C++ compiler (…)"})
    assert "no C++ compiler" in message
    assert "make setup" in message


def test_this_extension_loads_or_says_why():
    module, reason = _ext.load(), _ext.why_missing()
    if module is None:
        assert reason
        pytest.skip(f"the extension is not loaded here: {reason}")
    assert reason is None
    assert _ext.why_no_cpu() is None
    assert module.cuda_device_numbers("H100")[0] == 90


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package without an extension."""
    return copy_project(tmp_path)


def load_elsewhere(folder: Path) -> str:
    done = python(
        "import rnnfast, rnnfast._ext as e; print(e.load()); print(e.why_missing())\n"
        "print(e.why_no_cpu()); print(e.why_no_cuda())",
        folder,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_the_package_imports_without_an_extension(package):
    out = load_elsewhere(package)
    assert out.startswith("None\nthe extension is not built; ")
    assert out.splitlines()[1] == out.splitlines()[2] == out.splitlines()[3]


def test_one_built_for_another_python_is_not_opened(package):
    """Its file would crash whoever opened it; the record is asked first."""
    for name in (f"_C{extension_suffix()}", "_cpu.abi3.so"):
        (package / "rnnfast" / name).write_bytes(b"not a library")
    record.write(package / "rnnfast", GOOD | {"python": "cpython-27"})
    out = load_elsewhere(package)
    assert out.startswith("None\nthe extension was built for cpython-27, and this is ")
    assert "rnnfast._cpu does not load: " in out  # it was tried: it is for every Python


def test_one_that_the_linker_refuses_comes_with_the_command(package):
    import torch

    for name in (f"_C{extension_suffix()}", _ext.CUDA):
        (package / "rnnfast" / name).write_bytes(b"not a library")
    record.write(package / "rnnfast", GOOD | {"cuda": torch.version.cuda})
    _, module, _, cuda = load_elsewhere(package).splitlines()[:4]
    assert module.startswith("rnnfast._C does not load: ")
    assert "make setup" in module
    assert torch.version.cuda is None or cuda.startswith(f"{_ext.CUDA} does not load: ")
