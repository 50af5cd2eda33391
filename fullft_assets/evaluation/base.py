"""What every evaluation has, whatever the task; what a model forgot of general text over all its trainings,
and how much the seed alone moves a score.
"""

import json
import math
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any, Literal

import numpy as np

from fullft_assets.checkpoint.metadata import CheckpointMetadata, PastTraining
from fullft_assets.escaping import quoted
from fullft_assets.evaluation.comparison import Comparison, Justification, Slices
from fullft_assets.evaluation.intervals import Gain, Interval, Record
from fullft_assets.evaluation.metrics.base import Predictions, ratio
from fullft_assets.evaluation.titles import CHAMPION, FINETUNED, title
from fullft_assets.store import Manifest
from fullft_assets.task import TASKS

#: The budget of a loss that nobody has set a budget for: the perplexity of general text may double.
#: docs/decisions/0024 says why.
DEFAULT_RISE = math.log(2)
VERSION = "24"
#: A variance from fewer trainings than this is too unsure to claim anything about a recipe.
MIN_RUNS = 9
#: Standard deviation that other seeds are assumed to give a score of labels, in its units
#: (docs/decisions/0020).
_SEED_DEVIATION = 0.0035
#: Other seeds vary a difference of language models by so many times what other training rows would, as sure
#: as five trainings.
_ASSUMED_SHARE = 1.5
#: Numbers of test groups that are tried.
_MOST_GROUPS = 10_000


class Forgetting(Record):
    """What was measured on the general set (`snapshot.general`).

    Attributes:
        measure: `loss` in nats a token; `distance` of representations from the base model's, 1 - mean cosine,
            where there is no loss.
        rise: of all trainings since the base model together. Each counts on the general set of its own
            snapshot.
        num_unmeasured: trainings without a general set; what they made the model forget is not in `rise`.
        training_budget: `training.max_general_rise` of the last training.
    """

    measure: Literal["loss", "distance"]
    before: float
    after: float
    rise: float
    num_trainings: int
    num_unmeasured: int
    training_budget: float | None = None

    @property
    def budget(self) -> float | None:
        """The largest rise that is allowed; None: a distance has no natural limit."""
        default_budget = DEFAULT_RISE if self.measure == "loss" else None
        return default_budget if self.training_budget is None else self.training_budget

    @property
    def what(self) -> str:
        """What rose, in words."""
        return (
            "loss on general text (nats a token)"
            if self.measure == "loss"
            else "distance of general texts' representations"
        )


def forgetting_of(checkpoint: Manifest) -> Forgetting | None:
    """Return the measurements of what a checkpoint forgot of general text, or None if its own training did
    not measure them.
    """
    metadata = CheckpointMetadata.of(checkpoint)
    general_after = _after(metadata)
    if general_after is None or metadata.general_before is None:
        return None
    trainings = [*metadata.lineage, metadata]
    rises = [
        after - training.general_before
        for training in trainings
        if (after := _after(training)) is not None and training.general_before is not None
    ]
    return Forgetting(
        measure="loss" if metadata.general_loss is not None else "distance",
        before=metadata.general_before,
        after=general_after,
        rise=sum(rises),
        num_trainings=len(trainings),
        num_unmeasured=len(trainings) - len(rises),
        training_budget=checkpoint.settings.get("training", {}).get("max_general_rise"),
    )


def _after(training: PastTraining | CheckpointMetadata) -> float | None:
    """Return the loss on general text after a training, or the distance where there is no loss."""
    return training.general_loss if training.general_loss is not None else training.general_distance


