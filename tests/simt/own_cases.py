"""Cells of one's own that the CUDA C++ is tried with, on the executor and on a GPU."""

from __future__ import annotations

from rnnfast.cells import CELLS, CellSpec

from .. import own_cells
from ..steps import test_own_cpu as own

BLOCKS = CELLS["block_gru"].with_settings(heads=4)
CELLS_HERE: list[CellSpec] = [
    own_cells.lstm,
    own_cells.gru,
    own_cells.peephole,
    own_cells.three_states,
    CELLS["layer_norm_lstm"],
    CELLS["slstm"],
    BLOCKS,
    CELLS["min_lstm"],
    own.everything,
    own.handed,
]


def name_of(spec: CellSpec) -> str:
    return spec.name.rpartition(":")[2]
