"""rnnfast.decompositions: an exported program in torch's own operations runs without rnnfast."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.utils._pytree import tree_leaves

import rnnfast

from .elsewhere import asked_for, run_elsewhere
from .layers import makers
from .test_trace import FAMILY, Call, plain, with_lengths, with_resets

I, H = 5, 6
DIMS = Dim("T", min=2, max=64), Dim("B", min=2, max=64)


class Case(NamedTuple):
    make: Callable[[], nn.Module]
    how: Callable[..., Any]
    args: Callable[[int, int], tuple[Tensor, ...]]  # for T and B


def dense(T: int, B: int) -> tuple[Tensor, ...]:
    return (torch.randn(T, B, I),)


def ends(T: int, B: int) -> tuple[Tensor, ...]:
    return torch.randn(T, B, I), torch.randint(0, T + 1, (B,))


def restarts(T: int, B: int) -> tuple[Tensor, ...]:
    return torch.randn(T, B, I), torch.rand(T, B) < 0.3


def tokens(T: int, B: int) -> tuple[Tensor, ...]:
    return torch.randint(I, (T, B)), torch.randint(0, T + 1, (B,))


def everything(T: int, B: int) -> tuple[Tensor, ...]:
    return *ends(T, B), restarts(T, B)[1]


def all_of_it(layer: nn.Module, x: Tensor, lengths: Tensor, resets: Tensor) -> Any:
    y, final, states = layer(x, lengths=lengths, resets=resets, return_all_states=True)
    return y, final, states if isinstance(states, dict) else tuple(states)  # of torch's types


def maker(cls: type, **more: Any) -> Callable[[], nn.Module]:
    return lambda: cls(I, H, **more)


CASES: dict[str, Case] = {}
BOTH: dict[str, Any] = {"num_layers": 2, "bidirectional": True}
for _name, _make in makers(I, H, own=True).items():
    CASES[_name] = Case(_make, plain, dense)
    CASES[f"{_name}_everything"] = Case(partial(_make, **BOTH), all_of_it, everything)
for _name in FAMILY:
    _more = {"heads": 2} if _name in ("SLSTM", "BlockGRU") else {}
    CASES[_name] = Case(
        maker(getattr(rnnfast, _name), bidirectional=True, **_more), with_lengths, ends
    )
for _cls in (rnnfast.LSTM, rnnfast.compat.GRU):
    _name = _cls.__module__.rpartition(".")[2] + _cls.__name__
    CASES[f"{_name}_lengths"] = Case(maker(_cls, **BOTH), with_lengths, ends)
    CASES[f"{_name}_resets"] = Case(maker(_cls, **BOTH), with_resets, restarts)
    CASES[f"{_name}_tokens"] = Case(maker(_cls, **BOTH), with_lengths, tokens)
    CASES[f"{_name}_bf16"] = Case(
        maker(_cls, **BOTH, dtype=torch.bfloat16),
        plain,
        lambda T, B: (torch.randn(T, B, I).bfloat16(),),
    )
    CASES[f"{_name}_zoneout"] = Case(maker(_cls, zoneout=0.1, recurrent_dropout=0.1), plain, dense)
    CASES[f"{_name}_clipped"] = Case(maker(_cls, grad_clip_time=0.1), plain, dense)


def exported(model: nn.Module, args: tuple[Tensor, ...]) -> torch.export.ExportedProgram:
    T, B = DIMS
    sizes = tuple({0: B} if arg.dim() == 1 else {0: T, 1: B} for arg in args)
    return torch.export.export(model, args, dynamic_shapes=(sizes,))


@pytest.fixture(scope="module")
def found(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Any, Any]]:
    """(expected, found) of each case, at sizes other than the example's."""
    folder = tmp_path_factory.mktemp("exported")
    expected, inputs = {}, {}
    torch.manual_seed(0)
    for name, case in asked_for(request, CASES).items():
        model = Call(case.make(), case.how).eval()
        program = exported(model, case.args(4, 3)).run_decompositions(rnnfast.decompositions())
        assert "rnnfast" not in program.graph_module.code
        torch.export.save(program, folder / f"{name}.pt2")
        inputs[name] = [case.args(*size) for size in ((4, 3), (7, 2), (2, 5))]
        with torch.no_grad(), rnnfast.use_backend("reference"):
            expected[name] = [tree_leaves(model(*args)) for args in inputs[name]]
    there = run_elsewhere("export", folder, inputs)
    return {name: (expected[name], there[name]) for name in there}


@pytest.mark.parametrize("name", CASES)
def test_a_program_runs_without_rnnfast(name: str, found: dict[str, tuple[Any, Any]]) -> None:
    expected, there = found[name]
    assert not isinstance(there, str), there
    assert len(there) == 3
    torch.testing.assert_close(there, expected)


def test_without_the_decompositions_it_does_not() -> None:
    program = exported(Call(rnnfast.GRU(I, H), plain), dense(4, 3))
    assert "rnnfast.scan_forward" in program.graph_module.code


def test_a_layer_with_checkpoints_is_exported_without_gradients() -> None:
    model = Call(rnnfast.GRU(I, H, checkpoint_every=3), plain)
    with torch.no_grad():
        program = exported(model, dense(4, 3)).run_decompositions(rnnfast.decompositions())
        (x,) = dense(7, 2)
        torch.testing.assert_close(program.module()(x), model(x))


def test_a_program_that_returns_all_states_is_saved() -> None:
    model = Call(rnnfast.LSTM(I, H), lambda layer, x: layer(x, return_all_states=True)).eval()
    file, (x,) = io.BytesIO(), dense(6, 2)
    torch.export.save(exported(model, dense(4, 3)), file)
    file.seek(0)
    found = torch.export.load(file).module()(x)
    assert isinstance(found[2], rnnfast.modules.AllStates)
    torch.testing.assert_close(tree_leaves(found), tree_leaves(model(x)))


@pytest.mark.parametrize("name", ["lstm", "gru_reset_before", "peephole"])
def test_it_is_trained_as_the_layer(name: str) -> None:
    model = Call(makers(I, H, own=True)[name](bidirectional=True).double(), with_lengths)
    x, lengths = ends(4, 3)
    args = (x.double(), lengths)
    made = exported(model, args).run_decompositions(rnnfast.decompositions()).module()
    wanted = torch.autograd.grad(model(*args)[0].square().sum(), list(model.parameters()))
    weights = dict(made.named_parameters())
    got = torch.autograd.grad(
        made(*args)[0].square().sum(), [weights[name] for name, _ in model.named_parameters()]
    )
    torch.testing.assert_close(got, wanted)


def test_with_torchs_own_table() -> None:
    model = Call(rnnfast.GRU(I, H), plain).eval()
    table = {**torch.export.default_decompositions(), **rnnfast.decompositions()}
    program = exported(model, dense(4, 3)).run_decompositions(table)
    assert "linear" not in program.graph_module.code
    (x,) = dense(6, 2)
    torch.testing.assert_close(program.module()(x), model(x))
