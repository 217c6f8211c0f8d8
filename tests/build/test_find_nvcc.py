"""Which nvcc is taken, and what is said of those that aren't."""

from __future__ import annotations

from pathlib import Path

import pytest

from rnnfast._build.nvcc import find_nvcc

from .support import fake_nvcc


@pytest.fixture
def places(tmp_path: Path) -> dict[str, Path]:
    """Where each of the four places would have its nvcc; none is there yet."""
    return {
        "CUDA_HOME": tmp_path / "toolkit/bin/nvcc",
        "PATH": tmp_path / "bin/nvcc",
        "pip": tmp_path / "site/nvidia/cu13/bin/nvcc",
        "toolkit": tmp_path / "usr/local/cuda/bin/nvcc",
    }


def search(places: dict[str, Path], torch_cuda: str | None = "13.0"):
    env = {
        "CUDA_HOME": str(places["CUDA_HOME"].parents[1]),
        "PATH": str(places["PATH"].parent),
    }
    return find_nvcc(torch_cuda, env, [places["pip"].parents[3]], places["toolkit"].parents[1])


def test_the_order_is_cuda_home_path_pip_and_the_toolkit_s_own_place(places):
    for path in places.values():
        fake_nvcc(path, "13.0.88")
    for source, path in places.items():
        found = search(places).nvcc
        assert (found.source, found.path, found.version) == (source, path, "13.0.88")
        path.unlink()
    assert search(places).nvcc is None


def test_one_of_another_version_is_passed_over_and_both_versions_are_named(places):
    fake_nvcc(places["CUDA_HOME"], "12.4.131")
    fake_nvcc(places["pip"], "13.0.88")
    result = search(places)
    assert result.nvcc.source == "pip"
    assert len(result.unfit) == 1
    assert "nvcc 12.4.131 (CUDA_HOME: " in result.unfit[0]
    assert "CUDA 13.0" in result.unfit[0]


def test_without_one_that_fits_the_message_has_versions_places_and_the_command(places):
    fake_nvcc(places["PATH"], "12.8.61")
    result = search(places)
    assert result.nvcc is None
    for part in ("12.8.61", "13.0", "has no bin/nvcc", "pip wheels", "pip install 'rnnfast[cuda]'"):
        assert part in result.why_not()


def test_for_cuda_12_the_advice_is_a_toolkit_since_the_wheels_hold_no_nvcc(places):
    fake_nvcc(places["pip"], "13.0.88")
    why_not = search(places, "12.8").why_not()
    assert "install the CUDA 12.8 toolkit" in why_not
    assert "pip install" not in why_not


def test_a_minor_version_apart_fits(places):
    fake_nvcc(places["PATH"], "13.2.10")
    assert search(places).nvcc.version == "13.2.10"


def test_one_that_does_not_run_is_passed_over(places):
    fake_nvcc(places["CUDA_HOME"], "13.0.88").write_text("#!/bin/sh\nexit 3\n")
    fake_nvcc(places["PATH"], "13.0.88")
    result = search(places)
    assert result.nvcc.source == "PATH"
    assert "does not run" in result.unfit[0]


def test_nothing_anywhere_and_cuda_home_unset(tmp_path):
    result = find_nvcc("13.0", {"PATH": str(tmp_path)}, [tmp_path], tmp_path)
    assert result.nvcc is None
    assert result.unfit == ()
    assert result.why_not().startswith("CUDA_HOME is not set; no nvcc on PATH; ")
