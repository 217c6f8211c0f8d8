"""What `pytest -m gpu` takes on a machine with a GPU and 16 cores, added up here, without a GPU:

    python -m tests.gpu.cost

One process's share of the tests, each N-th of N, is run by stand-ins: the same case, yardsticks and
comparison, computed by a backend of the CPU. What a GPU's kernels need beside that is compiled for
sm_90, some of it, and timed. What can't be had here is in ``ASSUMED``.
"""

from __future__ import annotations

import contextlib
import io
import resource
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu_check.checks import BATCHES, MOST_PROCESSES, other_files
from rnnfast import library
from rnnfast.cells import CellSpec
from rnnfast.inspect import triton as inspect_triton
from rnnfast.inspect.table import columns
from rnnfast.steps import resident, run_cuda
from rnnfast.steps.cuda_text import cuda_source
from rnnfast.steps.gpu import layout_of
from rnnfast.triton.plan import Device

from .. import own_cells
from ..cases import Case
from ..cuda_cases import EVERYTHING, Run, check
from ..length_cases import B, T
from ..simt import own_cases, test_own_resident
from ..steps import test_own_cpu as own
from ..triton import checks

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
ASSUMED = {
    "context": (5.0, "seconds until a process has CUDA's context, cuBLAS and its first kernels"),
    "step": (100e-6, "seconds of the device for a step and test: ten launches, one after another"),
    "test": (0.03, "seconds of a test for pytest itself and copies to the device and back"),
    "other": (2.0, "seconds of a test that no stand-in is for"),
    "at once": (4.0, "texts that nvcc compiles at a time: tests of a cell follow one another"),
}
SHARES = (0, 5, 11)  # of N; the one that takes longest counts
CAPABILITY = (9, 0)
ARCH = "90"
SAMPLE = 4  # texts that are compiled by nvcc, evenly of all
TRITON_SAMPLE = (("lstm", "bf16"), ("gru", "fp32"), ("rnn_relu", "fp16"))
TRITON_OWN_SAMPLE = ("layer_norm_lstm", "min_lstm")


def seconds_of_cpu() -> float:
    """Of this process and of its children that have ended: other work on the machine counts not."""
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(used.ru_utime + used.ru_stime for used in both)


# --- the tests and their stand-ins ---------------------------------------------------------------


class Collected:
    """A plugin of pytest that keeps what was collected."""

    items: list[pytest.Function]

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.items = [item for item in session.items if isinstance(item, pytest.Function)]


def collect() -> list[pytest.Function]:
    kept = Collected()
    words = ["-q", "--collect-only", "-p", "no:cacheprovider", "-m", "gpu"]
    with contextlib.redirect_stdout(io.StringIO()):
        pytest.main([*words, str(FOLDER), *other_files()], plugins=[kept])
    return kept.items


def on_cpu(asked: Run) -> None:
    check(replace(asked, strategy=""), "cpu")


def of_the_plan(cell: str, math: str) -> None:
    on_cpu(Run("", math, Case(cell, T=12, B=9, I=5, H=72, **EVERYTHING)))


def lengths(cell: str, math: str, reverse: bool, **_: object) -> None:
    on_cpu(Run("", math, Case(cell, T, B, 3, 19, reverse=reverse, lengths=True, resets=True)))


def own_cell(spec: CellSpec, call: str = "plain", dtype: torch.dtype = torch.float32) -> None:
    own.check(spec, dtype, "reference", **own.CALLS[call])


def own_lengths(**_: object) -> None:
    own_cell(own_cells.three_states, "ends and resets")


def of_triton(cell: str, math: str = "float32", reverse: bool = True, **_: object) -> None:
    on_cpu(Run("", math, replace(checks.EVERYTHING, cell=cell, reverse=reverse)))


STAND_INS: dict[str, Callable[..., None]] = {
    "test_matrix_cuda.test_kernels_agree_with_the_naive_loop": on_cpu,
    "test_matrix_cuda.test_teams_agree_with_the_naive_loop": on_cpu,
    "test_matrix_cuda.test_the_plan_of_the_cost_model": of_the_plan,
    "test_lengths_cuda.test_lengths_count_within_the_steps": lengths,
    "test_own_cuda.test_a_cell_is_the_loop": own_cell,
    "test_own_cuda.test_a_cell_in_one_launch_a_pass_is_the_loop": own_cell,
    "test_own_cuda.test_lengths_count_within_the_steps": own_lengths,
    "test_triton.test_values": of_triton,
    "test_triton.test_lengths_out_of_range": of_triton,
    "test_triton.test_lengths_out_of_range_of_a_cell_of_ones_own": own_lengths,
    "test_triton.test_cells_of_ones_own": own_cell,
    "test_triton.test_cells_of_ones_own_in_16_bit": own_cell,
}


def name_of(item: pytest.Function) -> str:
    return f"{item.path.stem}.{item.originalname}"


def steps_of(item: pytest.Function) -> int:
    """Of its scan, forward and backward."""
    asked = _given(item).get("asked")
    return 2 * (asked.case.T if isinstance(asked, Run) else T)


def _given(item: pytest.Function) -> dict[str, Any]:
    return dict(item.callspec.params) if hasattr(item, "callspec") else {}


