"""The layers as subclasses of torch.nn's, for code that asks ``isinstance(layer, nn.LSTM)``.

One implementation: these add the base class and nothing else. torch.compile breaks its graph at
subclasses of ``nn.LSTM`` and so on; ``rnnfast.LSTM`` compiles with ``fullgraph=True``.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn
from torch.nn.utils import parametrize

from . import modules
from .recurrent import RecurrentLayer
from .tracers import twin


class RNN(modules.RNN, nn.RNN):
    """:class:`rnnfast.RNN` that is also a :class:`torch.nn.RNN`."""


class LSTM(modules.LSTM, nn.LSTM):
    """:class:`rnnfast.LSTM` that is also a :class:`torch.nn.LSTM`."""


class GRU(modules.GRU, nn.GRU):
    """:class:`rnnfast.GRU` that is also a :class:`torch.nn.GRU`."""


_COMPAT: dict[type, type] = {nn.RNN: RNN, nn.LSTM: LSTM, nn.GRU: GRU}
_FULLGRAPH: dict[type, type] = {nn.RNN: modules.RNN, nn.LSTM: modules.LSTM, nn.GRU: modules.GRU}


@dataclass
class Replacement:
    """What ``replace`` did.

    Attributes:
        model: the model; a new object only where the root itself was a layer that was swapped.
        swapped: (qualified name, old class, new class) of each layer swapped.
        left: (qualified name, reason) of each recurrent layer left as it was.
    """

    model: nn.Module
    swapped: list[tuple[str, str, str]] = field(default_factory=list)
    left: list[tuple[str, str]] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{name or '(root)'}: {old} -> {new}" for name, old, new in self.swapped]
        lines += [f"{name or '(root)'}: left, {reason}" for name, reason in self.left]
        return "\n".join(lines) or "no recurrent layer found"


def replace(model: nn.Module, fullgraph: bool = False) -> Replacement:
    """Swaps every torch.nn RNN, LSTM and GRU in ``model`` in place for rnnfast's.

    The new layer shares the old one's parameters (the same objects, so an optimiser made before
    goes on working), buffers, hooks and training mode. A layer that stands in several places is
    swapped for one new layer.

    Args:
        model: any module. Where it is itself such a layer, use the result's ``model``.
        fullgraph: swap by ``rnnfast.LSTM`` and so on, which torch.compile takes in one graph, but
            which are no ``nn.LSTM``; default: by the classes of ``rnnfast.compat``, which are.

    Returns:
        :class:`Replacement`: what was swapped, and what was left and why.
    """
    targets = _FULLGRAPH if fullgraph else _COMPAT
    report = Replacement(model)
    made: dict[nn.Module, nn.Module] = {}
    for name, layer in list(model.named_modules(remove_duplicate=False)):
        if not _is_recurrent(layer) or isinstance(layer, RecurrentLayer):
            continue
        reason = why_left(layer)
        if reason is not None:
            report.left.append((name, reason))
            continue
        target = targets[type(layer)]
        if layer not in made:
            made[layer] = twin(layer, target)
        report.swapped.append((name, _class_name(type(layer)), _class_name(target)))
        if name == "":
            report.model = made[layer]
        else:
            _put(model, name, made[layer])
    return report


def _is_recurrent(layer: nn.Module) -> bool:
    """torch.nn's layers and torch.ao's quantized ones, which have an RNNBase of their own."""
    return any(base.__name__ == "RNNBase" for base in type(layer).__mro__)


def why_left(layer: nn.Module) -> str | None:
    """Why ``replace`` leaves this layer as it is, or None if it swaps it."""
    if not isinstance(layer, nn.RNNBase):
        return f"{_class_name(type(layer))} is quantized"
    if parametrize.is_parametrized(layer):
        return "its weights are parametrized"
    if type(layer) not in _COMPAT:
        return f"{_class_name(type(layer))} is a subclass, which may override anything"
    patched = [name for name, value in vars(layer).items() if _is_patch(layer, name, value)]
    if patched:
        return f"its {patched[0]} was replaced on the instance, and may call what it replaced"
    missing = [name for name in layer._flat_weights_names if name not in layer._parameters]
    if missing:
        return f"{missing[0]} is not a parameter (an old weight_norm or spectral_norm?)"
    return None


def _is_patch(layer: nn.Module, name: str, value: object) -> bool:
    """Whether an attribute of the instance hides a method of its class."""
    return callable(value) and callable(getattr(type(layer), name, None))


def _put(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    model.get_submodule(parent)._modules[child] = layer


def _class_name(cls: type) -> str:
    module = cls.__module__
    for long, short in (
        ("torch.nn.modules.rnn", "torch.nn"),
        ("rnnfast.modules", "rnnfast"),
    ):
        if module == long:
            module = short
    return f"{module}.{cls.__qualname__}"
