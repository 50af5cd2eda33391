"""The evaluation of language models on the trained tokens of held-out documents: sft and language_modeling.

The mean loss of a set of documents is the ratio of their summed losses to their tokens (nats a token); token
probability is exp(-mean loss), the geometric mean of the probabilities that the model gave the tokens, and
perplexity its inverse. Intervals resample whole groups, and a resample's metric is the ratio of the resampled
sums: a mean of documents' own means would weigh a short document like a long one.

Models with different tokenizers read the same text as different tokens, and their means cannot be compared.
What such a model lost on a document is therefore spread over the tokens that the test set's tokenizer cuts of
it (`in_tokens_of`): equal nats on an equal text count equally, as in bits per byte. Which token it ranked
first has no counterpart, so it has no token accuracy.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fullft_assets.errors import DataError, SettingsError
from fullft_assets.evaluation.base import Evaluation
from fullft_assets.evaluation.comparison import MAX_GROUP_WEIGHT, Comparison, Justification
from fullft_assets.evaluation.intervals import Gain, Interval, Record, bounded_interval
from fullft_assets.evaluation.metrics.base import Metric, Predictions
from fullft_assets.evaluation.metrics.texts import perplexity as perplexity_of
from fullft_assets.evaluation.resampling import measure, number_groups
from fullft_assets.evaluation.titles import BASE_MODEL, FINETUNED, title
from fullft_assets.settings import UseCaseSettings
from fullft_assets.task import METRICS, task_of

#: Perplexity over fewer tokens says little about a group.
MIN_GROUP_TOKENS = 100
#: In the folder of an evaluation: what each system wrote for each prompt, by the row's id.
ANSWERS = "answers.jsonl"
#: task -> metric -> a value for each of the task's rows.
RowScores = Mapping[str, Mapping[str, np.ndarray]]


@dataclass(frozen=True)
class DocumentScores:
    """How a model predicted the trained tokens of n documents.

    Attributes:
        num_tokens: int [n], tokens that were predicted.
        loss: float [n], their summed cross-entropy in nats.
        num_right: int [n], how many of them the model ranked first; None: of another tokenizer's tokens.
    """

    num_tokens: np.ndarray
    loss: np.ndarray
    num_right: np.ndarray | None

    def select(self, rows: np.ndarray) -> DocumentScores:
        return DocumentScores(
            self.num_tokens[rows], self.loss[rows], None if self.num_right is None else self.num_right[rows]
        )


class AnswerScores(Record):
    """Scores of written answers; `scores` and `gains` go metric -> system.

    Attributes:
        effective_groups: how many groups of equal weight they rest on.
        num_too_long: drawn conversations that are excluded, because their held-out answer is longer than a
            model may write.
        max_new_tokens: that a model might write.
        gains: fine-tuned minus each other system.
    """

    num_answers: int
    num_groups: int
    effective_groups: float
    num_too_long: int
    max_new_tokens: int
    scores: dict[str, dict[str, Interval]]
    gains: dict[str, dict[str, Gain]]


class TaskScores(Record):
    """What each system scored on one metric of a task; each row counts once, and the gains are paired.

    Attributes:
        gains: fine-tuned minus each other system.
    """

    task: str
    metric: str
    num_rows: int
    scores: dict[str, Interval]
    gains: dict[str, Gain]


class GroupPerplexity(Record):
    """How one group of related test documents fared."""

    group: str
    num_rows: int
    num_tokens: int
    perplexity: float
    base_perplexity: float


class Change(Record):
    """One test document; losses in nats a token."""

    id: str
    group: str
    num_tokens: int
    loss: float
    base_loss: float


class Changes(Record):
    """Test documents by whether fine-tuning lowered their mean loss, and those that it raised most, worst
    first.
    """

    num_better: int
    num_worse: int
    num_equal: int
    largest_regressions: list[Change]

    @property
    def share_better(self) -> float:
        return self.num_better / (self.num_better + self.num_worse + self.num_equal)


class LanguageEvaluation(Evaluation):
    """Everything measured of a language model.

    Attributes:
        num_rows_without_tokens: test documents that have none; they are excluded.
        rescaled: systems with another tokenizer than the test set's.
        answers: None: nothing was written, or for too few groups.
        other_tasks: scores on the tasks of `evaluation.lm_eval`.
    """

    num_test_tokens: int
    num_rows_without_tokens: int
    rescaled: list[str]
    changes: Changes
    weakest_groups: list[GroupPerplexity]
    answers: AnswerScores | None = None
    other_tasks: list[TaskScores] = []

    @property
    def perplexity(self) -> dict[str, Interval]:
        return self.scores["perplexity"]

    @property
    def limits(self) -> list[str]:
        sentences = []
        if self.weakest_groups:
            weakest = self.weakest_groups[0]
            sentences.append(
                # Unnamed: a card goes where the model goes, and a group may be a person.
                f"Of its groups it is weakest on one with perplexity {weakest.perplexity:.2f}"
                f" ({weakest.num_tokens:,} tokens of {weakest.num_rows:,} test rows); the evaluation's"
                " report.html names it."
            )
        sentences.append(
            f"It predicts {self.changes.num_worse:,} of {self.num_test_rows:,} test rows worse than the base"
            " model does."
        )
        sentences.append("What it predicts well need not be true: facts in what it writes were not checked.")
        return sentences


def in_tokens_of(
    scores: DocumentScores, lengths: np.ndarray, target: DocumentScores, target_lengths: np.ndarray
) -> DocumentScores:
    """Spread what a model lost on each document over the tokens that another tokenizer cuts of the same text.

    Each document's mean loss a token, times the tokens it would have read in all of it, is what the text
    cost; that is shared out over our tokens.

    Args:
        scores: in the model's own tokens.
        lengths: int [n], tokens of the full documents in its tokenizer.
        target: in the test set's tokens; only its `num_tokens` count.
        target_lengths: int [n], tokens of the full documents in the test set's tokenizer.
    """
    known = (scores.num_tokens > 0) & (target_lengths > 0)
    mean = np.divide(scores.loss, scores.num_tokens, out=np.zeros(len(known)), where=known)
    cost = np.divide(mean * lengths, target_lengths, out=np.zeros(len(known)), where=known)
    return DocumentScores(np.where(known, target.num_tokens, 0), cost * target.num_tokens, None)


def assess(
    scores: Mapping[str, DocumentScores],
    ids: Sequence[str],
    groups: Sequence[str],
    comparison: Comparison,
    num_bytes: np.ndarray | None = None,
    answers: AnswerScores | None = None,
    other_tasks: Sequence[TaskScores] = (),
) -> LanguageEvaluation:
    """Measure everything of an evaluation.

    Args:
        scores: of `finetuned`, `base_model` and, if there is one, `champion`, over the same tokens of the
            same n documents.
        num_bytes: UTF-8 bytes of these tokens' text, int [n]; None: bits per byte are not measured.

    Raises:
        DataError: no document has a token to predict.
        SettingsError: token accuracy is to decide between models with different tokenizers.
        ValueError: scores are misaligned or not finite; the message names whose.
    """
    scored = _scored_by_all(scores, len(ids))
    if not scored.any():
        raise DataError(
            "evaluation: no test row has a trained token to predict; look at chunks.train_on and at the"
            " assistant turns"
        )
    selected = {name: each.select(scored) for name, each in scores.items()}
    ids, groups = _pick(ids, scored), _pick(groups, scored)
    rescaled = [name for name, each in selected.items() if each.num_right is None]
    if comparison.metric == "token_accuracy" and rescaled:
        raise SettingsError(
            "evaluation.primary_metric: token_accuracy counts tokens, and the tokenizer of the"
            f" {title(rescaled[0])} cuts others than the test set's; give token_probability, which compares"
            " equal text"
        )
    tuned, base = selected[comparison.candidate], selected[BASE_MODEL]
    num_bytes = None if num_bytes is None else num_bytes[scored]
    predictions = {
        name: replace(predictions_of(each), num_bytes=num_bytes) for name, each in selected.items()
    }
    shared = comparison.take(scored).run(predictions, groups, len(ids))
    shared["justification"] = _with_perplexity(
        shared["justification"], shared["scores"]["perplexity"], comparison.candidate
    )
    return LanguageEvaluation(
        **shared,
        num_test_tokens=int(tuned.num_tokens.sum()),
        num_rows_without_tokens=int((~scored).sum()),
        rescaled=rescaled,
        changes=changes(tuned, base, ids, groups),
        weakest_groups=weakest_groups(tuned, base, groups),
        answers=answers,
        other_tasks=list(other_tasks),
    )


def _with_perplexity(
    justified: Justification, perplexity: Mapping[str, Interval], candidate: str
) -> Justification:
    finetuned, baseline = perplexity[candidate].estimate, perplexity[justified.best_baseline].estimate
    return justified.model_copy(
        update={"sentence": f"{justified.sentence} Perplexity is {finetuned:.2f} against {baseline:.2f}."}
    )


def changes(
    tuned: DocumentScores, base: DocumentScores, ids: Sequence[str], groups: Sequence[str], *, most: int = 5
) -> Changes:
    """Compare the mean loss of each document [n] before and after, and name those that got worse by most."""
    change = (tuned.loss - base.loss) / tuned.num_tokens
    worst = sorted(np.flatnonzero(change > 0).tolist(), key=lambda row: (-change[row], ids[row]))[:most]
    return Changes(
        num_better=int((change < 0).sum()),
        num_worse=int((change > 0).sum()),
        num_equal=int((change == 0).sum()),
        largest_regressions=[
            Change(
                id=ids[row],
                group=groups[row],
                num_tokens=int(tuned.num_tokens[row]),
                loss=float(tuned.loss[row] / tuned.num_tokens[row]),
                base_loss=float(base.loss[row] / base.num_tokens[row]),
            )
            for row in worst
        ],
    )


def weakest_groups(
    tuned: DocumentScores,
    base: DocumentScores,
    groups: Sequence[str],
    *,
    most: int = 5,
    min_tokens: int = MIN_GROUP_TOKENS,
) -> list[GroupPerplexity]:
    """The groups of at least `min_tokens` tokens with the highest perplexity of the fine-tuned model, worst
    first.
    """
    names, index = np.unique(np.asarray(groups), return_inverse=True)
    tokens, loss, base_loss, rows = (
        np.bincount(index, weights=values, minlength=len(names))
        for values in (tuned.num_tokens, tuned.loss, base.loss, np.ones(len(index)))
    )
    order = sorted(
        np.flatnonzero(tokens >= min_tokens).tolist(), key=lambda n: (-loss[n] / tokens[n], names[n])
    )
    return [
        GroupPerplexity(
            group=str(names[n]),
            num_rows=int(rows[n]),
            num_tokens=int(tokens[n]),
            perplexity=_perplexity_of(loss[n], tokens[n]),
            base_perplexity=_perplexity_of(base_loss[n], tokens[n]),
        )
        for n in order[:most]
    ]


def predictions_of(scores: DocumentScores) -> Predictions:
    """Return what metrics take of a model's scores on documents."""
    return Predictions(
        predicted=scores, num_tokens=scores.num_tokens, num_right_tokens=scores.num_right, loss=scores.loss
    )


