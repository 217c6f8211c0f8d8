"""The commands of the Makefile that must fail, fail at once and clearly."""

from __future__ import annotations

import shutil

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
