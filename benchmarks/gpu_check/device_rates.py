"""Adds to rates.json what is asked of torch and the extension: `… device_rates rates.json`.

Products by cuBLAS (how fast, and what the host takes for one), L2's size, the device's numbers as
the model takes them, and what the model takes for each rate without a measurement.
"""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch

from rnnfast import _ext

from . import rates

PRODUCT = (64, 1024, 4096)  # B, H, G·H: a product as one step of the stepwise strategy needs it


def main(path: Path) -> int:
    """Each is written as soon as it is known; what can't be is among the failed."""
    content = json.loads(path.read_text())
    asked: dict[str, Any] = {"model": _known}
    if not content["dry_run"]:
        asked = {"device_numbers": device_numbers, "rates": _of_torch, **asked}
    for name, ask in asked.items():
        try:
            found = ask(content)
            content[name] = {**content[name], **found} if name == "rates" else found
        except Exception as error:  # whatever a driver raises
            content["failed"][name] = f"{type(error).__name__}: {error}"
            print(f"{name}: {content['failed'][name]}", flush=True)
        rates.write(content, path)
    return 0


def _module() -> Any:
    """Raises RuntimeError where the extension is not there."""
    module: Any = _ext.load()
    if module is None:
        raise RuntimeError(str(_ext.why_missing()))
    return module


def _known(content: dict[str, Any]) -> dict[str, tuple[float, str, str]]:
    """What the model takes: value, unit, and by whom it was published."""
    numbers = content.get("device_numbers")
    found: dict[str, tuple[float, str, str]] = _module().cuda_rates(
        tuple(numbers) if numbers else "H100"
    )
    return found


def device_numbers(content: dict[str, Any]) -> list[float]:
    """The device as `_C.cuda_model` takes it, with the clock as it was measured."""
    if (why := _ext.why_no_cuda()) is not None:
        raise RuntimeError(why)
    *numbers, clock = torch.ops.rnnfast.cuda_device(torch.cuda.current_device())
    measured = content["clock_ghz"]
    return [*numbers, measured if math.isfinite(measured) else clock]


def _of_torch(content: dict[str, Any]) -> dict[str, Any]:
    size = float(torch.cuda.get_device_properties(0).L2_cache_size)
    found = {"l2_bytes": {"value": size, "low": size, "high": size}}
    return {**found, "product_host_ns": _product_host(), **_product_efficiency(content)}


def _product_host() -> dict[str, float]:
    """product_host_ns, with Python's part in it; the device multiplies meanwhile."""
    B, H, columns = 8, 64, 256
    a, b, out = (
        torch.zeros(*s, device="cuda", dtype=torch.bfloat16)
        for s in ((B, H), (H, columns), (B, columns))
    )
    count = 200  # fit the queue
    times = []
    for _ in range(9):
        torch.mm(a, b, out=out)
        torch.cuda.synchronize()
        start = time.perf_counter_ns()
        for _ in range(count):
            torch.mm(a, b, out=out)
        times.append((time.perf_counter_ns() - start) / count)
        torch.cuda.synchronize()
    times.sort()
    return {"value": times[4], "low": times[0], "high": times[-1]}


def _product_efficiency(content: dict[str, Any]) -> dict[str, Any]:
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


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
