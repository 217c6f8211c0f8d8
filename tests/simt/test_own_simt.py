"""Cells of one's own in CUDA C++, executed on the CPU, against the loop in torch in float64."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import rnnfast
from rnnfast import _ext
from rnnfast.backends import registry
from rnnfast.backends.cuda import Cuda
from rnnfast.cells import CELLS, CellSpec

from .. import own_cells
from ..steps import test_own_cpu as own
from .own import executing
from .own_cases import BLOCKS, CELLS_HERE, name_of

pytestmark = pytest.mark.skipif(
    _ext.why_missing() is not None, reason=f"no extension: {_ext.why_missing()}"
)


class Executed(Cuda):
    """The backend ``cuda`` on CPU tensors, for cells of one's own."""

    name = "executed"
    device = "cpu"

    def __init__(self) -> None:
        self._missing = None

    def unusable(self) -> str | None:
        return None


@pytest.fixture
def executed() -> Iterator[ctypes.CDLL]:
    registry.BACKENDS["executed"] = Executed()
    try:
        with executing() as settings:
            yield settings
    finally:
        del registry.BACKENDS["executed"]


@pytest.fixture(autouse=True)
def _poisoned(poisoned: object) -> None:
    """What a kernel forgets to write shows."""


def check(spec: CellSpec, dtype: torch.dtype = torch.float32, **call: object) -> None:
    own.check(spec, dtype, "executed", **call)


@pytest.mark.parametrize("call", list(own.CALLS))
@pytest.mark.parametrize("spec", CELLS_HERE, ids=name_of)
@pytest.mark.usefixtures("executed")
def test_a_cell_is_the_loop(spec: CellSpec, call: str) -> None:
    check(spec, **own.CALLS[call])


@pytest.mark.parametrize("sizes", [(1, 3, 2), (33, 2, 3), (34, 37, 2), (68, 9, 2)], ids=str)
@pytest.mark.parametrize("spec", CELLS_HERE, ids=name_of)
@pytest.mark.usefixtures("executed")
def test_sizes_that_fill_no_tile(spec: CellSpec, sizes: tuple[int, int, int]) -> None:
    """Of units, of sequences, few of which have tiles of their own, and of what is summed."""
    H, B, T = sizes
    grain = {"everything": 2, "slstm": 4, BLOCKS.name: 4}.get(name_of(spec), 1)
    check(spec, H=-(-H // grain) * grain, B=B, T=T)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.usefixtures("executed")
def test_16_bit_storage(dtype: torch.dtype) -> None:
    for spec in (own_cells.gru, CELLS["layer_norm_lstm"]):
        check(spec, dtype, ends=True, all_states=True)


@pytest.mark.usefixtures("executed")
def test_every_function_is_torchs() -> None:
    scan = own.scan_of(own.functions, torch.float32, T=2, B=3, H=37)
    own.assert_close(own.results(scan, "executed"), own.results(scan, "loop"), 2e-6)


@pytest.mark.usefixtures("executed")
def test_results_repeat_bit_for_bit(executed: ctypes.CDLL) -> None:
    """In any order of threads."""
    found: list[list[Tensor]] = []
    for seed in range(3):
        executed.simt_begin(seed)
        found.append(own.results(own.scan_of(CELLS["layer_norm_lstm"], torch.float32), "executed"))
    for other in found[1:]:
        for a, b in zip(other, found[0], strict=True):
            assert torch.equal(a, b)


def test_a_step_is_a_few_launches(executed: ctypes.CDLL) -> None:
    executed.simt_begin(1)
    check(CELLS["layer_norm_lstm"], T=2)
    launched = executed.simt_launches().decode().split()
    forward = ["own_product", "own_rows", "own_rows", "own_rows"] * 2
    backward = ["own_rows", "own_fused"] * 2
    assert launched == [*forward, "own_keep_last", *backward, "own_keep_last"]


@pytest.mark.usefixtures("executed")
def test_explain_says_what_was_made() -> None:
    layer = rnnfast.Recurrent(own_cells.gru, 3, 12)
    with rnnfast.use_backend("executed"):
        told = str(rnnfast.explain(layer, torch.randn(2, 3, 3)))
    assert "-> executed: stepwise, compiled from the step (1 product, 1 stage, backward" in told


@pytest.mark.usefixtures("executed")
def test_float64_is_refused() -> None:
    layer = rnnfast.Recurrent(own_cells.gru, 3, 12, dtype=torch.float64)
    with (
        rnnfast.use_backend("executed"),
        pytest.raises(rnnfast.BackendError, match=r"no kernel for torch\.float64"),
    ):
        layer(torch.randn(2, 3, 3, dtype=torch.float64))


# --- planted faults ------------------------------------------------------------------------------

PRODUCT, ROWS, STEP, ENDS = (f"cuda/steps/{name}.h" for name in ("product", "rows", "step", "ends"))
FAULTS = {
    "no barrier before the values are read": (
        PRODUCT,
        "    values.publish();\n    sync_block();\n",
        "    values.publish();\n",
    ),
    "no barrier before the values are overwritten": (
        PRODUCT,
        "    values.multiply(sum);\n    sync_block();\n",
        "    values.multiply(sum);\n",
    ),
    "no barrier before the sums are added up": (
        PRODUCT,
        "    }\n  }\n  sync_block();\n  for (int o",
        "    }\n  }\n  for (int o",
    ),
    "a slice's sums lost": (PRODUCT, "s < Tile::kSlices", "s < Tile::kSlices - 1"),
    "values past an operand's end": (
        PRODUCT,
        "from_ != nullptr && k < segment.K",
        "from_ != nullptr",
    ),
    "sums of sequences that have ended": (PRODUCT, "!q.alive || j >=", "j >="),
    "no barrier before warps' parts are read": (
        ROWS,
        "    sync_block();\n    for (int i = 0; i < n; ++i) {\n      t[i] = of_warps[i *",
        "    for (int i = 0; i < n; ++i) {\n      t[i] = of_warps[i *",
    ),
    "no barrier before warps' parts are overwritten": (
        ROWS,
        "    sync_block();  // before another one takes the place\n",
        "",
    ),
    "a state read across a reset": (STEP, "  if (q.reset) return nullptr;\n", ""),
    "a gradient handed across a reset": (STEP, "return q.reset ? 0.0f : ", "return "),
    "the state that it begins with forgotten": (
        STEP,
        "(q.first ? rows.begin : rows.at)",
        "rows.at",
    ),
    "the output's gradient forgotten": (STEP, "from == nullptr ? 0.0f : load(from + j)", "0.0f"),
    "the slot of another step": (ENDS, "args.backward, b) & 1", "args.backward, b) + 1 & 1"),
}
SAMPLE = ("no barrier before the values are read", "a state read across a reset")


def check_seen(name: str) -> None:
    registry.BACKENDS["executed"] = Executed()
    try:
        with executing(FAULTS[name]) as settings:
            for seed in range(4):
                settings.simt_begin(seed)
                try:
                    check(CELLS["layer_norm_lstm"], H=44, T=3, ends=True, reverse=seed % 2 == 1)
                    check(CELLS["layer_norm_lstm"], H=70, B=11, T=2)
                except (AssertionError, RuntimeError):
                    return
    finally:
        del registry.BACKENDS["executed"]
    pytest.fail("nothing shows it")


@pytest.mark.parametrize("name", SAMPLE)
def test_a_planted_fault_is_seen(name: str) -> None:
    check_seen(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in FAULTS if name not in SAMPLE])
def test_every_planted_fault_is_seen(name: str) -> None:
    check_seen(name)
