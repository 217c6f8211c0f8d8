"""A small generated text, a run on it, and the real text where there is one."""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from rnnfast.text import data, train
from rnnfast.text.corpus import Corpus
from rnnfast.text.mt_train import TranslationRecipe
from rnnfast.text.pairs import FRA_ENG, PairCorpus
from rnnfast.text.train import Recipe, TrainingRun

WORDS = "the time traveller sat by a fire and told us of his machine that ran through time".split()
TINY_RECIPE = Recipe(
    hidden_size=16, batch_size=4, num_steps=5, train_tokens=200, epochs=6, learning_rate=0.5
)


@pytest.fixture(autouse=True)
def _no_network_no_caches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing here may reach the network, the user's cache or the user's data by accident."""
    monkeypatch.setenv("RNNFAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("RNNFAST_OFFLINE", "1")
    monkeypatch.delenv("RNNFAST_DATA", raising=False)


@pytest.fixture
def shown() -> None:
    """For tests that train from the command line, which shows a bar and draws curves."""
    for name in ("tqdm", "matplotlib"):
        pytest.importorskip(name, reason=f"{name} is not installed")


@pytest.fixture(scope="session")
def tiny_content() -> str:
    """About 12,500 letters and spaces in 400 lines, with punctuation and capitals."""
    generator = torch.Generator().manual_seed(3)
    picks = torch.randint(len(WORDS), (400, 7), generator=generator).tolist()
    return "".join(" ".join(WORDS[pick] for pick in line).capitalize() + ".\n" for line in picks)


@pytest.fixture
def tiny_text(tiny_content: str) -> data.Text:
    return data.Text(title="tiny", content=tiny_content, origin="generated")


@pytest.fixture
def tiny_corpus(tiny_text: data.Text) -> Corpus:
    return Corpus.from_text(tiny_text, max_tokens=TINY_RECIPE.train_tokens)


@pytest.fixture
def tiny_file(tiny_content: str, tmp_path: Path) -> data.DataFile:
    """The tiny text as something to be found or downloaded; its url is a local file."""
    source = tmp_path / "server" / "tiny.txt"
    source.parent.mkdir()
    source.write_text(tiny_content)
    content = source.read_bytes()
    return data.DataFile(
        name="tiny.txt",
        size=len(content),
        sha1=hashlib.sha1(content).hexdigest(),
        url=source.as_uri(),
        title="The Tiny Text",
    )


SUBJECTS = {"i": "je", "you": "tu", "we": "nous", "they": "ils"}
VERBS = {"see": "vois", "eat": "mange", "take": "prends", "like": "aime"}
OBJECTS = {"bread.": "du pain.", "soup!": "la soupe\u202f!", "it.": "cela.", "you?": "toi\xa0?"}


@pytest.fixture(scope="session")
def tiny_pairs() -> list[tuple[str, str]]:
    """64 generated pairs, all different, in a mixed order; with no-break spaces as the real."""
    pairs = [
        (f"{who.capitalize()} {verb} {what}", f"{SUBJECTS[who].capitalize()} {VERBS[verb]} {quoi}")
        for who in SUBJECTS
        for verb in VERBS
        for what, quoi in OBJECTS.items()
    ]
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(2))
    return [pairs[at] for at in order]


@pytest.fixture
def pair_corpus(tiny_pairs: list[tuple[str, str]]) -> PairCorpus:
    return PairCorpus.from_pairs(tiny_pairs, train_pairs=48, num_steps=6, title="tiny pairs")


@pytest.fixture
def pairs_file(tiny_pairs: list[tuple[str, str]], tmp_path: Path) -> Path:
    path = tmp_path / "pairs.txt"
    path.write_text("".join(f"{source}\t{target}\n" for source, target in tiny_pairs), "utf-8")
    return path


TINY_TRANSLATION = TranslationRecipe(
    embedding_size=12, hidden_size=16, num_steps=6, train_pairs=48, batch_size=16, epochs=4
)


@pytest.fixture
def make_run(tiny_corpus: Corpus) -> Callable[..., TrainingRun]:
    def make(
        implementation: str = "torch", seed: int = 0, recipe: Recipe = TINY_RECIPE
    ) -> TrainingRun:
        return TrainingRun(implementation, tiny_corpus, recipe, seed)

    return make


_GIVEN_DATA = os.environ.get("RNNFAST_DATA") or str(
    Path(__file__).resolve().parents[3] / "shared" / "data"
)


@pytest.fixture
def real_text(monkeypatch: pytest.MonkeyPatch) -> data.Text:
    """The Time Machine, from ``RNNFAST_DATA`` or ``../shared/data``."""
    monkeypatch.setenv("RNNFAST_DATA", _GIVEN_DATA)
    try:
        return data.load(data.TIME_MACHINE)
    except data.DataCorrupt:
        raise
    except data.DataUnavailable as error:
        pytest.skip(f"needs the real text: {error}")


@pytest.fixture
def real_pairs(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The English-French pairs, from ``RNNFAST_DATA`` or ``../shared/data``."""
    monkeypatch.setenv("RNNFAST_DATA", _GIVEN_DATA)
    try:
        return data.find(FRA_ENG)
    except data.DataCorrupt:
        raise
    except data.DataUnavailable as error:
        pytest.skip(f"needs the real pairs: {error}")


def interrupt_at(monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    """Ctrl-C in the middle of the ``call``-th epoch of all."""
    count = 0
    inner = train.train_epoch

    def epoch(*arguments: object) -> object:
        nonlocal count
        count += 1
        if count == call:
            os.kill(os.getpid(), signal.SIGINT)
        return inner(*arguments)

    monkeypatch.setattr(train, "train_epoch", epoch)
