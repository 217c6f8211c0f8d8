"""`make rehearse TORCH=2.11.0 PYTHON=3.12`: the first quarter of an hour of a machine with a GPU,
on one without: in a new environment of that Python and torch and of little else, with a copy of
the tree as a checkout has it, and after the preparation without an index and without a network.

docs/gpu-check.md says what it runs. It needs a Python from 3.10 and no torch:
`python3 -m benchmarks.gpu_check.rehearse --torch 2.11.0 --python 3.12`.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from .children import Command, Finished, end_orphans, run

ROOT = Path(__file__).resolve().parents[2]
# What the image of the first machine has beside torch, as far as anything here asks for it.
IMAGE = (
    "setuptools", "ninja", "pybind11", "cmake", "numpy", "matplotlib", "tqdm",
    "pytest", "pytest-xdist", "hypothesis",
)  # fmt: skip
PATH = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
PASSED_ON = ("CUDA_HOME", "CXX")  # where the compilers are
LIMIT = 4 * 3600.0  # seconds of a part
BUDGET = ("--budget", "7200")  # of the check: here are fewer cores
SHOWN = 60  # lines of the failed tests
CHECK = "benchmarks/gpu_check/first.py"
NO_GPU = "gpu-check: nothing was measured: this torch sees no GPU"  # as ready.py says it
TRITON = ("tests/triton", "tests/clip/test_triton.py")
VERSIONS = (
    "import importlib.metadata as m, platform; print(f'Python {platform.python_version()}', "
    "*sorted(f'{d.name} {d.version}' for d in m.distributions() "
    "if d.name in ('torch', 'triton', 'numpy', 'setuptools', 'pytest')), sep=', ')"
)
# In a namespace of its own the loopback is there, and down: gloo and the like ask for it.
LOOPBACK = (
    "import fcntl, os, socket, struct, sys; "
    "fcntl.ioctl(socket.socket(), 0x8914, struct.pack('16sh22x', b'lo', 0x49)); "
    "os.execvp(sys.argv[1], sys.argv[1:])"
)


class NotPrepared(Exception):
    """There is nothing to rehearse in; the text says why."""


class Part(NamedTuple):
    """wrong(finished): None where it ended as it should, else how it ended. builds: it makes the
    extension, without which nothing that follows makes sense."""

    name: str
    words: tuple[str, ...]
    wrong: Callable[[Finished], str | None]
    builds: bool = False


class Result(NamedTuple):
    name: str
    seconds: float
    wrong: str | None
    line: str  # the last that was printed
    tests: tuple[str, ...] = ()  # those that failed


def main(arguments: Sequence[str] | None = None) -> int:
    """0: all as it should be; 1: not so; 2: nothing was rehearsed."""
    asked = _parser().parse_args(arguments)
    name = f"torch-{asked.torch}-python-{asked.python}".replace("/", "-")
    logs = asked.out.resolve() if asked.out else ROOT / "build" / "rehearse" / name
    logs.mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(prefix="rnnfast-rehearse-"))
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # by way of `finally`
    try:
        return _rehearse(asked, place, logs)
    except NotPrepared as why:
        print(f"rehearse: nothing was rehearsed: {why}", file=sys.stderr)
        return 2
    finally:
        end_orphans()  # the check's own processes, where it was ended itself
        if not asked.keep:
            shutil.rmtree(place, ignore_errors=True)


def _rehearse(asked: argparse.Namespace, place: Path, logs: Path) -> int:
    results = []

    def prepare(name: str, *words: str) -> None:
        began = time.monotonic()
        done = run(Command(words, logs / f"{name}.txt"), LIMIT)
        if done.code != 0:
            raise NotPrepared(f"{name}: exit status {done.code}: {done.last_line}; {logs}")
        results.append(Result(name, time.monotonic() - began, None, done.last_line))
        _say(results[-1])

    environment = asked.environment.resolve() if asked.environment else place / "env"
    if not asked.environment:
        prepare("environment", find_python(asked.python), "-m", "venv", str(environment))
        pip = (str(environment / "bin" / "python"), "-m", "pip", "install", "-q")
        prepare("install", *pip, f"torch=={asked.torch}", *IMAGE, *asked.also)
    prepare("versions", str(environment / "bin" / "python"), "-c", VERSIONS)
    tree = place / "tree"
    copy_tree(ROOT, tree)
    settle(environment, place)
    os.chdir(tree)
    within = apart(environment, logs)
    for part in parts(asked, logs):
        began = time.monotonic()
        done = run(Command((*within, *part.words), logs / f"{part.name}.txt"), LIMIT)
        seconds = time.monotonic() - began
        results.append(Result(part.name, seconds, part.wrong(done), done.last_line, failed(done)))
        _say(results[-1])
        (logs / "summary.md").write_text(page(asked, results))
        if part.builds and not list(tree.glob("rnnfast/_C*.so")):
            break
    print(f"\n{page(asked, results)}\n{logs}")
    return 1 if any(result.wrong is not None for result in results) else 0


def parts(asked: argparse.Namespace, logs: Path) -> list[Part]:
    """In order; all in the copy of the tree."""
    check = ("python3", CHECK)
    found = []
    if "first" in asked.parts:
        found.append(Part("first", check, wants_a_gpu))
    if "as-if" in asked.parts and asked.arch != "none":
        words = (*check, "--as-if", asked.arch, *BUDGET, "--out", str(logs / "as-if"))
        found.append(Part("as-if", words, clean, builds=True))
    elif asked.arch == "none":
        build = ("python3", "setup.py", "-q", "build_ext", "--inplace")
        found.append(Part("build", ("env", "RNNFAST_CUDA=0", *build), clean, builds=True))
    if "dry-run" in asked.parts:
        dry = (*check, "--dry-run", *BUDGET, "--out", str(logs / "dry-run"))
        found.append(Part("dry-run", dry, clean))
    cores = len(os.sched_getaffinity(0))
    test: tuple[str, ...] = ("python3", "-m", "pytest", "-q", "-p", "no:cacheprovider")
    test += ("--durations", "20")
    test += ("-n", str(cores)) if cores > 1 else ()
    if "triton" in asked.parts and asked.tier != "all":  # the quick tier leaves most of these out
        found.append(Part("triton", (*test, *TRITON), clean))
    if "tests" in asked.parts:
        found.append(Part("tests", (*test, "--tier", asked.tier), clean))
    return found


PARTS = ("first", "as-if", "dry-run", "triton", "tests")


def wants_a_gpu(done: Finished) -> str | None:
    """The command as it is typed has to stop here, for one reason."""
    if done.code == 2 and done.last_line.startswith(NO_GPU):
        return None
    return f"it should end for want of a GPU: {_ended(done)}"


def clean(done: Finished) -> str | None:
    return None if done.code == 0 else _ended(done)


def _ended(done: Finished) -> str:
    return "its time was up" if done.code is None else f"exit status {done.code}"


def failed(done: Finished) -> tuple[str, ...]:
    """The tests that pytest's summary names."""
    return tuple(re.findall(r"^(?:FAILED|ERROR) (tests/.+)$", done.text, re.MULTILINE))


