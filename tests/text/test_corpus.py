"""Cleaning, vocabulary and the counts of the real text."""

from __future__ import annotations

import pytest
import torch

from rnnfast.text.corpus import Corpus, clean_lines, clean_whole
from rnnfast.text.data import Text
from rnnfast.text.vocab import UNKNOWN, Vocabulary


def text_of(content: str) -> Text:
    return Text(title="sample", content=content, origin="test")


def test_lines_are_stripped_and_joined_without_a_space():
    assert clean_lines("  I 'see',\nthe--Object.\n\n3\n") == "i seethe object"


def test_whole_text_keeps_one_space_for_each_run():
    assert clean_whole("  I 'see',\nthe--Object.\n\n3\n") == " i see the object "


@pytest.mark.needs_data
@pytest.mark.parametrize(("cleaning", "tokens"), [("lines", 170_580), ("whole", 173_428)])
def test_counts_of_the_real_text(real_text, cleaning, tokens):
    corpus = Corpus.from_text(real_text, cleaning=cleaning)
    assert len(corpus.tokens) == corpus.total_tokens == tokens
    assert len(corpus.vocab) == 28
    assert corpus.tokens.min() == 1
    assert corpus.tokens.max() == 27


@pytest.mark.needs_data
def test_beginning_of_the_real_text(real_text):
    corpus = Corpus.from_text(real_text, max_tokens=10_000)
    assert len(corpus.tokens) == 10_000
    assert corpus.vocab.decode(corpus.tokens[:40]) == "the time machine by h g wellsithe time t"


def test_vocabulary_comes_from_the_whole_text_not_only_its_first_tokens():
    corpus = Corpus.from_text(text_of("aaab"), max_tokens=2)
    assert corpus.vocab.to_list() == [UNKNOWN, "a", "b"]
    assert corpus.tokens.tolist() == [1, 1]
    assert corpus.tokens.dtype == torch.int64


def test_fingerprint_tells_texts_apart():
    one, two = (Corpus.from_text(text_of(content)) for content in ("aabb", "abab"))
    assert one.vocab == two.vocab
    assert one.fingerprint() != two.fingerprint()
    assert one.fingerprint() == Corpus.from_text(text_of("aabb")).fingerprint()


@pytest.mark.parametrize("content", ["", "\n\n", "12 34 !"])
@pytest.mark.parametrize("cleaning", ["lines", "whole"])
def test_empty_text_is_refused(content, cleaning):
    with pytest.raises(ValueError, match="sample: the text has no letters"):
        Corpus.from_text(text_of(content), cleaning=cleaning)


def test_unknown_cleaning_is_refused():
    with pytest.raises(ValueError, match=r"one of \['lines', 'raw', 'whole'\], got 'words'"):
        Corpus.from_text(text_of("a"), cleaning="words")


def test_vocabulary_orders_by_frequency_then_alphabet():
    assert Vocabulary("bbcaac").to_list() == [UNKNOWN, "a", "b", "c"]
    assert Vocabulary("bbcaa").to_list() == [UNKNOWN, "a", "b", "c"]
    assert Vocabulary("cccb").to_list() == [UNKNOWN, "c", "b"]


def test_min_freq_and_reserved_tokens():
    words = ["go", "go", "run", "<pad>"]
    vocab = Vocabulary(words, min_freq=2, reserved=["<pad>", "<bos>"])
    assert vocab.to_list() == [UNKNOWN, "<pad>", "<bos>", "go"]
    assert vocab.encode(["<bos>", "go", "run"]).tolist() == [2, 3, 0]
    assert "run" not in vocab
    assert "go" in vocab


def test_decode_is_the_inverse_of_encode():
    vocab = Vocabulary("the time")
    assert vocab.decode(vocab.encode("time the")) == "time the"
    assert vocab.decode(vocab.encode("tee?")) == "tee<unk>"


@pytest.mark.parametrize("index", [-1, 3])
def test_index_outside_is_refused(index):
    with pytest.raises(IndexError, match=f"index {index} is outside a vocabulary of 3"):
        Vocabulary("ab").token(index)


def test_list_round_trip():
    vocab = Vocabulary("hello", reserved=["<pad>"])
    assert Vocabulary.from_list(vocab.to_list()) == vocab
    assert Vocabulary.from_list(vocab.to_list()).index("l") == vocab.index("l")


def test_bad_vocabularies_are_refused():
    with pytest.raises(ValueError, match="first token must be '<unk>'"):
        Vocabulary.from_list(["a"])
    with pytest.raises(ValueError, match=r"given twice: \['<pad>'\]"):
        Vocabulary("", reserved=["<pad>", "<pad>"])
