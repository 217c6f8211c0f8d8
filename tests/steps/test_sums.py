"""The gradients of a compiled cell's weights in one pass of sums, on the CPU: the same as product
by product, and which weights it takes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import rnnfast
from rnnfast import _ext, library
from rnnfast.cells import CELLS, CellSpec
from rnnfast.products import multiply
from rnnfast.steps import run
from rnnfast.steps.sums import MOST_OPERANDS, _fits, sums_of
from tests import own_cells

from .test_own_cpu import CALLS, assert_close, everything, product_last, results, scan_of

pytestmark = pytest.mark.skipif(
    library.why_not() is not None, reason=f"nothing compiles here: {library.why_not()}"
)


@rnnfast.cell(gates=2, states=("h", "c"), params={"m": "H, 2*H", "k": "2*H, H", "s": "H, H"})
def parts(gx, states, w):
    """A part of a matrix, a matrix that is multiplied from the left, one that has two uses."""
    h, c = states
    H = h.shape[-1]
    a, b = gx.chunk(2, -1)
    u = F.linear(torch.cat([h, c], -1), w.m) + F.linear(c, w.s)
    v = torch.cat([c, a], -1) @ w.k[: 2 * H]
    new = torch.tanh(b + u * v + F.linear(h, w.s))
    return new + F.linear(h, w.w_hh[H:], w.b_hh[:H]), torch.sigmoid(a) * c


block_gru = CELLS["block_gru"].with_settings(heads=3)
many_heads = own_cells.heads.with_settings(heads=2 * MOST_OPERANDS)
CELLS_HERE = [
    own_cells.lstm,
    own_cells.gru,
    own_cells.peephole,
    own_cells.three_states,
    own_cells.heads,
    many_heads,
    CELLS["layer_norm_lstm"],
    block_gru,
    everything,
    product_last,
    parts,
]
HERE = {name: CALLS[name] for name in CALLS if name not in ("checkpointed", "clipped in time")}


def short(spec: CellSpec) -> str:
    return spec.name.rpartition(":")[2]


def width_for(spec: CellSpec) -> int:
    return 64 if spec is many_heads else 12


def at_once(spec: CellSpec, kind: str, bias: bool = True) -> list[tuple[str, ...]]:
    kernel = run.kernel(spec.name, width_for(spec), bias, torch.float64)
    assert isinstance(kernel, run.Kernel), kernel
    return [one.weights for one in sums_of(kernel.layout, kind, spec.weight_names(kind, bias))]


@pytest.mark.parametrize("call", HERE)
@pytest.mark.parametrize("spec", CELLS_HERE, ids=short)
def test_one_pass_finds_what_products_find(
    spec: CellSpec, call: str, monkeypatch: pytest.MonkeyPatch, poisoned: None
) -> None:
    if not multiply.is_ours(torch.zeros(1, 1)):
        pytest.skip("this set of instructions takes torch's products")
    scan = scan_of(spec, H=width_for(spec), **HERE[call])
    taken: list[str] = []
    make = run.Kernel.sums

    def sums(self: run.Kernel, kind: str, leading: int | None) -> Any:
        found = make(self, kind, leading)
        names = spec.weight_names(kind, True)
        taken.extend(names[k] for one in found for k in one.numbers)
        return found

    monkeypatch.setattr(run.Kernel, "sums", sums)
    found = results(scan, "cpu")
    assert ("w_hh" in taken) == (spec.recurrent is not None and spec is not many_heads)
    monkeypatch.setattr(run.Kernel, "sums", lambda self, *_: ())
    assert_close(found, results(scan, "cpu"), 1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("spec", [own_cells.gru, own_cells.heads], ids=short)
def test_of_many_steps(spec: CellSpec, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than a block of steps, and than a chunk of them."""
    scan = scan_of(spec, dtype, T=150, B=40, H=20)
    resets = torch.rand(150, 40, generator=torch.Generator().manual_seed(5)) < 0.02
    scan = scan._replace(lengths=torch.arange(40) * 4, resets=resets)
    found = results(scan, "cpu")
    monkeypatch.setattr(run.Kernel, "sums", lambda self, *_: ())
    assert_close(found, results(scan, "cpu"), 50 * torch.finfo(dtype).eps)