def find_python(wanted: str) -> str:
    """The command of a Python ("3.12", or a path): on PATH, or one of pyenv's."""
    if "/" in wanted:
        return wanted
    pyenv = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser()
    candidates = [f"python{wanted}", "python3"]
    candidates += map(str, sorted(pyenv.glob(f"versions/{wanted}.*/bin/python")))
    code = f"import sys; sys.exit(sys.version_info[:2] != ({wanted.replace('.', ', ')}))"
    for command in candidates:
        try:
            if subprocess.run([command, "-c", code], capture_output=True).returncode == 0:
                return command
        except OSError:
            continue
    raise NotPrepared(f"no Python {wanted}, of {', '.join(candidates)}")


def copy_tree(root: Path, to: Path) -> None:
    """Files that git has or would add: nothing built, no `.venv`, no `.git`."""
    words = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        done = subprocess.run(words, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise NotPrepared(f"git does not list the tree: {error}") from error
    for name in sorted(set(filter(None, done.stdout.decode().split("\0")))):
        if (root / name).is_file():  # one that is deleted may still be in the index
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / name, to / name)


def settle(environment: Path, place: Path) -> None:
    """From here on: the environment's Python, a home of its own, nothing else of the user's, and no
    index."""
    home, temporary = place / "home", place / "tmp"
    for folder in (home, temporary):
        folder.mkdir()
    settings = {
        "PATH": os.pathsep.join([str(environment / "bin"), *PATH]),
        "HOME": str(home),
        "TMPDIR": str(temporary),
        "LANG": "C.UTF-8",
        "PIP_NO_INDEX": "1",
        "PIP_CONFIG_FILE": os.devnull,
        "CUDA_VISIBLE_DEVICES": "",  # it is a rehearsal, also where there is a GPU
        **{name: os.environ[name] for name in PASSED_ON if name in os.environ},
    }
    os.environ.clear()
    os.environ.update(settings)


