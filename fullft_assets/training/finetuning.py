"""Full fine-tuning on transformers' Trainer, for every task: the pilot and training both call `fine_tune`.

The order of reading: `fine_tune` checks the settings and runs one `TrainingSegment` after the other. A
segment sets up model, data, callback and Trainer (`segment.py`); Trainer steps (`trainer.py`); the callback
records, checks and validates each step (`callback.py`). A setback (a guard rolls back, memory runs out) is
recorded in the run history and ends a segment; the next one begins at the checkpoint that the history names,
with its changes. Everything that decides the result is planned from the seed: the order of the rows is a
list, so a resumed run continues where it was.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import TrainerCallback
from transformers.utils import logging

from fullft_assets.errors import OutOfMemory, SettingsError, is_out_of_memory
from fullft_assets.jobs.ranks import is_first_rank
from fullft_assets.models import precision
from fullft_assets.models.hardware import free_memory
from fullft_assets.settings import TrainingSettings
from fullft_assets.settings.contradictions import contradictions
from fullft_assets.settings.guards import guard_settings
from fullft_assets.training import ranks
from fullft_assets.training.guard_actions import SegmentOver
from fullft_assets.training.recipe import Recipe
from fullft_assets.training.run_history import RunHistory
from fullft_assets.training.segment import Fit, TrainingRun, TrainingSegment
from fullft_assets.training.stored_checkpoints import StoredCheckpoints
from fullft_assets.training.trackers import require_trackers
from fullft_assets.training.trainer import accumulation_steps, connect_processes

if TYPE_CHECKING:
    from fullft_assets.jobs.progress import Progress

# Silences the report on the classifier head, which is new by design, and progress bars, which a log cannot
# show.
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
    evaluate_at: Callable[[float], Iterable[int]] | Sequence[int] | None = None,
    resumable: bool = True,
    callbacks: Sequence[TrainerCallback] = (),
    stored: StoredCheckpoints | None = None,
) -> Fit:
    """Train every weight of a model.

    Args:
        seed: of what is new in the model, of the order and of dropout.
        work_folder: checkpoints and the step log; training resumes from a valid checkpoint there.
        evaluate_at: steps after which validation rows are scored, beside the last; or a function that returns
            them, given the number of steps, of which the last one may be a part. Default: twice an epoch.
        resumable: write checkpoints; one takes three times the weights' space.
        stored: the checkpoints of this training in its store, where that is not a disk: they go there too,
            and may come from there.

    Raises:
        DataError, SettingsError: the recipe's model cannot be trained on its rows.
        SettingsError: see `require`; or more layers are frozen than there are.
        DivergenceError: a guard stopped the run, its weights are not finite, or none are within the
            forgetting budget.
        OutOfMemory: a single row does not fit, in training or in scoring.
        DiskError: there is no room for a checkpoint; earlier ones stay complete.
        StoreError: the best checkpoint is damaged; a damaged one that training would resume from is skipped.
        Interrupted: a stop was requested; if resumable, a checkpoint was written.
    """
    require(settings if resumable else settings.model_copy(update={"track": []}), num_processes)
    connect_processes(settings, work_folder)
    history = RunHistory(
        work_folder,
        is_writer=is_first_rank(),
        stored=stored.read_history() if stored is not None and is_first_rank() else None,
        store=None if stored is None else stored.write_history,
    )
    # Hosts may have disks of their own, and the first process may write its file before or after another one
    # reads it.
    history.incidents = ranks.from_first(history.incidents)
    run = TrainingRun(
        recipe=recipe,
        settings=settings,
        seed=seed,
        folder=work_folder,
        progress=progress,
        num_processes=num_processes,
        evaluate_at=evaluate_at,
        resumable=resumable,
        callbacks=callbacks,
        history=history,
        stored=stored,
    )
    return _train_in_segments(run)


def require(settings: TrainingSettings, num_processes: int) -> None:
    """Check what training needs.

    Raises:
        SettingsError: the first problem: the batch cannot be divided, the hardware lacks the precision, two
            settings contradict each other, a package is missing, or a guard is not registered.
    """
    accumulation_steps(settings, num_processes)
    _refuse_contradictions(settings, num_processes)
    computed_in = precision.of(settings)
    if settings.precision == "auto":
        # It is fp16 on older GPUs, which only this machine knows.
        _refuse_contradictions(settings.model_copy(update={"precision": computed_in}), num_processes)
    package = settings.chosen_optimizer.package
    if package is not None and importlib.util.find_spec(package[0]) is None:
        raise SettingsError(
            f"training.optimizer: {settings.optimizer} needs {package[0]}; {package[1]}, or use adafactor"
        )
    require_trackers(settings.track)
    guard_settings(settings.guards)


def _refuse_contradictions(settings: TrainingSettings, num_processes: int) -> None:
    for key, message in contradictions(settings, num_processes):
        raise SettingsError(f"{'.'.join(key)}: {message}")


def _train_in_segments(run: TrainingRun) -> Fit:
    """Train to the end, with a new segment after each setback."""
    resumed_from_step = None
    while True:
        segment = _set_up(run)
        if resumed_from_step is None:
            resumed_from_step = segment.first_step
            for name, value in segment.prepared.about.items():
                run.progress.say(f"{name}: {value}")
        try:
            return replace(segment.run(), resumed_from_step=resumed_from_step)
        except SegmentOver:
            pass
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            segment.halve_micro_batches()
        # The exception is gone here, and with it the frames that held the tensors of the failed pass.
        del segment
        free_memory()


def _set_up(run: TrainingRun) -> TrainingSegment:
    """Load what the next segment needs."""
    try:
        return TrainingSegment(run)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        copies = [name for name in ("distillation", "ewc", "l2_sp") if getattr(run.settings, name)]
        without = f"remove training.{copies[0]}, which holds a copy of the weights, " if copies else ""
        raise OutOfMemory(
            f"memory ran out before the first step: the model itself does not fit; {without}set a lower"
            " training.optimizer and training.weights of the memory ladder, or use a machine with more"
            " memory"
        ) from error


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Lock a folder of unfinished work; a second process is refused instead of writing into it.

    Of several ranks the first one locks it for all.
    """
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SettingsError(
                f"{folder}: another process works in this folder; wait for it or stop it"
            ) from None
        yield
