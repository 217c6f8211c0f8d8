"""Reads PTX into ir.Module: a directive or form of operand that is not listed here is an error."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

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
    Parameter,
    PtxError,
    Register,
    SharedArray,
    Special,
    Statement,
    Symbol,
    Vector,
)
from .rules import SPECIAL

# of a kernel, between its parameters and its body; how many numbers follow is nvcc's business
TUNING = (".maxntid", ".reqntid", ".minnctapersm", ".maxnreg", ".explicitcluster")
CLUSTER = (".reqnctapercluster", ".maxclusterrank")
BITS = re.compile(r"[a-z]+(\d+)$")

_TOKEN = re.compile(
    r"""(?P<space>[ \t\r]+|//[^\n]*) | (?P<newline>\n)
      | (?P<number>-?(?:0[fF][0-9a-fA-F]{8}\b|0[dD][0-9a-fA-F]{16}\b|0x[0-9a-fA-F]+|\d+)U?)
      | (?P<name>[%$_A-Za-z][\w$]*(?:(?:\.|::)\w+)*)
      | (?P<directive>\.\w+(?:::\w+)*)
      | (?P<string>"[^"]*") | (?P<mark>[{}()\[\],;:+@!|<>=])""",
    re.VERBOSE,
)


class Token(NamedTuple):
    kind: str
    text: str
    line: int


def parse(text: str, file: str) -> Module:
    """The module of a PTX text; ``file``: its name in messages. Raises PtxError."""
    return _Parser(text).module(file)


def bytes_of(type_name: str) -> int:
    """Of a type such as ``b32``. Raises KeyError where it has no size in memory."""
    match = BITS.match(type_name)
    if match is None:
        raise KeyError(type_name)
    return int(match.group(1)) // 8


def _tokens(text: str) -> Iterator[Token]:
    line, at = 1, 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise PtxError(line, f"not PTX: {text[at : at + 20]!r}")
        at = match.end()
        kind = str(match.lastgroup)
        if kind == "newline":
            line += 1
        elif kind != "space":
            yield Token(kind, match.group(), line)


class _Scope:
    """What a pair of braces declares."""

    def __init__(self, suffix: str) -> None:
        self.suffix = suffix  # of the names in C++
        self.registers: dict[str, Register] = {}
        self.ranges: dict[str, tuple[int, str]] = {}  # prefix: how many, type
        self.labels: set[str] = set()

    def find(self, name: str) -> Register | None:
        if name in self.registers:
            return self.registers[name]
        match = re.match(r"(.*?)(\d+)$", name)
        if match is None or match.group(1) not in self.ranges:
            return None
        count, type_name = self.ranges[match.group(1)]
        if int(match.group(2)) >= count:
            return None
        self.registers[name] = Register(_identifier(name) + self.suffix, type_name)
        return self.registers[name]


