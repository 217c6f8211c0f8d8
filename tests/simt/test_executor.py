"""The executor under sanitizers: toy kernels that are right pass, each planted fault is reported.

What the executor finds by itself is tested in C++, tests/simt/cpp; the toys are in faults.cpp.
"""

from __future__ import annotations

import fcntl
import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SANITIZERS = {"asan": "address,undefined", "tsan": "thread"}
RIGHT = (
    "right_block",
    "right_warp",
    "right_grid",
    "right_fences",
    "right_cluster",
    "right_cluster_barrier",
)

# toy: (what the report calls it, the kernel in whose stack it is)
OUT_OF_BOUNDS = {
    "global_out_of_bounds": ("heap-buffer-overflow", "block_sum"),
    "global_vector_out_of_bounds": ("heap-buffer-overflow", "block_sum"),
    "shared_out_of_bounds": ("heap-buffer-overflow", "block_sum"),
    "static_out_of_bounds": ("heap-buffer-overflow", "block_sum"),
    "shared_of_an_ended_block": ("heap-use-after-free", "leak_shared"),
}
RACES = {
    "no_barrier": ("data race", "block_sum"),
    "no_barrier_before_reuse": ("data race", "block_sum"),
    "no_sync_warp": ("data race", "neighbours"),
    "no_grid_barrier": ("data race", "hand_on"),
    "no_acquire": ("data race", "hand_on"),
    "no_release": ("data race", "hand_on"),
    "narrow_fence": ("data race", "hand_on"),
    "no_cluster_wait": ("data race", "all_gather"),
    "no_cluster_barrier": ("data race", "to_the_next"),
    "no_barrier_before_send": ("data race", "all_gather"),
}
OTHERS = {"spin": ("a thread has run for 2 s without a scheduling point", "")}


@functools.cache
def build(sanitizer: str, target: str) -> Path:
    """The executable, built in build/simt-<sanitizer>, which a later run finds again."""
    search = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    cmake, ninja = (shutil.which(tool, path=search) for tool in ("cmake", "ninja"))
    if cmake is None or ninja is None:
        pytest.skip("cmake or ninja is not installed: pip install cmake ninja")
    folder = ROOT / "build" / f"simt-{sanitizer}"
    folder.mkdir(parents=True, exist_ok=True)
    configure = [cmake, "-S", str(ROOT), "-B", str(folder), "-G", "Ninja"]
    configure += [f"-DCMAKE_MAKE_PROGRAM={ninja}", f"-DRNNFAST_SANITIZE={SANITIZERS[sanitizer]}"]
    configure += ["-DCMAKE_CXX_FLAGS_RELWITHDEBINFO=-O1 -g", "--log-level=WARNING"]
    make = [cmake, "--build", str(folder), "--target", target]
    make += ["--parallel", os.environ.get("MAX_JOBS", "2")]
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two test runs at once
        for command in (configure, make):
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr
    return folder / "tests" / "simt" / target


def run(sanitizer: str, name: str, seed: int) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "RNNFAST_SIMT_SEED": str(seed), "RNNFAST_SIMT_SCHEDULE": "random"}
    command = [str(build(sanitizer, "simt_faults")), name]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


def test_every_toy_is_listed_here() -> None:
    command = [str(build("asan", "simt_faults"))]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert sorted(printed) == sorted([*RIGHT, *OUT_OF_BOUNDS, *RACES, *OTHERS])


@pytest.mark.parametrize("sanitizer", SANITIZERS)
@pytest.mark.parametrize("name", RIGHT)
def test_a_right_kernel_passes(sanitizer: str, name: str) -> None:
    for seed in range(1, 4):
        done = run(sanitizer, name, seed)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", OUT_OF_BOUNDS)
def test_an_access_out_of_bounds_is_reported(name: str) -> None:
    check_reported(run("asan", name, seed=1), *OUT_OF_BOUNDS[name])


@pytest.mark.parametrize("name", RACES)
def test_a_race_is_reported_in_every_schedule(name: str) -> None:
    """In particular the missing fences and releases, with which all numbers are right here."""
    for seed in range(1, 4):
        check_reported(run("tsan", name, seed), *RACES[name])


def test_a_loop_without_a_scheduling_point_is_reported() -> None:
    check_reported(run("asan", "spin", seed=1), *OTHERS["spin"])


@pytest.mark.parametrize(
    ("variable", "message"),
    [
        ("RNNFAST_SIMT_SEED", "RNNFAST_SIMT_SEED is a whole number, not 'new'"),
        ("RNNFAST_SIMT_SCHEDULE", "is in-order, reverse or random, not 'new'"),
    ],
)
def test_a_variable_that_makes_no_sense_is_refused(variable: str, message: str) -> None:
    command = [str(build("asan", "simt_faults")), "right_warp"]
    environment = {**os.environ, variable: "new"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 1
    assert message in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_the_executors_own_tests_pass(sanitizer: str) -> None:
    command = [str(build(sanitizer, "simt_tests"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


def check_reported(done: subprocess.CompletedProcess[str], message: str, kernel: str) -> None:
    assert done.returncode != 0, done.stdout
    assert message in done.stderr, done.stderr
    assert kernel in done.stderr, done.stderr
