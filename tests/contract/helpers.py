"""What the contract tests share: the kinds of layer, twins with equal weights, every number."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

import rnnfast
from tests.oracle import assert_all_close_to_oracle, largest_error

LAYER_CLASSES = ("RNN", "LSTM", "GRU")
CELL_CLASSES = ("RNNCell", "LSTMCell", "GRUCell")


@dataclass(frozen=True)
class Kind:
    """A class of torch.nn with the arguments that make it another recurrence."""

    cls: str
    kwargs: dict[str, Any] = field(default_factory=dict)


KINDS: dict[str, Kind] = {
    "rnn_tanh": Kind("RNN"),
    "rnn_relu": Kind("RNN", {"nonlinearity": "relu"}),
    "lstm": Kind("LSTM"),
    "lstm_proj": Kind("LSTM", {"proj_size": 3}),
    "gru": Kind("GRU"),
}


class Maker:
    """Builds layers of one family: torch.nn, rnnfast or rnnfast.compat."""

    def __init__(self, namespace: ModuleType) -> None:
        self.namespace = namespace

    def cls(self, name: str) -> type[nn.Module]:
        found: type[nn.Module] = getattr(self.namespace, name)
        return found

    def __call__(self, name: str, *args: Any, **kwargs: Any) -> Any:
        return self.cls(name)(*args, **kwargs)


def twins(make: Maker, kind: str | Kind, *sizes: int, **kwargs: Any) -> tuple[Any, Any]:
    """A layer under test and torch's, with the same weights."""
    spec = KINDS[kind] if isinstance(kind, str) else kind
    theirs = getattr(nn, spec.cls)(*sizes, **spec.kwargs, **kwargs)
    ours = make(spec.cls, *sizes, **spec.kwargs, **kwargs)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours, theirs


def to_float64(layer: nn.Module) -> Any:
    """torch's layer with the same weights in float64, from which the oracle's numbers come."""
    copies = {
        name: getattr(layer, name)
        for name in (
            "input_size",
            "hidden_size",
            "num_layers",
            "bias",
            "batch_first",
            "bidirectional",
        )
    }
    cls = type(layer)
    if cls is nn.RNN:
        copies["nonlinearity"] = layer.nonlinearity
    if cls is nn.LSTM:
        copies["proj_size"] = layer.proj_size
    double = cls(**copies, dtype=torch.float64)
    double.load_state_dict({name: weight.double() for name, weight in layer.state_dict().items()})
    return double


def hidden(layer: Any, batch: int | None, *, dtype: torch.dtype | None = None) -> Any:
    """Random initial states that fit `layer`; `batch=None` for unbatched input."""
    rows = layer.num_layers * (2 if layer.bidirectional else 1)
    middle = () if batch is None else (batch,)
    width = layer.proj_size or layer.hidden_size
    h = torch.randn(rows, *middle, width, dtype=dtype)
    if layer.mode != "LSTM":
        return h
    return h, torch.randn(rows, *middle, layer.hidden_size, dtype=dtype)


def as_hx(cls_name: str, state: Tensor) -> Any:
    """The same state for h and c where the class is an LSTM."""
    return (state, state) if cls_name.startswith("LSTM") else state


def states_of(hx: Any) -> list[Tensor]:
    """h alone, or h and c, as a list."""
    return [hx] if isinstance(hx, Tensor) else list(hx)


def cotangent(like: Tensor, salt: int) -> Tensor:
    """Fixed weights, of both signs, for a loss that no element can leave without being noticed."""
    steps = torch.arange(like.numel(), dtype=torch.float64) * (0.7 + 0.1 * salt)
    return (
        (torch.cos(steps + salt) / math.sqrt(max(like.numel(), 1)))
        .to(like.dtype)
        .reshape(like.shape)
    )


def results(output: Any, hn: Any) -> dict[str, Tensor]:
    """What a forward returned, by name; a PackedSequence by its data."""
    named = {"output": output.data if isinstance(output, PackedSequence) else output}
    named.update(zip(("h_n", "c_n"), states_of(hn), strict=False))
    return named


def run(layer: nn.Module, input: Any, hx: Any = None, **kwargs: Any) -> dict[str, Tensor]:
    """Forward and backward: outputs, final states, gradients of input, hx and weights, by name."""
    x = (input.data if isinstance(input, PackedSequence) else input).detach().requires_grad_()
    fed = PackedSequence(x, *input[1:]) if isinstance(input, PackedSequence) else x
    states = [state.detach().requires_grad_() for state in states_of(hx)] if hx is not None else []
    given = None if hx is None else states[0] if isinstance(hx, Tensor) else tuple(states)
    named = results(*layer(fed, given, **kwargs)[:2])
    loss = sum((value * cotangent(value, salt)).sum() for salt, value in enumerate(named.values()))
    sources = {"dx": x}
    sources.update(zip(("dh_0", "dc_0"), states, strict=False))
    sources.update(
        (f"d{name}", weight) for name, weight in layer.named_parameters() if weight.requires_grad
    )
    gradients = torch.autograd.grad(loss, list(sources.values()))
    named = {name: value.detach() for name, value in named.items()}
    named.update(zip(sources, gradients, strict=True))
    return named


def in_precision(value: Any, dtype: torch.dtype) -> Any:
    """A tensor, a state, a packed sequence or None in `dtype`."""
    if value is None:
        return None
    if isinstance(value, PackedSequence):
        return PackedSequence(value.data.to(dtype), *value[1:])
    return value.to(dtype) if isinstance(value, Tensor) else tuple(s.to(dtype) for s in value)


def assert_same_as_torch(
    ours: nn.Module, theirs: nn.Module, input: Any, hx: Any = None, *, gradients: bool = True
) -> None:
    """All that `run` returns, judged by the oracle's rule in the input's own precision.

    torch's own error is that of torch.nn or of the scratch loop in plain torch, whichever is
    further from float64 for the tensor at hand.
    """
    fed = in_precision(input, torch.float64), in_precision(hx, torch.float64)
    truth, by_layer = run(to_float64(theirs), *fed), run(theirs, input, hx)
    with rnnfast.use_backend("reference"):
        by_loop = run(ours, input, hx)
    same = {
        name: max(by_layer[name], by_loop[name], key=lambda t, ref=ref: largest_error(t, ref))
        for name, ref in truth.items()
    }
    all_of = run(ours, input, hx), truth, same
    if not gradients:
        values = ("output", "h_n", "c_n")
        all_of = tuple({n: v for n, v in named.items() if n in values} for named in all_of)
    assert_all_close_to_oracle(*all_of)


def raised(call: Callable[[], object]) -> BaseException:
    """The exception that `call` raises; failing where it returns."""
    try:
        returned = call()
    except Exception as error:  # whatever it is, it is the value under test
        return error
    raise AssertionError(f"nothing was raised, {type(returned).__name__} came back")


def assert_same_error(ours: Callable[[], object], theirs: Callable[[], object]) -> BaseException:
    """Both raise the same type with the same words; returns ours."""
    want, got = raised(theirs), raised(ours)
    assert (type(got), str(got)) == (type(want), str(want))
    return got