class _Parser:
    def __init__(self, text: str) -> None:
        self.tokens = [*_tokens(text), Token("end", "end of file", text.count("\n") + 1)]
        self.at = 0
        self.scopes: list[_Scope] = []
        self.made_scopes = 0

    # --- tokens ----------------------------------------------------------------------------------

    @property
    def next(self) -> Token:
        return self.tokens[self.at]

    def take(self) -> Token:
        self.at += 1
        return self.tokens[self.at - 1]

    def accept(self, text: str) -> bool:
        if self.next.text != text or self.next.kind == "string":
            return False
        self.at += 1
        return True

    def expect(self, text: str) -> Token:
        if not self.accept(text):
            raise PtxError(self.next.line, f"{text!r} expected, not {self.next.text!r}")
        return self.tokens[self.at - 1]

    def take_kind(self, kind: str) -> str:
        if self.next.kind != kind:
            raise PtxError(self.next.line, f"a {kind} expected, not {self.next.text!r}")
        return self.take().text

    # --- a module --------------------------------------------------------------------------------

    def module(self, file: str) -> Module:
        target, shared, kernels = "", [], []
        while self.next.kind != "end":
            token = self.take()
            if token.text == ".version":
                self.take_kind("number")
                self.accept_fraction()
            elif token.text == ".target":
                target = self.take_kind("name")
            elif token.text == ".address_size":
                self.expect("64")
            elif token.text in (".extern", ".visible", ".weak"):
                continue  # of what follows
            elif token.text == ".shared":
                shared.append(self.shared_array())
            elif token.text == ".entry":
                kernels.append(self.kernel(tuple(shared)))
            elif token.text in (".func", ".global"):
                self.skip_definition()
            else:
                raise PtxError(token.line, f"unknown directive {token.text!r} of a module")
        return Module(file, target, tuple(kernels))

    def skip_definition(self) -> None:
        """Of a function, of which calls only end the launch, or of its words."""
        while self.next.text not in ("{", ";"):
            if self.take().text == "=":
                self.skip_to_semicolon()
                return
        if self.accept(";"):
            return
        depth = 0
        while True:
            depth += {"{": 1, "}": -1}.get(self.take().text, 0)
            if depth == 0:
                return

    def skip_to_semicolon(self) -> None:
        while self.take().text != ";":
            if self.next.kind == "end":
                raise PtxError(self.next.line, "';' expected, not 'end of file'")

    def accept_fraction(self) -> None:
        if self.next.kind == "directive" and self.next.text[1:].isdigit():
            self.take()

    def shared_array(self) -> SharedArray:
        alignment = int(self.take_kind("number")) if self.accept(".align") else 0
        element = bytes_of(self.take_kind("directive")[1:])
        name = self.take_kind("name")
        count: int | None = 1
        if self.accept("["):
            count = None if self.next.text == "]" else int(self.take_kind("number"))
            self.expect("]")
        self.expect(";")
        size = None if count is None else count * element
        return SharedArray(name, size, max(alignment, element))

    def kernel(self, shared: tuple[SharedArray, ...]) -> Kernel:
        line, name = self.next.line, self.take_kind("name")
        parameters = []
        if self.accept("("):
            while not self.accept(")"):
                parameters.append(self.parameter())
                self.accept(",")
        while self.next.text != "{":
            token = self.take()
            if token.text not in TUNING + CLUSTER:
                raise PtxError(token.line, f"unknown directive {token.text!r} of a kernel")
            while self.next.kind == "number" or self.next.text == ",":
                self.take()
        own: list[SharedArray] = []
        body = self.block(own)
        return Kernel(name, line, tuple(parameters), (*shared, *own), tuple(body))

    def parameter(self) -> Parameter:
        self.expect(".param")
        alignment = int(self.take_kind("number")) if self.accept(".align") else 0
        element = bytes_of(self.take_kind("directive")[1:])
        name, count = self.take_kind("name"), 1
        if self.accept("["):
            count = int(self.take_kind("number"))
            self.expect("]")
        return Parameter(name, count * element, max(alignment, element))

    # --- a body ----------------------------------------------------------------------------------

    def block(self, shared: list[SharedArray]) -> list[Statement]:
        """Braces and what is between them. Inner ones, of inline assembly, have names of their
        own, which are made unique."""
        self.expect("{")
        self.scopes.append(_Scope(f"_{self.made_scopes}" if self.made_scopes else "_"))
        self.made_scopes += 1
        self.find_labels()
        body: list[Statement] = []
        while not self.accept("}"):
            token = self.next
            if token.text == "{":
                body += self.block(shared)
            elif token.kind == "directive":
                self.directive(shared)
            elif token.text.startswith("st.param."):  # of a call
                self.skip_to_semicolon()
            elif token.kind == "name" and self.tokens[self.at + 1].text == ":":
                self.at += 2
                body.append(Label(token.line, self.label(token)))
            else:
                body.append(self.instruction())
        self.scopes.pop()
        if not self.scopes:
            self.made_scopes = 0
        return body

    def find_labels(self) -> None:
        depth = 0
        for k in range(self.at, len(self.tokens)):
            token = self.tokens[k]
            depth += {"{": 1, "}": -1}.get(token.text, 0)
            if depth < 0:
                return
            if depth == 0 and token.kind == "name" and self.tokens[k + 1].text == ":":
                self.scopes[-1].labels.add(token.text)
        raise PtxError(self.next.line, "the kernel does not end")

    def label(self, token: Token) -> str:
        for scope in reversed(self.scopes):
            if token.text in scope.labels:
                return _identifier(token.text) + scope.suffix
        raise PtxError(token.line, f"there is no label {token.text!r}")

    def directive(self, shared: list[SharedArray]) -> None:
        token = self.take()
        if token.text == ".reg":
            self.registers()
        elif token.text == ".shared":
            shared.append(self.shared_array())
        elif token.text == ".pragma":
            self.take_kind("string")
            self.expect(";")
        elif token.text == ".param":  # of a call
            self.skip_to_semicolon()
        elif token.text == ".local":
            raise PtxError(token.line, "the kernel uses local memory")
        else:
            raise PtxError(token.line, f"unknown directive {token.text!r} in a kernel")

    def registers(self) -> None:
        type_name, scope = self.take_kind("directive")[1:], self.scopes[-1]
        while True:
            name = self.take_kind("name")
            if self.accept("<"):
                scope.ranges[name] = (int(self.take_kind("number")), type_name)
                self.expect(">")
            else:
                scope.registers[name] = Register(_identifier(name) + scope.suffix, type_name)
            if not self.accept(","):
                break
        self.expect(";")

    def instruction(self) -> Instruction:
        guard = None
        if self.accept("@"):
            negated = self.accept("!")
            register = self.register(self.take())
            guard = Not(register) if negated else register
        line, opcode = self.next.line, self.take_kind("name")
        if opcode == "call.uni":
            self.call(line)
            return Instruction(line, "give_up", (), guard)
        operands: list[Operand] = []
        while not self.accept(";"):
            if operands:
                self.expect(",")
            operand = self.operand()
            operands.append(Pair(operand, self.operand()) if self.accept("|") else operand)
        return Instruction(line, opcode, tuple(operands), guard)

    def call(self, line: int) -> None:
        """The one function that is called gives the launch up."""
        first = self.at
        self.skip_to_semicolon()
        if not any("give_up" in token.text for token in self.tokens[first : self.at]):
            raise PtxError(line, "a call of another function than give_up")

    def register(self, token: Token) -> Register:
        found = self.find(token.text)
        if found is None:
            raise PtxError(token.line, f"there is no register {token.text!r}")
        return found

    def find(self, name: str) -> Register | None:
        for scope in reversed(self.scopes):
            found = scope.find(name)
            if found is not None:
                return found
        return None

    def operand(self) -> Operand:
        token = self.take()
        if token.kind == "number":
            return Immediate(token.text)
        if token.text == "!":
            return Not(self.register(self.take()))
        if token.text == "[":
            return self.address()
        if token.text == "{":
            items = [self.operand()]
            while self.accept(","):
                items.append(self.operand())
            self.expect("}")
            return Vector(tuple(items))
        if token.kind != "name":
            raise PtxError(token.line, f"an operand expected, not {token.text!r}")
        if token.text == "_":
            return None
        found = self.find(token.text)
        if found is not None:
            return found
        if any(token.text in scope.labels for scope in self.scopes):
            return Symbol(self.label(token))
        if token.text.startswith("%"):
            if token.text[1:] not in SPECIAL:
                raise PtxError(token.line, f"there is no register {token.text!r}")
            return Special(token.text[1:])
        return Symbol(token.text)

    def address(self) -> Address:
        line, base = self.next.line, self.operand()
        offset = 0
        if self.accept("+"):
            offset = int(self.take_kind("number"), 0)
        self.expect("]")
        if not isinstance(base, (Register, Symbol, Immediate)):
            raise PtxError(line, "an address is a register, a symbol or a number, and an offset")
        return Address(base, offset)


def _identifier(name: str) -> str:
    return re.sub(r"\W", "_", name.lstrip("%$"))
