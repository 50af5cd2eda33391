"""The recipe of a use case's task on its snapshot; and what the evaluation gives to a task and gets back."""

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from fullft_assets.artifacts import BASELINE_MODEL, CHEAPER_BASELINES, FINETUNED_CHECKPOINT, TRAINING_SNAPSHOT
from fullft_assets.base_model import ModelFolder, find_base_model, read_header, weights_digest, with_rights
from fullft_assets.checkpoint import CHECKS
from fullft_assets.checkpoint.lineage import tokenizer_of
from fullft_assets.checkpoint.metadata import CheckpointMetadata
from fullft_assets.chunks import Tokenization, tokenizer_digest
from fullft_assets.documents.names import alias
from fullft_assets.errors import DataError, SettingsError, StoreError
from fullft_assets.evaluation import (
    ANCHOR,
    CHAMPION,
    FINETUNED,
    Comparison,
    Evaluation,
    external,
    title,
)
from fullft_assets.evaluation.comparison import LABEL
from fullft_assets.evaluation.metrics.base import Metric
from fullft_assets.evaluation.resampling import RESAMPLES
from fullft_assets.examples.labels import named
from fullft_assets.examples.texts import language_of
from fullft_assets.job import Job
from fullft_assets.models.inference import HeadWeights
from fullft_assets.planning import BaselinesMetadata
from fullft_assets.progress import Listener, Progress
from fullft_assets.release import BASELINE_VERSION, stored_baseline_settings
from fullft_assets.report import AnsweredRow, DoubtfulRow, shorten
from fullft_assets.settings import UseCaseSettings
from fullft_assets.snapshot import (
    SnapshotMetadata,
    Split,
    Training,
    general,
    label_names,
    load_split,
    load_training,
    load_values,
)
from fullft_assets.snapshot.general import General
from fullft_assets.snapshot.packing import Packing
from fullft_assets.store import CheckOutcome, Draft, Manifest, Outcome, Store, digest
from fullft_assets.task import BASELINES, task_of
from fullft_assets.tasks.baseline import (
    THRESHOLDS,
    Baseline,
    BaselineContext,
    OpenedModel,
    load_all,
    open_model,
)
from fullft_assets.tasks.encoder import stored_probe
from fullft_assets.training import ranks
from fullft_assets.training.recipe import Recipe

Slicing = dict[str, list[str | None]]
#: Test rows that the report shows.
NUM_ANSWERS = 5
Output = TypeVar("Output")


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
    probe: HeadWeights | None = None

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
        return load_split(self.store, self.snapshot, "train")

    @property
    def packed(self) -> Training:
        return load_training(self.store, self.snapshot)

    @property
    def tokenization(self) -> Tokenization:
        return Tokenization.load(self.base_model, self.settings.chunks, self.settings.examples.task)


@dataclass(frozen=True)
class WithoutTraining(TrainingData):
    """What a recipe is made of that trains nothing: it loads models and has them predict.

    Attributes:
        known_labels: the labels of these models; the snapshot may be newer and have others.
    """

    known_labels: Sequence[str] = ()

    @property
    def labels(self) -> list[str]:
        return list(self.known_labels)

    @property
    def train(self) -> Split:
        return self.validation.select([])

    @property
    def packed(self) -> Training:
        nothing = np.zeros(0, np.int64)
        return Training(
            [],
            None,
            Packing(nothing, nothing, nothing, np.zeros(1, np.int64), self.settings.chunks.max_tokens),
        )


def open_recipe(
    job: Job,
    store: Store,
    snapshot: Manifest,
    start: Manifest | None = None,
    baselines: Manifest | None = None,
) -> Recipe:
    """Read what a job trains on.

    Args:
        start: the checkpoint whose weights training begins with. Default: the base model's.
        baselines: with the probe that a new head begins as. Default: it is fitted when training begins.

    Raises:
        DataError: there is nothing to learn, or the snapshot's tokens mean something else to the base model.
    """
    base_model = find_base_model(job.settings, Path(job.project_root))
    _require_its_tokenizer(store, snapshot, base_model, job)
    _require_general_text(snapshot, job)
    settings = job.settings
    start_folder = None if start is None else with_rights(store.folder(start) / "model", settings)
    data = TrainingData(
        base_model,
        load_split(store, snapshot, "validation"),
        settings.chunks.added_tokens,
        general.load(store, snapshot),
        start_folder,
        store,
        snapshot,
        settings,
        None if baselines is None else stored_probe(store.folder(baselines)),
    )
    return task_of(settings.examples).open_recipe(data)


def baseline_context(job: Job, store: Store, snapshot: Manifest, progress: Progress) -> BaselineContext:
    """Return the context that a job's baselines may use; the recipe that fits them adds itself and its
    labels.
    """
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


