"""Who else computes a cell of one's own: a loop in plain torch, torch.compile of it or of its step,
JAX's ``lax.scan``.

Each is a call of measure.py: forward and backward, the gradients of all weights. What JAX computes
is not torch's, so it has a gradient of its own to show. Who computes something else is not timed.
"""

from __future__ import annotations

import copy
import importlib.util
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import rnnfast

OF_A_LAYER = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


class Call:
    """Forward and backward of one layer, by one backend."""

    def __init__(self, layer: nn.Module, x: Tensor, backend: str = "cpu") -> None:
        self.layer, self.x, self.backend = layer, x, backend
        self.loss_gradient: Tensor | None = None

    def prepare(self) -> None:
        self.layer.zero_grad(set_to_none=True)

    def __call__(self) -> None:
        with rnnfast.use_backend(self.backend):
            y = self.layer(self.x)[0]
            if self.loss_gradient is None:
                self.loss_gradient = torch.ones_like(y)
            y.backward(self.loss_gradient)

    def gradient(self) -> Tensor:
        """Of weight_ih, which all of the call has a part in."""
        self.prepare()
        self()
        found = dict(self.layer.named_parameters())
        weight = next(found[n] for n in found if n.endswith("weight_ih_l0"))
        assert weight.grad is not None
        return weight.grad


class EagerLoop(nn.Module):
    """What a user writes today: the step in a Python loop, the input projected at once."""

    def __init__(self, layer: rnnfast.Recurrent, step: Callable[..., Any] | None = None) -> None:
        super().__init__()
        self.layer = layer
        self.step = step or layer.cell.step

    def forward(self, x: Tensor) -> tuple[Tensor]:
        layer = self.layer
        w = {name: getattr(layer, f"{name}_l0") for name in OF_A_LAYER}
        extra = {p.name: getattr(layer, f"{p.name}_l0") for p in layer.cell.params}
        weights = rnnfast.cells.StepWeights(w["weight_hh"], w["bias_hh"], None, extra)
        states = tuple(x.new_zeros(x.shape[1], layer.hidden_size) for _ in layer.cell.states)
        outputs = []
        for gx in F.linear(x, w["weight_ih"], w["bias_ih"]).unbind(0):
            states = self.step(gx, states, weights)
            outputs.append(states[0])
        return (torch.stack(outputs),)


