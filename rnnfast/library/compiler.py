"""Which compiler, with which flags and headers; running it, with a limit of time.

What is compiled for has a name: ``HOST``, C++ for the instruction set in use, or an architecture of
GPUs (sm_90), CUDA C++.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch

from .. import _ext
from .._build import host, ninja_file
from .._version import __version__
from . import cuda, entries
from .entries import Key

HOST = "host"
FLAGS = (
    "-O3", "-DNDEBUG", "-std=c++17", "-shared", "-fPIC", "-fvisibility=hidden",
    "-fno-math-errno",  # nobody reads errno, and a square root is then one instruction
)  # fmt: skip
NAMES = ("g++", "clang++", "c++")  # torch.compile's default first
_SECONDS = 300.0
_LINES = 20  # of the compiler's messages, in an error
_PACKAGE = Path(__file__).resolve().parents[1]
_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*"([^"\n]+)"', re.MULTILINE)


class LibraryError(RuntimeError):
    """Why generated C++ can't be compiled, kept or loaded. ``lasting``: it would fail again."""

    def __init__(self, message: str, lasting: bool = False) -> None:
        super().__init__(message)
        self.lasting = lasting


class Recipe(NamedTuple):
    """What every source is compiled with here."""

    include: Path
    isa: str
    flags: tuple[str, ...]
    libraries: tuple[str, ...] = ()
    suffix: str = "cpp"


def include_folder() -> Path | None:
    """Where the headers are: in the installed package, else csrc of a source checkout."""
    for folder in (_PACKAGE / "_csrc", _PACKAGE.parent / "csrc"):
        if (folder / "cpu" / "vec.h").is_file():
            return folder
    return None


def asked() -> str | None:
    """The compiler that torch.compile would be asked to use, None for its default.

    The rule of torch 2.11 to 2.15, without importing torch._inductor, which takes seconds: its
    setting ``cpp.cxx`` where somebody has imported it, else CXX.
    """
    config = getattr(sys.modules.get("torch._inductor.config"), "cpp", None)
    named = getattr(config, "cxx", None)
    names = named if isinstance(named, (list, tuple)) else [named]
    found = next((name for name in names if name), None) or os.environ.get("CXX")
    return None if found == NAMES[0] else found


@functools.lru_cache(maxsize=8)
def why_not(
    target: str, compiler: str | None, switch: str | None, *place: str | None
) -> str | None:
    """Why nothing can be compiled; the arguments are what the answer depends on."""
    if switch == "0":
        return "RNNFAST_COMPILE=0 forbids it"
    problem = why_not_even_load(target) or _command(target)[1]
    return problem or entries.why_not_writable(entries.folder())


def why_not_even_load(target: str = HOST) -> str | None:
    """Why what is kept is of no use either: no extension, no headers, a bad setting, a folder that
    is not there or not safe."""
    try:
        recipe(target)
        return entries.refused(entries.folder())
    except RuntimeError as error:  # LibraryError, or the system knows no home folder
        return str(error)


@functools.cache
def recipe(target: str = HOST) -> Recipe:
    """Raises LibraryError."""
    module = _ext.cpu()
    if module is None:
        raise LibraryError(str(_ext.why_no_cpu()))
    include = include_folder()
    if include is None:
        raise LibraryError(f"the C++ headers are missing beside {_PACKAGE}")
    if target != HOST:
        return Recipe(include, target, cuda.flags(target), cuda.libraries(), "cu")
    try:
        isa = str(module.cpu_isa())
    except RuntimeError as error:  # RNNFAST_CPU_CAPABILITY
        raise LibraryError(str(error)) from None
    wanted = include / "cpu" / f"kernels_{isa}.cpp"
    own = dict(ninja_file.find_sources(include, with_cuda=False).core)[wanted]
    width = re.search(r"RNNFAST_VECTOR_BYTES (\d+)", wanted.read_text())
    assert width is not None
    defines = (f"-DRNNFAST_ISA={isa}", f"-DRNNFAST_VECTOR_BYTES={width[1]}")
    return Recipe(include, isa, (*FLAGS, *defines, *own))


def limit() -> float:
    """The seconds that a compiler may take."""
    text = os.environ.get("RNNFAST_COMPILE_SECONDS")
    try:
        seconds = float(text) if text else _SECONDS
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise LibraryError(f"RNNFAST_COMPILE_SECONDS should be a number > 0, got: {text}")
    return seconds


def key(source: str, target: str = HOST) -> Key:
    """What ``source`` is kept by."""
    found = recipe(target)
    made_of = [source, found.isa, found.flags, platform.machine(), __version__, entries.FORMAT]
    if target != HOST:  # what it is linked with
        made_of += [torch.version.cuda, [Path(name).name for name in cuda.libraries()]]
    code = hashlib.sha256(json.dumps([*made_of, _headers(source, found.include)]).encode())
    if target == HOST:
        compiler = _identity(asked(), os.environ.get("PATH"))
    else:
        compiler = cuda.identity(*_cuda_places())
    return Key(code.hexdigest()[:32], compiler)


