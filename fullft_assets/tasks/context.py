"""What the evaluation's process gives to a task, and what it takes back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from fullft_assets.base_model import ModelFolder, find_base_model, with_rights
from fullft_assets.checkpoint.lineage import tokenizer_of
from fullft_assets.checkpoint.metadata import CheckpointMetadata
from fullft_assets.chunks import Tokenization
from fullft_assets.errors import SettingsError, StoreError
from fullft_assets.evaluation import (
    ANCHOR,
    CHAMPION,
    FINETUNED,
    Comparison,
    Evaluation,
    external,
    modules,
    title,
)
from fullft_assets.evaluation.metrics.base import Metric
from fullft_assets.evaluation.resampling import RESAMPLES
from fullft_assets.examples.labels import named
from fullft_assets.jobs import Job
from fullft_assets.jobs.progress import Progress
from fullft_assets.planning import BaselinesMetadata
from fullft_assets.report import AnsweredRow, Continuation, DoubtfulRow
from fullft_assets.snapshot import Split, label_names
from fullft_assets.store import Manifest, Store
from fullft_assets.task import task_of
from fullft_assets.tasks.baseline import Baseline, load_all
from fullft_assets.tasks.opening import WithoutTraining, baseline_context
from fullft_assets.tasks.slicing import slices_of

if TYPE_CHECKING:
    import pyarrow as pa

    from fullft_assets.training.recipe import Recipe

#: Test rows that the report shows.
NUM_ANSWERS = 5
Output = TypeVar("Output")


@dataclass(frozen=True)
class EvaluationResult:
    """What a task's evaluation returns.

    Attributes:
        headline: of the fine-tuned model, for the manifest's metadata; no text of a row.
        rows: one a test row, with `id`, `group` and what each system predicted of it (see `column_of`); no
            text either.
        examples: some test rows with what the systems predicted of them, for the HTML report alone.
        worst: the errors with the highest loss, by their ids.
        written: what each system wrote for test prompts, with the `id` and `group` of the row.
        validation: what the fine-tuned model predicted of the validation rows, by their ids; None where
            nothing was fitted on them.
        label_errors: test and validation rows whose label is probably wrong; None: not searched for, as
            cleanlab is not installed.
    """

    evaluation: Evaluation
    headline: Mapping[str, Any]
    rows: pa.Table
    examples: Sequence[AnsweredRow | Continuation]
    worst: Sequence[DoubtfulRow] = ()
    label_errors: Sequence[DoubtfulRow] | None = ()
    written: Sequence[Mapping[str, str]] = ()
    validation: pa.Table | None = None


@dataclass(frozen=True)
class EvaluationContext:
    """What is evaluated.

    Attributes:
        inputs: artifacts by asset name; `champion` is the checkpoint to beat, if there is one, and
            `first_champion` where that is another.
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
        """The snapshot's label order; a checkpoint may know other labels, as the snapshot may be newer
        (periodic evaluation).
        """
        return label_names(self.inputs["training_snapshot"])

    @property
    def baseline_labels(self) -> list[str]:
        """The label order of the baselines."""
        return BaselinesMetadata.of(self.inputs["cheaper_baselines"]).labels

    def predict_with_all(
        self,
        test: Split,
        by_checkpoint: Callable[[str], Output],
        by_baseline: Callable[[str, Baseline], Output],
        tokenization: Tokenization | None = None,
        by_external: Callable[[str, list[Any]], Output] | None = None,
    ) -> dict[str, Output]:
        """Return what each system predicts of the test rows: the candidate, the baselines, external systems
        and, if there are any, the champions.

        Args:
            by_checkpoint: takes the name of a checkpoint among the inputs.
            by_baseline: takes a baseline's name, and the baseline.
            by_external: takes the name of an external system, and its answer for each test row.
        """
        outputs = {}
        systems: dict[str, Callable[[], Output]] = {FINETUNED: lambda: by_checkpoint("finetuned_checkpoint")}
        for name, baseline in self._load_baselines(test, tokenization).items():
            systems[name] = lambda name=name, baseline=baseline: by_baseline(name, baseline)
        for name, given in self.external_answers(test).items():
            if by_external is None:
                raise SettingsError(
                    f"evaluation.external: the task {self.job.settings.examples.task} takes no file of"
                    f" answers; give {name} a score"
                )
            systems[name] = lambda name=name, given=given: by_external(name, given)
        for name in (CHAMPION, ANCHOR):
            if name in self.inputs:
                systems[name] = lambda name=name: by_checkpoint(name)
        for name, predict in systems.items():
            self.progress.raise_if_stopped()
            self.progress.say(f"{title(name)} on {len(test):,} test rows ...")
            outputs[name] = predict()
        return outputs

    def external_answers(self, test: Split) -> dict[str, list[Any]]:
        """Return what each external system answered for each test row, as its file has it."""
        if external.STAGE not in self.inputs:
            return {}
        copies = self.inputs[external.STAGE]
        folder, target = self.store.folder(copies), copies.settings["target"]
        return {
            name: external.answers(folder, name, target, test.ids)
            for name in external.ExternalMetadata.of(copies).num_rows
        }

    def comparison(self, test: Split) -> Comparison:
        """Return how the systems are compared, and report that they are now."""
        settings = self.job.settings
        self.progress.say(f"{RESAMPLES:,} resamples over the groups of {len(test):,} test rows ...")
        return Comparison.of(settings, slices_of(self.store, self.inputs, settings, test), self.modules)

    @cached_property
    def modules(self) -> dict[str, Metric]:
        """The metrics of `evaluation.modules` by name."""
        return modules.load(self.store, self.inputs.get(modules.STAGE), self.job.settings)

    def model_folder(self, name: str) -> ModelFolder:
        """Return the folder of the model of a checkpoint among the inputs."""
        return with_rights(self.store.folder(self.inputs[name]) / "model", self.job.settings)

    def has_tokenizer_of_snapshot(self, name: str) -> bool:
        """Return whether a checkpoint among the inputs has the tokenizer that the snapshot's windows were
        made with.

        Token ids only mean something to the tokenizer that made them.
        """
        trained_on = self.store.load(CheckpointMetadata.of(self.inputs[name]).snapshot)
        return tokenizer_of(self.store, trained_on) == tokenizer_of(
            self.store, self.inputs["training_snapshot"]
        )

    def _load_baselines(self, test: Split, tokenization: Tokenization | None) -> dict[str, Baseline]:
        artifact = self.inputs["cheaper_baselines"]
        settings = self.job.settings
        snapshot = self.inputs["training_snapshot"]
        context = baseline_context(self.job, self.store, snapshot, self.progress)
        added_tokens, labels = context.added_tokens, self.baseline_labels

        def open_recipe() -> Recipe:
            data = WithoutTraining(
                context.base_model, test, added_tokens, None, None, self.store, snapshot, settings, labels
            )
            return task_of(settings.examples).open_recipe(data)

        context = replace(context, labels=labels, tokenization=tokenization, open_recipe=open_recipe)
        return load_all(BaselinesMetadata.of(artifact).scores, self.store.folder(artifact), context)


def column_of(system: str, what: str) -> str:
    """Return the column of `EvaluationResult.rows` with what a system predicted; the fine-tuned model's is
    named by that alone.
    """
    return what if system == FINETUNED else f"{system}.{what}"


def shared_labels(model_labels: Sequence[str], labels: Sequence[str]) -> list[str]:
    """Return which of our labels a system knows, in our order."""
    shared = [label for label in labels if label in model_labels]
    if not shared:
        wanted, known = (
            named(((label, "") for label in part), len(part), {*labels, *model_labels})
            for part in (labels, model_labels)
        )
        raise StoreError(
            f"the model knows none of the labels {wanted}, only {known}; give the new labels a use case of"
            " their own"
        )
    return shared


def pick_rows(agrees: np.ndarray, seed: int) -> list[int]:
    """Draw test rows to show at random, first among those on which the fine-tuned model and the best baseline
    disagree; bool [n].
    """
    order = np.random.default_rng(seed).permutation(len(agrees))
    return order[np.argsort(agrees[order], kind="stable")][:NUM_ANSWERS].tolist()
