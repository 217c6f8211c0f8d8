"""The C++ file of a cell, and what is to be passed to it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..cells import CellSpec
from .code import Class, Needs
from .cpp import emit
from .layout import Layout, layout
from .tangent import graph_of

_TYPES = {torch.float32: "float", torch.float64: "double"}


@dataclass
class Source:
    """``text``: the file. ``needs``: what both classes are given; ``forward``, ``backward``: the
    rows that each names."""

    text: str
    layout: Layout
    needs: Needs
    forward: list[str]
    backward: list[str]


def source(spec: CellSpec, hidden: int, bias: bool, dtype: torch.dtype) -> Source:
    """For layers of ``hidden`` units. Cells and sizes that differ in numbers only have one text.

    Raises:
        StepError: no kernel can be made of the step.
    """
    made = layout(graph_of(spec, hidden, bias, dtype, blocks=True), spec.gates, host=True)
    needs, tangents = Needs(hidden), made.traced.tangents
    forward = emit("Forward", made.forward, needs, backward=False)
    backward = emit("Backward", made.backward, needs, backward=True, tangents=tangents)
    text = _file(_TYPES[dtype], forward, backward)
    return Source(text, made, needs, forward.buffers, backward.buffers)


def _file(scalar: str, forward: Class, backward: Class) -> str:
    return "\n".join(
        [
            "#define RNNFAST_TEAM",
            "#include <cstddef>",
            "#include <limits>",
            "",
            '#include "cpu/steps/loop.h"',
            "",
            "namespace rnnfast::cpu::RNNFAST_ISA::steps {",
            "",
            f"using Scalar = {scalar};",
            "",
            forward.text,
            backward.text,
            "}  // namespace rnnfast::cpu::RNNFAST_ISA::steps",
            "",
            '#include "cpu/steps/entry.inc"',
            "",
        ]
    )
