"""Steps one by one on the CPU: weights that are read where they lie, and layers in one call."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rnnfast
from rnnfast import _ext
from rnnfast.layer_calls import LayerCall
from rnnfast.products import multiply
from rnnfast.recurrent import RecurrentLayer

from .stream.test_changes import CHANGES

pytestmark = [
    pytest.mark.skipif(
        _ext.why_no_cpu() is not None, reason=str(_ext.why_no_cpu() or "the kernels are built")
    ),
    pytest.mark.skipif(
        _ext.why_no_cpu() is None and not multiply.is_faster(),
        reason="on this processor torch multiplies the input",
    ),
]

LAYERS: dict[str, Callable[..., RecurrentLayer]] = {
    "rnn": rnnfast.RNN,
    "relu": lambda *sizes, **options: rnnfast.RNN(*sizes, nonlinearity="relu", **options),
    "lstm": rnnfast.LSTM,
    "projected": lambda I, H, **options: rnnfast.LSTM(I, H, proj_size=H // 2, **options),
    "gru": rnnfast.GRU,
    "reset_before": lambda *sizes, **options: rnnfast.GRU(*sizes, reset_after=False, **options),
    "mgu": rnnfast.MGU,
}
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    torch.manual_seed(0)
    with rnnfast.use_backend("cpu"), torch.no_grad():
        yield


def flat(result: tuple[Any, ...]) -> list[Tensor]:
    y, states = result
    return [y, *(states if isinstance(states, tuple) else (states,))]


def equal(found: tuple[Any, ...], expected: tuple[Any, ...]) -> None:
    for a, b in zip(flat(found), flat(expected), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


# --- weights where they lie ----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", [(3, 6), (40, 64), (1030, 22), (17, 130), (300, 400)])
@pytest.mark.parametrize("name", LAYERS)
def test_one_step_has_the_bits_of_the_first_of_two(
    name: str, sizes: tuple[int, int], dtype: torch.dtype
) -> None:
    for bias in (True, False):
        layer = LAYERS[name](*sizes, bias=bias).to(dtype)
        for B in (1, 2, 3, 4, 5):
            x = torch.randn(2, B, sizes[0], dtype=dtype)
            one, two = layer(x[:1])[0], layer(x)[0]
            torch.testing.assert_close(one, two[:1], rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_lengths_and_resets_of_one_step(name: str, training: bool, dtype: torch.dtype) -> None:
    layer, B = LAYERS[name](20, 34, dtype=dtype), 4
    x = torch.randn(2, B, 20, dtype=dtype)
    _, states = layer(torch.randn(3, B, 20, dtype=dtype))
    lengths, resets = torch.tensor([1, 0, 1, 1]), torch.tensor([[False, False, True, True]])
    with torch.set_grad_enabled(training):
        found = layer(x[:1], states, lengths=lengths, resets=resets)
        expected = layer(
            x, states, lengths=lengths, resets=torch.cat([resets, torch.zeros_like(resets)])
        )
    torch.testing.assert_close(found[0], expected[0][:1], rtol=0, atol=0)
    equal((found[0], found[1]), (found[0], expected[1]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", LAYERS)
def test_one_step_on_one_thread_and_on_all(name: str, dtype: torch.dtype) -> None:
    layer, x = LAYERS[name](200, 310, dtype=dtype), torch.randn(1, 3, 200, dtype=dtype)
    shared, threads = layer(x), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone = layer(x)
    finally:
        torch.set_num_threads(threads)
    equal(shared, alone)


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_of_one_step(name: str) -> None:
    """What forward saves where it reads weights in place is what backward needs."""
    layer = LAYERS[name](6, 10).double()
    x = torch.randn(1, 2, 6, dtype=torch.float64)
    found, expected = [], []
    with torch.enable_grad():
        for backend, to in (("cpu", found), ("reference", expected)):
            with rnnfast.use_backend(backend):
                y, states = layer(x)
                loss = sum(s.square().sum() for s in flat((y, states)))
                to += torch.autograd.grad(loss, list(layer.parameters()))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


# --- a layer in one call -------------------------------------------------------------------------


def served(layer: RecurrentLayer) -> bool:
    """Whether the next call like the last one is one call into C++."""
    return layer._served is not None and type(layer._served[1]) is LayerCall


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_the_second_call_has_the_bits_of_the_first(
    name: str, batch_first: bool, dtype: torch.dtype
) -> None:
    for bias in (True, False):
        layer = LAYERS[name](5, 8, bias=bias, batch_first=batch_first).to(dtype)
        for T, B in ((1, 1), (4, 3), (3, 0)):
            x = torch.randn(*((B, T) if batch_first else (T, B)), 5, dtype=dtype)
            states = layer(x)[1]
            for hx in (None, states):
                first = layer(x, hx)
                assert served(layer)
                equal(layer(x, hx), first)
                strided = torch.randn(*x.shape[:2], 10, dtype=dtype)[..., ::2]
                expected = layer(strided.contiguous(), hx)
                equal(layer(strided, hx), expected)


def test_states_that_are_strided_or_negated() -> None:
    layer, x = rnnfast.LSTM(5, 8), torch.randn(3, 4, 5)
    h, c = torch.randn(1, 8, 4).transpose(1, 2), torch.randn(2, 4, 8)[1:]
    expected = layer(x, (h.contiguous(), c.contiguous()))
    for given in ((h, c), (torch._neg_view(-h), torch._neg_view(-c)), (h, c)):
        equal(layer(x, given), expected)
        assert served(layer)


def test_what_is_returned_is_nobody_elses() -> None:
    layer, x = rnnfast.LSTM(5, 8), torch.randn(3, 4, 5)
    expected = [t.clone() for t in flat(layer(x))]
    for _ in range(2):
        for one in flat(layer(x)):
            one.detach_().zero_()
    for a, b in zip(flat(layer(x)), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_new_values_of_weights_are_seen() -> None:
    layer, x = rnnfast.GRU(5, 8), torch.randn(1, 1, 5)
    for _ in range(2):
        layer(x)
    assert served(layer)
    for write in (
        lambda: layer.weight_hh_l0.data.mul_(2),
        lambda: layer.weight_ih_l0.mul_(2),
        lambda: setattr(layer, "bias_hh_l0", nn.Parameter(torch.randn(24))),
    ):
        write()
        with rnnfast.use_backend("reference"):
            expected = layer(x)
        layer(x)
        for a, b in zip(flat(layer(x)), flat(expected), strict=True):
            torch.testing.assert_close(a, b)


def test_who_does_not_take_the_one_call() -> None:
    x = torch.randn(3, 2, 5)
    layer = rnnfast.LSTM(5, 8)
    layer(x, lengths=torch.tensor([1, 3]))
    assert not served(layer)
    layer(x)
    assert served(layer)
    with torch.enable_grad():
        for _ in range(2):  # by a call of its own
            assert layer(x)[0].requires_grad


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("bias_hh_l0", torch.zeros(31), "shape"),
        ("weight_hh_l0", torch.zeros(32, 7), "square"),
        ("weight_hh_l0", torch.zeros(32, 8, dtype=torch.float64), "Double"),
    ],
)
def test_a_weight_that_no_longer_fits_is_an_error(name: str, value: Tensor, message: str) -> None:
    layer, x = rnnfast.LSTM(5, 8), torch.randn(1, 1, 5)
    layer(x)
    assert served(layer)
    setattr(layer, name, nn.Parameter(value))
    with pytest.raises((ValueError, TypeError), match=message):
        layer(x)


# --- whoever writes to the weights ---------------------------------------------------------------


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_seen(change: str) -> None:
    layer, x = rnnfast.LSTM(3, 8, 2), torch.randn(1, 2, 3)
    hx = (torch.ones(2, 2, 8), torch.ones(2, 2, 8))
    for _ in range(2):
        before = layer(x, hx)[0]
    CHANGES[change](layer)
    equal(layer(x, hx), copy.deepcopy(layer)(x, hx))
    assert not torch.equal(layer(x, hx)[0], before)


def test_functional_call_and_back() -> None:
    layer, x = rnnfast.GRU(3, 8), torch.randn(1, 2, 3)
    others = {name: -p for name, p in layer.named_parameters()}
    other = rnnfast.GRU(3, 8)
    other.load_state_dict(others)
    before = layer(x)
    for _ in range(2):
        equal(torch.func.functional_call(layer, others, (x,)), other(x))
        equal(layer(x), before)


def test_weight_norm() -> None:
    layer, x = rnnfast.LSTM(3, 8), torch.randn(1, 2, 3)
    nn.utils.parametrizations.weight_norm(layer, "weight_hh_l0", dim=0)
    h = (torch.ones(1, 2, 8), torch.ones(1, 2, 8))
    for _ in range(2):
        before = layer(x, h)[0]
    layer.parametrizations.weight_hh_l0.original0.mul_(2)
    with rnnfast.use_backend("reference"):
        expected = layer(x, h)[0]
    assert not torch.equal(layer(x, h)[0], before)
    torch.testing.assert_close(layer(x, h)[0], expected)


def test_shared_and_copied_weights() -> None:
    layer, x = rnnfast.GRU(3, 8), torch.randn(1, 2, 3)
    sharing, copied = rnnfast.GRU(3, 8), copy.deepcopy(layer)
    for name, p in layer.named_parameters():
        setattr(sharing, name, p)
    for _ in range(2):
        before = [one(x)[0] for one in (layer, sharing, copied)]
    layer.weight_ih_l0.neg_()
    assert torch.equal(sharing(x)[0], layer(x)[0])
    assert not torch.equal(layer(x)[0], before[0])
    assert torch.equal(copied(x)[0], before[2])


def test_threads_and_a_forked_child() -> None:
    layers = [rnnfast.LSTM(40, 200) for _ in range(4)]
    x = torch.randn(1, 1, 40)
    expected = [layer(x)[0] for layer in layers]

    def often(k: int) -> bool:
        with rnnfast.use_backend("cpu"), torch.no_grad():
            return all(torch.equal(layers[k](x)[0], expected[k]) for _ in range(50))

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(often, range(4)))
    child = os.fork()
    if child == 0:
        os._exit(0 if often(0) else 1)
    assert os.waitpid(child, 0)[1] == 0
