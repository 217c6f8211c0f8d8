"""Arguments, warnings and errors of the clipping functions: torch.nn.utils', or told in docs."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rnnfast

from .lists import INF, NAN, copies, mixed, parameters

FUNCTIONS = ("clip_grad_norm_", "get_total_norm", "clip_grads_with_norm_", "clip_grad_value_")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_signatures(name: str) -> None:
    def shape(function: Callable[..., Any]) -> list[tuple[str, Any]]:
        return [(p.name, p.default) for p in inspect.signature(function).parameters.values()]

    assert shape(getattr(rnnfast, name)) == shape(getattr(nn.utils, name))


def outcome(function: Callable[[], Any]) -> Any:
    """What it returns, or the error's name and first line."""
    try:
        return function()
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"


def test_empty_generator_warns_once_and_at_the_caller() -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        norm = rnnfast.clip_grad_norm_((p for p in ()), 1.0)
    assert [w.filename for w in seen] == [__file__]
    assert "empty generator" in str(seen[0].message)
    assert torch.equal(norm, torch.tensor(0.0))


@pytest.mark.parametrize("empty", [[], (), parameters([None, None])])
def test_nothing_to_clip(empty: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(rnnfast.clip_grad_norm_(empty, 1.0), torch.tensor(0.0))
    assert torch.equal(rnnfast.get_total_norm([]), torch.tensor(0.0))
    assert rnnfast.clip_grads_with_norm_(empty, 1.0, torch.tensor(1.0)) is None
    assert rnnfast.clip_grad_value_(empty, 1.0) is None


def test_one_tensor_a_generator_and_numbers_as_text() -> None:
    for wrap in (lambda p: p, lambda p: [p], lambda p: (q for q in [p])):
        (parameter,) = parameters([torch.tensor([3.0, 4.0])])
        assert rnnfast.clip_grad_norm_(wrap(parameter), "10", "2") == 5
        assert rnnfast.clip_grad_norm_(wrap(parameter), torch.tensor(2.0), "inf") == 4
        torch.testing.assert_close(parameter.grad, torch.tensor([1.5, 2.0]))
    assert rnnfast.get_total_norm(torch.tensor([3.0, 4.0])) == 5


@pytest.mark.parametrize("foreach", [None, True, False])
def test_foreach_changes_nothing(foreach: bool | None) -> None:
    (parameter,) = parameters([torch.tensor([3.0, 4.0])])
    assert rnnfast.clip_grad_norm_(parameter, 2.5, foreach=foreach) == 5
    torch.testing.assert_close(parameter.grad, torch.tensor([1.5, 2.0]))
    rnnfast.clip_grad_value_(parameter, 1.75, foreach)
    torch.testing.assert_close(parameter.grad, torch.tensor([1.5, 1.75]))


@pytest.mark.parametrize("bad", [INF, NAN])
@pytest.mark.parametrize("p", [2.0, INF, 3.0])
def test_error_if_nonfinite(p: float, bad: float) -> None:
    grads = [torch.ones(3), torch.tensor([1.0, bad], dtype=torch.bfloat16)]
    ours, theirs = parameters(copies(grads)), parameters(copies(grads))
    found = outcome(lambda: rnnfast.clip_grad_norm_(ours, 1.0, p, error_if_nonfinite=True))
    expected = outcome(lambda: nn.utils.clip_grad_norm_(theirs, 1.0, p, error_if_nonfinite=True))
    assert found == expected
    assert found.startswith("RuntimeError: The total norm of order")
    for parameter, grad in zip(ours, grads, strict=True):
        torch.testing.assert_close(parameter.grad, grad, rtol=0, atol=0, equal_nan=True)
    again = outcome(lambda: rnnfast.get_total_norm(grads, p, error_if_nonfinite=True))
    assert again == expected


def test_error_if_nonfinite_of_finite_gradients_clips() -> None:
    (parameter,) = parameters([torch.tensor([3.0, 4.0])])
    assert rnnfast.clip_grad_norm_(parameter, 2.5, error_if_nonfinite=True) == 5
    torch.testing.assert_close(parameter.grad, torch.tensor([1.5, 2.0]))


def odd_lists() -> dict[str, Callable[[], list[Tensor]]]:
    return {
        "sparse": lambda: [torch.sparse_coo_tensor([[0, 2]], [3.0, 4.0], (3,))],
        "complex": lambda: [torch.ones(3), torch.tensor([3 + 4j])],
        "negated view": lambda: [torch.tensor([3 + 4j]).conj().imag],
        "expanded": lambda: [torch.ones(1).expand(4)],
        "meta": lambda: [torch.ones(3, device="meta")],
        "empty": lambda: [torch.ones(3), torch.ones(0)],
        "subclass": lambda: [nn.Buffer(torch.ones(3)), torch.ones(2)],
    }


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.parametrize("kind", odd_lists())
@pytest.mark.parametrize("p", [2.0, INF, 0.0, -1.0, -INF, NAN])
def test_odd_gradients_as_torch(kind: str, p: float) -> None:
    make = odd_lists()[kind]

    def clipped(module: Any) -> Any:
        made = make()
        holders = [nn.Parameter(torch.zeros(0)) for _ in made]
        for holder, grad in zip(holders, made, strict=True):
            holder.__class__ = _Holder
            holder.held = grad
        norm = outcome(lambda: module.clip_grad_norm_(holders, 1.0, p))
        value = outcome(lambda: module.clip_grad_value_(holders, 0.25))
        return norm, value, [g.to_dense() if g.is_sparse else g for g in made]

    for found, expected in zip(clipped(rnnfast), clipped(nn.utils), strict=True):
        if isinstance(expected, str) or expected is None or kind == "meta":
            assert str(found) == str(expected)
        else:
            torch.testing.assert_close(found, expected, equal_nan=True)


class _Holder(nn.Parameter):
    """A parameter that has any gradient, also one that torch would not let it have."""

    @property
    def grad(self) -> Tensor:  # type: ignore[override]
        return self.held


@pytest.mark.parametrize("bound", [0.5, -0.5, 0.0, INF, NAN, 1e6])
@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_clip_grad_value(bound: float, dtype: torch.dtype | None) -> None:
    grads = mixed(dtype)
    for grad in grads:
        if grad is not None and grad.dim() == 1 and grad.numel() > 3:
            grad[:3] = torch.tensor([NAN, INF, -INF], dtype=grad.dtype)
    ours, theirs = parameters(copies(grads)), parameters(copies(grads))
    found = outcome(lambda: rnnfast.clip_grad_value_(ours, bound))
    assert found == outcome(lambda: nn.utils.clip_grad_value_(theirs, bound))
    for a, b in zip(ours, theirs, strict=True):
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_clip_grads_with_norm(dtype: torch.dtype) -> None:
    grads = mixed()
    ours, theirs = parameters(copies(grads)), parameters(copies(grads))
    total = torch.tensor(8.0, dtype=dtype)
    rnnfast.clip_grads_with_norm_(ours, 2.0, total)
    nn.utils.clip_grads_with_norm_(theirs, 2.0, total)
    for a, b in zip(ours, theirs, strict=True):
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad)


