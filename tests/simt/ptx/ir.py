"""PTX as the emitter sees it: kernels, their parameters, shared arrays and statements."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


class PtxError(RuntimeError):
    """The PTX has what the translator does not know. Begins with ``line N:``."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(f"line {line}: {message}")
        self.line = line


@dataclass(frozen=True)
class Register:
    name: str  # as a C++ identifier, unique in the kernel
    type: str  # "b32", "f32", "pred", …


@dataclass(frozen=True)
class Immediate:
    text: str  # "-1", "0x10", "0f3F800000"


@dataclass(frozen=True)
class Special:
    name: str  # "tid.x"


@dataclass(frozen=True)
class Symbol:
    name: str  # of a parameter, a shared array or a label


@dataclass(frozen=True)
class Address:
    base: Register | Symbol | Immediate
    offset: int


@dataclass(frozen=True)
class Vector:
    items: tuple[Operand, ...]  # None in place of a `_`


@dataclass(frozen=True)
class Pair:
    """Two destinations: ``%r1|%p1``."""

    first: Operand
    second: Operand


@dataclass(frozen=True)
class Not:
    of: Register


Operand = Register | Immediate | Special | Symbol | Address | Vector | Pair | Not | None


@dataclass(frozen=True)
class Instruction:
    line: int
    opcode: str  # with its modifiers: "ld.global.nc.u32"
    operands: tuple[Operand, ...]
    guard: Register | Not | None


@dataclass(frozen=True)
class Label:
    line: int
    name: str


Statement = Instruction | Label


@dataclass(frozen=True)
class Parameter:
    name: str
    bytes: int
    alignment: int


@dataclass(frozen=True)
class SharedArray:
    name: str
    bytes: int | None  # None: the launch's dynamic shared memory
    alignment: int


@dataclass(frozen=True)
class Kernel:
    name: str
    line: int
    parameters: tuple[Parameter, ...]
    shared: tuple[SharedArray, ...]  # that it may name, also the module's
    body: tuple[Statement, ...]

    def instructions(self) -> Iterator[Instruction]:
        return (s for s in self.body if isinstance(s, Instruction))


@dataclass(frozen=True)
class Module:
    file: str  # for messages
    target: str  # "sm_90"
    kernels: tuple[Kernel, ...]

    def kernel(self, name: str) -> Kernel:
        """Raises KeyError."""
        return {k.name: k for k in self.kernels}[name]
