"""rnnfast.library: generated C++ compiled once, kept, checked and loaded, whatever goes wrong."""

from __future__ import annotations

import ctypes
import errno
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rnnfast import _ext, library
from rnnfast._build import host
from rnnfast.library import LibraryError, compiler, entries

ROOT = Path(__file__).resolve().parents[1]
GXX = host.find_compiler(names=compiler.NAMES)[0]
needs_compiler = pytest.mark.skipif(
    GXX is None or _ext.why_missing() is not None, reason="no compiler, or no extension"
)
pytestmark = needs_compiler

SOURCE = """
#include "cpu/vec.h"
#define RNNFAST_EXPORT extern "C" __attribute__((visibility("default")))
using V = rnnfast::cpu::RNNFAST_ISA::Vec<float>;
RNNFAST_EXPORT void add(const float* a, const float* b, float* c, long n) {
  for (long i = 0; i < n; i += V::kLanes)
    (V::load(a + i, n - i) + V::load(b + i, n - i)).store(c + i, n - i);
}
RNNFAST_EXPORT int lanes() { return V::kLanes; }
"""
NAME = "cells.py:adds"
SETTINGS = "torch._inductor.config"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of the entries, not there yet; the library as a new process finds it."""
    monkeypatch.setenv("RNNFAST_CACHE", str(tmp_path / "cache"))
    for name in ("RNNFAST_COMPILE", "RNNFAST_COMPILE_SECONDS"):
        monkeypatch.delenv(name, raising=False)
    assert GXX is not None
    use(monkeypatch, " ".join(GXX.command))
    library.forget()
    yield tmp_path / "cache" / "cells"
    library.forget()


def use(monkeypatch: pytest.MonkeyPatch, command: object) -> None:
    """The compiler, as if nobody had imported torch's settings, which other tests do."""
    monkeypatch.setenv("CXX", str(command))
    monkeypatch.delitem(sys.modules, SETTINGS, raising=False)
    library.forget()


def script(monkeypatch: pytest.MonkeyPatch, folder: Path, body: str) -> Path:
    """A compiler that writes a line into ``folder/calls`` each time and then does ``body``, where
    $REAL is the real one and $out the file to be made. Returns the file of calls."""
    assert GXX is not None
    path, calls = folder / "compiler", folder / "calls"
    real = " ".join(GXX.command)
    path.write_text(
        f'#!/bin/sh\nREAL="{real}"\n[ "$1" = --version ] && echo fake 1.0 && exit\n'
        f"echo called >> {calls}\n"
        f'for word; do [ "$last" = -o ] && out=$word; last=$word; done\n{body}\n'
    )
    path.chmod(0o755)
    calls.write_text("")
    use(monkeypatch, path)
    return calls


def count(calls: Path) -> int:
    return len(calls.read_text().splitlines())


def adds(lib: ctypes.CDLL) -> bool:
    a, b, c = torch.randn(37), torch.randn(37), torch.full((37,), torch.nan)
    pointers = [ctypes.c_void_p(x.data_ptr()) for x in (a, b, c)]
    lib.add(*pointers, ctypes.c_long(37))
    return torch.equal(c, a + b)


def left(cache: Path) -> list[str]:
    """What is in the folder beside entries."""
    return [p.name for p in cache.iterdir() if p.suffix != ".so"]


def one(cache: Path) -> Path:
    (entry,) = cache.glob("*.so")
    return entry


def fails(source: str = SOURCE) -> str:
    with pytest.raises(LibraryError) as caught:
        library.load(source, name=NAME)
    return str(caught.value)


# --- all is well ---------------------------------------------------------------------------------


