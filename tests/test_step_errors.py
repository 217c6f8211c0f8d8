"""A step that no layer can be made of is told so when the layer is made, by cell, file and line."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import rnnfast
from rnnfast import StepError

H = 6
OUTSIDE = torch.ones(H, requires_grad=True)
COUNTER = torch.zeros(1)


def good(gx, states, w):
    (h,) = states
    return (torch.tanh(gx + F.linear(h, w.w_hh, w.b_hh)),)


def no_tuple(gx, states, w):
    return torch.tanh(gx)


def nothing(gx, states, w):
    torch.tanh(gx)


def too_many(gx, states, w):
    return torch.tanh(gx), torch.tanh(gx)


def too_wide(gx, states, w):
    return (torch.cat([gx, gx], -1),)


def transposed(gx, states, w):
    return (torch.tanh(gx).t(),)


def no_tensor(gx, states, w):
    return (1.0,)


def other_dtype(gx, states, w):
    return (torch.tanh(gx).double(),)


def random(gx, states, w):
    return (F.dropout(torch.tanh(gx), 0.5),)


def new_noise(gx, states, w):
    noise = torch.randn(H)
    return (torch.tanh(gx) * noise,)


def into_state(gx, states, w):
    (h,) = states
    return (h.mul_(0.5),)


def into_gates(gx, states, w):
    gates = gx.view(-1, H)
    gates += 1
    return (gates,)


def into_weight(gx, states, w):
    w.w_hh[0].zero_()
    return (gx,)


def into_outside(gx, states, w):
    COUNTER.add_(1)
    return (gx,)


def out_of_outside(gx, states, w):
    return (torch.tanh(gx * OUTSIDE),)


def no_parameter(gx, states, w):
    return (gx * w.w_x,)


def by_value(gx, states, w):
    if gx.sum() > 0:
        return (gx,)
    return (-gx,)


def by_number(gx, states, w):
    return (gx * float(states[0].detach().max()),)


def by_shape_of_values(gx, states, w):
    return (gx[gx > 0],)


def into_what_backward_needs(gx, states, w):
    return (torch.tanh(gx).mul_(2),)


def wrong_size(gx, states, w):
    return (F.linear(gx, w.w_hh[:, 1:]),)


def two_arguments(gx, states):
    return (gx,)


# step: what the text says, and the line of the step to which it points
BAD: dict[Callable, tuple[str, str]] = {
    no_tuple: (r"return a tuple of the new states \(h\), got a tensor \[3, 6\]", "def no_tuple"),
    nothing: ("got NoneType", "def nothing"),
    too_many: ("got 2 of them", "def too_many"),
    too_wide: (r"state h as \[B, H\].* got \[3, 12\] where B is 3 and H is 6", "def too_wide"),
    transposed: (r"got \[6, 3\]", "def transposed"),
    no_tensor: ("got float", "def no_tensor"),
    other_dtype: ("got torch.float64 for torch.float32", "def other_dtype"),
    random: ("draws random numbers", "F.dropout"),
    new_noise: ("draws random numbers", "torch.randn"),
    into_state: (r"in place into h \(aten.mul_", "h.mul_"),
    into_gates: ("in place into gx", "gates += 1"),
    into_weight: ("in place into w.w_hh", "zero_"),
    into_outside: ("in place into a tensor from outside", "COUNTER.add_"),
    out_of_outside: (r"from outside that needs gradients \(\[6\]\)", "gx * OUTSIDE"),
    no_parameter: ("no weight 'w_x'; there are: w_hh, b_hh", "w.w_x"),
    by_value: ("decides by the values of a tensor .*torch.where", "if gx.sum() > 0"),
    by_number: ("decides by the values of a tensor", "float(states"),
    by_shape_of_values: ("decides by the values of a tensor", "gx[gx > 0]"),
    into_what_backward_needs: ("can't be differentiated: .*inplace", "def into_what"),
    wrong_size: ("the step fails: RuntimeError: .*shapes", "F.linear(gx, w.w_hh[:"),
    two_arguments: ("the step fails: TypeError: .*2 positional", "def two_arguments"),
}
MODULES = pytest.mark.parametrize("module", [rnnfast.Recurrent, rnnfast.RecurrentCell])


def line_of(step: Callable, text: str) -> int:
    lines, first = inspect.getsourcelines(step)
    return first + next(i for i, line in enumerate(lines) if text in line)


@MODULES
@pytest.mark.parametrize("step", BAD, ids=lambda step: step.__name__)
def test_a_bad_step_is_named_with_its_line(step: Callable, module: type[nn.Module]) -> None:
    text, line = BAD[step]
    cell = rnnfast.cell(step, gates=1)
    with pytest.raises(StepError, match=text) as error:
        module(cell, 4, H)
    assert repr(cell.name) in str(error.value)
    assert str(error.value).endswith(f"({__file__}, line {line_of(step, line)})")
    assert isinstance(error.value, ValueError)


@MODULES
def test_sizes_that_do_not_fit(module: type[nn.Module]) -> None:
    cell = rnnfast.cell(
        good, gates=1, recurrent="heads, H/heads, H/heads", settings={"heads": 4}, name="by_heads"
    )
    with pytest.raises(StepError, match=r"by_heads.*'w_hh'.*H = 6.*heads = 4"):
        module(cell, 4, H)
    with pytest.raises(StepError, match=r"heads=3.*the step fails: RuntimeError"):
        module(cell, 4, H, heads=3)  # sizes fit, the step does not


@MODULES
def test_names_that_the_module_needs_itself(module: type[nn.Module]) -> None:
    cell = rnnfast.cell(good, gates=1, params={"weight_ih": "H"})
    with pytest.raises(StepError, match="'weight_ih' of a parameter is a weight's"):
        module(cell, 4, H)
    cell = rnnfast.cell(good, gates=1, params={"forward": "H"})
    if module is rnnfast.RecurrentCell:
        with pytest.raises(ValueError, match="can't be called 'forward'"):
            module(cell, 4, H)
    else:
        assert module(cell, 4, H).forward_l0.shape == (H,)


def test_what_is_no_cell() -> None:
    with pytest.raises(TypeError, match=r"rnnfast\.cell makes of a step"):
        rnnfast.Recurrent(good, 4, H)
    with pytest.raises(ValueError, match="no cell is called 'lstn'; there are: rnn_tanh"):
        rnnfast.Recurrent("lstn", 4, H)
    with pytest.raises(TypeError, match="'lstm' has no setting 'heads'"):
        rnnfast.Recurrent("lstm", 4, H, heads=2)
    with pytest.raises(ValueError, match=r"use rnnfast.LSTM"):
        rnnfast.Recurrent("lstm_proj", 4, H)
    with pytest.raises(TypeError, match="no setting 'heads'"):
        rnnfast.Recurrent(rnnfast.cell(good, gates=1), 4, H, heads=2)


# --- what a step may do --------------------------------------------------------------------------


def constants(gx, states, w):
    (h,) = states
    table = torch.zeros(H, device=gx.device)
    table[0] = 1  # its own
    table.add_(torch.tensor(2.0))
    if torch.tensor(3.0) > 2 and gx.shape[-1] == H:  # known when kernels are made
        h = h + table
    return (torch.tanh(gx + h * OUTSIDE.detach()),)


def own_in_place(gx, states, w):
    gates = gx + F.linear(states[0], w.w_hh, w.b_hh)
    gates.mul_(0.5)
    with torch.no_grad():
        scale = OUTSIDE * 2
    return ((gates + gx).mul_(scale),)


def outer(gx, states, w):
    return good(gx, states, w)


class Called:
    def __init__(self) -> None:
        self.__qualname__ = "Called"

    def __call__(self, gx, states, w):
        return too_many(gx, states, w)


@pytest.mark.parametrize("step", [good, constants, own_in_place, outer])
def test_what_is_its_own_a_step_may_do(step: Callable) -> None:
    layer = rnnfast.Recurrent(rnnfast.cell(step, gates=1), 4, H)
    layer(torch.randn(3, 2, 4))[0].sum().backward()


def test_an_object_is_a_step_too() -> None:
    cell = rnnfast.cell(Called(), gates=1)
    with pytest.raises(StepError, match=rf"line {line_of(Called, 'def __call__')}\)"):
        rnnfast.Recurrent(cell, 4, H)


# --- when it is tried ----------------------------------------------------------------------------


def counted() -> tuple[rnnfast.CellSpec, list[Tensor]]:
    calls: list[Tensor] = []

    def step(gx, states, w):
        calls.append(gx)
        return good(gx, states, w)

    return rnnfast.cell(step, gates=1), calls


def test_once_for_each_size() -> None:
    cell, calls = counted()
    for _ in range(3):
        rnnfast.Recurrent(cell, 4, H, num_layers=3, bidirectional=True)
        rnnfast.RecurrentCell(cell, 5, H)
    assert [list(gx.shape) for gx in calls] == [[3, H]]
    rnnfast.Recurrent(cell, 4, 3)
    rnnfast.Recurrent(cell, 4, H, bias=False)
    assert [list(gx.shape) for gx in calls[1:]] == [[2, 3], [3, H]]


@pytest.mark.parametrize(
    "around",
    [torch.no_grad(), torch.inference_mode(), torch.autocast("cpu", torch.bfloat16)],
    ids=["no_grad", "inference", "autocast"],
)
def test_wherever_a_layer_is_made(around: torch.no_grad) -> None:
    with around:
        layer = rnnfast.Recurrent(counted()[0], 4, H)
        with pytest.raises(StepError, match="from outside"):
            rnnfast.Recurrent(rnnfast.cell(out_of_outside, gates=1), 4, H)
    assert layer.weight_ih_l0.shape == (H, 4)


def test_of_a_layer_without_memory() -> None:
    layer = rnnfast.Recurrent(rnnfast.cell(constants, gates=1), 4, H, device="meta")
    assert layer.weight_hh_l0.is_meta
    with pytest.raises(StepError, match="got 2 of them"):
        rnnfast.Recurrent(rnnfast.cell(too_many, gates=1), 4, H, device="meta")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_in_the_dtype_that_the_loop_computes_in(dtype: torch.dtype) -> None:
    seen: list[torch.dtype] = []

    def step(gx, states, w):
        seen.append(gx.dtype)
        return good(gx, states, w)

    rnnfast.Recurrent(rnnfast.cell(step, gates=1), 4, H, dtype=dtype)
    assert seen == [torch.float64 if dtype == torch.float64 else torch.float32]
