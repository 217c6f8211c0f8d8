"""torch.jit.trace and torch.jit.script: what is saved runs where only torch is."""

from __future__ import annotations

import copy
import io
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils._pytree import tree_leaves

import rnnfast

from . import own_cells
from .elsewhere import asked_for, run_elsewhere

T, B, I, H = 5, 3, 8, 6
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]


class Call(nn.Module):
    """A model around a layer, which calls it by ``how``."""

    def __init__(self, layer: nn.Module, how: Callable[..., Any]) -> None:
        super().__init__()
        self.layer, self.how = layer, how

    def forward(self, *args: Any) -> Any:
        return self.how(self.layer, *args)


def plain(layer: nn.Module, x: Tensor) -> Any:
    return layer(x)


def with_lengths(layer: nn.Module, x: Tensor, lengths: Tensor) -> Any:
    return layer(x, lengths=lengths)


def with_resets(layer: nn.Module, x: Tensor, resets: Tensor) -> Any:
    return layer(x, resets=resets)


def with_states(layer: nn.Module, x: Tensor, *states: Tensor) -> Any:
    return layer(x, states if len(states) > 1 else states[0])


def packed(layer: nn.Module, x: Tensor, lengths: Tensor) -> Any:
    given = pack_padded_sequence(x, lengths, enforce_sorted=False)
    y, final = layer(given)
    return pad_packed_sequence(y)[0], final


class Case(NamedTuple):
    make: Callable[[], nn.Module]
    how: Callable[..., Any]
    args: Callable[[int, int], tuple[Tensor, ...]]  # for T and B
    any_T: bool = True


def dense(T: int, B: int) -> tuple[Tensor]:
    return (torch.randn(T, B, I),)


def ends(T: int, B: int) -> tuple[Tensor, Tensor]:
    return torch.randn(T, B, I), torch.cat([torch.tensor([T]), torch.randint(1, T + 1, (B - 1,))])


def resets(T: int, B: int) -> tuple[Tensor, Tensor]:
    return torch.randn(T, B, I), torch.rand(T, B) < 0.3


def tokens(T: int, B: int) -> tuple[Tensor]:
    return (torch.randint(I, (T, B)),)


def states(T: int, B: int) -> tuple[Tensor, ...]:
    return torch.randn(T, B, I), torch.randn(4, B, H), torch.randn(4, B, H)


def both(cls: type, *args: Any, **kwargs: Any) -> Callable[[], nn.Module]:
    return lambda: cls(*args, I, H, num_layers=2, bidirectional=True, **kwargs)


FAMILY = [
    "LayerNormLSTM",
    "LayerNormGRU",
    "PeepholeLSTM",
    "CoupledLSTM",
    "IndRNN",
    "LiGRU",
    "MinLSTM",
    "MinGRU",
    "SLSTM",
    "BlockGRU",
]
CASES: dict[str, Case] = {}
for _cls in (rnnfast.RNN, rnnfast.LSTM, rnnfast.GRU, rnnfast.compat.LSTM):
    _name = ("compat_" if _cls.__module__.endswith("compat") else "") + _cls.__name__
    CASES[_name] = Case(both(_cls), plain, dense)
    CASES[f"{_name}_lengths"] = Case(both(_cls), with_lengths, ends)
    CASES[f"{_name}_packed"] = Case(both(_cls), packed, ends)
    CASES[f"{_name}_tokens"] = Case(both(_cls), plain, tokens)
    CASES[f"{_name}_resets"] = Case(both(_cls), with_resets, resets, False)
    CASES[f"{_name}_clip"] = Case(both(_cls, grad_clip_time=1.0), plain, dense)
    CASES[f"{_name}_checkpoint"] = Case(both(_cls, checkpoint_every=2), plain, dense)
    CASES[f"{_name}_zoneout"] = Case(both(_cls, zoneout=0.1), plain, dense, False)
