"""Formulas for ``torch.utils.flop_counter.FlopCounterMode``: two for each multiply and add of a
product, nothing for the rest, as torch counts.

That module imports Triton, so it is not imported here; the formulas are registered once someone
else has imported it.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch

from .problem import Scan
from .schema import BACKWARD, FORWARD, named, needs_among, scan_of

COUNTER = "torch.utils.flop_counter"


def _products(scan: Scan) -> tuple[int, int]:
    """FLOPs of (the input's product, the recurrent ones) over all steps."""
    names = scan.spec.weight_names(scan.kind, scan.has_bias)
    steps = scan.input.shape[0] * scan.input.shape[1]
    # every number of a matrix is multiplied once a step, also where it is block-diagonal
    of_each = {
        name: 2 * steps * weight.numel()
        for name, weight in zip(names, scan.weights, strict=True)
        if weight.dim() > 1
    }
    input = of_each.pop("w_ih", 0)
    return 0 if scan.kind == "tokens" else input, sum(of_each.values())


def _forward(*args: Any, out_val: Any = None, **_: Any) -> int:
    return sum(_products(scan_of(named(FORWARD, args))))


def _backward(*args: Any, out_val: Any = None, **_: Any) -> int:
    given = named(BACKWARD, args)
    needs = needs_among(given)
    input, recurrent = _products(scan_of(given))
    total = recurrent + (input if needs.input else 0)
    return total + (input + recurrent if needs.weights else 0)


def _register(counter: ModuleType) -> None:
    for op, formula in (("scan_forward", _forward), ("scan_backward", _backward)):
        counter.register_flop_formula(getattr(torch.ops.rnnfast, op), get_raw=True)(formula)


class _AfterImport(importlib.abc.MetaPathFinder):
    """Finds nothing of its own: it registers the formulas when the counter was imported."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != COUNTER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        run = spec.loader.exec_module

        def run_and_register(module: ModuleType) -> None:
            run(module)
            _register(module)

        spec.loader.exec_module = run_and_register  # type: ignore[method-assign]
        return spec


def register_when_imported() -> None:
    """Registers the formulas now, or as soon as torch's counter is imported."""
    if COUNTER in sys.modules:
        _register(sys.modules[COUNTER])
    else:
        sys.meta_path.insert(0, _AfterImport())
