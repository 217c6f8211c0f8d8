"""The whole of it without a device: every stage by its own scripts."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from benchmarks.gpu_check import summary
from rnnfast import _ext
from rnnfast._build import host

from ..build.support import ROOT


def test_the_dry_run_goes_through_every_stage(tmp_path: Path) -> None:
    compiler, why = host.find_compiler()
    if compiler is None or _ext.load() is None:
        pytest.skip(f"needs a compiler and the extension: {why or _ext.why_missing()}")
    script = ROOT / "benchmarks" / "gpu_check" / "first.py"
    words = [sys.executable, str(script), "--dry-run", "--budget", "3000", "--out", "found"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    found = tmp_path / "found"
    assert done.returncode == 0, done.stdout + done.stderr
    page = (found / "summary.md").read_text()
    assert summary.DRY in page
    for stage in ("smoke", "rates", "speed", "tests", "rest", "memcheck", "layers"):
        assert f"| {stage} | ok |" in page, page
    for stage in ("sanitizers", "peers"):
        assert f"| {stage} | NOT RUN |" in page
    names = sorted(path.name for path in found.iterdir())
    assert names == ["dry-run.zip", "log.txt", "rates.json", "summary.md"]
    with zipfile.ZipFile(found / "dry-run.zip") as archive:
        assert {"rates.csv", "probe.json", "tests-executor.txt"} <= set(archive.namelist())
    content = json.loads((found / "rates.json").read_text())
    assert content["dry_run"] is True
    known = set(_ext.load().cuda_rates("H100"))  # type: ignore[union-attr]
    assert set(content["rates"]) <= known
    assert known - set(content["rates"]) == {
        "dram_latency_cycles", "gpc_sms", "issue_per_clock", "l2_bytes", "l2_line_cycles",
        "pointwise_bytes_per_clock", "product_efficiency", "product_host_ns",
    }  # fmt: skip
    assert list(content["failed"]) == list(content["skipped"]) == []
