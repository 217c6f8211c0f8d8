"""`python -m rnnfast compile`: compiles a cell of one's own before it is first used."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import itertools
import re
import sys
import time
from collections.abc import Sequence

import torch

from . import library
from .cells import CELLS, CellSpec
from .cells.own import OwnCell

DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16)
}


class BadCall(ValueError):
    """Arguments that mean nothing."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; its exit status: 1 where something can't be compiled, with the reason."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.cell is None and not (args.list or args.clear):
        parser.error("which cell? such as mymodule:mycell")
    if any(re.fullmatch(r"sm_\d+[af]?", arch) is None for arch in args.gpu):
        parser.error("--gpu takes architectures, such as sm_90")
    if any(size < 1 for size in args.hidden):
        parser.error("--hidden should be 1 or more")
    try:
        if args.list or args.clear:
            return _list() if args.list else _clear()
        spec = _find(args.cell, dict(map(_setting, args.set)))
        return _compile(spec, args.hidden, args.dtype, args.gpu or [library.HOST])
    except BadCall as error:
        parser.error(str(error))
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        print(f"rnnfast compile: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m rnnfast compile",
        description="Compiles a cell of one's own for the instruction set in use, or for GPUs, "
        "into the cache folder, so that no process has to compile it at its first call.",
    )
    made.add_argument("cell", nargs="?", help="where it is defined: module:cell")
    made.add_argument(
        "--hidden", type=int, nargs="+", default=[256], metavar="H", help="sizes (default 256)"
    )
    made.add_argument(
        "--dtype", choices=list(DTYPES), nargs="+", default=["float32"], help="default float32"
    )
    made.add_argument(
        "--gpu",
        nargs="+",
        default=[],
        metavar="sm_90",
        help="for GPUs of these architectures instead",
    )
    made.add_argument(
        "--set", action="append", default=[], metavar="NAME=N", help="a setting of the cell"
    )
    what = made.add_mutually_exclusive_group()
    what.add_argument("--list", action="store_true", help="print what is kept, compile nothing")
    what.add_argument("--clear", action="store_true", help="delete what is kept")
    return made


def _find(where: str, settings: dict[str, int]) -> OwnCell:
    """Raises BadCall; what the module itself raises comes through."""
    module, colon, name = where.partition(":")
    if not (module and colon and name):
        own = CELLS.get(where)
        raise BadCall(
            f"{where} is built in: there is nothing to compile"
            if own is not None
            else f"expected module:cell, got: {where}"
        )
    if importlib.util.find_spec(module.partition(".")[0]) is None:
        raise BadCall(f"there is no module {module} (looked for in this folder, too)")
    found: object = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    if not isinstance(found, OwnCell):
        what = "a built-in cell" if isinstance(found, CellSpec) else type(found).__name__
        what = "there is none" if found is None else f"it is {what}"
        raise BadCall(f"{where} should be a cell made by rnnfast.cell; {what}")
    try:
        return found.with_settings(**settings) if settings else found
    except TypeError as error:
        raise BadCall(str(error)) from None


def _setting(text: str) -> tuple[str, int]:
    name, _, number = text.partition("=")
    if not (name and number.isdecimal()):
        raise BadCall(f"--set takes NAME=NUMBER, got: {text}")
    return name, int(number)


def _compile(
    spec: CellSpec, hidden: Sequence[int], dtypes: Sequence[str], targets: Sequence[str]
) -> int:
    for target in targets:
        problem = library.why_not(target=target)
        if problem is not None:
            raise library.LibraryError(f"nothing can be compiled here: {problem}")
    ahead = importlib.import_module("rnnfast.steps").compile_ahead
    before = {entry.path for entry in library.listed()}
    for target, dtype, size in itertools.product(targets, dtypes, hidden):
        begin = time.perf_counter()
        ahead(spec, size, DTYPES[dtype], target)
        made = [entry for entry in library.listed() if entry.path not in before]
        before |= {entry.path for entry in made}
        took = f"{time.perf_counter() - begin:.1f} s"
        what = f"compiled in {took}" if made else "was there already"
        where = "" if target == library.HOST else f" {target}"
        print(f"{spec.name} H{size} {dtype}{where}: {what}", flush=True)
        print("".join(f"  {entry.path}\n" for entry in made), end="")
    return 0


def _list() -> int:
    found = library.listed()
    for entry in found:
        print(f"{entry.bytes / 1024:8.0f} KiB  {_age(entry.seconds):>8}  {entry.path}")
    print(f"{len(found)} compiled, {sum(e.bytes for e in found) / 2**20:.1f} MiB")
    return 0


def _clear() -> int:
    found = library.clear()
    print(f"deleted {len(found)} compiled cells" if found else "nothing is kept")
    return 0


def _age(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
