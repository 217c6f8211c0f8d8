"""What surrounds a call: compilers, recorders, transforms, autocast, modes.

It changes who can serve the call and how it is made.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor
from torch._C._functorch import TransformType
from torch._functorch import eager_transforms

# torch.jit.trace warns of each check of a size, but not of those in torch's own modules
warnings.filterwarnings(
    "ignore",
    message="Converting a tensor|Using len|Iterating over|torch.tensor results",
    category=torch.jit.TracerWarning,  # type: ignore[attr-defined]
    module=r"rnnfast\b",
)

Function = TypeVar("Function", bound=Callable[..., Any])


class Surroundings(NamedTuple):
    """``tracing``: by a compiler; ``recorded``: by torch.jit.trace; ``transformed``: by torch.func
    or forward-mode AD; ``autocast``: its dtype, None where it is off; ``dual``: among the
    transforms is forward mode."""

    tracing: bool
    recorded: bool
    transformed: bool
    autocast: torch.dtype | None
    dual: bool

    @property
    def differentiated(self) -> bool:
        """Whether gradients may be asked for that tensors do not tell of: a compiler's do not say
        that a level of torch.func differentiates them."""
        return self.tracing and self.transformed


def surroundings(device_type: str) -> Surroundings:
    """As they are now, for tensors on such a device."""
    tracing = torch.compiler.is_compiling()
    return Surroundings(tracing, *_seen(device_type, tracing))


def constant_while_tracing(function: Function) -> Function:
    """As torch.compiler.assume_constant_result, which imports all of the compiler."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def untraced(function: Function) -> Function:
    """``function`` and all that it calls, hidden from the compiler. Where torch.compile without
    ``fullgraph`` gives a call up, it tries each function within, down to those that go through the
    levels of torch.func, which it takes for code without any.

    As torch.compiler.disable, which imports all of the compiler.
    """
    hidden: Any = None

    @wraps(function)
    def run(*args: Any, **options: Any) -> Any:
        nonlocal hidden
        if "torch._dynamo" not in sys.modules:  # so there is none
            return function(*args, **options)
        if hidden is None:
            hidden = torch.compiler.disable(function)
        return hidden(*args, **options)

    return cast(Function, run)


@constant_while_tracing
def _seen(device_type: str, tracing: bool) -> tuple[bool, bool, torch.dtype | None, bool]:
    """(recorded, transformed, autocast, dual). A tracer calls this and keeps the answer; its own
    guards tell when the levels of torch.func or autocast are others.

    While tracing, levels of vmap alone leave the call as it is: the op has a rule for them.
    """
    if tracing:
        transformed = differentiating()
    else:
        transformed = torch._C._are_functorch_transforms_active() or _has_dual_numbers()
    autocast = None
    has_autocast = torch.amp.is_autocast_available(device_type)  # "meta" has none
    if has_autocast and torch.is_autocast_enabled(device_type):
        autocast = torch.get_autocast_dtype(device_type)
    dual = transformed and (_dual_level() or _within((TransformType.Jvp,)))
    return torch._C._get_tracing_state() is not None, transformed, autocast, dual


@constant_while_tracing
def within_torch_func() -> bool:
    """Whether a level of torch.func surrounds the call."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def differentiating() -> bool:
    """Whether a transform that takes derivatives surrounds the call: a level of torch.func's grad,
    vjp or jvp, or of forward-mode AD."""
    return _dual_level() or _within((TransformType.Grad, TransformType.Jvp))


def _within(kinds: Sequence[TransformType]) -> bool:
    """Whether a level of torch.func is of these kinds."""
    levels = torch._C._functorch.get_interpreter_stack() or ()
    return any(level.key() in kinds for level in levels)


def forward_levels() -> int:
    """How many levels of torch.func's forward mode surround the call."""
    levels = torch._C._functorch.get_interpreter_stack() or ()
    return sum(level.key() == TransformType.Jvp for level in levels)


def within_vmap() -> bool:
    """Whether the innermost level of torch.func is a vmap."""
    levels = torch._C._functorch.get_interpreter_stack()
    return bool(levels) and levels[-1].key() == TransformType.Vmap


