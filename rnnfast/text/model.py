"""A language model: tokens, a recurrent stack, a linear layer on every step."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from .scratch import ScratchLayers

State = Tensor | tuple[Tensor, Tensor]

IMPLEMENTATIONS = ("scratch", "torch", "rnnfast")
CELLS = ("RNN", "LSTM", "GRU")
INPUTS = ("one-hot", "embedding")
INITS = ("default", "normal")
INIT_STD = 0.01

_MODULES = {"rnnfast": "rnnfast", "torch": "torch.nn"}


@dataclass(frozen=True)
class ModelSpec:
    """What an `RNNLM` is made of; two models with equal specs can exchange weights.

    Attributes:
        input: ``one-hot`` vectors, or a learned ``embedding`` of width ``embedding_size``.
        nonlinearity: of the RNN, ``tanh`` or ``relu``. reset_after: which of the two GRUs.
        one_bias: one bias for each gate; layers that have two keep the second at 0.
        init: the framework's ``default``, or ``normal``: N(0, 0.01²) weights and zero biases.
    """

    vocab_size: int
    hidden_size: int = 256
    cell: str = "RNN"
    num_layers: int = 1
    bidirectional: bool = False
    dropout: float = 0.0
    input: str = "one-hot"
    embedding_size: int = 32
    nonlinearity: str = "tanh"
    reset_after: bool = True
    one_bias: bool = False
    init: str = "default"

    @property
    def input_size(self) -> int:
        """Width of what the first layer reads."""
        return self.vocab_size if self.input == "one-hot" else self.embedding_size

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def make_layer(implementation: str, spec: ModelSpec) -> nn.Module:
    """The recurrent stack of ``spec``, with the framework's default initialisation.

    Raises:
        ValueError: ``implementation`` is none of `IMPLEMENTATIONS`, or has no such layer.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"implementation must be one of {sorted(IMPLEMENTATIONS)}, got {implementation!r}"
        )
    sizes = (spec.input_size, spec.hidden_size, spec.num_layers)
    common: dict[str, Any] = {"bidirectional": spec.bidirectional, "dropout": spec.dropout}
    if implementation == "scratch":
        return ScratchLayers(
            spec.cell,
            *sizes,
            one_bias=spec.one_bias,
            nonlinearity=spec.nonlinearity,
            reset_after=spec.reset_after,
            **common,
        )
    if spec.cell == "RNN":
        common["nonlinearity"] = spec.nonlinearity
    if spec.cell == "GRU" and not spec.reset_after:
        if implementation == "torch":
            raise ValueError("torch.nn has no GRU that resets before the product")
        common["reset_after"] = False
    made: nn.Module = getattr(importlib.import_module(_MODULES[implementation]), spec.cell)(
        *sizes, **common
    )
    if spec.one_bias:
        for name, parameter in made.named_parameters():
            if name.startswith("bias_hh"):
                nn.init.zeros_(parameter)
                parameter.requires_grad_(False)
    return made


