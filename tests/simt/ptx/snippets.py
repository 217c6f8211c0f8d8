"""Single instructions at the edges of what PTX defines for them: inputs and results in bits.

handwritten.py has the small kernels that it takes for the others.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from .parse import bytes_of

Run = tuple[tuple[int, ...], int]


@dataclass(frozen=True)
class Snippet:
    """``types``: of destination and sources, "s32 = s32 u32"; a run: sources, and the result;
    ``constants``: operands after these."""

    instruction: str
    types: str
    runs: tuple[Run, ...]
    constants: str = ""

    @property
    def kernel(self) -> str:
        return "one_" + self.instruction.replace(".", "_").replace(":", "_")

    def ptx(self) -> str:
        to, sources = (part.split() for part in self.types.split("="))
        names = [f"%a{k}" for k in range(len(sources))]
        body = [_declaration(to[0], "%d"), *map(_declaration, sources, names)]
        for k, (kind, name) in enumerate(zip(sources, names, strict=True)):
            body += _load(kind, name, k)
        body.append(f"{self.instruction} %d, {', '.join(names)}{self.constants};")
        body += _store(to[0])
        return entry(self.kernel, "\n  ".join(body))


def bits(value: float) -> int:
    """Of a float in fp32."""
    return int(struct.unpack("<I", struct.pack("<f", value))[0])


def entry(name: str, body: str) -> str:
    """A kernel whose parameters are in %in and %out."""
    return f"""
