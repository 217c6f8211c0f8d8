"""Arguments of the layers: order, defaults, errors and warnings, each with torch's own words."""

from __future__ import annotations

import inspect
import typing
import warnings
from typing import Any

import pytest
import torch
from torch import nn

from tests.contract.helpers import KINDS, LAYER_CLASSES, Maker, assert_same_error

ATTRIBUTES = (
    "mode input_size hidden_size num_layers bias batch_first dropout bidirectional proj_size"
).split()


def attributes(layer: nn.Module) -> dict[str, Any]:
    return {name: getattr(layer, name) for name in ATTRIBUTES}


@pytest.mark.parametrize("cls", LAYER_CLASSES)
def test_the_defaults_are_torchs(make: Maker, cls: str) -> None:
    assert attributes(make(cls, 4, 5)) == attributes(getattr(nn, cls)(4, 5))


POSITIONAL = {
    "LSTM": (4, 5, 2, False, True, 0.25, True, 3),
    "GRU": (4, 5, 2, False, True, 0.25, True),
    "RNN": (4, 5, 2, "relu", False, True, 0.25, True),
}


@pytest.mark.parametrize("cls", LAYER_CLASSES)
def test_positional_arguments_come_in_torchs_order(make: Maker, cls: str) -> None:
    layer = make(cls, *POSITIONAL[cls])
    assert attributes(layer) == attributes(getattr(nn, cls)(*POSITIONAL[cls]))
    assert (layer.num_layers, layer.bias, layer.batch_first) == (2, False, True)
    assert (layer.dropout, layer.bidirectional) == (0.25, True)


def test_the_fourth_positional_of_rnn_is_the_nonlinearity(make: Maker) -> None:
    layer = make("RNN", 4, 5, 1, "relu")
    assert (layer.nonlinearity, layer.mode) == ("relu", "RNN_RELU")
    assert (make("RNN", 4, 5).nonlinearity, make("RNN", 4, 5).mode) == ("tanh", "RNN_TANH")


@pytest.mark.parametrize("cls", LAYER_CLASSES)
def test_every_argument_has_torchs_keyword(make: Maker, cls: str) -> None:
    keywords: dict[str, Any] = {
        "input_size": 4,
        "hidden_size": 5,
        "num_layers": 2,
        "bias": False,
        "batch_first": True,
        "dropout": 0.5,
        "bidirectional": True,
        "device": "cpu",
        "dtype": torch.float64,
    }
    layer = make(cls, **keywords)
    assert attributes(layer) == attributes(getattr(nn, cls)(**keywords))
    assert {weight.dtype for weight in layer.parameters()} == {torch.float64}


@pytest.mark.beyond_torch("torch.nn's __init__ takes *args and **kwargs")
@pytest.mark.parametrize("cls", LAYER_CLASSES)
def test_the_arguments_can_be_read_from_the_signature(make: Maker, cls: str) -> None:
    """By command lines made from signatures, and torch.nn.utils.skip_init."""
    found = inspect.signature(make.cls(cls)).parameters
    arguments = "input_size hidden_size num_layers nonlinearity bias batch_first dropout"
    arguments += " bidirectional proj_size device dtype"
    lacking = {"RNN": {"proj_size"}, "LSTM": {"nonlinearity"}, "GRU": {"nonlinearity", "proj_size"}}
    positional = [n for n, p in found.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert positional == [n for n in arguments.split() if n not in lacking[cls]]
    assert {"grad_clip_time", "checkpoint_every"} <= set(found)
    assert not any(p.kind is p.VAR_POSITIONAL for p in found.values())
    hints = typing.get_type_hints(make.cls(cls).__init__)
    assert all(name in hints for name in found)
    assert (hints["input_size"], hints["bias"], hints["dropout"]) == (int, bool, float)


@pytest.mark.parametrize("cls", LAYER_CLASSES)
def test_an_unknown_argument_is_named(make: Maker, cls: str) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'hidden'"):
        make(cls, 4, 5, hidden=3)


@pytest.mark.parametrize("kind", KINDS)
def test_the_device_of_the_arguments_is_the_parameters(make: Maker, kind: str) -> None:
    spec = KINDS[kind]
    layer = make(spec.cls, 4, 5, device="meta", **spec.kwargs)
    assert {weight.device.type for weight in layer.parameters()} == {"meta"}


BAD_ARGUMENTS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"bias": 1}, TypeError, "bias should be of type bool, got: int"),
    ({"bias": None}, TypeError, "bias should be of type bool, got: NoneType"),
    ({"batch_first": 1}, TypeError, "batch_first should be of type bool, got: int"),
    ({"input_size": 4.0}, TypeError, "input_size should be of type int, got: float"),
    ({"hidden_size": "5"}, TypeError, "hidden_size should be of type int, got: str"),
    ({"input_size": 0}, ValueError, "input_size must be greater than zero"),
    ({"input_size": -1}, ValueError, "input_size must be greater than zero"),
    ({"hidden_size": 0}, ValueError, "hidden_size must be greater than zero"),
    ({"num_layers": 0}, ValueError, "num_layers must be greater than zero"),
    ({"dropout": 1.1}, ValueError, "dropout should be a number in range [0, 1]"),
    ({"dropout": -0.1}, ValueError, "dropout should be a number in range [0, 1]"),
    ({"dropout": True}, ValueError, "dropout should be a number in range [0, 1]"),
    ({"dropout": float("nan")}, ValueError, "dropout should be a number in range [0, 1]"),
    ({"dropout": "0.1"}, ValueError, "dropout should be a number in range [0, 1]"),
    ({"dropout": "much"}, ValueError, "could not convert string to float"),
    ({"wrong": 1}, TypeError, "unexpected keyword argument 'wrong'"),
]


