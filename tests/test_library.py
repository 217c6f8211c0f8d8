"""rnnfast.library: generated C++ compiled once, checked and loaded, whatever the compiler does."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from rnnfast import _ext, library
from rnnfast.library import compiler, entries

from .library_cases import (
    NAME,
    ROOT,
    SETTINGS,
    SOURCE,
    adds,
    count,
    fails,
    fresh,
    left,
    needs_compiler,
    one,
    script,
    use,
)

pytestmark = needs_compiler


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with fresh(tmp_path, monkeypatch) as folder:
        yield folder


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
    assert one(cache).name.startswith("work_cells.py_adds-")
    assert left(cache) == []
    library.forget()
    monkeypatch.setattr(subprocess, "Popen", None)  # not even for the compiler's version
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
    module = _ext.cpu()
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
    lib, more = library.load(SOURCE, name=NAME), SOURCE + "// more"
    # as another thread would have it at the moment of the fork
    with library._locks.setdefault((more, library.HOST), threading.Lock()):
        pid = os.fork()
        if pid == 0:
            fine = adds(lib) and adds(library.load(more, name=NAME))
            os._exit(0 if fine else 1)
    assert os.waitpid(pid, 0)[1] == 0


def test_who_has_one_does_not_wait_for_another_ones_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does one that is compiled; two threads that want the same compile it once."""
    go, slow, other = tmp_path / "go", SOURCE + "// slow", SOURCE + "// other"
    waits = f'grep -q "// slow" "$last" && until [ -e {go} ]; do sleep 0.01; done'
    calls = script(monkeypatch, tmp_path, f'{waits}; exec $REAL "$@"')
    library.load(SOURCE, name=NAME)
    library.forget()  # it is kept
    with ThreadPoolExecutor(3) as threads:
        try:
            twice = [threads.submit(library.load, slow, name=NAME) for _ in range(2)]
            while count(calls) < 2:
                time.sleep(0.01)
            assert adds(threads.submit(library.load, SOURCE, name=NAME).result(timeout=60))
            assert adds(threads.submit(library.load, other, name=NAME).result(timeout=60))
            assert not any(one.done() for one in twice)
        finally:
            go.touch()
        assert twice[0].result() is twice[1].result()
    assert count(calls) == 3


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
    use(monkeypatch, "g++ 'a")
    assert library.why_not() == "no C++ compiler (CXX=g++ 'a: No closing quotation)"
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
    monkeypatch.setattr(_ext, "cpu", lambda: None)
    monkeypatch.setattr(_ext, "why_no_cpu", lambda: "the extension is not built")
    library.forget()
    assert library.why_not() == "the extension is not built"
    assert library.status(SOURCE) == "not compiled yet"
    assert fails().endswith("the extension is not built")
