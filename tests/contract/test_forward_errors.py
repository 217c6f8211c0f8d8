"""Bad calls: the type and the words are torch's, and nothing bad is computed with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tests.contract.helpers import LAYER_CLASSES, Maker, as_hx, assert_same_error, raised

Call = Callable[[Any, str], object]


def give(shape: tuple[int, ...], state: tuple[int, ...] | None = None, **kinds: Any) -> Call:
    """A call with an input of `shape` and, where given, hx of shape `state` for h and for c."""

    def call(layer: Any, cls: str) -> object:
        x = torch.zeros(shape, **kinds)
        return layer(x) if state is None else layer(x, as_hx(cls, torch.zeros(state)))

    return call


DTYPE_WORDS = (
    "RNN input dtype (torch.float64) does not match weight dtype (torch.float32). "
    "Convert input: input.to(torch.float32), or convert model: model.to(torch.float64)"
)
WIDTH_WORDS = "input.size(-1) must be equal to input_size. Expected 4, got 6"
EMPTY_WORDS = "Expected sequence length to be larger than 0 in RNN"
DEVICE_WORDS = "Input and parameter tensors are not at the same device, "

BAD_INPUTS: dict[str, tuple[Call, type[Exception], str]] = {
    "0d": (give(()), ValueError, "Expected input to be 2D or 3D, got 0D"),
    "1d": (give((4,)), ValueError, "Expected input to be 2D or 3D, got 1D"),
    "4d": (give((2, 2, 3, 4)), ValueError, "Expected input to be 2D or 3D, got 4D"),
    "width": (give((2, 3, 6)), RuntimeError, WIDTH_WORDS),
    "width_unbatched": (give((2, 6)), RuntimeError, WIDTH_WORDS),
    "width_zero": (give((2, 3, 0)), RuntimeError, "Expected 4, got 0"),
    "dtype": (give((2, 3, 4), dtype=torch.float64), ValueError, DTYPE_WORDS),
    "dtype_before_width": (give((2, 3, 6), dtype=torch.float64), ValueError, DTYPE_WORDS),
    "half": (give((2, 3, 4), dtype=torch.half), ValueError, "RNN input dtype (torch.float16)"),
    "device": (give((2, 3, 4), device="meta"), RuntimeError, DEVICE_WORDS),
    "no_steps": (give((0, 3, 4)), RuntimeError, EMPTY_WORDS),
    "no_steps_unbatched": (give((0, 4)), RuntimeError, EMPTY_WORDS),
    "no_steps_with_state": (give((0, 3, 4), (1, 3, 5)), RuntimeError, EMPTY_WORDS),
    "no_steps_no_batch": (give((0, 0, 4)), RuntimeError, EMPTY_WORDS),
}


@pytest.mark.parametrize("cls", LAYER_CLASSES)
@pytest.mark.parametrize("case", BAD_INPUTS)
def test_a_bad_input_raises_what_torch_raises(make: Maker, cls: str, case: str) -> None:
    call, error, words = BAD_INPUTS[case]
    ours, theirs = make(cls, 4, 5), getattr(nn, cls)(4, 5)
    got = assert_same_error(lambda: call(ours, cls), lambda: call(theirs, cls))
    assert isinstance(got, error)
    assert words in str(got)


@pytest.mark.parametrize("cls", LAYER_CLASSES)
def test_the_layer_names_itself_as_torch_does(make: Maker, cls: str) -> None:
    with pytest.raises(ValueError) as caught:
        make(cls, 4, 5)(torch.zeros(2, 2, 3, 4))
    ending = "4D tensor instead" if cls == "RNN" else "4D instead"
    assert str(caught.value) == f"{cls}: Expected input to be 2D or 3D, got {ending}"


BAD_STATES: dict[str, tuple[Call, str, str]] = {
    # case: the call, the words for RNN and GRU, the words for LSTM
    "rows": (
        give((2, 3, 4), (2, 3, 5)),
        "Expected hidden size (1, 3, 5), got [2, 3, 5]",
        "Expected hidden[0] size (1, 3, 5), got [2, 3, 5]",
    ),
    "batch": (
        give((2, 3, 4), (1, 2, 5)),
        "Expected hidden size (1, 3, 5), got [1, 2, 5]",
        "Expected hidden[0] size (1, 3, 5), got [1, 2, 5]",
    ),
    "batch_one": (
        give((2, 3, 4), (1, 1, 5)),
        "Expected hidden size (1, 3, 5), got [1, 1, 5]",
        "Expected hidden[0] size (1, 3, 5), got [1, 1, 5]",
    ),
    "width": (
        give((2, 3, 4), (1, 3, 4)),
        "Expected hidden size (1, 3, 5), got [1, 3, 4]",
        "Expected hidden[0] size (1, 3, 5), got [1, 3, 4]",
    ),
    "unbatched_rows": (
        give((2, 4), (2, 5)),
        "Expected hidden size (1, 1, 5), got [2, 1, 5]",
        "Expected hidden[0] size (1, 1, 5), got [2, 1, 5]",
    ),
    "two_for_three": (
        give((2, 3, 4), (1, 5)),
        "For batched 3-D input, hx should also be 3-D but got 2-D tensor",
        "For batched 3-D input, hx and cx should also be 3-D but got (2-D, 2-D) tensors",
    ),
    "three_for_two": (
        give((2, 4), (1, 1, 5)),
        "For unbatched 2-D input, hx should also be 2-D but got 3-D tensor",
        "For unbatched 2-D input, hx and cx should also be 2-D but got (3-D, 3-D) tensors",
    ),
    "four": (
        give((2, 3, 4), (1, 1, 3, 5)),
        "For batched 3-D input, hx should also be 3-D but got 4-D tensor",
        "For batched 3-D input, hx and cx should also be 3-D but got (4-D, 4-D) tensors",
    ),
}


@pytest.mark.parametrize("cls", LAYER_CLASSES)
@pytest.mark.parametrize("case", BAD_STATES)
def test_a_bad_state_raises_what_torch_raises(make: Maker, cls: str, case: str) -> None:
    call, words, lstm_words = BAD_STATES[case]
    ours, theirs = make(cls, 4, 5), getattr(nn, cls)(4, 5)
    got = assert_same_error(lambda: call(ours, cls), lambda: call(theirs, cls))
    assert isinstance(got, RuntimeError)
    assert str(got) == (lstm_words if cls == "LSTM" else words)


@pytest.mark.parametrize("cls", LAYER_CLASSES)
def test_batch_first_does_not_move_the_states_batch(make: Maker, cls: str) -> None:
    ours, theirs = make(cls, 4, 5, batch_first=True), getattr(nn, cls)(4, 5, batch_first=True)
    x, wrong = torch.zeros(3, 2, 4), torch.zeros(3, 1, 5)
    assert_same_error(lambda: ours(x, as_hx(cls, wrong)), lambda: theirs(x, as_hx(cls, wrong)))


@pytest.mark.parametrize(("directions", "layers", "rows"), [(2, 1, 2), (1, 2, 2), (2, 3, 6)])
@pytest.mark.parametrize("cls", LAYER_CLASSES)
def test_the_expected_rows_count_layers_and_directions(
    make: Maker, cls: str, directions: int, layers: int, rows: int
) -> None:
    layer = make(cls, 4, 5, layers, bidirectional=directions == 2)
    with pytest.raises(RuntimeError) as caught:
        layer(torch.zeros(2, 3, 4), as_hx(cls, torch.zeros(1, 3, 5)))
    assert f"size ({rows}, 3, 5), got [1, 3, 5]" in str(caught.value)


LSTM_STATES = {
    "h_rows": (((2, 3, 5), (1, 3, 5)), "Expected hidden[0] size (1, 3, 5), got [2, 3, 5]"),
    "c_rows": (((1, 3, 5), (2, 3, 5)), "Expected hidden[1] size (1, 3, 5), got [2, 3, 5]"),
    "c_width": (((1, 3, 5), (1, 3, 4)), "Expected hidden[1] size (1, 3, 5), got [1, 3, 4]"),
    "c_dims": (
        ((1, 3, 5), (3, 5)),
        "For batched 3-D input, hx and cx should also be 3-D but got (3-D, 2-D) tensors",
    ),
}


@pytest.mark.parametrize("case", LSTM_STATES)
def test_lstm_says_which_state_is_wrong(make: Maker, case: str) -> None:
    (h, c), words = LSTM_STATES[case]
    x, hx = torch.zeros(2, 3, 4), (torch.zeros(h), torch.zeros(c))
    ours, theirs = make("LSTM", 4, 5), nn.LSTM(4, 5)
    assert str(assert_same_error(lambda: ours(x, hx), lambda: theirs(x, hx))) == words


def test_a_projection_narrows_h_and_not_c(make: Maker) -> None:
    ours, theirs = make("LSTM", 4, 5, proj_size=3), nn.LSTM(4, 5, proj_size=3)
    x = torch.zeros(2, 6, 4)
    for h, c, words in [
        ((1, 6, 5), (1, 6, 5), "Expected hidden[0] size (1, 6, 3), got [1, 6, 5]"),
        ((1, 6, 3), (1, 6, 3), "Expected hidden[1] size (1, 6, 5), got [1, 6, 3]"),
    ]:
        hx = (torch.zeros(h), torch.zeros(c))
        assert str(assert_same_error(lambda: ours(x, hx), lambda: theirs(x, hx))) == words  # noqa: B023


@pytest.mark.parametrize("states", [0, 1, 3])
@pytest.mark.beyond_torch("an IndexError from inside, or three states taken for two")
def test_lstm_wants_two_states(make: Maker, states: int) -> None:
    error = raised(
        lambda: make("LSTM", 4, 5)(torch.zeros(2, 3, 4), (torch.zeros(1, 3, 5),) * states)
    )
    assert isinstance(error, (TypeError, ValueError, RuntimeError)), repr(error)


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.beyond_torch("torch indexes the tensor as if it were the pair")
def test_a_tensor_where_lstm_wants_a_pair_is_named(make: Maker, rows: int) -> None:
    error = raised(lambda: make("LSTM", 4, 5)(torch.zeros(2, 3, 4), torch.zeros(rows, 3, 5)))
    assert isinstance(error, (TypeError, ValueError, RuntimeError)), repr(error)
    assert "hx" in str(error)


@pytest.mark.parametrize("cls", ["RNN", "GRU"])
def test_a_pair_where_one_state_is_wanted_raises(make: Maker, cls: str) -> None:
    pair = (torch.zeros(1, 3, 5),) * 2
    error = raised(lambda: make(cls, 4, 5)(torch.zeros(2, 3, 4), pair))
    assert isinstance(error, (TypeError, AttributeError, ValueError, RuntimeError)), repr(error)


@pytest.mark.parametrize("cls", LAYER_CLASSES)
def test_a_state_on_another_device_raises_torchs_words(make: Maker, cls: str) -> None:
    ours, theirs = make(cls, 4, 5), getattr(nn, cls)(4, 5)
    x, hx = torch.zeros(2, 3, 4), as_hx(cls, torch.zeros(1, 3, 5, device="meta"))
    got = assert_same_error(lambda: ours(x, hx), lambda: theirs(x, hx))
    assert str(got).startswith("Input and hidden tensors are not at the same device, found input")


@pytest.mark.parametrize(
    ("cls", "which"), [("RNN", "h"), ("GRU", "h"), ("LSTM", "h"), ("LSTM", "c")]
)
@pytest.mark.beyond_torch("its words come from the matrix product or from oneDNN")
def test_a_state_of_another_dtype_says_so(make: Maker, cls: str, which: str) -> None:
    good, bad = torch.zeros(1, 3, 5), torch.zeros(1, 3, 5, dtype=torch.float64)
    hx = ((bad, good) if which == "h" else (good, bad)) if cls == "LSTM" else bad
    error = raised(lambda: make(cls, 4, 5)(torch.zeros(2, 3, 4), hx))
    assert isinstance(error, (RuntimeError, ValueError, TypeError)), repr(error)
    assert "dtype" in str(error)


@pytest.mark.parametrize("cls", LAYER_CLASSES)
def test_what_is_no_tensor_raises(make: Maker, cls: str) -> None:
    for value in ([[0.0] * 4], None, torch.zeros(2, 3, 4).numpy()):
        error = raised(lambda: make(cls, 4, 5)(value))  # noqa: B023
        assert isinstance(error, (AttributeError, TypeError)), repr(error)


@pytest.mark.parametrize("dropout", [2.0, -1.0])
@pytest.mark.parametrize("cls", LAYER_CLASSES)
def test_a_dropout_set_out_of_range_raises(make: Maker, cls: str, dropout: float) -> None:
    layer = make(cls, 4, 5, 2)
    layer.dropout = dropout
    with pytest.raises((RuntimeError, ValueError), match="dropout probability has to be between 0"):
        layer(torch.zeros(2, 3, 4))


@pytest.mark.parametrize("cls", LAYER_CLASSES)
def test_a_failed_call_leaves_the_layer_usable(make: Maker, cls: str) -> None:
    layer = make(cls, 4, 5)
    x = torch.randn(2, 3, 4)
    before = layer(x)
    raised(lambda: layer(torch.zeros(2, 3, 6)))
    raised(lambda: layer(x, as_hx(cls, torch.zeros(9, 9, 9))))
    torch.testing.assert_close(layer(x), before, rtol=0, atol=0)
