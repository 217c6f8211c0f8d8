"""BLEU: the chapter's for one sentence, sacreBLEU's for a set."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence


def ngrams(tokens: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    """How often each run of ``n`` tokens occurs."""
    return Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))


def matches(prediction: Sequence[str], label: Sequence[str], n: int) -> int:
    """Runs of ``n`` tokens in both, each counted as often as ``label`` has it."""
    return sum((ngrams(prediction, n) & ngrams(label, n)).values())


def bleu(prediction: str, label: str, k: int = 2) -> float:
    """exp(min(0, 1 − len_label / len_prediction)) · Π_{n=1..k} p_n^(1/2ⁿ), as d2l.ai defines it.

    ``p_n`` is the part of the prediction's runs of n words that the label has too; n stops at the
    prediction's length. Words are what spaces part. 0 for an empty prediction.

    Raises:
        ValueError: ``k`` is below 1, or ``label`` is empty.
    """
    found, wanted = prediction.split(), label.split()
    if k < 1 or not wanted:
        raise ValueError(f"BLEU needs k >= 1 and a label, got k = {k} and {label!r}")
    if not found:
        return 0.0
    score = math.exp(min(0.0, 1 - len(wanted) / len(found)))
    for n in range(1, min(k, len(found)) + 1):
        precision = matches(found, wanted, n) / (len(found) - n + 1)
        score *= precision ** (0.5**n)
    return score


def sacrebleu_of(predictions: Sequence[str], labels: Sequence[str]) -> float:
    """sacreBLEU's corpus score (0 to 100) of sentences whose words are parted by spaces.

    It is the usual BLEU: four lengths of runs alike, summed over the set before they are divided.

    Raises:
        ImportError: sacrebleu is not installed (``pip install 'rnnfast[text]'``).
    """
    import sacrebleu

    result = sacrebleu.corpus_bleu(list(predictions), [list(labels)], tokenize="none", force=True)
    return float(result.score)