CASES |= {
    "LSTM_states": Case(both(rnnfast.LSTM), with_states, states),
    "LSTM_projected": Case(both(rnnfast.LSTM, proj_size=4), plain, dense),
    "LSTM_every_c": Case(
        both(rnnfast.LSTM), lambda layer, x: layer(x, return_all_states=True), dense, False
    ),
    "GRU_reset_before": Case(both(rnnfast.GRU, reset_after=False), plain, dense, False),
    "GRU_reset_before_lengths": Case(
        both(rnnfast.GRU, reset_after=False), with_lengths, ends, False
    ),
    "MGU": Case(both(rnnfast.MGU), plain, dense, False),
    "own": Case(both(rnnfast.Recurrent, own_cells.peephole), with_lengths, ends, False),
    "cell": Case(
        lambda: rnnfast.RecurrentCell("mgu", I, H), plain, lambda T, B: (torch.randn(B, I),)
    ),
}
for _name in FAMILY:
    _more = {"heads": 2} if _name in ("SLSTM", "BlockGRU") else {}
    CASES[_name] = Case(both(getattr(rnnfast, _name), **_more), plain, dense, False)


class Traced(NamedTuple):
    expected: list[list[Tensor]]
    found: list[list[Tensor]] | str
    graph: str


@pytest.fixture(scope="module")
def traced(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Traced]:
    """Each case traced with torch's check, saved, and run in a process without rnnfast."""
    folder = tmp_path_factory.mktemp("traced")
    expected, inputs, graphs = {}, {}, {}
    torch.manual_seed(0)
    for name, case in asked_for(request, CASES).items():
        model = Call(case.make(), case.how).eval()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = torch.jit.trace(model, case.args(T, B))
            made.save(folder / f"{name}.pt")
        sizes = [(T, B), (T, B + 2), *([(T + 2, 1)] if case.any_T else [])]
        inputs[name] = [case.args(*size) for size in sizes]
        with torch.no_grad(), rnnfast.use_backend("reference"):
            expected[name] = [tree_leaves(model(*args)) for args in inputs[name]]
        graphs[name] = str(made.inlined_graph)
    found = run_elsewhere("jit", folder, inputs)
    return {name: Traced(expected[name], found[name], graphs[name]) for name in found}


@pytest.mark.parametrize("name", CASES)
def test_a_trace_runs_without_rnnfast(name: str, traced: dict[str, Traced]) -> None:
    case = traced[name]
    assert not isinstance(case.found, str), case.found
    torch.testing.assert_close(case.found, case.expected)


@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU", "compat_LSTM", "LSTM_projected"])
def test_what_torch_has_is_one_call_of_torch(name: str, traced: dict[str, Traced]) -> None:
    graph = traced[name].graph
    calls = [line for line in graph.splitlines() if "aten::" in line]
    assert sum("aten::lstm(" in line or "aten::gru(" in line for line in calls) == (
        0 if name == "RNN" else 1
    )
    assert sum("aten::rnn_tanh(" in line for line in calls) == (1 if name == "RNN" else 0)


def test_a_trace_says_that_it_limits_no_gradient() -> None:
    layer = rnnfast.GRU(I, H, grad_clip_time=1e-3)
    x = torch.randn(T, B, I)
    with pytest.warns(torch.jit.TracerWarning, match="leaves grad_clip_time out"):
        made = torch.jit.trace(layer, (x,))
    theirs = nn.GRU(I, H)
    theirs.load_state_dict(layer.state_dict())
    for model in (made, theirs):
        model(x)[0].sum().backward()
    torch.testing.assert_close(made.weight_hh_l0.grad, theirs.weight_hh_l0.grad)


WARN = """
import warnings, torch, rnnfast
from torch import nn
with warnings.catch_warnings(record=True) as told:
    warnings.filterwarnings("always", module="__main__")
    for layer in (rnnfast.LSTM(4, 5), rnnfast.LSTM(4, 5, batch_first=True), rnnfast.MGU(4, 5)):
        torch.jit.trace(layer, (torch.randn(3, 2, 4),), check_trace=False)
for one in told:
    if issubclass(one.category, torch.jit.TracerWarning):
        print(one.message)
"""


def test_of_what_a_trace_warns() -> None:
    """Of the number of steps where that is fixed, and of no check of ours."""
    done = subprocess.run([sys.executable, "-c", WARN], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "torch.jit.trace fixes the number of steps, 3, of the cell 'mgu'"
    ]


