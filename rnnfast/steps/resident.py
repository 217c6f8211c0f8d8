"""Which cells a resident CUDA kernel computes, and in which shape: csrc/cuda/steps/resident.h.

A block has all hidden units of 8 sequences for all steps, and the matrix of the cell's one product
in registers and shared memory. What is pointwise may stand before and behind the product.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from .graph import LEAVES, REDUCTIONS, Matrix, Node, ordered
from .layout import Layout
from .stages import MOST_PLANES, Program, Store

PASSES = ("forward", "backward")
WARPS, COLUMNS = 8, 8  # of a block; its sequences
OLDEST = 80  # compute capability: mma.sync in bfloat16 and tf32
SLAB_BYTES, ROW_PAD, SLAB_SHARED = 64, 16, 1024  # csrc/cuda/device/slabs.h
NARROW = {torch.bfloat16: "bf16", torch.float16: "fp16"}
MATHS = {name: dtype for dtype, name in NARROW.items()}
MATHS |= {"tf32": torch.float32, "fp32": torch.float32}
MMA = {"bf16": "MmaBf16", "fp16": "MmaF16", "tf32": "MmaTf32", "fp32": "MmaFp32"}


class Step(NamedTuple):
    """A pass of a cell, by nodes of its graph.

    Attributes:
        stores: what it stores. product: the nodes that are products: forward one a plane, backward
            the one. operands: what they multiply: forward one node, backward one a plane.
        gates: of each plane, which H rows of the matrix. weight: the matrix' name.
        behind: all that needs a product.
    """

    stores: list[Store]
    products: list[Node]
    operands: list[Node]
    gates: list[int]
    weight: str
    behind: frozenset[Node]


class Unfit(Exception):
    """Why no resident kernel computes a cell, as a clause."""


def steps(layout: Layout) -> tuple[Step, Step] | str:
    """Forward and backward; why no resident kernel computes the cell, whatever its size."""
    return _steps(layout)


@functools.lru_cache(maxsize=256)
def _steps(layout: Layout) -> tuple[Step, Step] | str:
    H = layout.traced.hidden
    try:
        forward = _forward(_stores(layout.forward, H), H)
        return forward, _backward(_stores(layout.backward, H), H, forward)
    except Unfit as error:
        return str(error)


def _stores(program: Program, H: int) -> list[Store]:
    """What a program stores, but for what it only keeps from stage to stage. Raises Unfit where it
    is more than a unit can make of its own values and a product."""
    stores = [store for stage in program.stages for store in stage.stores if store.buffer != "tmp"]
    for node in ordered(store.node for store in stores):
        if node.op in REDUCTIONS:
            raise Unfit("it reduces over the hidden units, which warps of a block share")
        if node.op == "product" and any(matrix.blocks > 1 for matrix in node.attrs):
            raise Unfit("its product is block-diagonal")
        if node.width not in (0, H) or (node.op in LEAVES and node.attrs[1:] and _odd(node, H)):
            raise Unfit("it takes the hidden units apart")
        if node.scalar and node.op in ("load", "param"):
            raise Unfit("it reads single numbers of a row")
    return stores


def _odd(node: Node, H: int) -> bool:
    """Whether a leaf does not begin at a multiple of H, or not of neighbours."""
    if node.op == "const":
        return False
    return node.attrs[1] % H != 0 or (node.op == "param" and node.attrs[2] != 1)


def _products(stores: Sequence[Store]) -> list[Node]:
    nodes = ordered(store.node for store in stores)
    return sorted((n for n in nodes if n.op == "product"), key=lambda n: n.index)


def _behind(stores: Sequence[Store], products: Sequence[Node]) -> frozenset[Node]:
    found = set(products)
    for node in ordered(store.node for store in stores):
        if any(arg in found for arg in node.args):
            found.add(node)
    return frozenset(found)


def _forward(stores: list[Store], H: int) -> Step:
    products = _products(stores)
    if not products:
        raise Unfit("it has no recurrent product")
    operands = {node.args for node in products}
    if any(node in ordered(args) for args in operands for node in products):
        raise Unfit("it has a product of what a product made")
    if len(operands) > 1 or len(products[0].args) > 1:
        raise Unfit(f"its products are of {sum(map(len, operands))} vectors")
    if len(products) > MOST_PLANES:
        raise Unfit(f"its product has {len(products)} units for a hidden one, over {MOST_PLANES}")
    matrices = [node.attrs[0] for node in products]
    gates = _gates(matrices, H)
    operand = products[0].args[0]
    for leaf in ordered([operand]):
        if leaf.op == "load" and not leaf.attrs[0].startswith("state"):
            raise Unfit("what its product multiplies is made of the input too")
    return Step(stores, products, [operand], gates, matrices[0].weight, _behind(stores, products))


def _gates(matrices: Sequence[Matrix], H: int) -> list[int]:
    """Which H rows of one matrix each is."""
    if len({matrix.weight for matrix in matrices}) > 1:
        raise Unfit("its product is of several matrices")
    for matrix in matrices:
        if (matrix.rows, matrix.cols, matrix.row_stride, matrix.col_stride) != (H, H, H, 1):
            raise Unfit("its matrix has other rows than of H")
        if matrix.offset % (H * H):
            raise Unfit("its matrix begins within a gate")
    return [matrix.offset // (H * H) for matrix in matrices]


def _backward(stores: list[Store], H: int, forward: Step) -> Step:
    products = _products(stores)
    if len(products) != 1:
        raise Unfit(f"its gradient has {len(products)} products")
    (product,) = products
    matrices = [matrix.t() for matrix in product.attrs]
    gates = _gates(matrices, H)
    behind = _behind(stores, products)
    if matrices[0].weight != forward.weight or any(arg in behind for arg in product.args):
        raise Unfit("its gradient has a product of another matrix")
    for store in stores:
        if store.node in behind and not (store.add or store.buffer.startswith("dold")):
            raise Unfit(f"the product of its gradient goes into {store.buffer!r}")
    return Step(stores, products, list(product.args), gates, forward.weight, behind)


# --- shapes ---------------------------------------------------------------------------------------


class Shape(NamedTuple):
    """A kernel: groups of tiles of a warp, at most, and slabs of a tile in registers. ``shared``:
    bytes that a block needs."""

    math: str
    groups: int
    held: int
    shared: int


class Budget(NamedTuple):
    """What a block may have: csrc/cuda/plan/model.h's Device."""

    capability: int
    shared: int


