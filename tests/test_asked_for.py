"""docs/recurrent-highway.md: its cell is the paper's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import rnnfast
from rnnfast import library

from .test_docs import blocks

PAGE = Path(__file__).resolve().parents[1] / "docs/recurrent-highway.md"
T, B, I, H, ABOVE = 5, 3, 4, 6, 2
ENDS: dict[str, dict[str, Tensor]] = {
    "plain": {},
    "lengths": {"lengths": torch.tensor([5, 0, 3])},
    "resets": {"resets": torch.arange(T * B).view(T, B) % 4 == 3},
}


@pytest.fixture(scope="module")
def cell() -> Iterator[Any]:
    """The page's, of its first block."""
    namespace: dict[str, Any] = {"__name__": __name__, "print": lambda *_: None}
    exec(compile(blocks(PAGE.read_text(encoding="utf-8"))[0].code, str(PAGE), "exec"), namespace)
    made = namespace["recurrent_highway"]
    yield made
    for name in [name for name, spec in rnnfast.CELLS.items() if spec.step is made.step]:
        del rnnfast.CELLS[name]


def papers_loop(
    layer: rnnfast.Recurrent, x: Tensor, s0: Tensor, lengths: Tensor | None, resets: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Equations 6 to 9 of Zilly et al., with c = 1 - t: one sequence, one step at a time."""
    R = [layer.weight_hh_l0, *layer.w_deep_l0.view(ABOVE, 2 * H, H)]
    b = [layer.bias_ih_l0 + layer.bias_hh_l0, *layer.b_deep_l0.view(ABOVE, 2 * H)]
    ys, last = [], []
    for n in range(B):
        s, out = s0[n], []
        for t in range(T):
            if lengths is not None and t >= lengths[n]:
                out.append(torch.zeros_like(s))
                continue
            if resets is not None and resets[t, n]:
                s = torch.zeros_like(s)
            for level in range(1 + ABOVE):
                of_x = layer.weight_ih_l0 @ x[t, n] if level == 0 else torch.zeros(2 * H).double()
                both = of_x + R[level] @ s + b[level]
                new, gate = torch.tanh(both[:H]), torch.sigmoid(both[H:])
                s = new * gate + s * (1 - gate)
            out.append(s)
        ys.append(torch.stack(out))
        last.append(s)
    return torch.stack(ys, 1), torch.stack(last)


@pytest.mark.parametrize("ends", ENDS)
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_the_recurrent_highway_network_is_the_papers(cell: Any, backend: str, ends: str) -> None:
    if backend == "cpu" and library.why_not() is not None:
        pytest.skip(f"nothing compiles here: {library.why_not()}")
    layer = rnnfast.Recurrent(cell, I, H, above=ABOVE).double()
    x = torch.randn(T, B, I, dtype=torch.float64, requires_grad=True)
    s0 = torch.randn(B, H, dtype=torch.float64, requires_grad=True)
    with rnnfast.use_backend(backend):
        y, s = layer(x, s0[None], **ENDS[ends])
    more = {"lengths": None, "resets": None} | ENDS[ends]
    expected = papers_loop(layer, x, s0, **more)
    torch.testing.assert_close((y, s[0]), expected, rtol=1e-10, atol=1e-12)
    weights = (x, s0, *layer.parameters())
    dy, ds = torch.randn_like(y), torch.randn_like(s0)
    found, true = (
        torch.autograd.grad([one, last], weights, [dy, ds]) for one, last in ((y, s[0]), expected)
    )
    torch.testing.assert_close(found, true, rtol=1e-10, atol=1e-12)
