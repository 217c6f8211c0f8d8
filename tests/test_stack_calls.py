"""Layers on top of one another and both directions by one call into C++ a pass and row
(stack_calls.py), as test_layer_calls.py has a layer of one direction."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rnnfast
from rnnfast import _ext, library
from rnnfast.products import multiply
from rnnfast.stack_calls import StackCall

from . import own_cells
from .test_layer_calls import (
    LAYERS,
    WANTED,
    Zero,
    all_of,
    check_checkpoints,
    check_many_outputs_at_once,
    check_that_changes_are_seen,
)
from .test_repeat import flat

why_not = _ext.why_no_cpu() or (None if multiply.is_faster() else "torch's products are faster")
pytestmark = pytest.mark.skipif(why_not is not None, reason=str(why_not or "built"))
compiles = pytest.mark.skipif(
    library.why_not() is not None, reason=f"nothing compiles here: {library.why_not()}"
)

OWN = {
    "own": lambda *sizes, **how: rnnfast.Recurrent(own_cells.lstm, *sizes, **how),
    "three states": lambda *sizes, **how: rnnfast.Recurrent(own_cells.three_states, *sizes, **how),
}
EVERY = {**LAYERS, **OWN}
NAMES = [*LAYERS, *(pytest.param(name, marks=compiles) for name in OWN)]
STACKS = ((2, False), (1, True), (2, True), (3, True))
SHAPES = ((1, 1, 4, 8), (5, 3, 2, 8), (4, 0, 4, 8), (17, 33, 9, 8))


@pytest.fixture(autouse=True)
def _on_the_cpu(poisoned: None) -> Iterator[None]:
    torch.manual_seed(0)
    with rnnfast.use_backend("cpu"):
        yield


def of(name: str, I: int, H: int, stack: tuple[int, bool] = (2, True), **how: Any) -> Any:
    """Cells of one's own in float64, which is what is compiled for other tests as well."""
    layer = EVERY[name](I, H, num_layers=stack[0], bidirectional=stack[1], **how)
    return layer.double() if name in OWN else layer


def served(layer: Any) -> bool:
    return layer._served is not None and type(layer._served[1]) is StackCall


def states_of(layer: Any, B: int, wanted: bool = False) -> Any:
    rows, dtype = layer.num_layers * (1 + layer.bidirectional), layer.weight_ih_l0.dtype
    made = [torch.randn(rows, B, width).to(dtype) for width in layer._state_widths()]
    return layer._join_hidden([s.requires_grad_(wanted) for s in made])


def input_of(layer: Any, T: int, B: int, wanted: bool = False) -> Tensor:
    sizes = (B, T) if layer.batch_first else (T, B)
    x = torch.randn(*sizes, layer.input_size, dtype=layer.weight_ih_l0.dtype)
    return x.requires_grad_(wanted)


