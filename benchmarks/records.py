"""Result files of the smaller programs: rows as CSV, and beside them, as JSON, what they depend on.

Figures that were measured before their program wrote files, or that take hours, are kept in the
same form. Their JSON says `recorded`: the document that they were copied from.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from . import machine as hardware
from . import table

BUSY = 0.5  # the load average before a run, above which it is said
RESULTS = Path(__file__).resolve().parent / "results"


def folder(device: str, threads: int) -> Path:
    """Where a machine's files of this kind lie, beside those of the layers."""
    return RESULTS / hardware.slug(device, threads) / "more"


def facts(device: str, threads: int, **options: Any) -> dict[str, Any]:
    """Of this machine, before a run: with the load of before."""
    return {**hardware.facts(device), "threads": threads, "options": options}


def write(path: Path, rows: Sequence[Any], facts: dict[str, Any]) -> None:
    """``rows``, one or more of a dataclass, and ``facts`` as the JSON file beside them."""
    table.write_csv(path, rows, type(rows[0]))
    table.write_json(path.with_suffix(".json"), facts)


@dataclass(frozen=True)
class Record:
    """A result file of a machine."""

    path: Path  # of the CSV
    facts: dict[str, Any]

    @property
    def caption(self) -> str:
        """Whose it is, and when."""
        return f"**{machine(self.facts)}** ({source(self.facts)})"

    def rows(self, kind: type[Any]) -> list[Any]:
        return table.read_csv(self.path, kind)

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """The names of the columns, and the lines as they stand."""
        with self.path.open(newline="", encoding="utf-8") as file:
            header, *lines = csv.reader(file)
        return header, lines


def records(results: Path, name: str) -> Iterator[Record]:
    """`name`.csv of every machine that has it."""
    for path in sorted(results.glob(f"*/more/{name}.csv")):
        yield Record(path, json.loads(path.with_suffix(".json").read_text(encoding="utf-8")))


def machine(facts: dict[str, Any]) -> str:
    """Such as `AMD EPYC, AVX2, 2 threads`."""
    if facts["gpu"]:
        return str(facts["gpu"]["name"])
    model = re.sub(r"\((R|TM)\)|@.*|\bProcessor\b", " ", facts["cpu"]["model"])
    set_of = facts["cpu"]["capability"].replace("AVX512", "AVX-512")
    threads = facts.get("threads") or facts["settings"]["threads"]
    return f"{' '.join(model.split())}, {set_of}, {threads} thread{'s' if threads > 1 else ''}"


def source(facts: dict[str, Any]) -> str:
    """Such as `torch 2.14.1, 30 November 2026, commit 3e255bd`; a `note`, if there is one."""
    git, day = facts["git"], datetime.fromisoformat(facts["date"])
    version = facts["torch"]["version"].partition("+")[0]
    said = f"commit {git['commit'][:7]}{' with changes' if git['dirty'] else ''}" if git else ""
    if facts.get("recorded"):
        said = "from before there was a file of results"
    words = [f"torch {version}", f"{day.day} {day:%B %Y}", said or "commit unknown"]
    load = facts["load_average"][0] if facts["load_average"] else 0
    words += [f"load before {load:.2f}"] if load > BUSY else []
    return ", ".join(words) + (f"; {facts['note']}" if "note" in facts else "")
