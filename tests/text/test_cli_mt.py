"""``mt`` on the generated pairs, from train to eval, and what it refuses."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from rnnfast.cli import main
from rnnfast.text import checkpoint, report
from rnnfast.text.bleu import bleu, sacrebleu_of
from rnnfast.text.cli_mt import load_translator
from rnnfast.text.pairs import read_pairs, words

SMALL = (
    "--hidden-size 24 --embedding-size 16 --num-steps 6 --train-pairs 48 --batch-size 16 "
    "--threads 1 --dropout 0"
).split()


@pytest.fixture
def run_mt(shown, pairs_file, tmp_path, monkeypatch):
    """Trains a small model into ``out``, without plots; gives the exit status."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(report, "write_plots", lambda folder, runs: None)

    def run(*options: str) -> int:
        files = [] if "--pairs-file" in options else ["--pairs-file", str(pairs_file)]
        return main(["mt", "train", *SMALL, *files, "--out", "out", *options])

    return run


def test_train_translate_eval(run_mt, pairs_file, capfd):
    pytest.importorskip("sacrebleu", reason="mt eval needs it")
    assert run_mt("--epochs", "40") == 0
    printed = capfd.readouterr().out
    assert "48 to train on, 16 held back; 17 and 21 kinds of words" in printed
    assert printed.count(", bleu ") == 4
    common = ["--threads", "1"]
    assert main(["mt", "translate", "out/rnnfast.pt", "I see it.", "we eat dragons.", *common]) == 0
    first, second = capfd.readouterr().out.splitlines()
    assert first == "I see it. => je vois cela ."
    assert second.endswith("(read as <unk>: dragons)")
    evaluate = ["mt", "eval", "out/rnnfast.pt", "--pairs-file", str(pairs_file), *common]
    scores = []
    for options in ([], ["--beam", "3"], ["--impl", "torch"]):
        assert main([*evaluate, *options]) == 0
        lines = capfd.readouterr().out.splitlines()
        assert lines[-3] == "16 pairs that were held back"
        scores.append((float(lines[-2].split()[-1]), float(lines[-1].split()[-1])))
    assert scores[0] == scores[2]
    translator, _ = load_translator(Path("out/rnnfast.pt"), None)
    held_back = read_pairs(pairs_file)[48:]
    labels = [" ".join(words(target)) for _, target in held_back]
    found = translator.greedy([source for source, _ in held_back])
    mean = sum(bleu(f, label) for f, label in zip(found, labels, strict=True)) / 16
    assert scores[0] == (round(mean, 3), round(sacrebleu_of(found, labels), 2))
    assert all(0.2 < chapter <= 1 and 10 < sacre <= 100 for chapter, sacre in scores)


def test_resume_and_tensorboard(run_mt, tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    assert run_mt("--epochs", "2", "--tensorboard") == 0
    assert run_mt("--epochs", "3", "--resume") == 0
    saved = checkpoint.load("out/rnnfast.pt")
    assert saved["epoch"] == 3
    assert len(saved["history"]["validation"]) == 3
    assert list((tmp_path / "out" / "tensorboard").iterdir())


def test_compare(run_mt, pairs_file, capfd):
    files = ["--pairs-file", str(pairs_file), "--out", "cmp"]
    assert main(["mt", "compare", *SMALL, *files, "--epochs", "2", "--seeds", "0", "1"]) == 0
    printed = capfd.readouterr().out
    assert printed.count("[pass] copied weights") == 4
    assert printed.count("torch.nn             2") == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--train-pairs", "64", "--batch-size", "0"], None),
        (["--pairs-file", "none.txt"], "none.txt"),
        (["--optimizer", "Newton"], "no optimiser called 'Newton'"),
    ],
)
def test_impossible_runs_are_refused(run_mt, capfd, options, message):
    if message is None:
        with pytest.raises(SystemExit):
            run_mt(*options)
        return
    assert run_mt(*options) == 2
    assert message in capfd.readouterr().err


def test_without_data_the_places_tried_are_listed(shown, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert main(["mt", "train", *SMALL]) == 2
    error = capfd.readouterr().err
    assert "fra-eng.zip could not be found; tried:" in error
    assert "download: forbidden by RNNFAST_OFFLINE" in error


def test_checkpoints_of_others_are_refused(run_mt, pairs_file, tiny_pairs, tmp_path, capfd):
    pytest.importorskip("sacrebleu", reason="mt eval needs it")
    checkpoint.save(tmp_path / "lm.pt", {"kind": "language model"})
    assert main(["mt", "translate", "lm.pt", "go ."]) == 2
    assert "holds no translation model, but: language model" in capfd.readouterr().err
    assert run_mt("--epochs", "1") == 0
    other = tmp_path / "other.txt"
    other.write_text("".join(f"{s}\t{t}\n" for s, t in reversed(tiny_pairs)), "utf-8")
    assert main(["mt", "eval", "out/rnnfast.pt", "--pairs-file", str(other)]) == 2
    assert "was trained on other pairs than these" in capfd.readouterr().err


def test_missing_sacrebleu_is_named_with_the_extra(monkeypatch, capfd):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda wanted: None if wanted == "sacrebleu" else real(wanted)
    )
    assert main(["mt", "eval", "any.pt"]) == 2
    assert "mt eval needs sacrebleu: pip install 'rnnfast[text]'" in capfd.readouterr().err


@pytest.mark.parametrize("command", ["train", "translate", "eval", "compare"])
def test_help_is_worth_reading(command, capfd):
    with pytest.raises(SystemExit) as caught:
        main(["mt", command, "--help"])
    assert caught.value.code == 0
    assert len(capfd.readouterr().out.splitlines()) > 15
