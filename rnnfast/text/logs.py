"""TensorBoard logs of training runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .run import Run


class TensorBoard:
    """Writes perplexity, validation perplexity and tokens/s of each epoch into ``folder``.

    A run that goes on after ``done`` epochs replaces what the log holds after them.

    Raises:
        ImportError: the package tensorboard is not installed.
    """

    def __init__(self, folder: Path, done: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder), purge_step=done + 1)

    def add(self, run: Run[Any]) -> None:
        """The last epoch of ``run``."""
        history, name = run.history, run.implementation
        self._writer.add_scalar(f"perplexity/{name}", history.perplexity[-1], run.epoch)
        if history.validation:
            self._writer.add_scalar(f"validation/{name}", history.validation[-1], run.epoch)
        speed = history.tokens[-1] / history.seconds[-1]
        self._writer.add_scalar(f"tokens_per_second/{name}", speed, run.epoch)

    def close(self) -> None:
        self._writer.close()
