"""Layers on top of one another, pipelined (rnnfast/backends/cuda/pipeline.py), on the executor.

The lanes here run their tasks in an order drawn anew for every call, of those that the lanes and
their marks allow. So what a lane does not wait for, it once will not find.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import rnnfast

from ..cuda_cases import forced
from ..pipeline_cases import LAYERS, assert_alike, results
from .backend import Shuffled, Simt

STEPS = 8


def compare(
    layer: torch.nn.Module,
    x: Tensor,
    monkeypatch: pytest.MonkeyPatch,
    simt: Simt,
    parts: int,
    **more: Tensor,
) -> None:
    monkeypatch.delenv("RNNFAST_PIPELINE", raising=False)
    simt.ops.clear_log()
    expected = results(layer, x, "simt", **more)
    assert len(simt.ops.launches()) == 2 * layer.num_layers
    monkeypatch.setenv("RNNFAST_PIPELINE", str(STEPS))
    simt.ops.clear_log()
    found = results(layer, x, "simt", **more)
    assert len(simt.ops.launches()) == 2 * layer.num_layers * parts
    assert_alike(found, expected)


@pytest.mark.parametrize("strategy", ["resident", "cluster:blocks=2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cell", LAYERS)
def test_the_same_as_one_after_the_other(
    simt: Simt,
    monkeypatch: pytest.MonkeyPatch,
    cell: str,
    dtype: torch.dtype,
    strategy: str,
) -> None:
    torch.manual_seed(0)
    layer = LAYERS[cell](3, 5, num_layers=3, dtype=dtype)
    with forced(strategy, "float32" if strategy == "resident" else "tf32"):
        compare(layer, torch.randn(20, 2, 3, dtype=dtype), monkeypatch, simt, 3)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_lengths_and_resets(simt: Simt, monkeypatch: pytest.MonkeyPatch, cell: str) -> None:
    torch.manual_seed(0)
    layer = LAYERS[cell](3, 5, num_layers=2, grad_clip_time=0.05)
    more = {"lengths": torch.tensor([20, 0, 8, 9, 16, 1, 7, 19, 15, 17])}
    more["resets"] = torch.rand(20, 10) < 0.2
    with forced("resident"):
        compare(layer, torch.randn(20, 10, 3), monkeypatch, simt, 3, **more)


def test_tokens_and_no_bias(simt: Simt, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layer = rnnfast.LSTM(7, 5, num_layers=2, bias=False)
    with forced("resident"):
        compare(layer, torch.randint(7, (17, 3)), monkeypatch, simt, 3)


def test_states_in_any_layout(simt: Simt, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = rnnfast.LSTM(3, 5, num_layers=2), torch.randn(17, 4, 3)
    hx = tuple(torch.randn(2, 5, 4).transpose(1, 2).requires_grad_() for _ in range(2))
    found = []
    for steps in ("0", "8"):
        monkeypatch.setenv("RNNFAST_PIPELINE", steps)
        with forced("resident"), rnnfast.use_backend("simt"):
            y, (h, c) = layer(x, hx)
            found.append([y, h, c, *torch.autograd.grad((y * h[1]).sum(), hx)])
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("later", ["stepwise", "grid:blocks=2"])
def test_a_backward_under_another_plan(
    simt: Simt, monkeypatch: pytest.MonkeyPatch, later: str
) -> None:
    layer = rnnfast.GRU(3, 20, num_layers=3, dtype=torch.bfloat16)
    x = torch.randn(17, 4, 3, dtype=torch.bfloat16, requires_grad=True)
    found = []
    for steps in ("0", "8"):
        monkeypatch.setenv("RNNFAST_PIPELINE", steps)
        with forced("resident"), rnnfast.use_backend("simt"):
            y, h = layer(x)
        with forced(later):
            found.append(torch.autograd.grad((y[-1] * h).sum(), [x, *layer.parameters()]))
    assert all(map(torch.equal, *found))


def test_under_autocast(simt: Simt, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layer = rnnfast.GRU(3, 5, num_layers=2)
    with forced("resident"), torch.autocast("cpu", torch.bfloat16):
        compare(layer, torch.randn(17, 3, 3), monkeypatch, simt, 3)


def test_the_gradient_of_the_gradient(simt: Simt, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = rnnfast.LSTM(2, 3, num_layers=2)
    x = torch.randn(9, 2, 2, requires_grad=True)

    def second() -> tuple[Tensor, ...]:
        with rnnfast.use_backend("simt"), forced("resident"):
            y, _ = layer(x)
        (first,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), [x, *layer.parameters()])

    expected = second()
    monkeypatch.setenv("RNNFAST_PIPELINE", "8")
    torch.testing.assert_close(second(), expected)


def test_inference_saves_nothing_and_is_the_same(
    simt: Simt, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, x = rnnfast.LSTM(3, 5, num_layers=2, dtype=torch.float16), torch.randn(16, 2, 3).half()
    with torch.no_grad(), rnnfast.use_backend("simt"), forced("resident"):
        expected = layer(x)
        monkeypatch.setenv("RNNFAST_PIPELINE", "8")
        simt.ops.clear_log()
        found = layer(x)
    assert simt.ops.launches() == ["sequence_forward"] * 4
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.usefixtures("poisoned")  # else they may find what the call before left there
def test_lanes_that_do_not_wait_are_seen(simt: Simt, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the marks some order gives another result: what the tests above stand on."""
    layer, x = rnnfast.LSTM(3, 5, num_layers=3), torch.randn(32, 2, 3)
    monkeypatch.setenv("RNNFAST_PIPELINE", "8")
    with forced("resident"), torch.no_grad(), rnnfast.use_backend("simt"):
        expected, _ = layer(x)
        monkeypatch.setattr(Shuffled, "waits", False)
        assert any(not torch.equal(layer(x)[0], expected) for _ in range(5))


