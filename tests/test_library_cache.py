"""rnnfast.library: the folder that it keeps libraries in, and several processes at it."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rnnfast import library
from rnnfast.library import entries

from .library_cases import (
    NAME,
    SOURCE,
    adds,
    count,
    fails,
    fresh,
    left,
    needs_compiler,
    one,
    script,
)

pytestmark = needs_compiler


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with fresh(tmp_path, monkeypatch) as folder:
        yield folder


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
    (stale,) = cache.glob(f"{entries.WORK}*")
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
