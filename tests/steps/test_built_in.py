"""The built-in cells stay hand-made (docs/architecture.md), and are what their steps compile to."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import rnnfast
from rnnfast import _ext, library
from rnnfast.cells import BUILT_IN, CELLS, CellSpec
from tests.layers import KINDS

pytestmark = pytest.mark.skipif(
    library.why_not() is not None or _ext.why_no_cpu() is not None,
    reason=f"nothing compiles here: {library.why_not()}",
)
T, B, I, H = 6, 5, 3, 12
STATED = [spec for spec in BUILT_IN if not spec.projected]  # own cells have no W_hr
OPTIONS = {
    "plain": {},
    "ends": {
        "lengths": torch.tensor([6, 0, 3, 1, 5]),
        "resets": torch.arange(T * B).view(T, B) % 7 == 3,
    },
}


@pytest.fixture
def stated(request: pytest.FixtureRequest) -> Iterator[CellSpec]:
    """A built-in cell's step as a cell of one's own."""
    spec = request.param
    made = rnnfast.cell(spec.step, gates=spec.gates, states=spec.states, name=f"own {spec.name}")
    yield made
    del CELLS[made.name]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("stated", STATED, ids=lambda spec: spec.name, indirect=True)
def test_a_step_compiles_to_what_the_hand_made_kernel_computes(
    stated: CellSpec, options: str
) -> None:
    kind, more = KINDS[stated.name.removeprefix("own ")]
    hand_made = kind(I, H, num_layers=2, bidirectional=True, **more).double()
    own = rnnfast.Recurrent(stated, I, H, num_layers=2, bidirectional=True).double()
    own.load_state_dict(hand_made.state_dict())
    x = torch.randn(T, B, I, dtype=torch.float64, requires_grad=True)
    results = []
    for layer in (own, hand_made):
        with rnnfast.use_backend("cpu"):
            assert bool(rnnfast.explain(layer, x).choices[0].stages) is (layer is own)
            y, last = layer(x, **OPTIONS[options])
        outputs = [y, *([last] if isinstance(last, Tensor) else last)]
        torch.manual_seed(1)
        given = [torch.randn_like(output) for output in outputs]
        gradients = torch.autograd.grad(outputs, [x, *layer.parameters()], given)
        results.append([*outputs, *gradients])
    torch.testing.assert_close(*results, rtol=1e-11, atol=1e-13)


def test_all_but_the_projected_lstm_are_stated() -> None:
    assert {spec.name for spec in BUILT_IN} - {spec.name for spec in STATED} == {"lstm_proj"}
