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
