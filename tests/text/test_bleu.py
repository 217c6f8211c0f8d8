"""BLEU by hand, and against sacreBLEU's counts."""

from __future__ import annotations

import math

import pytest
import torch

from rnnfast.text.bleu import bleu, matches, sacrebleu_of

sacrebleu = pytest.importorskip("sacrebleu", reason="sacrebleu is not installed")


def test_by_hand():
    assert bleu("va !", "va !") == 1.0
    assert bleu("j'ai perdu .", "j'ai perdu .") == 1.0
    # p1 = 2/3, p2 = 1/2; as long as the label
    assert bleu("sois calme .", "il calme .") == pytest.approx((2 / 3) ** 0.5 * 0.5**0.25)
    # the chapter prints 0.492 for this one: p1 = 2/3, p2 = 1/2, the label one word longer
    assert bleu("sois calme .", "il est calme .") == pytest.approx(
        math.exp(1 - 4 / 3) * (2 / 3) ** 0.5 * 0.5**0.25
    )
    assert f"{bleu('sois calme .', 'il est calme .'):.3f}" == "0.492"


def test_a_longer_prediction_is_not_punished_beyond_its_precision():
    assert bleu("a b c d", "a b", k=1) == pytest.approx(math.sqrt(0.5))


def test_runs_count_as_often_as_the_label_has_them():
    assert matches(["a", "a", "a"], ["a", "a", "b"], 1) == 2
    assert matches(["a", "b", "a", "b"], ["a", "b"], 2) == 1


def test_short_and_empty_predictions():
    assert bleu("", "va !") == 0.0
    assert bleu("va", "va", k=4) == 1.0
    assert bleu("x", "va") == 0.0


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="BLEU needs k >= 1 and a label"):
        bleu("a", "a", k=0)
    with pytest.raises(ValueError, match="BLEU needs k >= 1 and a label"):
        bleu("a", " ")


def random_sentences(seed: int) -> list[str]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(4, 9, (20,), generator=generator).tolist()
    return [
        " ".join("abcde"[i] for i in torch.randint(5, (n,), generator=generator)) for n in lengths
    ]


def test_counts_are_sacrebleus():
    found, wanted = random_sentences(1), random_sentences(2)
    theirs = sacrebleu.corpus_bleu(found, [wanted], tokenize="none", force=True)
    for n in (1, 2, 3, 4):
        ours = sum(matches(f.split(), w.split(), n) for f, w in zip(found, wanted, strict=True))
        assert ours == theirs.counts[n - 1]
    assert sacrebleu_of(found, wanted) == theirs.score
    assert sacrebleu_of(wanted, wanted) == pytest.approx(100.0)
