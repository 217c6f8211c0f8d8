"""What kernels of a GPU are made of: the layout of a cell, checked, once in a process."""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor

import torch

from ..cells import CELLS, CellSpec
from ..cells.step_error import StepError
from .layout import Layout, layout
from .run import checked
from .tangent import graph_of


def layout_of(cell: str, hidden: int, bias: bool, blocks: bool = False) -> Layout | str:
    """In float32, as all that is on its way has it; why there is none. ``blocks``: a
    block-diagonal product may be one, not one for each block."""
    # kept by the cell, not by what it is called
    return _made(CELLS[cell], int(hidden), bias, blocks)


@functools.lru_cache(maxsize=256)
def _made(spec: CellSpec, hidden: int, bias: bool, blocks: bool) -> Layout | str:
    """In a thread of its own, where none of the caller's modes, hooks and settings are."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(_make, spec, hidden, bias, blocks).result()


def _make(spec: CellSpec, hidden: int, bias: bool, blocks: bool) -> Layout | str:
    try:
        checked(spec, hidden, bias)
        return layout(graph_of(spec, hidden, bias, torch.float32, blocks=blocks), spec.gates)
    except StepError as error:
        return str(error)
