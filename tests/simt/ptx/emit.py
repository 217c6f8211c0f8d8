"""Writes a kernel as C++: a function that a fiber runs, a statement an instruction."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

from .ir import (
    Address,
    Immediate,
    Instruction,
    Kernel,
    Label,
    Module,
    Not,
    Operand,
    Pair,
    PtxError,
    Register,
    Special,
    Symbol,
    Vector,
)
from .parse import bytes_of
from .rules import CLUSTER_ARRIVE, CLUSTER_WAIT, SPECIAL, Rule, rules_of

FIRST_SHARED = 1024  # a device keeps the first kilobyte: an address of 0 is an error
SHARED_GAP = 256
SOURCES = "abce"
# what a register holds before it is written, by type or by its bits
UNSET = {
    "pred": "false",
    "f32": "float_of(0x7FC0DEADu)",
    "f64": "bits<f64>(u64(0x7FF8DEAD00000000u))",
    "16": "0xDEAD",
    "32": "0xDEADDEADu",
    "64": "0xDEADDEADDEADDEADu",
}


def emit(module: Module) -> str:
    """The C++ of a module's kernels. Raises PtxError for what is not known."""
    parts = [
        '#include "simt/ptx/ptx_runtime.h"\n',
        "namespace ptx {",
        "namespace {",
        f'constexpr char kFile[] = "{module.file}";\n',
    ]
    parts += [_Emitter(kernel, number).text() for number, kernel in enumerate(module.kernels)]
    return "\n".join([*parts, "}  // namespace", "}  // namespace ptx", ""])


Kind = TypeVar("Kind")


class Unfit(Exception):
    """An operand is not what a rule takes: perhaps another rule does."""