_SHARED = {80: 163, 86: 99, 87: 163, 89: 99, 90: 227, 100: 227, 103: 227, 120: 99, 121: 99}  # KiB


def budget_of(target: str) -> Budget:
    """Of GPUs of an architecture (sm_90), as its maker has them."""
    capability = int("".join(filter(str.isdigit, target)))
    return Budget(capability, _SHARED.get(capability, 99) * 1024)


def math_of(dtype: torch.dtype) -> str:
    """How products of layers of a dtype are multiplied: in float32 as torch's switch for RNNs
    has it, on tensor cores or not."""
    switch: Any = torch.backends.cudnn.rnn
    return NARROW.get(dtype, "tf32" if switch.fp32_precision == "tf32" else "fp32")


def group_of(pass_name: str, planes: int) -> tuple[int, int]:
    """Units and tiles of a group."""
    if pass_name == "backward":
        return 16, 1
    return (8, planes // 2) if planes % 2 == 0 else (16, planes)


def shape(
    pass_name: str, H: int, planes: int, params: int, live: int, math: str, budget: Budget
) -> Shape | str:
    """The kernel for layers of H units; why there is none. ``live``: numbers of a unit and
    sequence that a thread has in registers."""
    units, tiles = group_of(pass_name, planes)
    all_groups = -(-H // units)
    groups = -(-all_groups // WARPS)
    columns = H * (planes if pass_name == "backward" else 1)
    slabs = -(-columns // (SLAB_BYTES // MATHS[math].itemsize))
    numbers = groups * (units // 8) * 2 * live
    held = min(slabs, (REGISTERS - numbers) // (8 * groups * tiles))
    if held < 1:
        return f"{H} units are more than the registers of 8 warps have room for"
    shared = 2 * COLUMNS * (slabs * SLAB_BYTES + ROW_PAD) + params * (-(-H // 16) * 64)
    shared += max(slabs - held, 0) * all_groups * tiles * SLAB_SHARED
    if shared > budget.shared:
        return f"{H} units take {shared} bytes of a block's {budget.shared} of shared memory"
    return Shape(math, groups, held, shared)


REGISTERS = 160  # of a thread's 255, for the matrix and a unit's numbers: no kernel spills
