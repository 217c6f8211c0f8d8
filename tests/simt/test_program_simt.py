"""A scan of an exported program on a GPU without Python (csrc/ops_cuda/program.cpp), on the
executor: what the backend's Python makes of the same scan."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rnnfast.ops import pack
from rnnfast.problem import Scan

from ..cases import BUILT_IN, Case, leaves, scan_of
from .backend import Simt

OPTIONS = {
    "plain": {},
    "everything": {"lengths": True, "resets": True, "reverse": True, "all_states": True},
    "gates": {"kind": "gates"},
    "gates without bias": {"kind": "gates", "bias": False, "lengths": True},
    "tokens": {"kind": "tokens", "lengths": True},
    "tokens without bias": {"kind": "tokens", "bias": False},
    "strided": {"strided": True, "bias": False},
    "one unit": {"T": 1, "B": 1, "I": 1, "H": 1},
    "more than a block has": {"T": 3, "B": 20, "H": 150, "all_states": True},
    "no sequences": {"B": 0, "all_states": True},
}


def program(simt: Simt, scan: Scan, backend: str) -> tuple[Tensor, list[Tensor], ...]:
    return simt.ops.cuda_scan(*pack(scan, backend))


def scan_in(case: Case, dtype: torch.dtype, training: bool = False) -> Scan:
    scan = scan_of(case, leaves(case, dtype, "cpu"))
    return scan._replace(options=scan.options._replace(training=training))


def bits(tensor: Tensor) -> Tensor:
    """Of 16-bit storage as they are, since what is saved is fixed point there."""
    return tensor.view(torch.int16) if tensor.dtype == torch.float16 else tensor


def both(simt: Simt, scan: Scan, backend: str = "cuda") -> tuple[list, list]:
    with torch.no_grad():
        result, saved = simt.forward(scan)
        y, final, trace, kept = program(simt, scan, backend)
    return [y, *final, *trace, *kept], [result.y, *result.final, *result.trace, *saved]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("cell", BUILT_IN)
def test_it_is_what_the_backend_makes(
    simt: Simt, cell: str, options: str, dtype: torch.dtype
) -> None:
    found, expected = both(simt, scan_in(Case(cell, **OPTIONS[options]), dtype))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("all_states", [False, True])
@pytest.mark.parametrize("cell", BUILT_IN)
def test_what_is_saved_is_too(simt: Simt, cell: str, all_states: bool, dtype: torch.dtype) -> None:
    scan = scan_in(Case(cell, all_states=all_states), dtype, training=True)
    found, expected = both(simt, scan)
    torch.testing.assert_close([bits(t) for t in found], [bits(t) for t in expected])
    composite = program(simt, scan, "torch")  # which saves nothing
    assert composite[3] == []


@pytest.mark.parametrize("strategy", ["stepwise", "resident", "cluster:blocks=2", "grid:blocks=2"])
def test_a_plan_can_be_asked_for(
    simt: Simt, monkeypatch: pytest.MonkeyPatch, strategy: str
) -> None:
    case = Case("lstm", T=5, B=4, H=40 + len(strategy))  # a size that was not planned before
    scan = scan_in(case, torch.bfloat16)
    monkeypatch.setenv("RNNFAST_PLAN", strategy)
    simt.ops.clear_log()
    with torch.no_grad():
        y, *_ = program(simt, scan, "cuda")
    launched = " ".join(simt.ops.launches())
    kernel = {"stepwise": "stepwise", "resident": "sequence_forward"}.get(strategy, "team_forward")
    assert kernel in launched, launched
    monkeypatch.delenv("RNNFAST_PLAN")
    torch.testing.assert_close(y, simt.forward(scan)[0].y, rtol=0.02, atol=0.02)


def test_padding_is_not_read(simt: Simt) -> None:
    """Tokens out of range there are no error."""
    case = Case("gru", kind="tokens", lengths=True)
    scan = scan_in(case, torch.float32)
    padded = torch.arange(case.T).unsqueeze(-1) >= scan.lengths
    outside = scan._replace(input=torch.where(padded, -7, scan.input))
    with torch.no_grad():
        torch.testing.assert_close(
            program(simt, outside, "cuda")[0], program(simt, scan, "cuda")[0]
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cell": "layer_norm_lstm"}, "no compiled cell layer_norm_lstm"),
        ({"states": []}, "takes 1 states, got 0"),
        ({"backend": "nonsense"}, "no backend is called nonsense"),
        ({"training": True, "backend": "triton"}, "for training by the backend triton"),
        ({"training": True, "backend": "cpu"}, "for training by the backend cpu"),
        ({"input": torch.zeros(7, 3, 4).double()}, "input should be of dtype Float, got Double"),
        ({"lengths": torch.tensor([1, 2])}, r"lengths should be \[3\], got \[2\]"),
    ],
)
def test_a_wrong_call_is_an_error(simt: Simt, changes: dict, message: str) -> None:
    case = Case("gru")
    names = [argument.name for argument in simt.ops.cuda_scan.default._schema.arguments]
    scan = scan_in(case, torch.float32)
    given = dict(zip(names, pack(scan, "cuda"), strict=True)) | changes
    with pytest.raises(RuntimeError, match=message):
        simt.ops.cuda_scan(*given.values())
