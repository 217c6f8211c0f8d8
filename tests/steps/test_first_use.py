"""When a cell of one's own is compiled: where it can't be, who serves it, and what of the first use
does not matter."""

from __future__ import annotations

import pytest
import torch
import torch.utils.checkpoint

import rnnfast
from rnnfast import library
from rnnfast.cells import CELLS
from rnnfast.steps import run
from tests import own_cells

pytestmark = pytest.mark.skipif(
    library.why_not() is not None, reason=f"nothing compiles here: {library.why_not()}"
)


def test_without_a_compiler_the_loop_serves_and_explain_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    monkeypatch.setenv("RNNFAST_CACHE", str(tmp_path))
    monkeypatch.setenv("RNNFAST_COMPILE", "0")
    library.forget()
    run.forget()
    try:
        layer = rnnfast.Recurrent(own_cells.peephole, 3, 7)
        shown = str(rnnfast.explain(layer, torch.randn(2, 2, 3)))
        assert "-> reference" in shown
        assert "RNNFAST_COMPILE" in shown
        assert layer(torch.randn(2, 2, 3))[0].shape == (2, 2, 7)
    finally:
        run.forget()
        library.forget()


def test_a_step_outside_the_vocabulary_is_served_by_the_loop() -> None:
    cell = rnnfast.cell(
        lambda gx, states, w: (torch.cumsum(gx, -1) + states[0],), gates=1, recurrent=None
    )
    try:
        layer = rnnfast.Recurrent(cell, 3, 4)
        shown = str(rnnfast.explain(layer, torch.randn(2, 2, 3)))
        assert "-> reference" in shown
        assert "aten.cumsum.default" in shown
        with rnnfast.use_backend("cpu"), pytest.raises(rnnfast.BackendError, match="vocabulary"):
            layer(torch.randn(2, 2, 3))
    finally:
        del CELLS[cell.name]


def test_a_cell_that_takes_another_ones_name_has_its_own_kernel() -> None:
    found = []
    for scale in (2.0, 3.0):  # one text
        cell = rnnfast.cell(
            lambda gx, states, w, scale=scale: (scale * gx + states[0],),
            gates=1,
            recurrent=None,
            name="tests:a name",
        )
        try:
            with rnnfast.use_backend("cpu"):
                layer = rnnfast.Recurrent(cell, 2, 3, bias=False)
                torch.nn.init.ones_(layer.weight_ih_l0)
                found.append(layer(torch.ones(1, 1, 2))[0].max().item())
        finally:
            del CELLS[cell.name]
    assert found == [4.0, 6.0]


SURROUNDINGS = {
    "inference mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "no_grad": torch.no_grad,
    "another device": lambda: torch.device("meta"),
    "saved tensors' hooks": lambda: torch.autograd.graph.save_on_cpu(),
}


@pytest.mark.parametrize("name", list(SURROUNDINGS))
def test_what_surrounds_the_first_use_decides_nothing(name: str) -> None:
    run.forget()
    spec = own_cells.gru
    with SURROUNDINGS[name]():
        assert not isinstance(run.kernel(spec.name, 12, True, torch.float64), str)


def test_the_first_use_may_be_in_a_checkpoint() -> None:
    run.forget()
    layer = rnnfast.Recurrent(own_cells.gru, 3, 12)
    x = torch.randn(4, 2, 3, requires_grad=True)
    y = torch.utils.checkpoint.checkpoint(lambda x: layer(x)[0], x, use_reentrant=False)
    y.sum().backward()
    assert x.grad is not None


def test_explain_tells_what_was_made_of_the_step() -> None:
    layer = rnnfast.Recurrent(own_cells.gru, 3, 7)
    shown = str(rnnfast.explain(layer, torch.randn(2, 2, 3)))
    assert "-> cpu: compiled from the step" in shown
    assert "1 product, 1 stage" in shown
    assert "saves 4 H" in shown
    assert "cached at" in shown
