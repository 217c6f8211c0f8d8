"""Which backend takes a problem. ``auto`` asks them in order; a name asks that one and no other.

A name comes from ``RNNFAST_BACKEND`` for the process, from ``use_backend`` for a block.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch.torch_version import TorchVersion

from ..problem import Problem
from .base import Backend
from .checkpointed import checkpointed
from .cpu import Cpu
from .cuda import Cuda
from .preference import order
from .reference import Reference
from .torch_native import TorchNative
from .triton import Triton

AUTO = "auto"

BACKENDS: dict[str, Backend] = {
    b.name: b for b in (TorchNative(), Cpu(), Cuda(), Triton(), Reference())
}


class BackendError(RuntimeError):
    """A backend that was asked for by name can't take the problem; the text says why."""


def check_name(name: str) -> None:
    """Raises ValueError unless ``name`` is ``"auto"`` or a backend's."""
    if name != AUTO and name not in BACKENDS:
        known = ", ".join([AUTO, *BACKENDS])
        raise ValueError(f"no backend is called {name!r}; there are: {known}")


def candidates(problem: Problem) -> list[Backend]:
    """Every backend, in the order in which ``auto`` asks them."""
    return [BACKENDS[name] for name in order(problem).names]


def refusal(backend: Backend, problem: Problem) -> str | None:
    """Why ``backend`` can't take ``problem``, or None."""
    return backend.unusable() or backend.why_not(problem)


def select(problem: Problem, requested: str = AUTO) -> Backend:
    """The backend for ``problem``.

    Raises:
        ValueError: no backend is called ``requested``.
        BackendError: the one that was asked for by name, or with ``"auto"`` every one, refuses.
    """
    if requested == AUTO:
        for backend in candidates(problem):
            if refusal(backend, problem) is None:
                return checkpointed(backend, problem)
        reasons = "; ".join(f"{b.name}: {refusal(b, problem)}" for b in BACKENDS.values())
        raise BackendError(f"no backend can take this problem ({reasons})")
    check_name(requested)
    reason = refusal(BACKENDS[requested], problem)
    if reason is not None:
        raise BackendError(f"backend {requested!r} can't take this problem: {reason}")
    return named(requested, problem)


def named(name: str, problem: Problem) -> Backend:
    """The backend of this name as ``problem`` asks for it; it was chosen before."""
    return checkpointed(BACKENDS[name], problem)


def status() -> list[tuple[str, bool, str]]:
    """(name, usable, reason) of every backend in this process."""
    rows = []
    for backend in BACKENDS.values():
        reason = backend.unusable()
        rows.append((backend.name, reason is None, reason or ""))
    return rows


# --- which is asked for ----------------------------------------------------------------------

_requested: ContextVar[str] = ContextVar("rnnfast_backend", default="")
_default = os.environ.get("RNNFAST_BACKEND", "") or AUTO

# the same for a compiler that can't read it: of the thread, not of its async tasks
_of_thread = threading.local()
_COMPILER_READS_CONTEXT = TorchVersion(torch.__version__) >= "2.14"


def requested_backend() -> str:
    """The name asked for here: by ``use_backend``, else ``RNNFAST_BACKEND``, else ``"auto"``."""
    if not _COMPILER_READS_CONTEXT and torch.compiler.is_compiling():
        return getattr(_of_thread, "name", "") or _default
    return _requested.get() or _default


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Asks for a backend by name within a ``with`` block (in this thread and its async tasks only).

    Args:
        name: ``"auto"`` or a name that ``python -m rnnfast doctor`` lists. A backend asked for by
            name raises :class:`rnnfast.BackendError` with its reason where it can't take a problem;
            only ``"auto"`` moves on to the next.

    Raises:
        ValueError: no backend has this name.
    """
    check_name(name)
    token, before = _requested.set(name), getattr(_of_thread, "name", "")
    _of_thread.name = name
    try:
        yield
    finally:
        _requested.reset(token)
        _of_thread.name = before
