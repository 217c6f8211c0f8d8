"""Runs commands of ``python -m rnnfast``, given as JSON lists, in one process of torchrun."""

from __future__ import annotations

import json
import sys

from rnnfast.cli import main
from rnnfast.text.place import place_of

if __name__ == "__main__":
    with place_of():  # joined once, for all commands
        for command in map(json.loads, sys.argv[1:]):
            status = main(command)
            if status:
                raise SystemExit(status)
