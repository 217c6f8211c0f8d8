"""Pairs of sentences: reading, cleaning, padding, minibatches."""

from __future__ import annotations

import zipfile

import pytest
import torch

from rnnfast.text import data
from rnnfast.text.pairs import (
    BOS,
    EOS,
    FRA_ENG,
    PAD,
    PairBatches,
    PairCorpus,
    clean,
    encode_source,
    pad_or_trim,
    read_pairs,
    words,
)


def test_cleaning():
    assert clean("Va\u202f!") == "va !"
    assert clean("I lost.") == "i lost ."
    assert clean("Oh\xa0? No...") == "oh ? no . . ."
    assert words("He's calm.") == ["he's", "calm", "."]
    assert words("a  b ") == ["a", "b"]


def test_padding_and_trimming():
    assert pad_or_trim(["a", "b"], 4) == ["a", "b", PAD, PAD]
    assert pad_or_trim(["a", "b", "c"], 2) == ["a", "b"]


def test_reading_a_file_and_a_zip_in_place(pairs_file, tiny_pairs, tmp_path):
    assert read_pairs(pairs_file) == tiny_pairs
    assert read_pairs(pairs_file, 5) == tiny_pairs[:5]
    packed = tmp_path / "pairs.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        archive.write(pairs_file, "any/name.txt")
    assert read_pairs(packed) == tiny_pairs
    with zipfile.ZipFile(packed, "a") as archive:
        archive.writestr("_about.txt", "not pairs")
    with pytest.raises(ValueError, match=r"has neither fra-eng/fra\.txt nor a single file"):
        read_pairs(packed)
    with zipfile.ZipFile(packed, "a") as archive:
        archive.write(pairs_file, "fra-eng/fra.txt")
    assert read_pairs(packed, 3) == tiny_pairs[:3]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no pairs of sentences"),
        (b"Go.\tVa !\nno tab here\n", "line 2: not a pair"),
        (b"Go.\t\n", "line 1: not a pair"),
        (b"Go.\t\xff\xfe\n", "is not UTF-8 text"),
    ],
)
def test_bad_files_are_refused(tmp_path, content, message):
    path = tmp_path / "pairs.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_pairs(path)


def test_a_damaged_zip_is_refused(tmp_path):
    path = tmp_path / "pairs.zip"
    path.write_bytes(b"PK not a zip")
    with pytest.raises(ValueError, match=r"pairs\.zip is damaged"):
        read_pairs(path)


def test_indices_and_lengths():
    corpus = PairCorpus.from_pairs(
        [("Go.", "Va !"), ("Go on.", "Va !"), ("Go on and on.", "Va et va !")],
        train_pairs=2, num_steps=5,
    )  # fmt: skip
    source, target = corpus.source_vocab, corpus.target_vocab
    assert source.to_list() == ["<unk>", PAD, EOS, ".", "go", "on"]
    assert target.to_list() == ["<unk>", PAD, BOS, EOS, "va", "!"]
    rows = [[source.token(i) for i in row] for row in corpus.source.tolist()]
    assert rows == [
        ["go", ".", EOS, PAD, PAD],
        ["go", "on", ".", EOS, PAD],
        ["go", "on", "<unk>", "on", "."],
    ]
    assert corpus.source_lengths.tolist() == [3, 4, 5]
    assert corpus.validation_sentences() == [("Go on and on.", "Va et va !")]
    assert encode_source("GO on.", source, 5).tolist() == corpus.source[1].tolist()
    with pytest.raises(ValueError, match="the sentence is empty"):
        encode_source(" ", source, 5)


def test_decoder_inputs_are_the_targets_one_step_late(pair_corpus):
    batch = next(iter(PairBatches(pair_corpus, 4, None)))
    assert batch.source.shape == batch.inputs.shape == batch.targets.shape == (6, 4)
    assert torch.equal(batch.inputs[1:], batch.targets[:-1])
    assert (batch.inputs[0] == pair_corpus.target_vocab.index(BOS)).all()
    assert torch.equal(batch.targets.t(), pair_corpus.target[48:52])
    assert torch.equal(batch.lengths, pair_corpus.source_lengths[48:52])


def test_training_minibatches_cover_the_training_pairs_once(pair_corpus):
    batches = PairBatches(pair_corpus, 20, torch.Generator().manual_seed(1))
    orders = []
    for _ in range(2):
        rows = torch.cat([batch.source.t() for batch in batches])
        assert [batch.source.shape[1] for batch in batches] == [20, 20, 8]
        orders.append(rows)
        assert sorted(rows.tolist()) == sorted(pair_corpus.source[:48].tolist())
    assert not torch.equal(*orders)
    again = PairBatches(pair_corpus, 20, torch.Generator().manual_seed(1))
    assert torch.equal(orders[0], torch.cat([batch.source.t() for batch in again]))


def test_bad_sizes_are_refused(tiny_pairs, pair_corpus):
    with pytest.raises(ValueError, match=r"there are 64 pairs; train_pairs must be .* got 65"):
        PairCorpus.from_pairs(tiny_pairs, train_pairs=65)
    with pytest.raises(ValueError, match="batch_size must be positive, got 0"):
        PairBatches(pair_corpus, 0, None)


@pytest.mark.needs_data
def test_counts_of_the_real_pairs(real_pairs):
    corpus = PairCorpus.from_pairs(read_pairs(real_pairs, 641))
    assert (len(corpus.source_vocab), len(corpus.target_vocab)) == (194, 214)
    assert len(corpus.validation_sentences()) == 129
    assert corpus.sentences[0] == ("Go.", "Va !")


def test_the_real_file_is_known_by_its_sha1(tmp_path, monkeypatch):
    (tmp_path / FRA_ENG.name).write_bytes(b"corrupt")
    monkeypatch.setenv("RNNFAST_DATA", str(tmp_path))
    with pytest.raises(data.DataCorrupt, match=r"fra-eng\.zip .* is not used: SHA-1 is"):
        data.find(FRA_ENG)
