"""Steps one by one of compiled cells on the CPU, as those of the built-in ones
(test_single_steps.py): weights that are read where they lie, and layers in one call."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import rnnfast
from rnnfast import _ext, library
from rnnfast.cells import CELLS
from rnnfast.products import multiply

from . import own_cells
from .steps.test_own_cpu import assert_close, everything, product_last, results, scan_of
from .stream.test_changes import CHANGES
from .test_single_steps import equal, flat, served

pytestmark = [
    pytest.mark.skipif(
        library.why_not() is not None, reason=f"nothing compiles here: {library.why_not()}"
    ),
    pytest.mark.skipif(
        _ext.why_no_cpu() is None and not multiply.is_faster(),
        reason="on this processor torch multiplies the input",
    ),
]


@rnnfast.cell(gates=2, params={"m": "H, 2*H"})
def swapped(gx, states, w):
    """Columns of a matrix in another order than what they multiply, which lies side by side."""
    (h,) = states
    a, b = gx.chunk(2, -1)
    return (torch.tanh(F.linear(torch.cat([b, a], -1), w.m) + F.linear(h, w.w_hh[: h.shape[-1]])),)


CELLS_HERE = {
    "lstm": own_cells.lstm,
    "gru": own_cells.gru,
    "peephole": own_cells.peephole,
    "three_states": own_cells.three_states,
    "heads": own_cells.heads,
    "everything": everything,  # of whose matrices one is multiplied from the left
    "product_last": product_last,
    "swapped": swapped,
    "layer_norm_lstm": CELLS["layer_norm_lstm"],
}
# cell, dtype, bias: all of a cell's texts would take long to compile
KINDS = [(name, torch.float64, True) for name in CELLS_HERE]
KINDS += [("lstm", torch.float32, True), ("gru", torch.float32, False)]
SIZES = [(3, 6), (40, 64), (1030, 22), (17, 130), (300, 200)]


@pytest.fixture(autouse=True)
def _without_gradients(poisoned: None) -> Iterator[None]:
    torch.manual_seed(0)
    with rnnfast.use_backend("cpu"), torch.no_grad():
        yield


def made(kind: tuple[str, torch.dtype, bool], I: int, H: int) -> rnnfast.Recurrent:
    name, dtype, bias = kind
    layer = rnnfast.Recurrent(CELLS_HERE[name], I, H, bias=bias).to(dtype)
    for p in layer.parameters():  # those that begin as zeros or ones, too
        nn.init.normal_(p, 0, 0.3)
    return layer


def of(name: str, I: int = 20, H: int = 34) -> rnnfast.Recurrent:
    return made((name, torch.float64, True), I, H)


def step(layer: rnnfast.Recurrent, T: int, B: int) -> Tensor:
    return torch.randn(T, B, layer.input_size, dtype=layer.weight_ih_l0.dtype)


# --- weights where they lie ----------------------------------------------------------------------


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_one_step_has_the_bits_of_the_first_of_two(
    kind: tuple[str, torch.dtype, bool], sizes: tuple[int, int]
) -> None:
    layer = made(kind, *sizes)
    for B in (1, 2, 3, 4, 5, 7):
        x = step(layer, 2, B)
        _, hx = layer(step(layer, 2, B))
        two = layer(x, hx)[0]
        for _ in range(2):  # the second time in one call
            assert torch.equal(layer(x[:1], hx)[0], two[:1])


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", CELLS_HERE)
def test_lengths_and_resets_of_one_step(name: str, training: bool) -> None:
    layer, B = of(name), 4
    x = step(layer, 2, B)
    _, states = layer(step(layer, 3, B))
    lengths, resets = torch.tensor([1, 0, 1, 1]), torch.tensor([[False, False, True, True]])
    with torch.set_grad_enabled(training):
        found = layer(x[:1], states, lengths=lengths, resets=resets)
        both = torch.cat([resets, torch.zeros_like(resets)])
        expected = layer(x, states, lengths=lengths, resets=both)
    assert torch.equal(found[0], expected[0][:1])
    equal((found[0], found[1]), (found[0], expected[1]))


@pytest.mark.parametrize("name", CELLS_HERE)
def test_one_step_on_one_thread_and_on_all(name: str) -> None:
    layer = of(name, 400, 310)
    x, threads = step(layer, 1, 3), torch.get_num_threads()
    found = []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            found += [layer(x), layer(x)]
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        equal(other, found[0])


@pytest.mark.parametrize("name", CELLS_HERE)
def test_gradients_of_one_step(name: str) -> None:
    """What forward saves where it reads weights in place is what backward needs."""
    layer = of(name, 6, 10)
    x = step(layer, 1, 2)
    found, expected = [], []
    with torch.enable_grad():
        for backend, to in (("cpu", found), ("reference", expected)):
            with rnnfast.use_backend(backend):
                y, states = layer(x)
                loss = sum(s.sin().sum() for s in flat((y, states)))
                to += torch.autograd.grad(loss, list(layer.parameters()), allow_unused=True)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, torch.zeros_like(a) if b is None else b)


@pytest.mark.parametrize("kind", ["tokens", "gates", "16 bit"])
@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_one_step_of_another_input(name: str, kind: str) -> None:
    options = {"kind": kind} if kind != "16 bit" else {"dtype": torch.bfloat16}
    tolerance = 1e-10 if kind != "16 bit" else 2 * torch.finfo(torch.bfloat16).eps
    with torch.enable_grad():
        scan = scan_of(CELLS_HERE[name], T=1, B=3, **options)
        assert_close(results(scan, "cpu"), results(scan, "loop"), tolerance)


# --- a layer in one call -------------------------------------------------------------------------


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("name", CELLS_HERE)
def test_the_second_call_has_the_bits_of_the_first(name: str, batch_first: bool) -> None:
    layer = of(name)
    layer.batch_first = batch_first
    for T, B in ((1, 1), (4, 3), (3, 40), (3, 0)):
        shape = (B, T) if batch_first else (T, B)
        x = torch.randn(*shape, 20, dtype=torch.float64)
        states = layer(x)[1]
        for hx in (None, states):
            first = layer(x, hx)
            assert served(layer)
            again = layer(x, hx)
            equal(again, first)
            assert [t.shape for t in flat(again)] == [t.shape for t in flat(first)]
            strided = torch.randn(*shape, 40, dtype=torch.float64)[..., ::2]
            equal(layer(strided, hx), layer(strided.contiguous(), hx))


def test_states_that_are_strided_or_negated() -> None:
    layer = of("lstm", 5, 8)
    x = step(layer, 3, 4)
    h, c = torch.randn(1, 8, 4).double().transpose(1, 2), torch.randn(2, 4, 8).double()[1:]
    expected = layer(x, (h.contiguous(), c.contiguous()))
    for given in ((h, c), (torch._neg_view(-h), torch._neg_view(-c)), (h, c)):
        equal(layer(x, given), expected)
        assert served(layer)


def test_what_is_returned_is_nobody_elses() -> None:
    layer = of("lstm", 5, 8)
    x = step(layer, 3, 4)
    expected = [t.clone() for t in flat(layer(x))]
    for _ in range(2):
        for one in flat(layer(x)):
            one.detach_().zero_()
    for a, b in zip(flat(layer(x)), expected, strict=True):
        assert torch.equal(a, b)


def test_under_inference_mode_and_with_parameters_that_want_gradients() -> None:
    layer = of("gru", 5, 8)
    x = step(layer, 1, 2)
    expected = layer(x)
    with torch.inference_mode():
        for _ in range(2):
            equal(layer(x), expected)
    assert served(layer)
    with torch.enable_grad():
        for _ in range(2):  # by a call of its own
            assert layer(x)[0].requires_grad
        for p in layer.parameters():
            p.requires_grad_(False)
        for _ in range(2):
            assert not layer(x)[0].requires_grad
        assert served(layer)
        assert layer(x.requires_grad_())[0].requires_grad


def test_who_does_not_take_the_one_call() -> None:
    spec = own_cells.lstm
    for layer in (
        rnnfast.Recurrent(spec, 5, 8, num_layers=2),
        rnnfast.Recurrent(spec, 5, 8, bidirectional=True),
        rnnfast.Recurrent(spec, 5, 8).bfloat16(),
    ):
        x = torch.randn(3, 2, 5).to(layer.weight_ih_l0.dtype)
        for _ in range(2):
            layer(x)
            assert not served(layer)


def test_masks_of_training_leave_it() -> None:
    layer = rnnfast.Recurrent(own_cells.lstm, 5, 8, recurrent_dropout=0.5).double().eval()
    plain = rnnfast.Recurrent(own_cells.lstm, 5, 8).double()
    plain.load_state_dict(layer.state_dict())
    x = step(layer, 3, 2)
    for _ in range(2):
        equal(layer(x), plain(x))
    assert served(layer)
    layer.train()
    assert not torch.equal(layer(x)[0], plain(x)[0])
    layer.eval()
    equal(layer(x), plain(x))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("weight_hh_l0", torch.zeros(32, 7), "shape"),
        ("bias_hh_l0", torch.zeros(31), "shape"),
        ("bias_ih_l0", torch.zeros(31), "shape"),
        ("w_cf_l0", torch.zeros(7), "shape"),
        ("w_cf_l0", torch.zeros(8, dtype=torch.float32), "one dtype"),
        ("weight_hh_l0", torch.zeros(32, 8, dtype=torch.float32), "one dtype"),
    ],
)
def test_a_weight_that_no_longer_fits_is_an_error(name: str, value: Tensor, message: str) -> None:
    layer = of("peephole", 5, 8)
    x = step(layer, 1, 1)
    for _ in range(2):
        layer(x)
    assert served(layer)
    value = value.double() if message == "shape" else value
    setattr(layer, name, nn.Parameter(value))
    # as the long way has it, which takes over
    with pytest.raises((ValueError, RuntimeError), match=message):
        layer(x)
    setattr(layer, name, nn.Parameter(torch.zeros_like(value)[:0]))
    with pytest.raises((ValueError, RuntimeError)):
        layer(x)


# --- whoever writes to the weights ---------------------------------------------------------------


class _Upper:
    """A layer whose parameters of a second layer are those of the only one."""

    def __init__(self, layer: nn.Module) -> None:
        self.__dict__["layer"] = layer

    def __getattr__(self, name: str) -> Any:
        return getattr(self.layer, name.replace("_l1", "_l0"))

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.layer, name.replace("_l1", "_l0"), value)


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_seen(change: str) -> None:
    layer = of("peephole", 3, 8)
    x = step(layer, 1, 2)
    hx = (torch.ones(1, 2, 8).double(), torch.ones(1, 2, 8).double())
    for _ in range(2):
        before = layer(x, hx)[0]
    assert served(layer)
    CHANGES[change](_Upper(layer))
    with rnnfast.use_backend("reference"):
        expected = copy.deepcopy(layer)(x, hx)
    for _ in range(2):
        for a, b in zip(flat(layer(x, hx)), flat(expected), strict=True):
            torch.testing.assert_close(a, b)
    assert not torch.equal(layer(x, hx)[0], before)


@pytest.mark.parametrize("name", CELLS_HERE)
def test_each_weight_is_read_anew(name: str) -> None:
    layer = of(name, 6, 8)
    x = step(layer, 1, 2)
    hx = layer._join_hidden([torch.rand(1, 2, 8).double() for _ in CELLS_HERE[name].states])
    for _ in range(2):
        layer(x, hx)
    for weight in layer.parameters():
        weight.data.mul_(-1.5)  # past the counter of versions
        found = flat(layer(x, hx))
        assert served(layer)
        with rnnfast.use_backend("reference"):
            expected = copy.deepcopy(layer)(x, hx)
        for a, b in zip(found, flat(expected), strict=True):
            torch.testing.assert_close(a, b)


def test_functional_call_and_back() -> None:
    layer, other = of("gru", 3, 8), of("gru", 3, 8)
    x = step(layer, 1, 2)
    others = {name: -p for name, p in layer.named_parameters()}
    other.load_state_dict(others)
    before = layer(x)
    for _ in range(2):
        equal(torch.func.functional_call(layer, others, (x,)), other(x))
        equal(layer(x), before)


def test_weight_norm() -> None:
    layer = of("lstm", 3, 8)
    x = step(layer, 1, 2)
    nn.utils.parametrizations.weight_norm(layer, "weight_hh_l0", dim=0)
    h = tuple(torch.ones(1, 2, 8).double() for _ in range(2))
    for _ in range(2):
        before = layer(x, h)[0]
    layer.parametrizations.weight_hh_l0.original0.mul_(2)
    with rnnfast.use_backend("reference"):
        expected = layer(x, h)[0]
    assert not torch.equal(layer(x, h)[0], before)
    torch.testing.assert_close(layer(x, h)[0], expected)


def test_threads_and_a_forked_child() -> None:
    layers = [of("gru", 40, 200) for _ in range(4)]
    steps = [torch.randn(T, 20, 40, dtype=torch.float64) for T in (1, 2)]

    def found(layer: rnnfast.Recurrent) -> list[Tensor]:
        with rnnfast.use_backend("cpu"), torch.no_grad():
            inferred = [layer(x)[0] for x in (steps[0][:, :1], *steps)]
        with rnnfast.use_backend("cpu"), torch.enable_grad():
            dw = torch.autograd.grad(layer(steps[1])[0].sum(), list(layer.parameters()))
        return [*inferred, *dw]

    expected = [found(layer) for layer in layers]

    def often(k: int) -> bool:
        same = True
        for _ in range(10):
            again = found(layers[k])
            same &= all(torch.equal(a, b) for a, b in zip(again, expected[k], strict=True))
        return same

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(often, range(4)))
    child = os.fork()
    if child == 0:
        with rnnfast.use_backend("cpu"), torch.no_grad():
            same = torch.equal(layers[0](steps[0])[0], expected[0][1])
        os._exit(0 if same else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_another_cell_of_the_same_name() -> None:
    """A step that is stated anew is another cell."""
    x = torch.randn(1, 2, 4)
    layers = []
    for sign in (1, -1):

        @rnnfast.cell(gates=1, recurrent=None, name="stated anew")
        def again(gx, states, w, sign=sign):
            return (sign * torch.tanh(gx + states[0]),)

        layers.append(rnnfast.Recurrent(again, 4, 4))
    layers[1].load_state_dict(layers[0].state_dict())
    for _ in range(2):
        assert torch.equal(layers[0](x)[0], -layers[1](x)[0])
