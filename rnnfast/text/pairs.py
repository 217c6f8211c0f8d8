"""Pairs of sentences for translation: read, cut into words, padded, in minibatches."""

from __future__ import annotations

import hashlib
import io
import os
import re
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from . import data
from .vocab import Vocabulary

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"
RESERVED = ((PAD, EOS), (PAD, BOS, EOS))  # in the source, in the target

FRA_ENG = data.DataFile(
    name="fra-eng.zip",
    size=3_420_152,
    sha1="94646ad1522d915e7b0f9296181140edcf86a4f5",
    url="http://d2l-data.s3-accelerate.amazonaws.com/fra-eng.zip",
    title="English-French pairs (tatoeba.org, manythings.org/anki; CC BY 2.0)",
)
_MEMBER = "fra-eng/fra.txt"

_SPACES = re.compile("[\u202f\xa0]")
_PUNCTUATION = re.compile("(?<=[^ ])([,.!?])")


def clean(sentence: str) -> str:
    """Lower case; no-break spaces become spaces; a space before ``,.!?``."""
    return _PUNCTUATION.sub(r" \1", _SPACES.sub(" ", sentence).lower())


def words(sentence: str) -> list[str]:
    """The words of a sentence after `clean`."""
    return [word for word in clean(sentence).split(" ") if word]


def read_pairs(path: str | os.PathLike[str], limit: int | None = None) -> list[tuple[str, str]]:
    """(source, target) of the first ``limit`` lines ``source<TAB>target`` of a UTF-8 file.

    A ``.zip`` is read in place: its ``fra-eng/fra.txt``, or its only file.

    Raises:
        ValueError: not UTF-8, a line without a tab, no line at all, or a zip that holds neither.
        OSError: the file cannot be read.
    """
    pairs: list[tuple[str, str]] = []
    with _opened(path) as stream:
        try:
            for number, line in enumerate(stream, start=1):
                if limit is not None and len(pairs) == limit:
                    break
                parts = line.rstrip("\n").split("\t")
                if len(parts) < 2 or not all(part.strip() for part in parts[:2]):
                    raise ValueError(f"{path}, line {number}: not a pair 'source<TAB>target'")
                pairs.append((parts[0], parts[1]))
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8 text: {error.reason}") from error
    if not pairs:
        raise ValueError(f"{path} has no pairs of sentences")
    return pairs


def _opened(path: str | os.PathLike[str]) -> io.TextIOBase:
    if Path(path).suffix != ".zip":
        return open(path, encoding="utf-8")
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    names = archive.namelist()
    if _MEMBER not in names and len(names) != 1:
        raise ValueError(f"{path} has neither {_MEMBER} nor a single file, but {names[:5]}")
    return io.TextIOWrapper(archive.open(_MEMBER if _MEMBER in names else names[0]), "utf-8")


def pad_or_trim(tokens: Sequence[str], num_steps: int) -> list[str]:
    """The first ``num_steps`` tokens, or as many by ``<pad>``."""
    return [*tokens[:num_steps], *[PAD] * (num_steps - len(tokens))]


