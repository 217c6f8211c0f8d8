"""The two layers that a case compares, with the same weights and the same input."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .cases import Case

MODES = ("train", "forward")
CANDIDATES = ("rnnfast", "torch.nn")


@dataclass
class LayerWork:
    """One call of a layer: forward and backward (`train`), or forward without gradients.

    x: [T, B, I], a leaf; dy: [T, B, H], the gradient that arrives at the output. No gradient
    arrives at the final states, as in most training loops.
    """

    layer: nn.Module
    x: Tensor
    dy: Tensor
    mode: str

    def prepare(self) -> None:
        for leaf in (self.x, *self.layer.parameters()):
            leaf.grad = None

    def __call__(self) -> Any:
        if self.mode == "forward":
            with torch.no_grad():
                return self.layer(self.x)
        y, state = self.layer(self.x)
        y.backward(self.dy)
        return y, state

    def to(self, dtype: torch.dtype) -> LayerWork:
        """A copy whose layer and data are of `dtype`."""
        x = self.x.detach().to(dtype).requires_grad_(self.x.requires_grad)
        return LayerWork(copy.deepcopy(self.layer).to(dtype), x, self.dy.to(dtype), self.mode)


def build(
    case: Case, candidate: str, *, dtype: torch.dtype, device: str, mode: str, seed: int = 0
) -> tuple[LayerWork, LayerWork]:
    """The torch.nn side of a case and the candidate's side of it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer = getattr(nn, case.class_name)(case.I, case.H)
        x = torch.randn(case.T, case.B, case.I)
        dy = torch.randn(case.T, case.B, case.H)
    reference = layer.to(device=device, dtype=dtype)
    layer_class = getattr(_namespace(candidate), case.class_name)
    layer = layer_class(case.I, case.H, device=device, dtype=dtype)
    layer.load_state_dict(reference.state_dict())
    return _work(reference, x, dy, mode), _work(layer, x, dy, mode)


def _work(layer: nn.Module, x: Tensor, dy: Tensor, mode: str) -> LayerWork:
    weight = next(layer.parameters())
    own_x = x.to(device=weight.device, dtype=weight.dtype, copy=True)
    return LayerWork(layer, own_x.requires_grad_(mode == "train"), dy.to(own_x), mode)


def _namespace(candidate: str) -> Any:
    if candidate == "torch.nn":
        return nn
    import rnnfast  # an A/A run measures without it

    return rnnfast


def use_backend(candidate: str, backend: str) -> AbstractContextManager[Any]:
    """Makes the candidate's layers run on `backend`; torch.nn has nothing to choose."""
    return nullcontext() if candidate == "torch.nn" else _namespace(candidate).use_backend(backend)


def choose_backend(
    candidate: str, backend: str, work: LayerWork, *, torch_only: bool = False
) -> tuple[str, str]:
    """The backend to ask for and the one that then runs `work`.

    torch_only: where `auto` would take another backend than `torch`, ask for `torch` by name.
    """
    if candidate == "torch.nn":
        return "", "torch.nn"
    taken = _taken(backend, work)
    if torch_only and taken != "torch":
        return "torch", _taken("torch", work)
    return backend, taken


def _taken(backend: str, work: LayerWork) -> str:
    rnnfast = _namespace("rnnfast")
    with rnnfast.use_backend(backend), torch.set_grad_enabled(work.mode == "train"):
        (choice,) = rnnfast.explain(work.layer, work.x).choices
    return choice.chosen or ""
