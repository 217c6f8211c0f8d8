"""Opacus: per-sample gradients, its validator, its engine."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("opacus", reason="opacus is not installed")
from opacus import GradSampleModule, PrivacyEngine
from opacus.accountants import RDPAccountant
from opacus.validators import ModuleValidator
from torch.utils.data import DataLoader, TensorDataset

import rnnfast
import rnnfast.opacus

from .. import notebook

NOTEBOOK = Path(__file__).resolve().parents[2] / "docs/notebooks/dp_sgd.ipynb"
T, B, I, H = 4, 3, 5, 6
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


class Model(nn.Module):
    def __init__(self, layer: nn.Module, **options: Any) -> None:
        super().__init__()
        self.layer, self.options = layer, options
        self.head = nn.LazyLinear(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x, **self.options)[0])


def both(cls: type, **more: Any) -> Callable[..., nn.Module]:
    return lambda **given: cls(I, H, num_layers=2, bidirectional=True, **more, **given)


KINDS: dict[str, Callable[..., nn.Module]] = {
    "rnn": both(rnnfast.RNN),
    "lstm": both(rnnfast.LSTM),
    "compat_lstm": both(rnnfast.compat.LSTM),
    "projected": both(rnnfast.LSTM, proj_size=3),
    "gru": both(rnnfast.GRU),
    "gru_reset_before": both(rnnfast.GRU, reset_after=False),
    "mgu": both(rnnfast.MGU),
    "peephole": both(rnnfast.PeepholeLSTM),
    "own": lambda **given: rnnfast.Recurrent("gru", I, H, **given),
}


def sample_by_sample(model: Model, x: Tensor, axis: int) -> dict[str, list[Tensor]]:
    found: dict[str, list[Tensor]] = {name: [] for name, _ in model.named_parameters()}
    options = dict(model.options)
    for b in range(B):
        one = torch.tensor([b])
        model.options = {
            name: value.index_select(
                0 if name == "lengths" else axis if name == "resets" else 1, one
            )
            for name, value in options.items()
        }
        loss = model(x.index_select(axis, one)).square().sum()
        grads = torch.autograd.grad(loss, list(model.parameters()))
        for name, gradient in zip(found, grads, strict=True):
            found[name].append(gradient)
    model.options = options
    return found


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("name", KINDS)
def test_per_sample_gradients(name: str, batch_first: bool) -> None:
    layer = KINDS[name](batch_first=batch_first).double()
    check(layer, {}, batch_first)


def check(layer: nn.Module, options: dict[str, Tensor], batch_first: bool) -> None:
    axis = 0 if batch_first else 1
    x = torch.randn(B, T, I, dtype=torch.float64)
    x = x if batch_first else x.transpose(0, 1)
    model = Model(layer, **options).double()
    model(x)
    expected = sample_by_sample(model, x, axis)
    wrapped = GradSampleModule(model, batch_first=batch_first, loss_reduction="sum")
    wrapped(x).square().sum().backward()
    for key, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad_sample, torch.stack(expected[key]))
        torch.testing.assert_close(parameter.grad_sample.sum(0), parameter.grad)


@pytest.mark.parametrize("batch_first", [True, False])
def test_with_states_lengths_and_resets(batch_first: bool) -> None:
    layer = rnnfast.GRU(I, H, 2, batch_first=batch_first).double()
    resets = torch.rand(B, T) < 0.4
    options = {
        "hx": torch.randn(2, B, H, dtype=torch.float64),
        "lengths": torch.tensor([2, 4, 0]),
        "resets": resets if batch_first else resets.t(),
    }
    check(layer, options, batch_first)


def test_a_gradient_that_opacus_does_not_see_is_refused() -> None:
    model = GradSampleModule(rnnfast.GRU(I, H, batch_first=True))
    y, h = model(torch.randn(B, T, I))
    with pytest.raises(NotImplementedError, match="first output only"):
        (y.sum() + h.sum()).backward()


def test_states_by_position_are_refused() -> None:
    model = GradSampleModule(rnnfast.GRU(I, H, batch_first=True))
    y, _ = model(torch.randn(B, T, I), torch.randn(1, B, H))
    with pytest.raises(ValueError, match="give hx by keyword"):
        y.sum().backward()


def test_the_validators_answer() -> None:
    assert ModuleValidator.validate(Model(rnnfast.compat.LSTM(I, H))) == []
    for option in ("dropout", "recurrent_dropout", "zoneout", "weight_dropout"):
        layer = rnnfast.LSTM(I, H, 2, **{option: 0.1})
        (error,) = ModuleValidator.validate(layer)
        assert f"LSTM: {option}=0.1 draws masks" in str(error)


def test_a_step_of_private_training() -> None:
    model = nn.Sequential(rnnfast.LSTM(I, H, batch_first=True), Last(), nn.Linear(H, 2))
    data = DataLoader(TensorDataset(torch.randn(12, T, I), torch.randint(2, (12,))), batch_size=4)
    private, optimizer, loader = PrivacyEngine().make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        data_loader=data,
        noise_multiplier=1.0,
        max_grad_norm=1.0,
    )
    before = model[0].weight_hh_l0.detach().clone()
    for x, target in loader:
        if len(x) == 0:
            continue
        optimizer.zero_grad()
        nn.functional.cross_entropy(private(x), target).backward()
        optimizer.step()
    assert not torch.equal(model[0].weight_hh_l0, before)


class Last(nn.Module):
    def forward(self, found: Any) -> Tensor:
        return found[0][:, -1]


@pytest.mark.parametrize("rate", [0.001, 0.04, 0.5])
@pytest.mark.parametrize("noise", [0.6, 1.0, 4.0])
@pytest.mark.parametrize("steps", [1, 250])
def test_the_notebooks_accountant(rate: float, noise: float, steps: int) -> None:
    """docs/notebooks/dp_sgd.ipynb computes epsilon itself, over integer orders."""
    sources = ["".join(cell["source"]) for cell in notebook.code_cells(notebook.read(NOTEBOOK))]
    (source,) = [source for source in sources if source.startswith("def epsilon")]
    namespace: dict[str, Any] = {"math": math, "torch": torch}
    exec(source.partition("\n\n\n")[0], namespace)
    accountant = RDPAccountant()
    accountant.history = [(noise, rate, steps)]
    expected = accountant.get_epsilon(1e-5, alphas=list(range(2, 256)))
    assert namespace["epsilon"](rate, noise, steps, 1e-5) == pytest.approx(expected, rel=1e-6)
