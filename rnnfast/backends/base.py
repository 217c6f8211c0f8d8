"""What a backend is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..autodiff import differentiate, recording
from ..cells import CellSpec
from ..cells.masked import MaskedCell
from ..problem import (
    Cotangents,
    Gradients,
    Needs,
    Problem,
    Saved,
    Scan,
    ScanResult,
    Stack,
    StackResult,
    wide,
)

TensorLike = tuple[tuple[int, ...], torch.dtype]  # shape and dtype of a tensor to come


class Call(NamedTuple):
    """How layers on top of one another are called: ``directions`` of each, with ``dropout`` between
    them, of ``packed`` data."""

    directions: int
    dropout: bool
    packed: bool


class WholeLayer:
    """A layer of one direction of a dense input, in calls that need not be prepared. States are
    [1, B, ...], or there are none: they are zeros. Weights are those of ``CellSpec.weight_names``.
    """

    def forward(
        self, x: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor], training: bool
    ) -> tuple[Tensor, Sequence[Tensor], Sequence[Tensor | None]]:
        """Of x [T, B, I] (y, the last states, what ``gradients`` is given as ``saved``)."""
        raise NotImplementedError

    def gradients(
        self,
        needs: Needs,
        x: Tensor,
        states: Sequence[Tensor],
        weights: Sequence[Tensor],
        y: Tensor,
        saved: Sequence[Tensor | None],
        dy: Tensor | None,
        dlast: Sequence[Tensor | None],
    ) -> tuple[Tensor | None, Sequence[Tensor], Sequence[Tensor]]:
        """Those of x, of the first states (without the 1) and of the weights, which have no meaning
        unless ``needs`` names them. Of the last states and y None is zeros."""
        raise NotImplementedError

    def to_save(self, scan: Scan, saved: Sequence[Tensor | None]) -> list[Tensor]:
        """What the backend saves of such a scan."""
        raise NotImplementedError


class Backend:
    """Computes scans. Stateless; everything is told by the scan.

    Attributes:
        name: what ``use_backend`` and ``RNNFAST_BACKEND`` call it.
        composite: made of differentiable torch calls. Eager code then calls ``run`` and leaves the
            graph to torch; under a tracer it hides behind the op like every other.
        paired: is better given both directions of a layer at once (``forward_all``), which eager
            code then does.
        takes_whole: may take layers on top of one another in one go.
    """

    name: str = ""
    composite: bool = False
    paired: bool = False
    takes_whole: bool = False

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

    def forward_over(self, scan: Scan) -> tuple[ScanResult, list[Tensor]]:
        """``forward``, which may write over the scan's input: nobody reads that any more."""
        return self.forward(scan)

    def backward(self, scan: Scan, saved: Saved, cotangents: Cotangents, needs: Needs) -> Gradients:
        raise NotImplementedError

    def whole_layer(self, problem: Problem) -> WholeLayer | None:
        """What computes a layer of one direction like ``problem`` in calls that need not be
        prepared, if there is such a thing."""
        return None

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

    def forward_members(self, scans: Sequence[Scan]) -> list[tuple[ScanResult, list[Tensor]]]:
        """``forward`` of the members of an ensemble: scans alike but for their tensors."""
        return [self.forward(scan) for scan in scans]

    def backward_members(
        self,
        scans: Sequence[Scan],
        saved: Sequence[Saved],
        cotangents: Sequence[Cotangents],
        needs: Sequence[Needs],
    ) -> list[Gradients]:
        """``backward`` of them."""
        each = zip(scans, saved, cotangents, needs, strict=True)
        return [self.backward(*one) for one in each]

    def why_not_whole(self, problems: Sequence[Problem], call: Call) -> str | None:
        """Where ``takes_whole``: why it can't run these layers on top of one another in one go, or
        None. ``problems``: of each layer and direction, bottom to top."""
        raise NotImplementedError

    def whole_strategy(self, problems: Sequence[Problem], call: Call) -> str:
        """How the layers follow one another, for ``explain``; empty where there is no more to say
        than that they do."""
        return ""

    def run_whole(
        self,
        stack: Stack,
        input: Tensor,
        hx: Sequence[Tensor],
        problem: Problem,
        batch_sizes: Tensor | None,
    ) -> StackResult:
        """Composite backends: all layers, as they are called: under autocast, of ``input`` as the
        stack lays it out, or packed with ``batch_sizes``. ``problem``: of the first."""
        raise NotImplementedError

    def forward_whole(self, scans: Sequence[Scan]) -> list[tuple[ScanResult, list[Tensor]]]:
        """``forward`` of layers on top of one another, bottom to top. The ``input`` of all but the
        first is not read: it is the output of the layer below."""
        raise NotImplementedError

    def backward_whole(
        self,
        scans: Sequence[Scan],
        saved: Sequence[Saved],
        cotangents: Sequence[Cotangents],
        needs: Sequence[Needs],
    ) -> list[Gradients]:
        """``backward`` of what ``forward_whole`` ran; ``dy`` is the top layer's, the others' is
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
        if needs.groups:
            return self._backward_of_groups(scan, saved, cotangents, needs)
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

    def _backward_of_groups(
        self, scan: Scan, saved: Saved, cotangents: Cotangents, needs: Needs
    ) -> Gradients:
        """One part of the batch after the other."""
        size, wanted = scan.input.shape[1] // needs.groups, needs._replace(groups=0)
        found = []
        for group in range(needs.groups):
            at = slice(group * size, (group + 1) * size)
            own = scan._replace(
                input=scan.input[:, at],
                states=[s[at] for s in scan.states],
                lengths=None if scan.lengths is None else scan.lengths[at],
                resets=None if scan.resets is None else scan.resets[:, at],
            )
            dy, dfinal, dtrace = cotangents
            incoming = Cotangents(
                None if dy is None else dy[:, at],
                [d[at] for d in dfinal],
                [None if d is None else d[:, at] for d in dtrace],
            )
            found.append(self.backward(own, saved, incoming, wanted))
        dinput, dstates, dweights = zip(*found, strict=True)
        return Gradients(
            torch.cat(dinput, 1) if needs.input else None,
            [torch.cat(each) for each in zip(*dstates, strict=True)] if needs.states else None,
            [torch.stack(each) for each in zip(*dweights, strict=True)] if needs.weights else None,
        )


class KernelBackend(Backend):
    """A backend with kernels of its own for the loop.

    What they save has names: "gates", the cell's further saved value, and the cell state.

    Attributes:
        wide_cells: the cell states are saved in the wide dtype, not as they are returned.
    """

    wide_cells: bool = True

    def saved_apart(self, spec: CellSpec) -> str | None:
        """The cell's further saved value, where it is not among the gates' memory."""
        return spec.extra

    def saved_names(self, spec: CellSpec, dtype: torch.dtype, all_states: bool) -> list[str]:
        """What forward saves when training, beside its outputs."""
        names = ["gates"] if spec.saves_gates else []
        if (apart := self.saved_apart(spec)) is not None:
            names.append(apart)
        is_output = all_states and (dtype == wide(dtype) or not self.wide_cells)
        return names if is_output else [*names, *spec.states[1:]]

    def saved_as(self, name: str, problem: Problem) -> TensorLike:
        """Shape and dtype of what is saved under this name."""
        raise NotImplementedError

    def saved_like(self, problem: Problem) -> list[TensorLike]:
        names = self.saved_names(problem.spec, problem.dtype, problem.options.all_states)
        return [self.saved_as(name, problem) for name in names]

    def to_save(self, scan: Scan, made: Mapping[str | None, Tensor | None]) -> list[Tensor]:
        """Of what the kernels made, by name, what is saved."""
        found = []
        for name in self._names(scan) if scan.options.training else ():
            tensor = made[name]
            assert tensor is not None, name
            found.append(tensor)
        return found

    def kept(self, scan: Scan, saved: Saved) -> dict[str | None, Tensor]:
        """What ``to_save`` chose, by name; and the states that were an output."""
        found: dict[str | None, Tensor] = {}
        found.update(zip(scan.spec.states[1:], saved.trace, strict=False))
        found.update(zip(self._names(scan), saved.extra, strict=True))
        return found

    def _names(self, scan: Scan) -> list[str]:
        return self.saved_names(scan.spec, scan.weights[0].dtype, scan.options.all_states)


def _leaf(tensor: Tensor, wanted: bool) -> Tensor:
    return tensor.detach().requires_grad_(wanted)


def why_not_own(problem: Problem) -> str | None:
    """The reason of a backend whose kernels are written by hand, a cell each."""
    if isinstance(problem.spec, MaskedCell):
        return f"its kernels have no masks (for {', '.join(problem.spec.masks)})"
    if problem.spec.own:
        return "it has kernels for the built-in cells only, not for cells of one's own"
    return None


def why_not_limited(problem: Problem) -> str | None:
    """Why a GPU's kernels can't limit gradients in time: those of tangents have rules of their own
    (time_clip.handed)."""
    if problem.options.grad_clip_time != 0 and problem.spec.tangents:
        return "its kernels have no derivative of a backward with grad_clip_time"
    return None


def why_no_kernel(problem: Problem, device: str, dtypes: Sequence[torch.dtype]) -> str | None:
    """The reasons that kernels of our own share."""
    if problem.device != device:
        return f"it computes on {device} tensors only, not on {problem.device}"
    if problem.dtype not in dtypes:
        return f"it has no kernel for {problem.dtype}"
    if problem.transformed and problem.recorded:
        return "in a trace its kernels have no rules for derivatives by torch.func"
    return None