@dataclass(frozen=True)
class PairCorpus:
    """Pairs as indices, the first ``train_pairs`` to train on and the rest to validate on.

    ``source`` and ``target`` are int64 [N, num_steps], ``<eos>`` and padding included, cut there;
    ``source_lengths`` int64 [N] counts what is not padding. ``sentences`` are the pairs as text.
    """

    sentences: list[tuple[str, str]]
    source: Tensor
    target: Tensor
    source_vocab: Vocabulary
    target_vocab: Vocabulary
    num_steps: int
    train_pairs: int
    title: str

    @classmethod
    def from_pairs(
        cls,
        pairs: Sequence[tuple[str, str]],
        *,
        train_pairs: int = 512,
        num_steps: int = 9,
        min_freq: int = 2,
        title: str = "",
    ) -> PairCorpus:
        """Words seen less often than ``min_freq`` in the padded sentences read as ``<unk>``.

        Raises:
            ValueError: sizes that leave nothing to train on.
        """
        if num_steps < 1 or not 1 <= train_pairs <= len(pairs):
            raise ValueError(
                f"there are {len(pairs)} pairs; train_pairs must be 1 to that many and num_steps "
                f"positive, got {train_pairs} and {num_steps}"
            )
        vocabs: list[Vocabulary] = []
        arrays: list[Tensor] = []
        for side in (0, 1):
            rows = [pad_or_trim([*words(pair[side]), EOS], num_steps) for pair in pairs]
            every = (token for row in rows for token in row)
            vocab = Vocabulary(every, min_freq=min_freq, reserved=RESERVED[side])
            vocabs.append(vocab)
            arrays.append(torch.stack([vocab.encode(row) for row in rows]))
        return cls(
            sentences=list(pairs),
            source=arrays[0],
            target=arrays[1],
            source_vocab=vocabs[0],
            target_vocab=vocabs[1],
            num_steps=num_steps,
            train_pairs=train_pairs,
            title=title,
        )

    @property
    def source_lengths(self) -> Tensor:
        return (self.source != self.source_vocab.index(PAD)).sum(1)

    def encode_source(self, sentence: str) -> Tensor:
        """int64 [num_steps] of a sentence to translate."""
        return encode_source(sentence, self.source_vocab, self.num_steps)

    def validation_sentences(self) -> list[tuple[str, str]]:
        return self.sentences[self.train_pairs :]

    def fingerprint(self) -> str:
        """SHA-1 of all indices: tells whether a checkpoint was trained on these pairs."""
        content = repr((self.source.tolist(), self.target.tolist(), self.train_pairs))
        return hashlib.sha1(content.encode(), usedforsecurity=False).hexdigest()


def encode_source(sentence: str, vocab: Vocabulary, num_steps: int) -> Tensor:
    """int64 [num_steps]: the words, ``<eos>``, padding. Raises ValueError for an empty sentence."""
    found = words(sentence)
    if not found:
        raise ValueError("the sentence is empty")
    return vocab.encode(pad_or_trim([*found, EOS], num_steps))


@dataclass(frozen=True)
class PairBatch:
    """``source`` [T, B], its ``lengths`` [B], decoder ``inputs`` (``<bos>`` and the target but its
    last token) and ``targets`` [T, B]; all int64."""

    source: Tensor
    lengths: Tensor
    inputs: Tensor
    targets: Tensor


class PairDataset(Dataset[PairBatch]):
    """Pairs ``first`` to ``last`` of a corpus; a minibatch is fetched at once."""

    def __init__(self, corpus: PairCorpus, first: int, last: int) -> None:
        self.corpus, self.first, self.last = corpus, first, last
        self.lengths = corpus.source_lengths

    def __len__(self) -> int:
        return self.last - self.first

    def __getitem__(self, index: int) -> PairBatch:
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> PairBatch:
        at = torch.as_tensor(indices) + self.first
        source, targets = self.corpus.source[at].t(), self.corpus.target[at].t()
        bos = torch.full_like(targets[:1], self.corpus.target_vocab.index(BOS))
        inputs = torch.cat([bos, targets[:-1]])
        return PairBatch(source.contiguous(), self.lengths[at], inputs, targets.contiguous())


class PairBatches:
    """Minibatches of the training pairs, shuffled by ``generator``, or of the validation pairs in
    their order (``generator`` None); the last one may be smaller."""

    def __init__(
        self, corpus: PairCorpus, batch_size: int, generator: torch.Generator | None
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be positive, got {batch_size}")
        cut = corpus.train_pairs
        bounds = (0, cut) if generator is not None else (cut, len(corpus.sentences))
        self.loader: DataLoader[PairBatch] = DataLoader(
            PairDataset(corpus, *bounds),
            batch_size,
            shuffle=generator is not None,
            generator=generator,
            collate_fn=_as_fetched,
        )

    def __iter__(self) -> Iterator[PairBatch]:
        return iter(self.loader)


def _as_fetched(batch: object) -> object:
    return batch
