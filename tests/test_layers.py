"""What the layers do beyond torch.nn: tokens, lengths, resets, all states, the paper's GRU."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import rnnfast

from .cases import BUILT_IN, taking
from .layers import KINDS, makers
from .naive import Inputs, naive_scan

LAYERS = makers(4, 5, without=())
SHAPES = ({}, {"num_layers": 2, "bidirectional": True}, {"num_layers": 3, "bias": False})
T, B = 6, 3


def test_every_cell_has_a_layer() -> None:
    assert list(KINDS) == list(BUILT_IN)


def make(name: str, **kw) -> rnnfast.RNN:
    return LAYERS[name](**kw).double()


def initial(layer, seed: int = 0) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    rows = layer.num_layers * (2 if layer.bidirectional else 1)
    widths = layer._state_widths()[: 2 if isinstance(layer, rnnfast.LSTM) else 1]
    return [torch.randn(rows, B, w, dtype=torch.float64, generator=g) for w in widths]


def joined(layer, states: list[Tensor]):
    return tuple(states) if isinstance(layer, rnnfast.LSTM) else states[0]


def oracle(layer, x: Tensor, states: list[Tensor], lengths=None, resets=None):
    """(y, final states, h of each layer, c of each layer) by the naive loop, layer by layer."""
    cell = layer._cell()
    directions = 2 if layer.bidirectional else 1
    finals, hs, cs = [], [], []
    for k in range(layer.num_layers):
        parts, traces = [], []
        for d in range(directions):
            row = k * directions + d
            suffix = f"_l{k}" + ("_reverse" if d else "")
            names = {"w_ih": "weight_ih", "w_hh": "weight_hh", "b_ih": "bias_ih", "b_hh": "bias_hh"}
            names["w_hr"] = "weight_hr"
            weights = {
                short: getattr(layer, long + suffix)
                for short, long in names.items()
                if hasattr(layer, long + suffix)
            }
            own = [s[row] for s in states]
            ends = None if lengths is None else lengths.tolist()
            out = naive_scan(Inputs(cell, x, "dense", own, weights, ends, resets, d == 1))
            parts.append(out["y"])
            finals.append([out[n] for n in "hc" if n in out])
            if "trace" in out:
                traces.append(out["trace"])
        x = torch.cat(parts, -1)
        hs.append(x)
        cs.append(torch.cat(traces, -1) if traces else None)
    return x, [torch.stack(s) for s in zip(*finals, strict=False)], hs, cs


def flat(hidden) -> list[Tensor]:
    return list(hidden) if isinstance(hidden, tuple) else [hidden]


def same(found, expected) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def gradients(outputs: list[Tensor], layer, *more: Tensor) -> list[Tensor]:
    g = torch.Generator().manual_seed(9)
    loss = sum((o * torch.randn(o.shape, dtype=o.dtype, generator=g)).sum() for o in outputs)
    return list(torch.autograd.grad(loss, [*layer.parameters(), *more]))


@pytest.mark.parametrize("shape", SHAPES, ids=["one", "two-bidirectional", "three-nobias"])
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("ends", ["none", "lengths", "resets", "both"])
def test_layers_against_the_naive_loop(name: str, shape: dict, ends: str) -> None:
    layer = make(name, **shape)
    x = torch.randn(T, B, 4, dtype=torch.float64, requires_grad=True)
    states = [s.requires_grad_() for s in initial(layer)]
    lengths = torch.tensor([6, 0, 4]) if ends in ("lengths", "both") else None
    resets = torch.rand(T, B) < 0.3 if ends in ("resets", "both") else None
    y, hidden, states_of_all = layer(
        x, joined(layer, states), lengths=lengths, resets=resets, return_all_states=True
    )
    expected_y, expected_final, hs, cs = oracle(layer, x, states, lengths, resets)
    same(y, expected_y)
    same(flat(hidden), expected_final)
    same(states_of_all.h, hs)
    if states_of_all.c is None:
        assert cs[0] is None
    else:
        same(states_of_all.c, cs)
    found = gradients([y, *flat(hidden), *states_of_all.h], layer, x, *states)
    same(found, gradients([expected_y, *expected_final, *hs], layer, x, *states))


@pytest.mark.parametrize("backend", taking(torch.float64))
@pytest.mark.parametrize("name", ["rnn_tanh", "lstm_proj", "gru"])
@pytest.mark.parametrize("shape", SHAPES[:2], ids=["one", "two-bidirectional"])
def test_tokens_are_their_one_hot(name: str, shape: dict, backend: str) -> None:
    layer = make(name, **shape)
    tokens = torch.randint(4, (T, B))
    with rnnfast.use_backend(backend):
        y, hidden = layer(tokens)
        dense_y, dense_hidden = layer(F.one_hot(tokens, 4).double())
    same([y, *flat(hidden)], [dense_y, *flat(dense_hidden)])
    same(gradients([y], layer), gradients([dense_y], layer))


def test_tokens_batch_first_unbatched_and_with_lengths() -> None:
    layer, first = make("gru"), make("gru", batch_first=True)
    first.load_state_dict(layer.state_dict())
    tokens = torch.randint(4, (T, B))
    y, h = layer(tokens)
    same(first(tokens.t()), (y.transpose(0, 1), h))
    same(layer(tokens[:, 1]), (y[:, 1], h[:, 1]))
    lengths = torch.tensor([6, 2, 3])
    padded = torch.where(torch.arange(T)[:, None] < lengths, tokens, -1)  # padding is never read
    same(layer(padded, lengths=lengths), layer(tokens, lengths=lengths))


@pytest.mark.parametrize("backend", taking(torch.float64))
def test_padding_is_never_read(backend: str) -> None:
    layer = make("lstm", num_layers=2, bidirectional=True)
    lengths = torch.tensor([6, 2, 3])
    x = torch.randn(T, B, 4, dtype=torch.float64)
    dirty = torch.where((torch.arange(T)[:, None] < lengths).unsqueeze(-1), x, torch.nan)
    with rnnfast.use_backend(backend):
        clean_y, clean_hidden = layer(x, lengths=lengths)
        clean = gradients([clean_y, *clean_hidden], layer)
        y, hidden = layer(dirty, lengths=lengths)
        same([y, *hidden], [clean_y, *clean_hidden])
        same(gradients([y, *hidden], layer), clean)


def test_resets_cut_gradients() -> None:
    layer = make("lstm")
    x = torch.randn(T, B, 4, dtype=torch.float64, requires_grad=True)
    resets = torch.zeros(T, B, dtype=torch.bool)
    resets[3] = True
    y, _ = layer(x, resets=resets)
    (dx,) = torch.autograd.grad(y[3:].sum(), x)
    assert bool((dx[:3] == 0).all())
    assert bool((dx[3:] != 0).any())
    same(y[3:], layer(x[3:])[0])


def test_resets_follow_the_layout_of_the_input() -> None:
    layer, first = make("gru"), make("gru", batch_first=True)
    first.load_state_dict(layer.state_dict())
    x = torch.randn(T, B, 4, dtype=torch.float64)
    resets = torch.rand(T, B) < 0.3
    y, h = layer(x, resets=resets)
    same(first(x.transpose(0, 1), resets=resets.t()), (y.transpose(0, 1), h))
    same(layer(x[:, 2], resets=resets[:, 2]), (y[:, 2], h[:, 2]))


def test_lengths_of_unbatched_input() -> None:
    layer = make("rnn_tanh")
    x = torch.randn(T, 4, dtype=torch.float64)
    y, h = layer(x, lengths=torch.tensor(4))
    same(y[:4], layer(x[:4])[0])
    same(h, layer(x[:4])[1])
    assert bool((y[4:] == 0).all())


@pytest.mark.parametrize("batch_first", [False, True])
def test_all_states_lie_as_the_input(batch_first: bool) -> None:
    layer = make("lstm", num_layers=2, batch_first=batch_first)
    x = torch.randn(B, T, 4) if batch_first else torch.randn(T, B, 4)
    y, (_, c), states = layer(x.double(), return_all_states=True)
    same(states.h[-1], y)
    last = states.c[-1][:, -1] if batch_first else states.c[-1][-1]
    same(last, c[-1])
    _, _, lone = layer(
        x.double()[:, 0] if not batch_first else x.double()[0], return_all_states=True
    )
    assert lone.c[0].shape == (T, 5)


@pytest.mark.parametrize("name", ["rnn_tanh", "lstm", "gru"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_packed_equals_lengths(name: str, bidirectional: bool) -> None:
    layer = make(name, num_layers=2, bidirectional=bidirectional)
    lengths = torch.tensor([2, 6, 4])
    x = torch.randn(T, B, 4, dtype=torch.float64)
    packed = nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
    y, hidden = layer(x, lengths=lengths)
    for backend in taking(torch.float64):
        with rnnfast.use_backend(backend):
            packed_y, packed_hidden = layer(packed)
        same(nn.utils.rnn.pad_packed_sequence(packed_y)[0], y)
        same(flat(packed_hidden), flat(hidden))


def test_dropout_masks_are_torchs_in_every_backend() -> None:
    layer = make("gru", num_layers=3, dropout=0.5, bidirectional=True)
    theirs = nn.GRU(4, 5, 3, dropout=0.5, bidirectional=True).double()
    theirs.load_state_dict(layer.state_dict())
    x = torch.randn(T, B, 4, dtype=torch.float64)
    torch.manual_seed(3)
    expected = theirs(x)
    for backend in taking(torch.float64):
        torch.manual_seed(3)
        with rnnfast.use_backend(backend):
            same(layer(x), expected)


@pytest.mark.parametrize("backend", taking(torch.float64))
def test_dropout_masks_of_packed_input_are_torchs_too(backend: str) -> None:
    layer = make("lstm", num_layers=2, dropout=0.5)
    theirs = nn.LSTM(4, 5, 2, dropout=0.5).double()
    theirs.load_state_dict(layer.state_dict())
    x = torch.randn(T, B, 4, dtype=torch.float64)
    packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([2, 6, 4]), enforce_sorted=False)
    torch.manual_seed(3)
    expected, _ = theirs(packed)
    torch.manual_seed(3)
    with rnnfast.use_backend(backend):
        same(layer(packed)[0].data, expected.data)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_autocast_on_the_cpu(name: str, dtype: torch.dtype, backend: str) -> None:
    """Finite, near float32, and differentiable, also where torch's own LSTM fails."""
    layer = LAYERS[name]()
    x = torch.randn(T, B, 4)
    with rnnfast.use_backend(backend), torch.autocast("cpu", dtype):
        y, _ = layer(x)
    reference, _ = layer(x)
    assert float((y.float() - reference).detach().abs().max()) < 8 * torch.finfo(dtype).eps
    y.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == p.dtype for p in layer.parameters())


