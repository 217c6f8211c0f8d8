"""Small kernels written by hand: what they do right, how they fail, and what is refused."""

from __future__ import annotations

from .snippets import INSTRUCTIONS, entry

HEADER = ".version 8.1\n.target sm_90\n.address_size 64\n"

# Dynamic shared memory, for whoever names it.
DYNAMIC = ".extern .shared .align 16 .b8 dynamic[];"


def ptx() -> str:
    """A module of all instructions and kernels."""
    return "\n".join([HEADER, DYNAMIC, *(s.ptx() for s in INSTRUCTIONS), *KERNELS.values()])


# a lane's place among inputs of six words each, and outputs of four
_LANE = """mov.u32 %r0, %tid.x;
  mul.wide.u32 %at, %r0, 48;
  add.s64 %at, %at, %in;
  mul.wide.u32 %to, %r0, 32;
  add.s64 %to, %to, %out;"""


def _product(name: str, opcode: str) -> str:
    """A lane's fragments: four words of A, two of B; C begins as the lane's number."""
    loads = "\n  ".join(f"ld.global.b32 %r{k + 1}, [%at+{8 * k}];" for k in range(6))
    stores = "\n  ".join(f"st.global.f32 [%to+{8 * k}], %f{k};" for k in range(4))
    return entry(
        name,
        f""".reg .b32 %r<7>; .reg .f32 %f<5>; .reg .b64 %at, %to;
  {_LANE}
  {loads}
  cvt.rn.f32.u32 %f4, %r0;
  mma.sync.aligned.{opcode}
    {{%f0, %f1, %f2, %f3}}, {{%r1, %r2, %r3, %r4}}, {{%r5, %r6}}, {{%f4, %f4, %f4, %f4}};
  {stores}""",
    )


PRODUCTS = {
    "bf16": "m16n8k16.row.col.f32.bf16.bf16.f32",
    "f16": "m16n8k16.row.col.f32.f16.f16.f32",
    "tf32": "m16n8k8.row.col.f32.tf32.tf32.f32",
}

