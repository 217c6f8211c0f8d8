"""Recurrent and RecurrentCell: a layer, and one step, of any cell."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .cells import CELLS, CellSpec, OwnCell
from .cells.step_error import step_error
from .cells.trial import check_step
from .functional import scan
from .masks import Zoneout
from .problem import wide
from .recurrent import RecurrentLayer
from .time_clip import GradClipTime
from .tracers import leaf_call, not_scripted

Init = Callable[[Tensor], Any]


class Recurrent(RecurrentLayer):
    """Layers of any cell: one made by :func:`rnnfast.cell`, or a built-in one.

    ``cell``: a :class:`rnnfast.CellSpec` or the name of one in ``rnnfast.CELLS``. ``settings``: the
    cell's own, as ``heads=8``. All other arguments are those of ``rnnfast.LSTM``.

    Parameters, of each layer and direction (suffix ``_l0``, ``_l0_reverse``, ``_l1``, …):
    ``weight_ih`` [G*H, I], ``weight_hh`` (where the cell has it), ``bias_ih`` [G*H], ``bias_hh``
    [G*H] (where there is ``weight_hh``), and the cell's further parameters by their names. Initial
    values U(-1/√H, 1/√H), or what the parameter's ``init`` makes.

    States: with one of them ``hx`` and h_n are tensors [D*L, B, H], with several tuples of such, in
    the cell's order.

    Raises:
        rnnfast.StepError: the step or a weight's shape is not what a layer can be made of.
        TypeError, ValueError: torch.nn's, with its words; a setting that the cell has not.
    """

    _label = "Recurrent"

    def __init__(
        self,
        cell: CellSpec | str,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        grad_clip_time: GradClipTime = 0.0,
        checkpoint_every: int = 0,
        recurrent_dropout: float = 0.0,
        zoneout: Zoneout = 0.0,
        weight_dropout: float = 0.0,
        **settings: int,
    ) -> None:
        found = cell_of(cell, settings)
        self.cell = CELLS["rnn_tanh"]  # for torch.nn's checks, until _make_parameters
        nn.RNNBase.__init__(
            self,
            "RNN_TANH",
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            device="meta",
            dtype=dtype,
        )
        self._make_parameters(found, device, dtype)
        self._set_bptt(grad_clip_time, checkpoint_every)
        self._set_masks(recurrent_dropout, zoneout, weight_dropout)

    def _make_parameters(self, cell: CellSpec, device: Any, dtype: torch.dtype | None) -> None:
        self.cell, self.mode = cell, cell.torch_mode or cell.name
        for name in self._flat_weights_names:
            delattr(self, name)
        self._flat_weights_names, self._all_weights = [], []
        D = 2 if self.bidirectional else 1
        for layer in range(self.num_layers):
            width = self.input_size if layer == 0 else D * self.hidden_size
            for suffix in ("", "_reverse")[:D]:
                suffix = f"_l{layer}{suffix}"
                shapes = shapes_of(self.cell, width, self.hidden_size, self.bias)
                names = register(self, shapes, suffix, device, dtype)
                self._flat_weights_names += names
                self._all_weights.append(names)
        self._init_flat_weights()
        check(self.cell, self.hidden_size, self.bias, self.weight_ih_l0)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """U(-1/√H, 1/√H), or by the ``init`` of the cell's parameter."""
        weights = ((name.rpartition("_l")[0], w) for name, w in self.named_parameters())
        fill(self.cell, self.hidden_size, weights)

    def _cell(self) -> str:
        return self.cell.name

    def _split_hidden(self, hx: Any) -> list[Tensor]:
        return split_hidden(self.cell, hx, self._label)

    def _join_hidden(self, states: Sequence[Tensor]) -> Any:
        return states[0] if len(states) == 1 else tuple(states)

    def _wrong_dims(self, states: list[Tensor], batched: bool) -> str:
        if len(states) == 1:
            return super()._wrong_dims(states, batched)
        case, dims = ("batched 3-D", 3) if batched else ("unbatched 2-D", 2)
        names = " and ".join(f"{name}x" for name in self.cell.states)
        got = ", ".join(f"{s.dim()}-D" for s in states)
        return f"For {case} input, {names} should also be {dims}-D but got ({got}) tensors"

    def _wrong_size(self, index: int, expected: tuple[int, ...], got: list[int]) -> str:
        if len(self.cell.states) == 1:
            return super()._wrong_size(index, expected, got)
        return f"Expected hidden[{index}] size {expected}, got {got}"

    def extra_repr(self) -> str:
        return f"{self.cell.name}, {super().extra_repr()}"

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        state["cell"] = portable(self.cell)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({**state, "cell": cell_of(state["cell"], {})})