@pytest.mark.parametrize("name", LAYERS)
def test_final_states_are_the_users_own(name: str) -> None:
    """Detached in place, as truncated BPTT does, and changed in place, also at the second call,
    which takes the short way; nothing else is changed by that."""
    layer, x = make(name), torch.randn(T, B, 4, dtype=torch.float64)
    for backend in ["auto", *(b for b in taking(torch.float64) if b != "torch")]:
        with rnnfast.use_backend(backend):
            y, _ = layer(x)
            expected = torch.autograd.grad(y.sum(), list(layer.parameters()))
            for _ in range(2):
                again, hn = layer(x)
                states = hn if isinstance(hn, tuple) else (hn,)
                for state in states:
                    state.detach_().zero_()
                torch.testing.assert_close(again, y, rtol=0, atol=0)
                found = torch.autograd.grad(again.sum(), list(layer.parameters()))
                for a, b in zip(found, expected, strict=True):
                    torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_selective_checkpointing_keeps_what_it_was_given() -> None:
    from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

    layer, x = rnnfast.GRU(4, 5), torch.randn(T, B, 4)
    kept = [torch.ops.rnnfast.scan_forward.default]
    for _ in range(2):
        layer.zero_grad()
        checkpoint(
            lambda x: layer(x)[0].sum(),
            x,
            use_reentrant=False,
            context_fn=lambda: create_selective_checkpoint_contexts(kept),
        ).backward()
        found = layer.weight_hh_l0.grad
        assert found is not None
        (expected,) = torch.autograd.grad(layer(x)[0].sum(), layer.weight_hh_l0)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("cls", [rnnfast.GRU, rnnfast.LSTM, rnnfast.IndRNN])
def test_a_layer_that_was_made_narrower_between_two_calls(cls: type) -> None:
    layer, other, x = cls(4, 8), cls(4, 12), torch.randn(T, B, 4)
    for _ in range(2):
        layer(x)
    layer.hidden_size = 12
    for name, weight in other.named_parameters():
        setattr(layer, name, nn.Parameter(weight.detach().clone()))
    torch.testing.assert_close(layer(x)[0], other(x)[0], rtol=0, atol=0)


def test_weights_of_two_dtypes_are_refused() -> None:
    layer, x = rnnfast.IndRNN(4, 8), torch.randn(T, B, 4)
    layer(x)
    for name, weight in list(layer.named_parameters())[1:2]:
        setattr(layer, name, nn.Parameter(weight.detach().double()))
    for _ in range(2):
        with pytest.raises(RuntimeError, match="dtype"):
            layer(x)
