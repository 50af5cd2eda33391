"""Full fine-tuning on transformers' Trainer: planned order, atomic checkpoints, setbacks that are recovered from.

Used by the pilot (small) and by training (whole), for every task: what differs between tasks is its recipe's. Everything that
decides the result is planned ahead from the seed: the order is a list, read from front to back, so a resumed run reads on where it was.
A run has one leg after the other: each setback (a guard rolls back, memory runs out) is written down in the
course and ends a leg, and the next one begins at the checkpoint that the course names, under its changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import TrainerCallback
from transformers.utils import logging

from fullft_assets.engine import optimizers, ranks, sharding, telemetry
from fullft_assets.engine.guards import Course
from fullft_assets.engine.recipe import Recipe
from fullft_assets.engine.segment import Damaged, Fit, Leg, Work, give_back
from fullft_assets.engine.trainer import accumulation_steps
from fullft_assets.engine.watcher import RolledBack
from fullft_assets.errors import OutOfMemory, SettingsError, is_out_of_memory
from fullft_assets.models import precision
from fullft_assets.settings import TrainingSettings

if TYPE_CHECKING:
    from fullft_assets.jobs.process import Progress

# Silences the report on the classifier head, which is new by design, and the bars that a log cannot show.
logging.set_verbosity_error()
logging.disable_progress_bar()


def fine_tune(
    recipe: Recipe,
    settings: TrainingSettings,
    seed: int,
    work_folder: Path,
    progress: Progress,
    *,
    num_processes: int = 1,
    evaluate_at: Callable[[float], Iterable[int]] | Iterable[int] | None = None,
    resumable: bool = True,
    callbacks: Sequence[TrainerCallback] = (),
) -> Fit:
    """Train every weight of a model.

    Args:
        recipe: the task: model, rows and scores.
        settings: hyperparameters.
        seed: of what is new in the model, of the order and of dropout.
        work_folder: checkpoints and the step log; a valid checkpoint found there is resumed from.
        progress: told of each logged step; asked whether to stop.
        num_processes: processes that share the batch.
        evaluate_at: steps after which validation rows are scored, beside the last; or what names them, given the number of steps,
            of which the last one may be a part. Default: twice an epoch.
        resumable: write checkpoints; one takes three times the weights' space.
        callbacks: of the Trainer, beside its own.

    Raises:
        DataError, SettingsError: the recipe's model cannot be trained on its rows.
        SettingsError: the batch cannot be divided as asked, the hardware lacks the precision, or more layers are frozen than there are.
        DivergenceError: a guard stopped the run, its weights are not finite, or none are within the forgetting budget.
        OutOfMemory: a single row does not fit, be it trained on or scored.
        DiskError: there is no room for a checkpoint; those before it stay whole.
        StoreError: the best checkpoint is damaged; one that would be gone on from is passed over.
        Interrupted: a stop was requested; if resumable, a checkpoint was written.
    """
    _require(settings, num_processes, resumable=resumable)
    return _play(
        Work(
            recipe=recipe,
            settings=settings,
            seed=seed,
            folder=work_folder,
            progress=progress,
            num_processes=num_processes,
            evaluate_at=evaluate_at if evaluate_at is None or callable(evaluate_at) else tuple(evaluate_at),
            resumable=resumable,
            callbacks=callbacks,
            course=Course(work_folder, is_writer=ranks.is_first()),
        )
    )


def _require(settings: TrainingSettings, num_processes: int, *, resumable: bool) -> None:
    """Find out before any work what the settings ask for in vain.

    Raises:
        SettingsError: the first such thing.
    """
    accumulation_steps(settings, num_processes)
    precision.of(settings)
    optimizers.require(settings, num_processes)
    sharding.require(settings, num_processes)
    if resumable:
        telemetry.require(settings.track)


def _play(work: Work) -> Fit:
    """Go from leg to leg until one comes to its end."""
    began_at = None
    while True:
        leg = _begin(work)
        if began_at is None:
            began_at = leg.first_step
            for name, value in leg.prepared.about.items():
                work.progress.say(f"{name}: {value}")
        try:
            return replace(leg.run(), resumed_from_step=began_at)
        except Damaged:
            began_at = None
        except RolledBack:
            pass
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            leg.halve_micro_batches()
        # The exception is gone here, and with it the frames that held the tensors of the failed pass.
        del leg
        give_back()


def _begin(work: Work) -> Leg:
    """Load all that the next leg needs.

    Raises:
        OutOfMemory: it does not fit; smaller micro-batches would not help.
    """
    try:
        return Leg(work)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        held = [name for name in ("distillation", "ewc", "l2_sp") if getattr(work.settings, name)]
        without = f"leave out training.{held[0]}, which holds a copy of the weights, " if held else ""
        raise OutOfMemory(
            f"memory ran out before the first step: the model itself does not fit; {without}set a lower training.optimizer and "
            "training.weights of the memory ladder, or use a machine with more memory"
        ) from error


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold a folder of unfinished work; a second process is refused instead of writing into it.

    Of several ranks the first one holds it for all.

    Raises:
        SettingsError: another process holds it.
    """
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SettingsError(f"{folder}: another process is at this work; wait for it or stop it") from None
        yield