def _scored_by_all(scores: Mapping[str, DocumentScores], num_rows: int) -> np.ndarray:
    for name, each in scores.items():
        for what in ("num_tokens", "loss", "num_right"):
            values = getattr(each, what)
            if values is not None and values.shape != (num_rows,):
                raise ValueError(f"{name}: {what} has shape {values.shape} for {num_rows} rows")
        wrong = ~np.isfinite(each.loss)
        if wrong.any():
            raise ValueError(
                f"{name}: the loss of row {int(wrong.argmax())} is not finite ({int(wrong.sum())} such rows)"
            )
    scored = np.logical_and.reduce([each.num_tokens > 0 for each in scores.values()])
    first, *others = scores
    for name in others:
        if (scores[name].num_tokens != scores[first].num_tokens)[scored].any():
            raise ValueError(
                f"{name}: other numbers of tokens than {first}'s; score both on the same windows"
            )
    return scored


def _pick(values: Sequence[str], mask: np.ndarray) -> list[str]:
    return [values[row] for row in np.flatnonzero(mask).tolist()]


def _perplexity_of(loss: float, tokens: float) -> float:
    return float(perplexity_of(np.asarray(loss), np.asarray(tokens)))


def measure_answers(
    truth: Sequence[str],
    written: Mapping[str, Sequence[str]],
    groups: Sequence[str],
    settings: UseCaseSettings,
    *,
    num_too_long: int,
    max_new_tokens: int,
    modules: Mapping[str, Metric] | None = None,
    candidate: str = FINETUNED,
) -> AnswerScores | None:
    """Score what each system wrote; None where the answers are of fewer than two groups, of which no interval
    can be computed.

    Args:
        written: of the candidate and the other systems, aligned with `truth` [n].
        modules: metrics that are not registered, by name.
    """
    sizes = Counter(groups)
    if len(sizes) < 2:
        return None
    index, num_groups = number_groups(groups, len(truth))
    weights = np.array([1 / min(sizes[group], MAX_GROUP_WEIGHT) for group in groups])
    predictions = {
        name: Predictions(
            truth=list(truth), predicted=list(texts), is_right=np.zeros(len(truth), bool), weights=weights
        )
        for name, texts in written.items()
    }
    asked = settings.evaluation
    names = [*task_of(settings.examples).answer_metrics, *asked.metrics]
    metrics = {name: METRICS.get(name) for name in names} | dict(modules or {})
    measured = {
        name: measure(
            metric, predictions, index, reference=candidate, confidence=asked.confidence, seed=settings.seed
        )
        for name, metric in metrics.items()
        if metric.of_answers
    }
    return AnswerScores(
        num_answers=len(truth),
        num_groups=num_groups,
        effective_groups=next(iter(measured.values())).effective_groups,
        num_too_long=num_too_long,
        max_new_tokens=max_new_tokens,
        scores={name: each.scores for name, each in measured.items()},
        gains={name: each.gains for name, each in measured.items()},
    )


