"""Two processes on gloo learn what one learns with the minibatch twice as large."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rnnfast.cli import main
from rnnfast.text import checkpoint

pytestmark = pytest.mark.skipif(os.name != "posix", reason="torchrun with gloo is for POSIX")

ROOT = Path(__file__).resolve().parents[2]


def by_two(*commands: list[str]) -> str:
    """What ``commands``, one after another under torchrun with two processes, print."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    process = subprocess.Popen(
        [*launcher, "-m", "tests.text.two_processes", *map(json.dumps, commands)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        printed, errors = process.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        process.terminate()  # torchrun ends its processes
        _, errors = process.communicate(timeout=60)
        pytest.fail(f"torchrun hangs; stderr ends:\n{errors[-3000:]}")
    assert process.returncode == 0, errors[-3000:]
    return printed


def history(folder: Path) -> dict[str, list[float]]:
    found: dict[str, list[float]] = checkpoint.load(folder / "rnnfast.pt")["history"]
    return found


def test_two_processes_learn_what_one_does(tiny_content, pairs_file, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(tiny_content)
    lm = [
        "lm", "train", "--text", str(text), "--hidden-size", "12", "--num-steps", "5",
        "--threads", "1", "--epochs", "3",
    ]  # fmt: skip
    mt = [
        "mt", "train", "--pairs-file", str(pairs_file), "--train-pairs", "45", "--num-steps", "6",
        "--hidden-size", "8", "--embedding-size", "8", "--dropout", "0", "--threads", "1",
        "--epochs", "2",
    ]  # fmt: skip
    runs = {
        # 101 windows: the last minibatch is smaller, and its halves differ
        "every": [*lm, "--sampling", "every", "--train-tokens", "101", "--validation-tokens", "30"],
        "rows": [*lm, "--train-tokens", "300"],
        "pairs": mt,
    }
    two = [
        [*command, "--batch-size", "4", "--out", str(tmp_path / f"two-{name}")]
        for name, command in runs.items()
    ]
    resumed = [*two[1], "--epochs", "4", "--resume"]
    printed = by_two(*two, resumed)
    assert printed.count("Written to") == 4  # only one process speaks
    for name, command in runs.items():
        out = tmp_path / f"one-{name}"
        assert main([*command, "--batch-size", "8", "--out", str(out)]) == 0
        found, expected = history(tmp_path / f"two-{name}"), history(out)
        epochs = len(expected["perplexity"])
        assert len(found["perplexity"]) == (4 if name == "rows" else epochs)
        assert found["tokens"][:epochs] == expected["tokens"]
        for key in ("first_losses", "perplexity", "validation"):
            values = expected[key]
            assert len(values) > 0 or (key == "validation" and name == "rows")
            assert found[key][: len(values)] == pytest.approx(values, rel=1e-5)
