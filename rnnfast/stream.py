"""Stream: a layer that is given its input step by step, with packed weights and states held."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .backends.cpu import DTYPES, module
from .backends.own_stream import Held, held
from .backends.registry import BACKENDS, BackendError
from .cells import CELLS, CellSpec
from .masks import masked
from .problem import cast, changed, wide
from .recurrent import RecurrentLayer
from .steps import run

STORAGES = ("bfloat16", "int8")


class Stream:
    """A layer on the CPU that takes its input as it comes: ``y = stream(x)`` is a step, or a block
    of steps, and goes on from the states that the last call left. See docs/streaming.md.

    Args:
        layer: a layer of rnnfast of one direction, of any cell, on the CPU. Dropout is off.
        batch_size: the sequences that run at the same time.
        weights: how they are packed: None, as the layer has them (float16 as float32);
            "bfloat16"; "int8", with a scale for each row. Sums are float32 (float64 of float64).

    Raises:
        TypeError: no layer of rnnfast.
        ValueError: a bidirectional one; one in training mode that has dropout or masks; one whose
            weights can't be watched (parametrized, or made in inference mode); ``weights`` that it
            can't have.
        BackendError: no kernel can be made of the cell; the extension is not built.
    """

    def __init__(
        self, layer: RecurrentLayer, batch_size: int = 1, weights: str | None = None
    ) -> None:
        _check_layer(layer)
        if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
            raise ValueError(f"batch_size should be a positive integer, got: {batch_size!r}")
        if (reason := BACKENDS["cpu"].unusable()) is not None:
            raise BackendError(f"Stream: {reason}")
        self.layer, self.batch_size, self.weights = layer, batch_size, weights
        self._dtype = _dtype_of(layer)
        storage = _storage(self._dtype, weights)
        stack = changed(layer._stack(layer._weights(), False), training=False)
        other = masked(stack, self._dtype)
        self._spec = CELLS[layer._cell() if other is None else other.cell]
        self._constants = tuple(p for p in stack.zoneout if p != 0)
        self._kernel = _kernel(layer, self._spec, weights, masks=other is not None)
        gates = layer._spec().gates * layer.hidden_size
        self._own_states = self._zeros() if self._spec.own else []
        self._lock = threading.Lock()
        self._kept: list[Held] = []
        self._held = module().Stream(
            cell=self._spec.name,
            storage=storage,
            dtype=self._dtype,
            B=batch_size,
            I=layer.input_size,
            H=layer.hidden_size,
            P=layer.proj_size or layer.hidden_size,
            layers=layer.num_layers,
            batch_first=layer.batch_first,
            own_gates=gates if self._spec.own else 0,
            own_states=self._own_states,
        )
        self.refresh()

    def __call__(self, input: Tensor, *, out: Tensor | None = None) -> Tensor:
        """The outputs of the next step or steps; the states are then those after them.

        Args:
            input: in the layer's dtype: a step [B, I], for ``batch_size=1`` also [I]; or a block of
                steps [T, B, I] ([B, T, I] of a layer with ``batch_first``). Or int64 tokens, of
                one axis less.
            out: where the outputs go; must not overlap the input.

        Returns:
            [B, P], [P], [T, B, P] or [B, T, P], in the layer's dtype: ``out``, or a new tensor.

        Raises:
            ValueError, RuntimeError, IndexError: an input or output that does not fit.
        """
        try:
            y = self._held.step(input, out)
            while y is None:  # the layer has other weights by now
                self.refresh()
                y = self._held.step(input, out)
        except TypeError:
            for name, value in (("input", input), ("out", out)):
                if not isinstance(value, Tensor) and (name == "input" or value is not None):
                    raise TypeError(
                        f"{name} should be a tensor, got: {type(value).__name__}"
                    ) from None
            raise
        result: Tensor = y
        return result

    def reset(self, mask: Tensor | None = None) -> None:
        """Sets states to 0: of the sequences where ``mask`` (bool [B]) is true, or of all."""
        self._held.reset(mask)

    @property
    def state(self) -> Any:
        """The states as the layer returns h_n: [L, B, P], of an LSTM (h [L, B, P], c [L, B, H]). A
        copy, in float32 where the layer has 16 bits. What is set is copied too; of any
        floating-point dtype, for ``batch_size=1`` also without B."""
        return self.layer._join_hidden(self._held.state())

    @state.setter
    def state(self, value: Any) -> None:
        given = self.layer._split_hidden(value)
        states = [s.detach().to("cpu", wide(self._dtype)) for s in given]
        if self.batch_size == 1 and all(s.dim() == 2 for s in states):
            states = [s.unsqueeze(1) for s in states]
        rows, widths = self.layer.num_layers, self.layer._state_widths()
        for index, (state, width) in enumerate(zip(states, widths, strict=True)):
            expected = (rows, self.batch_size, width)
            if tuple(state.shape) != expected:
                raise RuntimeError(self.layer._wrong_size(index, expected, list(state.shape)))
        self._held.set_state(states)

    def refresh(self) -> None:
        """Packs the layer's weights as they are now; the states stay.

        A call does it where it sees that a weight was changed or replaced. It can't see a change
        of few numbers past PyTorch's version counter (``weight.data[0, 0] = 1``, NumPy).
        """
        with self._lock:
            names = _watchable(self.layer)
            if _dtype_of(self.layer) != self._dtype:
                raise RuntimeError(
                    f"the layer's weights were {self._dtype} when this Stream was made and are "
                    f"{_dtype_of(self.layer)} now: make another"
                )
            parameters = self.layer._parameters
            # in this order: what is changed from here on is seen at the next call
            self._held.watch(parameters, names)
            by_layer = [self._named(index) for index in range(self.layer.num_layers)]
            order = ("w_ih", "w_hh", "b_ih", "b_hh", "w_hr")
            if self._kernel is not None:
                order = ("w_ih", "", "b_ih", "", "")
            packed = [[w.get(name) for name in order] for w in by_layer]
            if self.weights == "int8":
                _check_finite(self.layer, names)
            kept = [self._own_layer(index, w) for index, w in enumerate(by_layer)]
            own = [_passed(one) for one in kept if one is not None]
            self._held.pack(weights=packed, own=own)
            self._kept = [one for one in kept if one is not None]  # those before are free now

    def explain(self) -> str:
        """What serves it: the kernels, the packed weights' dtype and size, threads."""
        isa, storage = module().cpu_isa(), _storage(self._dtype, self.weights)
        cell = self._spec.name
        if self._kernel is not None:
            cell += f", compiled from the step ({self._kernel.describe()})"
        threads = self._held.threads
        if self._kernel is not None:
            threads = max(a.call.arguments.rows * a.call.arguments.units for a in self._kept)
        return (
            f"cpu, {isa}: {cell}; weights {storage}, {self._held.bytes / 1024:.0f} KiB packed; "
            f"{threads} thread{'' if threads == 1 else 's'}"
        )

    def __repr__(self) -> str:
        weights = "" if self.weights is None else f", weights={self.weights!r}"
        return f"Stream({self.layer!r}, batch_size={self.batch_size}{weights})"

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: the layer (deepcopy and pickle have their own) and the states."""
        return {
            "layer": self.layer,
            "batch_size": self.batch_size,
            "weights": self.weights,
            "states": self._held.state(),
        }

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__init__(state["layer"], state["batch_size"], state["weights"])  # type: ignore[misc]
        self._held.set_state(state["states"])

    def _zeros(self) -> list[Tensor]:
        layer = self.layer
        shape = (layer.num_layers, self.batch_size, layer.hidden_size)
        dtype = wide(self._dtype)
        return [torch.zeros(shape, dtype=dtype, device="cpu") for _ in self._spec.states]

    def _named(self, index: int) -> dict[str, Tensor]:
        """A layer's weights by the names of a scan, in the dtype that is computed in."""
        layer = self.layer
        flat = [layer._parameters[name] for name in layer._all_weights[index]]
        names = layer._spec().weight_names("dense", layer.bias)
        return {
            name: cast(weight.detach().resolve_neg(), wide(self._dtype)).contiguous()
            for name, weight in zip(names, flat, strict=True)
            if weight is not None
        }

    def _own_layer(self, index: int, weights: dict[str, Tensor]) -> Held | None:
        if self._kernel is None:
            return None
        states = [state[index] for state in self._own_states]
        return held(self._kernel, weights, states, self._held.chunk, self._constants)


