"""The PTX that nvcc makes of the shipped kernels, run on the executor (docs/ptx.md)."""

from __future__ import annotations

import re
import subprocess

import pytest
import torch

from rnnfast._build.nvcc import find_nvcc, toolkit_root

from .ptx import build
from .ptx.faults import FAULTS, Fault
from .ptx.handwritten import FAULTY, KERNELS, PRODUCTS, REFUSED, ptx, refused
from .ptx.ir import PtxError
from .ptx.parse import parse
from .ptx.rules import RULES
from .ptx.snippets import INSTRUCTIONS, Snippet, bits
from .ptx.translate import translate

SAMPLE = [("lstm", "bf16"), ("gru", "fp32"), ("rnn_tanh", "fp16")]
TEAMS = [
    pytest.param("gru_reset_before", "tf32", "cluster"),
    pytest.param("lstm", "bf16", "grid", marks=pytest.mark.slow),
]
EVERY = [(cell, math) for cell in build.CELLS for math in build.MATHS]
# option: by driver.cpp, of the C++ tests' kOptions: 1 reverse, 2 lengths, 3 resets, 5 all three
CASES = (
    "T=3,B=3,H=5,option=0",
    "T=4,B=10,H=37,option=5,seed=2",
    "T=5,B=3,H=37,option=1,seed=3",
    "T=3,B=10,H=5,option=3,clip=0.05",
    "T=4,B=3,H=37,option=4,both=1",
    "T=4,B=10,H=37,option=5,inference=1",
    "T=3,B=3,H=5,option=2,inference=1,both=1",
)
# H at which some of the weights lie in shared memory
SPILLS = {("gru", "fp32"): 97}
TEAM_CASES = (
    "T=3,B=3,H=5,option=0,blocks=1",
    "T=4,B=10,H=37,option=5,blocks=3,teams=2,seed=2",
    "T=4,B=3,H=21,option=1,blocks=2,clip=0.05",
    "T=4,B=10,H=21,option=4,blocks=2,teams=2,inference=1,both=1",
    "T=3,B=10,H=37,option=2,blocks=3,teams=2,both=1,seed=3",
)
SEVERAL_TILES = "T=4,B=20,H=37,option=3,blocks=3,teams=2,tiles=2,team=grid"
# two tiles of rows a block; of the LSTM some of the weights lie in shared memory
LARGE = {"tf32": "H=272,blocks=9", "bf16": "H=520,blocks=17", "fp16": "H=520,blocks=17"}


@pytest.fixture(scope="module", autouse=True)
def _tools(request: pytest.FixtureRequest) -> None:
    missing = build.why_not()
    if missing is not None:
        pytest.skip(missing)


WAITS = {"grid": "the exchange of a grid team", "cluster": "the exchange of a cluster"}


def check_words(kernels: build.Kernels, team: str) -> None:
    """Of a launch that is given up: the driver prints them."""
    text = (build.FOLDER / f"{kernels.name}.ptx").read_text()
    told = re.findall(r"\.b8 \$str\S* = \{([^}]*)\}", text)
    words = {bytes(map(int, codes.split(","))).rstrip(b"\0").decode() for codes in told}
    assert f"rnnfast: {WAITS[team]} timed out" in words


def check(kernels: build.Kernels, cases: list[str]) -> None:
    given = [f"cell={kernels.cell},math={kernels.math},{case}" for case in cases]
    status, output = build.run(kernels.name, given)
    assert status == 0, output


@pytest.mark.parametrize(("cell", "math"), SAMPLE)
def test_what_nvcc_emitted_is_right(cell: str, math: str) -> None:
    cases = list(CASES)
    if (cell, math) in SPILLS:
        cases.append(f"T=3,B=3,H={SPILLS[cell, math]},option=5,spills=1")
    check(build.Kernels(cell, math), cases)


@pytest.mark.parametrize(("cell", "math", "team"), TEAMS)
def test_what_nvcc_emitted_for_teams_is_right(cell: str, math: str, team: str) -> None:
    cases = [f"{case},team={team}" for case in TEAM_CASES]
    if team == "grid":
        cases.append(SEVERAL_TILES)
    check(build.Kernels(cell, math, team), cases)
    check_words(build.Kernels(cell, math, team), team)


@pytest.mark.slow
@pytest.mark.parametrize(("cell", "math"), [pair for pair in EVERY if pair[1] in LARGE])
def test_every_kernel_of_teams_is_right(cell: str, math: str) -> None:
    cases = [f"{case},team={team}" for case in TEAM_CASES for team in ("grid", "cluster")]
    spills = ",spills=1" if cell == "lstm" else ""
    cases += [SEVERAL_TILES, f"T=2,B=3,option=5,team=grid,{LARGE[math]}{spills}"]
    check(build.Kernels(cell, math, "teams", shapes="every"), cases)


