"""Compiling the kernels ahead of time, for GPUs that need not be there.

Needs a process in which Triton compiles: not one with TRITON_INTERPRET=1.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from . import resident, resident_reset_before, stepwise, stepwise_backward, stepwise_reset_before
from .cells import CELLS, TritonCell
from .plan import Plan

STORAGE = {"fp32": "fp32", "tf32": "fp32", "bf16": "bf16", "fp16": "fp16"}
MATH = tuple(STORAGE)  # how products are computed: fp32 by FMA, the others by tensor cores


class Kernel(NamedTuple):
    """One kernel as a scan would launch it; ``constants`` are its compile-time arguments."""

    name: str
    function: Any
    signature: dict[str, str]
    constants: dict[str, Any]
    plan: Plan


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
    made = triton.compile(source, target=target_of(arch), options=kernel.plan.options)
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
    cell_name: str, math: str, plans: tuple[Plan, Plan], *, masked: bool = True
) -> list[Kernel]:
    """Every kernel that a training scan launches.

    ``plans``: of forward and of backward. ``masked``: with lengths, resets and the gradients of
    all states, which is the largest form of each kernel.
    """
    cell = CELLS[cell_name]
    forward, backward = plans
    make = _Maker(cell, math, masked)
    if cell.phases == 2:
        return make.reset_before(forward, True) + make.reset_before(backward, False)
    return make.forward(forward) + make.backward(backward)


class _Maker:
    """Builds the signatures: an argument that is None, or a constant, by its name."""

    def __init__(self, cell: TritonCell, math: str, masked: bool) -> None:
        self.cell, self.math = cell, math
        storage = STORAGE[math]
        self.types = dict.fromkeys(
            ("y", "h0", "c0", "h_last", "c_last", "w_hh", "w_hr", "b_n", "dy", "dcells", "dh_last",
             "dc_last", "dh0", "dc0"), "*" + storage
        )  # fmt: skip
        self.types |= dict.fromkeys(
            ("gates", "cells", "extra", "dgates", "dextra", "dh_total", "h_in", "h_out", "c", "m",
             "carry", "dc", "direct"), "*fp32"
        )  # fmt: skip
        self.types |= dict.fromkeys(("T", "B", "H", "P", "reverse", "step"), "i32")
        self.types |= {"bound": "fp32", "limit": "fp32", "lengths": "*i64", "resets": "*u8"}
        self.absent = set() if masked else {"lengths", "resets", "dcells"}
        if cell.states == 1:
            self.absent |= {"c0", "c_last", "cells", "c", "dcells", "dc", "dc_last", "dc0"}
        if not cell.projected:
            self.absent |= {"w_hr", "m"}
        if cell.name != "gru":
            self.absent |= {"b_n"}
        if cell.saved == cell.gates:
            self.absent |= {"extra"}
        if not cell.projected and cell.name != "gru":
            self.absent |= {"dextra"}
        self.constants = {
            "FORWARD": cell.forward,
            "BACKWARD": cell.backward,
            "G": cell.gates,
            "S": cell.states,
            "SAVED": cell.saved,
            "SAVE": True,
            "READS_H": cell.reads_h,
            "PLANES": cell.gates - 1 if cell.reads_h else cell.gates,
            "PRECISION": "tf32" if math == "tf32" else "ieee",
        }

    def kernel(self, function: Any, plan: Plan, *absent: str) -> Kernel:
        constants = {
            **self.constants,
            "BLOCK_B": plan.block_b,
            "BLOCK_H": plan.block_h,
            "BLOCK_K": plan.block_k,
            "BLOCK_P": plan.block_p,
        }
        signature: dict[str, str] = {}
        own: dict[str, Any] = {}
        for name in function.arg_names:
            if name in constants:
                signature[name], own[name] = "constexpr", constants[name]
            elif name in self.absent or name in absent:
                signature[name], own[name] = "constexpr", None
            else:
                signature[name] = self.types[name]
        return Kernel(function.__name__, function, signature, own, plan)

    def forward(self, plan: Plan) -> list[Kernel]:
        if plan.resident:
            return [self.kernel(resident.resident_forward, plan)]
        projected = self.cell.projected
        step = self.kernel(stepwise.step_forward, plan, *(("extra",) if projected else ()))
        return [step, self.kernel(stepwise.step_project, plan)] if projected else [step]

    def backward(self, plan: Plan) -> list[Kernel]:
        unread = ("extra",) if self.cell.projected else ()
        if plan.resident:
            return [self.kernel(resident.resident_backward, plan, *unread)]
        made = [self.kernel(stepwise_backward.step_backward, plan, *unread)]
        if self.cell.projected:
            made.insert(0, self.kernel(stepwise_backward.step_output_gradient, plan))
        unread = () if self.cell.reads_h else ("dextra",)
        return [*made, self.kernel(stepwise_backward.first_state_gradient, plan, *unread)]

    def reset_before(self, plan: Plan, forward: bool) -> list[Kernel]:
        if plan.resident:
            two = resident_reset_before
            which = (
                two.resident_forward_reset_before
                if forward
                else (two.resident_backward_reset_before)
            )
            return [self.kernel(which, plan)]
        two_launches = stepwise_reset_before
        if forward:
            return [
                self.kernel(two_launches.step_reset, plan),
                self.kernel(two_launches.step_candidate, plan),
            ]
        self_made = [
            self.kernel(two_launches.step_backward_candidate, plan),
            self.kernel(two_launches.step_backward_reset, plan),
        ]
        return [*self_made, self.kernel(stepwise_backward.first_state_gradient, plan, "dextra")]
