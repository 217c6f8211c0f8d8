"""The stage that measures what the cost model assumes of a device."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import table
from .children import Command
from .children import run as run_command
from .stages import CUT, FAILED, MISSING, OK, Context, Outcome

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build" / "gpu-check"
PROGRAM = FOLDER / "rates"
STAMP = PROGRAM.with_suffix(".stamp")  # what the program was compiled from
EXECUTOR = FOLDER / "executor" / "rates"  # the same program on the CPU
PROGRAM_SHARE = 0.75  # of the time, at most; the rest is for what torch measures


def stamp() -> str:
    """Of the program's sources."""
    content = hashlib.sha256()
    sources = [*Path(__file__).parent.glob("rates*.*"), *(ROOT / "csrc").rglob("*.h")]
    for path in sorted(source for source in sources if source.suffix != ".py"):
        content.update(path.read_bytes())
    return content.hexdigest()


def is_built() -> bool:
    return PROGRAM.is_file() and STAMP.is_file() and STAMP.read_text() == stamp()


def run(context: Context, seconds: float) -> Outcome:
    """Writes rates.json: ``{"rates": {name: {"value", "low", "high"}}, …}``; once more when torch
    has measured, too."""
    if context.dry_run:
        words: tuple[str, ...] = (str(EXECUTOR), "--tiny")
    elif is_built():
        words = (str(PROGRAM),)
    else:
        how = "where there is an nvcc: python -m benchmarks.gpu_check.programs"
        return Outcome(MISSING, f"{PROGRAM} is not there, or of other sources; {how}")
    until = time.monotonic() + seconds
    log = context.folder / "rates.txt"
    done = run_command(Command(words, log), seconds * PROGRAM_SHARE)
    content = parse(done.text)
    content["dry_run"] = context.dry_run
    path = context.folder / "rates.json"
    write(content, path)
    words = context.python("benchmarks.gpu_check.device_rates", str(path))
    more = run_command(
        Command(words, context.folder / "device-rates.txt"), until - time.monotonic()
    )
    content = json.loads(path.read_text())
    if more.code != 0:
        content["failed"]["by torch"] = more.last_line
    return _judge(content, done.code, done.last_line)


def parse(text: str) -> dict[str, Any]:
    """Of the program's lines, as many as there are: "rates", "skipped" and "failed" by name, and
    the device."""
    content: dict[str, Any] = {"rates": {}, "skipped": {}, "failed": {}}
    for line in text.splitlines():
        if not line.startswith("{"):
            continue
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:  # the program ended in the middle of a line
            continue
        name = entry.pop("name", None)
        if name is None:
            content.update(entry)
        elif "value" in entry:
            content["rates"][name] = entry
        else:
            kind = "skipped" if "skipped" in entry else "failed"
            content[kind][name] = entry[kind]
    # of the device, and not a rate of the model
    clock = content["rates"].pop("clock_ghz", None)
    content["clock_ghz"] = clock["value"] if clock else math.nan
    return content


def write(content: dict[str, Any], path: Path) -> None:
    table.write_json(path, content)
    lines = ["name,value,low,high"]
    for name, entry in content["rates"].items():
        lines.append(f"{name},{entry['value']:g},{entry['low']:g},{entry['high']:g}")
    table.write_text(path.with_suffix(".csv"), "\n".join(lines) + "\n")


def _judge(content: dict[str, Any], code: int | None, last_line: str) -> Outcome:
    found, failed = len(content["rates"]), content["failed"]
    line = f"{found} rates"
    if content["skipped"]:
        line += f"; not there: {', '.join(content['skipped'])}"
    if failed:
        line += f"; failed: {', '.join(failed)}"
    if code is None:
        return Outcome(CUT, line, section(content))
    if found == 0:
        line = last_line or f"exit status {code}"
    return Outcome(OK if code == 0 and found and not failed else FAILED, line, section(content))


def section(content: Mapping[str, Any]) -> str:
    """Measured beside what the model takes without a measurement."""
    dry = content.get("dry_run", False)
    lines = ["## Rates", ""]
    if not dry:
        lines += [
            f"Clock {content['clock_ghz']:.3f} GHz (nominal {content.get('nominal_ghz', 0):.3f}). "
            "Feed them back: `python -m benchmarks.latency --devices measured --rates rates.json`.",
            "",
        ]
    measured = "dry run" if dry else "measured"
    lines += [f"| constant | {measured} | low – high | model | is |", "|---|--:|--:|--:|---|"]
    known = content.get("model", {})
    for name, entry in content["rates"].items():
        value, unit, by = known.get(name, (math.nan, "", ""))
        spread = f"{entry['low']:.4g} – {entry['high']:.4g}"
        lines.append(
            f"| {name} ({unit}) | {entry['value']:.4g} | {spread} | {value:g} | {by or 'assumed'} |"
        )
    for kind in ("skipped", "failed"):
        lines += [
            f"| {name} | {kind}: {table.one_line(why)} | | | |"
            for name, why in content[kind].items()
        ]
    return "\n".join(lines)
