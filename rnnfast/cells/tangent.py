"""The tangent of a cell: the cell whose states are a cell's own and their derivatives.

Its gates are the cell's own and behind them their tangents, gx [B, 2*G*H]; its states the tangents
of the cell's states, and behind them the states themselves, so that its output is the output's
tangent; its weights the cell's own, and where these have tangents too, those by the names "d_…";
where a weight has such a name itself, as in the tangent of a tangent, by "dd_…", and so on.
A cell of one's own like any other: whoever runs those runs it, and it has a backward and a tangent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .masked import plain_cell
from .own import CELLS, OwnCell
from .spec import CellSpec, Param, States, Step, StepWeights


@dataclass(frozen=True, eq=False)
class TangentCell(OwnCell):
    """The tangent of the cell ``of``. ``weights_too``: the weights have tangents, too."""

    of: CellSpec | None = None
    weights_too: bool = False

    @property
    def tangents(self) -> int:
        return len(self.states) // 2

    def tangent_of(self, weight: str) -> str:
        """The name of a weight's tangent."""
        assert self.of is not None
        return _prefix(self.of) + weight


def _prefix(of: CellSpec) -> str:
    """Of the names of the tangents of a cell's weights, of which it has none itself."""
    names = {param.name for param in of.params}
    prefix = "d_"
    while any(prefix + name in names for name in names):
        prefix = "d" + prefix
    return prefix


def tangent_cell(cell: str, P: int, bias: bool, weights_too: bool) -> str:
    """The name of the tangent of ``cell``, which takes gates that are projected, and the weights of
    the cell but for those of the input. ``P``, ``bias``: of the layer, as ``plain_cell`` has them.
    """
    of = CELLS[plain_cell(cell, P, bias)]
    name = f"tangent of {of.name}" + (" and its weights" if weights_too else "")
    if name not in CELLS:
        prefix = _prefix(of)
        tangents = [Param(prefix + p.name, p.shape) for p in of.params] if weights_too else []
        CELLS[name] = TangentCell(
            name,
            gates=2 * of.gates,
            states=(*(f"d{state}" for state in of.states), *of.states),
            step=_step(of, weights_too),
            source=of.source,
            own=True,
            params=(*of.params, *tangents),
            recurrent=None,
            settings=of.settings,
            of=of,
            weights_too=weights_too,
        )
    return name


def _step(of: CellSpec, weights_too: bool) -> Step:
    count, names, prefix = len(of.states), [param.name for param in of.params], _prefix(of)

    def own(gx: Tensor, *rest: Tensor) -> States:
        found = dict(zip(names, rest[count:], strict=True))
        weights = StepWeights(found.get("w_hh"), found.get("b_hh"), found.get("w_hr"), found)
        return tuple(of.step(gx, rest[:count], weights))

    def step(gx: Tensor, states: States, w: StepWeights) -> States:
        (gx, dgx), dstates, states = gx.chunk(2, -1), states[:count], states[count:]
        dweights = [getattr(w, prefix + name) if weights_too else None for name in names]
        given = [gx, *states, *(getattr(w, name) for name in names)]
        return _with_tangents(own, given, [dgx, *dstates, *dweights])

    return step


def _with_tangents(
    function: Callable[..., States], given: Sequence[Tensor], tangents: Sequence[Tensor | None]
) -> States:
    """The tangents of what ``function`` returns, and that: by two backwards, of which the second
    is that of a linear function, so that plain autograd differentiates them."""
    with torch.enable_grad(), _WholeNorms():
        given = [t.view_as(t) if t.requires_grad else t.detach().requires_grad_() for t in given]
        news = function(*given)
        linear = [torch.zeros_like(new).requires_grad_() for new in news]
        pairs = [(new, u) for new, u in zip(news, linear, strict=True) if new.requires_grad]
        back = _gradients([new for new, _ in pairs], given, [u for _, u in pairs])
        known = [
            (b, t) for b, t in zip(back, tangents, strict=True) if b is not None and t is not None
        ]
        found = _gradients([b for b, _ in known], linear, [t for _, t in known])
    zeros = (torch.zeros_like(new) for new in news)
    return (*(z if d is None else d for d, z in zip(found, zeros, strict=True)), *news)


class _WholeNorms(TorchFunctionMode):
    """Normalises by arithmetic: of torch's own layer_norm and group_norm the derivatives above the
    first take the mean and the variance for constants."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        norms: dict[str, Callable[..., Any]] = {
            "layer_norm": _layer_norm,
            "group_norm": _group_norm,
        }
        norm = norms.get(getattr(func, "__name__", ""), func)
        return norm(*args, **(kwargs or {}))


def _layer_norm(
    x: Tensor,
    shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *_: Any,
) -> Tensor:
    axes = tuple(range(-len(shape), 0))
    x = x - x.mean(axes, keepdim=True)
    x = x * torch.rsqrt(x.square().mean(axes, keepdim=True) + eps)
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def _group_norm(
    x: Tensor,
    groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *_: Any,
) -> Tensor:
    apart = x.unflatten(1, (groups, -1)).flatten(2)
    x = _layer_norm(apart, apart.shape[2:], eps=eps).view_as(x)
    along = (-1, *(1 for _ in x.shape[2:]))
    x = x if weight is None else x * weight.view(along)
    return x if bias is None else x + bias.view(along)


def _gradients(
    of: Sequence[Tensor], by: Sequence[Tensor], given: Sequence[Tensor | None]
) -> Sequence[Tensor | None]:
    if not of:
        return [None] * len(by)
    return torch.autograd.grad(of, by, given, create_graph=True, allow_unused=True)
