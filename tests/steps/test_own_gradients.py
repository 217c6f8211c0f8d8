"""All gradients of a compiled cell's scan in one call, on the CPU: the bits that its parts give one
by one, and which scans take it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import rnnfast
from rnnfast import library
from rnnfast.backends import registry
from rnnfast.cells import CELLS, CellSpec
from rnnfast.direct import run_direct
from rnnfast.problem import problem_of
from rnnfast.products import multiply
from rnnfast.steps import run
from tests import own_cells

from .test_own_cpu import CALLS, everything, product_last, results, scan_of
from .test_sums import parts

pytestmark = [
    pytest.mark.skipif(
        library.why_not() is not None, reason=f"nothing compiles here: {library.why_not()}"
    ),
    pytest.mark.skipif(
        library.why_not() is None and not multiply.is_faster(),
        reason="on this processor torch multiplies",
    ),
]

CELLS_HERE = [
    own_cells.lstm,
    own_cells.gru,
    own_cells.peephole,
    own_cells.three_states,
    own_cells.heads,
    CELLS["layer_norm_lstm"],
    everything,
    product_last,
]
Taken = list[bool]


@pytest.fixture(autouse=True)
def taken(monkeypatch: pytest.MonkeyPatch, poisoned: None) -> Taken:
    """Of each backward whether it was one call."""
    found: Taken = []
    make = run.Kernel.gradients

    def told(*args: Any) -> Any:
        result = make(*args)
        found.append(result is not None)
        return result

    monkeypatch.setattr(run.Kernel, "gradients", told)
    return found


def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run.Kernel, "gradients", lambda *args: None)


def assert_equal(found: list[Any], expected: list[Any]) -> None:
    for a, b in zip(found, expected, strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("spec", CELLS_HERE, ids=lambda spec: spec.name.rpartition(":")[2])
def test_the_bits_of_its_parts(
    spec: CellSpec, call: str, taken: Taken, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = scan_of(spec, **CALLS[call])
    found = results(scan, "cpu")
    assert all(taken) == (scan.kind == "dense")
    one_by_one(monkeypatch)
    assert_equal(found, results(scan, "cpu"))


def test_a_kind_of_input_after_the_other(taken: Taken, monkeypatch: pytest.MonkeyPatch) -> None:
    scans = [scan_of(own_cells.lstm, kind=kind) for kind in ("tokens", "dense", "gates", "dense")]
    rnnfast.steps.run.forget()
    found = [results(scan, "cpu") for scan in scans]
    assert taken == [False, True, False, True]
    one_by_one(monkeypatch)
    for scan, one in zip(scans, found, strict=True):
        assert_equal(one, results(scan, "cpu"))


@pytest.mark.parametrize("wanted", ["input", "states", "weights", "a weight"])
def test_some_of_them(wanted: str, taken: Taken, monkeypatch: pytest.MonkeyPatch) -> None:
    scan = scan_of(own_cells.peephole, ends=True)
    every = {"input": [scan.input], "states": scan.states, "weights": scan.weights}
    sources = every.get(wanted, [scan.weights[1]])
    for tensor in scan.tensors:
        if tensor.is_floating_point() and all(tensor is not s for s in sources):
            tensor.requires_grad_(False)

    def gradients() -> list[Tensor]:
        y, final, _ = run_direct(scan, registry.select(problem_of(scan), "cpu"))
        return list(torch.autograd.grad([y.sin().sum() + final[0].sum()], sources))

    found = gradients()
    assert taken == [True]
    one_by_one(monkeypatch)
    assert_equal(found, gradients())


def test_on_two_threads(taken: Taken) -> None:
    scan, threads = scan_of(own_cells.gru, T=40, B=33, H=36, ends=False), torch.get_num_threads()
    alone = results(scan, "cpu")
    torch.set_num_threads(2)
    try:
        assert_equal(results(scan, "cpu"), alone)
    finally:
        torch.set_num_threads(threads)
    assert taken == [True, True]


def test_who_does_not_take_it(taken: Taken) -> None:
    results(scan_of(parts), "cpu")  # a weight of two uses does
    assert taken.pop() is True
    layer = rnnfast.Recurrent(own_cells.lstm, 3, 12).double()
    weights = dict(layer.named_parameters())
    x = torch.randn(4, 5, 3, dtype=torch.float64)

    def loss(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(layer, weights, (x.unsqueeze(1),))[0].sum()

    with rnnfast.use_backend("cpu"):  # per-sample gradients
        torch.func.vmap(torch.func.grad(loss), (None, 1))(weights, x)
    assert not any(taken)
    results(scan_of(own_cells.gru, torch.bfloat16), "cpu")
    assert not any(taken)


def test_an_error_leaves_nothing_behind(taken: Taken) -> None:
    """Of a gradient that has another dtype."""
    scan = scan_of(own_cells.lstm)
    y, _final, _ = run_direct(scan, registry.select(problem_of(scan), "cpu"))
    kernel = run.kernel(own_cells.lstm.name, 12, True, torch.float64)
    assert isinstance(kernel, run.Kernel)
    with pytest.raises((TypeError, ValueError)):
        kernel._differentiating(run.passes.backward(kernel.layout, ("gx",))).gradients(
            [y.float()] * 9,
            scan.input,
            scan.weights,
            None,
            None,
            of_input=True,
            of_weights=True,
            rows=1,
            units=1,
            reverse=False,
            grad_clip_time=0.0,
        )
    torch.autograd.grad([y.sum()], scan.weights)
    assert taken == [True]
