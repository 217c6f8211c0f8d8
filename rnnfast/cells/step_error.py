"""``StepError``: a step that no layer can be made of, and where it stands."""

from __future__ import annotations

import functools
import inspect
import traceback
from types import CodeType
from typing import Any

from .spec import CellSpec


class StepError(ValueError):
    """A cell's step, or a weight's shape, that no layer can be made of. The text names the cell
    and ends, where that can be known, with the file and line of the step."""


def step_error(spec: CellSpec, text: str, cause: BaseException | None = None) -> StepError:
    """The error, at the line of the step from which ``cause`` came, else where the step begins."""
    code = code_of(spec.step)
    where = ""
    if code is not None:
        lines = [code.co_firstlineno]
        if cause is not None:
            frames = traceback.walk_tb(cause.__traceback__)
            lines += [line for frame, line in frames if frame.f_code is code]
        where = f" ({code.co_filename}, line {lines[-1]})"
    return StepError(f"cell {spec.name!r}: {text}{where}")


def code_of(step: Any) -> CodeType | None:
    while isinstance(step, functools.partial):
        step = step.func
    step = inspect.unwrap(step)
    if not hasattr(step, "__code__"):  # an object that can be called
        step = type(step).__call__
    code = getattr(step, "__code__", None)
    return code if isinstance(code, CodeType) else None