.visible .entry {name}(.param .u64 {name}_in, .param .u64 {name}_out)
{{
  .reg .b64 %in, %out;
  ld.param.u64 %in, [{name}_in];
  ld.param.u64 %out, [{name}_out];
  {body}
  ret;
}}
"""


def _declaration(kind: str, name: str) -> str:
    if kind == "pred":
        return f".reg .pred {name}; .reg .b32 {name}_word;"
    return f".reg .{kind if kind[0] == 'f' else 'b' + kind[1:]} {name};"


def _load(kind: str, name: str, place: int) -> list[str]:
    address = f"[%in+{8 * place}]"
    if kind == "pred":
        return [f"ld.global.b32 {name}_word, {address};", f"setp.ne.b32 {name}, {name}_word, 0;"]
    return [f"ld.global.{kind if kind[0] == 'f' else 'b' + kind[1:]} {name}, {address};"]


def _store(kind: str) -> list[str]:
    if kind == "pred":
        return ["selp.b32 %d_word, 1, 0, %d;", "st.global.b32 [%out], %d_word;"]
    return [f"st.global.{kind if kind[0] == 'f' else 'b' + kind[1:]} [%out], %d;"]


def _one(instruction: str, types: str, *runs: Run) -> Snippet:
    return Snippet(instruction, types, runs)


def _signed(value: int, type_name: str = "s32") -> int:
    return value % (1 << 8 * bytes_of(type_name))


_LOW, _HIGH = 0x12345678, 0x9ABCDEF0
_NAN, _INF, _TINY = 0x7FC00000, bits(float("inf")), 0x00400000  # the last is subnormal
_MINUS_0 = bits(-0.0)

_INTEGERS = (
    _one("add.s32", "s32 = s32 s32", ((0x7FFFFFFF, 1), 0x80000000)),
    _one("add.u16", "u16 = u16 u16", ((0xFFFF, 2), 1)),
    _one("add.s64", "s64 = s64 s64", ((0x7FFFFFFFFFFFFFFF, 1), 1 << 63)),
    _one("sub.s16", "s16 = s16 s16", ((0, 1), 0xFFFF)),
    _one("neg.s32", "s32 = s32", ((1 << 31,), 1 << 31), ((1,), 0xFFFFFFFF)),
    _one("abs.s32", "s32 = s32", ((0xFFFFFFFF,), 1), ((1 << 31,), 1 << 31)),
    _one("min.s32", "s32 = s32 s32", ((0xFFFFFFFF, 1), 0xFFFFFFFF)),
    _one("max.u32", "u32 = u32 u32", ((0xFFFFFFFF, 1), 0xFFFFFFFF)),
    _one("mul.lo.s32", "s32 = s32 s32", ((0x10001, 0x10001), 0x20001)),
    _one("mul.lo.s16", "s16 = s16 s16", ((0xFFFF, 0xFFFF), 1)),
    _one("mul.wide.s32", "s64 = s32 s32", ((0xFFFFFFFF, 2), _signed(-2, "s64"))),
    _one("mul.wide.u16", "u32 = u16 u16", ((0xFFFF, 0xFFFF), 0xFFFE0001)),
    _one("mul.hi.u32", "u32 = u32 u32", ((0xFFFFFFFF, 0xFFFFFFFF), 0xFFFFFFFE)),
    _one("mul.hi.s64", "s64 = s64 s64", ((_signed(-1, "s64"), 2), _signed(-1, "s64"))),
    _one("mad.lo.s32", "s32 = s32 s32 s32", ((0x40000000, 4, 5), 5)),
    _one("mad.wide.u32", "u64 = u32 u32 u64", ((0xFFFFFFFF, 0xFFFFFFFF, 3), 0xFFFFFFFE00000004)),
    _one("mad.hi.s32", "s32 = s32 s32 s32", ((0xFFFFFFFF, 1, 7), 6)),
    _one("div.s32", "s32 = s32 s32", ((_signed(-7), 2), _signed(-3)),
         ((1 << 31, _signed(-1)), 1 << 31)),
    _one("div.u64", "u64 = u64 u64", ((_signed(-1, "s64"), _signed(-1, "s64")), 1)),
    _one("rem.s32", "s32 = s32 s32", ((_signed(-7), 2), _signed(-1)), ((1 << 31, _signed(-1)), 0)),
    _one("rem.u32", "u32 = u32 u32", ((7, 0xFFFFFFFF), 7)),
    _one("and.b16", "b16 = b16 b16", ((0xF0F0, 0xFF00), 0xF000)),
    _one("or.b64", "b64 = b64 b64", ((1 << 63, 1), (1 << 63) | 1)),
    _one("xor.b32", "b32 = b32 b32", ((0xFF00FF00, 0xFFFFFFFF), 0x00FF00FF)),
    _one("not.b16", "b16 = b16", ((0,), 0xFFFF)),
    _one("shl.b32", "b32 = b32 u32", ((3, 31), 1 << 31), ((3, 32), 0), ((3, 0xFFFFFFFF), 0)),
    _one("shl.b16", "b16 = b16 u32", ((3, 15), 0x8000), ((3, 16), 0)),
    _one("shl.b64", "b64 = b64 u32", ((3, 63), 1 << 63), ((3, 64), 0)),
    _one("shr.s32", "s32 = s32 u32", ((_signed(-8), 1), _signed(-4)),
         ((_signed(-8), 40), _signed(-1)), ((8, 40), 0)),
    _one("shr.u32", "u32 = u32 u32", ((1 << 31, 31), 1), ((1 << 31, 32), 0)),
    _one("shr.b64", "b64 = b64 u32", ((1 << 63, 63), 1), ((1 << 63, 64), 0)),
    _one("shf.l.wrap.b32", "b32 = b32 b32 u32", ((_LOW, _HIGH, 4), 0xABCDEF01),
         ((_LOW, _HIGH, 36), 0xABCDEF01), ((_LOW, _HIGH, 0), _HIGH)),
    _one("shf.r.wrap.b32", "b32 = b32 b32 u32", ((_LOW, _HIGH, 4), 0x01234567),
         ((_LOW, _HIGH, 32), _LOW)),
    _one("shf.l.clamp.b32", "b32 = b32 b32 u32", ((_LOW, _HIGH, 4), 0xABCDEF01),
         ((_LOW, _HIGH, 40), _LOW)),
    _one("shf.r.clamp.b32", "b32 = b32 b32 u32", ((_LOW, _HIGH, 40), _HIGH)),
    _one("bfe.u32", "u32 = u32 u32 u32", ((_LOW, 8, 8), 0x56), ((_LOW, 8, 0), 0),
         ((_LOW, 40, 4), 0), ((_LOW, 28, 8), 1)),
    _one("bfe.s32", "s32 = s32 u32 u32", ((_LOW, 4, 4), 7), ((0x80, 4, 4), _signed(-8)),
         ((1 << 31, 31, 5), _signed(-1)), ((1 << 31, 40, 4), _signed(-1)), ((1 << 31, 0, 0), 0)),
    _one("bfe.u64", "u64 = u64 u32 u32", ((0xAB << 40, 40, 8), 0xAB)),
    _one("bfi.b32", "b32 = b32 b32 u32 u32", ((0xF, 0, 4, 4), 0xF0), ((0, 0xFFFFFFFF, 1, 31), 1),
         ((_LOW, _HIGH, 4, 0), _HIGH), ((_LOW, _HIGH, 32, 4), _HIGH),
         ((0xFF, 0, 28, 8), 0xF << 28)),
    _one("prmt.b32", "b32 = b32 b32 b32", ((0x33221100, 0x77665544, 0x7531), 0x77553311),
         ((0x80, 0x7F000000, 0xF888), 0x00FFFFFF)),
    # a ? b : c
    Snippet("lop3.b32", "b32 = b32 b32 b32", (((0xF0, 0xCC, 0xAA), 0xCA),), ", 0xCA"),
    _one("clz.b32", "u32 = b32", ((0,), 32), ((1,), 31)),
    _one("clz.b64", "u32 = b64", ((0,), 64), ((1 << 40,), 23)),
    _one("popc.b32", "u32 = b32", ((0xF00F,), 8)),
)  # fmt: skip

_PREDICATES = (
    _one("setp.lt.s32", "pred = s32 s32", ((0xFFFFFFFF, 0), 1)),
    _one("setp.lt.u32", "pred = u32 u32", ((0xFFFFFFFF, 0), 0)),
    _one("setp.lo.u32", "pred = u32 u32", ((0, 0xFFFFFFFF), 1)),
    _one("setp.hs.u32", "pred = u32 u32", ((0, 0), 1)),
    _one("setp.ne.s16", "pred = s16 s16", ((1, 1), 0)),
    _one("setp.eq.b32", "pred = b32 b32", ((1, 1), 1)),
    _one("setp.ge.s64", "pred = s64 s64", ((1 << 63, 0), 0)),
    _one("setp.eq.f32", "pred = f32 f32", ((_MINUS_0, 0), 1), ((_NAN, _NAN), 0)),
    _one("setp.ne.f32", "pred = f32 f32", ((_NAN, 0), 0), ((bits(1), 0), 1)),
    _one("setp.neu.f32", "pred = f32 f32", ((_NAN, 0), 1), ((0, 0), 0)),
    _one("setp.lt.f32", "pred = f32 f32", ((_NAN, _INF), 0), ((0, _INF), 1)),
    _one("setp.gtu.f32", "pred = f32 f32", ((_NAN, _INF), 1), ((0, _INF), 0)),
    _one("setp.nan.f32", "pred = f32 f32", ((_NAN, 0), 1), ((0, 0), 0)),
    _one("setp.num.f32", "pred = f32 f32", ((0, _NAN), 0), ((0, 0), 1)),
    _one("setp.eq.ftz.f32", "pred = f32 f32", ((_TINY, 0), 1)),
    _one("setp.lt.and.s32", "pred = s32 s32 pred", ((1, 2, 1), 1), ((1, 2, 0), 0)),
    _one("setp.lt.or.s32", "pred = s32 s32 pred", ((2, 1, 1), 1), ((2, 1, 0), 0)),
    _one("selp.b32", "b32 = b32 b32 pred", ((5, 6, 1), 5), ((5, 6, 0), 6)),
    _one("selp.f32", "f32 = f32 f32 pred", ((bits(5), bits(6), 0), bits(6))),
    _one("setp.lt.and.f32", "pred = f32 f32 pred", ((0, _INF, 1), 1), ((_NAN, _INF, 1), 0)),
    _one("mov.pred", "pred = pred", ((1,), 1)),
    _one("and.pred", "pred = pred pred", ((1, 1), 1), ((1, 0), 0)),
    _one("or.pred", "pred = pred pred", ((0, 0), 0), ((1, 0), 1)),
    _one("xor.pred", "pred = pred pred", ((1, 1), 0), ((1, 0), 1)),
    _one("not.pred", "pred = pred", ((1,), 0)),
)

_FLOATS = (
    # (1 + 2^-23)(1 - 2^-23) - 1: the product rounded first would give 0
    _one("fma.rn.f32", "f32 = f32 f32 f32",
         ((0x3F800001, bits(1 - 2**-23), bits(-1)), bits(-(2**-46)))),
    _one("mul.f32", "f32 = f32 f32", ((0x00800000, bits(0.5)), _TINY)),
    _one("mul.ftz.f32", "f32 = f32 f32", ((0x00800000, bits(0.5)), 0),
         ((0x80800000, bits(0.5)), _MINUS_0)),
    _one("add.ftz.f32", "f32 = f32 f32", ((_TINY, _TINY), 0)),
    _one("add.f32", "f32 = f32 f32", ((_TINY, _TINY), 0x00800000), ((_MINUS_0, 0), 0)),
    _one("sub.rn.f32", "f32 = f32 f32", ((bits(2**24), bits(-1)), bits(2**24))),
    _one("div.rn.f32", "f32 = f32 f32", ((bits(1), bits(3)), 0x3EAAAAAB)),
    _one("rcp.rn.f32", "f32 = f32", ((bits(3),), 0x3EAAAAAB), ((_MINUS_0,), bits(float("-inf")))),
    _one("sqrt.rn.f32", "f32 = f32", ((bits(2),), 0x3FB504F3)),
    _one("rcp.approx.ftz.f32", "f32 = f32", ((bits(4),), bits(0.25)), ((_TINY,), _INF)),
    _one("ex2.approx.ftz.f32", "f32 = f32", ((bits(3),), bits(8)), ((bits(-200),), 0),
         ((bits(-127),), 0), ((_INF,), _INF)),
    _one("tanh.approx.f32", "f32 = f32", ((_INF,), bits(1)), ((0,), 0)),
    _one("neg.f32", "f32 = f32", ((0,), _MINUS_0), ((_NAN,), 0xFFC00000)),
    _one("abs.f32", "f32 = f32", ((_MINUS_0,), 0)),
    _one("min.f32", "f32 = f32 f32", ((_NAN, bits(1)), bits(1)), ((_MINUS_0, 0), _MINUS_0)),
    _one("max.f32", "f32 = f32 f32", ((bits(1), _NAN), bits(1)), ((_MINUS_0, 0), 0)),
)  # fmt: skip

_CONVERSIONS = (
    _one("cvta.to.global.u64", "u64 = u64", ((1 << 40,), 1 << 40)),
    _one("cvt.u16.u32", "u16 = u32", ((0x12345,), 0x2345)),
    _one("cvt.s64.s32", "s64 = s32", ((0xFFFFFFFF,), _signed(-1, "s64"))),
    _one("cvt.u64.u32", "u64 = u32", ((0xFFFFFFFF,), 0xFFFFFFFF)),
    _one("cvt.u32.s16", "u32 = s16", ((0x8000,), 0xFFFF8000)),
    _one("cvt.u32.u64", "u32 = u64", ((0x1FFFFFFFF,), 0xFFFFFFFF)),
    _one("cvt.rn.f32.s32", "f32 = s32", ((0x01000001,), bits(2**24)),
         ((0x01000003,), bits(2**24 + 4))),
    _one("cvt.rn.f32.u64", "f32 = u64", ((_signed(-1, "s64"),), bits(2.0**64))),
    _one("cvt.rzi.s32.f32", "s32 = f32", ((bits(-2.9),), _signed(-2)), ((_NAN,), 0),
         ((bits(3e9),), 0x7FFFFFFF), ((bits(-3e9),), 1 << 31), ((_INF,), 0x7FFFFFFF)),
    _one("cvt.rzi.u32.f32", "u32 = f32", ((bits(-1),), 0), ((bits(5e9),), 0xFFFFFFFF),
         ((bits(2.0**31),), 1 << 31)),
    _one("cvt.rni.s32.f32", "s32 = f32", ((bits(2.5),), 2), ((bits(3.5),), 4)),
    _one("cvt.rn.f16.f32", "b16 = f32", ((bits(65519.9),), 0x7BFF), ((bits(65520),), 0x7C00),
         ((bits(2.0**-25),), 0), ((bits(1.5 * 2.0**-25),), 1)),
    _one("cvt.f32.f16", "f32 = b16", ((0x0001,), bits(2.0**-24)), ((0xFC00,), bits(float("-inf")))),
    _one("cvt.rn.bf16.f32", "b16 = f32", ((0x3F808000,), 0x3F80), ((0x3F818000,), 0x3F82)),
    _one("cvt.f32.bf16", "f32 = b16", ((0x3F81,), 0x3F810000)),
    _one("cvt.rna.tf32.f32", "b32 = f32", ((0x3F801000,), 0x3F802000), ((0x3F800FFF,), 0x3F800000)),
)  # fmt: skip

INSTRUCTIONS = (*_INTEGERS, *_PREDICATES, *_FLOATS, *_CONVERSIONS)
