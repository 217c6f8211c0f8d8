"""The demo from end to end on the tiny text."""

from __future__ import annotations

import csv
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from rnnfast.text import compare, data, demo, train

from .conftest import interrupt_at

FILES = ["curves.csv", "curves.png", "curves.svg", "first_steps.csv", "rnnfast.pt", "torch.pt"]


@dataclass(frozen=True)
class SmallRecipe(train.Recipe):
    """The demo's recipe on a small scale; an epoch has 8 minibatches here too."""

    hidden_size: int = 16
    batch_size: int = 8
    num_steps: int = 10
    train_tokens: int = 700


@pytest.fixture
def tiny_demo(shown, tiny_file, monkeypatch, tmp_path):
    """Runs the demo with a small model on the tiny text; gives its exit status."""
    monkeypatch.setattr(demo, "Recipe", SmallRecipe)
    monkeypatch.setattr(data, "TIME_MACHINE", tiny_file)
    monkeypatch.setenv("RNNFAST_DATA", str(Path(tiny_file.url.removeprefix("file://")).parent))
    monkeypatch.chdir(tmp_path)

    def run(*options: str, out: Path = tmp_path / "out") -> int:
        return demo.main(["--threads", "1", "--out", str(out), *options])

    return run


def perplexities(out: Path) -> list[tuple[str, str, str]]:
    with open(out / "curves.csv", newline="") as stream:
        return [
            (row["implementation"], row["epoch"], row["perplexity"])
            for row in csv.DictReader(stream)
        ]


def test_trains_both_and_reports(tiny_demo, tmp_path, capfd):
    assert tiny_demo("--epochs", "2") == 0
    printed, progress = capfd.readouterr()
    assert "The Tiny Text" in printed
    assert "asked for: auto" in printed
    assert "[pass] copied weights" in printed
    assert "[not checked] rnnfast: mean perplexity" in printed
    table = printed[printed.rindex("The Tiny Text") :].splitlines()[3:5]
    assert [row.split()[:2] for row in table] == [["rnnfast", "2"], ["torch.nn", "2"]]
    assert all(1.0 < float(row.split()[2]) < 28.0 for row in table)
    assert printed.count("  untrained  time traveller") == 2
    assert printed.count("  trained    time traveller") == 2
    assert "tokens/s" in progress
    assert "ppl" in progress
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == FILES
    assert len(perplexities(tmp_path / "out")) == 4


