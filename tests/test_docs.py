"""The documents: their examples run, what they print is so, their links lead somewhere."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

import rnnfast
from rnnfast import library

ROOT = Path(__file__).resolve().parents[1]
RUN = ["README.md", "docs/index.md", "docs/five-minutes.md", "docs/faq.md"]
RUN += [f"docs/{n}.md" for n in ("migration", "lengths-and-resets", "clipping", "tuning", "cells")]
RUN += ["docs/recurrent-dropout.md", "docs/your-own-cell.md", "docs/recurrent-highway.md"]
RUN += ["docs/streaming.md"]
RUN += ["docs/deployment.md"]
RUN += ["docs/transforms.md"]
FOLDERS = ("docs", "csrc", "rnnfast", "tests", "benchmarks")
DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.md"))]
)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    """Fenced code. ``line``: of its first line of code. ``shown``: the output printed after it."""

    line: int
    code: str
    shown: str | None


def blocks(text: str) -> list[Block]:
    """The python blocks of a page; a text block after one, with only prose between, is its output.

    A python block that prints is followed by such a block; one that doesn't is not.
    """
    found: list[Block] = []
    for fence in FENCE.finditer(text):
        language, code = fence.groups()
        if language == "python":
            found.append(Block(text.count("\n", 0, fence.start()) + 2, code, None))
        elif language == "text":
            last = found.pop()
            found.append(Block(last.line, last.code, code))
    return found


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("page", RUN)
def test_examples_run_and_print_what_the_page_says(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The blocks of a page run in order, in one namespace."""
    compiled = library.folder()
    monkeypatch.setenv("RNNFAST_CACHE", str(tmp_path))  # as of a user who tuned nothing yet
    compiled.mkdir(parents=True, exist_ok=True)
    (tmp_path / compiled.name).symlink_to(compiled)  # what was compiled before is welcome
    monkeypatch.delenv("RNNFAST_TUNE", raising=False)
    torch._dynamo.reset()
    found = blocks((ROOT / page).read_text(encoding="utf-8"))
    assert found, f"{page} has no examples"
    namespace: dict[str, object] = {"__name__": "__main__"}
    for block in found:
        code = compile("\n" * (block.line - 1) + block.code, str(ROOT / page), "exec")
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(code, namespace)
        assert printed.getvalue() == (block.shown or ""), f"{page}, line {block.line}"


def test_blocks_are_found_with_their_output() -> None:
    page = (
        "a\n```python\nx = 1\n```\n```\nls\n```\n```python\nprint(x)\n```\nso:\n```text\n1\n```\n"
    )
    assert blocks(page) == [Block(3, "x = 1\n", None), Block(9, "print(x)\n", "1\n")]


# --- the facts of docs/migration.md --------------------------------------------------------------

CLASSES = {"nn": nn, "rnnfast": rnnfast, "rnnfast.compat": rnnfast.compat}


def isinstance_rows() -> Iterator[tuple[str, dict[str, bool]]]:
    """(layer, {column: yes or no}) of the page's table."""
    text = (ROOT / "docs/migration.md").read_text(encoding="utf-8")
    rows = [[cell.strip(" `") for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    header = next(row for row in rows if row and row[0] == "layer")
    for row in rows[rows.index(header) + 2 :]:
        if not row:
            return
        yield row[0], {name: cell == "yes" for name, cell in zip(header, row, strict=True)}


def find(name: str, kind: str) -> type:
    """The class that the page calls ``name``, for RNN and GRU likewise."""
    home, _, cls = name.rpartition(".")
    found: type = getattr(CLASSES[home], cls if cls == "RNNBase" else kind)
    return found


def compiles_fullgraph(layer: nn.Module) -> bool:
    torch._dynamo.reset()
    try:
        torch.compile(layer, fullgraph=True, backend="eager")(torch.zeros(2, 1, 3))
    except torch._dynamo.exc.Unsupported:
        return False
    return True


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_the_table_of_isinstance(kind: str) -> None:
    rows = dict(isinstance_rows())
    assert list(rows) == ["nn.LSTM", "rnnfast.LSTM", "rnnfast.compat.LSTM"]
    for name, said in rows.items():
        layer = find(name, kind)(3, 4)
        columns = ("nn.RNNBase", "nn.LSTM", "rnnfast.LSTM")
        true = {column: isinstance(layer, find(column, kind)) for column in columns}
        true["fullgraph"] = compiles_fullgraph(layer)
        assert {column: said[column] for column in true} == true, name


def test_what_replace_reports() -> None:
    class Mine(nn.GRU):
        pass

    model = nn.Sequential(nn.LSTM(3, 4), nn.Sequential(nn.RNN(4, 4)), Mine(4, 4))
    report = rnnfast.replace(model)
    assert report.swapped == [
        ("0", "torch.nn.LSTM", "rnnfast.compat.LSTM"),
        ("1.0", "torch.nn.RNN", "rnnfast.compat.RNN"),
    ]
    ((place, reason),) = report.left
    assert place == "2"
    assert reason.endswith("Mine is a subclass, which may override anything")
    assert str(report).splitlines() == [
        "0: torch.nn.LSTM -> rnnfast.compat.LSTM",
        "1.0: torch.nn.RNN -> rnnfast.compat.RNN",
        f"2: left, {reason}",
    ]
    assert str(rnnfast.replace(nn.Linear(1, 1))) == "no recurrent layer found"
    assert str(rnnfast.replace(nn.GRU(3, 4), fullgraph=True)) == (
        "(root): torch.nn.GRU -> rnnfast.GRU"
    )


def test_what_does_not_work() -> None:
    """torch.jit.script and quantize_dynamic, as the page says; both are deprecated in torch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(RuntimeError, match=r"torch\.nn has no layer of the cell"):
            torch.jit.script(rnnfast.MGU(3, 4))
        model = nn.Sequential(rnnfast.compat.LSTM(3, 4))
        quantized = torch.ao.quantization.quantize_dynamic(model, {nn.LSTM})
    assert type(quantized[0]) is rnnfast.compat.LSTM


# --- links ---------------------------------------------------------------------------------------


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_relative_links_resolve(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for target in LINK.findall(FENCE.sub("", text)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        page = path if not name else path.parent / name
        assert page.exists(), f"{target} leads nowhere"
        if anchor:
            assert anchor in anchors(page.read_text(encoding="utf-8")), f"{target}: no such heading"


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached, found = set(), {ROOT / "README.md"}
    while found:
        page = found.pop()
        reached.add(page)
        for target in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
            path = (page.parent / target.partition("#")[0]).resolve()
            if path.suffix == ".md" and path not in reached and path.exists():
                found.add(path)
    assert set((ROOT / "docs").glob("*.md")) - reached == set()
