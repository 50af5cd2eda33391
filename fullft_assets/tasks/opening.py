"""What a use case trains: its task's recipe, on its snapshot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fullft_assets.base_model import ModelFolder, find_base_model, with_rights
from fullft_assets.checkpoint.lineage import tokenizer_of
from fullft_assets.chunks import Tokenization, tokenizer_digest
from fullft_assets.errors import DataError
from fullft_assets.jobs import Job
from fullft_assets.jobs.progress import Progress
from fullft_assets.settings import UseCaseSettings
from fullft_assets.snapshot import (
    SnapshotMetadata,
    Split,
    Training,
    general,
    label_names,
    load_split,
    load_training,
)
from fullft_assets.snapshot.general import General
from fullft_assets.snapshot.packing import Packing
from fullft_assets.store import Manifest, Store
from fullft_assets.task import task_of
from fullft_assets.tasks.baseline import BaselineContext
from fullft_assets.training.recipe import Recipe


@dataclass(frozen=True)
class TrainingData:
    """What a task's recipe is made of."""

    base_model: ModelFolder
    validation: Split
    added_tokens: Sequence[str]
    general: General | None
    start: ModelFolder | None
    store: Store
    snapshot: Manifest
    settings: UseCaseSettings

    @property
    def labels(self) -> list[str]:
        """Label names in the order of the model's outputs.

        Raises:
            DataError: there are none.
        """
        labels = label_names(self.snapshot)
        if not labels:
            raise DataError(
                "the snapshot's rows have no label at all; look at the field that examples.label names"
            )
        return labels

    @property
    def train(self) -> Split:
        """Rows to learn from."""
        return load_split(self.store, self.snapshot, "train")

    @property
    def packed(self) -> Training:
        """Documents to learn from with their packing plan."""
        return load_training(self.store, self.snapshot)

    @property
    def tokenization(self) -> Tokenization:
        """The base model's, as it made the windows."""
        return Tokenization.load(self.base_model, self.settings.chunks, self.settings.examples.task)


@dataclass(frozen=True)
class WithoutTraining(TrainingData):
    """What a recipe is made of that trains nothing: it loads models and has them predict.

    Attributes:
        known_labels: of these models; the snapshot may be newer and have others.
    """

    known_labels: Sequence[str] = ()

    @property
    def labels(self) -> list[str]:
        """Label names in the order of the models' outputs."""
        return list(self.known_labels)

    @property
    def train(self) -> Split:
        """No row."""
        return self.validation.select([])

    @property
    def packed(self) -> Training:
        """No row."""
        nothing = np.zeros(0, np.int64)
        return Training(
            [],
            None,
            Packing(nothing, nothing, nothing, np.zeros(1, np.int64), self.settings.chunks.max_tokens),
        )


def open_recipe(job: Job, store: Store, snapshot: Manifest, start: Manifest | None = None) -> Recipe:
    """Read what a job trains on.

    Args:
        start: the checkpoint whose weights training begins with. Default: the base model's.

    Raises:
        DataError: there is nothing to learn, or the snapshot's tokens mean something else to the base model.
    """
    base_model = find_base_model(job.settings, Path(job.project_root))
    _require_its_tokenizer(store, snapshot, base_model, job)
    _require_general_text(snapshot, job)
    settings = job.settings
    begin = None if start is None else with_rights(store.folder(start) / "model", settings)
    validation, measured = load_split(store, snapshot, "validation"), general.load(store, snapshot)
    data = TrainingData(
        base_model, validation, settings.chunks.added_tokens, measured, begin, store, snapshot, settings
    )
    return task_of(settings.examples).open_recipe(data)


def baseline_context(job: Job, store: Store, snapshot: Manifest, progress: Progress) -> BaselineContext:
    """Return what the baselines of a job may use; the recipe that fits them adds itself and its labels."""
    settings = job.settings
    return BaselineContext(
        find_base_model(settings, Path(job.project_root)),
        [],
        progress,
        settings,
        lambda: load_split(store, snapshot, "train"),
        settings.chunks.added_tokens,
        project_root=Path(job.project_root),
    )


def _require_general_text(snapshot: Manifest, job: Job) -> None:
    chosen, drawn = job.settings.snapshot, SnapshotMetadata.of(snapshot).drawn()
    for name, wanted in (("general", chosen.general), ("replay", chosen.replay)):
        if wanted is not None and name not in drawn:
            raise DataError(
                f"the snapshot was taken without snapshot.{name}, which the YAML names now; take the snapshot"
                " again"
            )


def _require_its_tokenizer(store: Store, snapshot: Manifest, base_model: ModelFolder, job: Job) -> None:
    if tokenizer_of(store, snapshot) != tokenizer_digest(
        base_model, job.settings.chunks, job.settings.examples.task
    ):
        raise DataError(
            "the snapshot's windows were made with another tokenizer than base_model's with"
            f" chunks.added_tokens; tokenise the batches again ({job.case}_by_hand with act: retokenize) and"
            " take the snapshot again"
        )
