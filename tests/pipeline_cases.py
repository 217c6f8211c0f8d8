"""Layers on top of one another and all that comes out of them: for the backend ``cuda`` on a
device, and for ``simt``, the same kernels on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor

import rnnfast

from .cuda_cases import RESIDENT_CELLS
from .layers import makers

LAYERS = {cell: make for cell, make in makers().items() if cell in RESIDENT_CELLS}


def results(layer: torch.nn.Module, x: Tensor, backend: str, **more: Tensor) -> dict[str, Tensor]:
    """Outputs, final states and the gradients of all, as ``layer`` computes them."""
    torch.manual_seed(7)
    x = x.clone().requires_grad_(x.is_floating_point())
    hx = layer_state(layer, x)
    with rnnfast.use_backend(backend):
        y, final = layer(x, hx if len(hx) > 1 else hx[0], **more)
    states = final if isinstance(final, tuple) else (final,)
    found = {"y": y, **{f"state {i}": s for i, s in enumerate(states)}}
    loss = sum((v.float() * torch.randn(v.shape, device=v.device)).sum() for v in found.values())
    wanted = {"x": x} if x.requires_grad else {}
    wanted |= {f"state {i} before": s for i, s in enumerate(hx)} | dict(layer.named_parameters())
    grads = torch.autograd.grad(loss, list(wanted.values()))
    return {**found, **{f"grad of {n}": g for n, g in zip(wanted, grads, strict=True)}}


def layer_state(layer: torch.nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    dtype = layer.weight_hh_l0.dtype
    count = 2 if isinstance(layer, rnnfast.LSTM) else 1
    shape = (layer.num_layers, x.shape[1], layer.hidden_size)
    return tuple(
        torch.randn(shape, dtype=dtype, device=x.device).requires_grad_() for _ in range(count)
    )


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Bit by bit."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def assert_alike(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Up to the rounding of torch's products, which may depend on how many rows there are: the
    kernels between them give the same bits."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        bound = 4 * torch.finfo(value.dtype).eps * float(value.detach().abs().max())
        off = float((found[name] - value).detach().abs().max())
        assert off <= bound, f"{name}: off by {off:.3e}, allowed {bound:.3e}"