@pytest.mark.parametrize("cls", LAYER_CLASSES)
@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    BAD_ARGUMENTS,
    ids=[f"{name}={value}" for bad in BAD_ARGUMENTS for name, value in bad[0].items()],
)
def test_a_bad_argument_raises_what_torch_raises(
    make: Maker, cls: str, arguments: dict[str, Any], error: type[Exception], words: str
) -> None:
    given = {"input_size": 4, "hidden_size": 5, "num_layers": 2} | arguments
    with pytest.raises(error) as caught:
        make(cls, **given)
    assert words in str(caught.value)
    if "wrong" not in arguments:  # there torch names its own base class
        assert_same_error(lambda: make(cls, **given), lambda: getattr(nn, cls)(**given))


def test_a_layer_needs_its_sizes(make: Maker) -> None:
    for arguments in ((), (4,)):
        with pytest.raises(TypeError, match="hidden_size"):
            make("LSTM", *arguments)


@pytest.mark.parametrize("proj_size", [-1, 5, 6])
def test_a_projection_must_be_narrower_than_the_state(make: Maker, proj_size: int) -> None:
    words = {
        -1: "proj_size should be a positive integer or zero to disable projections",
        5: "proj_size has to be smaller than hidden_size",
        6: "proj_size has to be smaller than hidden_size",
    }
    error = assert_same_error(
        lambda: make("LSTM", 4, 5, proj_size=proj_size), lambda: nn.LSTM(4, 5, proj_size=proj_size)
    )
    assert isinstance(error, ValueError)
    assert str(error) == words[proj_size]


@pytest.mark.parametrize("proj_size", [0, 3])
@pytest.mark.parametrize("cls", ["RNN", "GRU"])
def test_only_lstm_takes_a_projection(make: Maker, cls: str, proj_size: int) -> None:
    with pytest.raises(
        ValueError, match=r"^proj_size argument is only supported for LSTM, not RNN or GRU$"
    ):
        make(cls, 4, 5, proj_size=proj_size)


def test_an_unknown_nonlinearity_is_named(make: Maker) -> None:
    words = r"^Unknown nonlinearity 'x'\. Select from 'tanh' or 'relu'\.$"
    with pytest.raises(ValueError, match=words):
        make("RNN", 4, 5, 1, "x")
    with pytest.raises(ValueError, match=words):
        make("RNN", 4, 5, nonlinearity="x")


def messages_of(build: Any) -> list[tuple[type[Warning], str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        build()
    return [(warning.category, str(warning.message)) for warning in caught]


@pytest.mark.parametrize("cls", LAYER_CLASSES)
def test_dropout_in_one_layer_warns(make: Maker, cls: str) -> None:
    got = messages_of(lambda: make(cls, 4, 5, dropout=0.5))
    assert got == messages_of(lambda: getattr(nn, cls)(4, 5, dropout=0.5))
    assert len(got) == 1
    assert got[0][0] is UserWarning
    assert "non-zero dropout expects num_layers greater than 1" in got[0][1]


@pytest.mark.parametrize("cls", LAYER_CLASSES)
def test_nothing_else_warns(make: Maker, cls: str) -> None:
    def build_and_run() -> None:
        layer = make(cls, 4, 5, 2, dropout=0.5)
        layer(torch.randn(3, 2, 4))[0].sum().backward()

    assert messages_of(build_and_run) == []


REPRESENTED: list[dict[str, Any]] = [
    {},
    {"num_layers": 2},
    {"bias": False},
    {"batch_first": True},
    {"num_layers": 3, "dropout": 0.25, "bidirectional": True},
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("arguments", REPRESENTED, ids=str)
def test_repr_prints_what_torch_prints(make: Maker, kind: str, arguments: dict[str, Any]) -> None:
    spec = KINDS[kind]
    given = spec.kwargs | arguments
    ours, theirs = make(spec.cls, 4, 5, **given), getattr(nn, spec.cls)(4, 5, **given)
    assert ours.extra_repr() == theirs.extra_repr()
    assert repr(ours) == repr(theirs)


def test_a_users_subclass_passes_its_arguments_on(make: Maker) -> None:
    class Doubled(make.cls("LSTM")):  # type: ignore[misc]
        def __init__(self, size: int) -> None:
            super().__init__(size, size, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            output, _ = super().forward(x)
            return 2 * output

    layer = Doubled(4)
    plain = nn.LSTM(4, 4, batch_first=True)
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(2, 3, 4)
    torch.testing.assert_close(layer(x), 2 * plain(x)[0])
