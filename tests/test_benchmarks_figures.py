"""The figures of the documents are those of the result files."""

from __future__ import annotations

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import blocks, figures, records, table, transforms
from benchmarks.cases import CASES
from benchmarks.table import Row

FACTS = {
    "date": "2026-01-02T03:04:05+00:00",
    "git": {"commit": "0123456789abcdef", "dirty": False},
    "cpu": {"model": "Some(R) Processor X1", "capability": "AVX512"},
    "gpu": None,
    "torch": {"version": "2.14.1+cu130"},
    "load_average": [0.25, 0, 0],
    "roofs": {"peak_gflops": 100.0, "bandwidth_gb_s": 10.0},
}
SETTINGS = {
    "candidate": "rnnfast",
    "backend": "auto",
    "dtype": "float32",
    "mode": "train",
    "threads": 2,
    "overhead": False,
    "set": "cases",
}


def rows(ratio: float = 2.0) -> list[Row]:
    """Of the 18 cases."""
    one = Row("", "train", "rnnfast", "auto", "cpu", ratio=ratio, torch_ms=2.0, candidate_ms=1.0)
    return [replace(one, case=case.name) for case in CASES]


def add(folder: Path, stem: str, found: list[Row], **settings: object) -> None:
    """A result file of a machine."""
    table.write_csv(folder / f"{stem}.csv", found)
    facts = FACTS | {"settings": SETTINGS | settings}
    table.write_json(folder / f"{stem}.json", facts)


