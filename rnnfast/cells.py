"""The cells: what each is called, what it holds, and one step of it in plain torch.

A step here is the readable specification. The C++ cells (csrc/cells) carry the same names and the
same order of gates, and the tests compare the two.

Shapes in this file: B batch, I input size, H hidden size, P output size (the projection's, else H).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class StepWeights:
    """The weights that a step reads: ``w_hh`` [G*H, P], ``b_hh`` [G*H] or None, ``w_hr`` [P, H]."""

    w_hh: Tensor
    b_hh: Tensor | None = None
    w_hr: Tensor | None = None


States = tuple[Tensor, ...]
Step = Callable[[Tensor, States, StepWeights], States]


@dataclass(frozen=True)
class CellSpec:
    """A recurrent cell.

    Attributes:
        name: the cell's one name, everywhere in the project.
        gates: G, the number of gates; ``w_ih`` is [G*H, I] and ``w_hh`` is [G*H, P].
        states: names of the states, the output first: ``("h",)`` or ``("h", "c")``.
        step: ``(gx, states, weights) -> new states``, where gx [B, G*H] is ``x W_ihᵀ + b_ih``.
        torch_mode: the torch kernel that computes the same cell, None where torch has none.
        projected: whether the output is ``W_hr`` times the hidden units.
        has_extra: whether kernels save one more value a unit than there are gates (csrc/cells).
        wide_under_autocast: states whose dtype torch's CPU kernels keep where it is wider than
            autocast's.
        source: where the formula comes from.
    """

    name: str
    gates: int
    states: tuple[str, ...]
    step: Step
    torch_mode: str | None
    projected: bool = False
    has_extra: bool = False
    wide_under_autocast: tuple[str, ...] = ()
    source: str = ""

    def weight_names(self, kind: str, bias: bool) -> tuple[str, ...]:
        """Names of the weights that a scan takes, in order.

        ``kind="gates"`` (the input is already projected) has neither ``w_ih`` nor ``b_ih``.
        """
        names = ["w_hh"] if kind == "gates" else ["w_ih", "w_hh"]
        if bias:
            names += ["b_hh"] if kind == "gates" else ["b_ih", "b_hh"]
        if self.projected:
            names.append("w_hr")
        return tuple(names)


def rnn_tanh(gx: Tensor, states: States, w: StepWeights) -> States:
    (h,) = states
    return (torch.tanh(gx + F.linear(h, w.w_hh, w.b_hh)),)


def rnn_relu(gx: Tensor, states: States, w: StepWeights) -> States:
    (h,) = states
    return (torch.relu(gx + F.linear(h, w.w_hh, w.b_hh)),)


def lstm(gx: Tensor, states: States, w: StepWeights) -> States:
    h, c = states
    i, f, g, o = (gx + F.linear(h, w.w_hh, w.b_hh)).chunk(4, -1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def lstm_proj(gx: Tensor, states: States, w: StepWeights) -> States:
    assert w.w_hr is not None
    hidden, c = lstm(gx, states, w)
    return F.linear(hidden, w.w_hr), c


def gru(gx: Tensor, states: States, w: StepWeights) -> States:
    (h,) = states
    gx_r, gx_z, gx_n = gx.chunk(3, -1)
    gh_r, gh_z, gh_n = F.linear(h, w.w_hh, w.b_hh).chunk(3, -1)
    r = torch.sigmoid(gx_r + gh_r)
    z = torch.sigmoid(gx_z + gh_z)
    n = torch.tanh(gx_n + r * gh_n)
    return ((1 - z) * n + z * h,)


def gru_reset_before(gx: Tensor, states: States, w: StepWeights) -> States:
    (h,) = states
    hidden = h.shape[-1]
    gates, candidate = (2 * hidden, hidden)
    w_rz, w_n = w.w_hh.split((gates, candidate))
    b_rz, b_n = (None, None) if w.b_hh is None else w.b_hh.split((gates, candidate))
    gx_rz, gx_n = gx.split((gates, candidate), -1)
    r, z = torch.sigmoid(gx_rz + F.linear(h, w_rz, b_rz)).chunk(2, -1)
    n = torch.tanh(gx_n + F.linear(r * h, w_n, b_n))
    return ((1 - z) * n + z * h,)


_SPECS = (
    CellSpec("rnn_tanh", 1, ("h",), rnn_tanh, "RNN_TANH", source="torch.nn.RNN"),
    CellSpec("rnn_relu", 1, ("h",), rnn_relu, "RNN_RELU", source="torch.nn.RNN"),
    CellSpec("lstm", 4, ("h", "c"), lstm, "LSTM", source="torch.nn.LSTM"),
    CellSpec(
        "lstm_proj",
        4,
        ("h", "c"),
        lstm_proj,
        "LSTM",
        projected=True,
        has_extra=True,
        wide_under_autocast=("c",),
        source="torch.nn.LSTM(proj_size=…); Sak et al., arXiv:1402.1128",
    ),
    CellSpec(
        "gru",
        3,
        ("h",),
        gru,
        "GRU",
        has_extra=True,
        wide_under_autocast=("h",),
        source="torch.nn.GRU: resets after the product",
    ),
    CellSpec(
        "gru_reset_before",
        3,
        ("h",),
        gru_reset_before,
        None,
        has_extra=True,
        wide_under_autocast=("h",),
        source="Cho et al., arXiv:1406.1078: resets before the product",
    ),
)

CELLS: dict[str, CellSpec] = {spec.name: spec for spec in _SPECS}
