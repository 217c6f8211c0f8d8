"""Faults to plant in the kernels of teams of blocks, as ``mutants.py`` has them for one block."""

from __future__ import annotations

PROGRAM = "mutant_team"  # of tests/simt/cpp
PARTS = 9  # of the program: cell by cell in grids (even numbers) and in clusters; the last, 16 bit

SCAN = ("team/forward.h", "team/backward.h")
EXCHANGE = ("team/grid.h", "team/cluster.h")
LOADS = ("device/load_slabs.h",)
# kind, pattern, what stands in its place, files
RULES = (
    ("barrier", r"\bsync_block\(\);", ";", (*SCAN, *EXCHANGE, "team/product.h", "team/block.h")),
    ("barrier", r"\bsync_cluster\(\);", ";", EXCHANGE),
    ("barrier", r"mbarrier_publish\(\);", ";", EXCHANGE),
    ("barrier", r"mbarrier_init\(arrived_ \+ 1, 1\);", ";", EXCHANGE),
    ("wait", r"team_\.wait\(n, e\);", ";", SCAN),
    ("wait", r"mbarrier_wait_cluster\(", "mbarrier_wait(", EXCHANGE),
    ("signal", r"(?<=\) )add_release<Scope::kDevice>\(counter\(tile\), 1u\);", ";", EXCHANGE),
    ("signal", r"(?<!\.)\bsignal\((?=n, (?:exchange|s))", "(void)(", SCAN),
    ("signal", r" - words \* kColumns \* 16", "", EXCHANGE),
    ("scope", r"add_release<Scope::kDevice>", "add_release<Scope::kCluster>", EXCHANGE),
    ("scope", r"load_acquire<Scope::kDevice>", "load_acquire<Scope::kBlock>", EXCHANGE),
    ("two sets", r"\(e & 1\)", "0", EXCHANGE),
    ("two sets", r"e >> 1 & 1", "0", EXCHANGE),
    ("rank", r"peer < rank\(\) \? peer : peer \+ 1", "peer", EXCHANGE),
    ("row end", r"first \+ bytes < args_\.row_bytes \? first \+ bytes : ", "", EXCHANGE),
    ("unit mask", r"if \(!pairs_\.is_unit\(q\)\) return;", "", SCAN),
    ("unit mask", r"pairs_\.is_unit\(q\) && (?=w)", "", SCAN),
    ("unit mask", r"has\(q\) && (?=first)", "", ("team/block.h",)),
    ("pair mask", r"if \(!pairs_\.has\(q\)\) continue;", "", SCAN),
    ("call mask", r"if \(pairs_\.has\(q\)\) (?!read|gates_)", "", SCAN),
    ("owner mask", r"if \(!owns\(w, q\)\) (?:return|continue);", "", SCAN),
    ("clamp", r"u < H \? u : H - 1", "u", ("team/block.h",)),
    ("end mask", r"(?<=[!\s(])(?:t\.walk\[q\]|walk\(n, q\)|w)\.alive\(s\)", "true", SCAN),
    ("reset mask", r"(?<!\.)\breset \? 0", "false ? 0", SCAN),
    ("reset mask", r"!in\.reset\b", "true", SCAN),
    ("reset mask", r"in\.reset \?", "false ?", SCAN),
    ("weight mask", r"\(gate < kG\) & \(unit < H\) & \(column < H\);", "true;", SCAN),
    ("weight mask", r"\(unit < H\) & \(to < H\);", "true;", SCAN),
    ("range", r"= \(t < tiles\) & \(k < slabs\);", "= true;", LOADS),
    ("spill", r"if \(k \+ n < slabs\) (?=spill)", "", LOADS),
    ("direction", r"reverse && w\.alive\(s\)", "false", ("device/sequences.h",)),
    ("range", r"if \(hi > tiles_\) hi = tiles_;", "", ("team/product.h",)),
    ("range", r"if \(t < tiles && k < slabs\) (?=fill)", "", LOADS),
    ("range", r"from > kHeld \? from : kHeld", "from", ("team/product.h",)),
    ("range", r"s \+ 1 == tiles_\.longest\[n\]", "false", SCAN),
    ("turns", r"if \(s < longest\[n\]\) return n;", "return n;", ("team/block.h",)),
    ("launch", r"Team::kKind == TeamKind::kGrid;", "false;", ("team/dispatch.h",)),
)

# (kind, file, function) of what changes no result, and why; "*": in every function.
EQUIVALENT: dict[tuple[str, str, str], str] = {
    ("pair mask", "team/forward.h", "prefetch"): "what a thread without a pair reads lies within "
    "the tensors, and nobody uses it",
    ("pair mask", "team/forward.h", "turn"): "what a thread without a pair computes is stored "
    "nowhere",
    ("pair mask", "team/forward.h", "candidate_turn"): "as in turn",
    (
        "range",
        "team/product.h",
        "multiply",
    ): "the tiles that a block does not have are zeros, whose "
    "sums have room and are read by nobody: only time is lost",
    (
        "range",
        *LOADS,
        "load_by_chunks",
    ): "what is loaded of tiles and slabs that a warp does not have nobody multiplies: only time "
    "is lost",
    (
        "range",
        *LOADS,
        "load_by_values",
    ): "of tiles and slabs that a warp does not have `where` finds nothing, which is 0",
    (
        "range",
        "team/backward.h",
        "complete",
    ): "before the first exchange the rows are zeros, no wait "
    "is due, and no sequence is alive to be handed anything: only time is lost",
    ("call mask", "team/forward.h", "hand_over"): "store_step asks whether the pair is its own",
}


def parts(file: str, function: str) -> list[int]:
    """The program's, those first in which a fault there is likely to show."""
    in_clusters = file == "team/cluster.h"
    two_phases = function in ("reset_turn", "candidate_turn")

    def unlikely(part: int) -> tuple[bool, bool]:
        return two_phases and part not in (6, 7), part % 2 != in_clusters

    return sorted(range(PARTS), key=unlikely)