@pytest.mark.slow
@pytest.mark.parametrize(("cell", "math"), EVERY)
def test_every_kernel_is_right(cell: str, math: str) -> None:
    """All shapes, so that some of the weights lie in shared memory and some warps have none."""
    check(build.Kernels(cell, math, shapes="every"), [*CASES, "every_shape=1"])


@pytest.mark.slow
@pytest.mark.parametrize(("cell", "math"), SAMPLE)
def test_what_nvcc_emits_for_ampere_is_right(cell: str, math: str) -> None:
    check(build.Kernels(cell, math, arch=80), list(CASES))


@pytest.mark.slow
@pytest.mark.parametrize(("cell", "math", "team"), TEAMS)
def test_scopes_and_fences_are_enough(cell: str, math: str, team: str) -> None:
    """By ThreadSanitizer's judgement; the executor tells it what the emitted ones order."""
    alone = [case for case in TEAM_CASES if "both" not in case]  # two directions write the same
    cases = [f"cell={cell},math={math},team={team},{case}" for case in alone]
    status, output = build.run(build.Kernels(cell, math, team).name + build.THREAD, cases)
    assert status == 0, output


def test_relu_runs_in_the_kernel_of_tanh() -> None:
    case = "cell=rnn_relu,math=fp16,T=4,B=10,H=37,option=5"
    status, output = build.run(build.Kernels("rnn_tanh", "fp16").name, [case])
    assert status == 0, output


def test_a_kernel_that_was_not_translated_is_not_run() -> None:
    case = "cell=lstm,math=fp16"
    status, output = build.run(build.Kernels("rnn_tanh", "fp16").name, [case])
    assert status == 1
    assert "its PTX is not part of this program" in output


@pytest.mark.parametrize(
    "fault",
    [pytest.param(f, id=f.name, marks=[pytest.mark.slow] if f.slow else []) for f in FAULTS],
)
def test_a_fault_in_the_ptx_is_seen(fault: Fault) -> None:
    status, output = build.run(fault.program, fault.cases())
    assert status != 0, output
    assert re.search(fault.message, output), output


# --- the translator itself -----------------------------------------------------------------------


BYTES = "8183828180ff01fe 700050009"
# kernel: threads, blocks, how many words it gives, and those it is given
ASKED = {
    "exchange": "32 1 32 0",
    "segments": "32 1 64 0",
    "memory": f"1 1 3 {BYTES}",
    "words": f"1 1 2 {BYTES}",
    "scopes": f"1 1 1 {BYTES}",
    "copies": f"1 1 2 {BYTES}",
    "matrices": "32 1 64 0",
    "warps": "64 1 64 0",
    "atomics": "32 4 3 0",
    "counted": "32 4 1 0",
    "cluster": "1 2 2 0",
    "phases": "1 1 1 0",
    **dict.fromkeys(FAULTY, "32 2 1 5"),
}


def small(row: int, column: int) -> int:
    """An element of a matrix: whole, and exact in every type."""
    return (3 * row + 5 * column + row * column) % 7 - 3


def product_words(name: str) -> list[int]:
    """The fragments of A, 16 x K, and B, K x 8, as the PTX ISA's figures give them to lanes."""
    depth = 8 if name == "tf32" else 16
    words = []
    for lane in range(32):
        group, place = lane // 4, lane % 4
        for row, half in ((group, 0), (group + 8, 0), (group, 1), (group + 8, 1)):
            words.append(operand(name, [small(row, k) for k in pair(depth, place, half)]))
        for half in (0, 1):
            words.append(operand(name, [small(k, group + 1) for k in pair(depth, place, half)]))
    return words


def pair(depth: int, place: int, half: int) -> list[int]:
    """Which of the K columns of A, or rows of B, one register has."""
    if depth == 8:
        return [place + 4 * half]
    return [2 * place + 8 * half, 2 * place + 1 + 8 * half]


def operand(name: str, values: list[int]) -> int:
    if name == "tf32":
        return bits(values[0])
    kind = torch.bfloat16 if name == "bf16" else torch.float16
    stored = torch.tensor(values, dtype=kind).view(torch.int16).tolist()
    return sum((half & 0xFFFF) << 16 * k for k, half in enumerate(stored))


@pytest.fixture(scope="module")
def answers() -> dict[str, str]:
    """What the hand-written kernels answer, by the question or the kernel's name."""
    asked = {question(s, words): "" for s in INSTRUCTIONS for words, _ in s.runs}
    asked |= {f"{name} {words}": name for name, words in ASKED.items()}
    for name in PRODUCTS:
        words = " ".join(f"{word:x}" for word in product_words(name))
        asked[f"product_{name} 32 1 128 {words}"] = f"product_{name}"
    done = subprocess.run(
        [build.program("snippets")],
        input="".join(f"{line}\n" for line in asked),
        capture_output=True,
        text=True,
        check=True,
        timeout=build.SECONDS,
    )
    answered = zip(asked.items(), done.stdout.splitlines(), strict=True)
    return {name or asking: answer for (asking, name), answer in answered}


