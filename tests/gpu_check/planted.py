"""A check whose stages do what goes wrong on a device, without one and without torch.

`python -m tests.gpu_check.planted --only fine,hangs,last --budget 5 --out FOLDER`; the ids of the
processes that wait go to the file that PLANTED_PIDS names.
"""

from __future__ import annotations

import sys

from benchmarks.gpu_check import command
from benchmarks.gpu_check.children import Command, run
from benchmarks.gpu_check.ready import Ready
from benchmarks.gpu_check.stages import CUT, FAILED, OK, Context, Deadline, Outcome, Stage

_WAIT = "open(os.environ['PLANTED_PIDS'], 'a').write(f'{os.getpid()}\\n'); time.sleep(600)"
_HEAD = "import os, signal, subprocess, sys, time\n"
# What a grandchild does that has a session of its own, and whose parents are gone.
_APART = f"subprocess.Popen([sys.executable, '-c', {_HEAD + _WAIT!r}], start_new_session=True)"
CHILDREN = {
    "fine": "print('right')",
    "crashes": "os.kill(os.getpid(), signal.SIGSEGV)",
    "exits": "sys.exit(3)",
    "hangs": f"print('rnnfast: the exchange of a grid team timed out', flush=True); {_WAIT}",
    "deaf": f"signal.signal(signal.SIGTERM, signal.SIG_IGN); {_WAIT}",
    "raises": "raise ValueError('planted')",
    "sticky": "print('case 1: ok'); raise RuntimeError('CUDA error: unspecified launch failure')",
    "leaves": f"{_APART}\nwhile not open(os.environ['PLANTED_PIDS']).read(): time.sleep(0.1)",
    "leaves and hangs": f"{_APART}; {_WAIT}",
    "floods": "print('x' * 100 * 2**20)",
    "last": "print('right')",
}


def _child(name: str) -> Stage:
    def stage(context: Context, seconds: float) -> Outcome:
        words = (sys.executable, "-c", _HEAD + CHILDREN[name])
        done = run(Command(words, context.folder / f"{name}.txt"), seconds)
        state = CUT if done.code is None else FAILED if done.code else OK
        return Outcome(state, f"exit status {done.code}: {done.last_line[:80]}")

    return Stage(name, 1, stage)


def _rates(context: Context, _: float) -> Outcome:
    (context.folder / "rates.json").write_text('{"rates": {}}')
    raise OSError("after the rates were written")


def _no_page(_: Context, __: float) -> Outcome:
    return Outcome(OK, "a section that is no text", section=3)  # type: ignore[arg-type]


def _ready(context: Context, _: Deadline) -> Ready:
    return Ready({"slug": "planted"}, [])


STAGES = (
    *(_child(name) for name in list(CHILDREN)[:-1]),
    Stage("rates", 1, _rates),
    Stage("no page", 1, _no_page),
    _child("last"),
)

if __name__ == "__main__":
    sys.exit(command.main(stages=STAGES, make_ready=_ready))