def test_a_trace_is_trained_as_the_layer() -> None:
    layer = rnnfast.MGU(I, H)
    x = torch.randn(T, B, I)
    made = torch.jit.trace(layer, (x,))
    wanted = torch.autograd.grad(layer(x)[0].square().sum(), list(layer.parameters()))
    found = torch.autograd.grad(made(x)[0].square().sum(), list(made.parameters()))
    torch.testing.assert_close(found, wanted)


# --- torch.jit.script ----------------------------------------------------------------------------


class Tagger(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.head = nn.Linear(2 * H, 3)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.layer(x)
        return self.head(torch.relu(y))


KINDS = [
    *((getattr(face, cls), {}) for face in (rnnfast, rnnfast.compat) for cls in ("RNN", "GRU")),
    *((face.LSTM, {}) for face in (rnnfast, rnnfast.compat)),
    (rnnfast.RNN, {"nonlinearity": "relu"}),
    (rnnfast.LSTM, {"proj_size": 4}),
    (rnnfast.LSTM, {"checkpoint_every": 2}),
]


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize(("cls", "more"), KINDS)
def test_a_script_holds_torch_nns_layer(cls: type, more: dict[str, Any], batch_first: bool) -> None:
    layer = cls(I, H, 2, bidirectional=True, batch_first=batch_first, **more)
    model = Tagger(layer)
    if "proj_size" in more:
        model.head = nn.Linear(8, 3)
    x = torch.randn(T, B, I)
    expected = model(x)
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(model), file)
    assert b"rnnfast" not in file.getvalue()
    file.seek(0)
    torch.testing.assert_close(torch.jit.load(file)(x), expected)
    assert type(model.layer).__module__ == "torch.nn.modules.rnn"  # as docs/deployment.md says
    assert model.layer.weight_hh_l0 is layer.weight_hh_l0
    assert "_served" not in vars(model.layer)
    rnnfast.replace(model)
    torch.testing.assert_close(model(x), expected)


def test_a_copy_is_scripted_and_the_model_stays() -> None:
    model = Tagger(rnnfast.LSTM(I, H, bidirectional=True))
    x = torch.randn(T, B, I)
    for _ in range(2):  # the second call of a layer takes the short way
        expected = model(x)
    made = torch.jit.script(copy.deepcopy(model))
    torch.testing.assert_close(made(x), expected)
    assert type(model.layer) is rnnfast.LSTM


@pytest.mark.parametrize("name", ["RNNCell", "LSTMCell", "GRUCell"])
def test_a_single_cell_is_scripted(name: str) -> None:
    cell = getattr(rnnfast, name)(I, H)
    x = torch.randn(B, I)
    torch.testing.assert_close(torch.jit.script(cell)(x), cell(x))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: rnnfast.MGU(I, H), "MGU: torch.nn has no layer of the cell 'mgu'"),
        (lambda: rnnfast.GRU(I, H, reset_after=False), "no layer of the cell 'gru_reset_before'"),
        (lambda: rnnfast.LSTM(I, H, zoneout=0.1).eval(), "torch.nn has no zoneout"),
        (lambda: rnnfast.LSTM(I, H, weight_dropout=0.1), "weight_dropout, and the layer is in"),
        (lambda: rnnfast.LSTM(I, H, grad_clip_time=0.1), "grad_clip_time, and the layer is in"),
        (lambda: rnnfast.Recurrent(own_cells.peephole, I, H), "torch.nn has no layer of the cell"),
        (lambda: rnnfast.RecurrentCell("gru", I, H), "a step that is not written in TorchScript"),
        (lambda: rnnfast.GRUCell(I, H, reset_after=False), "GRUCell resets after the product"),
    ],
)
def test_what_has_no_script_says_why(make: Callable[[], nn.Module], reason: str) -> None:
    with pytest.raises(RuntimeError, match=reason) as error:
        torch.jit.script(nn.Sequential(make()))
    assert "torch.jit.trace" in str(error.value)


def test_masks_of_training_do_not_hinder_a_script_of_evaluation() -> None:
    layer = rnnfast.LSTM(I, H, bidirectional=True, weight_dropout=0.1, recurrent_dropout=0.1)
    model = Tagger(layer).eval()
    x = torch.randn(T, B, I)
    expected = model(x)
    torch.testing.assert_close(torch.jit.script(model)(x), expected)
