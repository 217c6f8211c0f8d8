"""Lists of parameters with gradients, and what torch and exact sums make of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
INF = math.inf
NAN = math.nan


def parameters(grads: Sequence[Tensor | None]) -> list[nn.Parameter]:
    """A parameter for each gradient, whose strides it may differ from."""
    made = []
    for grad in grads:
        like = torch.zeros(3) if grad is None else torch.zeros_like(grad)
        parameter = nn.Parameter(like)
        parameter.grad = grad
        made.append(parameter)
    return made


def copies(grads: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The same values, strides and offsets in memory of their own, NaN between the elements."""
    return [None if g is None else _copy(g) for g in grads]


def _copy(grad: Tensor) -> Tensor:
    elements = grad.untyped_storage().nbytes() // grad.element_size()
    memory = torch.full((elements,), NAN, dtype=grad.dtype)
    return memory.as_strided(grad.shape, grad.stride(), grad.storage_offset()).copy_(grad)


def strided(values: Tensor) -> Tensor:
    """The same values, every second element of a NaN-filled tensor, off any 16-byte boundary."""
    wide = torch.full((*values.shape[:-1], 2 * values.shape[-1] + 1), NAN, dtype=values.dtype)
    view = wide[..., 1::2]
    view.copy_(values)
    return view


def exact_norm(grads: Sequence[Tensor | None], p: float) -> float:
    """By the standard library's exact sums, in float64; scaled so that nothing overflows."""
    values = torch.cat([g.double().reshape(-1) for g in grads if g is not None]).abs()
    largest = float(values.max()) if values.numel() else 0.0
    if p == INF or largest == 0:
        return largest
    return largest * math.fsum(((values / largest) ** p).tolist()) ** (1 / p)


def mixed(dtype: torch.dtype | None = None) -> list[Tensor | None]:
    """Sizes and layouts of every kind; of all four dtypes in turn, or of one."""
    g = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        kind = dtype or FLOATS[len(made) % 4]
        return torch.randn(shape, generator=g, dtype=torch.float64).to(kind)

    made: list[Tensor | None] = []
    for shape in ((1000,), (33, 7), (), (40_000,), (0,), (3, 4, 5), (1,), (17, 300)):
        made.append(normal(*shape))
    made.append(normal(11, 13).t())
    made.append(strided(normal(6, 9)))
    made.append(strided(normal(4, 5)).t())
    made.append(normal(70)[3:])
    made.append(None)
    made.append(normal(2, 5, 4, 3).to(memory_format=torch.channels_last))
    made.append(normal(8, 6, 5)[:, 1:4].transpose(0, 2))
    return made
