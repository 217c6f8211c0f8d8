"""The ops: what a compiler and other observers of torch's calls see."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import rnnfast

from .lists import copies, mixed, parameters


def some_gradients() -> list[Tensor]:
    return [g for g in mixed(torch.float32) if g is not None and 0 < g.numel() < 5000]


@pytest.mark.parametrize("p", [2.0, float("inf"), 3.0])
def test_compiled_in_one_graph(p: float) -> None:
    torch._dynamo.reset()

    @torch.compile(fullgraph=True)
    def clip(ps: list[nn.Parameter]) -> Tensor:
        return rnnfast.clip_grad_norm_(ps, 1.5, p)

    grads = some_gradients()
    ours, eager = parameters(copies(grads)), parameters(copies(grads))
    torch.testing.assert_close(clip(ours), rnnfast.clip_grad_norm_(eager, 1.5, p))
    for a, b in zip(ours, eager, strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_the_other_functions_compiled() -> None:
    torch._dynamo.reset()

    @torch.compile(fullgraph=True)
    def clip(ps: list[nn.Parameter]) -> Tensor:
        norm = rnnfast.get_total_norm([p.grad for p in ps])
        rnnfast.clip_grads_with_norm_(ps, 1.5, norm)
        rnnfast.clip_grad_value_(ps, 0.01)
        return norm

    grads = some_gradients()
    ours, eager = parameters(copies(grads)), parameters(copies(grads))
    norm = rnnfast.clip_grad_norm_(eager, 1.5)
    rnnfast.clip_grad_value_(eager, 0.01)
    torch.testing.assert_close(clip(ours), norm)
    for a, b in zip(ours, eager, strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_compiled_with_gradients_that_have_no_kernel() -> None:
    torch._dynamo.reset()

    @torch.compile(fullgraph=True)
    def clip(ps: list[nn.Parameter]) -> Tensor:
        return rnnfast.clip_grad_norm_(ps, 1.0)

    (ours,) = parameters([torch.tensor([3 + 4j])])
    torch.testing.assert_close(clip([ours]), torch.tensor(5.0))
    torch.testing.assert_close(ours.grad, torch.tensor([0.6 + 0.8j]))


class Seen(TorchDispatchMode):
    """The names of all ops that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def test_observers_see_one_op() -> None:
    grads = some_gradients()
    ours, eager = parameters(copies(grads)), parameters(copies(grads))
    with Seen() as seen:
        norm = rnnfast.clip_grad_norm_(ours, 1.0)
    assert seen.names == ["rnnfast.clip_norm_.default"]
    assert torch.equal(norm, rnnfast.clip_grad_norm_(eager, 1.0))
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(ours, eager, strict=True))


OPS = torch.ops.rnnfast
SAMPLES = (
    (OPS.clip_norm_.default, lambda g: (g, 1.0, 2.0)),
    (OPS.clip_total_norm.default, lambda g: (g, 1.0)),
    (OPS.clip_scale_.default, lambda g: (g, torch.tensor(3.0), 1.0)),
    (OPS.clip_value_.default, lambda g: (g, 0.5)),
)


@pytest.mark.parametrize(("op", "arguments"), SAMPLES, ids=lambda v: str(v) if v in OPS else "")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(op, arguments, dtype: torch.dtype) -> None:
    grads = [torch.randn(3, 4, dtype=dtype), torch.randn(5).double(), torch.randn(6).to(dtype)[1:]]
    torch.library.opcheck(op, arguments(grads))


@pytest.mark.parametrize(("op", "arguments"), SAMPLES, ids=lambda v: str(v) if v in OPS else "")
def test_ops_without_the_kernels(op, arguments, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing was compiled, the ops are torch's code."""
    grads = some_gradients()
    ours, theirs = copies(grads), copies(grads)
    expected = op(*arguments(ours))
    monkeypatch.setattr("rnnfast.clip.kernels.of_device", lambda device: None)
    found = op(*arguments(theirs))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(ours, theirs)