def question(snippet: Snippet, words: tuple[int, ...]) -> str:
    return " ".join([snippet.kernel, "1 1 1", *(f"{word:x}" for word in words)])


def words_of(answer: str) -> list[int]:
    assert answer.startswith("= "), answer
    return [int(word, 16) for word in answer[2:].split()]


@pytest.mark.parametrize("snippet", INSTRUCTIONS, ids=lambda s: s.instruction)
def test_an_instruction_at_its_edges(snippet: Snippet, answers: dict[str, str]) -> None:
    for words, result in snippet.runs:
        assert words_of(answers[question(snippet, words)]) == [result], words


def test_lanes_exchange(answers: dict[str, str]) -> None:
    got = words_of(answers["exchange"])
    assert got == [3 * (lane ^ 5) | 0xAAAAAAAA << 32 for lane in range(32)]


def test_shuffles_stay_in_their_segment(answers: dict[str, str]) -> None:
    got = words_of(answers["segments"])
    for lane in range(32):
        up = 256 | lane - 1 if lane % 8 else lane
        down = 256 | lane + 1 if lane % 8 < 7 else lane
        assert got[2 * lane] == up | down << 32
        assert got[2 * lane + 1] == lane // 8 * 8 + 2


def test_vectors_bytes_and_both_kinds_of_shared_memory(answers: dict[str, str]) -> None:
    assert words_of(answers["memory"]) == [0xFFFFFFFE_FFFFFFFE, 0x00050009_FFFE00FE, 0xFFFE0009]
    assert words_of(answers["words"]) == [0x80FF01FE_81838281, 0x7_00050009]


def test_names_of_inner_braces_are_their_own(answers: dict[str, str]) -> None:
    assert words_of(answers["scopes"]) == [53 << 32]


def test_what_a_copy_does_not_read_is_zero(answers: dict[str, str]) -> None:
    assert words_of(answers["copies"]) == [0x81838281_80FF01FE, 0x50009]


def test_lanes_get_their_part_of_a_matrix(answers: dict[str, str]) -> None:
    got = words_of(answers["matrices"])
    for lane in range(32):
        rows = [8 * matrix + lane // 4 for matrix in range(4)]
        low, high = ([4 * row + lane % 4 for row in half] for half in (rows[:2], rows[2:]))
        assert got[2 * lane : 2 * lane + 2] == [low[0] | low[1] << 32, high[0] | high[1] << 32]


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_of_fragments(name: str, answers: dict[str, str]) -> None:
    got, depth = words_of(answers[f"product_{name}"]), 8 if name == "tf32" else 16
    for lane in range(32):
        group, place = lane // 4, lane % 4
        for k, row in enumerate((group, group, group + 8, group + 8)):
            column = 2 * place + k % 2
            exact = sum(small(row, i) * small(i, column + 1) for i in range(depth))
            assert got[4 * lane + k] == bits(exact + lane)


def test_warps_meet_at_barriers(answers: dict[str, str]) -> None:
    assert words_of(answers["warps"]) == [thread + 1 for thread in range(64)]


def test_blocks_count_one_another(answers: dict[str, str]) -> None:
    assert words_of(answers["counted"]) == [4 * 32]
    assert words_of(answers["atomics"]) == [2 * 4 * 32] * 3


def test_blocks_of_a_cluster_send_to_one_another(answers: dict[str, str]) -> None:
    assert words_of(answers["cluster"]) == [8, 7]


def test_an_mbarrier_has_phases(answers: dict[str, str]) -> None:
    assert words_of(answers["phases"]) == [3]


@pytest.mark.parametrize("name", FAULTY)
def test_a_faulty_kernel_is_stopped(name: str, answers: dict[str, str]) -> None:
    assert re.search(FAULTY[name][1], answers[name]), answers[name]


@pytest.mark.parametrize("body", REFUSED)
def test_what_is_not_known_is_refused(body: str) -> None:
    with pytest.raises(PtxError, match=REFUSED[body]):
        translate(refused(body), "refused.ptx")


def test_the_handwritten_kernels_are_ptx() -> None:
    """By the assembler's judgement: they test this translator, and not a language of its own."""
    nvcc = find_nvcc(torch.version.cuda).nvcc
    assert nvcc is not None
    source = build.FOLDER / "snippets.ptx"
    source.parent.mkdir(parents=True, exist_ok=True)
    source.write_text(ptx())
    command = [toolkit_root(nvcc) / "bin" / "ptxas", "-arch=sm_90", source, "-o", "/dev/null"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_rule_is_tried() -> None:
    used = {i.opcode for k in parse(ptx(), "snippets.ptx").kernels for i in k.instructions()}
    unused = [r.opcode for r in RULES if all(r.match(opcode) is None for opcode in used)]
    assert not unused


def test_every_kernel_of_this_file_is_run() -> None:
    assert set(KERNELS) == {*ASKED, *(f"product_{name}" for name in PRODUCTS)}
