"""The matrix, and what else is asked of every backend, on the Triton kernels in the interpreter.

Each test is a pytest of its own with ``TRITON_INTERPRET=1``, since Triton decides when a kernel is
made, once a process, whether it compiles or interprets.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

from ..cases import BUILT_IN
from .checks import STORED, STRATEGIES

ROOT = Path(__file__).resolve().parents[2]
MATRIX = "tests/test_matrix.py"
FOLDER = "tests/triton/interpreted"
KERNELS = f"{FOLDER}/test_kernels.py"
OWN = f"{FOLDER}/test_own.py"
SMALL = "(T7B3I4H6] or all_states-clip)"  # nothing on, and everything


def run_pytest(*arguments: str, strategy: str = "auto") -> int:
    """How many tests passed; the others were skipped, and none failed."""
    env = {**os.environ, "TRITON_INTERPRET": "1", "RNNFAST_TRITON_STRATEGY": strategy}
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider"]
    command += ["-p", "tests.triton.interpreter", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    told = done.stdout[-6000:] + done.stderr[-2000:]
    assert done.returncode == 0, told
    found = re.search(r"^(\d+) passed", done.stdout.splitlines()[-1])
    assert found is not None, told
    return int(found.group(1))


@pytest.mark.parametrize(
    ("strategy", "cases"),
    [
        ("auto", "float32 and all_states-clip and not (rnn or lstm-)"),
        ("stepwise", "bfloat16 and all_states-clip and (rnn_relu or lstm-)"),
    ],
)
def test_a_few_cases(strategy: str, cases: str) -> None:
    passed = run_pytest(MATRIX, "-k", f"triton and {cases}", strategy=strategy)
    assert passed >= 2


@pytest.mark.parametrize(
    ("strategy", "cases"),
    [
        ("auto", f"float32 and not T63 and (not (lstm_proj or rnn_tanh) or {SMALL})"),
        ("auto", f"(bfloat16 or float16) and ({SMALL} or H96])"),
        ("stepwise", f"float32 and ({SMALL} or tokens-lengths)"),
        ("stepwise", "(bfloat16 or float16) and all_states-clip"),
        ("auto", "float32 and T63B5I1H33-reverse"),
    ],
)
def test_the_matrix_in_part(strategy: str, cases: str) -> None:
    passed = run_pytest(MATRIX, "-k", f"triton and {cases}", strategy=strategy)
    assert passed >= len(BUILT_IN)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("cell", BUILT_IN)
@pytest.mark.parametrize("strategy", ["auto", "stepwise"])
def test_the_matrix(strategy: str, cell: str, dtype: str) -> None:
    """Every case that the backend ``cpu`` passes, but those in float64; at H = 257, the slowest,
    ``auto`` is stepwise, so that is not run twice."""
    rest = " and not H257" if strategy == "stepwise" else ""
    taken, same = (
        run_pytest(MATRIX, "-k", f"loop[{name}-{dtype}-{cell}-T{rest}", strategy=strategy)
        for name in ("triton", "cpu")
    )
    assert taken == same


def test_bad_input() -> None:
    chosen = "(triton or nan_and_inf) and not 65536"
    assert run_pytest("tests/test_bad_input.py", "-k", chosen) == 5


@pytest.mark.slow  # the interpreter takes some milliseconds a step
def test_more_than_65536_steps() -> None:
    assert run_pytest("tests/test_bad_input.py", "-k", "triton and 65536") == 1


def test_what_only_this_backend_has() -> None:
    assert run_pytest(KERNELS, "-k", "not bfloat16") == 18 + len(BUILT_IN)


def test_what_only_this_backend_has_stepwise() -> None:
    chosen = "several or tiny or diverging or bits"
    assert run_pytest(KERNELS, "-k", chosen, strategy="stepwise") == 4 + len(BUILT_IN)


@pytest.mark.slow
def test_opcheck_in_16_bit() -> None:
    assert run_pytest(KERNELS, "-k", "opcheck and bfloat16") == 5


def test_cells_of_ones_own_in_part() -> None:
    loop = "is_the_loop and (everything or handed) and (resets or clipped)"
    rest = "16_bit and three or tiles or function or explain or resident or forwards"
    assert run_pytest(OWN, "-k", f"{loop} or {rest}") == 6 + 2 + 1 + 2 * 22 + 2 + 2 + 1


@pytest.mark.slow
def test_cells_of_ones_own() -> None:
    assert run_pytest(OWN) == 246


def test_what_happens_on_another_device() -> None:
    assert run_pytest(f"{FOLDER}/test_devices.py") == 57


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_lengths_out_of_range_do(strategy: str) -> None:
    chosen = f"lengths and {strategy}"
    assert run_pytest(f"{FOLDER}/test_checks.py", "-k", chosen) == 2 * len(BUILT_IN)


@pytest.mark.slow
@pytest.mark.parametrize("math", STORED)
def test_the_values_that_a_gpu_is_asked_for(math: str) -> None:
    passed = run_pytest(f"{FOLDER}/test_checks.py", "-k", f"values and {math}")
    assert passed == len(STRATEGIES) * len(BUILT_IN)