def fitted_context(
    job: Job,
    store: Store,
    snapshot: Manifest,
    labels: Sequence[str],
    rows: Split,
    progress: Progress,
    general_text: General | None = None,
) -> BaselineContext:
    """Return the context that fitted baselines may use to predict rows; their recipe has no training rows.

    Args:
        labels: of the baselines.
        general_text: what they are scored on, too.
    """
    context = baseline_context(job, store, snapshot, progress)

    def open_recipe() -> Recipe:
        data = WithoutTraining(
            context.base_model,
            rows,
            context.added_tokens,
            general_text,
            None,
            store,
            snapshot,
            job.settings,
            known_labels=labels,
        )
        return task_of(job.settings.examples).open_recipe(data)

    return replace(context, labels=labels, open_recipe=open_recipe)


def store_baseline(
    job: Job, store: Store, snapshot: Manifest, baselines: Manifest, name: str, progress: Progress
) -> Manifest:
    """Return the `baseline_model` of a baseline, written now unless it exists.

    Args:
        baselines: the `cheaper_baselines` that it is one of.
    """
    settings = job.settings
    baselines_metadata = BaselinesMetadata.of(baselines)
    header = read_header(find_base_model(settings, Path(job.project_root)))
    source = store.folder(baselines)

    def write(draft: Draft) -> Outcome:
        progress.say(f"storing {name} ...")
        rows = load_split(store, snapshot, "validation")
        context = fitted_context(
            job, store, snapshot, baselines_metadata.labels, rows, progress, general.load(store, snapshot)
        )
        baseline = BASELINES.get(name).load(source, context)
        general_scores = baseline.general_scores()
        baseline.export(draft.path / "model", context)
        if (thresholds := source / f"{name}_{THRESHOLDS}").is_file():
            shutil.copy(thresholds, draft.path / "model" / THRESHOLDS)
        metadata = CheckpointMetadata(
            system=name,
            base_model=settings.base_model,
            base_model_revision=header.revision,
            base_model_weights=weights_digest(header.folder),
            snapshot=snapshot.ref,
            labels=baselines_metadata.labels,
            trained_from="the base model",
            num_parameters=0,
            num_trained_parameters=0,
            num_steps=0,
            model_of_step=0,
            num_tokens=0,
            training_seconds=baselines_metadata.seconds[name],
            tokens_per_second=0.0,
            training_usd=baselines_metadata.usd[name],
            resumed_from_step=0,
            peak_memory_gib=0.0,
            micro_batch_size=0,
            incidents=[],
            num_warnings=0,
            precision="fp32",
            facts={f"validation_{settings.primary_metric}": baselines_metadata.scores[name]},
            settings_digest=digest(settings.model_dump(mode="json")),
            **general_scores,
        )
        checks = [CheckOutcome(name=check.name, passed=True, description="not trained") for check in CHECKS]
        return metadata.as_dict(), checks

    return store.ensure(
        job.case,
        BASELINE_MODEL,
        write,
        version=BASELINE_VERSION,
        settings=stored_baseline_settings(name, settings),
        inputs={
            TRAINING_SNAPSHOT: snapshot.content_digest,
            CHEAPER_BASELINES: baselines.content_digest,
        },
        seed=settings.seed,
    )


def _require_general_text(snapshot: Manifest, job: Job) -> None:
    settings = job.settings.snapshot
    for name, section in (("general", settings.general), ("replay", settings.replay)):
        if section is not None and name not in SnapshotMetadata.of(snapshot).drawn():
            raise DataError(
                f"the snapshot was taken without snapshot.{name}, which the YAML names now; take the snapshot"
                " again"
            )


def _require_its_tokenizer(store: Store, snapshot: Manifest, base_model: ModelFolder, job: Job) -> None:
    if tokenizer_of(store, snapshot) != tokenizer_digest(
        base_model, job.settings.chunks, job.settings.examples.task
    ):
        raise DataError(
            "the snapshot's chunks were made with another tokenizer than base_model's with"
            f" chunks.added_tokens; `fullft run {job.case}` tokenises the batches and takes the snapshot anew"
        )


def slices_of(store: Store, snapshot: Manifest, settings: UseCaseSettings, test: Split) -> Slicing:
    """Return the slice of each test row by the kind of slice; None: the row is in no slice of this kind."""
    slicing: Slicing = {}
    for kind in ("source", "domain", "slice_by"):
        by_id = load_values(store, snapshot, "test", kind)
        # As its user named it: there may be a field called like a kind of slice.
        name = f"field {settings.examples.slice_by}" if kind == "slice_by" else kind
        # A file's name may say whom a document is about; `fullft files` prints which file an alias is.
        slicing[name] = [
            alias(value) if kind == "source" and value is not None else value
            for value in map(by_id.get, test.ids)
        ]
    slicing["length"] = _lengths(test.texts)
    slicing["language"] = [language_of(text) for text in test.texts]
    if task_of(settings.examples).has_labels:
        slicing[LABEL] = [None] * len(test)
    return {
        kind: values
        for kind, values in slicing.items()
        if kind == LABEL or any(value is not None for value in values)
    }


