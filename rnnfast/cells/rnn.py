"""Elman's network."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .spec import CellSpec, Product, States, StepWeights, Value


def rnn_tanh(gx: Tensor, states: States, w: StepWeights) -> States:
    (h,) = states
    return (torch.tanh(gx + F.linear(h, w.w_hh, w.b_hh)),)


def rnn_relu(gx: Tensor, states: States, w: StepWeights) -> States:
    (h,) = states
    return (torch.relu(gx + F.linear(h, w.w_hh, w.b_hh)),)


RNN_TANH = CellSpec(
    "rnn_tanh",
    gates=1,
    states=("h",),
    step=rnn_tanh,
    products=(Product("w_hh", "h", (0,)),),
    saved=(Value("h"),),
    torch_mode="RNN_TANH",
    source="torch.nn.RNN",
)
RNN_RELU = CellSpec(
    "rnn_relu",
    gates=1,
    states=("h",),
    step=rnn_relu,
    products=(Product("w_hh", "h", (0,)),),
    saved=(Value("h"),),
    torch_mode="RNN_RELU",
    source="torch.nn.RNN",
)
