"""The C++ tests under AddressSanitizer, UBSan and ThreadSanitizer. Minutes each: marked slow."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .support import ROOT, copy_project, run

pytestmark = pytest.mark.slow


def cpp_suite(
    source: Path, build: Path, sanitizer: str, *tests: str
) -> subprocess.CompletedProcess[str]:
    """Builds the C++ tests with ``sanitizer`` and runs them, or those named."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    named = "|".join(f"^{name}$" for name in tests) or "^test_"
    configure = ["cmake", "-S", str(source), "-B", str(build), "-G", "Ninja"]
    configure.append(f"-DRNNFAST_SANITIZE={sanitizer}")
    compile_them = ["cmake", "--build", str(build), "-j", "2", "--target", "rnnfast_tests"]
    for command in (configure, compile_them):
        done = run(command, source, PATH=path)
        assert done.returncode == 0, done.stdout
    ctest = ["ctest", "--test-dir", str(build), "--output-on-failure", "-R", named]
    return run(ctest, source, PATH=path)


@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_the_cpp_tests_are_clean(sanitizer: str, tmp_path: Path) -> None:
    done = cpp_suite(ROOT, tmp_path, sanitizer)
    assert done.returncode == 0, done.stdout
    assert "100% tests passed" in done.stdout


def test_a_missing_barrier_is_reported_as_a_race(tmp_path: Path) -> None:
    """So that a clean run says something."""
    copy = copy_project(tmp_path / "project")
    forward = copy / "csrc/cpu/forward.h"
    text = forward.read_text()
    end_of_phase = "        place.wait();\n      });\n"
    assert text.count(end_of_phase) == 1
    forward.write_text(text.replace(end_of_phase, "      });\n"))
    done = cpp_suite(copy, tmp_path / "build", "thread", "test_cpu_fixed")
    assert done.returncode != 0
    assert "ThreadSanitizer: data race" in done.stdout, done.stdout
