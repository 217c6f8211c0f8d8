"""The ops where a transform that takes derivatives surrounds them: torch.func's grad, vjp and jvp
under a compiler, or around what was compiled or recorded without it; and dual numbers. And double
backward of scan_backward.

An op's kernel for autograd is called at each level of torch.func, as those of torch's own
operations are. There it records one node, whose backward and jvp consist of the ops again, and
calls the op below its level. In eager code layers go by ``transforms`` instead, which costs less.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd.forward_ad import _set_fwd_grad_enabled
from torch.autograd.function import _SingleLevelFunction

from . import ops
from .onnx_export import exporting
from .ops import load_scan, take
from .problem import Cotangents, Scan
from .schema import BACKWARD, FORWARD, Nest, in_order, lib, named, needs_among
from .second import Asked, asked_of, is_limited_by_loop, second, tangent_of_gradients
from .surroundings import forward_levels, untraced, within_torch_func
from .tangents import Tangents, has_kernels, linearize

FORWARD_OP = torch.ops.rnnfast.scan_forward.default
BACKWARD_OP = torch.ops.rnnfast.scan_backward.default


def _below(op: Any, keyset: Any, args: Sequence[Any]) -> tuple[Tensor, ...]:
    """The results of the op below autograd, flat."""
    with (
        torch.enable_grad(),
        _set_fwd_grad_enabled(True),
        torch._C._AutoDispatchBelowAutograd(),
    ):
        found = op.redispatch(keyset & torch._C._after_autograd_keyset, *args)
    return tuple(one for part in found for one in (part if isinstance(part, list) else [part]))


def _check_forward_mode() -> None:
    """Within a jvp torch has forward mode off, at all levels: so nothing sees the tangents that the
    jvp is for, but neither those of a level of forward mode further out.

    Raises:
        NotImplementedError: there is one.
    """
    if forward_levels() > 1:
        raise NotImplementedError(
            "forward mode in forward mode has no rule for recurrent layers under a compiler: take "
            "the inner derivative by reverse mode (jacrev, vjp), or call it uncompiled"
        )


def _check_kernels(
    scan: Scan, along: Tangents, backend: str, clip: float = 0.0, of_loop: bool = False
) -> None:
    """The loop takes its own derivatives by torch.func, which within a jvp of an op's kernel can't
    be called. ``of_loop``: there are no kernels for what is asked for.

    Raises:
        NotImplementedError: the loop would have to run there.
    """
    if within_torch_func() and (of_loop or not has_kernels(scan, along, backend, clip)):
        raise NotImplementedError(
            "forward mode of recurrent layers under a compiler needs kernels for tangents, and "
            "there are none for these (with grad_clip_time none that are differentiated): take "
            "the derivative by reverse mode (jacrev, vjp), or call it uncompiled"
        )


class _Node(_SingleLevelFunction):
    """(keyset, how the tensors are nested, the tensors) -> the op's results, flat."""

    @classmethod
    def applied(cls, keyset: Any, args: Sequence[Any]) -> tuple[Nest, list[Tensor]]:
        nest = Nest(args)
        with enable_single_level_autograd_function():
            function: Any = cls
            return nest, list(function.apply(keyset, nest, *nest.taken_apart(args)))


