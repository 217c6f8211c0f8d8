"""LSTM and GRU with layer normalisation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..own import cell
from ..spec import States, StepWeights

_ONES, _ZEROS = nn.init.ones_, nn.init.zeros_
_BA = "Ba et al., arXiv:1607.06450, supplementary material"


def _norm(x: Tensor, gain: Tensor, shift: Tensor | None = None) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], gain, shift)


@cell(
    name="layer_norm_lstm",
    gates=4,
    states=("h", "c"),
    params={
        "gain_ih": ("G*H", _ONES),
        "gain_hh": ("G*H", _ONES),
        "shift": ("G*H", _ZEROS),
        "gain_c": ("H", _ONES),
        "shift_c": ("H", _ZEROS),
    },
    source=f"{_BA}; haste's LayerNormLSTM",
)
def layer_norm_lstm(gx: Tensor, states: States, w: StepWeights) -> States:
    """Gates i, f, g, o = LN(W_ih x) + LN(W_hh h) + shift; c' = f c + i g; h' = o tanh(LN(c')).

    A norm is over all gates at once, with eps 1e-5. The paper has three shifts that add up, one in
    each norm and b; here they are one. b_ih and b_hh, where there are any, stand inside the norms;
    the paper has none there.
    """
    h, c = states
    gates = _norm(gx, w.gain_ih) + _norm(F.linear(h, w.w_hh, w.b_hh), w.gain_hh, w.shift)
    i, f, g, o = gates.chunk(4, -1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(_norm(c, w.gain_c, w.shift_c)), c


_GRU_PARAMS = {
    "gain_ih": ("G*H", _ONES),
    "shift_ih": ("G*H", _ZEROS),
    "gain_hh": ("G*H", _ONES),
    "shift_hh": ("G*H", _ZEROS),
}


def _gru(x: tuple[Tensor, Tensor], a: tuple[Tensor, Tensor], h: Tensor) -> States:
    """Of what the norms gave of the input and of h: r and z in one, and n."""
    r, z = torch.sigmoid(x[0] + a[0]).chunk(2, -1)
    n = torch.tanh(x[1] + r * a[1])
    return ((1 - z) * n + z * h,)


@cell(
    name="layer_norm_gru",
    gates=3,
    params=_GRU_PARAMS,
    source=_BA,
)
def layer_norm_gru(gx: Tensor, states: States, w: StepWeights) -> States:
    """Gates r, z = σ(LN(W_ih x) + LN(W_hh h)), n = tanh(LN(W_in x) + r LN(W_hn h));
    h' = (1 − z) n + z h.

    A norm is over r and z at once, another over n, each with a gain and a shift and eps 1e-5. The
    paper's z is 1 − z here, as in torch.nn. b_ih and b_hh, where there are any, stand inside the
    norms; the paper has none.
    """
    (h,) = states
    H = h.shape[-1]

    def parts(x: Tensor, gain: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        x_rz, x_n = x.split((2 * H, H), -1)
        gain_rz, gain_n = gain.split((2 * H, H), -1)
        shift_rz, shift_n = shift.split((2 * H, H), -1)
        return _norm(x_rz, gain_rz, shift_rz), _norm(x_n, gain_n, shift_n)

    a = F.linear(h, w.w_hh, w.b_hh)
    return _gru(parts(gx, w.gain_ih, w.shift_ih), parts(a, w.gain_hh, w.shift_hh), h)


@cell(
    name="layer_norm_gru_joint",
    gates=3,
    params=_GRU_PARAMS,
    source="haste's LayerNormGRU (haste_pytorch 0.5)",
)
def layer_norm_gru_joint(gx: Tensor, states: States, w: StepWeights) -> States:
    """As ``layer_norm_gru`` with each norm over all three gates at once, as haste has it."""
    (h,) = states
    sizes = (2 * h.shape[-1], h.shape[-1])
    x = _norm(gx, w.gain_ih, w.shift_ih).split(sizes, -1)
    a = _norm(F.linear(h, w.w_hh, w.b_hh), w.gain_hh, w.shift_hh).split(sizes, -1)
    return _gru(x, a, h)
