"""What the evaluation's workload and its judges share: a judge knows the metrics of its tasks, the workload all the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fullft_assets.base_model import resolve_base_model
from fullft_assets.evaluation import Evaluation
from fullft_assets.jobs import Job
from fullft_assets.report import Answer, Continuation
from fullft_assets.store import Manifest, Store
from fullft_assets.workloads.entry import Progress

if TYPE_CHECKING:
    import pyarrow as pa


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
    def base_model(self) -> Path:
        """Folder of the base model."""
        return resolve_base_model(self.job.settings.base_model, Path(self.job.project_root))

    def model_folder(self, name: str) -> Path:
        """Return the folder of the model of a checkpoint among the inputs."""
        return self.store.folder(self.inputs[name]) / "model"

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
