"""A training layer of a compiled cell in one call into C++ a pass (layer_calls.py), as
test_layer_calls.py has those of the built-in cells."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import rnnfast

from .steps.test_sums import many_heads
from .test_layer_calls import (
    check_checkpoints,
    check_many_outputs_at_once,
    check_that_changes_are_seen,
)
from .test_own_single_steps import CELLS_HERE, of, pytestmark  # noqa: F401
from .test_repeat import flat
from .test_single_steps import served

WANTED = ("all", "input", "weights", "states")
SHAPES = ((1, 1), (1, 4), (5, 3), (4, 0), (9, 33))


@pytest.fixture(autouse=True)
def _on_the_cpu(poisoned: None) -> Iterator[None]:
    torch.manual_seed(0)
    with rnnfast.use_backend("cpu"):
        yield


def states_of(layer: Any, B: int, wanted: bool) -> Any:
    made = [torch.randn(1, B, layer.hidden_size).double() for _ in layer._spec().states]
    return layer._join_hidden([s.requires_grad_(wanted) for s in made])


def all_of(layer: Any, x: Tensor, hx: Any, outputs: slice = slice(None)) -> list[Any]:
    """Outputs, last states, and the gradients of all that needs one."""
    found = flat(layer(x, hx))
    leaves = [t for t in (x, *flat(hx), *layer.parameters()) if t.requires_grad]
    loss = sum(
        (o * torch.linspace(-1, 1, o.numel(), dtype=o.dtype).view(o.shape)).sum()
        for o in found[outputs]
    )
    return [*found, *torch.autograd.grad(loss, leaves, allow_unused=True)]


def assert_equal(found: list[Any], expected: list[Any]) -> None:
    for a, b in zip(found, expected, strict=True):
        if a is None or b is None:
            assert a is b
        else:
            assert a.shape == b.shape
            assert torch.equal(a, b)


@pytest.mark.parametrize("wanted", WANTED)
@pytest.mark.parametrize("name", CELLS_HERE)
def test_it_has_the_bits_of_the_long_way(name: str, wanted: str) -> None:
    for T, B in SHAPES:
        for batch_first, given in ((False, True), (True, wanted == "states")):
            layer = of(name, 5, 12)
            layer.batch_first = batch_first
            layer.requires_grad_(wanted in ("all", "weights"))
            x = torch.randn(*((B, T) if batch_first else (T, B)), 10).double()[..., ::2]
            x.requires_grad_(wanted in ("all", "input"))
            hx = states_of(layer, B, wanted in ("all", "states")) if given else None
            expected = all_of(layer, x, hx)
            assert served(layer)
            assert_equal(all_of(layer, x, hx), expected)
            for some in (slice(1), slice(1, None)):  # y alone, the last states alone
                layer.__dict__.pop("_served")
                expected = all_of(layer, x, hx, some)
                assert_equal(all_of(layer, x, hx, some), expected)


@pytest.mark.parametrize("name", ["lstm", "three_states"])
def test_second_derivatives(name: str) -> None:
    layer = of(name, 3, 4)
    x = torch.randn(3, 2, 3, dtype=torch.float64, requires_grad=True)
    for given in (True, False):
        states = flat(states_of(layer, 2, True)) if given else []

        def found(x: Tensor, *others: Tensor, count: int = len(states)) -> Any:
            hx = layer._join_hidden(list(others[:count])) if count else None
            return tuple(flat(layer(x, hx)))

        everything = (x, *states, layer.weight_ih_l0)
        for _ in range(2):
            found(*everything)
        assert served(layer)
        assert torch.autograd.gradgradcheck(found, everything)


def test_first_states_that_need_none_under_a_second_derivative() -> None:
    layer = of("gru", 3, 4)
    x = torch.randn(3, 2, 3, dtype=torch.float64, requires_grad=True)
    hx = states_of(layer, 2, False)
    found = []
    for _ in range(2):
        (dx,) = torch.autograd.grad(layer(x, hx)[0].sin().sum(), x, create_graph=True)
        found.append(torch.autograd.grad(dx.square().sum(), [x, layer.weight_hh_l0]))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_gradients_of_many_outputs_at_once() -> None:
    """By the vmap inside torch.autograd, for which the layer's calls are scans again."""
    layer, x = of("gru", 3, 4), torch.randn(3, 2, 3, dtype=torch.float64)
    for _ in range(2):
        layer(x.requires_grad_())
    assert served(layer)
    check_many_outputs_at_once(layer, x)


def test_a_checkpoint_and_what_was_changed_since() -> None:
    layer, x = of("lstm", 3, 4), torch.randn(3, 2, 3).double().requires_grad_()
    (dx,) = torch.autograd.grad(layer(x)[0].sum(), x)
    check_checkpoints(layer, x, dx)
    check_that_changes_are_seen(layer, x, layer.weight_hh_l0)


def test_what_is_trained_the_long_way() -> None:
    """More heads than one pass of sums takes."""
    layer = rnnfast.Recurrent(many_heads, 3, 64).double()
    x = torch.randn(4, 2, 3, dtype=torch.float64)
    first = all_of(layer, x, None)
    assert not served(layer)
    assert_equal(all_of(layer, x, None), first)
    with torch.no_grad():
        y = [layer(x)[0] for _ in range(2)]
    assert served(layer)
    assert torch.equal(y[0], first[0])
    assert torch.equal(y[1], first[0])


def test_steps_of_an_optimizer() -> None:
    """The weights of each call are read, and so are those of its backward."""
    ours, long = of("peephole", 5, 8), of("peephole", 5, 8)
    long.load_state_dict(ours.state_dict())
    x = torch.randn(4, 3, 5, dtype=torch.float64)
    for layer in (ours, long):
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        for _ in range(4):
            if layer is long:
                layer.__dict__.pop("_served", None)
            optimizer.zero_grad()
            layer(x)[0].square().sum().backward()
            optimizer.step()
    assert served(ours)
    for a, b in zip(ours.parameters(), long.parameters(), strict=True):
        assert torch.equal(a, b)