class _Emitter:
    def __init__(self, kernel: Kernel, number: int) -> None:
        self.kernel, self.number = kernel, number
        self.parameters: dict[str, int] = {}
        self.param_bytes = 0
        for p in kernel.parameters:
            self.param_bytes = _round_up(self.param_bytes, p.alignment)
            self.parameters[p.name] = self.param_bytes
            self.param_bytes += p.bytes
        self.windows: dict[str, int] = {}
        at = FIRST_SHARED
        for array in sorted(kernel.shared, key=lambda s: s.bytes is None):  # the dynamic one last
            at = _round_up(at, max(array.alignment, SHARED_GAP))
            self.windows[array.name] = at
            at += (array.bytes or 0) + SHARED_GAP
        self.labels = {s.name for s in kernel.body if isinstance(s, Label)}
        self.used: dict[str, set[str]] = {}
        self.line = kernel.line
        self.relaxed = False  # whether a register may be longer than the instruction's type

    def text(self) -> str:
        self.require_whole_cluster_barriers()
        n, body = self.number, [f"  {s}" for s in map(self.statement, self.kernel.body)]
        return "\n".join(
            [
                self.windows_text(),
                f"void body_{n}(const unsigned char* params) {{",
                f"  [[maybe_unused]] const Frame frame = {{kFile, kWindows_{n}, "
                f"{len(self.windows)}, params, {self.param_bytes}}};",
                *self.declarations(),
                *body,
                "}",
                f'const Registration registration_{n}({{"{self.kernel.name}", body_{n}, '
                f"{self.param_bytes}}});",
                *self.entry(),
                "",
            ]
        )

    def windows_text(self) -> str:
        arrays = {s.name: s for s in self.kernel.shared}
        rows = [
            f'{{"{name}", {base}, {-1 if arrays[name].bytes is None else arrays[name].bytes}, '
            f"{arrays[name].alignment}}}"
            for name, base in self.windows.items()
        ]
        return f"constexpr Window kWindows_{self.number}[] = {{{', '.join(rows) or '{}'}}};"

    def declarations(self) -> list[str]:
        lines = []
        for type_name, names in sorted(self.used.items()):
            unset = UNSET.get(type_name) or UNSET[re.sub(r"\D", "", type_name)]
            type_text = "bool" if type_name == "pred" else type_name
            listed = ", ".join(f"{name} = {unset}" for name in sorted(names))
            lines.append(f"  [[maybe_unused]] {type_text} {listed};")
        return lines

    def entry(self) -> list[str]:
        """The kernel under its own name, for whoever calls it as the C++ function that nvcc saw."""
        if len(self.kernel.parameters) != 1:
            return []
        p = self.kernel.parameters[0]
        if p.bytes <= 16:  # in C++ it would travel in registers
            return []
        blob, name = f"Blob<{p.bytes}, {p.alignment}>", f"entry_{self.number}"
        return [
            "}  // namespace",
            f'void {name}({blob} args) asm("{self.kernel.name}");',
            f"void {name}({blob} args) {{ body_{self.number}(args.bytes); }}",
            "namespace {",
        ]

    def require_whole_cluster_barriers(self) -> None:
        opcodes = [s.opcode if isinstance(s, Instruction) else "a label" for s in self.kernel.body]
        for k, statement in enumerate(self.kernel.body):
            after = opcodes[k + 1] if k + 1 < len(opcodes) else "the end"
            if opcodes[k] == CLUSTER_ARRIVE and after != CLUSTER_WAIT:
                raise PtxError(statement.line, f"{after} follows on {CLUSTER_ARRIVE}")
            before = opcodes[k - 1] if k > 0 else "the beginning"
            if opcodes[k] == CLUSTER_WAIT and before != CLUSTER_ARRIVE:
                raise PtxError(statement.line, f"{before} stands before {CLUSTER_WAIT}")

    # --- statements ------------------------------------------------------------------------------

    def statement(self, statement: Instruction | Label) -> str:
        self.line = statement.line
        if isinstance(statement, Label):
            return f"{_label(statement.name)}:;"
        text = self.instruction(statement)
        if statement.guard is not None:
            text = f"if ({self.read(statement.guard, 'pred')}) {{ {text} }}"
        return f"{text}  // {statement.line}"

    def instruction(self, instruction: Instruction) -> str:
        found = rules_of(instruction.opcode)
        self.relaxed = instruction.opcode.split(".")[0] in ("ld", "st", "cvt")
        if not found:
            raise PtxError(instruction.line, f"unknown instruction {instruction.opcode!r}")
        reasons = []
        for rule, bound in found:
            try:
                return self.apply(rule, bound, instruction)
            except Unfit as reason:
                reasons.append(str(reason))
        raise PtxError(
            instruction.line, f"operands of {instruction.opcode!r}: {'; or '.join(reasons)}"
        )

    def apply(self, rule: Rule, bound: Mapping[str, str], instruction: Instruction) -> str:
        to, _, sources = (part.strip() for part in rule.operands.partition("="))
        to, wanted = _bind(to, bound), _bind(sources, bound).split()
        operands = list(instruction.operands)
        if len(operands) != len(wanted) + bool(to):
            raise Unfit(f"{len(operands)} operands, of which it has {len(wanted) + bool(to)}")
        given = operands[1:] if to else operands
        names = dict(bound, at=f"{{frame, {instruction.line}}}")
        for name, kind, operand in zip(SOURCES, wanted, given, strict=False):
            names[name] = self.source(operand, kind)
        code = re.sub(r"[A-Za-z]\w*", lambda m: _substitute(m.group(), names), rule.code)
        return self.assign(operands[0], to, code) if to else code + ";"

    # --- sources ---------------------------------------------------------------------------------

    def source(self, operand: Operand, kind: str) -> str:
        if kind == "label":
            name = _require(operand, Symbol, "a label").name
            if name not in self.labels:
                raise Unfit(f"there is no label {name!r}")
            return _label(name)
        if kind in ("param", "shared", "global"):
            return self.address(_require(operand, Address, "an address"), kind)
        type_name, _, count = kind.partition("*")
        if not count:
            return self.read(operand, type_name)
        if isinstance(operand, Vector):
            items = operand.items
        elif count == "1":
            items = (operand,)
        else:
            raise Unfit(f"a vector of {count} expected")
        if len(items) != int(count):
            raise Unfit(f"a vector of {count} expected, not of {len(items)}")
        listed = ", ".join(self.read(item, type_name) for item in items)
        return f"Vec<{type_name}, {count}>{{{{{listed}}}}}"

    def read(self, operand: Operand, type_name: str) -> str:
        """An operand as a value of this type."""
        if isinstance(operand, Not):
            return f"!{self.read(operand.of, type_name)}"
        if isinstance(operand, Register):
            return _convert(self.use(operand), operand.type, type_name, -1 if self.relaxed else 0)
        if type_name == "pred" and not isinstance(operand, Immediate):
            raise Unfit("a predicate expected")
        if isinstance(operand, Immediate):
            return _number(operand.text, type_name)
        if isinstance(operand, Special):
            return f"{type_name}({SPECIAL[operand.name]})"
        if isinstance(operand, Symbol):
            return f"{type_name}({self.symbol(operand.name)})"
        raise Unfit(f"a value of type {type_name} expected")

    def use(self, register: Register) -> str:
        self.used.setdefault(register.type, set()).add(register.name)
        return register.name

    def symbol(self, name: str) -> int:
        places = {**self.parameters, **self.windows}
        if name not in places:
            raise PtxError(self.line, f"unknown symbol {name!r}")
        return places[name]

    def address(self, address: Address, space: str) -> str:
        spaces = {"param": self.parameters, "shared": self.windows, "global": {}}
        type_name = "u32" if space == "shared" else "u64"
        base = address.base
        if isinstance(base, Symbol):
            if base.name not in spaces[space]:
                raise Unfit(f"{base.name!r} is not in {space} memory")
            return str(spaces[space][base.name] + address.offset)
        if isinstance(base, Register) and bytes_of(base.type) != bytes_of(type_name):
            raise Unfit(f"an address in {space} memory has another size than {base.type}")
        text = self.read(base, type_name)
        return f"{text} + {type_name}({address.offset})" if address.offset else text

    # --- destinations ----------------------------------------------------------------------------

    def assign(self, operand: Operand, kind: str, code: str) -> str:
        if "|" in kind:
            first, second = kind.split("|")
            if isinstance(operand, Pair):
                targets = [(operand.first, first, "v.first"), (operand.second, second, "v.second")]
            else:
                targets = [(operand, first, "v.first")]
            return self.spread(code, targets)
        type_name, _, count = kind.partition("*")
        if not count:
            return self.write(operand, type_name, code)
        items = operand.items if isinstance(operand, Vector) else (operand,)
        if len(items) != int(count):
            raise Unfit(f"a vector of {count} expected, not of {len(items)}")
        return self.spread(code, [(item, type_name, f"v.at[{k}]") for k, item in enumerate(items)])

    def spread(self, code: str, targets: list[tuple[Operand, str, str]]) -> str:
        writes = [self.write(*t) for t in targets if t[0] is not None]
        return f"{{ const auto v = {code}; {' '.join(writes)} }}"

    def write(self, operand: Operand, type_name: str, value: str) -> str:
        register = _require(operand, Register, "a register")
        converted = _convert(
            f"{type_name}({value})", type_name, register.type, 1 if self.relaxed else 0
        )
        if not _assignable(type_name, register.type):
            value = converted
        return f"{self.use(register)} = {value};"


