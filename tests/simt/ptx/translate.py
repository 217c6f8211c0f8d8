"""From PTX to C++, from a shell: ``python -m tests.simt.ptx.translate IN.ptx OUT.cpp [PART]``.

PART: only the kernels whose names have this text. Ends with 1 and a message where the PTX has what
the translator does not know.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from .emit import emit
from .ir import PtxError
from .parse import parse


def translate(text: str, file: str, part: str = "") -> str:
    """The C++ of the PTX; ``file``: its name in messages. Raises PtxError; ValueError where no
    kernel's name has ``part``."""
    module = parse(_without_others(text, part), file)
    if not module.kernels:
        raise ValueError(f"{file} has no kernel with {part!r} in its name")
    return emit(module)


def _without_others(text: str, part: str) -> str:
    """The PTX with empty lines in place of the kernels whose names do not have ``part``."""
    pieces = re.split(r"(?m)^(?=\.visible \.entry |\.entry )", text)
    kept = [pieces[0]]
    for piece in pieces[1:]:
        head = piece.split("(", 1)[0]
        end = piece.rindex("\n}") + 2  # what follows is the module's
        wanted = part in head
        kept.append(piece if wanted else "\n" * piece[:end].count("\n") + piece[end:])
    return "".join(kept)


def main(arguments: list[str]) -> int:
    source, target = Path(arguments[0]), Path(arguments[1])
    try:
        text = translate(source.read_text(), source.name, *arguments[2:])
    except (PtxError, ValueError) as error:
        print(f"{source}: {error}", file=sys.stderr)
        return 1
    if not target.is_file() or target.read_text() != text:  # else what is made of it is fresh
        target.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
