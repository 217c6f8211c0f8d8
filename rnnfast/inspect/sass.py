"""Reading NVIDIA machine code: what cuobjdump says of a cubin, and its instructions counted.

The two programs are those of Triton's wheel, of a CUDA toolkit on PATH, or of CUDA_HOME.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

# class: instructions (SASS opcodes up to their first dot), in the order in which they are asked
CLASSES: tuple[tuple[str, str], ...] = (
    ("tensor core", r"[HIDBQO]MMA|[HQBI]GMMA|UTC\w*MMA|WARPGROUP"),
    ("float32", r"FFMA2?|FADD2?|FMUL2?|FSEL|FSETP|FSET|FMNMX3?|FCHK|FSWZADD|FFMA32I"),
    ("float64", r"D(FMA|ADD|MUL|SETP|MNMX)"),
    ("half", r"H(FMA2|ADD2|MUL2|SET2|SETP2|MNMX2)\w*"),
    ("special function", r"MUFU"),
    ("conversion", r"F2F\w*|I2F\w*|F2I\w*|I2FP|F2FP|FRND"),
    ("spill", r"LDL|STL"),
    ("global load", r"LDG"),
    ("global store", r"STG"),
    ("async copy", r"LDGSTS|UBLKCP|UTMALDG|UTMASTG|LDGDEPBAR"),
    ("shared load", r"LDS|LDSM"),
    ("shared store", r"STS|STSM|STAS"),
    ("shuffle", r"SHFL|REDUX|VOTE\w*|MATCH"),
    ("barrier", r"BAR|MEMBAR|SYNCS|DEPBAR|ERRBAR|FENCE|UCGABAR\w*|WARPSYNC|CGAERRBAR"),
    ("atomic", r"ATOM\w*|RED"),
    ("constant load", r"LDC\w*|ULDC"),
    ("branch", r"BRA|BRX|CALL|RET|EXIT|JMP|BSSY|BSYNC|BREAK|YIELD|RPCMOV"),
)
OTHER = "integer and other"
_INSTRUCTION = re.compile(
    r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", re.MULTILINE
)
_FUNCTION = re.compile(r"^\s*\.section\s+\.text\.(\S+?),", re.MULTILINE)
_USAGE = re.compile(r"Function (\S+):\s*\n(.*)")


class Code(NamedTuple):
    """One kernel of a cubin.

    Attributes:
        registers: of a thread. stack, local: bytes of a thread; a spill shows in one of them.
        shared: bytes, static; what a launch asks for besides is not in the cubin.
        opcodes: how often each instruction stands in the code (not how often it runs), by its name
            up to the first dot. variants: the same by its whole name.
    """

    name: str
    registers: int
    stack: int
    local: int
    shared: int
    opcodes: Counter[str]
    variants: Counter[str]

    @property
    def spills(self) -> int:
        """Instructions that read or write local memory."""
        return self.count("LDL", "STL")

    @property
    def tensor_core(self) -> int:
        """Multiplications on tensor cores."""
        return self.classes()["tensor core"]

    def count(self, *opcodes: str) -> int:
        return sum(self.opcodes[o] for o in opcodes)

    def wide(self, opcode: str, bits: str) -> int:
        """Accesses to memory of so many bits a thread ("64", "128")."""
        return sum(
            n
            for name, n in self.variants.items()
            if name.startswith(f"{opcode}.") and bits in name.split(".")
        )

    def classes(self) -> Counter[str]:
        """``opcodes`` summed by class; every class has an entry."""
        found = Counter(dict.fromkeys([*(name for name, _ in CLASSES), OTHER], 0))
        for opcode, n in self.opcodes.items():
            found[class_of(opcode)] += n
        return found


class ToolError(RuntimeError):
    """cuobjdump or nvdisasm is missing or failed; the text has its words."""


@functools.cache
def class_of(opcode: str) -> str:
    for name, pattern in CLASSES:
        if re.fullmatch(pattern, opcode):
            return name
    return OTHER


def read_cubin(cubin: bytes) -> list[Code]:
    """Every kernel of a cubin. Raises ToolError."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        usage = run_tool("cuobjdump", "-res-usage", str(path))
        sass = run_tool("nvdisasm", "-c", str(path))
    return parse(usage, sass)


def parse(usage: str, sass: str) -> list[Code]:
    """From the output of ``cuobjdump -res-usage`` and ``nvdisasm -c``."""
    opcodes = dict(_functions(sass))
    found = []
    for name, line in _USAGE.findall(usage):
        figures = dict(re.findall(r"([A-Z]+(?:\[\d+\])?):(\d+)", line))
        reg, stack, local, shared = (int(figures[k]) for k in ("REG", "STACK", "LOCAL", "SHARED"))
        short: Counter[str] = Counter()
        for opcode, n in opcodes[name].items():
            short[opcode.partition(".")[0]] += n
        found.append(Code(name, reg, stack, local, shared, short, opcodes[name]))
    if not found:
        raise ToolError(f"cuobjdump named no kernel: {usage.strip()[:200]}")
    return found


def _functions(sass: str) -> Iterable[tuple[str, Counter[str]]]:
    starts = [(m.group(1), m.end()) for m in _FUNCTION.finditer(sass)]
    ends = [start for _, start in starts[1:]] + [len(sass)]
    for (name, start), end in zip(starts, ends, strict=True):
        yield name, Counter(_INSTRUCTION.findall(sass, start, end))


def run_tool(name: str, *arguments: str) -> str:
    """The output of a disassembler. Raises ToolError."""
    command = [str(find_tool(name)), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    if done.returncode != 0:
        raise ToolError(f"{name} failed: {(done.stderr or done.stdout).strip()[:500]}")
    return done.stdout + done.stderr


@functools.cache
def find_tool(name: str) -> Path:
    """``cuobjdump`` or ``nvdisasm``: of CUDA_HOME, PATH or Triton's wheel. Raises ToolError."""
    places = []
    if os.environ.get("CUDA_HOME"):
        places.append(Path(os.environ["CUDA_HOME"]) / "bin" / name)
    on_path = shutil.which(name)
    if on_path:
        places.append(Path(on_path))
    triton = importlib.util.find_spec("triton")
    for folder in triton.submodule_search_locations or [] if triton else []:
        places.append(Path(folder) / "backends" / "nvidia" / "bin" / name)
    for place in places:
        if place.is_file():
            return place
    raise ToolError(f"no {name}: neither in CUDA_HOME, nor on PATH, nor in Triton's wheel")
