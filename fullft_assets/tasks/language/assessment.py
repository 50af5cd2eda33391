"""The evaluation of language models on the trained tokens of held-out documents: sft and language_modeling.

The mean loss of a set of documents is the ratio of their summed losses to their tokens (nats a token); token
probability is exp(-mean loss), the geometric mean of the probabilities that the model gave the tokens, and
perplexity its inverse. Intervals resample whole groups, and a resample's metric is the ratio of the resampled
sums: a mean of documents' own means would weigh a short document like a long one.

Models with different tokenizers read the same text as different tokens, and their means cannot be compared.
The loss of such a model on a document is therefore spread over the tokens that the test set's tokenizer makes
of it (`in_tokens_of`): equal nats on an equal text count equally. Which token the model ranked first has no
counterpart, so it has no token accuracy.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from fullft_assets.errors import DataError, SettingsError
from fullft_assets.evaluation.base import Evaluation
from fullft_assets.evaluation.comparison import MAX_GROUP_WEIGHT, Comparison
from fullft_assets.evaluation.intervals import Gain, Interval, Record
from fullft_assets.evaluation.metrics.base import Metric, Predictions
from fullft_assets.evaluation.resampling import measure, number_groups
from fullft_assets.evaluation.titles import BASE_MODEL, FINETUNED, title
from fullft_assets.models.document_scores import DocumentScores
from fullft_assets.settings import UseCaseSettings
from fullft_assets.task import METRICS, task_of

#: In the folder of an evaluation: what each system wrote for each prompt, by the row's id.
ANSWERS = "answers.jsonl"


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


class Changes(Record):
    """Numbers of test documents whose mean loss fine-tuning lowered, raised, and left as it was."""

    num_better: int
    num_worse: int
    num_equal: int

    @property
    def share_better(self) -> float:
        return self.num_better / (self.num_better + self.num_worse + self.num_equal)


class LanguageEvaluation(Evaluation):
    """Everything measured of a language model.

    Attributes:
        num_rows_without_tokens: test documents that have none; they are excluded.
        rescaled: systems with another tokenizer than the test set's.
        answers: None: nothing was written, or for too few groups.
    """

    num_test_tokens: int
    num_rows_without_tokens: int
    rescaled: list[str]
    changes: Changes
    answers: AnswerScores | None = None

    @property
    def perplexity(self) -> dict[str, Interval]:
        return self.scores["perplexity"]

    @property
    def limits(self) -> list[str]:
        return [
            f"It predicts {self.changes.num_worse:,} of {self.num_test_rows:,} test rows worse than the base"
            " model does.",
            "What it predicts well need not be true: facts in what it writes were not checked.",
        ]


def in_tokens_of(
    scores: DocumentScores, lengths: np.ndarray, target: DocumentScores, target_lengths: np.ndarray
) -> DocumentScores:
    """Spread a model's loss on each document over the tokens that another tokenizer makes of the same text.

    The loss of the whole text is the document's mean loss a token, times the model's tokens of the whole
    text. It is divided evenly among the tokens of the test set's tokenizer.

    Args:
        scores: in the model's own tokens.
        lengths: int [n], tokens of the full documents in the model's tokenizer.
        target: in the test set's tokens; only its `num_tokens` count.
        target_lengths: int [n], tokens of the full documents in the test set's tokenizer.
    """
    has_tokens = (scores.num_tokens > 0) & (target_lengths > 0)
    mean = np.divide(scores.loss, scores.num_tokens, out=np.zeros(len(has_tokens)), where=has_tokens)
    cost = np.divide(mean * lengths, target_lengths, out=np.zeros(len(has_tokens)), where=has_tokens)
    return DocumentScores(np.where(has_tokens, target.num_tokens, 0), cost * target.num_tokens, None)


def assess(
    scores: Mapping[str, DocumentScores],
    groups: Sequence[str],
    comparison: Comparison,
    answers: AnswerScores | None = None,
) -> LanguageEvaluation:
    """Measure everything of an evaluation.

    Args:
        scores: of `finetuned`, `base_model` and, if there is one, `champion`, over the same tokens of the
            same n documents.

    Raises:
        DataError: no document has a token to predict.
        SettingsError: token accuracy is to decide between models with different tokenizers.
        ValueError: scores are misaligned or not finite; the message names whose.
    """
    if not (is_scored := _scored_by_all(scores)).any():
        raise DataError(
            "evaluation: no test row has a trained token to predict; look at chunks.train_on and at the"
            " assistant turns"
        )
    selected = {name: system_scores.select(is_scored) for name, system_scores in scores.items()}
    groups = [groups[row] for row in np.flatnonzero(is_scored).tolist()]
    rescaled = [name for name, system_scores in selected.items() if system_scores.num_right is None]
    if comparison.metric == "token_accuracy" and rescaled:
        raise SettingsError(
            "evaluation.primary_metric: token_accuracy counts tokens, and the tokenizer of the"
            f" {title(rescaled[0])} cuts others than the test set's; give token_probability, which compares"
            " equal text"
        )
    candidate_scores = selected[comparison.candidate]
    fields = comparison.take(is_scored).run(
        {name: predictions_of(system_scores) for name, system_scores in selected.items()}, groups, len(groups)
    )
    justification = fields["justification"]
    finetuned, baseline = (
        fields["scores"]["perplexity"][name].estimate
        for name in (comparison.candidate, justification.best_baseline)
    )
    sentence = f"{justification.sentence} Perplexity is {finetuned:.2f} against {baseline:.2f}."
    fields["justification"] = justification.model_copy(update={"sentence": sentence})
    return LanguageEvaluation(
        **fields,
        num_test_tokens=int(candidate_scores.num_tokens.sum()),
        num_rows_without_tokens=int((~is_scored).sum()),
        rescaled=rescaled,
        changes=changes(candidate_scores, selected[BASE_MODEL]),
        answers=answers,
    )


def changes(candidate: DocumentScores, base: DocumentScores) -> Changes:
    """Compare the mean loss of each document [n] before and after."""
    change = candidate.loss - base.loss
    return Changes(
        **{
            name: int(rows.sum())
            for name, rows in {
                "num_better": change < 0,
                "num_worse": change > 0,
                "num_equal": change == 0,
            }.items()
        }
    )


def predictions_of(scores: DocumentScores) -> Predictions:
    """Return the input of metrics: a model's scores on documents."""
    return Predictions(
        predicted=scores, num_tokens=scores.num_tokens, num_right_tokens=scores.num_right, loss=scores.loss
    )


