"""Autograd Functions at the levels of torch.func.

torch.autograd.Function goes through the levels by a machinery for Functions of any kind, which
takes all arguments apart many times at each level, and so costs more than a short scan. What is
here does the same for Functions that are given ``nest``, which is no tensor, and then tensors
alone, and return a tuple of new tensors. What runs in a jvp is the next level's, too, with forward
mode on: left at its own level, where torch has it off, it would have no tangents at any other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch._C import _functorch
from torch._C._functorch import TransformType
from torch._functorch.utils import enable_single_level_autograd_function, unwrap_dead_wrappers
from torch.autograd.function import _SingleLevelFunction


class Leveled(_SingleLevelFunction):
    """A Function of one level: ``forward`` of a subclass is ``at_level`` of itself. Its rules are
    torch.autograd.Function's, and ``run(nest, *tensors)`` is what it does below all levels."""

    apply: ClassVar[Any]

    @staticmethod
    def run(nest: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
        raise NotImplementedError

    @staticmethod
    def forward_mode(nest: Any, tensors: Sequence[Tensor]) -> tuple[Tensor, ...] | None:
        """The dual results at a level of forward mode, where they are made at once; None: they are
        made by ``run`` and the jvp."""
        return None

    @staticmethod
    def vmap(info: Any, in_dims: Any, *given: Any) -> tuple[Any, Any]:
        raise NotImplementedError


class _Mapped:
    """What a rule for vmap is told."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size


class _Below:
    """What runs within is below ``level``, the innermost, as torch's own ``lower`` has it: a mode
    that was off around the level is off there. ``grad``, ``dual``: is turned on but for that."""

    def __init__(self, level: Any, *, grad: bool = False, dual: bool = False) -> None:
        key = level.key()
        self._before = torch.is_grad_enabled(), torch._C._is_fwd_grad_enabled()
        grad, dual = self._before[0] or grad, self._before[1] or dual
        if key == TransformType.Grad:
            grad &= _functorch.CGradInterpreterPtr(level).prevGradMode()
        elif key == TransformType.Jvp:
            dual &= _functorch.CJvpInterpreterPtr(level).prevFwdGradMode()
        self._modes = grad, dual

    def __enter__(self) -> None:
        _set_modes(*self._modes)
        self._level = _functorch.pop_dynamic_layer_stack()

    def __exit__(self, *_: object) -> None:
        _functorch.push_dynamic_layer_stack(self._level)
        _set_modes(*self._before)


def _set_modes(grad: bool, dual: bool) -> None:
    torch._C._set_grad_enabled(grad)
    torch._C._set_fwd_grad_enabled(dual)


_INTERPRETERS: dict[TransformType, Any] = {
    TransformType.Grad: _functorch.CGradInterpreterPtr,
    TransformType.Jvp: _functorch.CJvpInterpreterPtr,
}


def number() -> int:
    """Of the innermost level; 0 where there is none."""
    level = _functorch.peek_interpreter_stack()
    return 0 if level is None else int(level.level())


def applied(function: type[Leveled], nest: Any, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """``function`` of these tensors, by the rules of all levels around."""
    level = _functorch.peek_interpreter_stack()
    tensors = unwrap_dead_wrappers(tuple(tensors))
    if level is None:
        found: tuple[Tensor, ...] = function.apply(nest, *tensors)
        return found
    key = level.key()
    if key == TransformType.Vmap:
        return _by_vmap(function, level, nest, tensors)
    if key not in _INTERPRETERS:
        raise RuntimeError("recurrent layers have no rule for torch.func.functionalize")
    lifted = list(map(_INTERPRETERS[key](level).lift, tensors))
    if key == TransformType.Jvp and (own := function.forward_mode(nest, lifted)):
        return own
    with enable_single_level_autograd_function():
        found = function.apply(nest, *lifted)
    return found


def at_level(function: type[Leveled], nest: Any, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The forward of ``function`` at the innermost level: the next level's results."""
    level = _functorch.peek_interpreter_stack()
    if level is None:
        return function.run(nest, *tensors)
    number = level.level()
    own = [_functorch._unwrap_for_grad(t, number) for t in tensors]
    # torch turned both off for what it takes for the kernel
    with _Below(level, grad=True, dual=True):
        found = applied(function, nest, own)
    return tuple(_functorch._wrap_for_grad(t, number) for t in found)


def _by_vmap(
    function: type[Leveled], level: Any, nest: Any, tensors: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    number = level.level()
    values, dims = zip(*(_functorch._unwrap_batched(t, number) for t in tensors), strict=True)
    if all(dim is None for dim in dims):
        with _Below(level):
            return applied(function, nest, tensors)
    info = _Mapped(_functorch.CVmapInterpreterPtr(level).batchSize())
    with _Below(level):
        found, out_dims = function.vmap(info, (None, *dims), nest, *values)
    return tuple(
        t if dim is None else _functorch._add_batch_dim(t, dim, number)
        for t, dim in zip(found, out_dims, strict=True)
    )


def without_level(
    run: Callable[..., Sequence[Tensor | None]], tensors: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """In the jvp of a Function ``run(tensors)`` without the level that it is the jvp of, where the
    tensors have tangents of which nobody is to make tangents."""
    level = _functorch.peek_interpreter_stack()
    if level is None:  # dual numbers alone, whose tangents torch hides from a jvp
        return list(run(tensors))
    number = level.level()
    own = [None if t is None else _functorch._unwrap_for_grad(t, number) for t in tensors]
    with _Below(level, dual=True):
        found = run(own)
    return [None if t is None else _functorch._wrap_for_grad(t, number) for t in found]
