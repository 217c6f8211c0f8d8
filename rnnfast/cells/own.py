"""Cells of one's own: ``rnnfast.cell`` makes a CellSpec of a step in plain torch."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from .spec import CellSpec, Param, Step, sizes_of

CELLS: dict[str, CellSpec] = {}
"""Every cell by its name: the built-in ones (rnnfast.cells puts them in), the family, one's own."""

_with_settings: dict[tuple[OwnCell, tuple[tuple[str, int], ...]], OwnCell] = {}
_RESERVED = ("w_ih", "w_hh", "b_ih", "b_hh", "w_hr")
_SHAPE = str | tuple[str, Callable[[Tensor], Any]]


@dataclass(frozen=True, eq=False)
class OwnCell(CellSpec):
    """A cell of one's own. Calling it is calling its step.

    Pickled by where it is defined (``module:name``), so that a module that imports it must be
    there when it is loaded.
    """

    module: str = ""
    qualname: str = ""
    base: OwnCell | None = None

    def __call__(self, *args: Any) -> Any:
        return self.step(*args)

    def with_settings(self, **settings: int) -> OwnCell:
        """The same cell with other values of its settings.

        Raises:
            TypeError: a name that is no setting of the cell; a value that is no integer.
        """
        known = dict(self.settings)
        for name, value in settings.items():
            if name not in known:
                there = ", ".join(known) or "none"
                raise TypeError(f"cell {self.name!r} has no setting {name!r}; there are: {there}")
            _check_setting(name, value)
        changed = {**known, **settings}
        base = self.base or self
        if changed == dict(base.settings):
            return base
        key = (base, tuple(changed.items()))
        if key not in _with_settings:
            shown = ", ".join(f"{name}={value}" for name, value in changed.items())
            made = replace(base, name=_free(f"{base.name}[{shown}]"), settings=key[1], base=base)
            CELLS[made.name] = _with_settings[key] = made
        return _with_settings[key]

    def __reduce__(self) -> tuple[Any, ...]:
        base = self.base or self
        if _found(base.module, base.qualname) is not base:
            raise ValueError(
                f"cell {self.name!r} can't be pickled: it is not found as {base.qualname!r} in the "
                f"module {base.module!r}; define it at the top of a module that can be imported"
            )
        return _load, (base.module, base.qualname, self.settings)

    def __deepcopy__(self, memo: dict[int, Any]) -> OwnCell:
        return self

    def __copy__(self) -> OwnCell:
        return self


def cell(
    step: Step | None = None,
    *,
    gates: int,
    states: Sequence[str] = ("h",),
    params: Mapping[str, _SHAPE] | None = None,
    recurrent: str | None = "G*H, H",
    settings: Mapping[str, int] | None = None,
    name: str | None = None,
    source: str = "",
) -> Any:
    """A cell made of one step in plain torch; a decorator.

    The step is called as ``step(gx, states, w)``: gx [B, G*H] is ``x W_ihᵀ + b_ih``, ``states`` a
    tuple of [B, H], the output first, and ``w`` has ``w_hh``, ``b_hh`` (None without bias) and the
    further parameters by their names. It returns the new states.

    Args:
        gates: G, the number of gates: ``w_ih`` is [G*H, I].
        states: names of the states; the first is the output.
        params: names of further weights, each with its shape ("H", "2*H", "H, H",
            "heads, H/heads, H/heads") or a pair of shape and what fills a new tensor in place;
            default U(-1/√H, 1/√H).
        recurrent: the shape of ``w_hh``; None: there is neither ``w_hh`` nor ``b_hh``.
        settings: whole numbers that shapes may name, and their defaults.
        name: the cell's name; default ``module:function``. A name that is taken gets a number.
        source: where the formula comes from.

    Returns:
        a ``CellSpec``, whose ``step`` is the function as it was written.

    Raises:
        TypeError: arguments of another type. ValueError: names that are taken twice or reserved, a
            shape that can't be read.
    """
    if step is None:
        return lambda step: _make(step, gates, states, params, recurrent, settings, name, source)
    return _make(step, gates, states, params, recurrent, settings, name, source)


