"""Reading what LLVM writes of an AMD kernel: the metadata in its assembly, instructions counted."""

from __future__ import annotations

import re
from collections import Counter
from typing import NamedTuple

_INSTRUCTION = re.compile(r"^\s+((?:v|s|ds|global|buffer|flat|scratch)_\w+)", re.MULTILINE)


class AmdCode(NamedTuple):
    """One AMD kernel.

    Attributes:
        vgprs: vector registers of a lane, accumulation registers included. spills: of vector and
            scalar registers. scratch: bytes of a lane in memory. lds: bytes, static.
        opcodes: how often each instruction stands in the code, by name.
    """

    vgprs: int
    spills: int
    scratch: int
    lds: int
    opcodes: Counter[str]

    @property
    def matrix_core(self) -> int:
        """Multiplications on matrix cores."""
        return sum(n for name, n in self.opcodes.items() if name.startswith("v_mfma"))

    def kinds(self) -> Counter[str]:
        """``opcodes`` summed by their first word (v, s, ds, global, …); mfma is one of its own."""
        found: Counter[str] = Counter()
        for opcode, n in self.opcodes.items():
            found["v_mfma" if opcode.startswith("v_mfma") else opcode.partition("_")[0]] += n
        return found


def read_amdgcn(assembly: str) -> AmdCode:
    """From the assembly of a single kernel (``asm["amdgcn"]`` of Triton)."""

    def figure(name: str) -> int:
        found = re.search(rf"^\s+\.{name}:\s+(\d+)", assembly, re.MULTILINE)
        if found is None:
            raise ValueError(f"the kernel's metadata has no {name}")
        return int(found.group(1))

    return AmdCode(
        figure("vgpr_count"),
        figure("vgpr_spill_count") + figure("sgpr_spill_count"),
        figure("private_segment_fixed_size"),
        figure("group_segment_fixed_size"),
        Counter(_INSTRUCTION.findall(assembly)),
    )
