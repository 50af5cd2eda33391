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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fullft_assets.errors import DataError, SettingsError
from fullft_assets.evaluation.answers import AnswerScores
from fullft_assets.evaluation.base import Evaluation
from fullft_assets.evaluation.comparison import Comparison, Justification
from fullft_assets.evaluation.harness import TaskScores
from fullft_assets.evaluation.intervals import Interval, Record
from fullft_assets.evaluation.metrics.base import Predictions
from fullft_assets.evaluation.metrics.tokens import perplexity as perplexity_of
from fullft_assets.evaluation.titles import BASE_MODEL, FINETUNED, title

#: Perplexity over fewer tokens says little about a group.
MIN_GROUP_TOKENS = 100


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
        """Return those at positions or of a mask."""
        return DocumentScores(
            self.num_tokens[rows], self.loss[rows], None if self.num_right is None else self.num_right[rows]
        )


class GroupPerplexity(Record):
    """How one group of related test documents fared."""

    group: str
    num_rows: int
    num_tokens: int
    perplexity: float
    base_perplexity: float


class LengthPerplexity(Record):
    """How the documents with `low` to `high` trained tokens fared."""

    low: int
    high: int
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


class ChangeBin(Record):
    """Test documents whose mean loss changed by `low` to `high` nats a token, fine-tuned minus base; the
    outer bins hold all beyond.
    """

    low: float
    high: float
    num_rows: int


class Changes(Record):
    """Test documents by whether fine-tuning lowered their mean loss, and those that it raised most, worst
    first.
    """

    num_better: int
    num_worse: int
    num_equal: int
    bins: list[ChangeBin]
    largest_regressions: list[Change]

    @property
    def share_better(self) -> float:
        """Share of documents whose loss fell."""
        return self.num_better / (self.num_better + self.num_worse + self.num_equal)


class LanguageEvaluation(Evaluation):
    """Everything measured of a language model.

    Attributes:
        num_rows_without_tokens: test documents that have none; they are excluded.
        rescaled: systems with another tokenizer than the test set's.
        per_length: quarters of the documents by length.
        answers: None: nothing was written, or for too few groups.
        other_tasks: scores on the tasks of `evaluation.lm_eval`.
    """

    num_test_tokens: int
    num_rows_without_tokens: int
    rescaled: list[str]
    changes: Changes
    weakest_groups: list[GroupPerplexity]
    per_length: list[LengthPerplexity]
    answers: AnswerScores | None = None
    other_tasks: list[TaskScores] = []

    @property
    def perplexity(self) -> dict[str, Interval]:
        """System -> interval; lower is better."""
        return self.scores["perplexity"]

    @property
    def min_group_tokens(self) -> int:
        """Tokens that a group needs to be among the weakest."""
        return MIN_GROUP_TOKENS

    @property
    def limits(self) -> list[str]:
        """The weakest group, and how many documents the model predicts worse than before."""
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
    tuned, base = selected[FINETUNED], selected[BASE_MODEL]
    num_bytes = None if num_bytes is None else num_bytes[scored]
    predictions = {
        name: replace(predictions_of(each), num_bytes=num_bytes) for name, each in selected.items()
    }
    shared = comparison.take(scored).run(predictions, groups, len(ids))
    shared["justification"] = _with_perplexity(shared["justification"], shared["scores"]["perplexity"])
    return LanguageEvaluation(
        **shared,
        num_test_tokens=int(tuned.num_tokens.sum()),
        num_rows_without_tokens=int((~scored).sum()),
        rescaled=rescaled,
        changes=changes(tuned, base, ids, groups),
        weakest_groups=weakest_groups(tuned, base, groups),
        per_length=per_length(tuned, base),
        answers=answers,
        other_tasks=list(other_tasks),
    )


def _with_perplexity(justified: Justification, perplexity: Mapping[str, Interval]) -> Justification:
    finetuned, baseline = perplexity[FINETUNED].estimate, perplexity[justified.best_baseline].estimate
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
        bins=_change_bins(change),
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


def per_length(tuned: DocumentScores, base: DocumentScores) -> list[LengthPerplexity]:
    """Perplexity of the quarters of the documents by number of trained tokens; fewer where many are equally
    long.
    """
    edges = np.unique(np.quantile(tuned.num_tokens, [0, 0.25, 0.5, 0.75, 1], method="inverted_cdf"))
    # Each part ends at an edge, the shortest documents belong to the first.
    part = (
        np.searchsorted(edges[1:], tuned.num_tokens)
        if len(edges) > 1
        else np.zeros(len(tuned.num_tokens), int)
    )
    quarters = []
    for number in np.unique(part).tolist():
        in_part = part == number
        tokens = int(tuned.num_tokens[in_part].sum())
        quarters.append(
            LengthPerplexity(
                low=int(tuned.num_tokens[in_part].min()),
                high=int(tuned.num_tokens[in_part].max()),
                num_rows=int(in_part.sum()),
                num_tokens=tokens,
                perplexity=_perplexity_of(tuned.loss[in_part].sum(), tokens),
                base_perplexity=_perplexity_of(base.loss[in_part].sum(), tokens),
            )
        )
    return quarters


def predictions_of(scores: DocumentScores) -> Predictions:
    """Return what metrics take of a model's scores on documents."""
    return Predictions(
        predicted=scores, num_tokens=scores.num_tokens, num_right_tokens=scores.num_right, loss=scores.loss
    )


def _scored_by_all(scores: Mapping[str, DocumentScores], num_rows: int) -> np.ndarray:
    """Return which documents every system predicted a token of, bool [n]."""
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


def _change_bins(change: np.ndarray, num_bins: int = 24) -> list[ChangeBin]:
    # Between the outermost percentiles: one odd document would leave all others in one bin.
    low, high = np.quantile(change, [0.01, 0.99])
    edges = np.linspace(min(low, -1e-3), max(high, 1e-3), num_bins + 1)
    counts = np.histogram(np.clip(change, edges[0], edges[-1]), edges)[0]
    return [ChangeBin(low=edges[n], high=edges[n + 1], num_rows=int(count)) for n, count in enumerate(counts)]


def _perplexity_of(loss: float, tokens: float) -> float:
    return float(perplexity_of(np.asarray(loss), np.asarray(tokens)))
