"""`python -m benchmarks.figures`: the figures of the documents, from the result files.

A document marks where a block goes, and this program writes what is between the marks:

    <!-- figures: NAME -->
    <!-- /figures -->

`--check` writes nothing, and fails where a block is not what the files give. Every folder of
`benchmarks/results` is taken, so a machine that is measured later appears by itself. `table FILE`
shows a file of `more` as it stands.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import blocks, records, table
from .cases import CLASS_NAMES, SIZES, Case, parse
from .run import RESULTS
from .table import Row

ROOT = Path(__file__).resolve().parent.parent
OPENING = re.compile(r"^<!-- figures: (.*?) -->$", re.MULTILINE)
BLOCK = re.compile(r"^<!-- figures: (.*?) -->\n(.*?)^<!-- /figures -->$", re.MULTILINE | re.DOTALL)
NO_LOSS = 0.995  # what two digits round to 1
NEWEST = ("cases", "auto", "training")
PASSES = {"train": "training", "forward": "forward"}


@dataclass(frozen=True)
class Run:
    """A result file of rnnfast against torch.nn, and the JSON beside it."""

    path: Path  # of the CSV
    facts: dict[str, Any]
    rows: list[Row]

    @property
    def set(self) -> str:
        return str(self.facts["settings"].get("set", "cases"))

    @property
    def backend(self) -> str:
        return str(self.facts["settings"]["backend"])

    @property
    def timed(self) -> list[Row]:
        return [row for row in self.rows if row.timed]

    @property
    def machine(self) -> str:
        """Such as `AMD EPYC, AVX2, 2 threads`."""
        return records.machine(self.facts)


def runs(results: Path) -> list[Run]:
    """The complete ones in float32: by machine, `auto` first, training first."""
    found = []
    for path in results.glob("*/*.json"):
        settings = json.loads(path.read_text()).get("settings")
        if settings and not path.stem.endswith("-partial") and _counts(settings):
            rows = table.read_csv(path.with_suffix(".csv"))
            found.append(Run(path.with_suffix(".csv"), json.loads(path.read_text()), rows))
    return sorted(found, key=_place)


def _counts(settings: dict[str, Any]) -> bool:
    ours = settings["candidate"] == "rnnfast" and not settings["overhead"]
    return ours and settings["dtype"] == "float32"


def _place(run: Run) -> tuple[Any, ...]:
    mode = list(PASSES).index(run.facts["settings"]["mode"])
    return run.path.parent.name, run.set, run.backend != "auto", run.backend, mode


# --- blocks --------------------------------------------------------------------------------------


def picture(found: Sequence[Run], page: Path) -> Iterator[str]:
    """The bars of the newest training run of the 18 cases, and whose they are."""
    run = _newest(found)
    link = _link(page, run.path.with_suffix(".png"))
    yield f"![Time of torch.nn over ours in training, {run.machine}, by case]({link})"


def newest(found: Sequence[Run], page: Path) -> Iterator[str]:
    """The picture and the table of one run."""
    run = _newest(found)
    yield from picture(found, page)
    yield ""
    yield (
        "Time of a training step (forward and backward) of torch.nn divided by that of rnnfast: "
        f"above 1 is faster. float32, {_facts(run)}."
    )
    yield ""
    yield from _table(run, _figure)
    yield ""
    yield f"Geometric mean (least) {_mean(run.timed)}. {_spread([run])}"


def summary(found: Sequence[Run], page: Path) -> Iterator[str]:
    """A line a run of `auto`: means, least ratios, losses."""
    found = [run for run in found if run.backend == "auto" and run.set in ("cases", "random")]
    yield "| geometric mean (least) | LSTM | GRU | RNN | torch's kernels | slower with ours |"
    yield "|---|--:|--:|--:|--:|---|"
    for folder in dict.fromkeys(run.path.parent for run in found):
        here = [run for run in found if run.path.parent == folder]
        report, name = folder / "report.md", f"**{here[0].machine}**"
        yield f"| {f'[{name}]({_link(page, report)})' if report.exists() else name} | | | | | |"
        for run in here:
            cells = [_mean([r for r in run.timed if _cell(r) == cell]) for cell in CLASS_NAMES]
            count = f"{sum(row.taken == 'torch' for row in run.timed)} of {len(run.timed)}"
            yield f"| {_title(run)} | {' | '.join(cells)} | {count} | {_losses(run)} |"
    yield ""
    yield _spread(found)
    yield ""
    yield from (f"- {fact}" for fact in dict.fromkeys(_facts(run) for run in found))


def cases(found: Sequence[Run], page: Path) -> Iterator[str]:
    """A table a run of the 18 cases, with the share of the measured peak."""
    for run in (run for run in found if run.set == "cases"):
        peak = (run.facts.get("roofs") or {}).get("peak_gflops")
        forced = "" if run.backend == "auto" else f", backend {run.backend} asked for"
        yield f"**{run.machine}, {_title(run)}{forced}** (load before {_load(run)}):"
        yield ""
        yield from _table(run, functools.partial(_figure, peak=peak))
        yield ""
        told = (
            f"; the peak {peak} GF/s, {run.facts['roofs']['bandwidth_gb_s']} GB/s" if peak else ""
        )
        yield f"Geometric mean (least) {_mean(run.timed)}{told}."
        yield ""


def by_chance(found: Sequence[Run], page: Path) -> Iterator[str]:
    """A line a run of shapes by chance."""
    for run in (run for run in found if run.set == "random"):
        ordered = sorted(row.ratio for row in run.timed)
        middle = ", ".join(f"{ordered[len(ordered) * q // 4]:.2f}" for q in (1, 2, 3))
        failed = [f"`{r.case}` ({_error(r)})" for r in run.rows if not r.timed]
        yield (
            f"- **{run.machine}, {_title(run)}**: {len(run.timed)} of {len(run.rows)} timed, "
            f"geometric mean (least) {_mean(run.timed)}, quartiles {middle}; "
            f"{sum(row.taken == 'torch' for row in run.timed)} with torch's kernels; "
            f"slower with ours: {_losses(run)}. Not timed: {', '.join(failed) or 'none'}."
        )


def rates(found: Sequence[Run], page: Path) -> Iterator[str]:
    """GF/s and the share of the measured peak: training the 18 cases by `auto`."""
    for run in found:
        roofs = run.facts.get("roofs")
        if (run.set, run.backend, _title(run)) == NEWEST and roofs:
            yield (
                f"{_facts(run)}; the peak {roofs['peak_gflops']:.0f} GF/s "
                f"([report]({_link(page, run.path.parent / 'report.md')})):"
            )
            yield ""
            yield from _table(run, functools.partial(_rate, peak=roofs["peak_gflops"]))
            yield ""


BLOCKS: dict[str, Callable[[Sequence[Run], Path], Iterator[str]]] = {
    "picture": picture,
    "newest": newest,
    "summary": summary,
    "cases": cases,
    "random": by_chance,
    "rates": rates,
}


# --- parts and words -----------------------------------------------------------------------------


def _newest(found: Sequence[Run]) -> Run:
    """Of training the 18 cases by `auto`, with a picture beside it."""
    whole = [run for run in found if (run.set, run.backend, _title(run)) == NEWEST]
    return max(
        (r for r in whole if r.path.with_suffix(".png").exists()), key=lambda r: r.facts["date"]
    )


def _link(page: Path, target: Path) -> str:
    return Path(os.path.relpath(target, page.parent)).as_posix()


def _table(run: Run, figure: Callable[[Row], str]) -> Iterator[str]:
    """The 18 cases."""
    yield f"| T, B, I, H | {' | '.join(CLASS_NAMES.values())} |"
    yield "|---|--:|--:|--:|"
    rows = {row.case: row for row in run.rows}
    for size in SIZES:
        three = [rows.get(Case(cell, *size).name) for cell in CLASS_NAMES]
        cells = [figure(row) if row else "" for row in three]
        yield f"| {', '.join(map(str, size))} | {' | '.join(cells)} |"


def _cell(row: Row) -> str:
    return parse(row.case).cell


def _title(run: Run) -> str:
    title = PASSES[run.facts["settings"]["mode"]]
    return f"{title}, {len(run.rows)} shapes by chance" if run.set == "random" else title


def _mean(rows: Sequence[Row]) -> str:
    least = min((row.ratio for row in rows), default=math.nan)
    return f"{table.geometric_mean(rows):.2f} ({least:.2f})"


def _losses(run: Run) -> str:
    lost = [row for row in run.timed if row.ratio < NO_LOSS and row.taken != "torch"]
    return ", ".join(f"{row.case} {row.ratio:.2f}" for row in lost) or "none"


def _figure(row: Row, peak: float | None = None) -> str:
    """The ratio; with ``peak``, GF/s, our share of it."""
    if not row.timed:
        return "missed its gate"
    share = f", {100 * row.candidate_gflops / peak:.0f} %" if peak else ""
    if row.taken == "torch":
        return f"{row.ratio:.2f} (torch){share}"
    return f"{row.ratio:.2f}{share}" if row.ratio >= NO_LOSS else f"**{row.ratio:.2f}**{share}"


def _rate(row: Row, peak: float) -> str:
    """GF/s of who ran it."""
    if not row.timed:
        return "missed its gate"
    whose = ", torch's kernel" if row.taken == "torch" else ""
    return f"{row.candidate_gflops:.0f} ({100 * row.candidate_gflops / peak:.0f} %){whose}"


def _error(row: Row) -> str:
    return f"off by {row.gate:.1f} times what is allowed" if row.gate > 1 else "failed"


def _spread(found: Sequence[Run]) -> str:
    same = [row.ratio for run in found for row in run.timed if row.taken == "torch"]
    if not same:
        return "No case was given to torch's kernels."
    return (
        "Where torch's kernels measured as fast, `auto` calls them: such a case compares torch "
        f"with itself, and shows the noise, {min(same):.2f} to {max(same):.2f}."
    )


def _facts(run: Run) -> str:
    return f"{run.machine}: {records.source(run.facts)}"


def _load(run: Run) -> str:
    return f"{run.facts['load_average'][0]:.2f}"


# --- documents -----------------------------------------------------------------------------------


def documents(root: Path) -> list[Path]:
    return [root / "README.md", *sorted((root / "docs").glob("*.md"))]


def block_of(name: str, found: Sequence[Run], page: Path) -> Iterator[str]:
    """The lines of the block ``name``. Raises KeyError where there is no such block."""
    kind, _, file = name.partition(" ")
    if kind == "table":
        return blocks.each(RESULTS, file, blocks.as_it_stands)
    if kind in blocks.TABLES:
        return blocks.each(RESULTS, *blocks.TABLES[kind])
    return BLOCKS[kind](found, page)


def written(page: Path, found: Sequence[Run]) -> str:
    """The text of `page` with its blocks as the files give them.

    Raises ValueError for a block of another name, or one that does not end.
    """
    text = page.read_text(encoding="utf-8")
    known = [*BLOCKS, *blocks.TABLES, "table FILE"]
    for name in OPENING.findall(text):
        if name not in known and not name.startswith("table "):
            raise ValueError(f"{page.name}: figures: {name}: known are {', '.join(known)}")
    if len(OPENING.findall(text)) != len(BLOCK.findall(text)):
        raise ValueError(f"{page.name}: a block of figures has no <!-- /figures -->")

    def block(match: re.Match[str]) -> str:
        lines = "\n".join(block_of(match[1], found, page)).strip("\n")
        return f"<!-- figures: {match[1]} -->\n{lines}\n<!-- /figures -->"

    return BLOCK.sub(block, text)


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: with `--check`, 1 where a document is not up to date."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.figures", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; say what is stale")
    options = parser.parse_args(arguments)
    found = runs(RESULTS)
    stale = {
        page: text
        for page in documents(ROOT)
        if (text := written(page, found)) != page.read_text(encoding="utf-8")
    }
    for page, text in stale.items():
        print(
            f"{page.relative_to(ROOT)}: {'not what the results give' if options.check else 'new'}"
        )
        if not options.check:
            table.write_text(page, text)
    return 1 if options.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
