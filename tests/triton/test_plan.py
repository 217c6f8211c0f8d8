"""Plans, their limits and their memory: Python only, no kernel is made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import rnnfast
from rnnfast.backends import registry
from rnnfast.backends.triton import Triton
from rnnfast.problem import Problem, problem_of
from rnnfast.triton import tune
from rnnfast.triton.limits import Limit, limit_of, table
from rnnfast.triton.plan import (
    INTERPRETER,
    STRATEGY,
    Device,
    candidates,
    math_of,
    resident_tiling,
)

from ..cases import BUILT_IN, Case, leaves, scan_of

H100 = Device("H100", "90", 227 << 10)


def problem(dtype: torch.dtype = torch.bfloat16, **options: object) -> Problem:
    case = Case(**{"cell": "lstm", "B": 16, **options})
    return problem_of(scan_of(case, leaves(case, dtype)))._replace(device="cuda")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RNNFAST_CACHE", str(tmp_path))
    monkeypatch.delenv(STRATEGY, raising=False)
    monkeypatch.delenv(tune.SWITCH, raising=False)
    return tmp_path / "triton-plans.json"


# --- limits and candidates -----------------------------------------------------------------------


def test_the_table_has_every_cell_math_and_architecture() -> None:
    archs, maths = {k[0] for k in table()}, {k[1] for k in table()}
    assert archs >= {"80", "90", "100", "gfx942"}
    assert maths == {"fp32", "tf32", "bf16", "fp16"}
    for arch in archs:
        for math in maths:
            for cell in BUILT_IN:
                for direction in ("forward", "backward"):
                    assert (arch, math, cell, direction) in table(), (arch, math, cell, direction)


@pytest.mark.parametrize("shared", [64 << 10, 99 << 10, 227 << 10])
@pytest.mark.parametrize("B", [1, 64])
def test_stepwise_plans_ask_for_no_more_shared_memory_than_there_is(B: int, shared: int) -> None:
    device = Device("", "gfx942", shared)
    for cell in BUILT_IN:
        for dtype in (torch.float32, torch.bfloat16):
            asked = problem(dtype, cell=cell, B=B, H=1000)
            for plan in candidates("forward", asked, device, strategy="stepwise"):
                weights = rnnfast.CELLS[cell].gates * plan.block_h * dtype.itemsize
                stage = plan.block_k * (4 * plan.block_b + weights)
                assert plan.num_stages * stage <= shared, plan
                assert plan.block_k >= 16


def test_resident_as_far_as_was_measured_and_no_further() -> None:
    limit = table()["90", "bf16", "lstm", "forward"]
    at = candidates("forward", problem(H=limit.block_h), H100)
    assert at[0] == resident_tiling(limit.block_h, limit.block_h, num_warps=limit.num_warps)
    beyond = candidates("forward", problem(H=limit.block_h + 1), H100)
    assert beyond
    assert not any(plan.resident for plan in beyond)


def test_a_smaller_shared_memory_lowers_the_limit() -> None:
    full = table()["90", "bf16", "lstm", "forward"]
    assert limit_of("90", "bf16", "lstm", "forward", full.shared) == full
    less = limit_of("90", "bf16", "lstm", "forward", full.shared - 1)
    assert less is not None
    assert less.block_h == full.block_h // 2
    assert limit_of("90", "bf16", "lstm", "forward", 100) is None


def test_an_unknown_architecture_takes_the_nearest_older_one() -> None:
    assert (
        limit_of("120", "bf16", "gru", "backward", 1 << 20)
        == table()["100", "bf16", "gru", "backward"]
    )
    assert limit_of("75", "bf16", "gru", "backward", 1 << 20) is None
    assert limit_of("gfx1100", "bf16", "gru", "backward", 1 << 20) is None


def test_the_projection_counts_too() -> None:
    wide = problem(cell="lstm_proj", H=64)._replace(P=300)
    assert not any(plan.resident for plan in candidates("forward", wide, H100))


def test_resident_by_demand_is_refused_with_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STRATEGY, "resident")
    monkeypatch.setattr("rnnfast.backends.triton.facts_of", lambda device: H100)
    limit = table()["90", "bf16", "lstm", "forward"]
    backend = Triton()
    assert backend.why_not(problem(H=limit.block_h)) is None
    assert f"H up to {limit.block_h} fits" in (backend.why_not(problem(H=limit.block_h + 1)) or "")


def test_stepwise_by_demand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STRATEGY, "stepwise")
    assert not any(plan.resident for plan in candidates("forward", problem(), H100))


def test_an_unknown_strategy_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STRATEGY, "fast")
    with pytest.raises(ValueError, match="auto, resident or stepwise, got: 'fast'"):
        candidates("forward", problem(), H100)


def test_the_page_has_the_table() -> None:
    """Each row of the page: architecture, math, and forward / backward of every cell."""
    page = (Path(__file__).parents[2] / "docs" / "triton.md").read_text(encoding="utf-8")
    lines = [[c.strip() for c in line.split("|")[1:-1]] for line in page.splitlines()]
    header = next(line for line in lines if line[:2] == ["architecture", "math"])
    shown = {}
    for line in lines[lines.index(header) + 2 :]:
        if len(line) != len(header):
            break
        for cell, tiles in zip(header[2:], line[2:], strict=True):
            for direction, tile in zip(("forward", "backward"), tiles.split(" / "), strict=True):
                shown[line[0].removeprefix("sm_"), line[1], cell, direction] = int(tile)
    assert shown == {key: limit.block_h for key, limit in table().items()}


def test_without_a_gpu_it_says_so() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert "needs a GPU" in (registry.BACKENDS["triton"].unusable() or "")
    with pytest.raises(rnnfast.BackendError, match="needs a GPU"):
        registry.select(problem(torch.float32), "triton")


@pytest.mark.parametrize("precision", ["tf32", "ieee"])
def test_float32_follows_the_switch_of_torchs_rnns(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn.rnn, "fp32_precision", precision)
    assert math_of(torch.float32) == {"tf32": "tf32", "ieee": "fp32"}[precision]
    assert math_of(torch.bfloat16) == "bf16"


# --- the tuner -----------------------------------------------------------------------------------


class Clock:
    """A fake timer: the time of a plan is what it says."""

    def __init__(self, times: list[float]) -> None:
        self.times, self.asked = times, 0

    def __call__(self, plan: object) -> float:
        self.asked += 1
        return self.times[PLANS.index(plan)]


PLANS = candidates("forward", problem(H=512), H100)


def test_the_fastest_plan_is_taken_and_remembered(own_cache: Path) -> None:
    clock = Clock([3.0, 1.0])
    assert tune.best("key", PLANS, clock) == PLANS[1]
    assert clock.asked == len(PLANS)
    assert tune.best("key", PLANS, clock) == PLANS[1]
    assert clock.asked == len(PLANS)  # not again
    assert tune.best("another", PLANS, Clock([1.0, 2.0])) == PLANS[0]
    assert json.loads(own_cache.read_text()).keys() == {"key", "another"}
    left = {path.name for path in own_cache.parent.iterdir()}
    assert left == {own_cache.name, f"{own_cache.name}.lock"}


def test_tuning_can_be_forbidden(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tune.best("known", PLANS, Clock([3.0, 1.0]))
    monkeypatch.setenv(tune.SWITCH, "0")
    clock = Clock([3.0, 1.0])
    assert tune.best("key", PLANS, clock) == PLANS[0]
    assert clock.asked == 0
    assert tune.best("known", PLANS, clock) == PLANS[1]  # what was measured still counts


@pytest.mark.parametrize("text", ["", "{", "[]", '{"key": 3}', '{"key": [1]}'])
def test_a_spoilt_file_is_measured_anew(own_cache: Path, text: str) -> None:
    own_cache.write_text(text)
    assert tune.best("key", PLANS, Clock([2.0, 1.0])) == PLANS[1]
    assert "key" in json.loads(own_cache.read_text())


def test_a_plan_that_is_no_longer_offered_does_not_count(own_cache: Path) -> None:
    tune.best("key", PLANS, Clock([2.0, 1.0]))
    assert tune.best("key", [PLANS[0], resident_tiling(64, 64)], None) == PLANS[0]


def test_batches_share_buckets() -> None:
    keys = {tune.key_of("forward", problem()._replace(B=b), H100) for b in range(33, 65)}
    assert len(keys) == 1
    for change in ({"B": 65}, {"H": 7}, {"I": 9}, {"cell": "gru"}, {"dtype": torch.float16}):
        keys.add(tune.key_of("forward", problem()._replace(**{"B": 64, **change}), H100))
    keys.add(tune.key_of("backward", problem()._replace(B=64), H100))
    keys.add(tune.key_of("forward", problem()._replace(B=64), INTERPRETER))
    assert len(keys) == 8
    assert tune.bucket(2048) == tune.bucket(10**6)


def test_the_users_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RNNFAST_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert tune.cache_file() == tmp_path / "rnnfast" / "triton-plans.json"


def test_limits_are_ordered() -> None:
    """What holds a cell twice as wide holds a cell."""
    for (arch, math, cell, direction), limit in table().items():
        assert isinstance(limit, Limit)
        assert limit.block_h >= 16, (arch, math, cell, direction)
        if cell == "lstm":
            assert limit.block_h <= table()[arch, math, "rnn_tanh", direction].block_h
