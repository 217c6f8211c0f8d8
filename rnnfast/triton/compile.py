"""Compiling the kernels ahead of time, for GPUs that need not be there.

Needs a process in which Triton compiles: not one with TRITON_INTERPRET=1.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ..steps.triton_text import Text
from . import launch, own
from .cells import TritonCell, cell_of
from .plan import Device, Tiling

STORAGE = {"fp32": "fp32", "tf32": "fp32", "bf16": "bf16", "fp16": "fp16"}
MATH = tuple(STORAGE)  # how products are computed: fp32 by FMA, the others by tensor cores


class Kernel(NamedTuple):
    """One kernel as a scan would launch it; ``constants`` are its compile-time arguments."""

    name: str
    function: Any
    signature: dict[str, str]
    constants: dict[str, Any]
    tiling: Tiling


class Compiled(NamedTuple):
    """A kernel's machine code: a cubin, or an AMD code object (``hsaco``).

    Attributes:
        assembly: AMD's; of NVIDIA code the disassemblers tell (rnnfast/inspect/sass.py).
        shared: bytes of shared memory (AMD: LDS) that a program asks for.
        seconds: what compiling took; next to nothing where Triton's cache had it.
    """

    kernel: Kernel
    target: str
    code: bytes
    assembly: str
    shared: int
    num_warps: int
    seconds: float


def target_of(arch: str) -> GPUTarget:
    """``"80"``, ``"90"``, ``"100"``: an NVIDIA compute capability; ``"gfx942"``: an AMD GPU."""
    if arch.startswith("gfx"):
        return GPUTarget("hip", arch, 64)
    return GPUTarget("cuda", int(arch), 32)


def compile_kernel(kernel: Kernel, arch: str) -> Compiled:
    """Raises what Triton raises where the kernel can't be compiled."""
    source = ASTSource(
        kernel.function, kernel.signature, kernel.constants, _attributes(kernel.signature)
    )
    began = time.perf_counter()
    made = triton.compile(source, target=target_of(arch), options=kernel.tiling.options)
    seconds = time.perf_counter() - began
    kind = "hsaco" if arch.startswith("gfx") else "cubin"
    return Compiled(
        kernel,
        arch,
        made.asm[kind],
        made.asm.get("amdgcn", ""),
        made.metadata.shared,
        made.metadata.num_warps,
        seconds,
    )


def _attributes(signature: dict[str, str]) -> dict[tuple[int, ...], list[list[Any]]]:
    """torch's pointers are aligned to 16 bytes; sizes as at an H that is divisible by 16."""
    return {
        (i,): [["tt.divisibility", 16]]
        for i, (name, kind) in enumerate(signature.items())
        if kind.startswith("*") or name in ("H", "P")
    }


def kernels(
    cell_name: str, math: str, tilings: tuple[Tiling, Tiling], *, masked: bool = True
) -> list[Kernel]:
    """Every kernel that a training scan launches.

    ``tilings``: of forward and of backward. ``masked``: with lengths, resets and the gradients of
    all states, which is the largest form of each kernel.
    """
    cell = cell_of(cell_name)
    types = _types(cell, math, masked)
    precision = "tf32" if math == "tf32" else "ieee"
    forward, backward = tilings
    steps, ending = launch.backward_launches(cell, backward, precision)
    return [
        *(
            _kernel(made, forward, types)
            for made in launch.forward_launches(cell, forward, True, precision)
        ),
        *(_kernel(made, backward, types) for made in (*steps, *ending)),
    ]


def own_kernels(
    text: Text, math: str, device: Device, B: int = 32, *, masked: bool = True
) -> list[Kernel]:
    """Every kernel that a training scan of a cell of one's own launches."""
    storage, found = "*" + STORAGE[math], []
    itemsize = 4 if storage == "*fp32" else 2
    functions = own.functions_of(text.text)
    for made in (*text.forward, *text.backward):
        tiling = own.tiling_of(made, B, itemsize, device)
        constants: dict[str, Any] = {
            "TRAINING": True,
            "PRECISION": "tf32" if math == "tf32" else "ieee",
        }
        constants |= tiling.blocks
        signature: dict[str, str] = {}
        function = functions[made.function]
        for name in function.arg_names:
            signature[name] = "constexpr" if name in constants else _own_type(name, storage)
            if name in ("lengths", "resets") and not masked:
                signature[name], constants[name] = "constexpr", None
        constants = {name: constants[name] for name in signature if name in constants}
        found.append(Kernel(made.function, function, signature, constants, tiling))
    return found


def _own_type(name: str, storage: str) -> str:
    known = {"lengths": "*i64", "resets": "*u8", "bound": "fp32", "limit": "fp32"}
    if name in known:
        return known[name]
    if name in ("step", "T", "B", "reverse"):
        return "i32"
    stored = name.startswith(("weight", "init", "dy")) or name == "new0"
    return storage if stored else "*fp32"


def _types(cell: TritonCell, math: str, masked: bool) -> dict[str, str]:
    """Of the arguments of a scan, by name; those that it has not are missing."""
    storage = STORAGE[math]
    types = dict.fromkeys(
        ("y", "h0", "c0", "h_last", "c_last", "w_hh", "w_hr", "b_n", "dy", "dcells", "dh_last",
         "dc_last", "dh0", "dc0"), "*" + storage
    )  # fmt: skip
    types |= dict.fromkeys(
        ("gates", "cells", "extra", "dgates", "dextra", "h_in", "h_out", "c", "operand",
         "out", "carry", "dc"), "*fp32"
    )  # fmt: skip
    types |= dict.fromkeys(("T", "B", "H", "P", "reverse", "step"), "i32")
    types |= {"bound": "fp32", "limit": "fp32", "lengths": "*i64", "resets": "*u8"}
    spec = cell.spec
    absent = {
        ("lengths", "resets", "dcells"): not masked,
        ("c0", "c_last", "cells", "c", "dcells", "dc", "dc_last", "dc0"): not spec.has_cell_state,
        ("w_hr",): not spec.projected,
        ("b_n",): not cell.owns_product,
        ("extra",): spec.extra is None,
        ("dextra",): not cell.has_dextra,
    }
    gone = {name for names, is_absent in absent.items() if is_absent for name in names}
    return {name: kind for name, kind in types.items() if name not in gone}


def _kernel(made: launch.Launch, tiling: Tiling, types: dict[str, str]) -> Kernel:
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    for name in made.kernel.arg_names:
        if name in types and name not in made.without:
            signature[name] = types[name]
        else:
            signature[name], constants[name] = "constexpr", made.constants.get(name)
    return Kernel(made.kernel.__name__, made.kernel, signature, constants, tiling)
