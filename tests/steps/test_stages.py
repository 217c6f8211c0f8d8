"""What ``explain`` shows of a step that was cut into stages."""

from __future__ import annotations

import pytest
import torch

import rnnfast
from rnnfast import library
from rnnfast.backends.own_stages import StageView
from rnnfast.cells import CellSpec
from tests import own_cells

pytestmark = pytest.mark.skipif(
    library.why_not() is not None, reason=f"nothing compiles here: {library.why_not()}"
)
H = 12


def stages_of(cell: CellSpec | str) -> tuple[StageView, ...]:
    layer = rnnfast.Recurrent(cell, 3, H).double()
    (choice,) = rnnfast.explain(layer, torch.randn(2, 2, 3, dtype=torch.float64)).choices
    return choice.stages


def test_the_stages_of_a_gru() -> None:
    forward, pointwise, product = stages_of(own_cells.gru)
    assert forward.way == "forward"
    assert forward.products == ("w_hh [36, 12] · h",)
    assert {("sigmoid", 2), ("tanh", 1)} <= set(forward.pointwise)
    assert "h'" in forward.stores
    assert (pointwise.way, pointwise.products) == ("backward", ())
    assert "dgx" in pointwise.stores
    assert "stores" in str(forward)
    assert set(product.products) == {"w_hhᵀ [12, 24] · dgx", "w_hhᵀ [12, 12] · dproduct"}
    assert product.stores == ("dh",)


def test_reductions_and_states() -> None:
    found = stages_of("layer_norm_lstm")
    assert "sum" in [what for stage in found for what in stage.reductions]
    assert "2 sum of a row" in "\n".join(map(str, found))
    stored = {name for stage in found for name in stage.stores}
    assert {"h'", "c'", "dh", "dc", "dgx"} <= stored


def test_the_built_in_kernels_have_none() -> None:
    assert stages_of("gru") == ()