def _make(
    step: Step,
    gates: int,
    states: Sequence[str],
    params: Mapping[str, _SHAPE] | None,
    recurrent: str | None,
    settings: Mapping[str, int] | None,
    name: str | None,
    source: str,
) -> OwnCell:
    if not callable(step):
        raise TypeError(f"a step should be a function, got: {type(step).__name__}")
    if not isinstance(gates, int) or isinstance(gates, bool) or gates < 1:
        raise TypeError(f"gates should be an integer > 0, got: {gates!r}")
    if isinstance(states, str) or not states:
        raise TypeError(f"states should be a sequence of names, the output first, got: {states!r}")
    for setting, value in (settings or {}).items():
        _check_setting(setting, value)
    made = [_param(key, value) for key, value in (params or {}).items()]
    _check_names([*states], [p.name for p in made], [*(settings or {})])
    kind = type(step)  # of what is called but has no name, as functools.partial
    module = getattr(step, "__module__", None) or kind.__module__
    qualname = getattr(step, "__qualname__", kind.__qualname__)
    spec = OwnCell(
        name=_free(name or f"{module}:{qualname}"),
        gates=gates,
        states=tuple(states),
        step=step,
        source=source or (inspect.getdoc(step) or ""),
        own=True,
        params=tuple(made),
        recurrent=recurrent,
        settings=tuple((settings or {}).items()),
        module=module,
        qualname=qualname,
    )
    _check_shapes(spec)
    CELLS[spec.name] = spec
    return spec


def _param(name: str, value: _SHAPE) -> Param:
    shape, init = value if isinstance(value, tuple) else (value, None)
    if not isinstance(shape, str) or not (init is None or callable(init)):
        raise TypeError(
            f"parameter {name!r} should be a shape such as 'H' or '2*H, H', or a pair of it and a "
            f"function that fills a tensor, got: {value!r}"
        )
    return Param(name, shape, init)


def _check_setting(name: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise TypeError(f"{name} should be an integer > 0, got: {value!r}")


def _check_names(states: list[str], params: list[str], settings: list[str]) -> None:
    names = [*states, *params, *settings]
    for name in names:
        if not isinstance(name, str) or not name.isidentifier():
            raise ValueError(f"{name!r} is no name for a state, a parameter or a setting")
        if names.count(name) > 1:
            raise ValueError(f"the name {name!r} stands twice")
        if name in _RESERVED or name in ("H", "G"):
            raise ValueError(f"the name {name!r} is taken by the layer's own weights and sizes")


def _check_shapes(spec: CellSpec) -> None:
    """That each shape can be read; sizes as they come are checked when a layer is made."""
    names = {"H": 1, "G": spec.gates, **dict(spec.settings)}
    names = {"H": 5040, "G": spec.gates, **dict.fromkeys(dict(spec.settings), 1)}
    for param in spec.params:
        sizes_of(param.shape, names, param.name)
    if spec.recurrent is not None:
        sizes_of(spec.recurrent, names, "w_hh")


def _free(name: str) -> str:
    """``name``, numbered where a cell has it: a cell defined anew is another cell, for those who
    hold the old one."""
    found, number = name, 1
    while found in CELLS:
        number += 1
        found = f"{name}#{number}"
    return found


def _found(module: str, qualname: str) -> Any:
    found: Any = sys.modules.get(module)
    for part in qualname.split("."):
        found = getattr(found, part, None)
    return found


def _load(module: str, qualname: str, settings: tuple[tuple[str, int], ...]) -> OwnCell:
    __import__(module)
    found = _found(module, qualname)
    if not isinstance(found, OwnCell):
        raise ValueError(f"there is no cell {qualname!r} in the module {module!r}")
    return found.with_settings(**dict(settings))
