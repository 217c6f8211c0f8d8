"""The C++ tests of the CUDA kernels on the executor, under sanitizers. Minutes each: slow.

AddressSanitizer and UBSan see every index, ThreadSanitizer takes each CUDA thread for a thread.
That they would report a fault is for test_executor.py to show.
"""

from __future__ import annotations

import re
import subprocess

import pytest

from .test_executor import ROOT, SANITIZERS, build

# all but the executor's own, which test_executor.py runs
TARGETS = re.findall(
    r"^add_executable\((simt_\w+_tests) ", (ROOT / "tests/simt/CMakeLists.txt").read_text(), re.M
)


def test_the_targets_are_found() -> None:
    assert {"simt_clip_tests", "simt_kernel_tests"} <= set(TARGETS)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_the_kernels_are_clean(sanitizer: str, target: str) -> None:
    command = [str(build(sanitizer, target))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
