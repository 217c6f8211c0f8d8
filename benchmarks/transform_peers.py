"""The transforms that benchmarks.transforms times, of each peer, and a process that calls them.

    python -m benchmarks.transform_peers PEER CELL THREADS

answers lines of standard input: "NAME\tCALLS" by the seconds of so many calls, as JSON, and
"NAME\t=PATH" by writing what the transform returns to PATH, for the gate. What a peer can't do it
answers by null.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp

import rnnfast

T, B, I, H, MEMBERS = 50, 32, 40, 64, 8
Parameters = Mapping[str, Tensor]
NN = {"lstm": nn.LSTM, "gru": nn.GRU}
OURS = {"lstm": rnnfast.LSTM, "gru": rnnfast.GRU}
AGAINST = {  # what each transform is held against
    "vmap": "forward",
    "per-sample gradients": "training step",
    "ensemble of 8, gradients": "training step",
    "jvp by input": "forward",
    "jvp by weights": "forward",
    "HVP, forward over reverse": "training step",
    "HVP, reverse over reverse": "training step",
    "gradient penalty": "training step",
}


@dataclass
class Data:
    """What every peer is given: numbers of one layer, an input, and directions of both."""

    p: dict[str, Tensor]
    dp: dict[str, Tensor]
    several: dict[str, Tensor]
    x: Tensor
    dx: Tensor


def data(cell: str) -> Data:
    torch.manual_seed(0)
    p = {name: w.detach() for name, w in OURS[cell](I, H).named_parameters()}
    dp = {name: torch.randn_like(w) for name, w in p.items()}
    members = {n: torch.stack([w + 0.01 * k * dp[n] for k in range(MEMBERS)]) for n, w in p.items()}
    return Data(p, dp, members, torch.randn(T, B, I), torch.randn(T, B, I))


def of_torch(layer: nn.Module, of: Data) -> dict[str, Callable[[], Any]]:
    """The transforms of ``layer``, by name."""
    params = list(layer.parameters())
    x_leaf = of.x.clone().requires_grad_()

    def y(p: Parameters, x: Tensor) -> Tensor:
        found: Tensor = functional_call(layer, dict(p), (x,))[0]
        return found

    def loss(p: Parameters, x: Tensor) -> Tensor:
        return y(p, x).square().sum()

    def forward() -> Tensor:
        with torch.no_grad():
            found: Tensor = layer(of.x)[0]
            return found

    def reverse_over_reverse() -> Any:
        grads = torch.autograd.grad(layer(of.x)[0].square().sum(), params, create_graph=True)
        pairs = zip(grads, of.dp.values(), strict=True)
        along = torch.stack([(g * d).sum() for g, d in pairs]).sum()
        return torch.autograd.grad(along, params)

    def penalty() -> Any:
        loss = layer(x_leaf)[0].square().sum()
        (dx,) = torch.autograd.grad(loss, x_leaf, create_graph=True)
        return torch.autograd.grad(dx.square().sum(), params, allow_unused=True)

    return {
        "forward": forward,
        "training step": lambda: torch.autograd.grad(layer(of.x)[0].square().sum(), params),
        "vmap": lambda: torch.vmap(y, in_dims=(None, 1), out_dims=1)(of.p, of.x),
        "per-sample gradients": lambda: torch.vmap(grad(loss), in_dims=(None, 1))(of.p, of.x),
        "ensemble of 8, gradients": lambda: torch.vmap(grad(loss), in_dims=(0, None))(
            of.several, of.x
        ),
        "jvp by input": lambda: jvp(lambda x: y(of.p, x), (of.x,), (of.dx,))[1],
        "jvp by weights": lambda: jvp(lambda p: y(p, of.x), (of.p,), (of.dp,))[1],
        "HVP, forward over reverse": lambda: jvp(lambda p: grad(loss)(p, of.x), (of.p,), (of.dp,))[
            1
        ],
        "HVP, reverse over reverse": reverse_over_reverse,
        "gradient penalty": penalty,
    }


def of_jax(cell: str, of: Data) -> dict[str, Callable[[], Any]]:
    import jax
    from jax import nn as jnn
    from jax import numpy as jnp

    def lstm(w: Any, gx: Any, states: Any) -> Any:
        h, c = states
        i, f, g, o = jnp.split(gx + h @ w["weight_hh_l0"].T + w["bias_hh_l0"], 4, -1)
        c = jnn.sigmoid(f) * c + jnn.sigmoid(i) * jnp.tanh(g)
        return jnn.sigmoid(o) * jnp.tanh(c), c

    def gru(w: Any, gx: Any, states: Any) -> Any:
        (h,) = states
        xr, xz, xn = jnp.split(gx, 3, -1)
        hr, hz, hn = jnp.split(h @ w["weight_hh_l0"].T + w["bias_hh_l0"], 3, -1)
        z = jnn.sigmoid(xz + hz)
        return ((1 - z) * jnp.tanh(xn + jnn.sigmoid(xr + hr) * hn) + z * h,)

    step, count = (lstm, 2) if cell == "lstm" else (gru, 1)

    def y(w: Any, x: Any) -> Any:
        gates = x @ w["weight_ih_l0"].T + w["bias_ih_l0"]

        def body(states: Any, gx: Any) -> Any:
            states = step(w, gx, states)
            return states, states[0]

        zeros = jnp.zeros((*x.shape[1:-1], H))
        return jax.lax.scan(body, (zeros,) * count, gates)[1]

    def loss(w: Any, x: Any) -> Any:
        return (y(w, x) ** 2).sum()

    def penalty(w: Any, x: Any) -> Any:
        return (jax.grad(loss, 1)(w, x) ** 2).sum()

    def dot(w: Any, x: Any, dw: Any) -> Any:
        grads = jax.grad(loss)(w, x)
        return sum((grads[name] * dw[name]).sum() for name in grads)

    def given(tensors: Any) -> Any:
        return {name: jnp.asarray(t.numpy()) for name, t in tensors.items()}

    p, dp, several = given(of.p), given(of.dp), given(of.several)
    x, dx = (jnp.asarray(t.numpy()) for t in (of.x, of.dx))
    made: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
        "forward": (y, (p, x)),
        "training step": (jax.grad(loss), (p, x)),
        "vmap": (jax.vmap(y, (None, 1), 1), (p, x)),
        "per-sample gradients": (jax.vmap(jax.grad(loss), (None, 1)), (p, x)),
        "ensemble of 8, gradients": (jax.vmap(jax.grad(loss), (0, None)), (several, x)),
        "jvp by input": (lambda p, x, dx: jax.jvp(lambda x: y(p, x), (x,), (dx,))[1], (p, x, dx)),
        "jvp by weights": (
            lambda p, x, dp: jax.jvp(lambda p: y(p, x), (p,), (dp,))[1],
            (p, x, dp),
        ),
        "HVP, forward over reverse": (
            lambda p, x, dp: jax.jvp(lambda p: jax.grad(loss)(p, x), (p,), (dp,))[1],
            (p, x, dp),
        ),
        "HVP, reverse over reverse": (jax.grad(dot), (p, x, dp)),
        "gradient penalty": (jax.grad(penalty), (p, x)),
    }

    def call(function: Callable[..., Any], args: tuple[Any, ...]) -> Callable[[], Any]:
        compiled = jax.jit(function)
        return lambda: jax.block_until_ready(compiled(*args))

    return {name: call(*one) for name, one in made.items()}


def transforms_of(peer: str, cell: str) -> dict[str, Callable[[], Any]]:
    of = data(cell)
    if peer == "JAX":
        return of_jax(cell, of)
    layer: nn.Module = (NN if peer == "torch.nn" else OURS)[cell](I, H)
    layer.load_state_dict(of.p)
    made = of_torch(layer, of)
    backend = "reference" if peer == "loop" else "cpu"

    def by(call: Callable[[], Any]) -> Callable[[], Any]:
        def called() -> Any:
            with rnnfast.use_backend(backend):
                return call()

        return called

    return {name: by(call) for name, call in made.items()}


def as_tensors(found: Any, names: list[str]) -> dict[str, Tensor]:
    """Torch's nested results, or JAX's, by name: of the weights, or in order."""
    if not isinstance(found, dict):
        leaves = [found] if not isinstance(found, (tuple, list)) else list(found)
        keys = names if len(leaves) == len(names) else map(str, range(len(leaves)))
        found = dict(zip(keys, leaves, strict=True))
    return {name: _numbers(leaf) for name, leaf in found.items() if leaf is not None}


def _numbers(leaf: Any) -> Tensor:
    return leaf.detach() if isinstance(leaf, Tensor) else torch.tensor(leaf.tolist())


def serve(peer: str, cell: str, threads: int) -> None:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    torch.set_num_threads(threads)
    transforms = transforms_of(peer, cell)
    names = list(data(cell).p)
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        name, _, what = line.rstrip("\n").partition("\t")
        try:
            if what.startswith("="):
                torch.save(as_tensors(transforms[name](), names), what[1:])
                answer: Any = True
            else:
                answer = [_seconds(transforms[name]) for _ in range(int(what))]
        except (RuntimeError, NotImplementedError):
            answer = None
        print(json.dumps(answer), flush=True)


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2], int(sys.argv[3]))