def forward_mode_is_innermost() -> bool:
    """Whether the innermost transform is forward mode: of torch.func's levels the last, or where
    there are none, dual numbers."""
    levels = torch._C._functorch.get_interpreter_stack()
    return levels[-1].key() == TransformType.Jvp if levels else _has_dual_numbers()


def _dual_level() -> bool:
    return torch.autograd.forward_ad._current_level >= 0


def warn_of_trace(message: str) -> None:
    """A warning to whoever records the call by torch.jit.trace."""
    category = torch.jit.TracerWarning  # type: ignore[attr-defined]
    warnings.warn(f"torch.jit.trace {message}", category, stacklevel=2)


def wants_gradients(tensors: Iterable[Tensor]) -> bool:
    """Whether what is made of ``tensors`` will have gradients at any level of torch.func."""
    if not torch.is_grad_enabled():
        return False
    if torch.compiler.is_compiling() or not torch._C._are_functorch_transforms_active():
        return any(t.requires_grad for t in tensors)
    return any(map(_requires_grad_within, tensors))


def _requires_grad_within(tensor: Tensor) -> bool:
    while not tensor.requires_grad:
        if not torch._C._functorch.is_functorch_wrapped_tensor(tensor):
            return False
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return True


def unwatched(tensors: Sequence[Tensor]) -> bool:
    """Whether nobody differentiates, maps or records what is made of ``tensors`` here, so that it
    may be made of their memory."""
    if torch._C._are_functorch_transforms_active():
        return False
    recorded, dual = torch.is_grad_enabled(), _has_dual_numbers()
    for t in tensors:
        if torch._C._functorch.is_legacy_batchedtensor(t) or (recorded and t.requires_grad):
            return False
        if dual and unpacked(t)[1] is not None:
            return False
    return not torch.compiler.is_compiling() and not observed(tensors)


def _has_dual_numbers() -> bool:
    """Whether tensors at no level of torch.func may have tangents: its jvp is on torch's one level
    of dual numbers, too, but those are at its own."""
    return _dual_level() and eager_transforms.JVP_NESTING == 0


def unpacked(tensor: Tensor) -> tuple[Tensor, Tensor | None]:
    """As forward_ad.unpack_dual, which takes some times as long; there is but one level."""
    found: tuple[Tensor, Tensor | None] = torch._unpack_dual(tensor, level=0)
    return found


def packed(tensor: Tensor, tangent: Tensor) -> Tensor:
    """As forward_ad.make_dual, likewise, of what is known to be fit for it."""
    found: Tensor = torch._make_dual(tensor, tangent, level=0)
    return found


def of_older_vmap(tensor: Any) -> bool:
    """Whether ``tensor`` is mapped by the vmap inside torch.autograd (``is_grads_batched=True``,
    ``jacobian(vectorize=True)``), which is older than torch.func's and has dispatch rules of its
    own."""
    return isinstance(tensor, Tensor) and torch._C._functorch.is_legacy_batchedtensor(tensor)


def observed(tensors: Iterable[Tensor]) -> bool:
    """Whether someone records or replaces torch's calls (torch.jit.trace, make_fx, fake tensors,
    counters of FLOPs, selective checkpointing, tensors with a ``__torch_dispatch__`` of their own):
    they must see an op, as a tracer must."""
    if torch._C._get_tracing_state() is not None or in_dispatch_mode():
        return True
    return any(type(t) not in PLAIN and wrapped(t) for t in tensors)


def in_dispatch_mode() -> bool:
    """Whether a mode sees every call to an op."""
    return torch._C._len_torch_dispatch_stack() > 0


def wrapped(tensor: Any) -> bool:
    """Whether ``tensor`` has a ``__torch_dispatch__`` of its own, and values that only it knows."""
    return isinstance(tensor, Tensor) and type(tensor) not in PLAIN and _dispatches(tensor)


PLAIN = {Tensor, torch.nn.Parameter}


def _dispatches(tensor: Tensor) -> bool:
    return torch._C._dispatch_keys(tensor).has(torch._C.DispatchKey.Python)