def test_it_is_compiled_once_and_found_again(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = script(monkeypatch, tmp_path, 'exec $REAL "$@"')
    assert library.why_not() is None
    assert library.status(SOURCE) == "not compiled yet"
    lib = library.load(SOURCE, name=NAME)
    assert adds(lib)
    assert library.load(SOURCE, name=NAME) is lib
    assert library.status(SOURCE) == f"cached at {one(cache)}"
    assert one(cache).name.startswith("cells.py_adds-")
    assert left(cache) == []
    library.forget()
    assert library.status(SOURCE) == f"cached at {one(cache)}"
    assert adds(library.load(SOURCE, name="another name"))
    assert count(calls) == 1


def test_what_it_is_made_of_is_another_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {compiler.key(SOURCE), compiler.key(SOURCE + " ")}
    include = shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    with monkeypatch.context() as patch:
        patch.setattr(compiler, "include_folder", lambda: include)
        library.forget()
        assert compiler.key(SOURCE) in keys  # the same text elsewhere
        panel = '#include "cpu/panel.h"\n'  # which includes cpu/vec.h
        before = compiler.key(panel)
        with (include / "cpu/vec.h").open("a") as file:
            file.write("// another\n")
        keys |= {compiler.key(SOURCE), before, compiler.key(panel)}
        monkeypatch.setattr(compiler, "__version__", "0.0.0")
        keys.add(compiler.key(SOURCE))
        patch.setattr(compiler, "FLAGS", ("-O0", *compiler.FLAGS))
        library.forget()
        keys.add(compiler.key(SOURCE))
    assert len({key.code for key in keys}) == 7
    script(monkeypatch, tmp_path, "exit 1")
    first = compiler.key(SOURCE)
    os.utime(tmp_path / "compiler", (1, 1))
    library.forget()
    assert compiler.key(SOURCE).code == first.code
    assert compiler.key(SOURCE).compiler != first.compiler


def test_another_instruction_set_is_another_entry(cache: Path) -> None:
    lanes = {"avx512": 16, "avx2": 8, "baseline": 4}
    module = _ext.load()
    assert module is not None
    assert library.load(SOURCE, name=NAME).lanes() == lanes[module.cpu_isa()]
    code = (
        "import sys; from rnnfast import library\n"
        "print(library.load(sys.argv[1], name='a').lanes())"
    )
    env = {**os.environ, "RNNFAST_CPU_CAPABILITY": "baseline", "PYTHONPATH": str(ROOT)}
    found = subprocess.check_output([sys.executable, "-c", code, SOURCE], env=env, text=True)
    assert int(found) == 4
    assert len([*cache.glob("*.so")]) == (1 if module.cpu_isa() == "baseline" else 2)


def test_a_forked_process_uses_it_and_compiles_more() -> None:
    lib = library.load(SOURCE, name=NAME)
    library._lock.acquire()  # as another thread would have it at the moment of the fork
    try:
        pid = os.fork()
        if pid == 0:
            fine = adds(lib) and adds(library.load(SOURCE + "// more", name=NAME))
            os._exit(0 if fine else 1)
    finally:
        library._lock.release()
    assert os.waitpid(pid, 0)[1] == 0


# --- what is kept is broken ----------------------------------------------------------------------


@pytest.mark.parametrize("how", ["cut off", "empty", "a bit", "no mark", "not ours"])
def test_a_broken_entry_is_seen_and_made_again_once(
    how: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = script(monkeypatch, tmp_path, 'exec $REAL "$@"')
    library.load(SOURCE, name=NAME)
    path = one(cache)
    good = path.read_bytes()
    middle = len(good) // 2
    bad = {
        "cut off": good[:middle],
        "empty": b"",
        "a bit": good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :],
        "no mark": good[: -entries._TAIL],
        "not ours": good,
    }[how]
    path.unlink()  # it stays loaded: it must not be written over
    path.write_bytes(bad)
    path.chmod(0o666 if how == "not ours" else 0o755)
    library.forget()
    assert library.status(SOURCE) == "not compiled yet"
    assert adds(library.load(SOURCE, name=NAME))
    assert path.read_bytes()[: -entries._TAIL]
    assert entries.is_intact(path)
    assert count(calls) == 2
    assert left(cache) == []


def test_one_that_the_loader_refuses_is_made_again_once(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = script(monkeypatch, tmp_path, 'exec $REAL "$@"')
    library.load(SOURCE, name=NAME)
    library.forget()
    real, opened = ctypes.CDLL, []

    def picky(path: str) -> ctypes.CDLL:
        opened.append(path)
        if len(opened) <= refusals:
            raise OSError("version `GLIBC_9.99' not found")
        return real(path)

    monkeypatch.setattr(ctypes, "CDLL", picky)
    refusals = 1
    assert adds(library.load(SOURCE, name=NAME))
    assert (count(calls), len(opened)) == (2, 2)
    library.forget()
    refusals = 99
    message = fails()
    assert "was compiled and does not load: version `GLIBC_9.99'" in message
    assert fails() == message
    assert (count(calls), len(opened)) == (3, 4)


# --- the compiler --------------------------------------------------------------------------------


def test_what_the_compiler_says_comes_through_and_is_not_asked_again(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = script(monkeypatch, tmp_path, 'exec $REAL "$@"')
    wrong = SOURCE + "int f() { return undeclared; }\n"
    message = fails(wrong)
    first = message.splitlines()[0]
    assert first == (
        f"cell {NAME!r} can't be compiled: {tmp_path / 'compiler'} ended with status 1"
    )
    assert "cell.cpp:" in message
    assert "undeclared" in message
    assert str(cache) not in message
    assert len(message.splitlines()) <= 21
    assert library.status(wrong) == f"failed: {first}"
    assert fails(wrong) == message
    assert count(calls) == 1
    assert [*cache.iterdir()] == []


@pytest.mark.parametrize("how", ["kill -9 $$", "echo 'fatal error: Killed signal' >&2; exit 1"])
def test_a_killed_compiler_is_run_once_more(
    how: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flag = tmp_path / "was here"
    body = f'echo half > "$out"; [ -e "{flag}" ] || {{ touch "{flag}"; {how}; }}; exec $REAL "$@"'
    calls = script(monkeypatch, tmp_path, body)
    assert adds(library.load(SOURCE, name=NAME))
    assert count(calls) == 2
    calls = script(monkeypatch, tmp_path, how)
    again = SOURCE + "//"
    assert "was killed, twice" in fails(again)
    assert count(calls) == 2
    assert left(cache) == []
    assert library.status(again) == "not compiled yet"  # there may be more memory later
    script(monkeypatch, tmp_path, 'exec $REAL "$@"')
    assert adds(library.load(again, name=NAME))


def test_a_compiler_that_hangs_is_ended_with_all_that_it_started(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = tmp_path / "child"
    script(monkeypatch, tmp_path, f"sleep 600 & echo $! > {child}; wait")
    monkeypatch.setenv("RNNFAST_COMPILE_SECONDS", "0.5")
    assert "took longer than 0.5 s (RNNFAST_COMPILE_SECONDS)" in fails()
    assert left(cache) == []
    pid = int(child.read_text())
    end = time.monotonic() + 10
    while is_alive(pid) and time.monotonic() < end:
        time.sleep(0.01)
    assert not is_alive(pid)


def is_alive(pid: int) -> bool:
    """False for one that ended and that nobody has waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("bad", ["soon", "0", "-1", "inf", "nan"])
def test_the_limit_is_a_number(bad: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RNNFAST_COMPILE_SECONDS", bad)
    assert f"RNNFAST_COMPILE_SECONDS should be a number > 0, got: {bad}" in fails()


def test_no_compiler(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, "/no/such/compiler")
    assert library.why_not() == "no C++ compiler (CXX=/no/such/compiler does not run)"
    assert "can't be compiled here: no C++ compiler" in fails()
    assert not cache.exists()  # nothing is made for nothing
    script(monkeypatch, tmp_path, "")
    assert library.why_not() is None
    (tmp_path / "compiler").unlink()
    assert f"No such file or directory: '{tmp_path / 'compiler'}'" in fails()
    use(monkeypatch, "")
    monkeypatch.setenv("PATH", str(tmp_path))
    library.forget()
    assert library.why_not() == "no C++ compiler (no g++, clang++ or c++ on PATH)"


def test_which_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "of the environment")
    assert compiler.asked() == "of the environment"
    for named in ("/set", ("/set", "another"), (None, "/set")):
        settings = SimpleNamespace(cpp=SimpleNamespace(cxx=named))
        monkeypatch.setitem(sys.modules, SETTINGS, settings)  # type: ignore[arg-type]
        assert compiler.asked() == "/set"
    settings.cpp.cxx = (None, "g++")
    assert compiler.asked() is None
    monkeypatch.delitem(sys.modules, SETTINGS)
    monkeypatch.delenv("CXX")
    assert compiler.asked() is None


def test_torch_would_use_the_same_compiler() -> None:
    """Whose rule is repeated, since importing it takes long."""
    from torch._inductor import config, cpp_builder

    try:
        torchs = cpp_builder.get_cpp_compiler()
    except torch._inductor.exc.InvalidCxxCompiler:
        pytest.skip("torch finds no compiler")
    sys.modules[SETTINGS] = config  # the fixture takes it out
    assert torchs == (compiler.asked() or compiler.NAMES[0])


def test_what_is_kept_needs_no_compiler(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in an image that was made where there is one."""
    library.load(SOURCE, name=NAME)
    use(monkeypatch, "/no/such/compiler")
    assert library.why_not() is not None
    assert library.why_not(SOURCE) is None
    assert library.why_not(SOURCE + "//") is not None
    assert adds(library.load(SOURCE, name=NAME))
    monkeypatch.setenv("RNNFAST_COMPILE", "0")
    library.forget()
    assert library.why_not() == "RNNFAST_COMPILE=0 forbids it"
    assert adds(library.load(SOURCE, name=NAME))
    assert "RNNFAST_COMPILE=0 forbids it" in fails(SOURCE + "//")


def test_without_headers_or_extension(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(compiler, "include_folder", lambda: None)
        library.forget()
        assert str(library.why_not()).startswith("the C++ headers are missing")
    monkeypatch.setattr(_ext, "load", lambda: None)
    monkeypatch.setattr(_ext, "why_missing", lambda: "the extension is not built")
    library.forget()
    assert library.why_not() == "the extension is not built"
    assert library.status(SOURCE) == "not compiled yet"
    assert fails().endswith("the extension is not built")


# --- the folder ----------------------------------------------------------------------------------


def test_a_folder_that_cant_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RNNFAST_CACHE", str(tmp_path / "file" / "below"))
    assert str(library.why_not()).endswith("cells can't be written")
    assert "can't be written" in fails()


def test_a_folder_that_is_read_only(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept is used; the system's answers are planted, since to root all is writable."""
    library.load(SOURCE, name=NAME)
    library.forget()
    more, may = SOURCE + "//", os.access
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda path, mode: not mode & os.W_OK and may(path, mode))
        assert library.why_not() == f"the cache folder {cache} can't be written"
        assert library.why_not(SOURCE) is None
        assert adds(library.load(SOURCE, name=NAME))
        assert "can't be written" in fails(more)
    library.forget()

    opened = Path.open

    def refuse(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if "w" in mode:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return opened(path, mode, *args, **kwargs)

    assert library.why_not() is None
    monkeypatch.setattr(Path, "open", refuse)  # it became so after it was asked
    assert f"can't be kept in {cache}: [Errno {errno.EROFS}]" in fails(more)


def test_no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", nobody)
    assert library.why_not() == library.why_not(SOURCE) == "Could not determine home directory."
    assert library.status(SOURCE) == "not compiled yet"
    assert fails().endswith("Could not determine home directory.")


@pytest.mark.parametrize("where", ["a write", "the compiler", "the mark"])
def test_a_full_disk_leaves_nothing_and_is_no_lasting_failure(
    where: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **kwargs: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        if where == "the compiler":
            body = "echo half > $out; echo 'a: No space left on device' >&2; exit 1"
            script(patch, tmp_path, body)
            assert "found the disk full" in fails()
        else:
            patch.setattr(
                *((entries, "seal", full) if where == "the mark" else (Path, "write_text", full))
            )
            assert "No space left on device" in fails()
        assert [*cache.iterdir()] == []
    library.forget()
    assert adds(library.load(SOURCE, name=NAME))


def test_half_a_library_is_seen_though_the_compiler_ended_well(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(monkeypatch, tmp_path, '$REAL "$@" && truncate -s -100 "$out"')
    assert "left half a library" in fails()
    assert [*cache.iterdir()] == []


@pytest.mark.parametrize("which", ["the folder", "the one above"])
def test_a_folder_that_others_can_write_into_is_refused(which: str, cache: Path) -> None:
    library.load(SOURCE, name=NAME)
    library.forget()
    folder = cache if which == "the folder" else cache.parent
    folder.chmod(0o777)
    expected = f"others can write into the cache folder {folder} (mode 777; chmod go-w)"
    assert library.why_not() == library.why_not(SOURCE) == expected
    assert fails().endswith(expected)
    assert library.status(SOURCE) == "not compiled yet"
    folder.chmod(0o775)
    library.forget()
    assert (library.why_not() is None) is (which == "the one above")
    folder.chmod(0o1777)
    library.forget()
    assert (library.why_not() is None) is (which == "the one above")


def test_a_folder_of_somebody_else_is_refused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library.load(SOURCE, name=NAME)
    library.forget()
    owner = cache.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    if owner != 0:  # root's is everybody's
        assert f"belongs to another user (uid {owner})" in fails()
        return
    assert library.why_not() is None
    os.chown(cache, 12345, -1)
    library.forget()
    expected = f"the cache folder {cache} belongs to another user (uid 12345)"
    assert library.why_not() == expected
    assert fails().endswith(expected)


def test_it_is_made_for_its_owner_alone_whatever_the_umask(cache: Path) -> None:
    before = os.umask(0)
    try:
        assert adds(library.load(SOURCE, name=NAME))
    finally:
        os.umask(before)
    assert [oct(p.stat().st_mode & 0o777) for p in (cache, one(cache))] == ["0o755", "0o755"]
    library.forget()
    assert library.why_not(SOURCE) is None


# --- several processes ---------------------------------------------------------------------------


def _load_and_say(told: Any) -> None:
    library.forget()
    try:
        told.put(adds(library.load(SOURCE, name=NAME)))
    except BaseException as error:
        told.put(repr(error))


def test_two_at_once_compile_once(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = script(monkeypatch, tmp_path, 'sleep 0.5; exec $REAL "$@"')
    fork = multiprocessing.get_context("fork")
    told = fork.Queue()
    workers = [fork.Process(target=_load_and_say, args=(told,)) for _ in range(3)]
    for worker in workers:
        worker.start()
    assert [told.get(timeout=100) for _ in workers] == [True] * 3
    for worker in workers:
        worker.join()
    assert count(calls) == 1
    assert left(cache) == []


def test_one_that_is_killed_while_it_compiles_holds_nobody_up(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flag = tmp_path / "was here"
    body = f'[ -e "{flag}" ] || {{ touch "{flag}"; sleep 3; exit 1; }}; exec $REAL "$@"'
    calls = script(monkeypatch, tmp_path, body)
    fork = multiprocessing.get_context("fork")
    worker = fork.Process(target=_load_and_say, args=(fork.Queue(),))
    worker.start()
    while not count(calls):
        time.sleep(0.01)
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    assert [p.suffix for p in cache.iterdir() if p.is_file()] == [".lock"]
    assert adds(library.load(SOURCE, name=NAME))
    (stale,) = cache.glob("work-*")
    assert left(cache) == [stale.name]  # the lock's file is deleted by the one that had the lock
    os.utime(stale, (1, 1))
    library.load(SOURCE + "//", name=NAME)
    assert left(cache) == []


def test_a_lock_that_is_never_freed_is_waited_for_only_so_long(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entries.Lock, "taken", lambda self: False)
    now = iter(range(0, 100_000, 100))
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    assert adds(library.load(SOURCE, name=NAME))
