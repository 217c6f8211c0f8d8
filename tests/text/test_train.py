"""The training loop against a plain one, and its stops."""

from __future__ import annotations

import math
import os
import signal
import threading
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from rnnfast.text import checkpoint, compare
from rnnfast.text.interrupt import StopRequest
from rnnfast.text.speed import tokens_per_second
from rnnfast.text.train import Diverged, EpochResult, History, TrainingRun, train_epoch

from .conftest import TINY_RECIPE


def go_on(run) -> bool:
    return True


def plain_losses(run, epochs: int) -> list[float]:
    """The recipe written out: clip by hand, update by hand."""
    model, windows, losses = run.model, run.windows, []
    for _ in range(epochs):
        state = torch.zeros(1, run.recipe.batch_size, run.recipe.hidden_size)
        for x, y in windows:
            logits, state = model(x, state.detach())
            loss = F.cross_entropy(logits.reshape(-1, model.vocab_size), y.reshape(-1))
            gradients = torch.autograd.grad(loss, list(model.parameters()))
            norm = math.sqrt(sum(float((g**2).sum()) for g in gradients))
            scale = min(1.0, run.recipe.max_norm / norm)
            with torch.no_grad():
                for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                    parameter -= run.recipe.learning_rate * scale * gradient
            losses.append(loss.item())
    return losses


@pytest.mark.parametrize("implementation", ["rnnfast", "torch"])
def test_against_the_loop_written_out(make_run, implementation):
    recipe = replace(TINY_RECIPE, max_norm=0.1)
    expected = plain_losses(make_run(implementation, recipe=recipe), 3)
    run = make_run(implementation, recipe=recipe)
    run.train(3, go_on)
    assert len(run.history.first_losses) == len(expected) > 20
    assert run.history.first_losses == pytest.approx(expected, rel=1e-4)


def test_it_learns(make_run):
    run = make_run(recipe=replace(TINY_RECIPE, epochs=40))
    run.train(40, go_on)
    assert run.epoch == 40
    assert run.history.perplexity[0] > 2 * run.history.perplexity[-1]


def test_only_carried_windows_carry_the_state(make_run):
    seen = []
    run = make_run()
    forward = run.model.forward

    def watched(tokens, state):
        seen.append(bool(state.abs().sum() > 0))
        assert not state.requires_grad
        return forward(tokens, state)

    run.model.forward = watched
    train_epoch(run.model, run.windows, run.optimizer, 1.0)
    assert seen == [False] + [True] * (len(seen) - 1)
    seen.clear()
    run.windows.carries_state = False
    train_epoch(run.model, run.windows, run.optimizer, 1.0)
    assert not any(seen)


def test_perplexity_weighs_tokens():
    result = EpochResult([1.0, 3.0], [30, 10], 2.0)
    assert result.tokens == 40
    assert result.perplexity == pytest.approx(math.exp(1.5))


def test_history_means_and_speed():
    history = History()
    for loss in (2.0, 1.0, 0.0):
        history.add(EpochResult([loss] * 30, [4] * 30, 0.5))
    assert history.mean_perplexity(2) == pytest.approx((math.e + 1) / 2)
    assert history.mean_perplexity(10) == pytest.approx((math.e**2 + math.e + 1) / 3)
    assert tokens_per_second(history) == pytest.approx([240.0] * 3)
    assert len(history.first_losses) == 50


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_divergence_stops_and_says_where(make_run, value):
    run = make_run()
    run.train(2, go_on)
    with torch.no_grad():
        run.model.output.bias[0] = value
    with pytest.raises(Diverged, match=r"torch, epoch 3: the loss is (nan|inf) at step 1 of \d+"):
        run.train(2, go_on)
    assert run.epoch == 2


def test_runs_don_t_disturb_the_callers_random_stream(make_run):
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    run = make_run()
    run.train(1, go_on)
    assert torch.equal(torch.rand(3), expected)


def test_seed_settles_everything(make_run):
    histories = []
    for seed in (1, 1, 2):
        torch.rand(3)
        run = make_run(seed=seed)
        run.train(2, go_on)
        histories.append(run.history.perplexity)
    assert histories[0] == histories[1] != histories[2]


def test_stop_between_epochs(make_run):
    run = make_run()
    run.train(6, lambda run: run.epoch < 2)
    assert run.epoch == 2


def test_first_interrupt_asks_second_one_stops():
    before = signal.getsignal(signal.SIGINT)
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_stop_request_outside_the_main_thread_is_harmless():
    seen = []

    def work():
        with StopRequest() as stop:
            seen.append(stop.requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]


def test_where_one_run_diverges_the_others_are_saved(make_run, tmp_path):
    runs = [make_run("rnnfast"), make_run("torch")]
    with torch.no_grad():
        runs[1].model.output.bias[0] = math.nan
    with pytest.raises(Diverged, match="torch, epoch 1"):
        compare.train_in_turns(runs, tmp_path, lambda run: None)
    assert [path.name for path in tmp_path.iterdir()] == ["rnnfast.pt"]
    assert checkpoint.load(tmp_path / "rnnfast.pt")["epoch"] == compare.BLOCK_EPOCHS


def test_checkpoints_are_written_every_so_many_epochs(make_run, tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(TrainingRun, "save", lambda run, path: saved.append(run.epoch))
    assert compare.train_in_turns([make_run()], tmp_path, lambda run: None, save_every=2)
    assert saved == [2, 4, 6, 6]