def apart(environment: Path, logs: Path) -> tuple[str, ...]:
    """The words before a command that cut it off from the network, where that is permitted."""
    python = str(environment / "bin" / "python")
    words = ("unshare", "-n" if os.geteuid() == 0 else "-rn", python, "-c", LOOPBACK)
    if run(Command((*words, "true"), logs / "network.txt"), 60).code == 0:
        return words
    print("rehearse: the network can't be cut off here (unshare -n)")
    return ()


def _say(result: Result) -> None:
    print(f"{result.name}: {result.wrong or 'ok'} ({result.seconds:.0f} s): {result.line[:200]}")
    sys.stdout.flush()


def page(asked: argparse.Namespace, results: Sequence[Result]) -> str:
    lines = [
        f"# Rehearsal: torch {asked.torch}, Python {asked.python}",
        "",
        f"{platform.platform()}, {len(os.sched_getaffinity(0))} cores",
        "",
        "| part | | seconds | last words |",
        "|---|---|--:|---|",
    ]
    for result in results:
        line = result.line.replace("|", "\\|")[:200]
        lines.append(f"| {result.name} | {result.wrong or 'ok'} | {result.seconds:.0f} | {line} |")
    tests = [f"- {result.name}: {test[:300]}" for result in results for test in result.tests]
    if tests:
        lines += ["", f"## Failed tests: {len(tests)}", "", *tests[:SHOWN]]
    return "\n".join(lines) + "\n"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="rehearse.py", description=__doc__)
    add = parser.add_argument
    add("--torch", required=True, metavar="2.11.0", help="as pip is asked for it")
    add("--python", required=True, metavar="3.12", help="a version, or the path of one")
    add("--arch", default="9.0", help="what is built for (default 9.0); none: without CUDA")
    add("--tier", choices=("quick", "all"), default="quick", help="of the tests (default quick)")
    add("--parts", type=_parts, default=PARTS, help=f"of {','.join(PARTS)} (default all)")
    add("--also", action="append", default=[], help="a further requirement for pip, such as nvcc's")
    add("--out", type=Path, help="folder of the logs (default build/rehearse/<versions>)")
    add("--environment", type=Path, help="one that is there, in place of a new one")
    add("--keep", action="store_true", help="the folder of it all stays")
    return parser


def _parts(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if unknown := set(names) - set(PARTS):
        raise argparse.ArgumentTypeError(f"no part is called {', '.join(sorted(unknown))}")
    return names


if __name__ == "__main__":
    sys.exit(main())
