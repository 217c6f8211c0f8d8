"""Work that runs side by side on a device: lanes, each of which keeps its order."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import TracebackType
from typing import Any

import torch

Mark = Any  # what ``run`` returns: the end of a task


class Lanes:
    """``with Lanes(n) as lanes``: what stands before the block has ended for every lane, and what
    stands behind it waits for all of them, also where the block raises."""

    def __enter__(self) -> Lanes:
        raise NotImplementedError

    def run(self, lane: int, task: Callable[[], None], after: Mark | None) -> Mark:
        """Runs ``task`` behind all that was given to this lane, and behind ``after``."""
        raise NotImplementedError

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        raise NotImplementedError


class Streams(Lanes):
    """A CUDA stream each, forked off the device's current one and joined to it, without the host
    waiting.

    What tasks of several lanes use, and what is used behind the block, is allocated before it, on
    the current stream. A capture of the current stream captures the lanes too.
    """

    def __init__(self, lanes: int, device: torch.device) -> None:
        self.main = torch.cuda.current_stream(device)
        self.streams = [_stream(self.main.device, lane) for lane in range(lanes)]

    def __enter__(self) -> Streams:
        begin = self.main.record_event()
        for stream in self.streams:
            stream.wait_event(begin)
        return self

    def run(self, lane: int, task: Callable[[], None], after: Mark | None) -> Mark:
        stream = self.streams[lane]
        if after is not None:
            stream.wait_event(after)
        with torch.cuda.stream(stream):
            task()
        return stream.record_event()

    def __exit__(self, *_: object) -> None:
        for stream in self.streams:
            self.main.wait_event(stream.record_event())


@functools.cache
def _stream(device: torch.device, lane: int) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