def assert_equal(found: list[Tensor], expected: list[Tensor]) -> None:
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("wanted", WANTED)
@pytest.mark.parametrize("name", NAMES)
def test_it_has_the_bits_of_the_long_way(
    name: str, wanted: str, stack: tuple[int, bool], dtype: torch.dtype
) -> None:
    if name in OWN and dtype != torch.float64:
        pytest.skip("cells of one's own are compiled in float64 for these tests")
    for T, B, I, H in SHAPES:
        for batch_first, bias, given in ((False, True, True), (True, False, wanted == "states")):
            layer = of(name, I, H, stack, bias=bias or name in OWN, batch_first=batch_first)
            layer.to(dtype).requires_grad_(wanted in ("all", "weights"))
            x = input_of(layer, T, B, wanted in ("all", "input"))
            hx = states_of(layer, B, wanted in ("all", "states")) if given else None
            for only_y in (False, True):
                layer.__dict__.pop("_served", None)
                expected = all_of(layer, x, hx, only_y)
                assert served(layer)
                assert_equal(all_of(layer, x, hx, only_y), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("name", LAYERS)
def test_without_gradients(name: str, stack: tuple[int, bool], dtype: torch.dtype) -> None:
    layer = of(name, 5, 9, stack).to(dtype)
    for T, B in ((1, 1), (4, 3), (3, 0)):
        for hx in (None, states_of(layer, B)):
            x = torch.randn(T, B, 10, dtype=dtype)[..., ::2]
            for context in (torch.no_grad, torch.inference_mode):
                with context():
                    expected = flat(layer(x, hx))
                    assert served(layer)
                    found = flat(layer(x, hx))
                    assert_equal(found, expected)
                    for one in flat(layer(x, hx)):  # nobody else's
                        one.detach_().zero_()
                    assert_equal(flat(layer(x, hx)), found)


PARTS = ("weight_hh_l0", "bias_ih_l0_reverse", "weight_ih_l1", "weight_hh_l1_reverse")


@pytest.mark.parametrize("part", PARTS)
def test_gradients_of_some_weights(part: str) -> None:
    """What lies below the others needs no gradient then."""
    layer, x = of("gru", 3, 4), torch.randn(4, 2, 3)
    layer.requires_grad_(False)
    getattr(layer, part).requires_grad_()
    expected = all_of(layer, x, None)
    assert served(layer)
    assert_equal(all_of(layer, x, None), expected)
    layer.requires_grad_(True)
    for _ in range(2):  # asked for by whoever calls backward alone
        loss = layer(x)[0].square().sum()
        (found,) = torch.autograd.grad(loss, getattr(layer, part), retain_graph=True)
        (again,) = torch.autograd.grad(loss, [getattr(layer, part)])
        assert torch.equal(found, again)
    layer.zero_grad()
    layer(x)[0].square().sum().backward()
    assert torch.equal(getattr(layer, part).grad, found)
    assert all(p.grad is not None for p in layer.parameters())


@pytest.mark.parametrize("stack", STACKS[:3])
@pytest.mark.parametrize("name", ["tanh", "gru", "projected", pytest.param("own", marks=compiles)])
def test_second_derivatives(name: str, stack: tuple[int, bool]) -> None:
    layer = of(name, 2, 4, stack).double()
    x, states = input_of(layer, 2, 2, True), flat(states_of(layer, 2, True))

    def run(x: Tensor, *others: Tensor) -> Any:
        return tuple(flat(layer(x, layer._join_hidden(list(others[: len(states)])))))

    everything = (x, *states, *layer.parameters())
    for _ in range(2):
        run(*everything)
    assert served(layer)
    assert torch.autograd.gradcheck(run, everything)
    assert torch.autograd.gradgradcheck(run, everything)


def test_second_derivatives_without_states() -> None:
    layer = of("lstm", 2, 3).double()
    x, found = input_of(layer, 3, 2, True), []
    for _ in range(2):
        (dx,) = torch.autograd.grad(layer(x)[0].sin().sum(), x, create_graph=True)
        found.append(torch.autograd.grad(dx.square().sum(), [x, *layer.parameters()]))
    assert served(layer)
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_gradients_of_many_outputs_at_once() -> None:
    """By the vmap inside torch.autograd."""
    layer = of("gru", 3, 4).double()
    x = input_of(layer, 3, 2, True)
    for _ in range(2):
        layer(x)
    assert served(layer)
    check_many_outputs_at_once(layer, x)


def test_a_checkpoint_and_what_was_changed_since() -> None:
    layer, x = of("lstm", 3, 4), torch.randn(3, 2, 3, requires_grad=True)
    (dx,) = torch.autograd.grad(layer(x)[0].sum(), x)
    check_checkpoints(layer, x, dx)
    check_that_changes_are_seen(layer, x, layer.weight_hh_l1)
    one_way = of("lstm", 3, 4, (2, False))
    for _ in range(2):
        y, _ = one_way(x)
    y.relu_()
    with pytest.raises(RuntimeError, match="save their input, weights and output"):
        y.sum().backward()


def test_backward_twice_and_under_autocast() -> None:
    layer, x = of("gru", 3, 4), torch.randn(3, 2, 3, requires_grad=True)
    for _ in range(2):
        loss = layer(x)[0].sum()
    (first,) = torch.autograd.grad(loss, x, retain_graph=True)
    with torch.autocast("cpu", torch.bfloat16):
        (found,) = torch.autograd.grad(loss, x)
    assert torch.equal(found, first)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


@pytest.mark.parametrize("name", ["tanh", "gru", "lstm"])
def test_tensors_of_zeros_that_have_no_memory(name: str) -> None:
    layer, x = of(name, 3, 4), torch.randn(3, 2, 3, requires_grad=True)
    for which in range(2 if name != "lstm" else 3):
        outputs = flat(layer(x))
        rest = sum(o.sum() for k, o in enumerate(outputs) if k != which)
        (expected,) = torch.autograd.grad(rest, x)
        for _ in range(2):
            outputs = flat(layer(x))
            outputs[which] = Zero.apply(outputs[which])
            (found,) = torch.autograd.grad(sum(o.sum() for o in outputs), x)
            torch.testing.assert_close(found, expected)
    if name != "lstm":
        x, zeros = x.detach(), torch.zeros(4, 2, 4)
        for _ in range(2):
            expected = layer(x, zeros)[0]
        assert served(layer)
        assert torch.equal(layer(x, torch._efficientzerotensor((4, 2, 4)))[0], expected)


def test_dropout_between_layers_goes_the_long_way() -> None:
    layer, x = of("gru", 3, 16, dropout=0.5), torch.randn(4, 5, 3)
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(layer(x)[0])
        assert not served(layer)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    layer.eval()
    without = [layer(x)[0] for _ in range(2)]
    assert served(layer)
    assert torch.equal(*without)
    layer.train()
    torch.manual_seed(0)
    assert torch.equal(layer(x)[0], found[0])
    one = of("gru", 3, 4, (1, True))
    one.dropout = 0.5  # of no effect
    one(x)
    assert served(one)


@pytest.mark.parametrize("grad", [True, False])
def test_a_weight_of_an_upper_row_that_no_longer_fits(grad: bool) -> None:
    """Found when rows below have been computed; nothing is left of that."""
    layer, x = of("lstm", 3, 4), torch.randn(3, 2, 3)
    with torch.set_grad_enabled(grad):
        for _ in range(2):
            expected = flat(layer(x))
        assert served(layer)
        good = layer.weight_hh_l1_reverse
        for value in (torch.zeros(16, 3), torch.zeros(16, 4, dtype=torch.float64)):
            layer.weight_hh_l1_reverse = nn.Parameter(value)
            with pytest.raises((ValueError, TypeError, RuntimeError), match=r"square|Double"):
                layer(x)
        layer.weight_hh_l1_reverse = good
        assert_equal(flat(layer(x)), expected)


def test_states_that_are_strided_or_of_another_size() -> None:
    layer, x = of("lstm", 5, 8), torch.randn(3, 4, 5)
    h, c = torch.randn(4, 8, 4).transpose(1, 2), torch.randn(8, 4, 8)[::2]
    for _ in range(2):
        expected = flat(layer(x, (h.contiguous(), c.contiguous())))
    for given in ((h, c), (torch._neg_view(-h), torch._neg_view(-c))):
        assert_equal(flat(layer(x, given)), expected)
        assert served(layer)
    with pytest.raises(RuntimeError, match="Expected hidden"):
        layer(x, (h[:3], c))


@pytest.mark.parametrize("name", ["gru", pytest.param("own", marks=compiles)])
def test_steps_of_an_optimizer(name: str) -> None:
    """The weights of each call are read, and so are those of its backward."""
    ours, long = of(name, 5, 8), of(name, 5, 8)
    long.load_state_dict(ours.state_dict())
    x = input_of(ours, 4, 3)
    for layer in (ours, long):
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        for _ in range(4):
            if layer is long:
                layer.__dict__.pop("_served", None)
            optimizer.zero_grad()
            layer(x)[0].square().sum().backward()
            optimizer.step()
    assert served(ours)
    assert_equal(list(ours.parameters()), list(long.parameters()))


def test_one_thread_and_several() -> None:
    layer, x = of("gru", 6, 16), torch.randn(7, 5, 6, requires_grad=True)
    shared, threads = [all_of(layer, x, None) for _ in range(2)], torch.get_num_threads()
    for count in (1, 2):
        torch.set_num_threads(count)
        try:
            assert_equal(all_of(layer, x, None), shared[0])
        finally:
            torch.set_num_threads(threads)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("stack", STACKS[:3], ids=str)
@pytest.mark.parametrize("given", [False, True])
def test_transforms_around_backward(name: str, stack: tuple[int, bool], given: bool) -> None:
    """Of which the call in forward knew nothing."""
    layer = of(name, 3, 4, stack).double()
    x, hx = input_of(layer, 5, 2, True), states_of(layer, 2, True) if given else None
    for _ in range(2):
        y = flat(layer(x, hx))[0]
    assert served(layer)
    sources = [x, *layer.parameters(), *(flat(hx) if given else [])]

    def gradients(d: Tensor, recorded: bool = False) -> tuple[Tensor, ...]:
        return torch.autograd.grad(y, sources, d, retain_graph=True, create_graph=recorded)

    some = torch.randn(3, *y.shape, dtype=y.dtype)
    expected = [torch.stack(each) for each in zip(*map(gradients, some), strict=True)]
    for found, wanted in zip(torch.vmap(gradients)(some), expected, strict=True):
        torch.testing.assert_close(found, wanted)
    # they are linear
    _, along = torch.func.jvp(gradients, (some[0],), (some[1],))
    for found, wanted in zip(along, expected, strict=True):
        torch.testing.assert_close(found, wanted[1])
    halves = torch.func.grad(lambda d: sum((g * g).sum() / 2 for g in gradients(d, True)))
    dot = sum((wanted[0] * wanted[1]).sum() for wanted in expected)
    torch.testing.assert_close((halves(some[0]) * some[1]).sum(), dot)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(some[0], some[1])
        for d, wanted in zip(gradients(dual), expected, strict=True):
            torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(d)[1], wanted[1])
