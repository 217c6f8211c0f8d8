"""RNNCell, LSTMCell, GRUCell: torch.nn's cells to the letter, and GRUCell(reset_after=False)."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.contract.helpers import (
    CELL_CLASSES,
    Maker,
    as_hx,
    assert_same_error,
    cotangent,
    in_precision,
    raised,
)
from tests.oracle import assert_all_close_to_oracle

WIDTH, H = 4, 5
CELL_KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "rnn_tanh": ("RNNCell", {}),
    "rnn_relu": ("RNNCell", {"nonlinearity": "relu"}),
    "lstm": ("LSTMCell", {}),
    "gru": ("GRUCell", {}),
}
SHAPES = {"batched": (3,), "one": (1,), "unbatched": (), "empty": (0,)}


def cells(
    make: Maker, kind: str, sizes: tuple[int, int] = (WIDTH, H), **more: Any
) -> tuple[Any, Any]:
    name, given = CELL_KINDS[kind]
    theirs = getattr(nn, name)(*sizes, **given, **more)
    ours = make(name, *sizes, **given, **more)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours, theirs


def step(cell: nn.Module, x: Tensor, hx: Any) -> dict[str, Tensor]:
    """One step and the gradients of everything in it, by name."""
    x = x.detach().requires_grad_()
    states = [] if hx is None else [hx] if isinstance(hx, Tensor) else list(hx)
    states = [state.detach().requires_grad_() for state in states]
    given = None if hx is None else states[0] if isinstance(hx, Tensor) else tuple(states)
    returned = cell(x, given)
    new = [returned] if isinstance(returned, Tensor) else list(returned)
    loss = sum((value * cotangent(value, salt)).sum() for salt, value in enumerate(new))
    sources = {"dx": x}
    sources.update((f"dstate{i}", state) for i, state in enumerate(states))
    sources.update((f"d{name}", weight) for name, weight in cell.named_parameters())
    gradients = torch.autograd.grad(loss, list(sources.values()))
    named = {f"state{i}": value.detach() for i, value in enumerate(new)}
    return named | dict(zip(sources, gradients, strict=True))


def state_for(kind: str, batch: tuple[int, ...], dtype: torch.dtype, width: int = H) -> Any:
    h = torch.randn(*batch, width, dtype=dtype)
    return (h, torch.randn(*batch, width, dtype=dtype)) if kind == "lstm" else h


@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
@pytest.mark.parametrize("kind", CELL_KINDS)
def test_a_step_and_its_gradients_are_torchs(
    make_cell: Maker, kind: str, dtype: torch.dtype, shape: str, bias: bool, with_state: bool
) -> None:
    ours, theirs = cells(make_cell, kind, bias=bias, dtype=dtype)
    batch = SHAPES[shape]
    x = torch.randn(*batch, WIDTH, dtype=dtype)
    hx = state_for(kind, batch, dtype) if with_state else None
    got, want = step(ours, x, hx), step(theirs, x, hx)
    reference = step(copy.deepcopy(theirs).double(), x.double(), in_precision(hx, torch.float64))
    assert_all_close_to_oracle(got, reference, want)


@pytest.mark.parametrize("sizes", [(1, 1), (1, 33), (7, 1)], ids=str)
@pytest.mark.parametrize("kind", CELL_KINDS)
def test_odd_sizes(make_cell: Maker, kind: str, sizes: tuple[int, int]) -> None:
    ours, theirs = cells(make_cell, kind, sizes, dtype=torch.float64)
    x = torch.randn(2, sizes[0], dtype=torch.float64)
    hx = state_for(kind, (2,), torch.float64, sizes[1])
    assert_all_close_to_oracle(step(ours, x, hx), step(theirs, x, hx))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("kind", CELL_KINDS)
def test_half_precisions(make_cell: Maker, kind: str, dtype: torch.dtype) -> None:
    ours, theirs = cells(make_cell, kind, dtype=dtype)
    x, hx = torch.randn(3, WIDTH, dtype=dtype), state_for(kind, (3,), dtype)
    reference = step(copy.deepcopy(theirs).double(), x.double(), in_precision(hx, torch.float64))
    assert_all_close_to_oracle(step(ours, x, hx), reference, step(theirs, x, hx))


@pytest.mark.parametrize("kind", CELL_KINDS)
def test_the_layer_is_its_cell_in_a_loop(make_cell: Maker, kind: str) -> None:
    cell, _ = cells(make_cell, kind, dtype=torch.float64)
    name, given = CELL_KINDS[kind]
    layer = make_cell(name.removesuffix("Cell"), WIDTH, H, dtype=torch.float64, **given)
    layer.load_state_dict({f"{n}_l0": weight for n, weight in cell.state_dict().items()})
    x, state = torch.randn(6, 3, WIDTH, dtype=torch.float64), None
    outputs = []
    for x_t in x:
        state = cell(x_t, state)
        outputs.append(state[0] if kind == "lstm" else state)
    torch.testing.assert_close(layer(x)[0], torch.stack(outputs))


def test_lstm_cell_takes_and_gives_pairs(make_cell: Maker) -> None:
    ours, theirs = cells(make_cell, "lstm")
    x, (h, c) = torch.randn(3, WIDTH), state_for("lstm", (3,), torch.float32)
    got = ours(x, [h, c])
    assert type(got) is type(theirs(x, [h, c])) is tuple
    torch.testing.assert_close(got, theirs(x, (h, c)))


BAD_CALLS: dict[str, tuple[tuple[int, ...], tuple[int, ...] | None, str]] = {
    # case: shape of the input, shape of the state, part of torch's words
    "input_3d": ((1, 3, 4), None, "Cell: Expected input to be 1D or 2D, got 3D instead"),
    "input_0d": ((), None, "Cell: Expected input to be 1D or 2D, got 0D instead"),
    "state_3d": ((3, 4), (1, 3, 5), "to be 1D or 2D, got 3D instead"),
    "width": ((3, 6), None, "input has inconsistent input_size: got 6 expected 4"),
    "width_unbatched": ((6,), None, "input has inconsistent input_size: got 6 expected 4"),
    "state_batch": ((3, 4), (2, 5), "Input batch size 3 doesn't match hidden0 batch size 2"),
    "state_width": ((3, 4), (3, 6), "hidden0 has inconsistent hidden_size: got 6, expected 5"),
}


@pytest.mark.parametrize("case", BAD_CALLS)
@pytest.mark.parametrize("cls", CELL_CLASSES)
def test_a_bad_call_raises_what_torch_raises(make_cell: Maker, cls: str, case: str) -> None:
    input_shape, state_shape, words = BAD_CALLS[case]
    ours, theirs = make_cell(cls, WIDTH, H), getattr(nn, cls)(WIDTH, H)
    x = torch.zeros(input_shape)
    hx = None if state_shape is None else as_hx(cls, torch.zeros(state_shape))
    error = assert_same_error(lambda: ours(x, hx), lambda: theirs(x, hx))
    assert isinstance(error, (ValueError, RuntimeError))
    assert words in str(error)


@pytest.mark.parametrize("cls", CELL_CLASSES)
def test_dtypes_and_kinds_that_do_not_fit_raise(make_cell: Maker, cls: str) -> None:
    cell, x = make_cell(cls, WIDTH, H), torch.zeros(3, WIDTH)
    wrong_kind = torch.zeros(3, H) if cls == "LSTMCell" else (torch.zeros(3, H),) * 2
    for call in (
        lambda: cell(x.double()),
        lambda: cell(x, as_hx(cls, torch.zeros(3, H, dtype=torch.float64))),
        lambda: cell(x, wrong_kind),
    ):
        assert isinstance(raised(call), (RuntimeError, ValueError, TypeError, AttributeError))


def test_an_unknown_nonlinearity_is_named(make_cell: Maker) -> None:
    with pytest.raises((RuntimeError, ValueError), match=r"[Uu]nknown nonlinearity"):
        make_cell("RNNCell", WIDTH, H, nonlinearity="x")(torch.zeros(3, WIDTH))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", CELL_KINDS)
def test_names_words_and_seeds_are_torchs(make_cell: Maker, kind: str, bias: bool) -> None:
    name, given = CELL_KINDS[kind]
    made = []
    for cls in (make_cell.cls(name), getattr(nn, name)):
        torch.manual_seed(9)
        made.append(cls(WIDTH, H, bias, **given))
    ours, theirs = made
    assert repr(ours) == repr(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for weight, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(weight, other)
    assert (ours.bias_ih is None) is (not bias)
    torch.manual_seed(9)
    ours.reset_parameters()
    assert torch.equal(ours.weight_ih, theirs.weight_ih)


@pytest.mark.parametrize("kind", CELL_KINDS)
def test_cells_are_copied_pickled_and_called_functionally(make_cell: Maker, kind: str) -> None:
    ours, theirs = cells(make_cell, kind)
    x = torch.randn(3, WIDTH)
    for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert type(other) is type(ours)
        torch.testing.assert_close(other(x), ours(x), rtol=0, atol=0)
    new = {name: torch.randn_like(weight) for name, weight in theirs.named_parameters()}
    torch.testing.assert_close(
        torch.func.functional_call(ours, new, (x,)), torch.func.functional_call(theirs, new, (x,))
    )


@pytest.mark.parametrize("kind", CELL_KINDS)
def test_positional_arguments_come_in_torchs_order(make_cell: Maker, kind: str) -> None:
    name, given = CELL_KINDS[kind]
    arguments = (WIDTH, H, False, *given.values())
    assert repr(make_cell(name, *arguments)) == repr(getattr(nn, name)(*arguments))
    assert make_cell(name, WIDTH, H, dtype=torch.float64, **given).weight_hh.dtype == torch.float64
    assert make_cell(name, WIDTH, H, device="meta", **given).weight_hh.device.type == "meta"


def reset_before_by_hand(cell: Any, x: Tensor, h: Tensor) -> Tensor:
    """Cho et al. (2014), one element at a time: r scales h before the product with W_hn."""
    hidden_size = h.shape[-1]
    zeros = torch.zeros(3 * hidden_size, dtype=h.dtype)
    b_ih, b_hh = (zeros if b is None else b.detach() for b in (cell.bias_ih, cell.bias_hh))
    new = torch.empty_like(h)
    for b in range(h.shape[0]):
        from_x = [float(cell.weight_ih[j] @ x[b] + b_ih[j]) for j in range(3 * hidden_size)]
        from_h = [float(cell.weight_hh[j] @ h[b] + b_hh[j]) for j in range(2 * hidden_size)]
        gates = torch.tensor(from_x[: 2 * hidden_size], dtype=h.dtype)
        gates = 1 / (1 + torch.exp(-gates - torch.tensor(from_h, dtype=h.dtype)))
        r, z = gates[:hidden_size], gates[hidden_size:]
        for j in range(hidden_size):
            row = 2 * hidden_size + j
            n = torch.tanh(from_x[row] + cell.weight_hh[row] @ (r * h[b]) + b_hh[row])
            new[b, j] = (1 - z[j]) * n + z[j] * h[b, j]
    return new


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("unbatched", [False, True])
@pytest.mark.beyond_torch("torch.nn.GRUCell resets after the product only")
def test_reset_before_the_product(make_cell: Maker, bias: bool, unbatched: bool) -> None:
    cell = make_cell("GRUCell", WIDTH, H, bias, reset_after=False, dtype=torch.float64)
    x, h = torch.randn(3, WIDTH, dtype=torch.float64), torch.randn(3, H, dtype=torch.float64)
    with torch.no_grad():
        want = reset_before_by_hand(cell, x, h)
        got = (
            torch.stack([cell(*row) for row in zip(x, h, strict=True)]) if unbatched else cell(x, h)
        )
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-14)
        zero = torch.zeros_like(h)
        torch.testing.assert_close(cell(x), reset_before_by_hand(cell, x, zero))
        same_weights = make_cell("GRUCell", WIDTH, H, bias, dtype=torch.float64)
        same_weights.load_state_dict(cell.state_dict())
        assert float((same_weights(x, h) - want).abs().max()) > 1e-3


@pytest.mark.beyond_torch("torch.nn.GRUCell resets after the product only")
def test_reset_before_has_right_gradients(make_cell: Maker) -> None:
    cell = make_cell("GRUCell", WIDTH, H, reset_after=False, dtype=torch.float64)
    names = [name for name, _ in cell.named_parameters()]

    def call(x: Tensor, h: Tensor, *weights: Tensor) -> Tensor:
        out: Tensor = torch.func.functional_call(
            cell, dict(zip(names, weights, strict=True)), (x, h)
        )
        return out

    leaves = [torch.randn(2, WIDTH, dtype=torch.float64), torch.randn(2, H, dtype=torch.float64)]
    leaves += [weight.detach().clone() for weight in cell.parameters()]
    assert torch.autograd.gradcheck(call, [leaf.requires_grad_() for leaf in leaves])


@pytest.mark.parametrize("case", BAD_CALLS)
@pytest.mark.beyond_torch("torch.nn.GRUCell resets after the product only")
def test_reset_before_refuses_the_same_calls(make_cell: Maker, case: str) -> None:
    input_shape, state_shape, _ = BAD_CALLS[case]
    cell, theirs = make_cell("GRUCell", WIDTH, H, reset_after=False), nn.GRUCell(WIDTH, H)
    x, hx = torch.zeros(input_shape), None if state_shape is None else torch.zeros(state_shape)
    want, got = raised(lambda: theirs(x, hx)), raised(lambda: cell(x, hx))
    assert type(got) is type(want)


@pytest.mark.beyond_torch("torch.nn.GRUCell resets after the product only")
def test_a_cell_of_torchs_that_is_given_this_class(make_cell: Maker) -> None:
    cell = nn.GRUCell(4, 5)
    x = torch.randn(3, 4)
    expected = cell(x)
    cell.__class__ = make_cell.cls("GRUCell")
    torch.testing.assert_close(cell(x), expected)
    assert repr(cell) == "GRUCell(4, 5)"


@pytest.mark.parametrize("cls", ["RNNCell", "LSTMCell", "GRUCell"])
def test_skip_init_of_cells(make_cell: Maker, cls: str) -> None:
    cell = nn.utils.skip_init(make_cell.cls(cls), 4, 5)
    other = make_cell(cls, 4, 5)
    assert [p.shape for p in cell.parameters()] == [p.shape for p in other.parameters()]


def test_reset_after_is_an_argument_like_the_others(make_cell: Maker) -> None:
    cell = make_cell("GRUCell", WIDTH, H, reset_after=False)
    assert "reset_after=False" in repr(cell)
    assert "reset_after" not in repr(make_cell("GRUCell", WIDTH, H))
    x = torch.randn(3, WIDTH)
    for other in (copy.deepcopy(cell), pickle.loads(pickle.dumps(cell))):
        torch.testing.assert_close(other(x), cell(x), rtol=0, atol=0)
    with pytest.raises(TypeError, match="reset_after should be of type bool, got: int"):
        make_cell("GRUCell", WIDTH, H, reset_after=1)
