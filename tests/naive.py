"""The oracle of the matrix: one sequence at a time, one step at a time, with torch's own cells.

Independent of the package: no mask, no batch, torch's cell functions (the paper's formula where
torch has none). In float64 it is the truth; in another dtype it is what torch itself reaches in
that precision. ``batched_scan`` does the same for all sequences at once, for large cases; it is
held against the other.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Inputs(NamedTuple):
    """One direction of one layer; ``weights`` by name, ``lengths`` and ``resets`` as lists."""

    cell: str
    x: Tensor  # [T, B, I] float, or [T, B] int64 tokens, or [T, B, G*H] gates
    kind: str
    states: list[Tensor]
    weights: dict[str, Tensor]
    lengths: list[int] | None
    resets: Tensor | None
    reverse: bool
    clip: float = 0.0  # grad_clip_time: v clips to [-v, v], -v zeroes beyond
    slopes: Tensor | None = None  # rnn_relu: [T, B, H] bool, where relu's derivative is to be 1


def naive_scan(inputs: Inputs) -> dict[str, Tensor]:
    """``y`` [T, B, P], the final states ``h`` and ``c``, and for LSTM ``trace`` [T, B, H]."""
    T, B = inputs.x.shape[:2]
    columns = [_sequence(inputs, b, T) for b in range(B)]
    result = {"y": torch.stack([c[0] for c in columns], 1)}
    for name, finals in zip("hc", zip(*(c[1] for c in columns), strict=False), strict=False):
        result[name] = torch.stack(finals)
    if len(inputs.states) == 2:
        result["trace"] = torch.stack([c[2] for c in columns], 1)
    return result


def _sequence(inputs: Inputs, b: int, T: int) -> tuple[Tensor, list[Tensor], Tensor]:
    length = T if inputs.lengths is None else inputs.lengths[b]
    states = [s[b] for s in inputs.states]
    ys = [torch.zeros_like(states[0]) for _ in range(T)]
    cells = [torch.zeros_like(states[-1]) for _ in range(T)]
    steps = range(length - 1, -1, -1) if inputs.reverse else range(length)
    for t in steps:
        states = [_limited(s, inputs.clip) for s in states]
        if inputs.resets is not None and bool(inputs.resets[t, b]):
            states = [torch.zeros_like(s) for s in states]
        slope = None if inputs.slopes is None else inputs.slopes[t, b]
        rows = [s.unsqueeze(0) for s in states]
        states = [s.squeeze(0) for s in _step(inputs, inputs.x[t, b].unsqueeze(0), rows, slope)]
        ys[t], cells[t] = states[0], states[-1]
    return torch.stack(ys), states, torch.stack(cells)


def batched_scan(inputs: Inputs) -> dict[str, Tensor]:
    """As ``naive_scan``, by masks."""
    T, B = inputs.x.shape[:2]
    rows, device = torch.arange(B, device=inputs.x.device), inputs.x.device
    lengths = torch.full((B,), T) if inputs.lengths is None else torch.tensor(inputs.lengths)
    lengths = lengths.to(device)
    states, made = list(inputs.states), []
    for step in range(int(lengths.max()) if B else 0):
        alive = (step < lengths).unsqueeze(-1)
        t = (lengths - 1 - step).clamp(min=0) if inputs.reverse else torch.full_like(lengths, step)
        began = [torch.where(alive, _limited(s, inputs.clip), s) for s in states]
        if inputs.resets is not None:
            reset = inputs.resets[t, rows].unsqueeze(-1) & alive
            began = [torch.where(reset, torch.zeros_like(s), s) for s in began]
        slope = None if inputs.slopes is None else inputs.slopes[t, rows]
        new = _step(inputs, inputs.x[t, rows], began, slope)
        states = [torch.where(alive, n, s) for n, s in zip(new, states, strict=True)]
        made.append((states[0], states[-1]))
    times = torch.arange(T, device=device).unsqueeze(-1)
    steps = (lengths - 1 - times).clamp(min=0) if inputs.reverse else times.expand(T, B)
    alive = (times < lengths).unsqueeze(-1)

    def over_time(of_steps: list[Tensor], like: Tensor) -> Tensor:
        if not of_steps:
            return like.new_zeros(T, *like.shape)
        found = torch.stack(of_steps)[steps.clamp(max=len(of_steps) - 1), rows]
        return torch.where(alive, found, torch.zeros_like(found))

    result = {"y": over_time([h for h, _ in made], states[0])}
    result |= dict(zip("hc", states, strict=False))
    if len(states) == 2:
        result["trace"] = over_time([c for _, c in made], states[1])
    return result


def _limited(state: Tensor, clip: float) -> Tensor:
    """The same, with a hook that limits the gradient on its way to the step before."""
    if clip == 0:
        return state

    def limit(grad: Tensor) -> Tensor:
        if clip > 0:
            return grad.clamp(-clip, clip)
        return torch.where((grad > -clip) | (grad < clip), 0, grad)

    handed_on = state.clone()
    handed_on.register_hook(limit)
    return handed_on


def _step(
    inputs: Inputs, x: Tensor, states: list[Tensor], slope: Tensor | None = None
) -> list[Tensor]:
    """One step of some sequences: x [N, I], or what stands for it, and states [N, …]."""
    w = inputs.weights
    w_ih, w_hh, b_ih, b_hh = w.get("w_ih"), w["w_hh"], w.get("b_ih"), w.get("b_hh")
    if inputs.kind == "tokens":
        x = F.one_hot(x, w_ih.shape[1]).to(w_hh.dtype)
    if inputs.kind == "gates":  # an identity projects what is projected already
        w_ih = torch.eye(w_hh.shape[0], dtype=w_hh.dtype)
        b_ih = None if b_hh is None else torch.zeros_like(b_hh)
    if slope is not None:
        z = F.linear(x, w_ih, b_ih) + F.linear(states[0], w_hh, b_hh)
        return [z * slope + (z.relu() - z * slope).detach()]
    if inputs.cell == "gru_reset_before":
        return [_gru_reset_before(x, states[0], w_ih, w_hh, b_ih, b_hh)]
    if inputs.cell == "mgu":
        return [_mgu(x, states[0], w_ih, w_hh, b_ih, b_hh)]
    if inputs.cell == "lstm_proj":
        return _lstm_proj(x, states, w_ih, w_hh, b_ih, b_hh, w["w_hr"])
    kernels = {
        "rnn_tanh": torch.rnn_tanh_cell,
        "rnn_relu": torch.rnn_relu_cell,
        "gru": torch.gru_cell,
        "lstm": torch.lstm_cell,
    }
    hx = states if inputs.cell == "lstm" else states[0]
    out = kernels[inputs.cell](x, hx, w_ih, w_hh, b_ih, b_hh)
    return list(out) if isinstance(out, tuple) else [out]


def _lstm_proj(x, states, w_ih, w_hh, b_ih, b_hh, w_hr):
    h, c = states
    i, f, g, o = (F.linear(x, w_ih, b_ih) + F.linear(h, w_hh, b_hh)).chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return [F.linear(o.sigmoid() * c.tanh(), w_hr), c]


def _mgu(x, h, w_ih, w_hh, b_ih, b_hh):
    zero = torch.zeros_like(w_ih[:, 0])
    b_ih, b_hh = (zero if b is None else b for b in (b_ih, b_hh))
    (w_if, w_in), (w_hf, w_hn) = w_ih.chunk(2), w_hh.chunk(2)
    (b_if, b_in), (b_hf, b_hn) = b_ih.chunk(2), b_hh.chunk(2)
    f = torch.sigmoid(x @ w_if.t() + b_if + h @ w_hf.t() + b_hf)
    n = torch.tanh(x @ w_in.t() + b_in + (f * h) @ w_hn.t() + b_hn)
    return (1 - f) * h + f * n


def _gru_reset_before(x, h, w_ih, w_hh, b_ih, b_hh):
    zero = torch.zeros_like(w_ih[:, 0])
    b_ih, b_hh = (zero if b is None else b for b in (b_ih, b_hh))
    (w_ir, w_iz, w_in), (w_hr, w_hz, w_hn) = w_ih.chunk(3), w_hh.chunk(3)
    (b_ir, b_iz, b_in), (b_hr, b_hz, b_hn) = b_ih.chunk(3), b_hh.chunk(3)
    r = torch.sigmoid(x @ w_ir.t() + b_ir + h @ w_hr.t() + b_hr)
    z = torch.sigmoid(x @ w_iz.t() + b_iz + h @ w_hz.t() + b_hz)
    n = torch.tanh(x @ w_in.t() + b_in + (r * h) @ w_hn.t() + b_hn)
    return (1 - z) * n + z * h
