"""The instruction table: what the translator knows, and as which C++ it runs.

A rule has three parts.

- The opcode. ``{T:int}`` is a type of the set TYPES["int"], ``{C:lt,gt}`` one of these words,
  ``{S:cta=kBlock,gpu=kDevice}`` the same and what it becomes in C++; ``{N}`` is ``.v2``, ``.v4`` or
  nothing, ``{ftz}`` is ``.ftz`` or nothing, ``{rn}`` is ``.rn`` or nothing.
- The operands, as in "T = T u32": the types that the instruction gives its destination and reads
  its sources as. ``b32*2`` is a vector, ``b32|pred`` a pair of destinations; ``param``, ``shared``
  and ``global`` are an address in that space, ``label`` is a label.
- The C++ expression (a statement, where nothing is assigned). ``a``, ``b``, ``c`` and ``e`` are the
  sources, ``T`` and the like what the opcode bound; ``W`` is T of twice the width, ``at`` the place
  for messages and checks. Functions are those of ptx_runtime.h.

Where rules share an opcode, the operands decide.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass

TYPES = {
    "int": "s16 u16 s32 u32 s64 u64".split(),
    "signed": "s16 s32 s64".split(),
    "int32": "s32 u32".split(),
    "int64": "s64 u64".split(),
    "narrow": "s16 u16 s32 u32".split(),
    "bits": "b16 b32 b64".split(),
    "any": "b16 b32 b64 s16 u16 s32 u32 s64 u64 f32 f64".split(),
    "memory": "b8 u8 s8 b16 b32 b64 s16 u16 s32 u32 s64 u64 f32 f64".split(),
    "cmp": "eq ne lt le gt ge lo ls hi hs".split(),
    "fcmp": "eq ne lt le gt ge equ neu ltu leu gtu geu num nan".split(),
}
OPTIONAL = {
    "N": {"": "1", ".v2": "2", ".v4": "4"},
    "ftz": {"": "false", ".ftz": "true"},
    "rn": {"": "", ".rn": ""},
}
SCOPE = "{S:cta=Scope::kBlock,cluster=Scope::kCluster,gpu=Scope::kDevice}"
WIDE = {"s16": "s32", "u16": "u32", "s32": "s64", "u32": "u64"}


@dataclass(frozen=True)
class Rule:
    opcode: str
    operands: str
    code: str

    @functools.cached_property
    def pattern(self) -> tuple[re.Pattern[str], Mapping[str, Mapping[str, str]]]:
        """The opcode as a regular expression; of each variable, what its words become."""
        expression, words = "", {}
        for literal, inner in re.findall(r"([^{]*)(?:\{(.*?)\})?", self.opcode):
            expression += re.escape(literal)
            if not inner:
                continue
            name, _, choices = inner.partition(":")
            if name in OPTIONAL:
                words[name] = OPTIONAL[name]
            else:
                listed = TYPES.get(choices) or choices.split(",")
                pairs = [choice.partition("=") for choice in listed]
                words[name] = {word: text or word for word, _, text in pairs}
            expression += f"(?P<{name}>{'|'.join(re.escape(word) for word in words[name])})"
        return re.compile(expression + "$"), words

    def match(self, opcode: str) -> dict[str, str] | None:
        """What the opcode binds, or None where it is another one."""
        expression, words = self.pattern
        found = expression.match(opcode)
        if found is None:
            return None
        bound = {name: words[name][word] for name, word in found.groupdict().items()}
        if bound.get("T") in WIDE:
            bound["W"] = WIDE[bound["T"]]
        return bound


MOVES = (
    Rule("mov.{T:any}", "T = T", "a"),
    Rule("mov.pred", "pred = pred", "a"),
    Rule("mov.b32", "b32 = b16*2", "pack<b32>(a)"),
    Rule("mov.b32", "b16*2 = b32", "unpack<b16>(a)"),
    Rule("mov.b64", "b64 = b32*2", "pack<b64>(a)"),
    Rule("mov.b64", "b32*2 = b64", "unpack<b32>(a)"),
    Rule("selp.{T:any}", "T = T T pred", "c ? a : b"),
    Rule("cvta.to.global.u64", "u64 = u64", "a"),  # global memory is where a generic address says
)

INTEGERS = (
    Rule("add.{T:int}", "T = T T", "T(u64(a) + u64(b))"),
    Rule("sub.{T:int}", "T = T T", "T(u64(a) - u64(b))"),
    Rule("neg.{T:signed}", "T = T", "T(0 - u64(a))"),
    Rule("abs.{T:signed}", "T = T", "a < 0 ? T(0 - u64(a)) : a"),
    Rule("min.{T:int}", "T = T T", "a < b ? a : b"),
    Rule("max.{T:int}", "T = T T", "a > b ? a : b"),
    Rule("mul.lo.{T:int}", "T = T T", "T(u64(a) * u64(b))"),
    Rule("mul.wide.{T:narrow}", "W = T T", "W(a) * W(b)"),
    Rule("mul.hi.{T:int}", "T = T T", "multiply_high(a, b)"),
    Rule("mad.lo.{T:int}", "T = T T T", "T(u64(a) * u64(b) + u64(c))"),
    Rule("mad.wide.{T:narrow}", "W = T T W", "W(u64(W(a) * W(b)) + u64(c))"),
    Rule("mad.hi.{T:int}", "T = T T T", "T(u64(multiply_high(a, b)) + u64(c))"),
    Rule("div.{T:int}", "T = T T", "divide(a, b, at)"),
    Rule("rem.{T:int}", "T = T T", "remainder(a, b, at)"),
    Rule("and.{T:bits}", "T = T T", "T(a & b)"),
    Rule("or.{T:bits}", "T = T T", "T(a | b)"),
    Rule("xor.{T:bits}", "T = T T", "T(a ^ b)"),
    Rule("not.{T:bits}", "T = T", "T(~a)"),
    Rule("shl.{T:bits}", "T = T u32", "shift_left(a, b)"),
    Rule("shr.{T:bits}", "T = T u32", "shift_right(a, b)"),
    Rule("shr.{T:int}", "T = T u32", "shift_right(a, b)"),
    Rule("shf.{D:l,r}.{M:clamp,wrap}.b32", "b32 = b32 b32 u32", "funnel_D_M(a, b, c)"),
    Rule("bfe.{T:int32}", "T = T u32 u32", "extract(a, b, c)"),
    Rule("bfe.{T:int64}", "T = T u32 u32", "extract(a, b, c)"),
    Rule("bfi.{T:b32,b64}", "T = T T u32 u32", "insert(a, b, c, e)"),
    Rule("prmt.b32", "b32 = b32 b32 b32", "permute(a, b, c)"),
    Rule("lop3.b32", "b32 = b32 b32 b32 u32", "lookup(a, b, c, e)"),
    Rule("clz.{T:b32,b64}", "u32 = T", "leading_zeros(a)"),
    Rule("popc.{T:b32,b64}", "u32 = T", "u32(__builtin_popcountll(a))"),
)

PREDICATES = (
    Rule("setp.{C:cmp}.{T:int}", "pred = T T", "C(a, b)"),
    Rule("setp.{C:eq,ne}.{T:bits}", "pred = T T", "C(a, b)"),
    Rule("setp.{C:fcmp}{ftz}.f32", "pred = f32 f32", "C(flush<ftz>(a), flush<ftz>(b))"),
    Rule("setp.{C:cmp}.{B:and=&,or=|,xor=^}.{T:int}", "pred = T T pred", "C(a, b) B c"),
    Rule("setp.{C:fcmp}.{B:and=&,or=|,xor=^}.f32", "pred = f32 f32 pred", "C(a, b) B c"),
    Rule("and.pred", "pred = pred pred", "a & b"),
    Rule("or.pred", "pred = pred pred", "a | b"),
    Rule("xor.pred", "pred = pred pred", "a ^ b"),
    Rule("not.pred", "pred = pred", "!a"),
)

# The approximations are device_simt.h's.
FLOATS = (
    Rule("add{rn}{ftz}.f32", "f32 = f32 f32", "flush<ftz>(flush<ftz>(a) + flush<ftz>(b))"),
    Rule("sub{rn}{ftz}.f32", "f32 = f32 f32", "flush<ftz>(flush<ftz>(a) - flush<ftz>(b))"),
    Rule("mul{rn}{ftz}.f32", "f32 = f32 f32", "flush<ftz>(flush<ftz>(a) * flush<ftz>(b))"),
    Rule(
        "fma.rn{ftz}.f32",
        "f32 = f32 f32 f32",
        "flush<ftz>(multiply_add(flush<ftz>(a), flush<ftz>(b), flush<ftz>(c)))",
    ),
    Rule("div.rn{ftz}.f32", "f32 = f32 f32", "flush<ftz>(flush<ftz>(a) / flush<ftz>(b))"),
    Rule("rcp.rn{ftz}.f32", "f32 = f32", "flush<ftz>(1.0f / flush<ftz>(a))"),
    Rule("sqrt.rn{ftz}.f32", "f32 = f32", "flush<ftz>(std::sqrt(flush<ftz>(a)))"),
    Rule("rcp.approx{ftz}.f32", "f32 = f32", "flush<ftz>(reciprocal_fast(flush<ftz>(a)))"),
    Rule("ex2.approx{ftz}.f32", "f32 = f32", "flush<ftz>(exp2_fast(flush<ftz>(a)))"),
    Rule("tanh.approx.f32", "f32 = f32", "tanh_fast(a)"),
    Rule("neg{ftz}.f32", "f32 = f32", "float_of(bits_of(flush<ftz>(a)) ^ 0x80000000u)"),
    Rule("abs{ftz}.f32", "f32 = f32", "float_of(bits_of(flush<ftz>(a)) & 0x7FFFFFFFu)"),
    Rule("min{ftz}.f32", "f32 = f32 f32", "smaller(flush<ftz>(a), flush<ftz>(b))"),
    Rule("max{ftz}.f32", "f32 = f32 f32", "larger(flush<ftz>(a), flush<ftz>(b))"),
)

CONVERSIONS = (
    Rule("cvt.{D:int}.{T:int}", "D = T", "D(a)"),
    Rule("cvt.rn.f32.{T:int}", "f32 = T", "float(a)"),
    Rule("cvt.rzi{ftz}.{D:int}.f32", "D = f32", "to_integer<D>(std::trunc(flush<ftz>(a)))"),
    Rule("cvt.rni{ftz}.{D:int}.f32", "D = f32", "to_integer<D>(std::nearbyint(flush<ftz>(a)))"),
    Rule("cvt.rn.f16.f32", "b16 = f32", "simt::float_to_f16(a)"),
    Rule("cvt.rn.bf16.f32", "b16 = f32", "simt::float_to_bf16(a)"),
    Rule("cvt.f32.f16", "f32 = b16", "simt::f16_to_float(a)"),
    Rule("cvt.f32.bf16", "f32 = b16", "simt::bf16_to_float(a)"),
    Rule("cvt.rna.tf32.f32", "b32 = f32", "simt::float_to_tf32(a)"),
)

MEMORY = (
    Rule("ld.param{N}.{T:memory}", "T*N = param", "load_param<T, N>(a, at)"),
    Rule("ld.shared{N}.{T:memory}", "T*N = shared", "load_shared<T, N>(a, at)"),
    Rule("st.shared{N}.{T:memory}", "= shared T*N", "store_shared(a, b, at)"),
    Rule("ld.global{N}.{T:memory}", "T*N = global", "load_global<T, N>(a, at)"),
    Rule("ld.global.nc{N}.{T:memory}", "T*N = global", "load_constant<T, N>(a, at)"),
    Rule("ld.global.cg{N}.{T:memory}", "T*N = global", "load_from_l2<T, N>(a, at)"),
    Rule("st.global{N}.{T:memory}", "= global T*N", "store_global(a, b, at)"),
    Rule("st.global.cs{N}.{T:memory}", "= global T*N", "store_global(a, b, at)"),
)

CONTROL = (
    Rule("bra", "= label", "goto a"),
    Rule("bra.uni", "= label", "goto a"),
    Rule("ret", "=", "return"),
    Rule("exit", "=", "return"),
    Rule("trap", "=", "trap(at)"),
    Rule("give_up", "=", "give_up(at)"),  # a call: parse.py
)

WARPS = (
    Rule("bar.warp.sync", "= b32", "rnnfast::cuda::sync_warp(a, site(at))"),
    Rule(
        "shfl.sync.{M:up,down,bfly,idx}.b32",
        "b32|pred = b32 u32 u32 b32",
        "shuffle_M(a, b, c, e, at)",
    ),
    Rule("vote.sync.ballot.b32", "b32 = pred b32", "rnnfast::cuda::ballot(b, a, site(at))"),
    Rule("ldmatrix.sync.aligned.m8n8.x4.shared.b16", "b32*4 = shared", "load_matrices(a, at)"),
    Rule(
        "mma.sync.aligned.m16n8k16.row.col.f32.{T:bf16,f16}.{T2:bf16,f16}.f32",
        "f32*4 = b32*4 b32*2 f32*4",
        "multiply_T_T2(a, b, c, at)",
    ),
    Rule(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32",
        "f32*4 = b32*4 b32*2 f32*4",
        "multiply_tf32_tf32(a, b, c, at)",
    ),
)

BARRIERS = (
    Rule("bar.sync", "= u32", "barrier(a, at)"),
    Rule("bar.sync", "= u32 u32", "barrier(a, b, at)"),
    Rule("barrier.sync", "= u32", "barrier(a, at)"),
    Rule("barrier.sync.aligned", "= u32 u32", "barrier(a, b, at)"),
)

COPIES = (
    Rule("cp.async.cg.shared.global", "= shared global u32 u32", "copy_async(a, b, c, e, at)"),
    Rule("cp.async.commit_group", "=", "simt::copy_commit()"),
    Rule("cp.async.wait_group", "= u32", "simt::copy_wait(int(a), site(at))"),
)

ORDER = (
    Rule(f"fence.acq_rel.{SCOPE}", "=", "rnnfast::cuda::fence<S>()"),
    Rule(
        f"ld.acquire.{SCOPE}.global.{{T:u32,b32,u64,b64}}",
        "T = global",
        "load_acquire<S, T>(a, at)",
    ),
    Rule(f"red.release.{SCOPE}.global.add.{{T:u32,u64}}", "= global T", "add_release<S>(a, b, at)"),
    Rule(f"ld.relaxed.{SCOPE}.global.{{T:u32,u64}}", "T = global", "load_relaxed<S, T>(a, at)"),
    Rule(f"red.relaxed.{SCOPE}.global.add.{{T:u32,u64}}", "= global T", "atomic_add<S>(a, b, at)"),
    Rule("atom.global.add.{T:u32,u64}", "T = global T", "atomic_add<Scope::kDevice>(a, b, at)"),
    Rule(f"atom.global.{SCOPE}.add.{{T:u32,u64}}", "T = global T", "atomic_add<S>(a, b, at)"),
    Rule("nanosleep.u32", "= u32", "rnnfast::cuda::pause(site(at))"),
)

MBARRIERS = (
    Rule("mbarrier.init.shared.b64", "= shared u32", "mbarrier_init(a, b, at)"),
    Rule("mbarrier.inval.shared.b64", "= shared", "mbarrier_invalidate(a, at)"),
    Rule("mbarrier.arrive.shared.b64", "b64 = shared", "mbarrier_arrive(a, 0, at)"),
    Rule(
        "mbarrier.arrive.expect_tx.shared::cta.b64", "b64 = shared u32", "mbarrier_arrive(a, b, at)"
    ),
    Rule("mbarrier.test_wait.parity.shared.b64", "pred = shared u32", "mbarrier_passed(a, b, at)"),
    Rule(
        "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64",
        "pred = shared u32",
        "mbarrier_passed_by_cluster(a, b, at)",
    ),
)

# The executor knows the two halves of a cluster's barrier as one: emit.py demands that nothing
# stands between them.
CLUSTER_ARRIVE = "barrier.cluster.arrive.release.aligned"
CLUSTER_WAIT = "barrier.cluster.wait.acquire.aligned"

CLUSTERS = (
    Rule(CLUSTER_ARRIVE, "=", ""),
    Rule(CLUSTER_WAIT, "=", "rnnfast::cuda::sync_cluster(site(at))"),
    Rule("fence.mbarrier_init.release.cluster", "=", "rnnfast::cuda::mbarrier_publish()"),
    Rule("mapa.shared::cluster.u32", "u32 = u32 u32", "map_to_rank(a, b, at)"),
    Rule(
        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32",
        "= shared b32*4 shared",
        "store_async(a, b, c, at)",
    ),
)

# Special registers, u32.
SPECIAL = {
    "tid.x": "simt::here->thread",
    "ntid.x": "simt::here->block_threads",
    "ctaid.x": "simt::here->block_x",
    "ctaid.y": "simt::here->block_y",
    "nctaid.x": "simt::here->grid_x",
    "nctaid.y": "simt::here->grid_y",
    "laneid": "rnnfast::cuda::lane()",
    "clock_hi": "clock_high()",
    "cluster_ctarank": "simt::here->cluster_rank",
    "cluster_nctarank": "simt::here->cluster_blocks",
}

RULES = (
    *MOVES,
    *INTEGERS,
    *PREDICATES,
    *FLOATS,
    *CONVERSIONS,
    *MEMORY,
    *CONTROL,
    *WARPS,
    *BARRIERS,
    *COPIES,
    *ORDER,
    *MBARRIERS,
    *CLUSTERS,
)


@functools.cache
def rules_of(opcode: str) -> tuple[tuple[Rule, dict[str, str]], ...]:
    """The rules whose opcode this is, and what each binds; empty: unknown."""
    matches = ((rule, rule.match(opcode)) for rule in RULES)
    return tuple((rule, bound) for rule, bound in matches if bound is not None)
