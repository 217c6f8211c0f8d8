"""`python3 benchmarks/gpu_check/first.py`: what a machine with a GPU is asked, in nine minutes.

Needs a Python with torch, and an nvcc or a build that was carried along; no network, no make, no
virtual environment. docs/gpu-check.md says what it does and how to read what it writes.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])  # not this folder
    from benchmarks.gpu_check.command import main

    sys.exit(main())
