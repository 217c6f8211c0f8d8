"""From a step in plain torch to its graph.

The step runs once on a small batch. Each aten call that it makes is also done on ``Value``s, by
``aten``.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from ..cells import CellSpec, StepWeights
from ..cells.step_error import StepError, code_of
from . import activations as _activations  # noqa: F401  registers what it handles
from . import aten_more as _aten_more  # noqa: F401
from . import aten_rows as _aten_rows  # noqa: F401
from .aten import Context, aten, call
from .graph import Crossing, Graph, ordered
from .operators import clamp_keeps_bound, clamp_shares_ties, fold
from .values import Piece, Row, Unsupported, Value, batch_size, make, rows_of, width_of
from .weights import Weight, in_grains


class Traced(NamedTuple):
    """A step's graph. ``states``: the rows of the new states. ``grain``: how wide pieces are.
    ``tangents``: so many states, the first, are the tangents of those behind them.

    Rows that are read: "gx" of G*H units, "state0", "state1", … of H.
    """

    graph: Graph
    states: tuple[Row, ...]
    grain: int
    hidden: int
    tangents: int = 0


def weight_shapes(spec: CellSpec, hidden: int, bias: bool) -> dict[str, tuple[int, ...]]:
    """Of the weights that a step reads, by name."""
    names = [n for n in spec.weight_names("gates", bias) if n != "b_ih"]
    return {name: spec.weight_shape(name, hidden) for name in names}


def step_weights(weights: Mapping[str, Tensor]) -> StepWeights:
    params = {n: w for n, w in weights.items() if n not in ("w_hh", "b_hh", "w_hr")}
    return StepWeights(weights.get("w_hh"), weights.get("b_hh"), weights.get("w_hr"), params)


def trace(
    spec: CellSpec,
    hidden: int,
    bias: bool,
    dtype: torch.dtype = torch.float32,
    checking: bool = False,
    blocks: bool = False,
) -> Traced:
    """The graph of ``spec``'s step for layers of ``hidden`` units, with or without bias, computed
    in ``dtype``. ``checking``: where the step asks for float32, ``dtype`` will do. ``blocks``:
    products by heads may be one product of a block-diagonal matrix, rather than one a head.

    Raises:
        StepError: an operator, or a use of one, that is outside the vocabulary.
    """
    clamp_keeps_bound(), clamp_shares_ties()  # asked where no mode is on
    before = batch_size.set(_prime_apart_from(spec, hidden, bias))
    try:
        grain = hidden
        while True:
            run = _Run(spec, hidden, bias, dtype, grain, checking, blocks)
            try:
                states = run.states()
            except Crossing:
                blocks = False
                continue
            nodes = ordered([piece.node for row in states for piece in row])
            widths = [piece.width for row in states for piece in row]
            finer = math.gcd(grain, *widths, *(node.width for node in nodes if node.width > 0))
            if finer == grain or grain // finer > 32:
                return Traced(run.graph, states, grain, hidden)
            grain = finer
    finally:
        batch_size.reset(before)


def _prime_apart_from(spec: CellSpec, hidden: int, bias: bool) -> int:
    sizes = {hidden, spec.gates * hidden, *dict(spec.settings).values()}
    sizes.update(size for shape in weight_shapes(spec, hidden, bias).values() for size in shape)
    primes = (61, 67, 71, 73, 79, 83, 89, 97, 101, 103, 107, 109, 113, 127)
    return next((p for p in primes if all(size % p for size in sizes)), primes[0])


class _Run(TorchDispatchMode):
    """One run of the step. A tensor that it makes carries its Value as an attribute."""

    def __init__(
        self,
        spec: CellSpec,
        hidden: int,
        bias: bool,
        dtype: torch.dtype,
        grain: int,
        checking: bool,
        blocks: bool,
    ) -> None:
        super().__init__()
        self.graph = Graph(fold, grain if blocks else 0)
        self.grain, self.hidden = grain, hidden
        self._dtype = dtype
        # the check in float64 is of steps that layers in float32 run, too
        self._dtypes = (dtype, torch.float32) if checking else (dtype,)
        self._spec, self._shapes = spec, weight_shapes(spec, hidden, bias)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # True would import all of torch._dynamo, which takes seconds

    def states(self) -> tuple[Row, ...]:
        count = len(self._spec.states)
        gx = self._row("gx", self._spec.gates * self.hidden)
        olds = tuple(self._row(f"state{k}", self.hidden) for k in range(count))
        weights = {name: self._weight(name, shape) for name, shape in self._shapes.items()}
        try:
            with torch.no_grad(), self:
                news = self._spec.step(gx, olds, step_weights(weights))
        except (StepError, Crossing):
            raise
        except Exception as error:
            raise StepError(
                f"the step of {self._spec.name!r} could not be traced, at {self._line()}: {error}"
            ) from error
        try:
            return tuple(self._new_state(new) for new in news)
        except Unsupported as error:
            raise StepError(
                f"no kernel can be made of the step of {self._spec.name!r}: as a new state {error}"
            ) from error

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        found = func(*args, **kwargs)
        try:
            self._follow(func, args, kwargs, found)
        except Unsupported as error:
            raise StepError(
                f"no kernel can be made of the step of {self._spec.name!r}: {func} at "
                f'{self._line()}: {error}. backend="reference" runs it all the same'
            ) from error
        return found

    def _follow(self, func: Any, args: Any, kwargs: Any, found: Any) -> None:
        if func in (aten._local_scalar_dense.default, aten.item.default):
            raise Unsupported("a value decides (`if`, `float()`, `.item()`): use torch.where")
        if func in (aten.lift_fresh.default, aten.lift_fresh_copy.default):
            found._rnnfast_value, found._rnnfast_seen = self._number(args[0]), False
            return
        if func._schema.is_mutable and ("out" in kwargs or getattr(args[0], "_rnnfast_seen", True)):
            raise Unsupported("it writes in place, into what is or may be seen elsewhere")
        shape = tuple(found.shape) if isinstance(found, Tensor) else ()
        context = Context(self.graph, self.grain, func, self._dtypes, shape)
        own_args, own_kwargs = pytree.tree_map_only(Tensor, self._value, (args, kwargs))
        value = call(context, own_args, own_kwargs)
        outputs = [found] if isinstance(found, Tensor) else list(found)
        values = [value] if isinstance(found, Tensor) else list(value)
        for output, own in zip(outputs, values, strict=False):
            if isinstance(output, Tensor):
                output._rnnfast_value = own  # type: ignore[attr-defined]
                output._rnnfast_seen = _marked(output, args)  # type: ignore[attr-defined]

    def _value(self, tensor: Tensor) -> Value | Weight:
        value = getattr(tensor, "_rnnfast_value", None)
        if value is not None:
            return value
        raise Unsupported(
            f"it uses a tensor {list(tensor.shape)} from outside: name it in params= of "
            "rnnfast.cell, or make it in the step as zeros_like does"
        )

    def _number(self, tensor: Tensor) -> Value:
        if tensor.numel() != 1:
            raise Unsupported("it makes a tensor of given numbers, which kernels can't")
        piece = Piece(self.graph.const(float(tensor)), 1)
        return make(tuple(tensor.shape), None, [(piece,)])

    def _row(self, name: str, width: int) -> Tensor:
        pieces = [Piece(self.graph.load(name, at, n), n) for at, n in in_grains(width, self.grain)]
        return self._tensor((batch_size.get(), width), make((width,), 0, [tuple(pieces)]))

    def _weight(self, name: str, shape: tuple[int, ...]) -> Tensor:
        return self._tensor(shape, Weight.whole(name, shape))

    def _tensor(self, shape: Sequence[int], value: Value | Weight) -> Tensor:
        found = torch.full(shape, 0.5, dtype=self._dtype, device="cpu")
        found._rnnfast_value = value  # type: ignore[attr-defined]
        found._rnnfast_seen = True  # type: ignore[attr-defined]
        return found

    def _new_state(self, tensor: Tensor) -> Row:
        value = self._value(tensor)
        if isinstance(value, Weight):
            value = value.value(self.graph, self.grain)
        (row,) = rows_of(value)
        assert width_of(row) == self.hidden
        return row

    def _line(self) -> str:
        """Where the step stands, of the calls that are under way or have just failed."""
        code = code_of(self._spec.step)
        if code is None:
            return "a line that is not known"
        frame, error = sys._getframe(1), sys.exc_info()[2]
        while frame is not None:
            if frame.f_code is code:
                return f"{code.co_filename}:{frame.f_lineno}"
            frame = frame.f_back  # type: ignore[assignment]
        while error is not None:
            if error.tb_frame.f_code is code:
                return f"{code.co_filename}:{error.tb_lineno}"
            error = error.tb_next
        return f"{code.co_filename}:{code.co_firstlineno}"


def _marked(output: Tensor, args: Sequence[Any]) -> bool:
    """Whether ``output`` shares its memory with an argument, both of which are then marked."""
    memory = output.untyped_storage().data_ptr()
    shared = [
        t
        for t in pytree.tree_leaves(args)
        if isinstance(t, Tensor) and t is not output and t.untyped_storage().data_ptr() == memory
    ]
    for tensor in shared:
        tensor._rnnfast_seen = True  # type: ignore[attr-defined]
    return bool(shared)
