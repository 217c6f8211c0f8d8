"""The language model: shapes, states, and the same numbers from every implementation."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from rnnfast.text.model import RNNLM, ModelSpec, copy_weights, detach, make_layer

SPEC = ModelSpec(vocab_size=7, hidden_size=5)
IMPLEMENTATIONS = ["rnnfast", "torch", "scratch"]
CELLS = ["RNN", "GRU", "LSTM"]


def tokens(steps: int = 4, batch: int = 3) -> torch.Tensor:
    return torch.randint(7, (steps, batch))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("cell", CELLS)
def test_logits_for_every_step_and_a_state_to_go_on_from(implementation, cell):
    model = RNNLM.build(implementation, ModelSpec(7, 5, cell))
    x = tokens(6)
    whole, _ = model(x, model.begin_state(3))
    first, state = model(x[:4], model.begin_state(3))
    second, _ = model(x[4:], state)
    assert whole.shape == (6, 3, 7)
    torch.testing.assert_close(torch.cat([first, second]), whole)


@pytest.mark.parametrize("cell", CELLS)
def test_same_seed_gives_all_implementations_the_same_model(cell):
    spec = ModelSpec(7, 5, cell)
    logits = []
    for implementation in IMPLEMENTATIONS:
        torch.manual_seed(1)
        model = RNNLM.build(implementation, spec)
        torch.manual_seed(2)
        logits.append(model(tokens(), model.begin_state(3))[0])
    torch.testing.assert_close(logits[0], logits[1])


def test_against_the_formula():
    model = RNNLM.build("rnnfast", SPEC).double()
    x = tokens()
    layer, h, expected = model.layer, torch.zeros(3, 5, dtype=torch.float64), []
    for step in F.one_hot(x, 7).double():
        gates = step @ layer.weight_ih_l0.T + layer.bias_ih_l0
        h = torch.tanh(gates + h @ layer.weight_hh_l0.T + layer.bias_hh_l0)
        expected.append(h @ model.output.weight.T + model.output.bias)
    logits, state = model(x, model.begin_state(3))
    torch.testing.assert_close(logits, torch.stack(expected))
    torch.testing.assert_close(state[0], h)


def test_copied_weights_give_the_same_gradients():
    ours, theirs = RNNLM.build("rnnfast", SPEC), RNNLM.build("torch", SPEC)
    assert not torch.equal(ours.layer.weight_hh_l0, theirs.layer.weight_hh_l0)
    copy_weights(theirs, ours)
    x = tokens()
    for model in (ours, theirs):
        logits, _ = model(x, model.begin_state(3))
        F.cross_entropy(logits.flatten(0, 1), x.flatten()).backward()
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert p is not q, name
        torch.testing.assert_close(p.grad, q.grad, msg=name)
        assert p.grad.abs().sum() > 0, name


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    ("options", "shapes"),
    [
        ({"cell": "RNN", "num_layers": 2}, (2, 3, 5)),
        ({"cell": "GRU", "bidirectional": True}, (2, 3, 5)),
        ({"cell": "LSTM", "num_layers": 2}, [(2, 3, 5), (2, 3, 5)]),
        ({"cell": "LSTM", "num_layers": 2, "bidirectional": True}, [(4, 3, 5), (4, 3, 5)]),
    ],
)
def test_state_is_a_tensor_or_a_pair(implementation, options, shapes):
    model = RNNLM(7, 5, implementation=implementation, **options)
    state = model.begin_state(3)
    found = (
        [tuple(part.shape) for part in state] if isinstance(state, tuple) else tuple(state.shape)
    )
    assert found == shapes
    logits, state = model(tokens(), state)
    assert logits.shape == (4, 3, 7)
    parts = state if isinstance(state, tuple) else (state,)
    cut = detach(state)
    cut_parts = cut if isinstance(cut, tuple) else (cut,)
    for part, without in zip(parts, cut_parts, strict=True):
        assert part.requires_grad
        assert not without.requires_grad
        assert torch.equal(part, without)


def test_begin_state_follows_the_models_dtype():
    assert RNNLM.build("torch", SPEC).double().begin_state(2).dtype == torch.float64


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match=r"one of \['rnnfast', 'scratch', 'torch'\], got 'jax'"):
        make_layer("jax", SPEC)
    with pytest.raises(ValueError, match=r"torch\.nn has no GRU that resets before"):
        make_layer("torch", ModelSpec(7, 5, "GRU", reset_after=False))
