"""One OpenMP runtime in the process, torch's: two would each start their own threads."""

from __future__ import annotations

import sys

import pytest

from rnnfast import _ext, doctor

from .support import ROOT, python

LOADED = """
import torch, rnnfast
from rnnfast import _ext, doctor
module = _ext.cpu()
torch.set_num_threads(3)
print(module.openmp_max_threads())
torch.set_num_threads(1)
print(module.openmp_max_threads())
print(*doctor.openmp_runtimes(), sep="\\n")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/maps")
def test_the_extension_shares_torchs_openmp_runtime():
    if _ext.cpu() is None:
        pytest.skip(f"the extension is not loaded here: {_ext.why_no_cpu()}")
    done = python(LOADED, ROOT)
    assert done.returncode == 0, done.stdout
    three, one, *runtimes = done.stdout.splitlines()
    assert (three, one) == ("3", "1")  # torch's setting reaches the extension's runtime
    assert len(runtimes) == 1, runtimes


def test_runtimes_are_told_from_libraries_of_a_like_name(tmp_path):
    maps = [
        "7f00-7f01 r-xp 00000000 08:01 1    /a/torch/lib/libgomp.so.1",
        "7f01-7f02 r--p 00000000 08:01 1    /a/torch/lib/libgomp.so.1",
        "7f02-7f03 r-xp 00000000 08:01 2    /b/libiomp5.so",
        "7f03-7f04 r-xp 00000000 08:01 3    /c/libomp-a1b2.so.5",
        "7f04-7f05 r-xp 00000000 08:01 4    /d/libompitrace.so",
        "7f05-7f06 rw-p 00000000 00:00 0 ",
    ]
    (tmp_path / "maps").write_text("\n".join(maps) + "\n")
    assert doctor.openmp_runtimes(tmp_path / "maps") == [
        "/a/torch/lib/libgomp.so.1",
        "/b/libiomp5.so",
        "/c/libomp-a1b2.so.5",
    ]