def _scored_by_all(scores: Mapping[str, DocumentScores]) -> np.ndarray:
    for name, system_scores in scores.items():
        if (wrong := ~np.isfinite(system_scores.loss)).any():
            raise ValueError(
                f"{name}: the loss of row {int(wrong.argmax())} is not finite ({int(wrong.sum())} such rows)"
            )
    is_scored = np.logical_and.reduce([system_scores.num_tokens > 0 for system_scores in scores.values()])
    first = next(iter(scores))
    for name in scores:
        if (scores[name].num_tokens != scores[first].num_tokens)[is_scored].any():
            raise ValueError(f"{name}: other numbers of tokens than {first}'s; score both on the same chunks")
    return is_scored


def measure_answers(
    truth: Sequence[str],
    answers: Mapping[str, Sequence[str]],
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
        answers: of the candidate and the other systems, aligned with `truth` [n].
        modules: metrics that are not registered, by name.
    """
    if len(sizes := Counter(groups)) < 2:
        return None
    index, num_groups = number_groups(groups, len(truth))
    weights = np.array([1 / min(sizes[group], MAX_GROUP_WEIGHT) for group in groups])
    predictions = {
        name: Predictions(
            truth=list(truth), predicted=list(texts), is_right=np.zeros(len(truth), bool), weights=weights
        )
        for name, texts in answers.items()
    }
    names = [*task_of(settings.examples).answer_metrics, *settings.evaluation.metrics]
    measurements = {
        name: measure(
            metric,
            predictions,
            index,
            reference=candidate,
            confidence=settings.evaluation.confidence,
            seed=settings.seed,
        )
        for name, metric in ({name: METRICS.get(name) for name in names} | dict(modules or {})).items()
        if metric.of_answers
    }
    return AnswerScores(
        num_answers=len(truth),
        num_groups=num_groups,
        effective_groups=next(iter(measurements.values())).effective_groups,
        num_too_long=num_too_long,
        max_new_tokens=max_new_tokens,
        scores={name: measurement.scores for name, measurement in measurements.items()},
        gains={name: measurement.gains for name, measurement in measurements.items()},
    )