def _lengths(texts: list[str]) -> list[str | None]:
    lengths = np.array([len(text) for text in texts])
    edges = np.unique(np.quantile(lengths, [0.25, 0.5, 0.75, 1], method="inverted_cdf"))
    part = np.searchsorted(edges, lengths)
    names = {
        number: f"{lengths[part == number].min():,} to {lengths[part == number].max():,} characters"
        for number in set(part.tolist())
    }
    return [names[number] for number in part.tolist()]


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
        label_errors: test and validation rows whose label is probably wrong; None: not searched for, as
            cleanlab is not installed.
    """

    evaluation: Evaluation
    headline: Mapping[str, Any]
    rows: pa.Table
    examples: Sequence[AnsweredRow]
    worst: Sequence[DoubtfulRow] = ()
    label_errors: Sequence[DoubtfulRow] | None = ()
    written: Sequence[Mapping[str, str]] = ()


@dataclass(frozen=True)
class EvaluationContext:
    """What is evaluated.

    Attributes:
        inputs: artifacts by asset name; `champion` is the checkpoint to beat, if there is one, and
            `first_champion` where that is another.
        outputs: what systems predicted of the test rows, by name; a system that is in it does not predict
            again.
        seconds: the seconds that each system took.
        shares_models: whether several processes, which all evaluate, share each model.
    """

    job: Job
    store: Store
    inputs: Mapping[str, Manifest]
    progress: Progress
    shares_models: bool = False
    outputs: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def candidate(self) -> str:
        """Name of the system that is judged."""
        return CheckpointMetadata.of(self.inputs[FINETUNED_CHECKPOINT]).system

    @property
    def base_model(self) -> ModelFolder:
        return find_base_model(self.job.settings, Path(self.job.project_root))

    @property
    def labels(self) -> list[str]:
        """The snapshot's label order; a checkpoint may know other labels, as the snapshot may be newer
        (periodic evaluation).
        """
        return label_names(self.inputs[TRAINING_SNAPSHOT])

    @property
    def baseline_labels(self) -> list[str]:
        return BaselinesMetadata.of(self.inputs[CHEAPER_BASELINES]).labels

    @property
    def listener(self) -> Listener:
        """What the passes of models listen to that processes share."""
        return ranks.StopListener(self.progress) if self.shares_models else self.progress

    def predict_with_all(
        self,
        test: Split,
        by_checkpoint: Callable[[str], Output],
        by_baseline: Callable[[str, Baseline], Output],
        by_external: Callable[[str, list[Any]], Output] | None = None,
    ) -> dict[str, Output]:
        """Return each system's predictions for the test rows: the candidate, the baselines, external systems
        and, if there are any, the champions.

        Args:
            by_checkpoint: takes the name of a checkpoint among the inputs.
            by_baseline: takes a baseline's name, and the baseline.
            by_external: takes the name of an external system, and its answer for each test row.
        """
        systems: dict[str, Callable[[], Output]] = {
            self.candidate: partial(by_checkpoint, FINETUNED_CHECKPOINT)
        }
        for name, baseline in self._load_baselines(test).items():
            # A baseline that is judged is scored as it is stored.
            systems.setdefault(
                name,
                partial(
                    self.result_of,
                    partial(by_baseline, name, baseline),
                    by_first=not baseline.shares_model,
                ),
            )
        for name, answers in self.external_answers(test).items():
            if by_external is None:
                raise SettingsError(
                    f"evaluation.external: the task {self.job.settings.examples.task} takes no file of"
                    f" answers; remove {name}"
                )
            systems[name] = partial(by_external, name, answers)
        systems |= {name: partial(by_checkpoint, name) for name in (CHAMPION, ANCHOR) if name in self.inputs}
        for name, predict in systems.items():
            if name in self.outputs:
                continue
            self.progress.raise_if_stopped()
            self.progress.say(f"{title(name)} on {len(test):,} test rows ...")
            began = time.perf_counter()
            self.outputs[name] = predict()
            self.seconds[name] = time.perf_counter() - began
        return dict(self.outputs)

    def result_of(self, work: Callable[[], Output], *, by_first: bool) -> Output:
        """Return the result of work, such as a system's predictions: of processes that share models the first
        one does what shares none.
        """
        return ranks.by_first(work, self.progress) if by_first and self.shares_models else work()

    def external_answers(self, test: Split) -> dict[str, list[Any]]:
        """Return each external system's answers for the test rows, as its file has them."""
        if external.PREDICTIONS not in self.inputs:
            return {}
        copies = self.inputs[external.PREDICTIONS]
        folder = self.store.folder(copies)
        return {
            name: external.answers(folder, name, copies.settings["target"], test.ids)
            for name in external.ExternalMetadata.of(copies).num_rows
        }

    def comparison(self, test: Split) -> Comparison:
        """Return how the systems are compared, and report that the comparison begins."""
        settings = self.job.settings
        self.progress.say(f"{RESAMPLES:,} resamples over the groups of {len(test):,} test rows ...")
        slices = slices_of(self.store, self.inputs[TRAINING_SNAPSHOT], settings, test)
        return Comparison.of(settings, slices, self.modules, self.candidate)

    @cached_property
    def modules(self) -> dict[str, Metric]:
        return external.load_modules(self.store, self.inputs.get(external.MODULES), self.job.settings)

    def open(self, name: str) -> OpenedModel:
        """Return the model of a checkpoint among the inputs."""
        self._fetch_once(name)
        return open_model(self.store, self.inputs[name], self.job.settings, self.progress)

    def model_folder(self, name: str) -> ModelFolder:
        self._fetch_once(name)
        return with_rights(self.store.folder(self.inputs[name]) / "model", self.job.settings)

    def _fetch_once(self, name: str) -> None:
        if self.shares_models:  # from a bucket, a host needs one copy
            ranks.run_on_each_host(partial(self.store.folder, self.inputs[name]), self.progress)

    def has_tokenizer_of_snapshot(self, name: str) -> bool:
        """Return whether a checkpoint among the inputs has the tokenizer that the snapshot's chunks were
        made with.

        Token ids only mean something to the tokenizer that made them.
        """
        return tokenizer_of(
            self.store, self.store.load(CheckpointMetadata.of(self.inputs[name]).snapshot)
        ) == tokenizer_of(self.store, self.inputs[TRAINING_SNAPSHOT])

    def _load_baselines(self, test: Split) -> dict[str, Baseline]:
        artifact = self.inputs[CHEAPER_BASELINES]
        # An earlier release had baselines that are not registered any more.
        names = [
            name
            for name in BaselinesMetadata.of(artifact).scores
            if name in BASELINES and name not in self.outputs
        ]
        context = replace(
            fitted_context(
                self.job,
                self.store,
                self.inputs[TRAINING_SNAPSHOT],
                self.baseline_labels,
                test,
                self.progress,
            ),
            shares_models=self.shares_models,
        )
        return load_all(names, self.store.folder(artifact), context)


