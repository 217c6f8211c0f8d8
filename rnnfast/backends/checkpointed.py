"""``checkpoint_every``: any backend, its scan cut into segments that backward runs again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..problem import Cotangents, Gradients, Needs, Problem, Saved, Scan, ScanResult
from ..rules import cut_lengths
from .base import Backend, Call, TensorLike


def checkpointed(backend: Backend, problem: Problem) -> Backend:
    """``backend`` as ``problem`` asks for it: itself, or with the states kept at times only.

    A scan that fits into one segment is left as it is: it saves no more than a segment does.
    """
    every = problem.options.checkpoint_every
    if every == 0 or not problem.options.training or problem.T <= every:
        return backend
    return Checkpointed(backend, every)


class Checkpointed(Backend):
    """``inner``, whose forward saves only the states that every ``every`` steps begin with.

    Backward goes over the segments in the opposite order. It runs each one's forward anew from the
    state kept, this time saving what ``inner`` saves, then its backward, and sums the gradients of
    the weights. So at most one segment's gates exist at a time.

    A 16-bit scan passes its state on between segments in its own dtype.
    """

    def __init__(self, inner: Backend, every: int) -> None:
        self.inner, self.every = inner, every
        self.name = inner.name

    def why_not(self, problem: Problem) -> str | None:
        return self.inner.why_not(problem)

    def strategy(self, problem: Problem) -> str:
        how = self.inner.strategy(_whole(problem))
        return f"{how}; states kept each {self.every} steps, segments run anew in backward"

    def whole_strategy(self, problems: Sequence[Problem], call: Call) -> str:
        asked = self.inner.whole_strategy(problems, call)
        return "not pipelined: checkpoint_every cuts the steps already" if asked else ""

    def run(self, scan: Scan) -> ScanResult:
        """Under a transform: at once, for torch to keep what it wants."""
        return self.inner.run(scan)

    def saved_like(self, problem: Problem) -> list[TensorLike]:
        borders = (problem.T - 1) // self.every
        widths = problem.spec.state_widths(problem.P, problem.H)
        return [((borders, problem.B, width), problem.dtype) for width in widths]

    def forward(self, scan: Scan) -> tuple[ScanResult, list[Tensor]]:
        y: list[Tensor] = []
        trace: list[list[Tensor]] = []
        begins: list[list[Tensor]] = []
        states = scan.states
        for segment in _segments(scan, self.every):
            begins.append(states)
            result, _ = self.inner.forward(segment.of(scan, states, training=False))
            y.append(result.y)
            trace.append(result.trace)
            states = result.final
        if scan.options.reverse:
            y.reverse()
            trace.reverse()
        joined = [torch.cat(pieces) for pieces in zip(*trace, strict=True)]
        saved: list[Tensor] = []
        if scan.options.training:  # the first segment begins with the scan's own states
            saved = [torch.stack(series) for series in zip(*begins[1:], strict=True)]
        return ScanResult(torch.cat(y), states, joined), saved

    def backward(self, scan: Scan, saved: Saved, cotangents: Cotangents, needs: Needs) -> Gradients:
        begins = [scan.states, *(list(s) for s in zip(*saved.extra, strict=True))]
        dstates: list[Tensor] | None = cotangents.dfinal
        dinput: list[Tensor] = []
        dweights = _Sums()
        segments = _segments(scan, self.every)
        for segment, states in zip(reversed(segments), reversed(begins), strict=True):
            assert dstates is not None
            at = segment.steps
            incoming = Cotangents(
                None if cotangents.dy is None else cotangents.dy[at],
                dstates,
                [None if d is None else d[at] for d in cotangents.dtrace],
            )
            own = segment.of(scan, states, training=True)
            wanted = needs._replace(states=needs.states or segment is not segments[0])
            grads = self.inner.backward(own, self._again(own), incoming, wanted)
            dstates = grads.dstates
            if grads.dinput is not None:
                dinput.append(grads.dinput)
            dweights.add(grads.dweights)
        if not scan.options.reverse:
            dinput.reverse()
        return Gradients(
            torch.cat(dinput) if needs.input else None,
            dstates if needs.states else None,
            dweights.rounded(scan.weights) if needs.weights else None,
        )

    def _again(self, own: Scan) -> Saved:
        if self.inner.composite:  # its backward runs forward itself and looks at nothing else
            return Saved(own.input, [], [])
        (y, _, trace), extra = self.inner.forward(own)
        return Saved(y, trace, extra)


class _Segment(NamedTuple):
    """Steps of a scan, and the lengths within them."""

    steps: slice
    lengths: Tensor | None

    def of(self, scan: Scan, states: list[Tensor], training: bool) -> Scan:
        """These steps of ``scan`` as a scan of their own."""
        return scan._replace(
            input=scan.input[self.steps],
            states=states,
            lengths=self.lengths,
            resets=None if scan.resets is None else scan.resets[self.steps],
            options=scan.options._replace(training=training, checkpoint_every=0),
        )


def _segments(scan: Scan, every: int) -> list[_Segment]:
    """In the order in which the scan goes over them."""
    T = scan.input.shape[0]
    lengths = cut_lengths(scan.lengths, T, every)
    found = [
        _Segment(slice(start, min(start + every, T)), own)
        for start, own in zip(range(0, T, every), lengths, strict=True)
    ]
    return found[::-1] if scan.options.reverse else found


class _Sums:
    """Sums of lists of gradients; of 16-bit ones in float32."""

    def __init__(self) -> None:
        self.total: list[Tensor] = []

    def add(self, grads: list[Tensor] | None) -> None:
        if grads is None:
            return
        if not self.total:
            self.total = [g.float() if g.dtype.itemsize == 2 else g.clone() for g in grads]
        else:
            for total, grad in zip(self.total, grads, strict=True):
                total.add_(grad)

    def rounded(self, like: list[Tensor]) -> list[Tensor]:
        return [t.to(w.dtype) for t, w in zip(self.total, like, strict=False)]  # Needs.leading


def _whole(problem: Problem) -> Problem:
    return problem._replace(options=problem.options._replace(checkpoint_every=0))