# What is not one instruction of registers: name, text.
KERNELS = {
    # lane k's word from lane k ^ 5, and the lanes whose number is odd
    "exchange": entry(
        "exchange",
        """.reg .b32 %r<5>; .reg .pred %p<3>; .reg .b64 %at;
  mov.u32 %r1, %tid.x;
  mul.lo.s32 %r2, %r1, 3;
  shfl.sync.bfly.b32 %r3|%p1, %r2, 5, 31, -1;
  and.b32 %r4, %r1, 1;
  setp.ne.s32 %p2, %r4, 0;
  vote.sync.ballot.b32 %r4, %p2, 0xffffffff;
  mul.wide.u32 %at, %r1, 8;
  add.s64 %at, %at, %out;
  st.global.v2.b32 [%at], {%r3, %r4};""",
    ),
    # lane k's word from the lanes k - 1, k + 1, 2 of its eight, and whether there is one
    "segments": entry(
        "segments",
        """.reg .b32 %r<8>; .reg .pred %p<4>; .reg .b64 %at;
  mov.u32 %r1, %tid.x;
  shfl.sync.up.b32 %r2|%p1, %r1, 1, 0x1800, -1;
  shfl.sync.down.b32 %r3|%p2, %r1, 1, 0x181f, -1;
  shfl.sync.idx.b32 %r4, %r1, 2, 0x181f, -1;
  selp.u32 %r5, 256, 0, %p1;
  or.b32 %r2, %r2, %r5;
  selp.u32 %r5, 256, 0, %p2;
  or.b32 %r3, %r3, %r5;
  mul.wide.u32 %at, %r1, 16;
  add.s64 %at, %at, %out;
  st.global.v2.b32 [%at], {%r2, %r3};
  st.global.u32 [%at+8], %r4;""",
    ),
    # bytes of one sign and another, vectors through static and dynamic shared memory
    "memory": entry(
        "memory",
        """.reg .b16 %h<5>; .reg .b32 %r<5>;
  .shared .align 16 .b8 fixed[32];
  ld.global.u8 %h1, [%in];
  ld.global.s8 %h2, [%in];
  ld.global.s8 %r1, [%in];
  ld.global.nc.v2.u16 {%h3, %h4}, [%in+8];
  st.shared.v4.u16 [fixed+8], {%h1, %h2, %h3, %h4};
  mov.u32 %r2, fixed;
  ld.shared.v2.u32 {%r3, %r4}, [%r2+8];
  st.shared.u32 [dynamic+4092], %r1;
  ld.shared.u32 %r2, [dynamic+4092];
  st.global.v4.u32 [%out], {%r1, %r2, %r3, %r4};
  mov.b32 {%h1, _}, %r4;
  mov.b32 %r1, {%h1, %h2};
  st.global.u32 [%out+16], %r1;""",
    ),
    # names in braces are their own: three s, and two loops of one label
    "scopes": entry(
        "scopes",
        """.reg .b32 s, t;
  mov.u32 s, 0;
  mov.u32 t, 0;
  { .reg .b32 s; .reg .pred p; mov.u32 s, 5;
  again: add.u32 s, s, -1; add.u32 t, t, 10; setp.ne.u32 p, s, 0; @p bra again; }
  { .reg .b32 s; .reg .pred p; mov.u32 s, 3;
  again: add.u32 s, s, -1; add.u32 t, t, 1; setp.eq.u32 p, s, 0; @!p bra.uni again; }
  st.global.v2.u32 [%out], {s, t};""",
    ),
    # 16 bytes arrive asynchronously, of which 12 are read
    "copies": entry(
        "copies",
        """.reg .b32 %r<5>;
  .shared .align 16 .b8 landed[16];
  mov.u32 %r1, landed;
  cp.async.cg.shared.global [%r1], [%in], 16, 12;
  cp.async.commit_group;
  cp.async.wait_group 0;
  ld.shared.v4.u32 {%r1, %r2, %r3, %r4}, [landed];
  st.global.v4.u32 [%out], {%r1, %r2, %r3, %r4};""",
    ),
    # the two blocks of a cluster exchange a word of theirs through an mbarrier
    "cluster": entry(
        "cluster",
        """.reg .b32 %r<9>; .reg .pred %p; .reg .b64 %at;
  .shared .align 16 .b8 received[16];
  .shared .align 8 .b8 bar[8];
  mov.u32 %r1, bar;
  mbarrier.init.shared.b64 [%r1], 1;
  fence.mbarrier_init.release.cluster;
  barrier.cluster.arrive.release.aligned;
  barrier.cluster.wait.acquire.aligned;
  mov.u32 %r2, %cluster_ctarank;
  xor.b32 %r3, %r2, 1;
  mov.u32 %r4, received;
  mapa.shared::cluster.u32 %r5, %r4, %r3;
  mapa.shared::cluster.u32 %r6, %r1, %r3;
  add.u32 %r7, %r2, 7;
  st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32
    [%r5], {%r7, %r2, %r3, %r7}, [%r6];
  mbarrier.arrive.expect_tx.shared::cta.b64 %at, [%r1], 16;
again:
  mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 %p, [%r1], 0;
  @!%p bra again;
  ld.shared.u32 %r8, [received];
  mul.wide.u32 %at, %r2, 8;
  add.s64 %at, %at, %out;
  st.global.u32 [%at], %r8;
  barrier.cluster.arrive.release.aligned;
  barrier.cluster.wait.acquire.aligned;""",
    ),
    # 64-bit words apart and together, and what goes past a cache
    "words": entry(
        "words",
        """.reg .b32 %r<3>; .reg .b64 %w<3>;
  ld.global.cg.v2.b64 {%w1, %w2}, [%in];
  mov.b64 {%r1, %r2}, %w1;
  mov.b64 %w1, {%r2, %r1};
  st.global.cs.v2.b64 [%out], {%w1, %w2};
  exit;""",
    ),
    # lane k brings row k of four matrices, 4·k … 4·k + 3
    "matrices": entry(
        "matrices",
        """.reg .b32 %r<9>; .reg .b64 %at;
  .shared .align 16 .b8 rows[512];
  mov.u32 %r0, %tid.x;
  shl.b32 %r1, %r0, 2;
  add.u32 %r2, %r1, 1;
  add.u32 %r3, %r1, 2;
  add.u32 %r4, %r1, 3;
  mov.u32 %r5, rows;
  mad.lo.u32 %r5, %r0, 16, %r5;
  st.shared.v4.u32 [%r5], {%r1, %r2, %r3, %r4};
  bar.warp.sync -1;
  ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r1, %r2, %r3, %r4}, [%r5];
  mul.wide.u32 %at, %r0, 16;
  add.s64 %at, %at, %out;
  st.global.v4.u32 [%at], {%r1, %r2, %r3, %r4};""",
    ),
    # two warps read what the other has written, after the block's barrier, then after one of 64
    "warps": entry(
        "warps",
        """.reg .b32 %r<5>; .reg .b64 %at;
  mov.u32 %r0, %tid.x;
  mov.u32 %r1, dynamic;
  mad.lo.u32 %r2, %r0, 4, %r1;
  st.shared.u32 [%r2], %r0;
  barrier.sync 0;
  xor.b32 %r3, %r0, 32;
  mad.lo.u32 %r3, %r3, 4, %r1;
  ld.shared.u32 %r4, [%r3];
  barrier.sync.aligned 1, 64;
  add.u32 %r4, %r4, 1;
  st.shared.u32 [%r2], %r4;
  bar.sync 1, 64;
  ld.shared.u32 %r4, [%r3];
  mul.wide.u32 %at, %r0, 8;
  add.s64 %at, %at, %out;
  st.global.u32 [%at], %r4;""",
    ),
    # every thread adds 2 to three counters, and looks at one
    "atomics": entry(
        "atomics",
        """.reg .b32 %r<3>; .reg .b64 %w;
  atom.global.add.u32 %r1, [%out], 2;
  atom.global.gpu.add.u64 %w, [%out+8], 2;
  red.relaxed.gpu.global.add.u32 [%out+16], 2;
  ld.relaxed.gpu.global.u32 %r1, [%out+16];
  add.u32 %r1, %r1, 2;""",
    ),
    # lane 0 counts to 3 by an mbarrier of a phase each
    "phases": entry(
        "phases",
        """.reg .b32 %r<4>; .reg .pred %p; .reg .b64 %s;
  .shared .align 8 .b8 bar[8];
  mov.u32 %r1, bar;
  mbarrier.init.shared.b64 [%r1], 2;
  mov.u32 %r2, 0;
  next:
  mbarrier.arrive.shared.b64 %s, [%r1];
  mbarrier.arrive.shared.b64 %s, [%r1];
  and.b32 %r3, %r2, 1;
  again:
  mbarrier.test_wait.parity.shared.b64 %p, [%r1], %r3;
  @!%p bra again;
  add.u32 %r2, %r2, 1;
  setp.lt.u32 %p, %r2, 3;
  @%p bra next;
  mbarrier.inval.shared.b64 [%r1];
  st.global.u32 [%out], %r2;""",
    ),
    **{f"product_{name}": _product(f"product_{name}", opcode) for name, opcode in PRODUCTS.items()},
}


