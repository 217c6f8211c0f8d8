"""The CUDA backend's Python and bindings, on the executor: both directions in one launch, what is
saved, small gradients in float16, forced plans, and what the ops refuse."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import rnnfast
from rnnfast.problem import Scan, problem_of
from rnnfast.products.gates import slots_of

from ..cases import BUILT_IN, Case, leaves, run, scan_of, small, with_gradients
from ..cuda_cases import EVERYTHING, MATHS, RESIDENT_CELLS, forced
from ..oracle import largest_error
from ..pipeline_cases import assert_same
from .backend import Simt

LAYERS = {"lstm": rnnfast.LSTM, "gru": rnnfast.GRU, "rnn_tanh": rnnfast.RNN}


# --- both directions of a layer ----------------------------------------------------------------


def layer_results(layer: torch.nn.Module, x: Tensor, lengths: Tensor) -> dict[str, Tensor]:
    x = x.clone().requires_grad_()
    y, final = layer(x, lengths=lengths)
    states = final if isinstance(final, tuple) else (final,)
    found = {"y": y, **{f"state {i}": s for i, s in enumerate(states)}}
    parameters = dict(layer.named_parameters())
    loss = sum((v.float() * torch.arange(v.numel()).view_as(v).sin()).sum() for v in found.values())
    grads = torch.autograd.grad(loss, [x, *parameters.values()])
    names = ["x", *parameters]
    return {**found, **{f"grad of {n}": g for n, g in zip(names, grads, strict=True)}}


@pytest.mark.parametrize("autocast", [False, True], ids=["plain", "autocast"])
@pytest.mark.parametrize("strategy", ["stepwise", "resident"])
@pytest.mark.parametrize("cell", LAYERS)
def test_both_directions_of_a_layer_go_together(
    simt: Simt, monkeypatch: pytest.MonkeyPatch, cell: str, strategy: str, autocast: bool
) -> None:
    layer = LAYERS[cell](3, 5, num_layers=2, bidirectional=True)
    x, lengths = torch.randn(4, 10, 3), torch.tensor([4, 0, 1, 2, 3, 4, 4, 1, 2, 3])
    with (
        forced(strategy),
        rnnfast.use_backend("simt"),
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
    ):
        together = layer_results(layer, x, lengths)
        launches = simt.ops.launches()
        monkeypatch.setattr(Simt, "paired", False)
        assert_same(together, layer_results(layer, x, lengths))
    if strategy == "resident":  # one launch a layer and pass; alone, one a direction
        assert launches == ["sequence_forward"] * 2 + ["sequence_backward"] * 2
        assert len(simt.ops.launches()) == 4 + 8
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        reference = layer_results(layer, x, lengths)
    tolerance = {"rtol": 0.05, "atol": 0.05} if autocast else {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(together, reference, **tolerance)


@pytest.mark.parametrize("unused", [0, 1])
def test_a_direction_whose_output_is_not_used_gets_zero_gradients(simt: Simt, unused: int) -> None:
    layer = rnnfast.GRU(3, 5, bidirectional=True)
    with forced("resident"), rnnfast.use_backend("simt"):
        y, _ = layer(torch.randn(4, 2, 3))
        half = y.unflatten(-1, (2, 5))[..., 1 - unused, :]
        half.sum().backward()
    suffix = {0: "_l0", 1: "_l0_reverse"}
    assert not layer.get_parameter("weight_hh" + suffix[unused]).grad.any()
    assert layer.get_parameter("weight_hh" + suffix[1 - unused]).grad.any()


# --- schedules, what is saved ------------------------------------------------------------------


@pytest.mark.parametrize("math", ["float32", "tf32", "bfloat16", "float16"])
@pytest.mark.parametrize("cell", RESIDENT_CELLS)
def test_the_order_of_threads_changes_no_bit(simt: Simt, cell: str, math: str) -> None:
    case = Case(cell, T=4, B=9, H=24, **EVERYTHING)
    found = []
    for schedule in ("in-order", "reverse", "random"):
        simt.ops.set_schedule(schedule, 1)
        with forced("resident", math):
            found.append(run(case, "simt", MATHS[math]))
    assert_same(found[1], found[0])
    assert_same(found[2], found[0])


@pytest.mark.parametrize("strategy", ["stepwise", "resident"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("all_states", [False, True], ids=["", "all_states"])
@pytest.mark.parametrize("cell", BUILT_IN)
def test_what_is_saved_is_what_was_announced_and_inference_saves_nothing(
    simt: Simt, cell: str, all_states: bool, dtype: torch.dtype, strategy: str
) -> None:
    case = Case(cell, all_states=all_states)
    t = leaves(case, dtype)
    with forced(strategy if cell in RESIDENT_CELLS else "stepwise"), torch.no_grad():
        scan = scan_of(case, t)
        trained, saved = simt.forward(scan)
        inferred, nothing = simt.forward(scan_of(case, t, training=False))
    assert [(tuple(s.shape), s.dtype) for s in saved] == simt.saved_like(problem_of(scan))
    assert nothing == []
    assert torch.equal(trained.y, inferred.y)
    outputs = [trained.final + trained.trace, inferred.final + inferred.trace]
    assert all(torch.equal(one, other) for one, other in zip(*outputs, strict=True))
    T, B, H = case.T, case.B, case.H
    values = sum(s.numel() for s in saved if s.dtype == dtype)
    spec = rnnfast.CELLS[cell]
    kept = slots_of(spec) + int(spec.projected) + len(spec.states) - 1
    assert values <= kept * T * B * H


# --- gradients ---------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["stepwise", "resident"])
@pytest.mark.parametrize("cell", RESIDENT_CELLS)
def test_small_gradients_survive_float16(simt: Simt, cell: str, strategy: str) -> None:
    """At 2**-20, those of gates have four bits left in float16; sums of them are larger."""
    case = Case(cell, T=20, B=16, I=4, H=8)
    factor = 2.0**-20

    def gradients(scale: float) -> dict[str, Tensor]:
        t = leaves(case, torch.float16)
        scan = scan_of(case, t)
        y, final, _ = rnnfast.scan(cell, scan.input, scan.states, scan.weights, backend="simt")
        scaled = {n: v.sign() * scale if n in ("dy", "dh", "dc") else v for n, v in t.items()}
        named = {"y": y, **dict(zip("hc", final, strict=False))}
        return with_gradients(named, scaled)

    with forced(strategy):
        plain, tiny = gradients(1.0), gradients(factor)
    for name in ("w_ih", "w_hh", "b_hh"):
        expected = plain[f"grad of {name}"].double() * factor
        error = largest_error(tiny[f"grad of {name}"], expected)
        limits = torch.finfo(torch.float16)
        smallest = limits.tiny * limits.eps
        assert error <= 2 * limits.eps * float(expected.abs().max()) + smallest, name


@pytest.mark.parametrize("cell", ["rnn_tanh", "gru_reset_before"])
def test_second_derivatives(simt: Simt, cell: str) -> None:
    case = small(Case(cell, lengths=True))
    t = leaves(case, torch.float64)
    scan = scan_of(case, t)
    tensors = [scan.input, *scan.states, *scan.weights]
    n = len(scan.states)

    def function(*given: Tensor) -> tuple[Tensor, ...]:
        y, final, _ = rnnfast.scan(
            cell, given[0], given[1 : 1 + n], given[1 + n :], lengths=scan.lengths, backend="simt"
        )
        return (y, *final)

    assert torch.autograd.gradgradcheck(function, tensors, nondet_tol=0.0)


@pytest.mark.parametrize("strategy", ["stepwise", "resident"])
@pytest.mark.parametrize("cell", RESIDENT_CELLS)
def test_checkpoints_change_the_launches_only(simt: Simt, cell: str, strategy: str) -> None:
    case = Case(cell, T=7, **EVERYTHING)
    t = leaves(case, torch.float32)
    scan = scan_of(case, t)

    def results(every: int) -> dict[str, Tensor]:
        y, final, trace = rnnfast.scan(
            cell, scan.input, scan.states, scan.weights, lengths=scan.lengths,
            resets=scan.resets, reverse=True, all_states=True, checkpoint_every=every,
            backend="simt",
        )  # fmt: skip
        named = dict(zip("hc", final, strict=False))
        named |= {"y": y, **dict(zip(["trace"], trace, strict=False))}
        return with_gradients(named, t)

    with forced(strategy):
        whole = results(0)
        simt.ops.clear_log()
        cut = results(3)
    torch.testing.assert_close(cut, whole, rtol=1e-5, atol=1e-6)
    if strategy == "resident":  # three segments forward, then again and back from the last
        again = ["sequence_forward", "sequence_backward"]
        assert simt.ops.launches() == ["sequence_forward"] * 3 + again * 3


@pytest.mark.parametrize("strategy", ["stepwise", "resident"])
@pytest.mark.parametrize("cell", BUILT_IN)
def test_padding_is_never_read(simt: Simt, cell: str, strategy: str) -> None:
    case = Case(cell, lengths=True)
    found = []
    for filler in (0.0, float("nan")):
        t = leaves(case, torch.float32)
        steps = torch.arange(case.T).view(-1, 1, 1)
        x = t["x"].detach().masked_fill(steps >= t["lengths"].view(1, -1, 1), filler)
        t["x"] = x.requires_grad_()
        scan = scan_of(case, t)
        with forced(strategy if cell in RESIDENT_CELLS else "stepwise"):
            y, final, _ = rnnfast.scan(
                cell, x, scan.states, scan.weights, lengths=scan.lengths, backend="simt"
            )
        found.append(with_gradients({"y": y, **dict(zip("hc", final, strict=False))}, t))
    assert_same(found[1], found[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("strategy", ["stepwise", "resident"])
def test_an_empty_batch(simt: Simt, strategy: str, dtype: torch.dtype) -> None:
    case = Case("lstm", B=2)
    t = {n: v[:, :0] if n in ("x", "dy", "dtrace") else v for n, v in leaves(case, dtype).items()}
    t = {n: v[:0] if n in ("h", "c", "dh", "dc") else v for n, v in t.items()}
    scan = scan_of(case, t)
    with forced(strategy):
        y, final, _ = rnnfast.scan("lstm", scan.input, scan.states, scan.weights, backend="simt")
    y.sum().backward()
    assert y.shape == (case.T, 0, case.H)
    assert final[1].shape == (0, case.H)
    assert not t["w_hh"].grad.any()
    assert simt.ops.launches() == []


# --- plans and refusals ------------------------------------------------------------------------


def plain_scan(simt: Simt, H: int = 6) -> Scan:
    case = Case("lstm", H=H)
    return scan_of(case, leaves(case, torch.float32), training=False)


def test_explain_shows_the_plan(simt: Simt) -> None:
    layer = rnnfast.LSTM(3, 5)
    with rnnfast.use_backend("simt"):
        text = str(rnnfast.explain(layer, torch.randn(4, 2, 3)))
        assert "-> simt: forward resident: tf32, shape 0" in text
        assert "; backward resident: tf32, shape 0" in text
        with forced("stepwise"), torch.no_grad():
            text = str(rnnfast.explain(layer, torch.randn(4, 2, 3)))
    assert "-> simt: stepwise (as RNNFAST_PLAN asks); the model expects" in text


@pytest.mark.parametrize(
    ("plan", "H", "message"),
    [
        ("resident", 600, "RNNFAST_PLAN asks for resident: H = 600 in fp32 does not fit"),
        ("resident:shape=7", 6, "RNNFAST_PLAN asks for resident:shape=7: H = 6 in"),
        (
            "grid:blocks=4",
            40,
            "RNNFAST_PLAN asks for grid:blocks=4: no team computes in strict fp32",
        ),
        ("cluster:teams=2", 40, "RNNFAST_PLAN is stepwise, resident, cluster or grid"),
        ("fastest", 6, "RNNFAST_PLAN is stepwise, resident, cluster or grid"),
    ],
)
def test_a_plan_that_cannot_be_is_an_error(simt: Simt, plan: str, H: int, message: str) -> None:
    with forced(plan), pytest.raises(ValueError, match=message):
        simt.forward(plain_scan(simt, H))


def op_arguments(scan: Scan) -> dict:
    T, B, _ = scan.input.shape
    H = scan.weights[1].shape[1]
    return {
        "cell": "lstm",
        "strategy": "stepwise",
        "math": "fp32",
        "choice": [],
        "gates": [torch.zeros(T, B, H, 4)],
        "w_hh": [scan.weights[1].detach()],
        "w_hr": [],
        "h0": [torch.zeros(B, H)],
        "c0": [torch.zeros(B, H)],
        "lengths": None,
        "resets": None,
        "reverse": [False],
        "training": False,
        "every_c": False,
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cell": "mlp"}, "unknown cell 'mlp'"),
        ({"strategy": "magic"}, "no strategy is called 'magic'"),
        (
            {"strategy": "resident", "math": "bf16", "choice": [0]},
            "no resident kernel computes",
        ),
        ({"strategy": "resident", "choice": []}, "resident takes 1 numbers, got 0"),
        ({"strategy": "grid", "choice": [0, 2]}, "grid takes 4 numbers, got 2"),
        (
            {"strategy": "grid", "math": "tf32", "choice": [0, 1, 1, 0]},
            "a team of 1 blocks, 1 teams of 0 batch tiles, shape 0: none may be below 1",
        ),
        ({"gates": [torch.zeros(7, 3, 5, 4)]}, "gates must have shape"),
        ({"gates": [torch.zeros(7, 3, 4, 6).transpose(2, 3)]}, "must be contiguous"),
        ({"c0": []}, "c0 is missing"),
        ({"w_hr": [torch.zeros(2, 6)]}, "w_hr is not this cell's"),
        ({"h0": [torch.zeros(3, 6).double()]}, "h0 must be Float, got Double"),
        ({"lengths": torch.zeros(3)}, "lengths must be Long"),
        ({"lengths": torch.zeros(4).long()}, "lengths must have shape"),
        ({"reverse": [False, True]}, "one or two directions"),
    ],
)
def test_the_op_refuses(simt: Simt, changes: dict, message: str) -> None:
    arguments = op_arguments(plain_scan(simt))
    simt.ops.cuda_forward(**arguments)
    with pytest.raises((RuntimeError, ValueError), match=message):
        simt.ops.cuda_forward(**{**arguments, **changes})
