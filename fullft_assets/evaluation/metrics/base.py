"""The protocol of a metric: what it takes, what it returns, and how its interval is computed."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self

import numpy as np

from fullft_assets.task import METRICS

#: A label that fewer groups of equal weight have is not measurable: no interval of its F1 holds what it
#: promises.
MIN_LABEL_GROUPS = 5
_ROUNDING = 1e-9
#: Fields of `Predictions` that have nothing to do with rows.
_OF_LABELS = ("labels", "measurable")


@dataclass(frozen=True)
class Predictions:
    """What one system predicted of n rows, beside the truth. What a task does not have is None.

    Attributes:
        truth: in the task's own form: label int [n] (classification), labels bool [n, labels] (multi_label),
            spans of each row (token_classification); None where each next token is the truth.
        predicted: probabilities [n, labels] (classification), labels bool [n, labels] (multi_label), spans of
            each row (token_classification), `DocumentScores` (sft, language_modeling).
        true_positives: of each row and label [n, labels].
        true: how often each row has each label [n, labels].
        num_predicted: how often the system predicted each label for each row [n, labels].
        is_right: whether all of a row is predicted right: bool [n].
        num_tokens: tokens of each row that were predicted: int [n].
        num_right_tokens: how many of them the system predicted right: int [n].
        loss: summed cross-entropy of each row's tokens in nats: float [n].
        weights: how much each row counts: float [n]. None: all the same.
        measurable: the labels that enough groups have, bool [labels]; metrics that average over labels leave
            the others out. None: all.
    """

    labels: Sequence[str] = ()
    truth: Any = None
    predicted: Any = None
    true_positives: np.ndarray | None = None
    true: np.ndarray | None = None
    num_predicted: np.ndarray | None = None
    is_right: np.ndarray | None = None
    num_tokens: np.ndarray | None = None
    num_right_tokens: np.ndarray | None = None
    loss: np.ndarray | None = None
    weights: np.ndarray | None = None
    measurable: np.ndarray | None = None

    @property
    def num_rows(self) -> int:
        """Number of rows; 0 where there is nothing to count."""
        columns = (self.is_right, self.true_positives, self.num_tokens, self.loss, self.truth)
        return next((len(column) for column in columns if column is not None), 0)

    @property
    def row_weights(self) -> np.ndarray:
        """How much each row counts [n]."""
        return np.ones(self.num_rows) if self.weights is None else self.weights

    def weigh(self, tables: Iterable[np.ndarray]) -> tuple[np.ndarray, ...]:
        """Return tables [n] or [n, k] as floats, each row times its weight."""
        floats = (np.asarray(table, np.float64) for table in tables)
        return (
            tuple(floats)
            if self.weights is None
            else tuple(
                table * (self.weights if table.ndim == 1 else self.weights[:, None]) for table in floats
            )
        )

    def take(self, rows: np.ndarray) -> Self:
        """Return the predictions of the rows at these positions; a position may occur more than once."""
        columns = {
            field.name: _take(getattr(self, field.name), rows)
            for field in fields(self)
            if field.name not in _OF_LABELS
        }
        return replace(self, **columns)


class Metric(ABC):
    """A score of predictions. Subclass it, or `SummedMetric` where the score is a function of sums over rows.

    Attributes:
        bounds: smallest and largest value; None: there is no bound.
        of_answers: it measures texts that a model wrote for test prompts, not the test rows: `truth` and
            `predicted` are lists of texts.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    tasks: ClassVar[tuple[str, ...]]
    bounds: ClassVar[tuple[float | None, float | None]] = (0.0, 1.0)
    of_answers: ClassVar[bool] = False

    def measures(self, predictions: Predictions) -> bool:
        """Return whether these predictions have what the metric needs."""
        return True

    @abstractmethod
    def compute(self, predictions: Predictions) -> float:
        """Return the score. Its interval is found by computing it anew on every resample of the rows'
        groups.
        """

    def mass(self, predictions: Predictions) -> np.ndarray:
        """Return how much of the score rests on each row [n], beside its weight: 1, or what its denominator
        counts.
        """
        return np.ones(predictions.num_rows)

    def require_in_bounds(self, value: float) -> float:
        """Return the value, which is refused outside of the metric's bounds."""
        low, high = self.bounds
        if (low is not None and value < low - 1e-9) or (high is not None and value > high + 1e-9):
            raise ValueError(f"metric {self.name}: computed {value:g}, out of its bounds {low} to {high}")
        return value


class SummedMetric(Metric):
    """A metric that is a function of sums over rows, such as a ratio of counts. A resample then costs one
    product of matrices.

    Attributes:
        summed: fields of `Predictions` that are summed; override `count` to sum something else.
    """

    summed: ClassVar[tuple[str, ...]] = ()

    def measures(self, predictions: Predictions) -> bool:
        return all(getattr(predictions, name) is not None for name in self.summed)

    def count(self, predictions: Predictions) -> tuple[np.ndarray, ...]:
        """Return tables [n] or [n, k] with one row for each row of the predictions."""
        return tuple(getattr(predictions, name) for name in self.summed)

    def count_all_labels(self, predictions: Predictions) -> tuple[np.ndarray, ...] | None:
        """Return the tables `true_positives`, `true` and `num_predicted` of all labels if the score leaves
        out labels that are not measurable, else None.
        """
        return None

    def weighted(self, predictions: Predictions) -> tuple[np.ndarray, ...]:
        """Return the tables of `count` as floats, each row times its weight."""
        return predictions.weigh(self.count(predictions))

    def score(self, *sums: np.ndarray) -> np.ndarray:
        """Return the scores [resamples] of the tables summed over the rows of each resample, [resamples] or
        [resamples, k] each. By default: the ratio of two sums.
        """
        return ratio(*sums)

    def compute(self, predictions: Predictions) -> float:
        return float(self.score(*(table.sum(0, keepdims=True) for table in self.weighted(predictions)))[0])


def compute(names: Iterable[str], predictions: Predictions) -> dict[str, float]:
    """Return the scores of registered metrics by name."""
    return {name: METRICS.get(name).compute(predictions) for name in names}


def _take(values: Any, rows: np.ndarray) -> Any:
    if values is None:
        return None
    if hasattr(values, "select"):
        return values.select(rows)
    return values[rows] if isinstance(values, np.ndarray) else [values[row] for row in rows.tolist()]


def is_measurable(total: np.ndarray, squares: np.ndarray) -> np.ndarray:
    """Return whether enough groups of equal weight have a label: bool, of the sum of what each group has of
    it and that of its square.
    """
    # Five groups of six rows add up to a little less than five.
    return ratio(total**2, squares) >= MIN_LABEL_GROUPS - _ROUNDING


def by_group(values: np.ndarray, index: np.ndarray, num_groups: int) -> np.ndarray:
    """Sum rows [n] or [n, k] over the groups that `index` [n] numbers, as floats for the product with
    weights.
    """
    sums = np.zeros((num_groups, *values.shape[1:]))
    np.add.at(sums, index, values)
    return sums


def ratio(part: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Return part / total, 0 where the total is 0."""
    return np.divide(part, total, out=np.zeros(np.shape(total), np.float64), where=np.asarray(total) > 0)
