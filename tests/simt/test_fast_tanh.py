"""RNNFAST_FAST_TANH=1: how much further the forward kernels are from float64, on the executor."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from .mutate import ROOT, compiler, executor, flags

BF16, FP16 = 2.0**-9, 2.0**-12  # half a last place of 1
APPROXIMATE = 2.0**-11  # of tanh.approx, relative, by the PTX ISA


def measure(folder: Path, *defines: str) -> dict[tuple[str, str], tuple[float, float]]:
    """(cell, dtype) -> root mean square and largest error of all outputs."""
    program = folder / "fast_tanh"
    includes = [f"-I{ROOT / p}" for p in ("csrc", "tests", "tests/cpp", "tests/simt/cpp")]
    source = ROOT / "tests/simt/cpp/fast_tanh.cpp"
    command = [*compiler(), *flags(""), *defines, *includes, str(source), str(executor())]
    subprocess.run([*command, "-pthread", "-o", str(program)], check=True)
    lines = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    words = [line.split() for line in lines.splitlines()]
    return {(cell, dtype): (float(rms), float(most)) for cell, dtype, rms, most in words}


@pytest.mark.slow
def test_the_approximation_costs_less_than_bf16_does(tmp_path: Path) -> None:
    exact, fast = measure(tmp_path), measure(tmp_path, "-DRNNFAST_FAST_TANH")
    assert exact.keys() == fast.keys()
    for case, (rms, most) in fast.items():
        assert rms != exact[case][0], "the switch does nothing"
        own = BF16 if case[1] == "bf16" else FP16
        assert rms < exact[case][0] + APPROXIMATE, case
        assert most < exact[case][1] + 4 * max(own, APPROXIMATE), case
