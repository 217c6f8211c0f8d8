"""Encoder and decoder for translation (the chapter *Sequence-to-Sequence Learning*)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .model import ModelSpec, State, make_layer, run_layer


@dataclass(frozen=True)
class Seq2SeqSpec:
    """What a `Seq2Seq` is made of; two models with equal specs can exchange weights.

    ``reads_lengths``: whether the encoder stops at each sentence's end; the chapter's reads the
    padding too.
    """

    source_vocab: int
    target_vocab: int
    embedding_size: int = 256
    hidden_size: int = 256
    num_layers: int = 2
    dropout: float = 0.2
    cell: str = "GRU"
    reads_lengths: bool = False

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def layer(self, input_size: int) -> ModelSpec:
        """The recurrent stack of either half, for vectors of width ``input_size``."""
        return ModelSpec(
            vocab_size=input_size,
            hidden_size=self.hidden_size,
            cell=self.cell,
            num_layers=self.num_layers,
            dropout=self.dropout,
        )


class Seq2Seq(nn.Module):
    """Logits of every target word, given the source sentence and the target words before it.

    The encoder's output at the last step (the context) is joined to every input of the decoder,
    whose layers begin with the encoder's final states. Embeddings start as N(0, 1), weights of the
    recurrent layers by Xavier's uniform rule, the rest by torch's defaults.

    Raises:
        ValueError: ``implementation`` is unknown.
    """

    def __init__(self, implementation: str, spec: Seq2SeqSpec) -> None:
        super().__init__()
        self.implementation, self.spec = implementation, spec
        E, H = spec.embedding_size, spec.hidden_size
        self.source_embedding = nn.Embedding(spec.source_vocab, E)
        self.encoder = make_layer(implementation, spec.layer(E))
        self.target_embedding = nn.Embedding(spec.target_vocab, E)
        self.decoder = make_layer(implementation, spec.layer(E + H))
        self.output = nn.Linear(H, spec.target_vocab)
        for layer in (self.encoder, self.decoder):
            for name, parameter in layer.named_parameters():
                if name.startswith("weight"):
                    nn.init.xavier_uniform_(parameter)

    def encode(self, source: Tensor, lengths: Tensor) -> tuple[Tensor, State]:
        """source int64 [T, B], lengths int64 [B] -> context [B, H], states as torch.nn's."""
        vectors = self.source_embedding(source)
        zero = vectors.new_zeros(self.spec.num_layers, source.shape[1], self.spec.hidden_size)
        begin = (zero, zero.clone()) if self.spec.cell == "LSTM" else zero
        read = lengths if self.spec.reads_lengths else None
        outputs, state = run_layer(self.implementation, self.encoder, vectors, begin, read)
        if read is None:
            return outputs[-1], state
        return outputs[read - 1, torch.arange(len(read), device=read.device)], state

    def decode(self, inputs: Tensor, context: Tensor, state: State) -> tuple[Tensor, State]:
        """inputs int64 [T, B] -> logits [T, B, target vocabulary], states after the last step."""
        vectors = self.target_embedding(inputs)
        repeated = context.expand(inputs.shape[0], *context.shape)
        hidden, state = self.decoder(torch.cat([vectors, repeated], -1), state)
        return self.output(hidden), state

    def forward(self, source: Tensor, lengths: Tensor, inputs: Tensor) -> Tensor:
        """source [T, B], lengths [B], decoder inputs [T, B] -> logits [T, B, target vocabulary]."""
        return self.decode(inputs, *self.encode(source, lengths))[0]