def _passed(one: Held) -> tuple[int, int, Tensor, Tensor]:
    function, arguments = one.call.addresses
    return function, arguments, one.gx, one.y


def _check_layer(layer: Any) -> None:
    if not isinstance(layer, RecurrentLayer):
        raise TypeError(
            f"layer should be a layer of rnnfast, got: {type(layer).__name__} "
            "(rnnfast.replace swaps those of torch.nn)"
        )
    if layer.bidirectional:
        raise ValueError(
            "Stream: Expected a layer of one direction, got bidirectional=True, which begins with "
            "the last step too"
        )
    between = layer.dropout if layer.num_layers > 1 else 0.0
    named: dict[str, Any] = {"dropout": between, "recurrent_dropout": layer.recurrent_dropout}
    named |= {"zoneout": layer.zoneout, "weight_dropout": layer.weight_dropout}
    for name, value in named.items():
        if layer.training and value != 0:
            raise ValueError(
                f"Stream: the layer is in training mode and has {name}={value}: call eval() first"
            )
    if layer.proj_size and layer.zoneout != 0:
        raise ValueError("Stream: no zoneout with proj_size")


def _watchable(layer: RecurrentLayer) -> list[str]:
    """The names of a layer's weights, parameters whose changes show."""
    names = list(layer._flat_weights_names)
    for name in names:
        weight = layer._parameters.get(name)
        if weight is None:
            raise ValueError(
                f"Stream: {name} is no parameter of the layer (a parametrization?), so that its "
                "changes can't be seen: make it one first, as "
                "torch.nn.utils.parametrize.remove_parametrizations does"
            )
        if weight.is_inference():
            raise ValueError(
                f"Stream: {name} was made in inference mode, so that its changes can't be seen: "
                "copy.deepcopy the layer outside of it"
            )
        if weight.device.type != "cpu":
            raise ValueError(
                f"Stream: the layer should be on the CPU, {name} is on {weight.device}"
            )
    return names


