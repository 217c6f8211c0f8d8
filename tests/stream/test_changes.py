"""A layer whose weights change after its Stream was made: the next call has the new ones."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rnnfast

from ..own_cells import peephole
from .layers import MISSING

pytestmark = pytest.mark.skipif(MISSING is not None, reason=str(MISSING or "built"))
X = torch.linspace(-1, 1, 6).reshape(2, 3)


def kinds() -> dict[str, Callable[[], Any]]:
    return {
        "lstm": lambda: rnnfast.LSTM(3, 8, 2),
        "bfloat16": lambda: rnnfast.GRU(3, 8, 2, dtype=torch.bfloat16),
        "own": lambda: rnnfast.Recurrent(peephole, 3, 8, 2),
    }


def _in_place(layer: nn.Module) -> None:
    with torch.no_grad():
        layer.weight_hh_l1.mul_(-1)


def _one_element(layer: nn.Module) -> None:
    with torch.no_grad():
        layer.weight_ih_l0[1, 2] += 1


def _inference(layer: nn.Module) -> None:
    with torch.inference_mode():
        layer.bias_ih_l0.add_(1)


def _optimizer(**options: Any) -> Callable[[nn.Module], None]:
    def step(layer: nn.Module) -> None:
        optimizer = torch.optim.Adam(layer.parameters(), lr=0.1, **options)
        for p in layer.parameters():
            p.grad = torch.ones_like(p)
        optimizer.step()

    return step


def _others(layer: nn.Module) -> dict[str, Tensor]:
    return {name: -value for name, value in layer.state_dict().items()}


def _swap(layer: nn.Module) -> None:
    """As ``layer.to`` does it, where that is asked to swap."""
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        layer._apply(torch.neg)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


def _data(layer: nn.Module) -> None:
    layer.weight_hh_l0.data = -layer.weight_hh_l0.data


def _past_the_counter(layer: nn.Module) -> None:
    layer.weight_hh_l0.data.mul_(-1)


def _bias_past_the_counter(layer: nn.Module) -> None:
    layer.bias_hh_l1.data.add_(1)


def _replaced(layer: nn.Module) -> None:
    layer.weight_ih_l1 = nn.Parameter(-layer.weight_ih_l1.detach())


CHANGES: dict[str, Callable[[nn.Module], Any]] = {
    "in place": _in_place,
    "one element": _one_element,
    "in inference mode": _inference,
    "optimizer": _optimizer(foreach=False),
    "foreach optimizer": _optimizer(foreach=True),
    "fused optimizer": _optimizer(fused=True),
    "load_state_dict": lambda layer: layer.load_state_dict(_others(layer)),
    "load_state_dict, assigned": lambda layer: layer.load_state_dict(_others(layer), assign=True),
    "swap_tensors": _swap,
    ".data =": _data,
    ".data in place": _past_the_counter,
    "a bias's .data in place": _bias_past_the_counter,
    "another parameter": _replaced,
    "reset_parameters": lambda layer: layer.reset_parameters(),  # type: ignore[operator]
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", kinds())
def test_a_change_is_seen_at_the_next_call(kind: str, change: str) -> None:
    layer = kinds()[kind]()
    x = X.to(layer.weight_ih_l0.dtype)
    stream = rnnfast.Stream(layer, 2)
    before = stream(x)
    state = stream.state
    stream.state = state
    unchanged = stream(x)
    CHANGES[change](layer)
    expected = rnnfast.Stream(copy.deepcopy(layer), 2)
    stream.state = state
    expected.state = state
    assert torch.equal(stream(x), expected(x))
    stream.state = state
    assert not torch.equal(stream(x), unchanged)
    assert not torch.equal(before, unchanged)


def test_a_change_keeps_the_states() -> None:
    layer = rnnfast.LSTM(3, 8, 2)
    stream = rnnfast.Stream(layer, 2)
    stream(X)
    state = stream.state
    _in_place(layer)
    stream(X[:, None].transpose(0, 1)[:0])  # no steps: packed anew, nothing else
    for found, kept in zip(stream.state, state, strict=True):
        assert torch.equal(found, kept)


def test_functional_call() -> None:
    """A call within another's forward, on weights that are there for this time."""
    layer = rnnfast.GRU(3, 8)
    stream = rnnfast.Stream(layer, 2)
    y = stream(X)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            stream.reset()
            return stream(x)

    model = Model()
    others = {name: -value.detach() for name, value in model.named_parameters()}
    swapped = torch.func.functional_call(model, others, (X,))
    expected = copy.deepcopy(layer)
    expected.load_state_dict(_others(layer))
    assert torch.equal(swapped, rnnfast.Stream(expected, 2)(X))
    stream.reset()
    assert torch.equal(stream(X), y)


def test_nothing_is_packed_without_a_change(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = rnnfast.Stream(rnnfast.LSTM(3, 8, 2), 2)
    monkeypatch.setattr(stream, "refresh", lambda: pytest.fail("packed anew"))
    for _ in range(3):
        stream(X)


def test_refresh_sees_what_a_call_can_not() -> None:
    layer = rnnfast.RNN(3, 40)
    stream = rnnfast.Stream(layer, 2)
    y = stream(X)
    layer.weight_ih_l0.data[1, 1] += 1  # one number, past the version counter
    stream.refresh()
    stream.reset()
    assert not torch.equal(stream(X), y)


def test_weights_of_another_dtype() -> None:
    layer = rnnfast.LSTM(3, 8)
    stream = rnnfast.Stream(layer, 2)
    layer.double()
    with pytest.raises(RuntimeError, match="make another"):
        stream(X)
    layer.float()
    stream(X)


def test_weights_that_can_not_be_watched() -> None:
    layer = rnnfast.LSTM(3, 8)
    nn.utils.parametrizations.weight_norm(layer, "weight_hh_l0")
    with pytest.raises(ValueError, match="weight_hh_l0 is no parameter of the layer"):
        rnnfast.Stream(layer)
    nn.utils.parametrize.remove_parametrizations(layer, "weight_hh_l0")
    rnnfast.Stream(layer)
    with torch.inference_mode():
        made = rnnfast.LSTM(3, 8)
    with pytest.raises(ValueError, match="made in inference mode"):
        rnnfast.Stream(made)
    rnnfast.Stream(copy.deepcopy(made))


def test_two_threads_on_one_stream() -> None:
    """Steps come in some order, one by one, while a third thread changes the weights."""
    layer = rnnfast.GRU(8, 32)
    stream = rnnfast.Stream(layer, 2)
    stop = threading.Event()
    failures: list[BaseException] = []

    def steps() -> None:
        x = torch.randn(2, 8)
        try:
            while not stop.is_set():
                assert stream(x).isfinite().all()
                stream.reset(torch.tensor([True, False]))
                assert stream.state.shape == (1, 2, 32)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=steps) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(200):
        with torch.no_grad():
            layer.weight_hh_l0.mul_(-1)
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures
