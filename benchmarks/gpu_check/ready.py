"""What must be so before anything is measured: a device, and kernels for it of this checkout."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import sys
import sysconfig
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from .. import table
from . import rates
from .children import Command, Finished, run, run_all
from .results import BUILD, MOST
from .stages import OK, Context, Deadline, Outcome, Result

ROOT = Path(__file__).resolve().parents[2]
PROBE = 90.0  # seconds at most; a first import of torch from a cold disk takes most of them
BUILD_SHARE = 0.65  # of what is left


class NotReady(Exception):
    """Nothing can be measured; the text says why, and what to do."""


class Ready(NamedTuple):
    facts: Mapping[str, Any]  # of the machine
    build: list[Result]  # the first line of the summary
    compiled: bool = False


def make(context: Context, deadline: Deadline) -> Ready:
    """Finds a build that was carried here and serves, else compiles one. Raises NotReady."""
    began = deadline.clock()
    found = _probe(context, min(PROBE, deadline.left()))
    if context.dry_run:
        return Ready(found, [])
    carried = found["unusable"] is None
    if not carried and context.prebuilt:
        raise NotReady(f"the extension can't be used: {found['unusable']}")
    if not carried or (not rates.is_built() and not context.prebuilt):
        _build(context, found, deadline.left() * BUILD_SHARE)
    if not carried:
        why = found["unusable"]
        found = _probe(context, min(PROBE, deadline.left()))
        if found["unusable"] is not None:
            raise NotReady(f"the new extension can't be used either: {found['unusable']}")
    line = "the extension was there" if carried else f"compiled, since {why}"
    if not rates.is_built():
        line += "; no program of the rates"
    seconds = deadline.clock() - began
    result = Result("build", Outcome(OK, line), seconds, seconds + deadline.left())
    return Ready(found, [result], compiled=not carried)


def _probe(context: Context, seconds: float) -> dict[str, Any]:
    path = context.folder / "probe.json"
    path.unlink(missing_ok=True)
    words = context.python("benchmarks.gpu_check.probe", str(path), "--device", context.device)
    words += ("--as-if", context.as_if) if context.as_if else ()
    done = run(Command(words, context.folder / "probe.txt"), seconds)
    if not path.is_file():
        raise NotReady(f"{sys.executable} can't look at the device: {_why(done)}")
    found: dict[str, Any] = json.loads(path.read_text())
    if "no_device" in found:
        raise NotReady(f"this torch sees no GPU (--dry-run needs none): {found['no_device']}")
    if found["foreign"] is not None:
        raise NotReady(f"the rnnfast that is imported is not this checkout's: {found['foreign']}")
    return found


def _why(done: Finished) -> str:
    return "its time was up" if done.code is None else f"{done.last_line} (exit {done.code})"


def _build(context: Context, found: Mapping[str, Any], seconds: float) -> None:
    """For the device's own architecture, with all cores; raises NotReady where the extension fails.
    Without the program of the rates there is a check, too."""
    arch = found["gpu"]["capability"]
    environment = {
        "RNNFAST_CUDA": "1",
        "TORCH_CUDA_ARCH_LIST": arch,
        "RNNFAST_DEBUG": "0",
        "MAX_JOBS": str(context.cores),
    }
    program = context.python("benchmarks.gpu_check.programs", "--arch", arch)
    commands = [Command(program, context.folder / "build-rates.txt")]
    if found["unusable"] is not None:
        words = (sys.executable, "setup.py", "-q", "build_ext", "--inplace")
        commands.append(Command(words, context.folder / "build.txt", environment))
    done = run_all(commands, seconds, at_once=2)
    log = _ninja_log()
    if log.is_file():  # the seconds of each source
        shutil.copy(log, context.folder / "ninja_log.txt")
    if len(done) > 1 and done[1].code != 0:
        raise NotReady(f"the extension was not built: {_why(done[1])}")


def _ninja_log() -> Path:
    return ROOT / "build" / f"ext{sysconfig.get_config_var('EXT_SUFFIX')}" / ".ninja_log"


def keep_build(folder: Path) -> None:
    """build.zip: unpacked in the checkout's root, it spares the next machine of the kind the
    build. Not where it is too large, or can't be written."""
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    libraries = (f"_C{suffix}", "_cpu.abi3.so", "librnnfast.so", "librnnfast_cuda.so")
    names = [f"rnnfast/{name}" for name in (*libraries, "_build_info.json")]
    names += [str(path.relative_to(ROOT)) for path in (rates.PROGRAM, rates.STAMP)]
    packed = io.BytesIO()
    with contextlib.suppress(OSError):
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in names:
                if (ROOT / name).is_file():
                    archive.write(ROOT / name, name)
        if packed.tell() <= MOST:
            table.write_bytes(folder / BUILD, packed.getvalue())