class RecurrentCell(nn.Module):
    """One step of any cell, as :class:`torch.nn.LSTMCell` is one of an LSTM's.

    Arguments and parameters as :class:`rnnfast.Recurrent`'s of one layer, without a suffix:
    ``weight_ih``, ``weight_hh``, ``bias_ih``, ``bias_hh`` and the cell's own.
    """

    def __init__(
        self,
        cell: CellSpec | str,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        **settings: int,
    ) -> None:
        super().__init__()
        self.cell = cell_of(cell, settings)
        self.input_size, self.hidden_size, self.bias = input_size, hidden_size, bias
        shapes = shapes_of(self.cell, input_size, hidden_size, bias)
        self._names = register(self, shapes, "", device, dtype)
        check(self.cell, hidden_size, bias, self.weight_ih)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As :class:`rnnfast.Recurrent`'s."""
        fill(self.cell, self.hidden_size, self.named_parameters())

    def forward(self, input: Tensor, hx: Any = None) -> Any:
        """The new state [B, H], a tuple of such where the cell has several.

        Args:
            input: [B, I], or [I] for states [H]; no tokens.
            hx: the states, as they are returned; default zeros.

        Raises:
            ValueError: other dimensions, another number of states.
            RuntimeError: another size or dtype.
        """
        if (node := leaf_call(self, input, hx)) is not None:
            return node
        if input.dim() not in (1, 2):
            raise ValueError(
                f"RecurrentCell: Expected input to be 1D or 2D, got {input.dim()}D instead"
            )
        if input.shape[-1] != self.input_size:
            raise RuntimeError(
                f"input has inconsistent input_size: got {input.shape[-1]} "
                f"expected {self.input_size}"
            )
        shape = (*input.shape[:-1], self.hidden_size)
        if hx is None:
            states = [input.new_zeros(shape) for _ in self.cell.states]
        else:
            states = split_hidden(self.cell, hx, "RecurrentCell")
            self._check_states(states, shape)
        batched = input.dim() == 2
        if not batched:
            input, states = input.unsqueeze(0), [s.unsqueeze(0) for s in states]
        weights = [getattr(self, name) for name in self._names]
        final = scan(self.cell.name, input.unsqueeze(0), states, weights).final
        if not batched:
            final = [s.squeeze(0) for s in final]
        return final[0] if len(final) == 1 else tuple(final)

    def __prepare_scriptable__(self) -> nn.Module:
        raise not_scripted(self, "it runs a step that is not written in TorchScript")

    def _check_states(self, states: Sequence[Tensor], shape: tuple[int, ...]) -> None:
        for name, state in zip(self.cell.states, states, strict=True):
            if tuple(state.shape) != shape:
                raise RuntimeError(
                    f"Expected hidden size {shape} of {name}, got {list(state.shape)}"
                )

    def extra_repr(self) -> str:
        shown = f"{self.cell.name}, {self.input_size}, {self.hidden_size}"
        return shown if self.bias else f"{shown}, bias=False"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "cell": portable(self.cell)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({**state, "cell": cell_of(state["cell"], {})})


