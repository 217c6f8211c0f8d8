"""For processes without Python, or without rnnfast: where the library of our ops is
(docs/deployment.md)."""

from __future__ import annotations

from pathlib import Path

from . import _ext

_LIBRARY = Path(__file__).resolve().parent / "librnnfast.so"


def library() -> Path:
    """The path of ``librnnfast.so``. A process that loads it, with torch 2.11 or later, has the op
    ``rnnfast::scan_forward`` that exported programs call: on the CPU and, where
    ``librnnfast_cuda.so`` lies beside it, on NVIDIA GPUs, for the built-in cells. Both know nothing
    of Python.

    Raises:
        RuntimeError: it was not built; with the reason.
    """
    if (missing := why_missing()) is not None:
        raise RuntimeError(missing)
    return _LIBRARY


def why_missing() -> str | None:
    """Why there is no library and which command mends it; None where there is one."""
    if _LIBRARY.is_file():
        return None
    record = _ext.build_record()
    if record is not None and not record["built"]:
        return f"librnnfast.so was not built, for: {record['reason']}; then {_ext.REBUILD}"
    return f"librnnfast.so is not built; {_ext.REBUILD}"
