"""The backend ``cuda`` without a device: its reasons, its ops, and when ``auto`` asks it."""

from __future__ import annotations

import pytest
import torch

import rnnfast
from rnnfast import _ext
from rnnfast.backends import registry
from rnnfast.backends.preference import order
from rnnfast.problem import Options, Problem

CUDA = registry.BACKENDS["cuda"]


def problem(**changes) -> Problem:
    given = Problem(
        "lstm", "dense", "cuda", torch.float32, 20, 8, 16, 32, 32, True, False, False, Options()
    )
    return given._replace(**changes)


def test_without_a_device_it_says_what_is_missing() -> None:
    if CUDA.unusable() is None:
        pytest.skip("there is a device here")
    layer = rnnfast.LSTM(3, 5)
    with rnnfast.use_backend("cuda"), pytest.raises(rnnfast.BackendError) as raised:
        layer(torch.randn(4, 2, 3))
    known = ("torch sees no CUDA device", "rnnfast was built without CUDA", "the extension")
    assert any(reason in str(raised.value) for reason in known)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"device": "cpu"}, "it computes on cuda tensors only, not on cpu"),
        ({"dtype": torch.complex64}, "it has no kernel for torch.complex64"),
        (
            {"transformed": True, "recorded": True},
            "in a trace its kernels have no rules for derivatives by torch.func",
        ),
    ],
)
def test_why_not(changes: dict, reason: str) -> None:
    assert CUDA.why_not(problem(**changes)) == reason
    assert CUDA.why_not(problem(has_lengths=True, has_resets=True)) is None


def test_torch_is_asked_first_where_nothing_was_qualified() -> None:
    assert order(problem()).names[:1] == ("torch",)
    assert order(problem(has_lengths=True)).names[:1] == ("torch",)
    for changes in ({"cell": "gru_reset_before"}, {"has_resets": True}, {"kind": "gates"}):
        asked = problem(**changes)
        assert registry.BACKENDS["torch"].why_not(asked) is not None
        others = [name for name in order(asked).names if name not in ("torch", "cpu")]
        assert others[0] == "cuda"


@pytest.fixture
def ops():
    if (why := _ext.why_no_cuda()) is not None:
        pytest.skip(why)
    return torch.ops.rnnfast


def test_the_ops_are_registered_for_cuda(ops) -> None:
    names = ("forward", "backward", "forward_part", "backward_part", "scan")
    for name in (*names, "clip_norm", "clip_scale", "clip_value"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"rnnfast::cuda_{name}", "CUDA")


def test_the_ops_refuse_cpu_tensors_with_a_clear_message(ops) -> None:
    hint = "" if torch.cuda.is_available() else "; there is no CUDA device here"
    zeros = torch.zeros
    message = f"rnnfast: gates must be a cuda tensor, got one on cpu{hint}$"
    with pytest.raises(RuntimeError, match=message):
        ops.cuda_forward(
            cell="rnn_tanh", strategy="stepwise", math="fp32", choice=[],
            gates=[zeros(2, 1, 3, 1)], w_hh=[zeros(3, 3)], w_hr=[], h0=[zeros(1, 3)], c0=[],
            lengths=None, resets=None, reverse=[False], training=False, every_c=False,
        )  # fmt: skip