def cell_of(cell: CellSpec | str, settings: dict[str, int]) -> CellSpec:
    """The cell that is meant, with its settings.

    Raises:
        TypeError: neither a cell nor a name; a setting that it has not. ValueError: no cell has the
            name; a projected one, for which there is ``rnnfast.LSTM``.
    """
    if isinstance(cell, str):
        if cell not in CELLS:
            raise ValueError(f"no cell is called {cell!r}; there are: {', '.join(CELLS)}")
        cell = CELLS[cell]
    if not isinstance(cell, CellSpec):
        raise TypeError(
            f"cell should be what rnnfast.cell makes of a step, or a name, got: "
            f"{type(cell).__name__}"
        )
    if isinstance(cell, OwnCell):
        return cell.with_settings(**settings) if settings else cell
    if settings:
        raise TypeError(f"cell {cell.name!r} has no setting {next(iter(settings))!r}")
    if cell.projected:
        raise ValueError(f"{cell.name!r} needs a proj_size: use rnnfast.LSTM")
    return cell


def portable(cell: CellSpec) -> CellSpec | str:
    """What is pickled for it: of a built-in cell its name."""
    return cell if cell.own else cell.name


def check(cell: CellSpec, H: int, bias: bool, weight: Any) -> None:
    """StepError where no layer with weights like this one can be made of the cell."""
    check_step(cell, H, bias, wide(weight.dtype), weight.device.type)


def shapes_of(cell: CellSpec, I: int, H: int, bias: bool) -> dict[str, tuple[int, ...]]:
    """By the names that a module's parameters have, in the order of ``CellSpec.weight_names``."""
    shapes: dict[str, tuple[int, ...]] = {}
    long = {"w": "weight", "b": "bias"}
    own = {param.name for param in cell.params}
    for name in cell.weight_names("dense", bias):
        kind, _, which = name.partition("_")
        shown = name if name in own else f"{long[kind]}_{which}"
        try:
            shape = (cell.gates * H, I) if name == "w_ih" else cell.weight_shape(name, H)
        except ValueError as error:
            raise step_error(cell, str(error)) from None
        if shown in shapes:
            raise step_error(cell, f"the name {shown!r} of a parameter is a weight's of the layer")
        shapes[shown] = shape
    return shapes


def register(
    module: nn.Module,
    shapes: dict[str, tuple[int, ...]],
    suffix: str,
    device: Any,
    dtype: torch.dtype | None,
) -> list[str]:
    """Gives ``module`` a parameter for each shape, and their names."""
    for name, shape in shapes.items():
        if hasattr(module, name + suffix):
            raise ValueError(
                f"a parameter can't be called {name!r}: {type(module).__name__} has that attribute"
            )
        weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        module.register_parameter(name + suffix, weight)
    return [name + suffix for name in shapes]


def fill(cell: CellSpec, H: int, weights: Iterable[tuple[str, Tensor]]) -> None:
    """New values: of each parameter by its ``init``, else U(-1/√H, 1/√H)."""
    inits: dict[str, Init | None] = {param.name: param.init for param in cell.params}
    bound = 1 / math.sqrt(H)
    for name, weight in weights:
        init = inits.get(name)
        if init is None:
            nn.init.uniform_(weight, -bound, bound)
        else:
            with torch.no_grad():
                init(weight)


def split_hidden(cell: CellSpec, hx: Any, label: str) -> list[Tensor]:
    """The states in ``hx``: itself, or as many as the cell has. Raises ValueError."""
    if len(cell.states) == 1:
        return [hx]
    if isinstance(hx, Tensor) or len(hx) != len(cell.states):
        wanted = ", ".join(f"{name}_0" for name in cell.states)
        got = f"a tensor {list(hx.shape)}" if isinstance(hx, Tensor) else f"{len(hx)} items"
        raise ValueError(f"{label} takes hx as a tuple ({wanted}), got {got}")
    return list(hx)
