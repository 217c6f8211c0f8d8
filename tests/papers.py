"""The family's cells once more, each as its paper writes it: the oracle of tests/test_family.py.

One sequence, one step: ``x`` [I], states [H], weights by name, none of the package's code. ``gate``
cuts a weight of all gates into the matrices that the papers name.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Weights = dict[str, Tensor]
States = tuple[Tensor, ...]


def sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


def gate(weight: Tensor, number: int, of: int) -> Tensor:
    size = weight.shape[0] // of
    return weight[number * size : (number + 1) * size]


def block_diagonal(blocks: Tensor) -> Tensor:
    """Of [G, heads, n, m] the matrix [G*heads*n, heads*m]."""
    return torch.cat([torch.block_diag(*one) for one in blocks])


def normed(x: Tensor, gain: Tensor, shift: Tensor | float, eps: float = 1e-5) -> Tensor:
    """Ba et al., eq. 4: over the units of one layer."""
    variance = ((x - x.mean()) ** 2).mean()
    return gain * (x - x.mean()) / torch.sqrt(variance + eps) + shift


def input_part(x: Tensor, w: Weights, number: int, of: int) -> Tensor:
    found = gate(w["w_ih"], number, of) @ x
    return found + gate(w["b_ih"], number, of) if "b_ih" in w else found


def recurrent_part(h: Tensor, w: Weights, number: int, of: int) -> Tensor:
    w_hh = w["w_hh"] if w["w_hh"].dim() == 2 else block_diagonal(w["w_hh"])
    found = gate(w_hh, number, of) @ h
    return found + gate(w["b_hh"], number, of) if "b_hh" in w else found


def both(x: Tensor, h: Tensor, w: Weights, number: int, of: int) -> Tensor:
    return input_part(x, w, number, of) + recurrent_part(h, w, number, of)


def all_of(part: Callable[..., Tensor], x: Tensor, w: Weights, gates: list[int], of: int) -> Tensor:
    return torch.cat([part(x, w, number, of) for number in gates])


def layer_norm_lstm(x: Tensor, states: States, w: Weights) -> States:
    h, c = states
    of_x = normed(all_of(input_part, x, w, [0, 1, 2, 3], 4), w["gain_ih"], 0.0)
    of_h = normed(all_of(recurrent_part, h, w, [0, 1, 2, 3], 4), w["gain_hh"], 0.0)
    i, f, g, o = (gate(of_x + of_h + w["shift"], number, 4) for number in range(4))
    c = sigmoid(f) * c + sigmoid(i) * torch.tanh(g)
    return sigmoid(o) * torch.tanh(normed(c, w["gain_c"], w["shift_c"])), c


def layer_norm_gru(x: Tensor, states: States, w: Weights) -> States:
    """z as in the paper, of the negative of the layer's: 1 − σ(a) = σ(−a)."""
    (h,) = states
    H = len(h)
    norms = {}
    for name, part, value in (("ih", input_part, x), ("hh", recurrent_part, h)):
        gain, shift = w["gain_" + name], w["shift_" + name]
        rz = all_of(part, value, w, [0, 1], 3)
        norms[name, "rz"] = normed(rz, gain[: 2 * H], shift[: 2 * H])
        norms[name, "n"] = normed(part(value, w, 2, 3), gain[2 * H :], shift[2 * H :])
    r, negative = (norms["ih", "rz"] + norms["hh", "rz"]).chunk(2)
    z = sigmoid(-negative)
    candidate = torch.tanh(norms["ih", "n"] + sigmoid(r) * norms["hh", "n"])
    return ((1 - z) * h + z * candidate,)


def layer_norm_gru_joint(x: Tensor, states: States, w: Weights) -> States:
    (h,) = states
    of_x = normed(all_of(input_part, x, w, [0, 1, 2], 3), w["gain_ih"], w["shift_ih"])
    of_h = normed(all_of(recurrent_part, h, w, [0, 1, 2], 3), w["gain_hh"], w["shift_hh"])
    r, z = (sigmoid(gate(of_x, k, 3) + gate(of_h, k, 3)) for k in (0, 1))
    candidate = torch.tanh(gate(of_x, 2, 3) + r * gate(of_h, 2, 3))
    return (z * h + (1 - z) * candidate,)


def peephole_lstm(x: Tensor, states: States, w: Weights) -> States:
    h, c = states
    W_ci, W_cf, W_co = (torch.diag(w[name]) for name in ("w_ci", "w_cf", "w_co"))
    i = sigmoid(both(x, h, w, 0, 4) + W_ci @ c)
    f = sigmoid(both(x, h, w, 1, 4) + W_cf @ c)
    new = f * c + i * torch.tanh(both(x, h, w, 2, 4))
    o = sigmoid(both(x, h, w, 3, 4) + W_co @ new)
    return o * torch.tanh(new), new