def test_versions_grow_so_that_autograd_sees_the_write() -> None:
    for clip in (
        lambda p: rnnfast.clip_grad_norm_(p, 1.0),
        lambda p: rnnfast.clip_grad_norm_(p, 1e9),
        lambda p: rnnfast.clip_grads_with_norm_(p, 1.0, torch.tensor(5.0)),
        lambda p: rnnfast.clip_grad_value_(p, 1.0),
    ):
        (parameter,) = parameters([torch.tensor([3.0, 4.0])])
        before = parameter.grad._version
        clip(parameter)
        assert parameter.grad._version > before
    before = parameter.grad._version
    rnnfast.get_total_norm(parameter.grad)
    assert parameter.grad._version == before


def test_gradients_with_a_graph_of_their_own() -> None:
    x = torch.tensor([3.0, 4.0], requires_grad=True)
    y = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    (grad,) = torch.autograd.grad((x * y * y).sum(), y, create_graph=True)
    y.grad = grad
    norm = rnnfast.clip_grad_norm_(y, 1.0)
    assert not norm.requires_grad
    torch.testing.assert_close(y.grad.norm().detach(), torch.tensor(1.0))


def test_a_training_loop() -> None:
    """The same losses as with torch's function."""

    def losses(clip: Callable[..., Any]) -> list[float]:
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        optimizer = torch.optim.Adam(model.parameters(), 0.1)
        x, found = torch.randn(16, 4), []
        for _ in range(20):
            optimizer.zero_grad()
            loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
            loss.backward()
            clip(model.parameters(), 0.5)
            optimizer.step()
            found.append(float(loss.detach()))
        return found

    assert losses(rnnfast.clip_grad_norm_) == pytest.approx(
        losses(nn.utils.clip_grad_norm_), rel=1e-4
    )


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize(
    "clip", [lambda c, p: c.clip_grad_norm_(p, 0.1), lambda c, p: c.clip_grad_value_(p, 0.1)]
)
def test_gradients_made_in_inference_mode(clip: Callable[..., Any], inside: bool) -> None:
    """May be written to within it only; torch says so, and nothing is written."""

    def found(clipping: Any) -> tuple[Any, Tensor]:
        parameter = nn.Parameter(torch.zeros(3))
        with torch.inference_mode():
            parameter.grad = torch.ones(3)
        with torch.inference_mode(inside):
            said = outcome(lambda: clip(clipping, [parameter]))
        return said, parameter.grad.clone()

    (ours, of_ours), (theirs, of_torch) = found(rnnfast), found(nn.utils)
    assert isinstance(ours, str) == isinstance(theirs, str) == (not inside)
    if not inside:
        assert ours == theirs
    torch.testing.assert_close(of_ours, of_torch)