class Evaluation(Record, ABC):
    """What a release and a report need to know of an evaluation; `scores` and `gains` go metric -> system.

    Attributes:
        candidate: the system that is judged: the fine-tuned model, or a baseline; see `titles`.
        metrics: names of the metrics that a table of the systems shows, in order.
        effective_groups: how many groups of equal weight the primary metric rests on.
        measurable_labels: labels that enough groups have; macro-F1 is the mean over them. None: the task has
            no labels.
        rare_labels: the other labels that occur: unmeasured.
        rare_micro_f1: F1 of the rare labels' counts together; it has no interval.
        influences: of each test group on the fine-tuned model's primary metric, in the order of the groups'
            names, and
        groups_digest: which groups these are: two trainings on the same test groups are compared by them.
        token_cap: a document counts at most as many tokens. None: tokens are not counted.
        gains: the candidate minus each other system.
        calibration_error: None: not measured for this task.
        forgetting: None: no general text was given.
        slices: None: none was asked for, or the metric cannot measure them.
        labels_since_anchor: the labels, against the last champion that was better, else against the champion;
            None: there is none.
    """

    task: str
    candidate: str = FINETUNED
    metrics: list[str]
    primary_metric: str
    confidence: float
    resamples: int
    num_test_rows: int
    num_test_groups: int
    effective_groups: float
    measurable_labels: int | None = None
    rare_labels: list[str] = []
    rare_micro_f1: float | None = None
    token_cap: int | None = None
    influences: list[float] = []
    groups_digest: str = ""
    baselines: list[str]
    has_champion: bool
    scores: dict[str, dict[str, Interval]]
    gains: dict[str, dict[str, Gain]]
    justification: Justification
    calibration_error: float | None = None
    forgetting: Forgetting | None = None
    slices: Slices | None = None
    labels_since_anchor: Slices | None = None

    @property
    @abstractmethod
    def limits(self) -> list[str]:
        """Known limits that the measurements show, one sentence each."""

    @property
    def columns(self) -> dict[str, dict[str, Interval]]:
        """What a table of the systems shows: metric -> system -> interval. A system without an interval could
        not be measured so.
        """
        return {metric: self.scores.get(metric, {}) for metric in self.metrics}

    @property
    def headline(self) -> dict[str, float]:
        """The candidate's metrics, each with the ends of its interval."""
        numbers: dict[str, float] = {}
        for metric, values in self.columns.items():
            if self.candidate in values:
                score = values[self.candidate]
                numbers |= {metric: score.estimate, f"{metric}_low": score.low, f"{metric}_high": score.high}
        return numbers

    @property
    def score(self) -> Interval:
        """The candidate's primary metric."""
        return self.scores[self.primary_metric][self.candidate]

    @property
    def gain_over_best_baseline(self) -> Gain:
        """Primary metric, fine-tuned minus the best baseline."""
        return self.justification.gain

    @property
    def gain_over_champion(self) -> Gain | None:
        """Primary metric, fine-tuned minus champion; None without a champion."""
        return self.gains[self.primary_metric].get(CHAMPION)

    @property
    def measured_on(self) -> list[str]:
        """What the test set cannot show, one sentence each."""
        sentences = [
            f"It rests on {self.num_test_groups:,} groups that tell as much as {self.effective_groups:,.0f}"
            " of equal weight."
        ]
        rival = CHAMPION if self.has_champion else self.justification.best_baseline
        detectable = self.gains[self.primary_metric][rival].detectable
        sentences.append(
            f"A difference from the {title(rival)} below {detectable:.3f} is found less than four times in"
            " five."
        )
        if self.token_cap is not None:
            sentences.append(
                f"A test row counts at most {self.token_cap:,} tokens, so that a few long ones do not decide"
                " alone."
            )
        if self.rare_labels:
            tail = (
                ""
                if self.rare_micro_f1 is None
                else f"; together their F1 is {self.rare_micro_f1:.3f}, without an interval"
            )
            more = f" and {len(self.rare_labels) - 8} more" if len(self.rare_labels) > 8 else ""
            sentences.append(
                f"{len(self.rare_labels)} labels have too few test groups to be measured{tail}:"
                f" {', '.join(map(quoted, self.rare_labels[:8]))}{more}."
            )
        return sentences


class LabelScore(Record):
    """One row of the per-label table; `threshold` as it was chosen on the validation rows, if it was."""

    label: str
    precision: float
    recall: float
    f1: float
    support: int
    threshold: float | None = None
    num_predicted: int | None = None


class LabelEvaluation(Evaluation):
    """What an evaluation of labels has, of rows or of spans.

    Attributes:
        per_label: support counts rows, or spans.
    """

    labels: list[str]
    per_label: list[LabelScore]

    @property
    def unmeasured(self) -> list[str]:
        """The labels that the test rows lack."""
        return [score.label for score in self.per_label if not score.support]


def label_scores(
    right: np.ndarray,
    true: np.ndarray,
    num_predicted: np.ndarray,
    names: Sequence[str],
    thresholds: np.ndarray | None = None,
) -> list[LabelScore]:
    """Return the per-label table from counts [labels], in label order; a ratio without a denominator is 0."""
    precision = ratio(right, num_predicted)
    recall = ratio(right, true)
    f1 = ratio(2 * right, true + num_predicted)
    return [
        LabelScore(
            label=name,
            precision=float(precision[i]),
            recall=float(recall[i]),
            f1=float(f1[i]),
            support=int(true[i]),
            threshold=None if thresholds is None else float(thresholds[i]),
            num_predicted=int(num_predicted[i]),
        )
        for i, name in enumerate(names)
    ]


def weakest_label(scores: Sequence[LabelScore], unit: str) -> list[str]:
    """Return sentences on the weakest label, and on those that the test set lacks.

    Args:
        unit: what is counted, such as `test rows`.
    """
    measured_labels = [score for score in scores if score.support]
    sentences = []
    if measured_labels:
        weakest = min(measured_labels, key=lambda score: score.f1)
        sentences.append(
            f"It is weakest on `{weakest.label}` (F1 {weakest.f1:.3f} on {weakest.support:,} {unit})."
        )
    missing = [f"`{score.label}`" for score in scores if not score.support]
    if missing:
        sentences.append(f"The test set has no {', '.join(missing)}: quality there is unknown.")
    return sentences


