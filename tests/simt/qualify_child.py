"""The process of a qualification with the executor as the device, and faults to plant: ``PLANT``,
of the grid strategy where H is ``PLANT_AT``."""

from __future__ import annotations

import os
import time
from typing import Any

import torch

from rnnfast.problem import ScanResult
from rnnfast.qualify.child import main
from rnnfast.qualify.judge import judge
from rnnfast.qualify.spread import Case, Way

from .backend import Simt, registered

PLANT, AT = os.environ.get("PLANT", ""), int(os.environ.get("PLANT_AT", "-1"))


def planted(case: Case, way: Way, device: str, seconds: float) -> dict[str, Any]:
    right = Simt.forward_all
    if way.strategy == "grid" and case.H == AT:
        if PLANT == "hang":
            time.sleep(600)
        if PLANT == "crash":
            os._exit(3)
        if PLANT == "raise":
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        if PLANT in ("wrong", "wrong lengths"):
            Simt.forward_all = _off  # type: ignore[method-assign]
    try:
        return judge(case, way, device, seconds)
    finally:
        Simt.forward_all = right  # type: ignore[method-assign]


def _off(self: Simt, scans: Any, right: Any = Simt.forward_all) -> Any:
    made = right(self, scans)
    if PLANT == "wrong lengths" and scans[0].lengths is None:
        return made
    return [(ScanResult(r.y + 0.5, r.final, r.trace), saved) for r, saved in made]


if __name__ == "__main__":
    torch.set_num_threads(1)
    with registered():
        main(planted)
