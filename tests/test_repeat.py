"""The short way of a call like the one before (repeat.py), of built-in cells and of others: it is
taken, gives what the long way gives, and is left when anything changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rnnfast
from rnnfast import _ext, library, repeat

from . import own_cells

pytestmark = [
    pytest.mark.skipif(_ext.why_no_cpu() is not None, reason=str(_ext.why_no_cpu() or "built")),
    pytest.mark.skipif(
        library.why_not() is not None, reason=f"nothing compiles here: {library.why_not()}"
    ),
]
T, B, I, H = 5, 3, 4, 6
LAYERS: dict[str, Callable[[], Any]] = {
    "built-in": lambda: rnnfast.GRU(I, H),
    "built-in, two layers": lambda: rnnfast.LSTM(I, H, 2, bidirectional=True),
    "own": lambda: rnnfast.Recurrent(own_cells.lstm, I, H),
    "own, bidirectional": lambda: rnnfast.Recurrent(own_cells.gru, I, H, bidirectional=True),
    "of the family": lambda: rnnfast.LayerNormLSTM(I, H),
}
Taken = list[bool]


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> Taken:
    """Of each call of a layer whether it took the short way."""
    found: Taken = []
    call, facts = repeat.call, repeat.facts

    def told(*args: Any) -> Any:
        result = call(*args)
        found[-1] = result is not None
        return result

    def asked(*args: Any) -> Any:
        found.append(False)
        return facts(*args)

    monkeypatch.setattr(repeat, "call", told)
    monkeypatch.setattr(repeat, "facts", asked)
    return found


def flat(outputs: Any) -> list[Tensor]:
    return [t for t in torch.utils._pytree.tree_leaves(outputs) if isinstance(t, Tensor)]


def found_by(layer: Any, x: Tensor, *hx: Any) -> list[Tensor]:
    """Outputs, states, and gradients of the weights."""
    outputs = flat(layer(x, *hx))
    if not torch.is_grad_enabled():
        return outputs
    weights = list(layer.parameters())
    return [*outputs, *torch.autograd.grad(sum(o.sum() for o in outputs), weights)]


def assert_equal(found: list[Tensor], expected: list[Tensor]) -> None:
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("grad", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("name", LAYERS)
def test_the_second_call_takes_it(name: str, grad: bool, taken: Taken) -> None:
    layer, x = LAYERS[name](), torch.randn(T, B, I)
    with rnnfast.use_backend("cpu"), torch.set_grad_enabled(grad):
        first = found_by(layer, x)
        assert_equal(found_by(layer, x), first)
    assert taken == [False, True]


CHANGES: dict[str, Callable[[Any, Tensor], tuple[Any, ...]]] = {
    "steps": lambda layer, x: (x[1:],),
    "sequences": lambda layer, x: (x[:, 1:],),
    "no batch": lambda layer, x: (x[:, 0],),
    "tokens": lambda layer, x: (torch.randint(0, I, (T, B)),),
    "clipping in time": lambda layer, x: (setattr(layer, "grad_clip_time", 0.01), x)[1:],
    "checkpoints": lambda layer, x: (setattr(layer, "checkpoint_every", 2), x)[1:],
    "dtype": lambda layer, x: (layer.double(), x.double())[1:],
    "initial states": lambda layer, x: (x, layer(x)[1]),
    "no gradients": lambda layer, x: (layer.requires_grad_(False), x)[1:],
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", LAYERS)
def test_it_is_left_when_something_changes(name: str, change: str, taken: Taken) -> None:
    layer, x = LAYERS[name](), torch.randn(T, B, I)
    with rnnfast.use_backend("cpu"):
        for _ in range(2):
            layer(x)
        args = CHANGES[change](layer, x)
        taken.clear()
        found = flat(layer(*args))
        assert taken in ([False], [])  # or it was not even asked for
        layer.__dict__.pop("_served")
        assert_equal(found, flat(layer(*args)))


@pytest.mark.parametrize("name", LAYERS)
def test_other_values_of_weights_are_read(name: str, taken: Taken) -> None:
    layer, other, x = LAYERS[name](), LAYERS[name](), torch.randn(T, B, I)
    with rnnfast.use_backend("cpu"):
        for _ in range(2):
            layer(x)
        layer.load_state_dict(other.state_dict())
        found = found_by(layer, x)
        assert taken[-1]
        assert_equal(found, found_by(other, x))


@pytest.mark.parametrize("name", LAYERS)
def test_a_weight_of_another_shape_is_refused(name: str) -> None:
    """Whose memory would be read beyond its end."""
    names = [weight for weight, _ in LAYERS[name]().named_parameters()]
    for weight in names[1:]:  # the first is one of the facts
        layer, x = LAYERS[name](), torch.randn(T, B, I)
        with rnnfast.use_backend("cpu"):
            for _ in range(2):
                layer(x)
            old = getattr(layer, weight)
            setattr(layer, weight, nn.Parameter(old.detach()[:-1].clone()))
            with pytest.raises((ValueError, RuntimeError), match=r"shape|size|square"):
                layer(x)


def test_a_transform_leaves_it(taken: Taken) -> None:
    layer, x = LAYERS["own"](), torch.randn(2, T, B, I)
    with rnnfast.use_backend("cpu"):
        for _ in range(2):
            layer(x[0])
        taken.clear()
        found = torch.func.vmap(lambda one: layer(one)[0])(x)
        assert not any(taken)
        expected = torch.stack([layer(one)[0] for one in x])
    torch.testing.assert_close(found, expected)
