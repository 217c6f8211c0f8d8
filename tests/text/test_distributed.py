"""Two processes on gloo learn what one learns with the minibatch twice as large; a killed one stops
no run for good."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from rnnfast.cli import main
from rnnfast.text import checkpoint

from ..processes import Torchrun, needs_proc, needs_torchrun

pytestmark = needs_torchrun


def by_two(folder: Path, *commands: list[str]) -> str:
    """What ``commands``, one after another under torchrun with two processes, print."""
    run = Torchrun(folder, "-m", "tests.text.two_processes", *map(json.dumps, commands))
    assert run.wait() == 0, run.errors
    return run.printed


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
    printed = by_two(tmp_path, *two, resumed)
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


@needs_proc
def test_a_killed_process_costs_the_epochs_since_the_checkpoint(tiny_content, tmp_path, capsys):
    """kill -9 of one of two processes, twice, at whatever moment: the first time torchrun starts
    both anew, the second time somebody does by hand. The losses are those of a run left alone."""
    text, out = tmp_path / "text.txt", tmp_path / "killed"
    text.write_text(tiny_content)

    lm = [
        "lm", "train", "--text", str(text), "--cell", "LSTM", "--hidden-size", "12",
        "--num-steps", "5", "--batch-size", "4", "--learning-rate", "2", "--train-tokens", "400",
        "--threads", "1", "--save-every", "2",
    ]  # fmt: skip

    def command(out: Path, epochs: int) -> list[str]:
        return [*lm, "--out", str(out), "--epochs", str(epochs)]

    first = Torchrun(tmp_path, "--max-restarts=1", "-m", "rnnfast", *command(out, 1_000_000))
    for rank in (1, 0):
        before = epochs_in(out)
        first.until("epochs", saved(out, more_than=before + 3))
        first.kill(rank)
    assert first.wait() != 0
    assert first.printed.count("Resuming from") == 1
    epochs = epochs_in(out) + 3
    assert main(command(out, epochs)) == 2  # one process has other rows
    assert "processes is 2 there and 1 here" in capsys.readouterr().err
    printed = by_two(tmp_path, command(out, epochs), command(tmp_path / "alone", epochs))
    assert printed.count("Resuming from") == 1
    found, expected = history(out), history(tmp_path / "alone")
    assert len(expected["perplexity"]) == epochs
    for key in ("perplexity", "first_losses", "tokens"):
        assert found[key] == expected[key]


def epochs_in(out: Path) -> int:
    path = out / "rnnfast.pt"
    return checkpoint.load(path)["epoch"] if path.exists() else 0


def saved(out: Path, more_than: int) -> Callable[[], bool]:
    return lambda: epochs_in(out) > more_than
