"""What a backend is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..autodiff import differentiate, recording
from ..problem import Problem, Scan, ScanResult

TensorLike = tuple[tuple[int, ...], torch.dtype]  # shape and dtype of a tensor to come


class Cotangents(NamedTuple):
    """Gradients of the outputs of a scan: dy [T, B, P] or None (zero), the rest as the outputs."""

    dy: Tensor | None
    dfinal: list[Tensor]
    dtrace: list[Tensor]


class Saved(NamedTuple):
    """What forward left for backward: its outputs, and what the backend saved beside them."""

    y: Tensor
    trace: list[Tensor]
    extra: list[Tensor]


class Gradients(NamedTuple):
    """Gradients of the inputs of a scan; None where not needed."""

    dinput: Tensor | None
    dstates: list[Tensor] | None
    dweights: list[Tensor] | None


class Needs(NamedTuple):
    """Which gradients are wanted."""

    input: bool
    states: bool
    weights: bool


class Backend:
    """Computes scans. Stateless; everything is told by the scan.

    Attributes:
        name: what ``use_backend`` and ``RNNFAST_BACKEND`` call it.
        composite: made of differentiable torch calls. Eager code then calls ``run`` and leaves the
            graph to torch; under a tracer it hides behind the op like every other.
        paired: is better given both directions of a layer at once (``forward_all``), which eager
            code then does.
    """

    name: str = ""
    composite: bool = False
    paired: bool = False

    def unusable(self) -> str | None:
        """Why this backend can take nothing at all in this process, or None."""
        return None

    def why_not(self, problem: Problem) -> str | None:
        """Why this backend can't take ``problem``, or None if it can. Looks at metadata only."""
        raise NotImplementedError

    def strategy(self, problem: Problem) -> str:
        """How it would compute ``problem``, for ``explain``."""
        raise NotImplementedError

    def run(self, scan: Scan) -> ScanResult:
        """Composite backends: the scan by differentiable torch calls."""
        raise NotImplementedError

    def saved_like(self, problem: Problem) -> list[TensorLike]:
        """Shapes and dtypes of what ``forward`` saves beside its outputs when training."""
        raise NotImplementedError

    def forward(self, scan: Scan) -> tuple[ScanResult, list[Tensor]]:
        """The outputs, and what ``saved_like`` announced (nothing unless training)."""
        raise NotImplementedError

    def backward(self, scan: Scan, saved: Saved, cotangents: Cotangents, needs: Needs) -> Gradients:
        raise NotImplementedError

    def forward_all(self, scans: Sequence[Scan]) -> list[tuple[ScanResult, list[Tensor]]]:
        """``forward`` of the directions of a layer: scans alike but for tensors and ``reverse``."""
        return [self.forward(scan) for scan in scans]

    def backward_all(
        self,
        scans: Sequence[Scan],
        saved: Sequence[Saved],
        cotangents: Sequence[Cotangents],
        needs: Sequence[Needs],
    ) -> list[Gradients]:
        """``backward`` of the directions of a layer."""
        each = zip(scans, saved, cotangents, needs, strict=True)
        return [self.backward(*one) for one in each]

    def pipeline_steps(self) -> int:
        """The steps of a part if layers on top of one another are to be pipelined, else 0."""
        return 0

    def why_not_pipelined(
        self, problems: Sequence[Problem], steps: int, dropout: bool
    ) -> str | None:
        """Why layers of these problems, one direction each, bottom to top, can't be; or None."""
        return "this backend runs them one after the other"

    def forward_stack(
        self, scans: Sequence[Scan], steps: int
    ) -> list[tuple[ScanResult, list[Tensor]]]:
        """``forward`` of layers on top of one another, bottom to top. The ``input`` of all but the
        first is not read: it is the output of the layer below."""
        raise NotImplementedError

    def backward_stack(
        self,
        scans: Sequence[Scan],
        saved: Sequence[Saved],
        cotangents: Sequence[Cotangents],
        needs: Sequence[Needs],
        steps: int,
    ) -> list[Gradients]:
        """``backward`` of what ``forward_stack`` ran; ``dy`` is the top layer's, the others' is
        what the layer above sends down."""
        found: list[Gradients] = []  # top to bottom
        dy = cotangents[-1].dy
        for level in reversed(range(len(scans))):
            own = cotangents[level]._replace(dy=dy)
            found.append(self.backward(scans[level], saved[level], own, needs[level]))
            dy = found[-1].dinput
        return found[::-1]


class CompositeBackend(Backend):
    """A backend that only has ``run``; its op saves nothing and runs forward anew in backward."""

    composite = True

    def saved_like(self, problem: Problem) -> list[TensorLike]:
        return []

    def forward(self, scan: Scan) -> tuple[ScanResult, list[Tensor]]:
        with torch.no_grad():
            return self.run(scan), []

    def backward(self, scan: Scan, saved: Saved, cotangents: Cotangents, needs: Needs) -> Gradients:
        with recording():
            own = scan._replace(
                input=_leaf(scan.input, needs.input),
                states=[_leaf(s, needs.states) for s in scan.states],
                weights=[_leaf(w, needs.weights) for w in scan.weights],
            )
            y, final, trace = self.run(own)
            outputs = [*final, *trace]
            incoming = [*cotangents.dfinal, *cotangents.dtrace]
            if cotangents.dy is not None:
                outputs.append(y)
                incoming.append(cotangents.dy)
            primals = [own.input, *own.states, *own.weights]
            found = differentiate(outputs, primals, incoming)
        grads = [
            torch.zeros_like(p) if g is None else g for p, g in zip(primals, found, strict=False)
        ]
        first_weight = 1 + len(own.states)
        return Gradients(
            grads[0] if needs.input else None,
            grads[1:first_weight] if needs.states else None,
            grads[first_weight:] if needs.weights else None,
        )


def _leaf(tensor: Tensor, wanted: bool) -> Tensor:
    return tensor.detach().requires_grad_(wanted)


def reserved(problem: Problem, grad_clip_time: bool = False) -> str | None:
    """The reason of a backend that lacks an option; ``grad_clip_time``: it has this one."""
    if problem.options.grad_clip_time != 0 and not grad_clip_time:
        return "grad_clip_time is not supported"
    return None
