"""What the evaluation's workload and its judges share: a judge knows the metrics of its tasks, the workload all the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from fullft_assets.base_model import ModelFolder, find_base_model, with_rights
from fullft_assets.errors import StoreError
from fullft_assets.evaluation import CHAMPION, FINETUNED, Evaluation, Terms, title
from fullft_assets.jobs import Job
from fullft_assets.jobs.process import Progress
from fullft_assets.report import Answer, Continuation
from fullft_assets.snapshot import Split, label_names
from fullft_assets.store import Manifest, Store

if TYPE_CHECKING:
    import pyarrow as pa

#: Test rows that the report shows.
NUM_ANSWERS = 5
Heard = TypeVar("Heard")


@dataclass(frozen=True)
class Judged:
    """What a judge found.

    Attributes:
        evaluation: every figure.
        headline: of the fine-tuned model, for the manifest's metadata; no text of a row.
        rows: one a test row, with `id` and `group`; no text either.
        examples: some test rows with what the systems made of them, for the HTML report alone.
    """

    evaluation: Evaluation
    headline: Mapping[str, Any]
    rows: pa.Table
    examples: Sequence[Answer | Continuation]


@dataclass(frozen=True)
class Docket:
    """What there is to judge, and by what.

    Attributes:
        job: with the settings.
        store: where the artifacts lie.
        inputs: artifacts by asset name; `champion` is the checkpoint to beat, where there is one.
        progress: told what goes on.
    """

    job: Job
    store: Store
    inputs: Mapping[str, Manifest]
    progress: Progress

    @property
    def base_model(self) -> ModelFolder:
        """Folder of the base model."""
        return find_base_model(self.job.settings, Path(self.job.project_root))

    @property
    def labels(self) -> list[str]:
        """The snapshot's label order; a checkpoint may know other labels, as the snapshot may be newer (periodic evaluation)."""
        return label_names(self.inputs["training_snapshot"])

    def hear(self, test: Split, checkpoint: Callable[[str], Heard], cheaper: Mapping[str, Callable[[], Heard]]) -> dict[str, Heard]:
        """Return what each system makes of the test rows: the candidate, the cheaper ways and, if there is one, the champion.

        Args:
            test: the rows.
            checkpoint: takes the name of a checkpoint among the inputs.
            cheaper: by name.
        """
        found = {}
        systems = {FINETUNED: lambda: checkpoint("finetuned_checkpoint"), **cheaper}
        if CHAMPION in self.inputs:
            systems[CHAMPION] = lambda: checkpoint(CHAMPION)
        for name, hear in systems.items():
            self.progress.raise_if_stopped()
            self.progress.say(f"{title(name)} on {len(test):,} test rows ...")
            found[name] = hear()
        return found

    def terms(self, test: Split) -> Terms:
        """Return how the systems are compared, and tell that they are now."""
        settings = self.job.settings
        self.progress.say(f"{settings.evaluation.resamples:,} resamples over the groups of {len(test):,} test rows ...")
        return Terms.of(settings)

    def model_folder(self, name: str) -> ModelFolder:
        """Return the folder of the model of a checkpoint among the inputs."""
        return with_rights(self.store.folder(self.inputs[name]) / "model", self.job.settings)

    def reads_as_the_snapshot(self, name: str) -> bool:
        """Return whether a checkpoint among the inputs has the tokenizer that the snapshot's windows were made with.

        Token ids only mean something to the tokenizer that made them.
        """
        trained_on = self.store.load(self.inputs[name].metadata["snapshot"])
        return self._tokenizer_of(trained_on) == self._tokenizer_of(self.inputs["training_snapshot"])

    def _tokenizer_of(self, snapshot: Manifest) -> str:
        """Return the digest of the tokenizer that made all windows of a snapshot."""
        part = next(iter(snapshot.metadata["parts"].values()))
        return self.store.load(part["chunks"]).inputs["tokenizer"]


def shared_labels(theirs: Sequence[str], ours: Sequence[str]) -> list[str]:
    """Return which of our labels a system knows, in our order.

    Raises:
        StoreError: none.
    """
    shared = [label for label in ours if label in theirs]
    if not shared:
        raise StoreError(
            f"the model knows none of the labels {', '.join(ours)}, only {', '.join(theirs)}; give the new labels a use case of their own"
        )
    return shared


def pick_rows(agrees: np.ndarray, seed: int) -> list[int]:
    """Draw test rows to show at random, first among those on which the fine-tuned model and the best cheaper way disagree; bool [n]."""
    order = np.random.default_rng(seed).permutation(len(agrees))
    return order[np.argsort(agrees[order], kind="stable")][:NUM_ANSWERS].tolist()