def share(items: list[pytest.Function]) -> Counter[str]:
    """Seconds by test function of what one process of N gets."""
    seconds: Counter[str] = Counter()
    for item in items:
        name, began = name_of(item), seconds_of_cpu()
        if (stand_in := STAND_INS.get(name)) is not None:
            torch.manual_seed(0)
            stand_in(**_given(item))
            seconds[name] += seconds_of_cpu() - began
        else:
            seconds[name] += ASSUMED["other"][0]
    return seconds


# --- what is compiled ----------------------------------------------------------------------------


def texts() -> list[str]:
    """Of cells of one's own, that nvcc compiles for the tests: each once, then they are kept."""
    found: dict[str, None] = {}
    for spec in own_cases.CELLS_HERE:
        found[cuda_source(_layout(spec, own.H)).text] = None
    asked = [(spec, own.H, "fp32") for spec in test_own_resident.CELLS_HERE]
    asked += [(own_cells.peephole, H, m) for H in (33, 72, 128) for m in ("bf16", "fp16")]
    for spec, H, math in asked:
        layout = _layout(spec, H)
        for name in resident.PASSES:
            shape = run_cuda.shape(layout, name, math, resident.budget_of(f"sm_{ARCH}"))
            if isinstance(shape, resident.Shape):
                found[run_cuda.source_of(layout, name, shape)[0].text] = None
    return list(found)


def _layout(spec: CellSpec, H: int) -> Any:
    layout = layout_of(spec.name, H, True, blocks=True)
    assert not isinstance(layout, str), layout
    return layout


def nvcc_seconds(all_texts: list[str]) -> float:
    """Of a text, as the tests have it compiled."""
    some = all_texts[:: len(all_texts) // SAMPLE][:SAMPLE]
    began = seconds_of_cpu()
    for text in some:
        library.load(text, name="cost", target=library.cuda_target(*CAPABILITY))
    return (seconds_of_cpu() - began) / len(some)


def triton_seconds() -> float:
    """Of a test: all kernels of a training scan, compiled anew."""
    device = Device("", ARCH, inspect_triton.SHARED_MEMORY[ARCH])
    each = []
    for cell, math in TRITON_SAMPLE:
        for strategy in checks.STRATEGIES:
            tilings = inspect_triton.tilings_for(cell, math, ARCH, 20, 9, 18, strategy)
            each.append(_timed(inspect_triton.rows(cell, math, ARCH, tilings)))
    for cell in TRITON_OWN_SAMPLE:
        each.append(_timed(inspect_triton.own_rows(cell, "fp32", device, own.H, own.B)))
    return sum(each) / len(each)


def _timed(rows: Iterator[Any]) -> float:
    began = seconds_of_cpu()
    assert list(rows)
    return seconds_of_cpu() - began


def start_seconds() -> float:
    """Of a process: its imports and the collection of its tests."""
    began = seconds_of_cpu()
    words = ["-m", "pytest", "-q", "--collect-only", "-p", "no:cacheprovider", "-m", "gpu"]
    command = [sys.executable, *words, str(FOLDER)]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return seconds_of_cpu() - began


# --- the sum -------------------------------------------------------------------------------------


def parts(items: list[pytest.Function], tests: float, folder: Path) -> list[tuple[str, float]]:
    """Of the time with N processes: what, seconds. ``tests``: those of one process's share."""
    N, starts = MOST_PROCESSES, len(BATCHES)
    assumed = {name: value for name, (value, _) in ASSUMED.items()}
    by_triton = sum("triton" in item.nodeid for item in items)
    start, all_texts = start_seconds(), texts()
    with pytest.MonkeyPatch.context() as patch:
        for cache in ("RNNFAST_CACHE", "TRITON_CACHE_DIR"):
            patch.setenv(cache, str(folder / cache))  # where nothing is yet
        kernels, text = triton_seconds(), nvcc_seconds(all_texts)
    at_once, device = assumed["at once"], assumed["step"] * sum(map(steps_of, items))
    return [
        (f"{starts} starts: imports and collection, {start:.1f} s", starts * start),
        (f"{starts} starts: CUDA", starts * assumed["context"]),
        (f"{len(items)} tests: the longest of {len(SHARES)} shares", tests),
        (f"{len(items)} tests: pytest itself and copies", len(items) * assumed["test"] / N),
        ("the device: all launches, one after another", device),
        (f"nvcc: {len(all_texts)} texts, {text:.1f} s each", text * len(all_texts) / at_once),
        (f"Triton: {by_triton} tests, {kernels:.1f} s each", kernels * by_triton / N),
    ]


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    items = collect()
    counted = Counter(map(name_of, items))
    assert STAND_INS.keys() <= counted.keys(), STAND_INS.keys() - counted.keys()
    shares = [share(items[k::MOST_PROCESSES]) for k in SHARES]
    longest = max(shares, key=lambda seconds: seconds.total())
    rows = parts(items, longest.total(), folder)
    by_test = [
        [name, n, f"{longest[name]:.1f}{'' if name in STAND_INS else ' assumed'}"]
        for name, n in counted.items()
    ]
    print(columns(["test", "tests", "seconds of one share"], by_test))
    total = ("all of it", sum(seconds for _, seconds in rows))
    told = [[what, f"{seconds:.0f}"] for what, seconds in (*rows, total)]
    print(columns([f"with {MOST_PROCESSES} processes", "seconds"], told))
    for name, (value, what) in ASSUMED.items():
        print(f"assumed, {name}: {value:g} {what}")


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as made:
        main(Path(made))
