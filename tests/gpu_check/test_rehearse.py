"""The rehearsal's own logic; `make rehearse` itself takes too long for a test."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu_check import rehearse
from benchmarks.gpu_check.children import Finished

from ..build.support import ROOT

STOPPED = f"{rehearse.NO_GPU} (--dry-run needs none): Found no NVIDIA driver"


def parts(*words: str) -> list[rehearse.Part]:
    always = ["--torch", "2.11.0", "--python", "3.12"]
    return rehearse.parts(rehearse._parser().parse_args([*always, *words]), Path("logs"))


@pytest.mark.parametrize(
    ("code", "line", "wrong"),
    [
        (2, STOPPED, None),
        (0, STOPPED, "exit status 0"),
        (2, "gpu-check: nothing was measured: the extension was not built: x", "exit status 2"),
        (1, "Traceback", "exit status 1"),
        (None, STOPPED, "its time was up"),
    ],
)
def test_the_command_stops_for_want_of_a_gpu_alone(
    code: int | None, line: str, wrong: str | None
) -> None:
    told = rehearse.wants_a_gpu(Finished(code, f"$ first.py\n{line}\n"))
    assert told is None if wrong is None else told is not None and told.endswith(wrong)


def test_it_knows_the_words_of_the_check(tmp_path: Path) -> None:
    words = [sys.executable, rehearse.CHECK, "--out", str(tmp_path)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert rehearse.wants_a_gpu(Finished(done.returncode, done.stdout + done.stderr)) is None


def test_pytest_s_summary_names_what_failed() -> None:
    text = "FAILED tests/test_a.py::test_b[x y] - RuntimeError\nERROR tests/test_c.py\nFAILED\n"
    assert rehearse.failed(Finished(1, text)) == (
        "tests/test_a.py::test_b[x y] - RuntimeError",
        "tests/test_c.py",
    )


def test_what_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
    found = {part.name: part for part in parts()}
    assert list(found) == list(rehearse.PARTS)
    assert found["first"].words == ("python3", rehearse.CHECK)
    assert found["as-if"].words[2:4] == ("--as-if", "9.0")
    assert found["as-if"].words[-1] == "logs/as-if"
    assert found["tests"].words[-4:] == ("-n", "3", "--tier", "quick")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    every = parts("--tier", "all", "--arch", "none")
    assert [part.name for part in every] == ["first", "build", "dry-run", "tests"]
    assert "-n" not in every[-1].words
    assert [part.name for part in parts("--parts", "triton")] == ["triton"]
    with pytest.raises(SystemExit):
        parts("--parts", "tests,xyz")


def test_a_python_is_found_by_its_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert rehearse.find_python("/some/python") == "/some/python"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    place = tmp_path / "versions" / f"{version}.99" / "bin"
    place.mkdir(parents=True)
    (place / "python").symlink_to(sys.executable)
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert rehearse.find_python(version) == str(place / "python")
    with pytest.raises(rehearse.NotPrepared, match=r"no Python 3\.1, of python3\.1"):
        rehearse.find_python("3.1")


def test_the_copy_is_what_a_checkout_has(tmp_path: Path) -> None:
    root, to = tmp_path / "root", tmp_path / "to"
    (root / "deep").mkdir(parents=True)
    for name in (".gitignore", "gone", "deep/script", "new", "built.so"):
        (root / name).write_text("*.so\n")
    (root / "deep" / "script").chmod(0o755)
    git = ("git", "-C", str(root))
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", ".gitignore", "gone", "deep"], check=True)
    (root / "gone").unlink()
    rehearse.copy_tree(root, to)
    names = sorted(str(path.relative_to(to)) for path in to.rglob("*") if path.is_file())
    assert names == [".gitignore", "deep/script", "new"]
    assert os.access(to / "deep" / "script", os.X_OK)
    with pytest.raises(rehearse.NotPrepared, match="git does not list the tree"):
        rehearse.copy_tree(to, tmp_path / "more")


PLANTED = """
import sys
from benchmarks.gpu_check import rehearse as r
look = (
    "import os, socket, sys; print(sorted(os.environ)); print(os.getcwd(), sys.executable);"
    "s = socket.create_server(('127.0.0.1', 0)); socket.create_connection(s.getsockname());"
    "print(os.path.exists('.git'), os.path.exists('.venv'), 'ends')"
)
r.parts = lambda *_: [
    r.Part("look", ("python", "-c", look), r.clean),
    r.Part("bad", ("sh", "-c", "MADE; echo FAILED tests/x.py::y; exit 3"), r.clean, builds=True),
    r.Part("after", ("true",), r.clean),
]
sys.exit(r.main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("made", "goes_on"), [("touch rnnfast/_C.so", True), ("touch rnnfast/_C.o", False)]
)
def test_a_rehearsal_of_planted_parts(made: str, goes_on: bool, tmp_path: Path) -> None:
    if subprocess.run(["git", "-C", str(ROOT), "rev-parse"], capture_output=True).returncode != 0:
        pytest.skip("needs a checkout: it copies what git has")
    environment, out = tmp_path / "env", tmp_path / "out"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    words = ["--torch", "2", "--python", "3", "--environment", str(environment), "--out", str(out)]
    done = subprocess.run(
        [sys.executable, "-c", PLANTED.replace("MADE", made), *words],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "SECRET": "1", "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stderr
    page = (out / "summary.md").read_text()
    assert done.stdout.endswith(f"{page}\n{out}\n")
    assert "| look | ok |" in page
    assert "| bad | exit status 3 |" in page
    assert "- bad: x.py" not in page
    assert "- bad: tests/x.py::y" in page
    assert ("| after | ok |" in page) is goes_on
    seen = (out / "look.txt").read_text()
    for name in ("SECRET", "PYTHONPATH", "VIRTUAL_ENV"):
        assert f"'{name}'" not in seen
    assert "'PIP_NO_INDEX'" in seen
    assert str(environment) in seen
    assert "False False ends" in seen
    assert not list(tmp_path.glob("rnnfast-rehearse-*"))  # cleared away


def test_what_can_t_be_prepared_ends_it(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["--torch", "2.11.0", "--python", "3.1", "--out", str(tmp_path / "out")]
    assert rehearse.main(words) == 2
    assert "rehearse: nothing was rehearsed: no Python 3.1" in capfd.readouterr().err
