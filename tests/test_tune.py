"""``rnnfast.tune``: what is measured, kept, shown and used; and the tables that ship."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence

import rnnfast
from rnnfast import _ext, store, tuning
from rnnfast.backends import measured, registry
from rnnfast.backends.measured import Point, Table
from rnnfast.tune_cli import main
from rnnfast.tuning import Grid

needs_cpu = pytest.mark.skipif(_ext.why_no_cpu() is not None, reason="cpu is not built")
T, B, I, H = 5, 3, 4, 6


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("RNNFAST_CACHE", str(tmp_path))
    monkeypatch.delenv("RNNFAST_TUNE", raising=False)
    forget()
    yield tmp_path
    forget()


def forget() -> None:
    """As a new process begins."""
    measured._local.cache_clear()
    measured._unsaved.clear()
    measured._changes += 1


def chosen(layer: Any, x: Any, **options: Any) -> list[str | None]:
    return [choice.chosen for choice in rnnfast.explain(layer, x, **options).choices]


def favour(monkeypatch: pytest.MonkeyPatch, fastest: str) -> list[str]:
    """Timing that has ``fastest`` win; returns the list of who was timed."""
    timed: list[str] = []

    def instead(call: Any, name: str, repeats: int) -> float:
        timed.append(name)
        with rnnfast.use_backend(name):
            call()
        return 1e-3 if name == fastest else 2e-3

    monkeypatch.setattr(tuning, "_timed", instead)
    return timed


# --- tables --------------------------------------------------------------------------------------


def grid(values: dict[tuple[int, int, int], float]) -> Table:
    return Table("a test", [Point("gru", True, *at, ratio, 1.0) for at, ratio in values.items()])


def test_a_table_gives_its_points_and_what_lies_between_on_logarithmic_scales() -> None:
    table = grid({(1, 1, 64): 1.0, (1, 1, 256): 4.0, (16, 1, 64): 2.0, (16, 1, 256): 8.0})
    for at, ratio in {(1, 1, 64): 1, (16, 1, 256): 8, (1, 1, 128): 2, (4, 1, 64): 2**0.5}.items():
        assert table.ratio("gru", True, *at) == pytest.approx(ratio)
    assert table.ratio("gru", True, 4, 1, 128) == pytest.approx(2 * 2**0.5)


def test_beyond_a_table_its_border_counts_and_gaps_are_left_out() -> None:
    table = grid({(1, 1, 64): 1.0, (1, 1, 256): 4.0, (16, 1, 64): 2.0})
    assert table.ratio("gru", True, 1000, 1, 1) == pytest.approx(2)
    assert table.ratio("gru", True, 1, 0, 4096) == pytest.approx(4)
    assert table.ratio("gru", True, 16, 1, 256) == pytest.approx(math.sqrt(8), rel=0.5)
    assert table.ratio("lstm", True, 1, 1, 64) is None
    assert table.ratio("gru", False, 1, 1, 64) is None


@pytest.mark.parametrize("isa", ["avx512", "avx2", "baseline", "none"])
def test_the_shipped_tables_know_every_cell_and_mode(isa: str) -> None:
    for cell in measured.CELLS:
        for training in (True, False):
            ratios = [t.ratio(cell, training, 20, 8, 128) for t in measured.shipped(isa)]
            assert any(r is not None and 0.1 < r < 100 for r in ratios)


# --- one call ------------------------------------------------------------------------------------


@needs_cpu
@pytest.mark.parametrize("fastest", ["torch", "cpu"])
def test_auto_takes_what_was_fastest(fastest: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = rnnfast.GRU(I, H, 2, bidirectional=True), torch.randn(T, B, I)
    timed = favour(monkeypatch, fastest)
    with_gradients, without = rnnfast.tune(layer, x, seconds=0.01)
    assert set(timed) == {"torch", "cpu"}
    assert (with_gradients.fastest, without.fastest) == (fastest, fastest)
    assert "training" in with_gradients.call
    assert "training" not in without.call
    assert f"{fastest} " in str(without)
    for training in (True, False):
        with torch.set_grad_enabled(training):
            assert chosen(layer, x) == [fastest] * 4
            assert "by rnnfast.tune" in str(rnnfast.explain(layer, x))
            layer(x)
    assert all(p.grad is None for p in layer.parameters())
    forget()  # and so does the next process
    assert chosen(layer, x) == [fastest] * 4
    with rnnfast.use_backend("reference"):
        assert chosen(layer, x) == ["reference"] * 4


@needs_cpu
def test_another_call_is_another_question(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = rnnfast.GRU(I, H), torch.randn(64, B, I)
    assert chosen(layer, x) == ["cpu"]
    favour(monkeypatch, "torch")
    rnnfast.tune(layer, x, seconds=0.01)
    assert chosen(layer, x) == ["torch"]
    assert chosen(layer, torch.randn(65, B, I)) == ["cpu"]
    assert chosen(layer, x, lengths=torch.full((B,), 3)) == ["cpu"]
    assert chosen(rnnfast.GRU(I, H, bias=False), x) == ["cpu"]
    assert chosen(layer, x, return_all_states=True) == ["cpu"]


@needs_cpu
def test_who_refuses_a_call_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    timed = favour(monkeypatch, "cpu")
    layer, x = rnnfast.LSTM(I, H), torch.randn(T, B, I)
    resets = torch.zeros(T, B, dtype=torch.bool)
    rnnfast.tune(layer, x, resets=resets, return_all_states=True, seconds=0.01)
    assert set(timed) == {"cpu"}
    rnnfast.tune(layer, pack_padded_sequence(x, torch.tensor([5, 3, 1])), seconds=0.01)
    rnnfast.tune(layer, torch.randint(I, (T, B)), lengths=torch.tensor([5, 3, 1]), seconds=0.01)
    assert set(timed) == {"cpu", "torch"}


@needs_cpu
def test_a_remembered_backend_that_refuses_now_is_passed_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layer, x = rnnfast.GRU(I, H), torch.randn(64, B, I)
    favour(monkeypatch, "torch")
    rnnfast.tune(layer, x, seconds=0.01)
    torchs = type(registry.BACKENDS["torch"])
    monkeypatch.setattr(torchs, "why_not", lambda self, problem: "not today")
    forget()
    assert chosen(layer, x) == ["cpu"]


def test_bad_calls_are_the_layers() -> None:
    with pytest.raises(TypeError, match="layer of rnnfast"):
        rnnfast.tune(torch.nn.LSTM(I, H), torch.randn(T, B, I))  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="input_size"):
        rnnfast.tune(rnnfast.GRU(I, H), torch.randn(T, B, I + 1))
    assert measured.local().calls == {}


@needs_cpu
def test_a_measured_second_is_a_second() -> None:
    """The real timer: it ends, and every backend has been called in turn."""
    counts = {"torch": 0, "cpu": 0}

    def call() -> None:
        counts[registry.requested_backend()] += 1

    samples = tuning.measure(call, ["torch", "cpu"], 0.05)
    assert all(len(times) >= tuning.FEWEST_SAMPLES for times in samples.values())
    assert all(0 < t < 0.05 for times in samples.values() for t in times)
    assert abs(len(samples["torch"]) - len(samples["cpu"])) == 0
    assert all(counts.values())


def test_off_by_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = rnnfast.GRU(I, H), torch.randn(64, B, I)
    before = chosen(layer, x)
    favour(monkeypatch, "torch" if before == ["cpu"] else "cpu")
    rnnfast.tune(layer, x, seconds=0.01)
    monkeypatch.setenv("RNNFAST_TUNE", "0")
    forget()
    assert chosen(layer, x) == before


# --- the file ------------------------------------------------------------------------------------


def test_another_number_of_threads_is_another_file(cache: Path) -> None:
    before, files = torch.get_num_threads(), set()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        files.add(measured.file_of(torch.get_num_threads()).name)
    torch.set_num_threads(before)
    assert len(files) == 2
    assert all(name.startswith("tune-") and name.endswith("threads.json") for name in files)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"calls": 3}', '{"points": [[1, 2]]}', '{"calls": {"a": "b"}}', "\0"]
)
@needs_cpu
def test_a_broken_file_counts_as_none_and_is_mended(
    text: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, x = rnnfast.GRU(I, H), torch.randn(64, B, I)
    file = measured.file_of(torch.get_num_threads())
    file.write_text(text)
    assert chosen(layer, x) == ["cpu"]
    favour(monkeypatch, "torch")
    rnnfast.tune(layer, x, seconds=0.01)
    assert json.loads(file.read_text())["calls"]
    forget()
    assert chosen(layer, x) == ["torch"]


@needs_cpu
def test_a_folder_that_cant_be_written_is_said_and_the_process_keeps_it(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocker = cache / "a file"
    blocker.write_text("")
    monkeypatch.setenv("RNNFAST_CACHE", str(blocker / "below"))
    layer, x = rnnfast.GRU(I, H), torch.randn(64, B, I)
    favour(monkeypatch, "torch")
    with pytest.warns(RuntimeWarning, match="kept for this process"):
        rnnfast.tune(layer, x, seconds=0.01)
    assert chosen(layer, x) == ["torch"]
    forget()
    assert chosen(layer, x) == ["cpu"]


def test_a_failed_write_leaves_the_old_file(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = cache / "facts.json"
    store.update(path, lambda facts: {**facts, "a": 1})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        store.update(path, lambda facts: {**facts, "b": 2})
    monkeypatch.undo()
    assert store.read(path) == {"a": 1}
    assert {p.name for p in cache.iterdir()} == {"facts.json", "facts.json.lock"}
    with pytest.raises(TypeError):
        store.update(path, lambda facts: {"c": object()})
    assert store.read(path) == {"a": 1}
    assert stat.S_ISREG(path.stat().st_mode)


def _add(path: Path, number: int) -> None:
    for i in range(20):
        store.update(path, lambda facts, i=i: {**facts, f"{number}.{i}": i})


def test_several_processes_lose_nothing(cache: Path) -> None:
    path = cache / "shared.json"
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_add, args=(path, n)) for n in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert len(store.read(path)) == 80


# --- the command ---------------------------------------------------------------------------------

SMALL = Grid((1, 3), (2,), (4,), 0.01)


@needs_cpu
def test_the_command_makes_a_table_that_auto_goes_by(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rnnfast.tune_cli.QUICK", SMALL)
    favour(monkeypatch, "torch")
    assert main(["--quick"]) == 0
    shown = capsys.readouterr().out
    assert "12 sizes" in shown
    assert "kept in" in shown
    assert len(measured.local().points) == 12
    layer, x = rnnfast.GRU(I, H), torch.randn(64, B, I)
    told = rnnfast.explain(layer, x).choices[0]
    assert told.chosen == "torch"
    assert "this machine" in told.reason
    assert main(["--show"]) == 0
    assert "gru" in capsys.readouterr().out
    assert main(["--forget"]) == 0
    forget()
    assert main(["--show"]) == 0
    assert "nothing was measured here" in capsys.readouterr().out
    assert chosen(layer, x) == ["cpu"]


def test_the_command_without_kernels_of_our_own(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(registry.BACKENDS["cpu"]), "unusable", lambda self: "not built")
    assert main(["--quick"]) == 1
    assert "nothing to choose between: cpu: not built" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--threads", "0"])


def test_the_sizes_of_the_command_are_affordable() -> None:
    for grid, minutes in ((tuning.FULL, 12), (tuning.QUICK, 0.5)):
        cases = list(grid.cases())
        assert len(cases) * grid.seconds <= minutes * 60
        assert {(cell, training) for cell, training, *_ in cases} == {
            (cell, training) for cell in measured.CELLS for training in (True, False)
        }