def column_of(system: str, quantity: str) -> str:
    """Return the column of `EvaluationResult.rows` with what a system predicted; the fine-tuned model's is
    named by that alone.
    """
    return quantity if system == FINETUNED else f"{system}.{quantity}"


def shared_labels(model_labels: Sequence[str], labels: Sequence[str]) -> list[str]:
    """Return which of the labels a system knows, in their order."""
    common_labels = [label for label in labels if label in model_labels]
    if not common_labels:
        new_names, model_names = (
            named(((label, "") for label in part), len(part), {*labels, *model_labels})
            for part in (labels, model_labels)
        )
        raise StoreError(
            f"the model knows none of the labels {new_names}, only {model_names}; give the new labels a use"
            " case of their own"
        )
    return common_labels


def pick_answers(
    test: Split,
    truth: Sequence[Any] | np.ndarray,
    answers: Mapping[str, Sequence[Any] | np.ndarray],
    evaluation: Evaluation,
    seed: int,
    say: Callable[[int, Any], str],
) -> list[AnsweredRow]:
    """Draw test rows to show at random, first among those on which the fine-tuned model and the best baseline
    disagree.

    Args:
        answers: system -> what it answered for each row, in the form of the truth.
        say: returns an answer for a row in words.
    """
    names = evaluation.justification.best_baseline, evaluation.candidate
    baseline, candidate_answers = (
        [say(row, answer) for row, answer in enumerate(answers[name])] for name in names
    )
    order = np.random.default_rng(seed).permutation(len(test))
    agrees = np.array([candidate_answers[row] == baseline[row] for row in order.tolist()])
    return [
        AnsweredRow(
            test.ids[row],
            shorten(test.texts[row]),
            say(row, truth[row]),
            baseline[row],
            candidate_answers[row],
        )
        for row in order[np.argsort(agrees, kind="stable")][:NUM_ANSWERS].tolist()
    ]
