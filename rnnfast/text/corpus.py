"""From raw text to a row of character indices."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from .data import Text
from .vocab import Vocabulary

_NON_LETTERS = re.compile("[^A-Za-z]+")


def clean_whole(text: str) -> str:
    """Every run of non-letters (line ends included) becomes one space; lower case."""
    return _NON_LETTERS.sub(" ", text).lower()


def clean_lines(text: str) -> str:
    """`clean_whole` of each line, stripped, the lines joined *without* a space.

    The last word of a line thus runs into the first of the next ("see" + "the" = "seethe").
    """
    return "".join(clean_whole(line).strip() for line in text.splitlines())


def as_it_is(text: str) -> str:
    """Every character, line ends, accents and digits included."""
    return text


CLEANINGS: dict[str, Callable[[str], str]] = {
    "lines": clean_lines,
    "whole": clean_whole,
    "raw": as_it_is,
}


@dataclass(frozen=True)
class Corpus:
    """A cleaned text as indices.

    ``tokens`` is int64 [N], cut to the first ``max_tokens``; ``vocab`` is built on the whole text,
    which has ``total_tokens``.
    """

    tokens: Tensor
    total_tokens: int
    vocab: Vocabulary
    title: str
    is_standin: bool

    @classmethod
    def from_text(
        cls,
        text: Text,
        *,
        cleaning: str = "lines",
        max_tokens: int | None = None,
        min_freq: int = 1,
        vocab: Vocabulary | None = None,
    ) -> Corpus:
        """Clean ``text`` by characters with one of `CLEANINGS`.

        Characters seen less often than ``min_freq`` read as ``<unk>``. ``vocab``: that of a model
        which is to read the text, in place of the text's own.

        Raises:
            ValueError: ``cleaning`` is unknown, or nothing is left of the text.
        """
        if cleaning not in CLEANINGS:
            raise ValueError(f"cleaning must be one of {sorted(CLEANINGS)}, got {cleaning!r}")
        characters = CLEANINGS[cleaning](text.content)
        if not characters.strip():
            raise ValueError(f"{text.title}: the text has no letters, so there is nothing to learn")
        if vocab is None:
            vocab = Vocabulary(characters, min_freq=min_freq)
        tokens = vocab.encode(characters[:max_tokens])
        return cls(tokens, len(characters), vocab, text.title, text.is_standin)

    def fingerprint(self) -> str:
        """SHA-1 of the tokens: tells whether a checkpoint was trained on this text."""
        return hashlib.sha1(repr(self.tokens.tolist()).encode(), usedforsecurity=False).hexdigest()