def test_both_see_the_same_numbers_in_the_first_steps(tiny_demo, tmp_path):
    tiny_demo("--epochs", "2")
    with open(tmp_path / "out" / "first_steps.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 16
    for row in rows:
        assert float(row["rnnfast"]) == pytest.approx(float(row["torch"]), rel=1e-4)


@pytest.mark.parametrize("call", [1, 3, 4])
def test_interrupted_demo_goes_on_to_the_same_numbers(
    tiny_demo, tmp_path, monkeypatch, capfd, call
):
    monkeypatch.setattr(compare, "BLOCK_EPOCHS", 2)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert tiny_demo("--epochs", "3", out=whole) == 0
    with monkeypatch.context() as patch:
        interrupt_at(patch, call)
        assert tiny_demo("--epochs", "3", out=stopped) == 130
    assert "The same command goes on from there." in capfd.readouterr().out
    assert not (stopped / "curves.csv").exists()
    assert tiny_demo("--epochs", "3", out=stopped) == 0
    assert f"Resuming from {stopped}, epochs done: rnnfast " in capfd.readouterr().out
    assert perplexities(stopped) == perplexities(whole)


def test_finished_run_is_trained_anew_and_resume_trains_on(tiny_demo, tmp_path, capfd):
    out = tmp_path / "out"
    assert tiny_demo("--epochs", "1", "--impl", "torch") == 0
    first = perplexities(out)
    assert tiny_demo("--epochs", "1", "--impl", "torch") == 0
    assert "Resuming" not in capfd.readouterr().out
    assert perplexities(out) == first
    assert tiny_demo("--epochs", "2", "--impl", "torch", "--resume") == 0
    assert "Resuming" in capfd.readouterr().out
    assert perplexities(out)[:1] == first
    assert len(perplexities(out)) == 2
    assert tiny_demo("--epochs", "1", "--impl", "torch", "--resume") == 0
    assert len(perplexities(out)) == 2


def test_unfinished_run_with_other_settings_is_not_dropped(tiny_demo, tmp_path, monkeypatch, capfd):
    with monkeypatch.context() as patch:
        interrupt_at(patch, 1)
        assert tiny_demo("--epochs", "2", "--impl", "torch") == 130
    older = (tmp_path / "out" / "torch.pt").read_bytes()
    assert tiny_demo("--epochs", "2", "--impl", "torch", "--seed", "1") == 2
    error = capfd.readouterr().err
    assert "is an unfinished run (1 of 2 epochs) with other settings: seed is 0 there" in error
    assert (tmp_path / "out" / "torch.pt").read_bytes() == older
    assert tiny_demo("--epochs", "1", "--impl", "torch", "--seed", "1", "--fresh") == 0


def test_damaged_checkpoint_is_named_and_fresh_replaces_it(tiny_demo, tmp_path, capfd):
    damaged = tmp_path / "out" / "torch.pt"
    damaged.parent.mkdir()
    damaged.write_bytes(b"not a checkpoint")
    assert tiny_demo("--epochs", "1", "--impl", "torch") == 2
    assert f"{damaged} is damaged" in capfd.readouterr().err
    assert damaged.read_bytes() == b"not a checkpoint"
    assert tiny_demo("--epochs", "1", "--impl", "torch", "--fresh") == 0


def test_resume_without_checkpoints_is_refused(tiny_demo, capfd):
    assert tiny_demo("--resume") == 2
    assert "there is nothing to resume: no file" in capfd.readouterr().err


def test_failed_check_gives_status_one(tiny_demo, monkeypatch, capfd):
    monkeypatch.setattr(
        compare, "copy_weights", lambda source, target: target.layer.weight_hh_l0.data.mul_(2)
    )
    assert tiny_demo("--epochs", "1") == 1
    assert "[FAIL] copied weights" in capfd.readouterr().out


def test_stand_in_is_named(tiny_demo, monkeypatch, capfd):
    monkeypatch.delenv("RNNFAST_DATA")
    assert tiny_demo("--epochs", "1", "--impl", "torch") == 0
    printed = capfd.readouterr().out
    assert "download: forbidden by RNNFAST_OFFLINE" in printed
    assert "Going on with a stand-in text." in printed
    table = printed[printed.index("\n\nSTAND-IN: pydoc_data.topics of Python") :]
    assert "torch.nn" in table
    assert "target is for the real text" in table


def test_corrupt_data_stops_the_demo(tiny_demo, tiny_file, capfd):
    Path(tiny_file.url.removeprefix("file://")).write_text("corrupt")
    assert tiny_demo("--epochs", "1") == 2
    assert "tiny.txt (from RNNFAST_DATA) is not used: SHA-1 is" in capfd.readouterr().err


def test_unwritable_folder_stops_the_demo_before_training(tiny_demo, tmp_path, capfd):
    (tmp_path / "out").write_text("a file, not a folder")
    assert tiny_demo("--epochs", "1") == 2
    assert str(tmp_path / "out") in capfd.readouterr().err


@pytest.mark.parametrize("name", ["tqdm", "matplotlib"])
def test_missing_package_is_named_with_the_extra(monkeypatch, capfd, name):
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda wanted: None if wanted == name else sys.__spec__
    )
    assert demo.main(["--epochs", "1"]) == 2
    error = capfd.readouterr().err
    assert f"the demo needs {name}: pip install 'rnnfast[text]'" in error


def test_threads_are_put_back(tiny_demo):
    before = torch.get_num_threads()
    assert tiny_demo("--threads", str(before + 1), "--epochs", "1", "--impl", "torch") == 0
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    "options", [["--epochs", "0"], ["--threads", "-1"], ["--impl", "jax"], ["--resume", "--fresh"]]
)
def test_bad_options_are_refused(options, capfd):
    with pytest.raises(SystemExit) as caught:
        demo.main(options)
    assert caught.value.code == 2
    assert "error: argument" in capfd.readouterr().err


@pytest.mark.needs_data
def test_first_epochs_on_the_real_text(real_text, tmp_path, capfd):
    assert demo.main(["--epochs", "7", "--threads", "1", "--out", str(tmp_path / "out")]) == 0
    printed = capfd.readouterr().out
    assert "first 10,000 of 170,580 characters, 28 kinds" in printed
    assert "[pass] copied weights" in printed
    assert "in 50 steps" in printed
    rows = perplexities(tmp_path / "out")
    assert len(rows) == 14
    assert all(10.0 < float(perplexity) < 28.0 for _, _, perplexity in rows)
    assert float(rows[6][2]) < float(rows[0][2])
