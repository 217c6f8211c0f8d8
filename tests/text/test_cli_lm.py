"""``lm`` on the tiny text, from train to generate, and what it refuses."""

from __future__ import annotations

import csv
import errno
import os
from pathlib import Path

import pytest
import torch

from rnnfast.cli import main
from rnnfast.text import checkpoint, report
from rnnfast.text.generate import greedy
from rnnfast.text.model import RNNLM, ModelSpec
from rnnfast.text.vocab import Vocabulary

from .conftest import interrupt_at

SMALL = (
    "--hidden-size 12 --num-steps 6 --batch-size 4 --train-tokens 200 --threads 1 --epochs 3"
).split()

WRITE_PLOTS = report.write_plots


@pytest.fixture
def text_file(tiny_content, tmp_path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(tiny_content, "utf-8")
    return path


@pytest.fixture
def run_lm(shown, text_file, tmp_path, monkeypatch):
    """Trains a small model into a folder, without plots; gives the exit status."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(report, "write_plots", lambda folder, runs: None)

    def run(*options: str, out: str = "out") -> int:
        text = [] if "--text" in options else ["--text", str(text_file)]
        return main(["lm", "train", *SMALL, *text, "--out", out, *options])

    return run


def perplexities(folder: Path) -> list[str]:
    with open(folder / "curves.csv", newline="") as stream:
        return [row["perplexity"] for row in csv.DictReader(stream)]


def test_trains_and_writes(run_lm, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(report, "write_plots", WRITE_PLOTS)
    assert run_lm("--sample-every", "2", "--validation-tokens", "100") == 0
    printed, progress = capfd.readouterr()
    assert "Model     one-hot -> RNN, 12 hidden -> linear" in printed
    assert "epoch 2: time traveller" in printed + progress
    assert "validation, last 10" in printed
    assert "tokens/s" in progress
    assert "time traveller" in printed.splitlines()[-3]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "curves.csv", "curves.png", "curves.svg", "rnnfast.pt",
    ]  # fmt: skip
    assert (tmp_path / "out" / "curves.svg").read_text().lstrip().startswith("<?xml")
    assert len(perplexities(tmp_path / "out")) == 3


def test_a_stop_and_resume_give_the_numbers_of_an_uninterrupted_run(
    run_lm, tmp_path, monkeypatch, capfd
):
    options = ["--num-layers", "2", "--dropout", "0.3", "--validation-tokens", "100"]
    assert run_lm(*options, out="whole") == 0
    with monkeypatch.context() as patch:
        interrupt_at(patch, 2)
        assert run_lm(*options, out="stopped") == 130
    assert "Interrupted; saved in stopped, epochs done: rnnfast 2." in capfd.readouterr().out
    assert run_lm(*options, "--resume", out="stopped") == 0
    assert perplexities(tmp_path / "stopped") == perplexities(tmp_path / "whole")
    whole, stopped = (
        checkpoint.load(tmp_path / name / "rnnfast.pt") for name in ("whole", "stopped")
    )
    assert all(map(torch.equal, whole["model"].values(), stopped["model"].values()))
    assert whole["history"]["validation"] == stopped["history"]["validation"]


def test_one_seed_one_curve_in_every_implementation(run_lm, tmp_path):
    found = []
    for name in ("scratch", "torch", "rnnfast"):
        assert run_lm("--impl", name, "--cell", "GRU", "--seed", "7", out=name) == 0
        found.append([float(p) for p in perplexities(tmp_path / name)])
    assert found[0] == pytest.approx(found[1], rel=1e-4)
    assert found[2] == pytest.approx(found[1], rel=1e-4)


def test_generation_from_the_command_line(run_lm, capfd):
    assert run_lm("--cell", "LSTM") == 0
    capfd.readouterr()
    saved = checkpoint.load("out/rnnfast.pt")
    model = RNNLM.build("rnnfast", ModelSpec(**saved["model_spec"]))
    model.load_state_dict(saved["model"])
    vocab = Vocabulary.from_list(saved["vocabulary"])

    def lm(*options: str) -> str:
        assert main(["lm", "generate", "out/rnnfast.pt", "--threads", "1", *options]) == 0
        return capfd.readouterr().out

    assert lm("--prefix", "the ", "--length", "9") == greedy(model, vocab, "the ", 9) + "\n"
    both = lm("--prefix", "a", "--prefix", "time t", "--length", "9").splitlines()
    assert both == [greedy(model, vocab, prefix, 9) for prefix in ("a", "time t")]
    drawn = lm("--alpha", "0.5", "--seed", "1")
    assert drawn == lm("--alpha", "0.5", "--seed", "1") != lm("--temperature", "2", "--seed", "2")
    assert lm("--impl", "torch", "--prefix", "the ", "--length", "9") == lm(
        "--prefix", "the ", "--length", "9"
    )
    stopped = lm("--stop", " ", "--alpha", "1", "--prefix", "a", "--length", "200")
    assert " " not in stopped


def test_unknown_characters_of_a_prefix_are_named(run_lm, capfd):
    assert run_lm("--epochs", "1") == 0
    assert main(["lm", "generate", "out/rnnfast.pt", "--prefix", "Aé a", "--threads", "1"]) == 0
    assert "read as <unk>: 'A' 'é'" in capfd.readouterr().err


def test_eval_prints_perplexity_by_what_was_read(run_lm, text_file, capfd):
    assert run_lm("--epochs", "20") == 0
    capfd.readouterr()
    evaluate = ["lm", "eval", "out/rnnfast.pt", "--text", str(text_file), "--threads", "1"]
    assert main([*evaluate, "--tokens", "150"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert "150 windows of 6 characters" in lines[0]
    by_position = [line.split() for line in lines[4:]]
    assert [row[0] for row in by_position] == ["1", "2", "4"]
    assert float(by_position[-1][1]) < float(by_position[0][1])


def test_tensorboard_has_every_epoch(run_lm, tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert run_lm("--tensorboard", "--validation-tokens", "100") == 0
    log = EventAccumulator(str(tmp_path / "out" / "tensorboard"))
    log.Reload()
    values = [event.value for event in log.Scalars("perplexity/rnnfast")]
    assert values == pytest.approx([float(p) for p in perplexities(tmp_path / "out")], rel=1e-5)
    assert len(log.Scalars("validation/rnnfast")) == 3


def test_compare_trains_all_and_keeps_what_it_has(run_lm, text_file, monkeypatch, capfd):
    from rnnfast.text import lm_compare

    small = {"hidden_size": 8, "num_steps": 6, "batch_size": 16, "train_tokens": 60,
             "validation_tokens": 20}  # fmt: skip
    real = lm_compare.recipe_of
    monkeypatch.setattr(lm_compare, "recipe_of", lambda *a, **k: real(*a, **{**small, **k}))
    command = ["lm", "compare", "--row", "S3", "--epochs", "2", "--text", str(text_file),
               "--threads", "1", "--seeds", "0", "1", "--out", "cmp"]  # fmt: skip
    assert main(command) == 0
    printed = capfd.readouterr().out
    assert "Means over seeds 0 1" in printed
    assert printed.count("[pass] copied weights") == 4
    assert printed.count("[pass]") == 8
    first = perplexities(Path("cmp/seed-1"))
    assert len(first) == 6
    assert main(command) == 0
    assert capfd.readouterr().out.count("Resuming from cmp") == 2
    assert perplexities(Path("cmp/seed-1")) == first
    assert main(["lm", "compare", "--row", "S4", "--form", "scratch", *command[4:]]) == 2
    assert "cell" in capfd.readouterr().err
    assert main(["lm", "compare", "--row", "S4", "--form", "scratch", *command[4:], "--fresh"]) == 0
    assert "torch.nn has no GRU that resets before the product" in capfd.readouterr().out


def test_sine_is_learned(capfd):
    assert main(["lm", "sine", "--epochs", "5", "--threads", "1"]) == 0
    rows = [line.split() for line in capfd.readouterr().out.splitlines()[3:]]
    assert [row[0] for row in rows] == ["1", "4", "16", "64"]
    assert float(rows[0][1]) < 0.35  # always naming 0 would be off by 0.67


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the text has no letters"),
        (b"12 34", "the text has no letters"),
        (b"abc \xff", "is not UTF-8 text: byte 4"),
        (b"far too short", "the text has 13 tokens"),
    ],
)
def test_bad_texts_are_named(run_lm, tmp_path, capfd, content, message):
    path = tmp_path / "bad.txt"
    path.write_bytes(content)
    assert run_lm("--text", str(path)) == 2
    assert message in capfd.readouterr().err
    assert not (tmp_path / "out" / "rnnfast.pt").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--bidirectional"], "a bidirectional layer cannot be trained to name the next"),
        (["--cell", "GRU", "--no-reset-after", "--impl", "torch"], "torch.nn has no GRU"),
        (["--optimizer", "Newton"], "no optimiser called 'Newton'"),
        (["--text", "nowhere.txt"], "nowhere.txt"),
    ],
)
def test_impossible_runs_are_refused(run_lm, capfd, options, message):
    assert run_lm(*options) == 2
    assert message in capfd.readouterr().err


def test_bidirectional_trains_by_filling_in_and_writes_nothing(run_lm, capfd):
    assert run_lm("--bidirectional", "--objective", "fill-in") == 0
    assert "a model that reads from both ends writes no text" in capfd.readouterr().out
    assert main(["lm", "generate", "out/rnnfast.pt", "--threads", "1"]) == 2
    assert "a bidirectional layer cannot generate" in capfd.readouterr().err
    assert main(["lm", "eval", "out/rnnfast.pt", "--text", "text.txt", "--threads", "1"]) == 2
    assert "no perplexity of the next character" in capfd.readouterr().err


def test_a_full_disk_keeps_the_older_checkpoint(run_lm, tmp_path, monkeypatch, capfd):
    assert run_lm("--epochs", "2") == 0
    older = (tmp_path / "out" / "rnnfast.pt").read_bytes()

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert run_lm("--resume") == 2
    assert "No space left on device" in capfd.readouterr().err
    assert (tmp_path / "out" / "rnnfast.pt").read_bytes() == older


def test_divergence_stops_with_what_was_saved(run_lm, tmp_path, capfd):
    assert run_lm("--epochs", "2") == 0
    older = (tmp_path / "out" / "rnnfast.pt").read_bytes()
    payload = checkpoint.load(tmp_path / "out" / "rnnfast.pt")
    payload["model"]["output.bias"][0] = float("nan")
    for key in ("format", "version"):
        del payload[key]
    checkpoint.save(tmp_path / "out" / "rnnfast.pt", payload)
    poisoned = (tmp_path / "out" / "rnnfast.pt").read_bytes()
    assert run_lm("--resume") == 2
    assert "rnnfast, epoch 3: the loss is nan at step 1" in capfd.readouterr().err
    assert (tmp_path / "out" / "rnnfast.pt").read_bytes() == poisoned != older


def test_checkpoints_of_others_are_refused(run_lm, tmp_path, capfd):
    assert run_lm() == 0
    assert run_lm("--resume", "--hidden-size", "13") == 2
    assert "belongs to another run: model_spec is" in capfd.readouterr().err
    checkpoint.save(tmp_path / "mt.pt", {"kind": "translation"})
    assert main(["lm", "generate", "mt.pt"]) == 2
    assert "holds no language model, but: translation" in capfd.readouterr().err
    assert main(["lm", "generate", "none.pt"]) == 2
    assert "there is no checkpoint none.pt" in capfd.readouterr().err


@pytest.mark.parametrize("command", ["train", "generate", "eval", "compare", "sine"])
def test_help_is_worth_reading(command, capfd):
    with pytest.raises(SystemExit) as caught:
        main(["lm", command, "--help"])
    assert caught.value.code == 0
    assert len(capfd.readouterr().out.splitlines()) > 15


@pytest.mark.needs_data
def test_compare_on_the_real_text(real_text, tmp_path, capfd):
    command = ["lm", "compare", "--row", "S2", "--epochs", "1", "--threads", "1"]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    printed = capfd.readouterr().out
    assert "first 10,000 of 170,580 characters, 28 kinds" in printed
    assert printed.count("[pass] copied weights") == 2
