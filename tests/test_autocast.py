"""Autocast: one rule for every way into a layer, and who may serve what on this processor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import rnnfast
from rnnfast import CELLS
from rnnfast.backends import registry, torch_native
from rnnfast.problem import problem_of

from .cases import Case, leaves, scan_of, taking
from .layers import makers

T, B, I, H, P = 4, 3, 2, 5, 3
LAYERS = makers(I, H, 2, proj_size=P)
LENGTHS = torch.tensor([4, 3, 1])
WAYS: dict[str, Callable[[Any, Tensor], Any]] = {
    "dense": lambda m, x: m(x),
    "again": lambda m, x: (m(x), m(x))[1],
    "packed": lambda m, x: m(pack_padded_sequence(x, LENGTHS)),
    "lengths": lambda m, x: m(x, lengths=LENGTHS),
    "resets": lambda m, x: m(x, resets=torch.zeros(T, B, dtype=torch.bool)),
    "all_states": lambda m, x: m(x, return_all_states=True),
    "tokens": lambda m, x: m(x[..., 0].long()),
}
bf16, f16, f32, f64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
# autocast's dtype, the layer's, the input's: the results' dtype, of wide ones (GRU, projected c)
RULE = {
    (bf16, f32, f32): (bf16, f32),
    (bf16, f32, bf16): (bf16, bf16),
    (bf16, bf16, bf16): (bf16, bf16),
    (f16, f32, f32): (f16, f32),
    (bf16, f64, f64): (f64, f64),
    (f16, f64, f64): (f64, f64),
}


def dtypes(found: Any) -> tuple[set[torch.dtype], set[torch.dtype]]:
    """Those of h, in every form, and those of c."""
    y, hn, *states = found
    y = y.data if isinstance(y, PackedSequence) else y
    h, *c = hn if isinstance(hn, tuple) else (hn,)
    for all_states in states:
        c += all_states.c or []
        y = torch.stack([y, *all_states.h[-1:]]) if y.dtype == all_states.h[0].dtype else y
        assert {s.dtype for s in all_states.h} == {h.dtype}
    return {y.dtype, h.dtype}, {s.dtype for s in c}


@pytest.mark.parametrize("backend", ["auto", *taking(torch.float32)])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", LAYERS)
def test_one_rule_for_every_way_in(name: str, way: str, backend: str) -> None:
    served = 0
    for (low, weights, input), (narrow, wide) in RULE.items():
        if way == "tokens" and input != weights:
            continue  # tokens have no dtype: as the weights'
        layer = LAYERS[name]().to(weights)
        x = torch.ones(T, B, I, dtype=input)
        try:
            with rnnfast.use_backend(backend), torch.autocast("cpu", low):
                h, c = dtypes(WAYS[way](layer, x))
        except rnnfast.BackendError:
            assert backend != "auto"
            continue
        served += 1
        for state, found in {"h": h, "c": c}.items():
            expected = wide if state in CELLS[name].wide_under_autocast else narrow
            assert found == {expected} or state not in CELLS[name].states, (low, weights, input)
    assert served > 0 or backend == "torch"


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "LSTM_proj", "GRU"])
def test_a_dense_call_has_torchs_dtypes(kind: str) -> None:
    cls, _, proj = kind.partition("_")
    kwargs = {"proj_size": P} if proj else {}
    for (low, weights, input), _ in RULE.items():
        theirs = getattr(nn, cls)(I, H, **kwargs).to(weights)
        ours = getattr(rnnfast, cls)(I, H, **kwargs).to(weights)
        x = torch.ones(T, B, I, dtype=input)
        without = torch_native.lstm_failure(torch.float32, low, True) is not None
        with torch.autocast("cpu", low):
            if kind == "LSTM" and weights != f64 and without:
                # oneDNN has no such LSTM on this processor: torch fails, or takes its loop
                assert dtypes(ours(x)) == ({low}, {low})
            else:
                assert dtypes(ours(x)) == dtypes(theirs(x)), (low, weights, input)


@pytest.mark.parametrize("name", LAYERS)
def test_wide_states_of_the_caller(name: str) -> None:
    """A bfloat16 input, as a linear layer gives it under autocast, with float32 states."""
    layer = LAYERS[name]()
    h = torch.zeros(2, B, P if name == "lstm_proj" else H)
    hx: Any = (h, torch.zeros(2, B, H)) if name.startswith("lstm") else h
    x = torch.randn(T, B, I).bfloat16()
    with torch.autocast("cpu", bf16):
        y, _ = layer(x, hx)
        z, _ = layer(x, hx, lengths=LENGTHS)
    assert y.dtype == z.dtype == (f32 if "h" in CELLS[name].wide_under_autocast else bf16)


def test_float64_is_not_mixed_with_what_autocast_makes() -> None:
    layer = rnnfast.GRU(I, H)
    x = torch.randn(T, B, I)
    with torch.autocast("cpu", bf16), pytest.raises(RuntimeError, match="float64"):
        layer(x, torch.zeros(1, B, H).double())
    with torch.autocast("cpu", bf16), pytest.raises(RuntimeError, match="dtype"):
        layer.double()(x)


def test_a_scan_follows_the_rule() -> None:
    layer = rnnfast.GRU(I, H)
    weights = [w.detach() for w in layer.parameters()]
    for h, expected in ((torch.zeros(B, H), f32), (torch.zeros(B, H).bfloat16(), bf16)):
        with torch.autocast("cpu", bf16):
            found = rnnfast.scan("gru", torch.randn(T, B, I), [h], weights)
        assert {found.y.dtype, found.final[0].dtype} == {expected}


# --- what this processor's oneDNN has ------------------------------------------------------------


def failure(dtype: torch.dtype, low: torch.dtype | None, training: bool) -> bool:
    layer = nn.LSTM(I, H, dtype=dtype)
    try:
        with torch.set_grad_enabled(training), torch.autocast("cpu", low, enabled=low is not None):
            y = layer(torch.randn(T, B, I, dtype=dtype))[0]
        if training:
            y.float().sum().backward()
    except RuntimeError:
        return True
    return False


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("low", [None, bf16, f16])
@pytest.mark.parametrize("dtype", [f32, bf16, f16])
def test_torch_is_asked_for_no_lstm_that_fails(
    dtype: torch.dtype, low: torch.dtype | None, training: bool
) -> None:
    found = torch_native.lstm_failure(dtype, low, training)
    if dtype == f32 or low is None:
        assert (found is not None) == failure(dtype, low, training)
    layer = rnnfast.LSTM(I, H, dtype=dtype)
    with torch.set_grad_enabled(training), torch.autocast("cpu", low, enabled=low is not None):
        assert bool(torch.isfinite(layer(torch.randn(T, B, I, dtype=dtype))[0]).all())


def test_a_failure_is_a_refusal_with_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor whose oneDNN has no bfloat16, whichever this one is."""
    monkeypatch.setattr(torch_native, "lstm_failure", lambda *_: "no primitive")
    asked = problem_of(scan_of(Case("lstm"), leaves(Case("lstm"), bf16)))
    reason = registry.refusal(registry.BACKENDS["torch"], asked)
    assert reason == "torch's LSTM fails in torch.bfloat16 on this processor: no primitive"
    for case in (Case("gru"), Case("lstm_proj")):
        other = problem_of(scan_of(case, leaves(case, bf16)))
        assert registry.refusal(registry.BACKENDS["torch"], other) is None
    assert registry.select(asked).name != "torch"
