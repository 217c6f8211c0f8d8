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
    "torch": "2.9.0+cpu",
    "python": sysconfig.get_config_var("SOABI"),
}


def test_a_record_that_fits_is_no_mismatch():
    assert _ext.mismatch(GOOD, "2.9.0+cpu") is None


def test_another_torch_names_both_versions_and_the_command():
    message = _ext.mismatch(GOOD, "2.14.1+cu130")
    for part in ("2.9.0+cpu", "2.14.1+cu130", "make setup", "--no-build-isolation"):
        assert part in message


def test_another_python_names_both():
    message = _ext.mismatch(GOOD | {"python": "cpython-27"}, "2.9.0+cpu")
    assert "cpython-27" in message
    assert GOOD["python"] in message


def test_a_wheel_names_the_command_of_the_documents():
    message = _ext.mismatch(GOOD | {"portable": True}, "2.9.0+cpu")
    assert "a wheel has no rnnfast._C" in message
    command = message.split("`")[1]
    assert f"\n{command}\n" in (ROOT / "docs/build.md").read_text()


def test_not_built_names_the_reason_or_the_command():
    assert "make setup" in _ext.mismatch(None, "2.9.0")
    message = _ext.mismatch({"built": False, "reason": "no C++ compiler (…)"}, "2.9.0")
    assert "no C++ compiler" in message
    assert "make setup" in message


def test_this_extension_loads_or_says_why():
    module, reason = _ext.load(), _ext.why_missing()
    if module is None:
        assert reason
        pytest.skip(f"the extension is not loaded here: {reason}")
    assert reason is None
    assert _ext.why_no_cpu() is None
    assert module.torch_version == _ext.build_record()["torch"]


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package without an extension."""
    return copy_project(tmp_path)


def load_elsewhere(folder: Path) -> str:
    done = python(
        "import rnnfast, rnnfast._ext as e; print(e.load()); print(e.why_missing())\n"
        "print(e.why_no_cpu())",
        folder,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_the_package_imports_without_an_extension(package):
    out = load_elsewhere(package)
    assert out.startswith("None\nthe extension is not built; ")
    assert out.splitlines()[2] == out.splitlines()[1]


def test_one_built_against_another_torch_is_not_opened(package):
    """Its file would crash whoever opened it; the record is asked first."""
    for name in (f"_C{extension_suffix()}", "_cpu.abi3.so"):
        (package / "rnnfast" / name).write_bytes(b"not a library")
    record.write(package / "rnnfast", GOOD | {"torch": "2.0.0"})
    out = load_elsewhere(package)
    assert out.startswith("None\nthe extension was built against torch 2.0.0, and this is torch ")
    assert "rnnfast._cpu does not load: " in out  # it was tried: it is for every torch


def test_one_that_the_linker_refuses_comes_with_the_command(package):
    import torch

    (package / f"rnnfast/_C{extension_suffix()}").write_bytes(b"not a library")
    record.write(package / "rnnfast", GOOD | {"torch": str(torch.__version__)})
    out = load_elsewhere(package)
    assert out.startswith("None\nrnnfast._C does not load: ")
    assert "make setup" in out
