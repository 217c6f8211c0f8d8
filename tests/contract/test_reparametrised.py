"""Weights that are computed, swapped or shared: parametrizations, functional_call, tying."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from tests.contract.helpers import KINDS, Maker, run, twins
from tests.oracle import assert_all_close_to_oracle

WIDTH, H = 4, 5


def pair(make_layer: Maker, kind: str, **kwargs: Any) -> tuple[Any, Any]:
    return twins(make_layer, kind, WIDTH, H, dtype=torch.float64, **kwargs)


def batch() -> Tensor:
    return torch.randn(6, 3, WIDTH, dtype=torch.float64)


def old_weight_norm(layer: nn.Module, name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        nn.utils.weight_norm(layer, name)


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


PARAMETRISED: dict[str, Callable[[nn.Module, str], object]] = {
    "weight_norm": parametrizations.weight_norm,
    "weight_norm_old": old_weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "spectral_norm_old": nn.utils.spectral_norm,
    "own": lambda layer, name: parametrize.register_parametrization(layer, name, Doubled()),
}


@pytest.mark.parametrize("how", PARAMETRISED)
@pytest.mark.parametrize("kind", KINDS)
def test_a_parametrised_weight_is_followed(make_layer: Maker, kind: str, how: str) -> None:
    ours, theirs = pair(make_layer, kind, bidirectional=True)
    x = batch()
    run(ours, x)  # whatever a layer may keep, it keeps from here on
    for layer in (ours, theirs):
        for name in ("weight_hh_l0", "weight_ih_l0_reverse"):
            torch.manual_seed(3)  # spectral_norm starts from random vectors
            PARAMETRISED[how](layer, name)
        # where it trains, spectral_norm takes a step at every look at the weight
        layer.train(how != "spectral_norm")
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for _ in range(2):
        assert_all_close_to_oracle(run(ours, x), run(theirs, x))
        with torch.no_grad():
            for layer in (ours, theirs):
                for weight in layer.parameters():
                    weight.mul_(0.9)


@pytest.mark.parametrize("kind", KINDS)
def test_a_parametrization_changes_the_numbers(make_layer: Maker, kind: str) -> None:
    ours, _ = pair(make_layer, kind)
    x = batch()
    before = ours(x)[0]
    parametrize.register_parametrization(ours, "weight_hh_l0", Doubled())
    doubled = ours(x)[0]
    assert float((doubled - before).detach().abs().max()) > 1e-4
    parametrize.remove_parametrizations(ours, "weight_hh_l0", leave_parametrized=False)
    torch.testing.assert_close(ours(x)[0], before, rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_parametrised_layer_can_be_copied(make_layer: Maker, kind: str) -> None:
    """Before it is used: afterwards torch.nn keeps the computed weight, which deepcopy refuses."""
    ours, _ = pair(make_layer, kind)
    parametrizations.weight_norm(ours, "weight_hh_l0")
    copied = copy.deepcopy(ours)
    x = batch()
    before = ours(x)[0].detach()
    torch.testing.assert_close(copied(x)[0].detach(), before, rtol=0, atol=0)
    with torch.no_grad():
        copied.parametrizations.weight_hh_l0.original0.mul_(2)
    assert not torch.equal(copied(x)[0], before)
    torch.testing.assert_close(ours(x)[0].detach(), before, rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_functional_call_uses_what_it_is_given_and_forgets_it(make_layer: Maker, kind: str) -> None:
    ours, theirs = pair(make_layer, kind, num_layers=2)
    x = batch()
    before = ours(x)[0].detach()
    weights = {name: torch.randn_like(weight) for name, weight in ours.named_parameters()}
    values = []
    for layer in (ours, theirs):
        leaves = {name: weight.clone().requires_grad_() for name, weight in weights.items()}
        output, _ = torch.func.functional_call(layer, leaves, (x,))
        gradients = torch.autograd.grad(output.square().sum(), list(leaves.values()))
        values.append({"output": output.detach(), **dict(zip(leaves, gradients, strict=True))})
    assert_all_close_to_oracle(values[0], values[1])
    torch.testing.assert_close(ours(x)[0].detach(), before, rtol=0, atol=0)
    assert all(weight.grad is None for weight in ours.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_functional_call_with_some_of_the_weights(make_layer: Maker, kind: str) -> None:
    ours, theirs = pair(make_layer, kind)
    x, some = batch(), {"weight_hh_l0": torch.randn_like(ours.weight_hh_l0)}
    torch.testing.assert_close(
        torch.func.functional_call(ours, some, (x,)),
        torch.func.functional_call(theirs, some, (x,)),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_weights_tied_inside_a_layer_add_their_gradients(make_layer: Maker, kind: str) -> None:
    ours, theirs = pair(make_layer, kind, num_layers=2, bidirectional=True)
    x = batch()
    for layer in (ours, theirs):
        layer(x)
        layer.weight_hh_l1 = layer.weight_hh_l0
        layer.weight_ih_l0_reverse = layer.weight_ih_l0
    assert "weight_hh_l1" not in dict(ours.named_parameters())
    assert_all_close_to_oracle(run(ours, x), run(theirs, x))


@pytest.mark.parametrize("kind", ["rnn_tanh", "lstm", "gru"])
def test_weights_tied_between_layers_add_their_gradients(make_layer: Maker, kind: str) -> None:
    x, gradients = batch(), []
    ours, theirs = pair(make_layer, kind)
    second, their_second = pair(make_layer, kind)
    for first, other in ((ours, second), (theirs, their_second)):
        other.weight_ih_l0 = first.weight_ih_l0
        first.bias_hh_l0 = other.bias_ih_l0
    for first, other in ((ours, second), (theirs, their_second)):
        loss = first(x)[0].square().sum() + other(x)[0].sum()
        gradients.append(torch.autograd.grad(loss, [first.weight_ih_l0, other.bias_ih_l0]))
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("kind", KINDS)
def test_an_ensemble_of_stacked_weights(make_layer: Maker, kind: str) -> None:
    """functional_call in a loop over members, the eager form of torch.func's ensembles."""
    members = [pair(make_layer, kind)[0] for _ in range(3)]
    x = batch()
    stacked, _ = torch.func.stack_module_state(members)
    for i, member in enumerate(members):
        weights = {name: value[i] for name, value in stacked.items()}
        output, _ = torch.func.functional_call(members[0], weights, (x,))
        torch.testing.assert_close(output, member(x)[0], rtol=0, atol=0)