def _cuda_places() -> list[str | None]:
    return [os.environ.get("PATH"), os.environ.get("CUDA_HOME")]


def _command(target: str) -> tuple[tuple[str, ...] | None, str]:
    """The compiler, or None and why."""
    if target != HOST:
        return cuda.command(*_cuda_places())
    found, why = _found(asked(), os.environ.get("PATH"))
    return None if found is None else found.command, why


def build(source: str, target: str, name: str, folder: Path, place: Path) -> ctypes.CDLL:
    """Compiles ``source``, loads it, and makes it the entry ``place``, all of it or nothing.

    It is loaded first: what can't be is no entry, and nobody can take the entry away in between.

    Raises:
        LibraryError: the compiler failed, or the loader. OSError: a file could not be written.
    """
    compiler, _ = _command(target)
    assert compiler is not None  # why_not was asked
    work = Path(tempfile.mkdtemp(prefix=entries.WORK, dir=folder))
    try:
        found, made = recipe(target), work / "cell.so"
        written = work / f"cell.{found.suffix}"
        written.write_text(source, encoding="utf-8")
        command = [*compiler, *found.flags, f"-I{found.include}"]
        command += ["-o", str(made), str(written), *found.libraries]
        _compile(command, work, name)
        entries.seal(made)
        opened = _open(made, name)
        os.replace(made, place)
        return opened
    except ValueError as error:
        raise LibraryError(f"cell {name!r} can't be compiled: {error}") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)


def forget() -> None:
    """What was found out about compilers and folders."""
    for remembered in (why_not, recipe, _found, _identity):
        remembered.cache_clear()
    cuda.forget()


def _open(made: Path, name: str) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(made))
    except OSError as error:
        message = f"cell {name!r} was compiled and does not load: {error}"
        raise LibraryError(message, lasting=True) from None


def _compile(command: list[str], work: Path, name: str) -> None:
    """Raises LibraryError. A compiler that was killed, for want of memory say, is run once more."""
    for _ in range(2):
        status, said = _run(command, work, name)
        if status == 0:
            return
        killed = status < 0 or re.search(r"error: .*\bKilled\b", said) is not None
        if not killed:
            break
    full = "No space left on device" in said
    what = "was killed, twice" if killed else f"ended with status {status}"
    what = "found the disk full" if full else what
    last = "\n".join(said.replace(f"{work}/", "").splitlines()[-_LINES:])
    message = f"cell {name!r} can't be compiled: {command[0]} {what}\n{last}".strip()
    raise LibraryError(message, lasting=not (killed or full))


def _run(command: list[str], work: Path, name: str) -> tuple[int, str]:
    """Its exit status and messages. Nothing of it is alive when this ends, however it ends."""
    # Messages into a file: a server that a launcher started would hold a pipe open.
    with (work / "messages").open("w+", errors="replace") as messages:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=messages,
                stderr=messages,
                env={**os.environ, "TMPDIR": str(work), "LC_ALL": "C"},
                start_new_session=True,
            )
        except OSError as error:
            raise LibraryError(f"cell {name!r} can't be compiled: {error}") from error
        try:
            status = process.wait(limit())
        except subprocess.TimeoutExpired:
            message = (
                f"cell {name!r} can't be compiled: {command[0]} took longer than {limit():g} s "
                "(RNNFAST_COMPILE_SECONDS)"
            )
            raise LibraryError(message, lasting=True) from None
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        messages.seek(0)
        return status, messages.read()


@functools.lru_cache(maxsize=8)
def _found(compiler: str | None, path: str | None) -> tuple[host.Compiler | None, str]:
    """The compiler, or None and why."""
    try:
        return host.find_compiler({**os.environ, "CXX": compiler or ""}, NAMES)
    except ValueError as error:
        return None, f"no C++ compiler (CXX={compiler}: {error})"


@functools.lru_cache(maxsize=8)
def _identity(compiler: str | None, search: str | None) -> str:
    """A digest of the command and of the files that the compiler and a launcher before it are.

    It is not asked for its version: to run it takes longer than to load what is kept.
    """
    words = compiler.split() if compiler else [name for name in NAMES if shutil.which(name)][:1]
    made_of: list[object] = [words]
    for word in words:
        path = shutil.which(word)
        if path is not None:
            facts = os.stat(path)
            made_of.append([os.path.realpath(path), facts.st_mtime_ns, facts.st_size])
    return hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:16]


def _headers(source: str, include: Path) -> dict[str, str]:
    """Every header of ours that ``source`` includes, itself or through others, with its text."""
    found: dict[str, str] = {}
    texts = [source]
    while texts:
        for name in _INCLUDE.findall(texts.pop()):
            path = include / name
            if name not in found and path.is_file():
                found[name] = path.read_text(encoding="utf-8")
                texts.append(found[name])
    return dict(sorted(found.items()))
