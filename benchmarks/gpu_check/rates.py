"""The first stage: what the cost model assumes of a device, measured on it."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import torch

from rnnfast import _ext

from .. import table
from . import programs
from .stages import CUT, FAILED, MISSING, OK, Context, Outcome, run_command

PRODUCT = (64, 1024, 4096)  # B, H, G·H: a product as one step of the stepwise strategy needs it


def run(context: Context, seconds: float) -> Outcome:
    """Writes rates.json: ``{"rates": {name: {"value", "low", "high"}}, …}``."""
    started = time.monotonic()
    try:
        program = (
            programs.build_for_executor() if context.dry_run else programs.find(context.prebuilt)
        )
    except programs.BuildError as error:
        return Outcome(FAILED if not context.prebuilt else MISSING, str(error))
    command = [str(program), *(["--tiny"] if context.dry_run else [])]
    left = seconds - (time.monotonic() - started)
    done = run_command(command, max(left, 1), context.folder / "rates.txt")
    content = parse(done.text)
    content["dry_run"] = context.dry_run
    if not context.dry_run:
        content["device_numbers"] = device_numbers(content)
        content["rates"].update(_of_torch(content))
    write(content, context.folder / "rates.json")
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


def device_numbers(content: dict[str, Any]) -> list[float]:
    """The device as `_C.cuda_model` takes it, with the clock as it was measured.

    Raises RuntimeError where the extension is not there.
    """
    module: Any = _ext.load()
    if module is None:
        raise RuntimeError(str(_ext.why_missing()))
    *numbers, clock = module.cuda_device(torch.cuda.current_device())
    measured = content["clock_ghz"]
    return [*numbers, measured if math.isfinite(measured) else clock]


def _judge(content: dict[str, Any], code: int | None, last_line: str) -> Outcome:
    found, failed = len(content["rates"]), content["failed"]
    line = f"{found} rates"
    if content["skipped"]:
        line += f"; not there: {', '.join(content['skipped'])}"
    if failed:
        line += f"; failed: {', '.join(failed)}"
    if code is None:
        return Outcome(CUT, line, content)
    if found == 0:
        line = last_line or f"exit status {code}"
    return Outcome(OK if code == 0 and found else FAILED, line, content)


def _of_torch(content: dict[str, Any]) -> dict[str, Any]:
    """product_efficiency: of the rate of mma.sync that was measured, as a small product by cuBLAS
    reaches it."""
    mma = content["rates"].get("mma_cycles")
    clock = content["clock_ghz"]
    if mma is None or not math.isfinite(clock):
        return {}
    B, H, columns = PRODUCT
    a, b = (torch.randn(*s, device="cuda", dtype=torch.bfloat16) for s in ((B, H), (H, columns)))
    count = 200
    shares = []
    for _ in range(9):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.mm(a, b)
        start.record()
        for _ in range(count):
            torch.mm(a, b)
        end.record()
        end.synchronize()
        ns = start.elapsed_time(end) * 1e6 / count
        sms = torch.cuda.get_device_properties(0).multi_processor_count
        peak = 16 * 8 * 16 / mma["value"] * clock * sms  # multiply-adds a ns
        shares.append(B * H * columns / ns / peak)
    shares.sort()
    return {"product_efficiency": {"value": shares[4], "low": shares[0], "high": shares[-1]}}
