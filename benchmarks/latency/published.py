"""Times that others published of LSTMs and GRUs, on their machines. None was measured here."""

from __future__ import annotations

from typing import NamedTuple


class Published(NamedTuple):
    """A whole layer, input product included.

    Attributes:
        pass_name: ``forward``, or ``training`` for forward and backward. machine: as its source
            states it. ms: of one call.
    """

    system: str
    source: str
    machine: str
    cell: str
    pass_name: str
    T: int
    B: int
    H: int
    ms: float

    @property
    def step_us(self) -> float:
        return self.ms * 1e3 / self.T

    @property
    def label(self) -> str:
        return f"{self.system} (B {self.B}, {self.source}; {self.machine})"


_FLASHRNN = ("figure in FlashRNN's README", "GPU and dtype not stated")
_QAT = ("gru-qat's README", "fp32, GPU not stated")
FIGURES = (
    Published("cuDNN", *_FLASHRNN, "lstm", "forward", 1024, 16, 768, 2.01),
    Published("cuDNN", *_FLASHRNN, "lstm", "training", 1024, 16, 768, 5.19),
    Published("FlashRNN fused", *_FLASHRNN, "lstm", "forward", 1024, 16, 768, 4.87),
    Published("FlashRNN fused", *_FLASHRNN, "lstm", "training", 1024, 16, 768, 13.61),
    Published("haste", *_FLASHRNN, "lstm", "forward", 1024, 16, 768, 18.4),
    Published("haste", *_FLASHRNN, "lstm", "training", 1024, 16, 768, 43.9),
    Published("cuDNN", *_QAT, "gru", "training", 64, 32, 512, 4.4),
    Published("gru-qat persistent", *_QAT, "gru", "training", 64, 32, 512, 8.8),
)
