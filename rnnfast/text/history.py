"""What a training run measures."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

FIRST_STEPS = 50
"""How many steps of a run keep their loss (later ones are kept as an epoch's perplexity)."""


class Diverged(RuntimeError):
    """The loss became NaN or infinite."""


def perplexity(total_loss: float, tokens: int) -> float:
    """exp of the mean cross-entropy of a token, kept below infinity."""
    return math.exp(min(total_loss / tokens, 700.0))


@dataclass
class EpochResult:
    """The loss of each step (natural log, mean over its tokens), tokens read, seconds taken."""

    losses: list[float]
    tokens_per_step: list[int]
    seconds: float

    @property
    def tokens(self) -> int:
        return sum(self.tokens_per_step)

    @property
    def perplexity(self) -> float:
        """exp of the cross-entropy, averaged over the tokens of the epoch."""
        pairs = zip(self.losses, self.tokens_per_step, strict=True)
        return perplexity(sum(loss * count for loss, count in pairs), self.tokens)

    def require_finite(self) -> None:
        """Raise Diverged, naming the step, unless every loss is finite."""
        for step, value in enumerate(self.losses, start=1):
            if not math.isfinite(value):
                raise Diverged(f"the loss is {value} at step {step} of {len(self.losses)}")


@dataclass
class History:
    """What a run has measured, one entry an epoch; ``first_losses`` one a step.

    ``validation``: perplexity on what is not trained on, empty where there is nothing such.
    """

    perplexity: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    first_losses: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)

    def add(self, result: EpochResult, validation: float | None = None) -> None:
        self.perplexity.append(result.perplexity)
        self.tokens.append(result.tokens)
        self.seconds.append(result.seconds)
        if validation is not None:
            self.validation.append(validation)
        room = FIRST_STEPS - len(self.first_losses)
        self.first_losses += result.losses[: max(room, 0)]

    def mean_perplexity(self, last: int) -> float:
        """Mean over the last ``last`` epochs, or over all where there are fewer."""
        return _mean(self.perplexity[-last:])

    def mean_validation(self, last: int) -> float:
        """The same of the validation perplexity."""
        return _mean(self.validation[-last:])


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