def _require(operand: Operand, kind: type[Kind], words: str) -> Kind:
    if not isinstance(operand, kind):
        raise Unfit(f"{words} expected")
    return operand


def _same_cpp(one: str, other: str) -> bool:
    """Whether both types are one in C++: b32 is u32."""
    return one.replace("b", "u") == other.replace("b", "u")


def _assignable(given: str, wanted: str) -> bool:
    """Whether C++ converts a value as it should without being asked."""
    integers = given[0] in "bus" and wanted[0] in "bus"
    return given == wanted or (integers and bytes_of(given) == bytes_of(wanted))


def _convert(text: str, given: str, wanted: str, longer: int) -> str:
    """A value of one type as another of the same size: bit by bit, where one is of bits or both are
    integers. longer 1, -1: also an integer made longer, or its low bits."""
    if _same_cpp(given, wanted):
        return text
    floats = [t for t in (given, wanted) if t[0] == "f"]
    if "pred" not in (given, wanted):
        have, want = bytes_of(given), bytes_of(wanted)
        if have == want and (not floats or "b" in (given[0], wanted[0])):
            return f"bits<{wanted}>({text})" if floats else f"{wanted}({text})"
        if have != want and (want - have) * longer > 0 and not floats:
            return f"{wanted}({text})"
    raise Unfit(f"{wanted} expected, not {given}")


def _number(text: str, type_name: str) -> str:
    if type_name == "pred":
        return "false" if int(text, 0) == 0 else "true"
    size = bytes_of(type_name)
    exact = re.match(r"0[fFdD]([0-9a-fA-F]+)$", text)
    if exact:
        if len(exact.group(1)) != 2 * size:
            raise Unfit(f"{text} is no {type_name}")
        value = int(exact.group(1), 16)
    elif type_name[0] == "f":
        raise Unfit(f"{text} is no {type_name}")
    else:
        value = int(text.rstrip("U"), 0) % (1 << 8 * size)
    if type_name[0] == "f":
        return f"bits<{type_name}>(u{8 * size}({value:#x}u))"
    return f"{type_name}({value:#x}u)"


def _bind(text: str, bound: Mapping[str, str]) -> str:
    return re.sub(r"[A-Za-z]\w*", lambda m: bound.get(m.group(), m.group()), text)


def _substitute(word: str, names: Mapping[str, str]) -> str:
    """A word of a rule's expression; of multiply_T the part T as well."""
    return "_".join(names.get(part, part) for part in word.split("_"))


def _label(name: str) -> str:
    return f"at_{name}"


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
