"""``lm sine``: an autoregressive model of a noisy sine wave."""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..clip import clip_grad_norm_
from .cli_common import EXIT_OK, positive
from .model import CELLS, IMPLEMENTATIONS, ModelSpec, make_layer, run_layer


def noisy_sine(count: int, noise: float, generator: torch.Generator) -> Tensor:
    """float32 [count]: sin(0.01 t) + N(0, noise²), t = 1, 2, …"""
    steps = torch.arange(1, count + 1)
    return torch.sin(0.01 * steps) + noise * torch.randn(count, generator=generator)


class SineModel(nn.Module):
    """The next value of a series after every value read."""

    def __init__(self, implementation: str, cell: str, hidden_size: int) -> None:
        super().__init__()
        self.implementation, self.hidden_size, self.cell = implementation, hidden_size, cell
        self.layer = make_layer(implementation, ModelSpec(1, hidden_size, cell))
        self.output = nn.Linear(hidden_size, 1)

    def forward(self, values: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """values [T, B] -> the value after each [T, B], states."""
        if state is None:
            zero = values.new_zeros(1, values.shape[1], self.hidden_size)
            state = (zero, zero) if self.cell == "LSTM" else zero
        hidden, state = run_layer(
            self.implementation, self.layer, values.unsqueeze(-1), state, None
        )
        return self.output(hidden).squeeze(-1), state


def train_sine(model: SineModel, series: Tensor, window: int, epochs: int, seed: int) -> None:
    """Adam on every window of ``window`` values, the next value of each as its target."""
    order = torch.Generator().manual_seed(seed)
    windows = series.unfold(0, window + 1, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(epochs):
        shuffled = torch.randperm(len(windows), generator=order, device="cpu")
        for rows in windows[shuffled].split(32):
            predicted, _ = model(rows[:, :-1].t())
            loss = F.mse_loss(predicted, rows[:, 1:].t())
            optimizer.zero_grad()
            loss.backward()
            clip_grad_norm_(list(model.parameters()), 1.0)
            optimizer.step()


@torch.no_grad()
def errors_ahead(model: SineModel, series: Tensor, warm_up: int, ahead: int) -> Tensor:
    """Root mean square error float [ahead] of predictions 1 ... ``ahead`` values on.

    From every position of ``series``, the model reads ``warm_up`` values and then its own.
    """
    windows = series.unfold(0, warm_up + ahead, 1).t()  # [warm_up + ahead, N]
    predicted, state = model(windows[:warm_up])
    values = [predicted[-1]]
    for _ in range(ahead - 1):
        predicted, state = model(values[-1][None], state)
        values.append(predicted[-1])
    wrong = torch.stack(values) - windows[warm_up:]
    return wrong.square().mean(1).sqrt()


def add_sine(commands: Any) -> None:
    """The sub-command's options."""
    made = commands.add_parser(
        "sine",
        help="an autoregressive model of a noisy sine",
        description="Train a recurrent layer to name the next value of sin(0.01 t) + noise, on the "
        "first 600 of 1000 values, and print how far its predictions are off on the other 400: one "
        "value ahead, and further ahead where it reads its own predictions.",
    )
    add = made.add_argument
    add("--impl", choices=IMPLEMENTATIONS, default="rnnfast", help="default: %(default)s")
    add("--cell", choices=CELLS, default="RNN", help="default: %(default)s")
    add("--hidden-size", type=positive, default=32, metavar="H", help="default: %(default)s")
    add("--window", type=positive, default=16, metavar="T",
        help="values that are read before a prediction (default: %(default)s)")  # fmt: skip
    add("--noise", type=float, default=0.2, metavar="X", help="its size (default: %(default)s)")
    add("--epochs", type=positive, default=20, metavar="N", help="default: %(default)s")
    add("--seed", type=int, default=0, metavar="N", help="default: %(default)s")
    add("--threads", type=positive, default=2, metavar="N", help="default: %(default)s")


def run_sine(arguments: argparse.Namespace) -> int:
    """``lm sine``."""
    generator = torch.Generator().manual_seed(arguments.seed)
    series = noisy_sine(1000, arguments.noise, generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(arguments.seed)
        model = SineModel(arguments.impl, arguments.cell, arguments.hidden_size)
    train_sine(model, series[:600], arguments.window, arguments.epochs, arguments.seed)
    errors = errors_ahead(model, series[600:], arguments.window, 64)
    print(f"noise {arguments.noise:g} (no prediction can be off by less)\n\nahead  rms error")
    for ahead in (1, 4, 16, 64):
        print(f"{ahead:5d}  {float(errors[ahead - 1]):.3f}")
    return EXIT_OK
