"""The backend ``reference``: the scratch loop. Slow, complete, differentiable to any order."""

from __future__ import annotations

from ..problem import Problem, Scan, ScanResult
from ..scratch import scratch_scan
from .base import CompositeBackend


class Reference(CompositeBackend):
    name = "reference"

    def why_not(self, problem: Problem) -> str | None:
        return None

    def strategy(self, problem: Problem) -> str:
        return "a loop over T in plain torch"

    def run(self, scan: Scan) -> ScanResult:
        return scratch_scan(scan)
