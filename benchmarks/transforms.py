"""Transforms of a layer by the kernels, the loop in plain torch, torch.nn and JAX, on the CPU.

    python -m benchmarks.transforms [--seconds S] [--threads N] [--cells lstm gru]

writes more/transforms.csv beside the results of the layers. A transform is timed against what it is
to be held against, a training step (forward, and backward to the weights) or forward, and against
its peers: in one process, alternating (measure.py). What a peer computes is compared first. JAX's
is `lax.scan`, jitted, where it is installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp

import rnnfast

from . import records
from .measure import alternate

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
class Call:
    """A transform of a layer, as measure.py times it."""

    run: Callable[[], Any]
    backend: str = "cpu"
    wait: Callable[[Any], Any] = field(default=lambda found: found)

    def prepare(self) -> None:
        pass

    def __call__(self) -> Any:
        with rnnfast.use_backend(self.backend):
            return self.wait(self.run())


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


def as_tensors(found: Any) -> dict[str, Tensor] | list[Tensor]:
    """Torch's nested results, or JAX's, as tensors that can be compared."""
    if isinstance(found, dict):
        return {name: torch.as_tensor(_numbers(found[name])) for name in sorted(found)}
    leaves = [found] if not isinstance(found, (tuple, list)) else list(found)
    return [torch.as_tensor(_numbers(leaf)) for leaf in leaves if leaf is not None]


def _numbers(leaf: Any) -> Any:
    return leaf.detach() if isinstance(leaf, Tensor) else leaf.tolist()


def agrees(ours: Any, theirs: Any, names: list[str]) -> bool:
    """Whether two results are alike up to rounding. ``names``: of gradients in order."""
    pairs = [as_tensors(ours), as_tensors(theirs)]
    if any(isinstance(found, dict) for found in pairs):
        pairs = [
            found if isinstance(found, dict) else dict(zip(names, found, strict=True))
            for found in pairs
        ]
    a, b = (
        [found[k] for k in sorted(found)] if isinstance(found, dict) else found for found in pairs
    )
    return all(
        float((x - y).abs().max()) <= 1e-3 * (1 + float(y.abs().max()))
        for x, y in zip(a, b, strict=True)
    )


def peers(cell: str, of: Data) -> dict[str, dict[str, Callable[[], Any]]]:
    loop, theirs = OURS[cell](I, H), NN[cell](I, H)
    for layer in (loop, theirs):
        layer.load_state_dict(of.p)
    found = {"loop": of_torch(loop, of), "torch.nn": of_torch(theirs, of)}
    if importlib.util.find_spec("jax") is not None:
        found["JAX"] = of_jax(cell, of)
    return found


@dataclass(frozen=True)
class Row:
    """A transform, and somebody who computes it too, or whom it is held against."""

    cell: str
    transform: str
    ms: float
    peer: str  # loop | torch.nn | JAX; ours: the pass that it is held against
    ratio: float = math.nan  # the peer's time over ours; of `ours`, our time over the pass's
    reason: str = ""  # why it was not timed: can't | differs


def compare(cell: str, seconds: float) -> Iterator[Row]:
    of = data(cell)
    layer = OURS[cell](I, H)
    layer.load_state_dict(of.p)
    ours = of_torch(layer, of)
    others = peers(cell, of)
    for name in ("forward", "training step", *AGAINST):
        call = Call(ours[name])
        found = call()
        pair = alternate(call, Call(ours[AGAINST.get(name, name)]), seconds)
        ms = statistics.median(pair.a) * 1e3
        yield Row(cell, name, ms, "ours", pair.ratio.median)
        for peer, transforms in others.items():
            other = Call(transforms[name], "reference" if peer == "loop" else "cpu")
            reason = why_not(other, found, list(of.p))
            ratio = math.nan if reason else alternate(other, call, seconds).ratio.median
            yield Row(cell, name, ms, peer, ratio, reason)


def why_not(other: Call, found: Any, names: list[str]) -> str:
    """Why a peer is not timed, or nothing."""
    try:
        theirs = other()
    except (RuntimeError, NotImplementedError):
        return "can't"
    return "" if agrees(found, theirs, names) else "differs"


def line(row: Row) -> str:
    which = AGAINST.get(row.transform, row.transform) if row.peer == "ours" else row.peer
    against = row.reason or f"x {row.ratio:.2f}"
    return f"{row.cell:6}{row.transform:28}{row.ms:9.2f} ms   {which:14}{against}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.transforms")
    parser.add_argument("--seconds", type=float, default=5.0, help="for each pair")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cells", nargs="+", choices=list(OURS), default=list(OURS))
    parser.add_argument("--out", type=Path, help="a CSV file; default: of this machine")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    facts = records.facts("cpu", args.threads, seconds=args.seconds)
    rows = []
    for cell in args.cells:
        for row in compare(cell, args.seconds):
            rows.append(row)
            print(line(row), flush=True)
    path = args.out or records.folder("cpu", args.threads) / "transforms.csv"
    records.write(path, rows, facts)
    print(path)


if __name__ == "__main__":
    main()