def test_the_documents_are_what_the_results_give(capsys: pytest.CaptureFixture[str]) -> None:
    """`python -m benchmarks.figures` mends what is told here."""
    assert figures.main(["--check"]) == 0, capsys.readouterr().out


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The documents and the results, to be changed; returns their root."""
    (tmp_path / "docs").mkdir()
    for page in figures.documents(figures.ROOT):
        shutil.copy(page, tmp_path / page.relative_to(figures.ROOT))
    shutil.copytree(figures.RESULTS, tmp_path / "benchmarks/results")
    monkeypatch.setattr(figures, "ROOT", tmp_path)
    monkeypatch.setattr(figures, "RESULTS", tmp_path / "benchmarks/results")
    return tmp_path


MARKED = [
    page.name
    for page in figures.documents(figures.ROOT)
    if any(re.search(r"\d\.\d\d", block[0]) for block in figures.BLOCK.finditer(page.read_text()))
]


@pytest.mark.parametrize("name", MARKED)
def test_a_changed_number_is_told_and_mended(
    name: str, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (page,) = (path for path in figures.documents(copied) if path.name == name)
    right = page.read_text()
    block = max((match[0] for match in figures.BLOCK.finditer(right)), key=len)
    wrong = re.sub(r"\d\.\d\d", "7.77", block, count=1)
    assert wrong != block
    page.write_text(right.replace(block, wrong))
    assert figures.main(["--check"]) == 1
    assert f"{name}: not what the results give" in capsys.readouterr().out
    assert page.read_text() != right  # told, not touched
    assert figures.main([]) == 0
    assert page.read_text() == right


def test_a_changed_result_is_told(copied: Path) -> None:
    path = copied / "benchmarks/results/cpu-amd-epyc-avx2-2-threads/rnnfast-auto-train-float32.csv"
    first, *rest = table.read_csv(path)
    table.write_csv(path, [replace(first, ratio=first.ratio + 0.1), *rest])
    assert figures.main(["--check"]) == 1


def test_a_machine_that_comes_later_appears(copied: Path) -> None:
    add(copied / "benchmarks/results/a-new-one", "rnnfast-auto-train-float32", rows(1.23))
    assert figures.main(["--check"]) == 1
    assert figures.main([]) == 0
    text = (copied / "README.md").read_text()
    assert "| **Some X1, AVX-512, 2 threads** |" in text
    assert "| training | 1.23 (1.23) | 1.23 (1.23) | 1.23 (1.23) | 0 of 18 | none |" in text
    assert "Some X1, AVX-512, 2 threads: torch 2.14.1, 2 January 2026, commit 0123456" in text


def test_losses_are_named_and_torchs_kernels_counted(tmp_path: Path) -> None:
    lost, same, missed, *rest = rows()
    lost = replace(lost, ratio=0.8)
    same = replace(same, ratio=0.9, taken="torch")
    missed = replace(missed, status="failed", ratio=math.nan, gate=3.25, reason="y: error")
    add(tmp_path / "m", "rnnfast-auto-train-float32", [lost, same, missed, *rest])
    add(
        tmp_path / "m",
        "random-rnnfast-auto-train-float32",
        [lost, same, missed, *rest],
        set="random",
    )
    found = figures.runs(tmp_path)
    told = "\n".join(figures.summary(found, tmp_path))
    assert f"| 1 of 17 | {lost.case} 0.80 |" in told
    assert "the noise, 0.90 to 0.90" in told
    shown = "\n".join(figures.cases(found, tmp_path))
    assert re.search(r"\| \*\*0\.80\*\*, \d+ % \| ", shown)
    assert "| 0.90 (torch), " in shown
    assert "| missed its gate |" in shown
    chance = "\n".join(figures.by_chance(found, tmp_path))
    assert (
        f"17 of 18 timed, geometric mean (least) {table.geometric_mean(found[0].rows):.2f} (0.80)"
        in chance
    )
    assert f"`{missed.case}` (off by 3.2 times what is allowed)" in chance


def test_only_complete_runs_in_float32_count(tmp_path: Path) -> None:
    good = "rnnfast-auto-train-float32"
    add(tmp_path / "m", good, rows())
    add(tmp_path / "m", f"{good}-partial", rows()[:1])
    add(tmp_path / "m", "rnnfast-auto-train-float64", rows(), dtype="float64")
    add(tmp_path / "m", "overhead-rnnfast-auto-train-float32", rows(), overhead=True)
    add(tmp_path / "m", "torch-nn-train-float32", rows(), candidate="torch.nn")
    table.write_json(tmp_path / "m" / "clip.json", FACTS)
    assert [run.path.stem for run in figures.runs(tmp_path)] == [good]
    assert json.loads((tmp_path / "m" / "clip.json").read_text()) == FACTS


def test_a_mark_that_means_nothing_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- figures: sumary -->\n<!-- /figures -->\n")
    with pytest.raises(
        ValueError, match=r"page\.md: figures: sumary: known are picture, newest, summary"
    ):
        figures.written(page, [])
    page.write_text("<!-- figures: summary -->\n")
    with pytest.raises(ValueError, match="has no <!-- /figures -->"):
        figures.written(page, [])


# --- figures that no file holds ------------------------------------------------------------------

MEASURED = re.compile(r"\d[\d.,]* ?(?:µs|ms|ns|GF/s|GB/s|tokens/s|%)(?!\w)|\d[\d.,]* times as \w+")
MODELS = "by arithmetic or by a model, as the page says: no GPU has run it"
PAGES = {"cuda.md": MODELS, "latency.md": MODELS, "gpu-check.md": MODELS, "triton.md": MODELS}
BY_RULE = {  # what is asked, or stands in the code; not what was measured
    "benchmarks.md": ("95 %", "30 µs", "3 %", "100 ms"),
    "clipping.md": ("95 %",),
    "cpu.md": ("20 µs", "8 ms"),
    "distributed.md": ("95 %", "50 µs", "1.25 GB/s", "8 times as fast"),
    "seeds.md": ("15 %", "2 %", "5 %"),
    "tuning.md": ("5 %",),
}


def loose_figures(text: str) -> list[str]:
    """Numbers with a unit, outside of the blocks that are written from files and of code."""
    text = re.sub(r"^```.*?^```$", "", figures.BLOCK.sub("", text), flags=re.MULTILINE | re.DOTALL)
    return MEASURED.findall(text)


@pytest.mark.parametrize("page", figures.documents(figures.ROOT), ids=lambda page: page.name)
def test_what_was_measured_comes_from_a_file(page: Path) -> None:
    """Write it into a file of results and the page's block from that, or, where it is a rule and
    was not measured, into BY_RULE."""
    if page.name not in PAGES:
        found = set(loose_figures(page.read_text(encoding="utf-8")))
        assert found == set(BY_RULE.get(page.name, ()))


def test_loose_figures_are_found() -> None:
    text = "It takes 3.5 ms, 12 % of it.\n<!-- figures: cases -->\n7 µs\n<!-- /figures -->\n"
    assert loose_figures(f"{text}```\n9 GF/s\n```\n2 times as fast") == [
        "3.5 ms", "12 %", "2 times as fast",
    ]  # fmt: skip


# --- the smaller programs ------------------------------------------------------------------------


@pytest.mark.parametrize("name", blocks.TABLES)
def test_every_block_is_somewhere(name: str) -> None:
    pages = (page.read_text(encoding="utf-8") for page in figures.documents(figures.ROOT))
    assert any(f"<!-- figures: {name} -->" in text for text in pages)


def test_every_file_is_shown() -> None:
    """No figure is kept that nobody reads."""
    text = "".join(page.read_text() for page in figures.documents(figures.ROOT))
    files = {f for name, (f, _) in blocks.TABLES.items() if f"<!-- figures: {name} -->" in text}
    files |= set(re.findall(r"<!-- figures: table (.*?) -->", text))
    assert {path.stem for path in figures.RESULTS.glob("*/more/*.csv")} <= files


def test_a_machine_that_is_measured_later_has_a_table(copied: Path) -> None:
    folder = copied / "benchmarks/results/a-new-one/more"
    row = transforms.Row("gru", "vmap", transforms.OURS_NAME, 3, 1.5, 1.4, 1.6, 1.25, 1.0, "")
    rows = [
        replace(one, transform=name)
        for name in transforms.NAMES
        for one in (
            row,
            replace(row, peer="loop", of_ours=9.5),
            replace(row, peer="torch.nn", note="can't"),
        )
    ]
    records.write(folder / "transforms.csv", rows, FACTS | {"threads": 1})
    assert figures.main(["--check"]) == 1
    assert figures.main([]) == 0
    text = (copied / "docs/transforms.md").read_text()
    assert "**Some X1, AVX-512, 1 thread** (torch 2.14.1, 2 January 2026, commit 0123456):" in text
    assert "| gru | vmap | 1.50 ms | 1.2 x forward | 9.50 | can't |" in text


def test_where_a_figure_is_from(copied: Path) -> None:
    assert records.source(FACTS | {"load_average": [1.5, 0, 0]}).endswith("load before 1.50")
    old = FACTS | {"git": None, "load_average": None, "recorded": "docs/x.md", "note": "busy"}
    assert records.source(old).endswith("from before there was a file of results; busy")
    assert records.source(FACTS | {"git": None}).endswith("commit unknown")