def refused(layer: torch.nn.Module, x: Tensor, **more: object) -> str:
    with rnnfast.use_backend("simt"):
        return str(rnnfast.explain(layer, x, **more))


def test_explain_says_why_not(simt: Simt, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(16, 2, 3)
    two = rnnfast.LSTM(3, 5, num_layers=2)
    assert "pipelined" not in refused(two, x)
    monkeypatch.setenv("RNNFAST_PIPELINE", "8")
    with forced("resident"):
        assert "layers pipelined, 8 steps a part" in refused(two, x)
        for layer, reason in (
            (rnnfast.LSTM(3, 5), "there is one layer"),
            (rnnfast.LSTM(3, 5, num_layers=2, bidirectional=True), "a reversed layer"),
            (rnnfast.LSTM(3, 5, num_layers=2, dropout=0.5), "dropout draws one mask"),
            (rnnfast.LSTM(3, 5, num_layers=2, checkpoint_every=4), "checkpoint_every"),
        ):
            assert f"layers not pipelined: {reason}" in refused(layer, x)
        assert "float16 scales" in refused(two.half(), x.half())
        assert "the states of all steps" in refused(two.float(), x, return_all_states=True)
        assert "T is no more than" in refused(two, x[:8])
    with forced("grid:blocks=2"), torch.no_grad():
        two.bfloat16()
        assert "forward is grid" in refused(two, x.bfloat16())


@pytest.mark.parametrize("text", ["12", "-8", "many"])
def test_steps_must_be_a_multiple_of_8(
    simt: Simt, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("RNNFAST_PIPELINE", text)
    with pytest.raises(ValueError, match="RNNFAST_PIPELINE is a multiple of 8"):
        results(rnnfast.LSTM(3, 5, num_layers=2), torch.randn(9, 2, 3), "simt")


def test_parts_that_kernels_cannot_take(simt: Simt) -> None:
    y, last = torch.zeros(8, 2, 3), torch.zeros(2, 3)
    gates, w_hh = torch.zeros(8, 2, 3, 4), torch.zeros(12, 3)

    def call(strategy: str = "resident", out: Tensor = y, before: object = ()) -> None:
        simt.ops.cuda_forward_part(
            cell="lstm", strategy=strategy, math="fp32", choice=[0], gates=gates, w_hh=w_hh,
            h0=torch.zeros(2, 3), c0=torch.zeros(2, 3), lengths=None, resets=None, training=False,
            before=before, y=out, h_last=last, c_last=last, c=None, after=[],
        )  # fmt: skip

    with pytest.raises(RuntimeError, match="can't be computed by the strategy 'stepwise'"):
        call("stepwise")
    with pytest.raises(RuntimeError, match="y must be contiguous"):
        call(out=torch.zeros(8, 3, 2).transpose(1, 2))
    with pytest.raises(RuntimeError, match="before must have 2 tensors, or none, got 1"):
        call(before=[last])