class _Forward(_Node):
    @staticmethod
    def forward(keyset: Any, nest: Nest, *tensors: Any) -> tuple[Tensor, ...]:
        return _below(FORWARD_OP, keyset, nest.nested(tensors))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _, nest, *tensors = inputs
        args, ctx.nest = nest.nested(tensors), nest
        results = ops.results_of(args, output)
        ctx.mark_non_differentiable(*results[3])
        ctx.save_for_forward(*ops.set_forward(ctx, args, results))

    @staticmethod
    @untraced
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        wanted, own = ctx.nest.nested_alone(ctx.needs_input_grad[2:]), list(grads)
        (dy,), dfinal = take(own, 1), take(own, ctx.form.n_states)
        call = ops.backward_call(ctx, wanted, dy, dfinal, own[: ctx.counts[0]])
        found = torch.ops.rnnfast.scan_backward(*call.args)
        return None, None, *ctx.nest.taken_apart(call.as_forwards(found))

    @staticmethod
    def jvp(ctx: Any, _: None, __: None, *tangents: Any) -> tuple[Tensor | None, ...]:
        _check_forward_mode()
        scan, _rest = load_scan(ctx, ctx.saved_tensors)
        given = named(FORWARD, ctx.nest.nested_alone(tangents))
        along = Tangents(given["input"], given["states"], given["weights"])
        _check_kernels(scan, along, ctx.form.backend)
        made = linearize(scan, along, ctx.form.backend, torch.ops.rnnfast.scan_forward)
        y, final, trace = made.tangent
        return (y, *final, *trace, *(None for _ in range(ctx.counts[1])))


class _Backward(_Node):
    @staticmethod
    def forward(keyset: Any, nest: Nest, *tensors: Any) -> tuple[Tensor, ...]:
        return _below(BACKWARD_OP, keyset, nest.nested(tensors))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _, nest, *tensors = inputs
        args, ctx.nest = nest.nested(tensors), nest
        if not needs_among(named(BACKWARD, args)).input:
            ctx.mark_non_differentiable(output[0])  # it stands for none
        ctx.save_for_forward(*ops.set_backward(ctx, args, output))

    @staticmethod
    def _asked(ctx: Any) -> Asked:
        return asked_of(ctx, torch.ops.rnnfast.scan_forward, torch.ops.rnnfast.scan_backward)

    @staticmethod
    @untraced
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        asked = _Backward._asked(ctx)
        flags = named(BACKWARD, ctx.nest.nested_alone(ctx.needs_input_grad[2:]))
        made = second(asked, asked.tangents(grads), asked.wanted(flags))
        return None, None, *ctx.nest.taken_apart(in_order(BACKWARD, asked.by_name(made)))

    @staticmethod
    def jvp(ctx: Any, _: None, __: None, *tangents: Any) -> tuple[Any, ...]:
        _check_forward_mode()
        given = named(BACKWARD, ctx.nest.nested_alone(tangents))
        along = Tangents(given["input"], given["states"], given["weights"])
        cotangents = Cotangents(given["dy"], given["dfinal"], given["dtrace"])
        asked = _Backward._asked(ctx)._replace(inside=forward_levels())
        if not asked.needs.groups:  # whose scans have nodes of their own
            clip = asked.scan.options.grad_clip_time
            of_loop = is_limited_by_loop(asked, along, cotangents)
            _check_kernels(asked.scan, along, asked.backend, clip, of_loop)
        return tangent_of_gradients(asked, along, cotangents)


@untraced
def _forward_node(keyset: Any, args: Sequence[Any]) -> Any:
    nest, found = _Forward.applied(keyset, args)
    return ops.results_of(nest.nested(nest.taken_apart(args)), found)


@untraced
def _backward_node(keyset: Any, args: Sequence[Any]) -> Any:
    _, found = _Backward.applied(keyset, args)
    return ops.gradients_of(args, found)


def _forward_autograd(keyset: Any, *args: Any) -> Any:
    if exporting() or not ops.derivatives_of(args):
        return ops.record_forward(keyset, *args)
    return _forward_node(keyset, args)


def _backward_autograd(keyset: Any, *args: Any) -> Any:
    recorded = torch.is_grad_enabled() and torch._C._any_requires_grad(*args)
    if recorded or ops.derivatives_of(args):
        return _backward_node(keyset, args)
    with torch._C._AutoDispatchBelowAutograd():
        return BACKWARD_OP.redispatch(keyset & torch._C._after_autograd_keyset, *args)


lib.impl("scan_forward", _forward_autograd, "Autograd", with_keyset=True)
lib.impl("scan_backward", _backward_autograd, "Autograd", with_keyset=True)
