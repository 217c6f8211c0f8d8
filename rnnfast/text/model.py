"""A language model: one-hot tokens, a recurrent layer, a linear layer on every step."""

from __future__ import annotations

import importlib
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

State = Tensor | tuple[Tensor, Tensor]

IMPLEMENTATIONS = {"rnnfast": "rnnfast", "torch": "torch.nn"}
"""Name of an implementation -> the module that holds its RNN, LSTM and GRU."""


@dataclass(frozen=True)
class ModelSpec:
    """What an `RNNLM` is made of; two models with equal specs can exchange weights."""

    vocab_size: int
    hidden_size: int = 256
    cell: str = "RNN"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def make_layer(implementation: str, spec: ModelSpec) -> nn.RNNBase:
    """The recurrent layer of ``spec``, with the framework's default initialisation.

    Raises:
        ValueError: ``implementation`` is none of `IMPLEMENTATIONS`.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"implementation must be one of {sorted(IMPLEMENTATIONS)}, got {implementation!r}"
        )
    module = importlib.import_module(IMPLEMENTATIONS[implementation])
    return cast(nn.RNNBase, getattr(module, spec.cell)(spec.vocab_size, spec.hidden_size))


class RNNLM(nn.Module):
    """Logits for the next token at every step.

    Args:
        layer: an RNN, LSTM or GRU of torch.nn or rnnfast, time first; its ``input_size`` is the
            size of the vocabulary.
        takes_tokens: whether ``layer`` takes int64 tokens in place of their one-hot vectors, as
            rnnfast's layers do.
    """

    def __init__(self, layer: nn.RNNBase, *, takes_tokens: bool) -> None:
        super().__init__()
        if layer.batch_first:
            raise ValueError("RNNLM reads [T, B] tokens: the layer must not be batch_first")
        self.layer = layer
        self.takes_tokens = takes_tokens
        self.vocab_size = layer.input_size
        width = layer.proj_size or layer.hidden_size
        self.output = nn.Linear(width * (2 if layer.bidirectional else 1), self.vocab_size)

    @classmethod
    def build(cls, implementation: str, spec: ModelSpec) -> RNNLM:
        """A freshly initialised model; raises what `make_layer` raises."""
        layer = make_layer(implementation, spec)
        return cls(layer, takes_tokens=implementation == "rnnfast")

    def begin_state(self, batch_size: int) -> State:
        """Zeros [D*L, B, H]; for an LSTM the pair (h [D*L, B, P or H], c [D*L, B, H])."""
        layer = self.layer
        rows = layer.num_layers * (2 if layer.bidirectional else 1)
        like = self.output.weight
        h = like.new_zeros(rows, batch_size, layer.proj_size or layer.hidden_size)
        if layer.mode != "LSTM":
            return h
        return h, like.new_zeros(rows, batch_size, layer.hidden_size)

    def forward(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """tokens int64 [T, B], state as `begin_state` -> logits [T, B, vocabulary], state."""
        inputs = tokens
        if not self.takes_tokens:
            inputs = F.one_hot(tokens, self.vocab_size).to(self.output.weight.dtype)
        hidden, state = self.layer(inputs, state)
        return self.output(hidden), state


def detach(state: State) -> State:
    """``state`` cut from the graph that made it."""
    if isinstance(state, Tensor):
        return state.detach()
    return state[0].detach(), state[1].detach()


def copy_weights(source: RNNLM, target: RNNLM) -> None:
    """Give ``target`` the values of ``source``'s parameters, name by name."""
    with torch.no_grad():
        target.load_state_dict(source.state_dict())
