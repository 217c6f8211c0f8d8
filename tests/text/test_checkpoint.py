"""Checkpoints: going on from one, and what is refused."""

from __future__ import annotations

import errno
import os
import zipfile
from dataclasses import replace

import pytest
import torch

from rnnfast.text import checkpoint
from rnnfast.text.checkpoint import CheckpointError
from rnnfast.text.corpus import Corpus
from rnnfast.text.data import Text
from rnnfast.text.train import TrainingRun

from .conftest import TINY_RECIPE


def go_on(run) -> bool:
    return True


@pytest.fixture
def saved(make_run, tmp_path):
    """A run after 2 epochs and its checkpoint."""
    run = make_run()
    run.train(2, go_on)
    path = tmp_path / "run.pt"
    run.save(path)
    return run, path


@pytest.mark.parametrize("implementation", ["rnnfast", "torch", "scratch"])
@pytest.mark.parametrize("cell", ["RNN", "LSTM"])
def test_going_on_gives_the_numbers_of_an_uninterrupted_run(
    make_run, tmp_path, implementation, cell
):
    recipe = replace(TINY_RECIPE, cell=cell)
    whole = make_run(implementation, recipe=recipe)
    whole.train(6, go_on)
    stopped = make_run(implementation, recipe=recipe)
    stopped.train(2, go_on)
    stopped.save(tmp_path / "run.pt")
    resumed = make_run(implementation, recipe=recipe)
    resumed.restore(tmp_path / "run.pt")
    assert resumed.epoch == 2
    resumed.train(4, go_on)
    assert resumed.history.perplexity == whole.history.perplexity
    assert resumed.history.first_losses == whole.history.first_losses
    for (name, ours), theirs in zip(
        resumed.model.named_parameters(), whole.model.parameters(), strict=True
    ):
        assert torch.equal(ours, theirs), name


def test_random_stream_goes_on_too(make_run, tmp_path):
    """Dropout draws from the run's own stream; a stop must not shift it."""

    def with_noise(run):
        run.model.output = torch.nn.Sequential(torch.nn.Dropout(0.5), run.model.output)
        run.model.output.weight = run.model.output[1].weight
        return run

    whole, stopped, resumed = (with_noise(make_run()) for _ in range(3))
    whole.train(4, go_on)
    stopped.train(2, go_on)
    stopped.save(tmp_path / "run.pt")
    torch.rand(5)
    resumed.restore(tmp_path / "run.pt")
    resumed.train(2, go_on)
    assert resumed.history.perplexity == whole.history.perplexity


def test_holds_the_vocabulary(saved):
    run, path = saved
    assert checkpoint.load(path)["vocabulary"] == run.corpus.vocab.to_list()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 1}, "seed is 0 there and 1 here"),
        ({"implementation": "rnnfast"}, "implementation is 'torch' there and 'rnnfast' here"),
        ({"recipe": replace(TINY_RECIPE, cell="GRU")}, "model_spec is .*'RNN'.*'GRU'"),
        ({"recipe": replace(TINY_RECIPE, hidden_size=17)}, "model_spec is .*16.*17"),
    ],
)
def test_another_models_checkpoint_is_refused(saved, make_run, change, words):
    _, path = saved
    other = make_run(**change)
    before = [parameter.clone() for parameter in other.model.parameters()]
    with pytest.raises(CheckpointError, match=f"run.pt belongs to another run: .*{words}"):
        other.restore(path)
    assert other.epoch == 0
    assert all(map(torch.equal, before, other.model.parameters()))


def test_another_texts_checkpoint_is_refused(saved, tiny_content):
    _, path = saved
    text = Text(title="tiny", content=tiny_content[::-1], origin="reversed")
    corpus = Corpus.from_text(text, max_tokens=TINY_RECIPE.train_tokens)
    with pytest.raises(CheckpointError, match="data_sha1 is"):
        TrainingRun("torch", corpus, TINY_RECIPE, 0).restore(path)


def test_more_epochs_are_still_the_same_run(saved, make_run):
    _, path = saved
    longer = make_run(recipe=replace(TINY_RECIPE, epochs=100))
    longer.restore(path)
    assert longer.epoch == 2


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"there is no checkpoint .*none\.pt"):
        checkpoint.load(tmp_path / "none.pt")


def test_truncated_file_is_refused(saved):
    _, path = saved
    content = path.read_bytes()
    for keep in (0, 10, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:keep])
        with pytest.raises(CheckpointError, match=r"run\.pt is damaged"):
            checkpoint.load(path)


def test_flipped_bit_is_noticed(saved):
    _, path = saved
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
    content[largest.header_offset + 200] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged: wrong checksum"):
        checkpoint.load(path)


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save({"weight": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match=r"was not written by rnnfast\.text"):
        checkpoint.load(path)
    torch.save(os.system, path)
    with pytest.raises(CheckpointError, match="is damaged or is no checkpoint"):
        checkpoint.load(path)
    path.write_text("hello")
    with pytest.raises(CheckpointError, match="is damaged or is no checkpoint"):
        checkpoint.load(path)


def test_other_versions_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "VERSION", 99)
    checkpoint.save(tmp_path / "new.pt", {})
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="has version 99, this is 1"):
        checkpoint.load(tmp_path / "new.pt")


def test_full_disk_keeps_the_older_checkpoint(saved, monkeypatch):
    run, path = saved
    older = path.read_bytes()
    run.train(1, go_on)

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            run.save(path)
    assert path.read_bytes() == older
    assert list(path.parent.glob("*.tmp")) == list(path.parent.glob(".*.tmp")) == []
    run.save(path)
    assert checkpoint.load(path)["epoch"] == 3
