"""What torch.fx and torch.jit.script get of a layer: a node that calls it, torch.nn's own layer.

Both know the layers of torch.nn by their classes, and would look into ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

from torch import nn
from torch.fx import Proxy

Layer = TypeVar("Layer", bound=nn.Module)


# --- torch.fx.symbolic_trace ---------------------------------------------------------------------


def leaf_call(layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """The node ``call_module`` that stands for a call of ``layer``, None where no argument is a
    proxy. Arguments that are None or False are as good as left out.

    Raises:
        RuntimeError: ``layer`` has hooks, which ran already and would run again with the graph; or
            it is all there is to trace.
    """
    proxy = next(_proxies([*args, *kwargs.values()]), None)
    if proxy is None:
        return None
    tracer: Any = proxy.tracer
    name = type(layer).__name__
    if layer._forward_pre_hooks or layer._forward_hooks:
        raise RuntimeError(
            f"symbolic_trace can't record a {name} with forward hooks; add them to the layer after "
            "tracing, or trace with a Tracer whose is_leaf_module is true of it"
        )
    if getattr(tracer, "root", None) is layer:
        raise RuntimeError(
            f"symbolic_trace looks into the module it is given, and a {name} is to be called as a "
            "whole: trace a module that holds it"
        )
    while args and args[-1] is None:
        args = args[:-1]
    kwargs = {key: value for key, value in kwargs.items() if value is not None}
    kwargs = {key: value for key, value in kwargs.items() if value is not False}
    return tracer.create_proxy("call_module", tracer.path_of_module(layer), args, kwargs)


def _proxies(values: Any) -> Iterator[Proxy]:
    for value in values:
        if isinstance(value, Proxy):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _proxies(value)


# --- torch.jit.script ----------------------------------------------------------------------------


_TORCH_NN: dict[str, type[nn.RNNBase]] = {
    "RNN_TANH": nn.RNN,
    "RNN_RELU": nn.RNN,
    "LSTM": nn.LSTM,
    "GRU": nn.GRU,
}


def layer_of_torch_nn(layer: Any) -> nn.RNNBase:
    """torch.nn's layer with the very parameters of ``layer``, a RecurrentLayer.

    Raises:
        RuntimeError: torch.nn has no layer that computes the same; the text says why.
    """
    mode, reason = layer._spec().torch_mode, _why_not_torch_nn(layer)
    if reason is not None:
        raise not_scripted(layer, reason)
    return twin(layer, _TORCH_NN[mode])


def not_scripted(layer: nn.Module, reason: str) -> RuntimeError:
    """The error with the way out."""
    return RuntimeError(
        f"torch.jit.script can't compile {type(layer).__name__}: {reason}. Use torch.export or "
        "torch.jit.trace (docs/deployment.md)"
    )


def _why_not_torch_nn(layer: Any) -> str | None:
    if layer._spec().torch_mode is None:
        return f"torch.nn has no layer of the cell {layer._cell()!r}"
    if layer.zoneout != 0:
        return "torch.nn has no zoneout"
    if layer.training:
        for name in ("recurrent_dropout", "weight_dropout", "grad_clip_time"):
            if getattr(layer, name) != 0:
                return f"torch.nn has no {name}, and the layer is in training mode"
    return None


def twin(layer: nn.Module, target: type[Layer]) -> Layer:
    """An object of class ``target`` with the very attributes, parameters and hooks of ``layer``.

    What was compiled of ``layer`` (``layer.compile()``) is not taken over.
    """
    other: Layer = object.__new__(target)
    state = dict(layer.__dict__)
    for name in ("_compiled_call_impl", "_served"):
        state.pop(name, None)
    for key, value in state.items():  # containers of its own; what they hold is shared, and the
        if isinstance(value, (dict, list, set)) and "hook" not in key:  # hooks' handles go on
            state[key] = value.copy()
    other.__dict__.update(state)
    _bind_anew(other)
    if isinstance(layer, nn.RNNBase):
        # weak references to a tensor forbid torch.utils.swap_tensors to swap it
        layer._flat_weight_refs = [None] * len(layer._flat_weight_refs)
    return other


def _bind_anew(other: nn.Module) -> None:
    """Hooks that hold their module weakly, as torch wraps some, hold ``other`` from here on."""
    for hooks in (value for key, value in vars(other).items() if "hook" in key):
        for key, hook in hooks.items() if isinstance(hooks, dict) else ():
            if getattr(hook, "with_module", False):
                hooks[key] = type(hook)(hook.hook, other)
