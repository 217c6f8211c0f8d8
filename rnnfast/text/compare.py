"""Several implementations trained on the same text, from the same weights, in turns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .checkpoint import CheckpointError, differences
from .checkpoint import load as load_checkpoint
from .corpus import Corpus
from .history import Diverged
from .interrupt import StopRequest
from .model import copy_weights
from .report import LABELS
from .run import Run
from .train import Recipe, TrainingRun

BLOCK_EPOCHS = 1
"""Epochs that a run trains before it is another's turn: what is compared runs side by side."""

SAVE_EVERY_EPOCHS = 50


class CannotResume(RuntimeError):
    """What the output folder holds does not fit what was asked for."""


def make_runs(
    implementations: Sequence[str], corpus: Corpus, recipe: Recipe, seed: int
) -> list[TrainingRun]:
    """A run for each name, all with the weights of the last one."""
    runs = [TrainingRun(name, corpus, recipe, seed) for name in implementations]
    share_weights(runs)
    return runs


def share_weights(runs: Sequence[Run[Any]]) -> None:
    """Give all ``runs`` the weights of the last one."""
    for run in runs[:-1]:
        copy_weights(runs[-1].model, run.model)


def checkpoint_path(out: Path, run: Run[Any]) -> Path:
    """Where ``run`` is saved."""
    return out / f"{run.implementation}.pt"


def resume_all(runs: Sequence[Run[Any]], out: Path) -> None:
    """Go on from the checkpoints of every run.

    Raises:
        CannotResume: a run has none.
        CheckpointError: one is damaged or of another run.
    """
    missing = [str(path) for run in runs if not (path := checkpoint_path(out, run)).is_file()]
    if missing:
        raise CannotResume(f"there is nothing to resume: no file {' and no file '.join(missing)}")
    for run in runs:
        run.restore(checkpoint_path(out, run))


def resume_unfinished(runs: Sequence[Run[Any]], out: Path) -> bool:
    """Go on from the checkpoints in ``out`` if they are of an unfinished run; says whether.

    Finished runs are left alone (they will be replaced), whatever their settings.

    Raises:
        CannotResume: an unfinished run has other settings, or a file is damaged; nothing is lost.
    """
    present = [run for run in runs if checkpoint_path(out, run).is_file()]
    unfinished = [_is_unfinished(run, checkpoint_path(out, run)) for run in present]
    if not any(unfinished):
        return False
    for run in present:
        run.restore(checkpoint_path(out, run))
    return True


def _is_unfinished(run: Run[Any], path: Path) -> bool:
    try:
        payload = load_checkpoint(path)
    except CheckpointError as error:
        raise CannotResume(f"{error}; --fresh starts anew and replaces it") from error
    done, wanted = payload["epoch"], payload["epochs_wanted"]
    if done >= wanted:
        return False
    found = differences(payload, run.identity())
    if found:
        raise CannotResume(
            f"{path} is an unfinished run ({done} of {wanted} epochs) with other settings: "
            f"{'; '.join(found)}. Repeat those to go on with it, choose another --out, or drop "
            "it with --fresh"
        )
    return True


def train_in_turns(
    runs: Sequence[Run[Any]],
    out: Path,
    progress: Callable[[Run[Any]], None],
    save_every: int = SAVE_EVERY_EPOCHS,
) -> bool:
    """Train all runs to their last epoch, a block of epochs each in turn.

    A slow minute of the machine thus hits each of them alike; who starts a round alternates too.
    ``progress(run)`` is called after each epoch, outside what is timed. Every run is saved after
    ``save_every`` epochs and at the end. Returns False where Ctrl-C stopped it (in any of several
    processes), with everything saved.

    Raises:
        Diverged: a loss was not finite; its checkpoint of before stays, the other runs are saved.
        OSError: a checkpoint could not be written; the one of before stays.
    """
    stopped = False
    with StopRequest() as request:

        def after_epoch(run: Run[Any]) -> bool:
            nonlocal stopped
            progress(run)
            stopped = run.place.any(request.requested)
            return not stopped

        order, saved_at = list(runs), max(run.epoch for run in runs)
        while not stopped and any(_left(run) for run in runs):
            for run in order:
                if not stopped and _left(run):
                    _train_or_save_others(
                        run, runs, out, min(BLOCK_EPOCHS, save_every), after_epoch
                    )
            order.reverse()
            if max(run.epoch for run in runs) - saved_at >= save_every:
                saved_at = max(run.epoch for run in runs)
                _save(runs, out)
        _save(runs, out)
    return not any(_left(run) for run in runs)


def _train_or_save_others(
    run: Run[Any],
    runs: Sequence[Run[Any]],
    out: Path,
    epochs: int,
    after_epoch: Callable[[Run[Any]], bool],
) -> None:
    try:
        run.train(min(epochs, _left(run)), after_epoch)
    except Diverged:
        _save([other for other in runs if other is not run], out)
        raise


def _left(run: Run[Any]) -> int:
    return max(run.epochs - run.epoch, 0)


def _save(runs: Sequence[Run[Any]], out: Path) -> None:
    for run in runs:
        run.save(checkpoint_path(out, run))


def epochs_done(runs: Sequence[Run[Any]]) -> str:
    """Such as ``rnnfast 120, torch.nn 110``."""
    return ", ".join(f"{LABELS[run.implementation]} {run.epoch}" for run in runs)