def task_scores(
    row_scores: Mapping[str, RowScores], confidence: float, candidate: str = FINETUNED
) -> list[TaskScores]:
    """Return every score of each task with its interval.

    Args:
        row_scores: of the candidate and the other systems.
    """
    return [
        _scores(
            task,
            metric,
            {name: each[task][metric] for name, each in row_scores.items()},
            confidence,
            candidate,
        )
        for task, metrics in row_scores[candidate].items()
        for metric in metrics
        # Each system's numbers decide whether a score is a mean over rows, and one row gives no interval.
        if all(metric in each[task] and len(each[task][metric]) > 1 for each in row_scores.values())
    ]


def _scores(
    task: str, metric: str, values: Mapping[str, np.ndarray], confidence: float, candidate: str
) -> TaskScores:
    ours = values[candidate]
    freedom, is_share = (
        max(len(ours) - 1, 1),
        all(((each >= 0) & (each <= 1)).all() for each in values.values()),
    )
    bounds = (0.0, 1.0) if is_share else (None, None)
    return TaskScores(
        task=task,
        metric=metric,
        num_rows=len(ours),
        scores={
            name: bounded_interval(float(each.mean()), _error(each), freedom, confidence, bounds)
            for name, each in values.items()
        },
        gains={
            name: Gain.of(
                float((ours - each).mean()),
                _error(ours - each),
                freedom,
                confidence,
                (ours - each)[ours != each] / len(ours),
            )
            for name, each in values.items()
            if name != candidate
        },
    )


def _error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0