def _dtype_of(layer: RecurrentLayer) -> torch.dtype:
    """Of all weights. Raises ValueError."""
    found = {weight.dtype for weight in layer.parameters()}
    if len(found) != 1 or not found <= set(DTYPES):
        shown = ", ".join(sorted(str(dtype) for dtype in found))
        raise ValueError(f"Stream: the weights should be of one floating-point dtype, got: {shown}")
    return found.pop()


def _storage(dtype: torch.dtype, weights: str | None) -> str:
    """How weights are packed. Raises ValueError for what can't be."""
    if weights is None:
        kept = torch.float32 if dtype == torch.float16 else dtype
        return str(kept).removeprefix("torch.")
    if weights not in STORAGES:
        raise ValueError(f"weights should be None or one of {STORAGES}, got: {weights!r}")
    if dtype == torch.float64:
        raise ValueError(f"weights={weights!r}: sums of a float64 layer are float64")
    return weights


def _kernel(
    layer: RecurrentLayer, spec: CellSpec, weights: str | None, masks: bool
) -> run.Kernel | None:
    """The loops of a cell that is compiled from its step; None for one that is built in."""
    if not spec.own:
        return None
    if weights is not None:
        raise ValueError(f"weights={weights!r} is for built-in cells without zoneout")
    bias = layer.bias and not masks  # with masks they are parameters
    found = run.kernel(spec.name, layer.hidden_size, bias, wide(_dtype_of(layer)))
    if isinstance(found, str):
        raise BackendError(f"Stream: {found}")
    return found


def _check_finite(layer: RecurrentLayer, names: Sequence[str]) -> None:
    for name in names:
        weight = layer._parameters[name]
        if weight is not None and not bool(weight.isfinite().all()):
            raise ValueError(f"weights='int8': {name} is not finite")
