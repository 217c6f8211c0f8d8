"""PackedSequence in, PackedSequence out: indices, numbers, order of the states, errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import (
    PackedSequence,
    pack_padded_sequence,
    pack_sequence,
    pad_packed_sequence,
)

from tests.contract.helpers import (
    KINDS,
    LAYER_CLASSES,
    Maker,
    as_hx,
    assert_same_as_torch,
    assert_same_error,
    hidden,
    raised,
    run,
    states_of,
    twins,
)
from tests.oracle import assert_all_close_to_oracle

IN, H = 4, 5

LENGTHS: dict[str, tuple[list[int], bool]] = {
    # name: lengths, whether pack_padded_sequence is told that they are sorted
    "sorted": ([6, 4, 4, 1], True),
    "unsorted": ([4, 6, 1, 4], False),
    "sorted_not_said": ([6, 4, 4, 1], False),
    "uniform": ([5, 5, 5], True),
    "uniform_not_said": ([5, 5, 5], False),
    "single": ([3], True),
    "all_ones": ([1, 1, 1], False),
}


def packed(name: str, dtype: torch.dtype = torch.float64, width: int = IN) -> PackedSequence:
    lengths, enforce_sorted = LENGTHS[name]
    x = torch.randn(max(lengths), len(lengths), width, dtype=dtype)
    return pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=enforce_sorted)


def same_indices(got: PackedSequence, want: PackedSequence) -> bool:
    for field in ("batch_sizes", "sorted_indices", "unsorted_indices"):
        a, b = getattr(got, field), getattr(want, field)
        if (a is None) != (b is None) or (a is not None and not torch.equal(a, b)):
            return False
    return True


@pytest.mark.parametrize(
    ("name", "with_state"),
    [("sorted", False), ("unsorted", False), *((name, True) for name in LENGTHS)],
)
@pytest.mark.parametrize("kind", KINDS)
def test_numbers_and_gradients_are_torchs(
    make_layer: Maker, backend: str, kind: str, name: str, with_state: bool
) -> None:
    ours, theirs = twins(make_layer, kind, IN, H, 2, bidirectional=True, dtype=torch.float64)
    x = packed(name)
    hx = hidden(theirs, len(LENGTHS[name][0]), dtype=torch.float64) if with_state else None
    assert_same_as_torch(ours, theirs, x, hx)


@pytest.mark.parametrize(("layers", "bidirectional", "bias"), [(1, False, True), (3, True, False)])
@pytest.mark.parametrize("kind", KINDS)
def test_single_precision_is_as_good_as_torchs(
    make: Maker, kind: str, layers: int, bidirectional: bool, bias: bool
) -> None:
    ours, theirs = twins(make, kind, IN, H, layers, bidirectional=bidirectional, bias=bias)
    assert_same_as_torch(ours, theirs, packed("unsorted", torch.float32), hidden(theirs, 4))


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("name", LENGTHS)
@pytest.mark.parametrize("cls", LAYER_CLASSES)
def test_the_output_keeps_the_index_fields(
    make_layer: Maker, cls: str, name: str, batch_first: bool
) -> None:
    x = packed(name, torch.float32)
    output, _ = make_layer(cls, IN, H, batch_first=batch_first)(x)
    assert type(output) is PackedSequence
    assert same_indices(output, x)
    assert output.data.shape == (sum(LENGTHS[name][0]), H)
    assert output.batch_sizes.device.type == "cpu"


@pytest.mark.parametrize("kind", KINDS)
def test_the_final_states_are_in_the_callers_order(make_layer: Maker, kind: str) -> None:
    spec = KINDS[kind]
    layer = make_layer(spec.cls, IN, H, bidirectional=True, **spec.kwargs)
    sequences = [torch.randn(length, IN) for length in (2, 5, 1, 4)]
    _, hn = layer(pack_sequence(sequences, enforce_sorted=False))
    for position, sequence in enumerate(sequences):
        _, alone = layer(sequence)
        for state, its_own in zip(states_of(hn), states_of(alone), strict=True):
            torch.testing.assert_close(state[:, position], its_own)


@pytest.mark.parametrize("kind", KINDS)
def test_the_initial_states_are_in_the_callers_order(make_layer: Maker, kind: str) -> None:
    spec = KINDS[kind]
    layer = make_layer(spec.cls, IN, H, **spec.kwargs)
    sequences = [torch.randn(length, IN) for length in (2, 5, 1)]
    hx = hidden(layer, 3)
    output, _ = layer(pack_sequence(sequences, enforce_sorted=False), hx)
    padded, lengths = pad_packed_sequence(output)
    for position, sequence in enumerate(sequences):
        own = [state[:, position] for state in states_of(hx)]
        alone, _ = layer(sequence, own[0] if len(own) == 1 else tuple(own))
        torch.testing.assert_close(padded[: lengths[position], position], alone)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.beyond_torch("torch.nn has no lengths")
def test_packing_equals_lengths(make_layer: Maker, kind: str) -> None:
    spec = KINDS[kind]
    layer = make_layer(spec.cls, IN, H, 2, bidirectional=True, dtype=torch.float64, **spec.kwargs)
    lengths = torch.tensor([2, 6, 1, 4])
    x, hx = torch.randn(6, 4, IN, dtype=torch.float64), hidden(layer, 4, dtype=torch.float64)
    output, hn = layer(pack_padded_sequence(x, lengths, enforce_sorted=False), hx)
    with_lengths, hn_with_lengths = layer(x, hx, lengths=lengths)
    assert_all_close_to_oracle(
        {"output": with_lengths, **named(hn_with_lengths)},
        {"output": pad_packed_sequence(output)[0], **named(hn)},
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.beyond_torch("torch.nn has no lengths")
def test_packing_and_lengths_train_alike(make_layer: Maker, kind: str) -> None:
    spec = KINDS[kind]
    layer = make_layer(spec.cls, IN, H, 2, bidirectional=True, dtype=torch.float64, **spec.kwargs)
    lengths, x = torch.tensor([2, 6, 1, 4]), torch.randn(6, 4, IN, dtype=torch.float64)

    def gradients(call: Any) -> dict[str, Tensor]:
        layer.zero_grad()
        call().square().sum().backward()
        return {name: weight.grad.clone() for name, weight in layer.named_parameters()}

    by_lengths = gradients(lambda: layer(x, lengths=lengths)[0])
    by_packing = gradients(
        lambda: layer(pack_padded_sequence(x, lengths, enforce_sorted=False))[0].data
    )
    assert_all_close_to_oracle(by_lengths, by_packing)


def named(hn: Any) -> dict[str, Tensor]:
    return dict(zip(("h_n", "c_n"), states_of(hn), strict=False))


@pytest.mark.parametrize("cls", LAYER_CLASSES)
def test_a_packed_sequence_of_the_wrong_width_raises(make_layer: Maker, cls: str) -> None:
    with pytest.raises(RuntimeError) as caught:
        make_layer(cls, IN, H)(packed("unsorted", torch.float32, width=6))
    if cls != "LSTM":
        assert str(caught.value) == "input.size(-1) must be equal to input_size. Expected 4, got 6"


@pytest.mark.parametrize("name", ["sorted", "unsorted", "uniform"])
@pytest.mark.beyond_torch("nn.LSTM skips its checks for packed input")
def test_lstm_checks_a_packed_input_as_a_dense_one(make_layer: Maker, name: str) -> None:
    layer = make_layer("LSTM", IN, H)
    width = raised(lambda: layer(packed(name, torch.float32, width=6)))
    assert isinstance(width, RuntimeError)
    assert str(width) == "input.size(-1) must be equal to input_size. Expected 4, got 6"
    dtype = raised(lambda: layer(packed(name, torch.float64)))
    assert isinstance(dtype, ValueError)
    assert str(dtype).startswith("RNN input dtype (torch.float64) does not match weight dtype")


@pytest.mark.parametrize("dims", [1, 3])
@pytest.mark.parametrize("cls", ["RNN", "GRU"])
def test_packed_data_must_have_two_dimensions(make_layer: Maker, cls: str, dims: int) -> None:
    data = torch.zeros((7,) + (4,) * (dims - 1))
    x = PackedSequence(data, torch.tensor([3, 2, 1, 1]))
    ours, theirs = make_layer(cls, IN, H), getattr(nn, cls)(IN, H)
    error = assert_same_error(lambda: ours(x), lambda: theirs(x))
    assert str(error) == f"input must have 2 dimensions, got {dims}"


PACKED_STATES = {
    "rows": (2, 4, 5),
    "batch_large": (1, 6, 5),
    "width_large": (1, 4, 6),
    "width_small": (1, 4, 4),
}


@pytest.mark.parametrize("shape", PACKED_STATES.values(), ids=PACKED_STATES)
@pytest.mark.parametrize("cls", ["RNN", "GRU"])
def test_a_bad_state_raises_torchs_words(
    make_layer: Maker, cls: str, shape: tuple[int, ...]
) -> None:
    x, hx = packed("sorted", torch.float32), torch.zeros(shape)
    ours, theirs = make_layer(cls, IN, H), getattr(nn, cls)(IN, H)
    error = assert_same_error(lambda: ours(x, hx), lambda: theirs(x, hx))
    assert str(error) == f"Expected hidden size (1, 4, 5), got {list(shape)}"


@pytest.mark.parametrize("which", ["h", "c"])
@pytest.mark.parametrize("shape", PACKED_STATES.values(), ids=PACKED_STATES)
@pytest.mark.parametrize("name", ["sorted", "unsorted"])
@pytest.mark.beyond_torch("nn.LSTM skips the check and computes with what it finds")
def test_a_bad_state_of_lstm_raises_the_dense_words(
    make_layer: Maker, name: str, shape: tuple[int, ...], which: str
) -> None:
    good, bad = torch.zeros(1, 4, 5), torch.zeros(shape)
    hx = (bad, good) if which == "h" else (good, bad)
    error = raised(lambda: make_layer("LSTM", IN, H)(packed(name, torch.float32), hx))
    assert isinstance(error, RuntimeError)
    assert f"Expected hidden[{'hc'.index(which)}] size (1, 4, 5), got" in str(error)


@pytest.mark.parametrize("cls", LAYER_CLASSES)
@pytest.mark.parametrize("batch", [1, 2, 5, 1000])
@pytest.mark.parametrize("name", ["unsorted", "uniform_not_said"])
@pytest.mark.beyond_torch("torch permutes the states before it looks at them")
def test_a_state_of_another_batch_raises_and_is_not_read(
    make_layer: Maker, cls: str, name: str, batch: int
) -> None:
    error = raised(
        lambda: make_layer(cls, IN, H)(
            packed(name, torch.float32), as_hx(cls, torch.zeros(1, batch, H))
        )
    )
    assert isinstance(error, (RuntimeError, IndexError))
    assert "Expected hidden" in str(error)


@pytest.mark.parametrize("shape", [(5,), (4, 5), (1, 1, 4, 5)], ids=str)
@pytest.mark.parametrize("name", ["sorted", "unsorted"])
@pytest.mark.parametrize("cls", LAYER_CLASSES)
def test_a_state_of_other_dimensions_raises(
    make_layer: Maker, cls: str, name: str, shape: tuple[int, ...]
) -> None:
    error = raised(
        lambda: make_layer(cls, IN, H)(packed(name, torch.float32), as_hx(cls, torch.zeros(shape)))
    )
    assert isinstance(error, (RuntimeError, IndexError)), repr(error)


@pytest.mark.parametrize("kind", KINDS)
def test_no_gradient_where_a_sequence_has_ended(make_layer: Maker, kind: str) -> None:
    spec = KINDS[kind]
    layer = make_layer(spec.cls, IN, H, bidirectional=True, **spec.kwargs)
    x = torch.randn(4, 3, IN, requires_grad=True)
    lengths = torch.tensor([2, 4, 1])
    output, _ = layer(pack_padded_sequence(x, lengths, enforce_sorted=False))
    (dx,) = torch.autograd.grad(output.data.square().sum(), x)
    alive = torch.arange(4)[:, None] < lengths
    assert bool((dx[~alive] == 0).all())
    assert bool((dx[alive] != 0).any(-1).all())


@pytest.mark.parametrize("kind", KINDS)
def test_a_dropout_of_one_starves_the_next_layer_as_in_torch(make_layer: Maker, kind: str) -> None:
    ours, theirs = twins(
        make_layer, kind, IN, H, 2, dropout=1.0, bidirectional=True, dtype=torch.float64
    )
    x = packed("unsorted")
    got, want = ours(x), theirs(x)
    torch.testing.assert_close(got[0].data, want[0].data)
    torch.testing.assert_close(got[1], want[1])
    ours.eval(), theirs.eval()
    assert float((ours(x)[0].data - got[0].data).detach().abs().max()) > 1e-3
    torch.testing.assert_close(ours(x)[0].data, theirs(x)[0].data)


def test_two_layers_in_a_row_pass_the_packing_on(make_layer: Maker) -> None:
    ours = nn.ModuleList([make_layer("GRU", IN, H), make_layer("LSTM", H, 3)])
    theirs = nn.ModuleList([nn.GRU(IN, H), nn.LSTM(H, 3)])
    theirs.load_state_dict(ours.state_dict())
    x = packed("unsorted", torch.float32)
    got, want = (pair[1](pair[0](x)[0])[0] for pair in (ours, theirs))
    assert same_indices(got, want)
    torch.testing.assert_close(got.data, want.data)


@pytest.mark.parametrize("cls", LAYER_CLASSES)
def test_unused_parts_of_the_padding_are_never_read(make_layer: Maker, cls: str) -> None:
    x = torch.randn(5, 3, IN)
    lengths = torch.tensor([3, 5, 1])
    x[torch.arange(5)[:, None] >= lengths] = float("nan")
    values = run(
        make_layer(cls, IN, H, 2, bidirectional=True),
        pack_padded_sequence(x, lengths, False, False),
    )
    assert all(bool(torch.isfinite(value).all()) for value in values.values())
