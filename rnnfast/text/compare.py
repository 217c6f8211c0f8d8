"""Several implementations trained on the same text, from the same weights, in turns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from .checkpoint import CheckpointError, differences
from .checkpoint import load as load_checkpoint
from .corpus import Corpus
from .interrupt import StopRequest
from .model import copy_weights
from .report import LABELS
from .train import Recipe, TrainingRun

BLOCK_EPOCHS = 10
"""Epochs that a run trains before it is another's turn."""

SAVE_EVERY_EPOCHS = 50


class CannotResume(RuntimeError):
    """What the output folder holds does not fit what was asked for."""


def make_runs(
    implementations: Sequence[str], corpus: Corpus, recipe: Recipe, seed: int
) -> list[TrainingRun]:
    """A run for each name, all with the weights of the last one."""
    runs = [TrainingRun(name, corpus, recipe, seed) for name in implementations]
    for run in runs[:-1]:
        copy_weights(runs[-1].model, run.model)
    return runs


def checkpoint_path(out: Path, run: TrainingRun) -> Path:
    """Where ``run`` is saved."""
    return out / f"{run.implementation}.pt"


def resume_all(runs: Sequence[TrainingRun], out: Path) -> None:
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


def resume_unfinished(runs: Sequence[TrainingRun], out: Path) -> bool:
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


def _is_unfinished(run: TrainingRun, path: Path) -> bool:
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
    runs: Sequence[TrainingRun], out: Path, progress: Callable[[TrainingRun], None]
) -> bool:
    """Train all runs to their last epoch, a block of epochs each in turn.

    A slow minute of the machine thus hits each of them alike; who starts a round alternates too.
    ``progress(run)`` is called after each epoch, outside what is timed. Every run is saved now
    and then and at the end. Returns False where Ctrl-C stopped it, with everything saved.

    Raises:
        Diverged: a loss was not finite; the checkpoint of before stays.
        OSError: a checkpoint could not be written; the one of before stays.
    """
    with StopRequest() as stop:

        def after_epoch(run: TrainingRun) -> bool:
            progress(run)
            return not stop.requested

        order = list(runs)
        while not stop.requested and any(_left(run) for run in runs):
            for run in order:
                if not stop.requested and _left(run):
                    run.train(min(BLOCK_EPOCHS, _left(run)), after_epoch)
            order.reverse()
            if max(run.epoch for run in runs) % SAVE_EVERY_EPOCHS == 0:
                _save(runs, out)
        _save(runs, out)
    return not any(_left(run) for run in runs)


def _left(run: TrainingRun) -> int:
    return max(run.recipe.epochs - run.epoch, 0)


def _save(runs: Sequence[TrainingRun], out: Path) -> None:
    for run in runs:
        run.save(checkpoint_path(out, run))


def epochs_done(runs: Sequence[TrainingRun]) -> str:
    """Such as ``rnnfast 120, torch.nn 110``."""
    return ", ".join(f"{LABELS[run.implementation]} {run.epoch}" for run in runs)