def coupled_lstm(x: Tensor, states: States, w: Weights) -> States:
    h, c = states
    i = sigmoid(both(x, h, w, 0, 3))
    f = 1 - i
    c = f * c + i * torch.tanh(both(x, h, w, 1, 3))
    return sigmoid(both(x, h, w, 2, 3)) * torch.tanh(c), c


def indrnn(activation: Callable[[Tensor], Tensor], x: Tensor, states: States, w: Weights) -> States:
    (h,) = states
    return (activation(input_part(x, w, 0, 1) + torch.diag(w["u"]) @ h),)


def ligru(x: Tensor, states: States, w: Weights) -> States:
    (h,) = states
    z = sigmoid(both(x, h, w, 0, 2))
    candidate = both(x, h, w, 1, 2).clamp(min=0)
    return (z * h + (1 - z) * candidate,)


def positive(x: Tensor) -> Tensor:
    """Feng et al., listing of appendix B: g."""
    return torch.stack([v + 0.5 if v >= 0 else sigmoid(v) for v in x])


def min_lstm(
    candidate: Callable[[Tensor], Tensor], x: Tensor, states: States, w: Weights
) -> States:
    (h,) = states
    i, f = (sigmoid(input_part(x, w, k, 3)) for k in (0, 1))
    return (f / (f + i) * h + i / (f + i) * candidate(input_part(x, w, 2, 3)),)


def min_gru(candidate: Callable[[Tensor], Tensor], x: Tensor, states: States, w: Weights) -> States:
    (h,) = states
    z = sigmoid(input_part(x, w, 0, 2))
    return ((1 - z) * h + z * candidate(input_part(x, w, 1, 2)),)


def slstm(x: Tensor, states: States, w: Weights) -> States:
    """Beck et al., eqs. 8 to 14, without a stabiliser: C = c exp(m) and N = n exp(m)."""
    h, c, n, m = states
    cell, normaliser = c * torch.exp(m), n * torch.exp(m)
    i, f, z, o = (both(x, h, w, k, 4) for k in range(4))
    kept, taken = sigmoid(f), torch.exp(i)
    cell = kept * cell + taken * torch.tanh(z)
    past = normaliser > 0
    normaliser = kept * normaliser + taken
    m = torch.log(torch.maximum(torch.where(past, kept * torch.exp(m), 0), taken))  # eq. 15
    h = sigmoid(o) * cell / normaliser
    return h, cell / torch.exp(m), normaliser / torch.exp(m), m


def block_gru(
    norm: Callable[[Tensor, Weights], Tensor], x: Tensor, states: States, w: Weights
) -> States:
    (h,) = states
    gates = norm(torch.cat([both(x, h, w, k, 3) for k in range(3)]), w)
    reset, candidate, update = gates.chunk(3)
    update = sigmoid(update - 1)
    return (update * torch.tanh(sigmoid(reset) * candidate) + (1 - update) * h,)


def by_root_mean_square(x: Tensor, w: Weights) -> Tensor:
    return w["gain"] * x / torch.sqrt((x**2).mean() + 1e-4)


def by_layer(x: Tensor, w: Weights) -> Tensor:
    return normed(x, w["gain"], w["shift"], 1e-3)


def _with(step: Callable[..., States], first: Callable[..., Tensor]) -> Callable[..., States]:
    return lambda x, states, w: step(first, x, states, w)


PAPERS: dict[str, Callable[[Tensor, States, Weights], States]] = {
    "layer_norm_lstm": layer_norm_lstm,
    "layer_norm_gru": layer_norm_gru,
    "layer_norm_gru_joint": layer_norm_gru_joint,
    "peephole_lstm": peephole_lstm,
    "coupled_lstm": coupled_lstm,
    "indrnn_relu": _with(indrnn, lambda x: x.clamp(min=0)),
    "indrnn_tanh": _with(indrnn, torch.tanh),
    "ligru": ligru,
    "min_lstm": _with(min_lstm, lambda x: x),
    "min_lstm_positive": _with(min_lstm, positive),
    "min_gru": _with(min_gru, lambda x: x),
    "min_gru_positive": _with(min_gru, positive),
    "slstm": slstm,
    "block_gru": _with(block_gru, by_root_mean_square),
    "block_gru_layer_norm": _with(block_gru, by_layer),
    "block_gru_no_norm": _with(block_gru, lambda x, w: x),
}


def paper_loop(name: str, x: Tensor, states: list[Tensor], w: Weights) -> tuple[Tensor, States]:
    """Of x [T, B, I] the outputs [T, B, H] and the final states, one sequence at a time."""
    columns = []
    for b in range(x.shape[1]):
        now, ys = tuple(state[b] for state in states), []
        for t in range(x.shape[0]):
            now = PAPERS[name](x[t, b], now, w)
            ys.append(now[0])
        columns.append((torch.stack(ys), *now))
    y, *final = zip(*columns, strict=True)
    return torch.stack(y, 1), tuple(torch.stack(state) for state in final)
