"""``python -m rnnfast``: the commands."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

# name: (module with a `main(argv) -> int`, what it does)
COMMANDS = {
    "doctor": ("rnnfast.doctor", "versions, what was built, which backends are usable"),
    "tune": ("rnnfast.tune_cli", "measures this machine, for auto to choose by"),
    "compile": ("rnnfast.compile_cli", "compiles a cell of one's own ahead of time"),
    "inspect": ("rnnfast.inspect.cli", "kernels as machine code: registers, spills, instructions"),
    "demo": ("rnnfast.text.demo", "trains a language model on The Time Machine, twice"),
    "lm": ("rnnfast.text.cli_lm", "language models: train, generate, eval, compare"),
    "mt": ("rnnfast.text.cli_mt", "translation: train, translate, eval, compare"),
}


def usage() -> str:
    lines = ["usage: python -m rnnfast COMMAND [--help | ARGUMENTS]", "", "commands:"]
    lines += [f"  {name:8} {what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit status, 2 for a bad call."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help"):
        print(usage())
        return 0 if args else 2
    if args[0] not in COMMANDS:
        print(f"rnnfast: no command is called {args[0]!r}\n\n{usage()}", file=sys.stderr)
        return 2
    module = importlib.import_module(COMMANDS[args[0]][0])
    return module.main(args[1:])