def counting(scope: str) -> str:
    """Every block adds 1 to a counter, the last waits for the others."""
    return f"""red.release.{scope}.global.add.u32 [%out], 1;
  .reg .b32 %r<4>; .reg .pred %p;
  mov.u32 %r1, %nctaid.x;
again:
  nanosleep.u32 20;
  ld.acquire.{scope}.global.u32 %r2, [%out];
  setp.lt.u32 %p, %r2, %r1;
  @%p bra again;"""


# name: body, and what the run ends with
FAULTY = {
    "past_a_static_array": (
        ".shared .align 16 .b8 small[32]; .reg .b32 %r; mov.u32 %r, small;"
        " ld.shared.u32 %r, [%r+32];",
        r"4 bytes of shared memory at offset 32 of small, which has 32 bytes, at snippets\.ptx:\d+",
    ),
    "before_all_arrays": (
        ".reg .b32 %r; mov.u32 %r, 0; st.shared.u32 [%r], %r;",
        r"4 bytes of shared memory at address 0, before every array",
    ),
    "past_the_input": (
        ".reg .b64 %r; ld.global.u64 %r, [%in+8];",
        r"8 bytes of global memory outside of every buffer: 0 bytes past the end of in",
    ),
    "across_the_end": (
        ".reg .b64 %r<3>; ld.global.v2.u64 {%r1, %r2}, [%in];",
        r"16 bytes of global memory outside of every buffer",
    ),
    "null": (
        ".reg .b64 %r; mov.u64 %r, 0; ld.global.nc.u64 %r, [%r];",
        r"outside of every buffer: \d+ bytes before the begin of",
    ),
    "misaligned": (
        ".reg .b32 %r; ld.global.u32 %r, [%in+2];",
        r"misaligned: 4 bytes of global memory",
    ),
    "input_written": ("st.global.u64 [%in], 0;", r"writes to in, which is an input"),
    "past_the_parameters": (
        ".reg .b64 %r; ld.param.u64 %r, [past_the_parameters_out+8];",
        r"8 bytes of parameters at offset 16 of 16",
    ),
    "by_zero": (
        ".reg .b32 %r; mov.u32 %r, 0; div.u32 %r, 1, %r;",
        r"division by zero",
    ),
    "trapped": ("trap;", r"trap, at snippets\.ptx:\d+"),
    "given_up": (
        ".reg .b32 %r<3>; .reg .pred %p; mov.u32 %r1, %clock_hi; again: nanosleep.u32 20;"
        " mov.u32 %r2, %clock_hi; sub.s32 %r2, %r2, %r1; setp.lt.u32 %p, %r2, 9;"
        " @%p bra again; call.uni give_up;",
        r"it gives the launch up, at snippets\.ptx:\d+",
    ),
    "not_waited_for": (
        ".shared .align 16 .b8 landing[16]; .reg .b32 %r; mov.u32 %r, landing;"
        " cp.async.cg.shared.global [%r], [%in], 16, 8;",
        r"exits without having waited for an asynchronous copy",
    ),
    "some_lanes": (
        ".reg .pred %p; .reg .b32 %r; mov.u32 %r, %tid.x; setp.lt.u32 %p, %r, 8;"
        " @%p bar.warp.sync 0xff; @!%p bar.warp.sync -1;",
        r"sync_warp",
    ),
    "not_asked_again": (
        ".shared .align 8 .b8 bar[8]; .reg .b32 %r; .reg .pred %p, %q; .reg .b64 %s;"
        " mov.u32 %r, %tid.x; setp.eq.u32 %q, %r, 0; mov.u32 %r, bar;"
        " @%q mbarrier.init.shared.b64 [%r], 32; bar.sync 0; mbarrier.arrive.shared.b64 %s, [%r];"
        " mbarrier.test_wait.parity.shared.b64 %p, [%r], 0; @!%p trap;",
        r"trap, at snippets\.ptx:\d+",
    ),
    "rank_of_no_block": (
        ".reg .b32 %r; mov.u32 %r, 1024; mapa.shared::cluster.u32 %r, %r, 2;",
        r"mapa to rank 2 of a cluster of 2",
    ),
    "peer_by_a_plain_store": (
        ".reg .b32 %r; mov.u32 %r, dynamic; mapa.shared::cluster.u32 %r, %r, 1;"
        " st.shared.u32 [%r], %r;",
        r"4 bytes of shared memory at offset \d{8} of dynamic, which has 4096 bytes",
    ),
    "two_ranks": (
        ".reg .b32 %r<3>; mov.u32 %r1, dynamic; mapa.shared::cluster.u32 %r2, %r1, 1;"
        " mapa.shared::cluster.u32 %r1, %r1, 0; st.async.weak.shared::cluster"
        ".mbarrier::complete_tx::bytes.v4.b32 [%r2], {%r1, %r1, %r1, %r1}, [%r1];",
        r"st\.async to rank 1 with an mbarrier of rank 0",
    ),
    "narrow_counter": (counting("cta"), r"two blocks meet at an atomic of scope block"),
}