class OutOfTime(Exception):
    pass


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raises OutOfTime in what takes longer, once no module is half imported; also where what was
    ended so made another error of it, or went on."""
    ended = False

    def stop(_: int, frame: FrameType | None) -> None:
        nonlocal ended
        if _imports(frame):
            signal.setitimer(signal.ITIMER_REAL, 0.01)
            return
        ended = True
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except Exception as error:
        if ended:
            raise OutOfTime from error
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    if ended:
        raise OutOfTime


def _imports(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def compiled_step(layer: rnnfast.Recurrent, x: Tensor) -> Call:
    """The loop in Python, each step by torch.compile."""
    return Call(EagerLoop(layer, torch.compile(layer.cell.step, dynamic=False)), x)


def compiled_loop(layer: rnnfast.Recurrent, x: Tensor) -> Call:
    """torch.compile of the whole loop, which unrolls it."""
    call = Call(EagerLoop(layer), x)
    call.layer.compile(dynamic=False)
    return call


class JaxScan:
    """``lax.scan`` of the same step in JAX, compiled by XLA, on all cores that it finds."""

    def __init__(self, layer: rnnfast.Recurrent, x: Tensor) -> None:
        import jax
        from jax import lax
        from jax import numpy as jnp

        step, states, H = _jax_step(layer.cell.name), len(layer.cell.states), layer.hidden_size

        def loss(w: dict[str, Any], x: Any) -> Any:
            def body(carry: tuple[Any, ...], gx: Any) -> tuple[tuple[Any, ...], Any]:
                new = step(gx, carry, w)
                return new, new[0]

            zeros = tuple(jnp.zeros((x.shape[1], H), x.dtype) for _ in range(states))
            gates = x @ w["weight_ih"].T + w["bias_ih"]
            return lax.scan(body, zeros, gates)[1].sum()

        self._w = {
            name.removesuffix("_l0"): jnp.asarray(weight.detach().numpy())
            for name, weight in layer.named_parameters()
        }
        self._x = jnp.asarray(x.numpy())
        self._run = jax.jit(jax.value_and_grad(loss))
        self._wait = jax.block_until_ready

    def prepare(self) -> None:
        pass

    def __call__(self) -> Any:
        return self._wait(self._run(self._w, self._x))

    def gradient(self) -> Tensor:
        return torch.tensor(self()[1]["weight_ih"].tolist())


def _jax_step(cell: str) -> Callable[..., tuple[Any, ...]]:
    from jax import nn as jnn
    from jax import numpy as jnp

    def norm(x: Any, gain: Any, shift: Any = 0.0) -> Any:
        centred = x - x.mean(-1, keepdims=True)
        variance = (centred**2).mean(-1, keepdims=True)
        return centred / jnp.sqrt(variance + 1e-5) * gain + shift

    def lstm(gx: Any, states: tuple[Any, ...], w: dict[str, Any]) -> tuple[Any, ...]:
        h, c = states
        i, f, g, o = jnp.split(gx + h @ w["weight_hh"].T + w["bias_hh"], 4, -1)
        c = jnn.sigmoid(f) * c + jnn.sigmoid(i) * jnp.tanh(g)
        return jnn.sigmoid(o) * jnp.tanh(c), c

    def layer_norm_lstm(gx: Any, states: tuple[Any, ...], w: dict[str, Any]) -> tuple[Any, ...]:
        h, c = states
        recurrent = norm(h @ w["weight_hh"].T + w["bias_hh"], w["gain_hh"], w["shift"])
        i, f, g, o = jnp.split(norm(gx, w["gain_ih"]) + recurrent, 4, -1)
        c = jnn.sigmoid(f) * c + jnn.sigmoid(i) * jnp.tanh(g)
        return jnn.sigmoid(o) * jnp.tanh(norm(c, w["gain_c"], w["shift_c"])), c

    return layer_norm_lstm if cell == "layer_norm_lstm" else lstm


PEERS: dict[str, Callable[[rnnfast.Recurrent, Tensor], Any]] = {
    "eager loop": lambda layer, x: Call(EagerLoop(layer), x),
    "torch.compile of the step": compiled_step,
    "torch.compile of the loop": compiled_loop,
    "JAX lax.scan": JaxScan,
}


def yardstick(layer: rnnfast.Recurrent, x: Tensor) -> tuple[Tensor, float]:
    """The gradient in float64, and how far another may be from it: twice as far as the loop in
    torch is in float32, and 4 eps of the largest value (tests/oracle.py)."""
    wide = copy.deepcopy(layer).double()
    exact = Call(EagerLoop(wide), x.double()).gradient()
    torchs = largest_error(Call(EagerLoop(layer), x).gradient(), exact)
    return exact, 2 * torchs + 4 * torch.finfo(x.dtype).eps * float(exact.abs().max())


def largest_error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).abs().max())


def peers(layer: rnnfast.Recurrent, x: Tensor, limit: float) -> Iterator[tuple[str, Any, str]]:
    """Each by its name: a call of it, or None and why: it is not here, computes something else, or
    is not compiled within ``limit`` seconds."""
    exact, allowed = yardstick(layer, x)
    for name, make in PEERS.items():
        if name.startswith("JAX") and importlib.util.find_spec("jax") is None:
            yield name, None, "not installed"
            continue
        torch.compiler.reset()
        try:
            with limited(limit):
                made = make(layer, x)
                found = made.gradient()
        except OutOfTime:
            yield name, None, f"not compiled within {limit:g} s"
            continue
        wrong = largest_error(found, exact)
        if wrong <= allowed:
            yield name, made, ""
        else:
            yield name, None, f"wrong by {wrong:.1e}, allowed {allowed:.1e}"