class RNNLM(nn.Module):
    """Logits for every step of a row of tokens.

    Args:
        vocab_size, hidden_size, cell, num_layers, bidirectional, dropout, input and the rest:
            as in `ModelSpec`.
        implementation: what computes the recurrent layers, one of `IMPLEMENTATIONS`. rnnfast's
            take the tokens themselves in place of their one-hot vectors.

    Raises:
        ValueError: what `make_layer` raises.
    """

    def __init__(
        self,
        vocab_size: int,
        hidden_size: int = 256,
        *,
        implementation: str = "rnnfast",
        **rest: Any,
    ) -> None:
        super().__init__()
        spec = ModelSpec(vocab_size, hidden_size, **rest)
        self.spec, self.implementation, self.vocab_size = spec, implementation, vocab_size
        self.layer = make_layer(implementation, spec)
        directions = 2 if spec.bidirectional else 1
        self.output = nn.Linear(hidden_size * directions, vocab_size)
        self.embedding: nn.Embedding | None = None
        if spec.input == "embedding":
            self.embedding = nn.Embedding(vocab_size, spec.embedding_size)
        if spec.init == "normal":
            init_normal(self)

    @classmethod
    def build(cls, implementation: str, spec: ModelSpec) -> RNNLM:
        """A freshly initialised model of ``spec``."""
        return cls(implementation=implementation, **spec.to_dict())

    def begin_state(self, batch_size: int) -> State:
        """Zeros [D*L, B, H]; for an LSTM a pair of them."""
        spec = self.spec
        rows = spec.num_layers * (2 if spec.bidirectional else 1)
        h = self.output.weight.new_zeros(rows, batch_size, spec.hidden_size)
        return (h, torch.zeros_like(h)) if spec.cell == "LSTM" else h

    def forward(
        self, tokens: Tensor, state: State, lengths: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """tokens int64 [T, B], state as `begin_state` -> logits [T, B, vocabulary], state.

        With ``lengths`` int64 [B], 1 or more each, the state returned for row b is the one after
        its first ``lengths[b]`` tokens, and the logits after them mean nothing.
        """
        inputs = tokens
        if self.embedding is not None:
            inputs = self.embedding(tokens)
        elif self.implementation != "rnnfast":
            inputs = F.one_hot(tokens, self.vocab_size).to(self.output.weight.dtype)
        hidden, state = run_layer(self.implementation, self.layer, inputs, state, lengths)
        return self.output(hidden), state


def run_layer(
    implementation: str, layer: nn.Module, inputs: Tensor, state: State, lengths: Tensor | None
) -> tuple[Tensor, State]:
    """``layer`` of `make_layer` on rows of different ``lengths`` (None: alike)."""
    if lengths is None:
        hidden, state = layer(inputs, state)
    elif implementation == "torch":
        packed = pack_padded_sequence(inputs, lengths.cpu(), enforce_sorted=False)
        rows, state = layer(packed, state)
        hidden = pad_packed_sequence(rows, total_length=inputs.shape[0])[0]
    else:
        hidden, state = layer(inputs, state, lengths=lengths)
    return hidden, state


@torch.no_grad()
def init_normal(model: nn.Module) -> None:
    """N(0, 0.01²) for every weight, 0 for every bias, in the order of ``parameters()``."""
    for name, parameter in model.named_parameters():
        if name.rsplit(".", 1)[-1].startswith("bias"):
            nn.init.zeros_(parameter)
        else:
            nn.init.normal_(parameter, std=INIT_STD)


def detach(state: State) -> State:
    """``state`` cut from the graph that made it."""
    if isinstance(state, Tensor):
        return state.detach()
    return state[0].detach(), state[1].detach()


def copy_weights(source: nn.Module, target: nn.Module) -> None:
    """Give ``target`` the values of ``source``'s parameters, name by name."""
    load_weights(target, source.state_dict())


@torch.no_grad()
def load_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Give ``model`` the values in ``weights``, of any implementation of the same spec.

    A second bias that only one side has must be zero there, and is made so here.

    Raises:
        ValueError: a name or shape that does not fit, or a second bias that is not zero.
    """
    own = model.state_dict()
    given = dict(weights)
    for name in [name for name in given if name not in own and _first_bias(name) in own]:
        if bool(given.pop(name).any()):
            raise ValueError(f"{name} is not zero, and this model has one bias")
    for name in own:
        if name not in given and _first_bias(name) in given:
            given[name] = torch.zeros_like(own[name])
    if own.keys() != given.keys():
        raise ValueError(f"weights of another model: they differ in {sorted(own.keys() ^ given)}")
    for name, value in given.items():
        if value.shape != own[name].shape:
            raise ValueError(
                f"{name} is {list(value.shape)}, this model has {list(own[name].shape)}"
            )
    model.load_state_dict(given)


def _first_bias(name: str) -> str | None:
    """The name of the bias that belongs to a second one, None where ``name`` is something else."""
    return name.replace("bias_hh", "bias_ih") if "bias_hh" in name else None
