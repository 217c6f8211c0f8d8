"""The process in which cases are tried: one JSON line for each that begins, one for each that ends.

Its standard input is a JSON list: the device, the seconds of a timing, a way, and the cases.
"""

from __future__ import annotations

import json
import os
import sys
from typing import TextIO

from .judge import Judge, judge
from .spread import Case, Way


def main(judged_by: Judge = judge) -> None:
    told = os.fdopen(os.dup(1), "w")  # what libraries print goes elsewhere
    os.dup2(2, 1)
    device, seconds, way, cases = json.load(sys.stdin)
    for number, case in enumerate(cases):
        _tell(told, {"begins": number})
        try:
            found = judged_by(Case(*case), Way(*way), device, seconds)
        except Exception as error:
            text = str(error).partition("\n")[0][:200]
            found = {"state": f"{type(error).__name__}: {text}"}
            _tell(told, {"ends": number, **found})
            if device.startswith("cuda"):
                os._exit(1)  # an error of a device stays in its process
            continue
        _tell(told, {"ends": number, **found})


def _tell(told: TextIO, line: dict) -> None:
    print(json.dumps(line), file=told, flush=True)


if __name__ == "__main__":
    main()
