"""Which backend is asked for: ``RNNFAST_BACKEND`` for the process, ``use_backend`` for a block."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch.torch_version import TorchVersion

AUTO = "auto"

_requested: ContextVar[str] = ContextVar("rnnfast_backend", default="")
_default = os.environ.get("RNNFAST_BACKEND", "") or AUTO


# the same for a compiler that can't read it: of the thread, not of its async tasks
_of_thread = threading.local()
_COMPILER_READS_CONTEXT = TorchVersion(torch.__version__) >= "2.12"


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
    from .backends import registry

    registry.check_name(name)
    token, before = _requested.set(name), getattr(_of_thread, "name", "")
    _of_thread.name = name
    try:
        yield
    finally:
        _requested.reset(token)
        _of_thread.name = before