def test_a_matrix_that_overlaps_itself_is_not_in_the_pass() -> None:
    kernel = run.kernel(own_cells.heads.name, 12, True, torch.float64)
    assert isinstance(kernel, run.Kernel), kernel
    (one,) = (m for m in kernel.layout.matrices if m.matrix.blocks > 1)
    assert _fits(kernel.layout, "dense", one.matrix.weight)
    closer = one.matrix._replace(block_stride=one.matrix.row_stride)
    matrices = [one._replace(matrix=closer) if m is one else m for m in kernel.layout.matrices]
    assert not _fits(replace(kernel.layout, matrices=matrices), "dense", closer.weight)


def test_which_weights_are_in_one_pass() -> None:
    """All, also a matrix of two uses, whose gradient is a sum, but for what has too many blocks."""
    names = ("w_ih", "w_hh", "b_ih", "b_hh")
    assert at_once(own_cells.lstm, "dense") == [names]
    assert at_once(own_cells.gru, "dense", bias=False) == [("w_ih", "w_hh")]
    assert at_once(own_cells.gru, "gates") == [("w_hh", "b_hh")]
    assert at_once(own_cells.peephole, "tokens") == [
        ("w_hh", "b_ih", "b_hh", "w_ci", "w_cf", "w_co")
    ]
    assert at_once(own_cells.heads, "dense") == [names]
    assert at_once(many_heads, "dense") == [("w_ih",), ("b_ih",), ("b_hh",)]
    assert at_once(parts, "dense") == [(*names, "m", "k", "s")]


def test_what_goes_beyond_a_tensor_is_refused() -> None:
    """Plans are numbers: a wrong one must not reach memory that is somebody else's."""
    module = _ext.cpu()
    gradients, x = torch.zeros(3, 2, 4), torch.zeros(3, 2, 5)
    fields: dict[str, Any] = {
        "operands": [[(1, -1, 0, 0)]],
        "gradients": [[(0, 0, 4)]],
        "products": [(0, 0, 0, 0, 0, 0, 1)],
        "sums": [],
        "sequences": [],
    }

    def made(weight: Tensor, given: Tensor = x, **changed: Any) -> Tensor:
        plan = module.cpu_sum_plan(**{**fields, **changed})
        return plan.run([gradients, given], [weight], None, None, False)[0]

    assert made(torch.empty(4, 5)).eq(0).all()
    with pytest.raises(ValueError, match="outside of its result"):
        made(torch.empty(3, 5))
    with pytest.raises(ValueError, match="wrong shape"):
        made(torch.empty(4, 5), x[:2])
    with pytest.raises(ValueError, match="wrong shape"):
        made(torch.empty(4, 5), gradients=[[(0, 1, 4)]])
    with pytest.raises(ValueError, match="differ in width"):
        made(torch.empty(4, 5), gradients=[[(0, 0, 4), (0, 0, 3)]])
    with pytest.raises(ValueError, match="differ in width"):
        made(torch.empty(4, 5), operands=[[(1, -1, 0, 0), (1, -1, 0, 4)]])
    for terms in ([], [(0, 0, 4)] * 5):
        with pytest.raises(ValueError, match="no terms, or more"):
            made(torch.empty(4, 5), gradients=[terms])
    with pytest.raises(TypeError, match="tensors must be"):
        made(torch.empty(4, 5), x.double())
    with pytest.raises(ValueError, match="not there"):
        made(torch.empty(4, 5), products=[(1, 0, 0, 0, 0, 0, 1)])
    with pytest.raises(ValueError, match="made twice"):
        made(torch.empty(4, 5), products=fields["products"] * 2)
    with pytest.raises(ValueError, match="more operands"):
        made(torch.empty(4, 5), operands=fields["operands"] * 17)
