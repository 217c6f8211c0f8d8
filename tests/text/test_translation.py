"""Encoder, decoder, training and translating."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from rnnfast.text.model import IMPLEMENTATIONS, load_weights
from rnnfast.text.mt_train import TranslationRecipe, TranslationRun, evaluate_pairs
from rnnfast.text.pairs import BOS, EOS, PAD, PairBatches
from rnnfast.text.seq2seq import Seq2Seq, Seq2SeqSpec
from rnnfast.text.translate import Translator
from rnnfast.text.vocab import Vocabulary

from .conftest import TINY_TRANSLATION

SPEC = Seq2SeqSpec(7, 8, embedding_size=5, hidden_size=6, dropout=0.0)


def go_on(run) -> bool:
    return True


@pytest.fixture
def make_translation(pair_corpus):
    def make(
        implementation: str = "rnnfast",
        seed: int = 0,
        recipe: TranslationRecipe = TINY_TRANSLATION,
    ) -> TranslationRun:
        return TranslationRun(implementation, pair_corpus, recipe, seed)

    return make


# --- the model -----------------------------------------------------------------------------------


def test_the_context_is_the_encoders_last_output_at_every_step():
    model = Seq2Seq("torch", SPEC)
    source, inputs, lengths = (
        torch.randint(7, (4, 3)),
        torch.randint(8, (5, 3)),
        torch.tensor([4, 2, 3]),
    )
    outputs, state = model.encoder(model.source_embedding(source))
    joined = torch.cat([model.target_embedding(inputs), outputs[-1].repeat(5, 1, 1)], -1)
    expected = model.output(model.decoder(joined, state)[0])
    torch.testing.assert_close(model(source, lengths, inputs), expected)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("cell", ["GRU", "LSTM"])
def test_read_by_lengths_padding_does_not_matter(implementation, cell):
    model = Seq2Seq(implementation, replace(SPEC, reads_lengths=True, cell=cell))
    source, inputs, lengths = (
        torch.randint(7, (4, 3)),
        torch.randint(8, (5, 3)),
        torch.tensor([4, 2, 3]),
    )
    logits = model(source, lengths, inputs)
    other = source.clone()
    other[2:, 1] = (other[2:, 1] + 1) % 7
    torch.testing.assert_close(model(other, lengths, inputs), logits)
    alone = model(source[:2, 1:2], lengths[1:2], inputs[:, 1:2])
    torch.testing.assert_close(alone[:, 0], logits[:, 1])
    read_all = Seq2Seq(implementation, replace(SPEC, cell=cell))
    load_weights(read_all, model.state_dict())
    assert not torch.allclose(read_all(other, lengths, inputs), read_all(source, lengths, inputs))


def test_initialisation():
    model = Seq2Seq("rnnfast", Seq2SeqSpec(194, 214))
    assert float(model.source_embedding.weight.detach().std()) == pytest.approx(1.0, rel=0.02)
    for layer, width in ((model.encoder, 256), (model.decoder, 512)):
        bound = math.sqrt(6 / (width + 3 * 256))
        weight = layer.weight_ih_l0.detach()
        assert 0.99 * bound < float(weight.abs().max()) <= bound
        assert float(layer.bias_ih_l0.detach().abs().max()) <= 1 / 16
    assert float(model.output.weight.detach().abs().max()) <= 1 / 16


# --- training ------------------------------------------------------------------------------------


def test_the_loss_leaves_padding_out(make_translation):
    run = make_translation(recipe=replace(TINY_TRANSLATION, batch_size=48, max_norm=0.0))
    batch = next(iter(PairBatches(run.corpus, 48, torch.Generator().manual_seed(0))))
    real = batch.targets != run.pad
    assert 0 < real.sum() < real.numel()
    run.train(1, go_on)
    assert run.history.tokens == [int(real.sum())]
    # dropout is on in training, so compare with it off
    still = make_translation(recipe=replace(TINY_TRANSLATION, batch_size=48, dropout=0.0))
    load_weights(still.model, run.model.state_dict())
    still.train(1, go_on)
    again = still.history.first_losses[0]
    logits = run.model.eval()(batch.source, batch.lengths, batch.inputs)
    log_p = torch.log_softmax(logits, -1).gather(-1, batch.targets[..., None])[..., 0]
    assert again == pytest.approx(float(-log_p[real].mean().detach()), rel=1e-4)


def test_evaluation_weighs_words(make_translation):
    run = make_translation()
    batches = PairBatches(run.corpus, 5, None)
    total, count = 0.0, 0
    for batch in batches:
        logits = run.model.eval()(batch.source, batch.lengths, batch.inputs)
        real = batch.targets != run.pad
        loss = F.cross_entropy(logits[real], batch.targets[real], reduction="sum")
        total += float(loss.detach())
        count += int(real.sum())
    run.model.train()
    found = evaluate_pairs(run.model, batches, run.pad)
    assert found == pytest.approx(math.exp(total / count), rel=1e-5)
    assert run.model.training


def test_it_learns_the_tiny_language(make_translation):
    run = make_translation(recipe=replace(TINY_TRANSLATION, hidden_size=32, dropout=0.0))
    run.train(80, go_on)
    assert run.history.perplexity[-1] < 1.1
    found = run.translator().greedy(["I see bread.", "they like it."])
    assert found == ["je vois du pain .", "ils aime cela ."]


def test_going_on_gives_the_numbers_of_an_uninterrupted_run(make_translation, tmp_path):
    whole, stopped, resumed = (make_translation() for _ in range(3))
    whole.train(4, go_on)
    stopped.train(2, go_on)
    stopped.save(tmp_path / "run.pt")
    resumed.restore(tmp_path / "run.pt")
    resumed.train(2, go_on)
    assert resumed.history.perplexity == whole.history.perplexity
    assert resumed.history.validation == whole.history.validation
    assert len(whole.history.validation) == 4


# --- translating ---------------------------------------------------------------------------------


def wild_translator(num_steps: int = 4, seed: int = 0) -> Translator:
    source = Vocabulary("abc", reserved=[PAD, EOS])
    target = Vocabulary("xyz", reserved=[PAD, BOS, EOS])
    spec = replace(SPEC, source_vocab=len(source), target_vocab=len(target))
    torch.manual_seed(seed)
    model = Seq2Seq("rnnfast", spec)
    with torch.no_grad():
        model.output.weight.normal_(std=4.0)
        for name, parameter in model.decoder.named_parameters():
            parameter.normal_(std=2.0 if "weight_hh" in name else 0.5)
    return Translator(model.train(), source, target, num_steps)


@torch.no_grad()
def log_probabilities(
    translator: Translator, sentence: str, rows: list[tuple[int, ...]]
) -> dict[tuple[int, ...], float]:
    """Σ log p of each of ``rows``, which are equally long, by one call of the model."""
    context, state = translator._encode([sentence])
    tokens = torch.tensor(rows).t()  # [T, N]
    bos = torch.full_like(tokens[:1], translator.target_vocab.index(BOS))
    many = (context.expand(len(rows), -1), state.expand(-1, len(rows), -1).contiguous())
    logits, _ = translator.model.decode(torch.cat([bos, tokens[:-1]]), *many)
    log_p = torch.log_softmax(logits, -1).gather(-1, tokens[..., None]).sum((0, 2))
    return dict(zip(rows, log_p.tolist(), strict=True))


def text_of(translator: Translator, tokens: tuple[int, ...]) -> str:
    eos = translator.target_vocab.index(EOS)
    return " ".join(translator.target_vocab.token(t) for t in tokens if t != eos)


def test_greedy_takes_the_likeliest_word():
    translator = wild_translator(6)
    with torch.no_grad():
        translator.model.source_embedding.weight.mul_(5)
    eos = translator.target_vocab.index(EOS)
    sentences = ["a", "b c", "a b c a", "c", "b b", "c c", "a a"]
    together = translator.greedy(sentences)
    for sentence, text in zip(sentences, together, strict=True):
        tokens: tuple[int, ...] = ()
        while len(tokens) < 6 and eos not in tokens:
            grown = log_probabilities(translator, sentence, [(*tokens, t) for t in range(7)])
            tokens = max(grown, key=grown.__getitem__)
        assert text == text_of(translator, tokens)
    assert len(set(together)) > 1
    assert translator.model.training
    assert translator.greedy([]) == []


class AnotherTableForEveryHistory(torch.nn.Module):
    """Its state is the words so far as a number in base 10; each has random logits of its own.

    A beam that mixes up the states of its rows is lost at once, as no two histories are alike.
    """

    def __init__(self) -> None:
        super().__init__()
        self.output = torch.nn.Linear(1, 1)

    def encode(self, source, lengths):
        batch = source.shape[1]
        return torch.zeros(batch, 1), torch.zeros(1, batch, 1, dtype=torch.int64)

    def logits(self, history: int) -> torch.Tensor:
        return 2 * torch.randn(7, generator=torch.Generator().manual_seed(history))

    def decode(self, inputs, context, state):
        assert len(context) == inputs.shape[1]
        state = state * 10 + inputs[0, None, :, None]
        return torch.stack([self.logits(int(h)) for h in state.flatten()])[None], state


def test_a_beam_that_keeps_everything_finds_the_best_of_all():
    translator = replace(wild_translator(4), model=AnotherTableForEveryHistory())
    eos = translator.target_vocab.index(EOS)
    scores: dict[tuple[int, ...], float] = {}

    def walk(tokens: tuple[int, ...], history: int, score: float) -> None:
        if tokens and (tokens[-1] == eos or len(tokens) == 4):
            scores[tokens] = score / len(tokens) ** 0.75
            return
        log_p = torch.log_softmax(translator.model.logits(history), -1).tolist()
        for token in range(7):
            walk((*tokens, token), history * 10 + token, score + log_p[token])

    walk((), translator.target_vocab.index(BOS), 0.0)
    assert len(scores) == 1 + 6 + 36 + 216 * 7
    best = max(scores, key=scores.__getitem__)
    assert translator.beam("a", width=7**4) == text_of(translator, best)
    assert translator.beam("a", width=1) == translator.greedy(["a"])[0] != text_of(translator, best)


def test_a_beam_of_one_is_greedy():
    translator = wild_translator(6)
    for sentence in ("a", "b c", "c b a"):
        assert translator.beam(sentence, width=1) == translator.greedy([sentence])[0]


def test_bad_input_is_refused():
    translator = wild_translator()
    with pytest.raises(ValueError, match="the sentence is empty"):
        translator.greedy(["a", " "])
    with pytest.raises(ValueError, match="width of the beam must be at least 1, got 0"):
        translator.beam("a", width=0)


@pytest.mark.needs_data
def test_first_epoch_on_the_real_pairs(real_pairs):
    from rnnfast.text.cli_mt import corpus_of

    recipe = TranslationRecipe()
    run = TranslationRun("rnnfast", corpus_of(None, recipe), recipe, 0)
    run.train(1, go_on)
    assert 15 < run.history.perplexity[0] < 60
    assert len(run.history.first_losses) == 4