KERNELS["counted"] = entry("counted", counting("gpu") + " fence.acq_rel.gpu;")
for _name, (_body, _) in FAULTY.items():
    KERNELS[_name] = entry(_name, _body)
KERNELS["given_up"] = f".func give_up()\n{{\ntrap;\n}}\n{KERNELS['given_up']}"

# text of a kernel's body, and what the translator says of it
REFUSED = {
    "add.sat.s32 %r1, %r1, %r1;": r"line 9: unknown instruction 'add\.sat\.s32'",
    "add.s32 %r1, %r1;": r"operands of 'add\.s32': 2 operands, of which it has 3",
    "add.s32 %f, %r1, %r1;": r"operands of 'add\.s32': f32 expected, not s32",
    "add.f32 %f, %r1, %w;": r"operands of 'add\.f32': f32 expected, not b64",
    "add.s64 %w, %r1, %w;": r"operands of 'add\.s64': s64 expected, not b32",
    "mov.b32 {%r1, %r2}, %r1;": r"operands of 'mov\.b32': .*b32 expected, not b16",
    "shl.b32 %r1, %r1, %w;": r"operands of 'shl\.b32': u32 expected, not b64",
    "ld.shared.v2.u32 {%r1, %r2, %r1}, [%r1];": r"a vector of 2 expected, not of 3",
    "ld.global.u32 %r1, [%r1];": r"an address in global memory has another size than b32",
    "ld.shared.u32 %r1, [nowhere];": r"'nowhere' is not in shared memory",
    "mov.u32 %r1, %r3;": r"there is no register '%r3'",
    "mov.u32 %r1, %clock;": r"there is no register '%clock'",
    "mov.u32 %r1, %laneid, 1;": r"operands of 'mov\.u32'",
    "bra nowhere;": r"operands of 'bra': there is no label 'nowhere'",
    ".local .align 4 .b8 depot[16];": r"line 9: the kernel uses local memory",
    "call.uni (%r1), f, (%r1);": r"line 9: a call of another function than give_up",
    "barrier.cluster.arrive.release.aligned; ret; barrier.cluster.wait.acquire.aligned;": (
        r"ret follows on barrier\.cluster\.arrive"
    ),
    "again: barrier.cluster.wait.acquire.aligned;": (
        r"a label stands before barrier\.cluster\.wait"
    ),
    "setp.lt.s32 %r1, %r1, %r1;": r"operands of 'setp\.lt\.s32'",
    "st.global.u32 [%w], 0f3F800000, 1;": r"operands of 'st\.global\.u32'",
}


def refused(body: str) -> str:
    """A module with this in line 9."""
    text = f"{HEADER}\n.visible .entry k(.param .u64 p)\n{{\n.reg .b32 %r<3>; .reg .f32 %f;\n"
    return f"{text}.reg .b64 %w;\n{body}\nret;\n}}\n"