def label_fields(
    predictions: Mapping[str, Predictions],
    groups: Sequence[str],
    names: Sequence[str],
    comparison: Comparison,
    thresholds: np.ndarray | None = None,
) -> dict[str, Any]:
    """Compare the systems, and return the fields that each `LabelEvaluation` has.

    Args:
        predictions: of `finetuned`, each baseline and, if there is one, `champion`, with what was right, true
            and predicted of each label.
        thresholds: of the fine-tuned model [labels], where it has some.
    """
    candidate = predictions[comparison.candidate]
    counts = (
        np.asarray(table).sum(0)
        for table in (candidate.true_positives, candidate.true, candidate.num_predicted)
    )
    return comparison.run(predictions, groups, len(groups)) | {
        "labels": list(names),
        "per_label": label_scores(*counts, names=names, thresholds=thresholds),
    }


def read_evaluation(text: str | bytes) -> Evaluation:
    """Return an evaluation that was stored as JSON, in the type of its task."""
    fields = json.loads(text)
    return TASKS.get(fields["task"]).evaluation_type().model_validate(fields)


class SeedNoise(Record):
    """The noise of seeds in the primary metric.

    Attributes:
        variance: of the metric between seeds, beyond what the test rows explain.
        degrees_of_freedom: how sure that variance is.
        num_runs: trainings that it was measured on. 0: it is assumed.
    """

    variance: float
    degrees_of_freedom: int
    num_runs: int


class Run(Record):
    """A training's score on the test groups, with each group's influence on it."""

    score: float
    influences: list[float]


def seed_noise(evaluations: Mapping[str, Iterable[Evaluation]]) -> SeedNoise | None:
    """Return the noise of seeds among evaluations by recipe, or None where fewer than `MIN_RUNS` trainings
    show it.

    Evaluations of one recipe are compared where they were scored on the same test groups by the same metric.
    """
    runs: dict[tuple[str, ...], list[Run]] = defaultdict(list)
    for recipe, of_recipe in evaluations.items():
        for evaluation in of_recipe:
            if evaluation.influences:
                runs[recipe, evaluation.primary_metric, evaluation.groups_digest].append(
                    Run(score=evaluation.score.estimate, influences=evaluation.influences)
                )
    return pooled(runs.values())


def assumed_seed_noise(evaluation: Evaluation, num_train_rows: int) -> SeedNoise | None:
    """Return the noise of seeds that is assumed before enough trainings were repeated, or None without a
    champion.

    Seeds move scores of labels by about as much whatever the number of rows, which is as sure as from
    `MIN_RUNS` trainings. A language model has no new head, and its score varies far less: as many rows as
    were trained on would vary the difference of two by v n_test / n_train, where the test rows vary it by v.
    `python -m benchmarks.release_gate --parts decisions` counts how often this is enough.
    """
    gain = evaluation.gain_over_champion
    if gain is None:
        return None
    if evaluation.token_cap is None:
        return SeedNoise(variance=_SEED_DEVIATION**2, degrees_of_freedom=MIN_RUNS - 1, num_runs=0)
    share = _ASSUMED_SHARE * evaluation.num_test_rows / max(1, num_train_rows)
    return SeedNoise(variance=gain.standard_error**2 * share / 2, degrees_of_freedom=4, num_runs=0)


def least_groups(margin: float, confidence: float) -> int | None:
    """Return from how many test groups of equal weight on a classifier that answers as the champion does is
    non-inferior to it at a margin, with the noise of seeds that is assumed; None: that noise is too large.
    """

    def is_enough(number: int) -> bool:
        equal = Gain.of(0.0, 0.0, number - 1, confidence, np.zeros(0))
        gain = equal.with_seed_noise(2 * _SEED_DEVIATION**2, MIN_RUNS - 1, confidence)
        return gain.excludes_loss(min(gain.detectable, margin), confidence)

    return next(filter(is_enough, range(2, _MOST_GROUPS)), None)


def pooled(recipes: Iterable[list[Run]]) -> SeedNoise | None:
    """Return the variance between the runs of each recipe, pooled, without what the rows alone explain.

    Two runs on the same rows differ by chance in which rows they get right, and a further seed would have
    other luck: half the squared standard error of their difference is subtracted, or the rows would count
    twice.
    """
    repeated_recipes = [runs for runs in recipes if len(runs) > 1]
    num_runs = sum(len(runs) for runs in repeated_recipes)
    if num_runs < MIN_RUNS:
        return None
    freedom = num_runs - len(repeated_recipes)
    squares = sum(
        (len(runs) - 1) * (float(np.var([run.score for run in runs], ddof=1)) - _row_noise(runs))
        for runs in repeated_recipes
    )
    return SeedNoise(variance=max(0.0, squares / freedom), degrees_of_freedom=freedom, num_runs=num_runs)


def _row_noise(runs: list[Run]) -> float:
    """Return half the mean squared standard error (jackknife over groups) of the difference between
    two runs.
    """
    influences = np.array([run.influences for run in runs])
    num_groups = influences.shape[1]
    factor = (num_groups - 1) / num_groups
    squared_errors = [
        factor * num_groups * float(np.var(influences[i] - influences[j]))
        for i, j in combinations(range(len(runs)), 2)
    ]
    return float(np.mean(squared_errors)) / 2
