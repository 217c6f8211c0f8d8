"""A trial of a step before a layer is made of it: what would fail or be wrong later fails here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .spec import CellSpec, StepWeights
from .step_error import step_error

_passed: set[tuple[Any, ...]] = set()


def check_step(spec: CellSpec, H: int, bias: bool, dtype: torch.dtype, device: str) -> None:
    """Tries the step of a cell of one's own on zeros, for H units, once in a process.

    The tensors have the layer's shapes, dtype and device, and few rows; real ones, because fake
    tensors import torch's compiler, which takes seconds.

    Raises:
        StepError: a weight's shape that does not fit H; the step fails, returns another number of
            states or other shapes or dtypes than it was given, decides by a tensor's values, draws
            random numbers, writes into a tensor that is not its own, or reads one from outside
            that needs gradients.
    """
    if not spec.own:
        return
    device = "cpu" if device == "meta" else device  # with values, like the step's constants
    key = (spec, H, bias, dtype, device)
    if key in _passed:
        return
    shapes = _weight_shapes(spec, H, bias)
    with ExitStack() as around:
        around.enter_context(torch.inference_mode(False))
        around.enter_context(torch.enable_grad())
        if torch.amp.is_autocast_available(device):
            around.enter_context(torch.autocast(device, enabled=False))
        _try(spec, H, shapes, dtype, device)
    _passed.add(key)


def _weight_shapes(spec: CellSpec, H: int, bias: bool) -> dict[str, tuple[int, ...]]:
    names = spec.weight_names("gates", bias)
    try:
        return {name: spec.weight_shape(name, H) for name in names}
    except ValueError as error:
        raise step_error(spec, str(error)) from None


def _try(
    spec: CellSpec, H: int, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, device: str
) -> None:
    B = 3 if H != 3 else 2  # so that what is transposed shows

    def new(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=device)

    def of_a_graph(width: int) -> Tensor:  # no leaf: torch's own check would come before ours
        return new(B, width).requires_grad_().clone()

    weights = {name: new(*shape) for name, shape in shapes.items()}
    gx, states = of_a_graph(spec.gates * H), {name: of_a_graph(H) for name in spec.states}
    given = {"gx": gx, **states, **{f"w.{name}": weight for name, weight in weights.items()}}
    try:
        with _Watch(given):
            found = spec.step(gx, tuple(states.values()), _of(spec, weights))
    except _Watched as error:
        raise step_error(spec, str(error), error) from None
    except Exception as error:  # whatever the user's function raises
        text = f"the step fails: {type(error).__name__}: {error}"
        raise step_error(spec, text, error) from error
    _check_states(spec, found, gx, (B, H))
    try:
        outputs = [state for state in found if state.requires_grad]
        if outputs:
            torch.autograd.grad(outputs, [gx, *states.values()], outputs, allow_unused=True)
    except RuntimeError as error:
        raise step_error(spec, f"the step can't be differentiated: {error}") from error


def _of(spec: CellSpec, weights: dict[str, Tensor]) -> StepWeights:
    params = {param.name: weights[param.name] for param in spec.params}
    return StepWeights(weights.get("w_hh"), weights.get("b_hh"), None, params)


def _check_states(spec: CellSpec, found: Any, like: Tensor, shape: tuple[int, int]) -> None:
    wanted = f"the step should return a tuple of the new states ({', '.join(spec.states)})"
    if not isinstance(found, (tuple, list)):
        got = f"a tensor {list(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise step_error(spec, f"{wanted}, got {got}")
    if len(found) != len(spec.states):
        raise step_error(spec, f"{wanted}, got {len(found)} of them")
    for name, state in zip(spec.states, found, strict=True):
        other = _difference(state, like, shape)
        if other is not None:
            text = f"the step should return the state {name} as [B, H], in the dtype and on the"
            raise step_error(spec, f"{text} device of what it was given, got {other}")


def _difference(state: Any, like: Tensor, shape: tuple[int, int]) -> str | None:
    """What is wrong about a new state, or None."""
    if not isinstance(state, Tensor):
        return type(state).__name__
    if tuple(state.shape) != shape:
        return f"{list(state.shape)} where B is {shape[0]} and H is {shape[1]}"
    if state.dtype != like.dtype:
        return f"{state.dtype} for {like.dtype}"
    if state.device != like.device:
        return f"a tensor on {state.device} for tensors on {like.device}"
    return None


class _Watched(Exception):
    """What a step did and may not."""


class _Watch(TorchDispatchMode):
    """Sees every call that a step makes.

    ``given``: the step's arguments, by their storages. ``followed``: the storages of what is made
    of them, whose values are not known when kernels are made. ``made``: of all that the step made.
    """

    def __init__(self, given: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.given = {_storage(tensor): name for name, tensor in given.items()}
        self.followed, self.made = set(self.given), set[int]()
        self.kept: list[Any] = []  # alive, so that no address is used twice

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else torch's compiler is imported at the first call

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        read = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        follows = any(_storage(t) in self.followed for t in read)
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise _Watched(
                f"the step draws random numbers ({func}); kernels and backward would draw others: "
                "draw them outside and let them come in by the input or a state"
            )
        by_value = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)
        if follows and any(tag in func.tags for tag in by_value):
            raise _Watched(
                f"the step decides by the values of a tensor ({func}), which are not known when "
                "kernels are made: use torch.where; `if` on sizes and settings is fine"
            )
        for tensor in _written(func, args, kwargs):
            self._check_written(tensor, func)
        if func is not torch.ops.aten.detach.default and torch.is_grad_enabled():
            self._check_gradients(read)
        found = func(*args, **kwargs)
        self._follow(func, read, [t for t in tree_leaves(found) if isinstance(t, Tensor)], follows)
        return found

    def _check_written(self, tensor: Tensor, func: Any) -> None:
        storage = _storage(tensor)
        if storage in self.made:
            return
        what = self.given.get(storage, "a tensor from outside")
        raise _Watched(
            f"the step writes in place into {what} ({func}), which is not its own: make a new "
            "tensor"
        )

    def _check_gradients(self, read: Sequence[Tensor]) -> None:
        for tensor in read:
            if tensor.requires_grad and _storage(tensor) not in self.followed | self.made:
                raise _Watched(
                    f"the step reads a tensor from outside that needs gradients "
                    f"({list(tensor.shape)}) and would get none: declare it in params=, or use its "
                    "detach()"
                )

    def _follow(
        self, func: Any, read: Sequence[Tensor], found: Sequence[Tensor], follows: bool
    ) -> None:
        before = {_storage(t) for t in read}
        fresh = func is torch.ops.aten.lift_fresh.default  # torch.tensor(…)
        for tensor in found:
            storage = _storage(tensor)
            self.kept.append(tensor)
            if fresh or storage not in before:
                self.made.add(storage)
            if follows:
                self.followed.add(storage)


def _written(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[Tensor]:
    """The tensors that a call writes into."""
    for index, argument in enumerate(func._schema.arguments):
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        value = args[index] if index < len(args) else kwargs.get(argument.name)
        yield from (leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor))


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
