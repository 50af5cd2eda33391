"""The scores of stored predictions, computed a second time and otherwise than by the evaluation: see `verification`.

Labels and spans are compared as sets, whose F1 is scikit-learn's with weights; a language model's scores are weighted means of its
documents' own means.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fullft_assets.snapshot import Split
from fullft_assets.store import Manifest

FINETUNED = "finetuned"
_MAX_GROUP_WEIGHT = 10
_MIN_LABEL_GROUPS = 5
_TOKEN_CAP_QUANTILE = 0.9
#: Above this the evaluation bounds a mean loss, so that the perplexity is finite.
_MAX_LOSS = 70.0

#: Columns of predictions.parquet.
Rows = Mapping[str, list[Any]]
#: (name, as stored, as recomputed).
Pair = tuple[str, Any, Any]
#: (label,) or (label, start, end).
Item = tuple[Any, ...]


class Recomputed(ABC):
    """The numbers of the rows that were evaluated.

    Attributes:
        groups: of each row [n].
        weights: how much each row counts [n].
    """

    groups: list[str]
    weights: np.ndarray

    @abstractmethod
    def score(self, metric: str, system: str) -> float | None:
        """Return a score; None: the stored predictions are not enough for it."""

    @abstractmethod
    def part(self, rows: np.ndarray) -> Recomputed:
        """Return the numbers of some of the rows, by position; each counts as much as it does among all."""

    @property
    def positions(self) -> np.ndarray:
        """Which rows of predictions.parquet these are."""
        return np.arange(len(self.groups))

    @abstractmethod
    def mass(self, metric: str) -> np.ndarray:
        """Return what a metric's denominator counts of each row [n]."""

    @abstractmethod
    def columns(self) -> Iterator[Pair]:
        """Yield columns of the predictions that repeat what the snapshot says."""

    @abstractmethod
    def numbers(self, stored: Mapping[str, Any], report: Manifest) -> Iterator[Pair]:
        """Yield the numbers that only this kind of task has."""


class Tokens(Recomputed):
    """A language model's: losses of documents, but for those of which a system has no token."""

    def __init__(self, rows: Rows):
        counts = [np.array(rows[name]) for name in rows if name.startswith("num_tokens_")]
        self._scored = np.flatnonzero(np.logical_and.reduce([count > 0 for count in counts]))
        self._rows = rows
        self._tokens = self._column(f"num_tokens_{FINETUNED}")
        self._cap = max(1, round(float(np.quantile(self._tokens, _TOKEN_CAP_QUANTILE))))
        self.groups = [rows["group"][row] for row in self._scored.tolist()]
        self._counted = np.minimum(self._tokens, self._cap) * group_weights(self.groups)
        self.weights = self._counted / self._tokens

    def score(self, metric: str, system: str) -> float | None:
        """Return a score from the documents' means, each weighted by its capped tokens."""
        if metric == "token_accuracy":
            return float(np.average(self._column(f"num_right_{system}") / self._tokens, weights=self._counted))
        mean = float(np.average(self._column(f"loss_{system}") / self._tokens, weights=self._counted))
        if metric == "bits_per_byte":
            # Of the same rows and weights, each row in bytes of its own text.
            in_bytes = np.dot(self._column("num_bytes"), self.weights) * math.log(2)
            return float(np.dot(self._column(f"loss_{system}"), self.weights) / in_bytes)
        return {"token_probability": math.exp(-mean), "perplexity": math.exp(min(mean, _MAX_LOSS))}.get(metric)

    def part(self, rows: np.ndarray) -> Recomputed:
        """Return those of some documents."""
        part = copy.copy(self)
        part._scored = self.positions[rows]
        part.groups = [self.groups[row] for row in rows.tolist()]
        part.weights, part._tokens, part._counted = self.weights[rows], self._tokens[rows], self._counted[rows]
        return part

    @property
    def positions(self) -> np.ndarray:
        """Those with tokens."""
        return self._scored

    def mass(self, metric: str) -> np.ndarray:
        """Return the tokens of each document."""
        return self._tokens

    def columns(self) -> Iterator[Pair]:
        """Yield nothing: there are no labels."""
        yield from ()

    def numbers(self, stored: Mapping[str, Any], report: Manifest) -> Iterator[Pair]:
        """Yield numbers of tokens, and how many documents changed which way."""
        change = (self._column(f"loss_{FINETUNED}") - self._column("loss_base_model")) / self._tokens
        yield "token_cap", stored["token_cap"], self._cap
        yield "num_test_tokens", stored["num_test_tokens"], int(self._tokens.sum())
        yield "num_rows_without_tokens", stored["num_rows_without_tokens"], len(self._rows["group"]) - len(self._scored)
        for name, count in (("better", (change < 0).sum()), ("worse", (change > 0).sum()), ("equal", (change == 0).sum())):
            yield f"changes.num_{name}", stored["changes"][f"num_{name}"], int(count)

    def _column(self, name: str) -> np.ndarray:
        return np.array(self._rows[name])[self._scored]


class Labels(Recomputed):
    """Those of labels and of spans: each row has a set of items, and each system gives it one."""

    def __init__(self, rows: Rows, truth: Split, names: Sequence[str], target: str):
        self.groups = rows["group"]
        self.weights = group_weights(self.groups)
        self._rows, self._names, self._target = rows, names, target
        self._true = _true_items(truth, names, target)
        counts = [Counter(label for label, *_ in row) for row in self._true]
        num_items = {name: np.array([count[name] for count in counts]) for name in names}
        enough = {name: effective_groups(num * self.weights, self.groups) > _MIN_LABEL_GROUPS - 1e-9 for name, num in num_items.items()}
        self._measurable = [name for name in names if enough[name]]
        self._occurring = [name for name in names if num_items[name].any()]

    def score(self, metric: str, system: str) -> float | None:
        """Return a score with each group counted once."""
        from sklearn.metrics import matthews_corrcoef

        if metric in ("accuracy", "subset_accuracy"):
            right = [true == given for true, given in zip(self._true, self._given(system), strict=True)]
            return float(np.average(right, weights=self.weights))
        if metric == "token_accuracy":
            right, tokens = self._rows[_column(system, "num_right_tokens")], self._rows["num_tokens"]
            return float(np.dot(right, self.weights) / np.dot(tokens, self.weights))
        if metric == "matthews_corrcoef":
            true = [label for ((label,),) in self._true]
            return float(matthews_corrcoef(true, self._rows[_column(system, "predicted")], sample_weight=self.weights))
        if metric in ("auroc", "brier", "log_loss"):
            return self._of_probabilities(metric, self._shares(system))
        return self._f1(metric, _Items.of(self._true, self._given(system), self.weights))

    def part(self, rows: np.ndarray) -> Recomputed:
        """Return those of some rows; which labels are measured is that of all."""
        part = copy.copy(self)
        part._rows = {name: [values[row] for row in rows.tolist()] for name, values in self._rows.items()}
        part._true = [self._true[row] for row in rows.tolist()]
        part.groups, part.weights = part._rows["group"], self.weights[rows]
        return part

    def label_f1(self, label: str, system: str) -> float:
        """Return the F1 of one label with each group counted once."""
        return _Items.of(self._true, self._given(system), self.weights).f1([label])

    def of_label(self, label: str) -> np.ndarray:
        """Return how often each row has a label [n]."""
        return np.array([sum(name == label for name, *_ in row) for row in self._true])

    def mass(self, metric: str) -> np.ndarray:
        """Return the items of each row where they are counted together, else 1."""
        return np.array([len(row) if metric == "micro_f1" else 1 for row in self._true])

    def columns(self) -> Iterator[Pair]:
        """Yield the labels, or the number of spans, that are stored beside the predictions."""
        if self._target == "spans":
            yield "num_spans", self._rows["num_spans"], [len(row) for row in self._true]
        else:
            stored = self._rows[self._target]
            yield self._target, [_items(labels) for labels in stored], self._true

    def numbers(self, stored: Mapping[str, Any], report: Manifest) -> Iterator[Pair]:
        """Yield which labels are measured, the table of labels, and where there is one the calibration error."""
        rare = [name for name in self._occurring if name not in self._measurable]
        yield "measurable_labels", stored["measurable_labels"], len(self._measurable)
        yield "rare_labels", stored["rare_labels"], rare
        # Counts that a reader sees are of rows, not of groups.
        items = _Items.of(self._true, self._given(FINETUNED), np.ones(len(self.groups)))
        if rare:
            yield "rare_micro_f1", stored["rare_micro_f1"], items.f1(rare)
        for row in stored["per_label"]:
            yield f"F1 of label {row['label']!a}", row["f1"], items.f1([row["label"]])
            yield f"support of label {row['label']!a}", row["support"], items.support(row["label"])
        yield from self._perturbed(stored.get("robustness"))
        if stored["calibration_error"] is not None:
            num_bins = report.settings["evaluation"]["calibration_bins"]
            yield "calibration_error", stored["calibration_error"], self._calibration_error(num_bins)

    def fitted(self, stored: Mapping[str, Any], validation: Rows, num_bins: int) -> Iterator[Pair]:
        """Yield how far the temperature is from the best one, and the calibration error that it leaves on the test rows."""
        from scipy.optimize import minimize

        labels = np.array([self._names.index(label) for label in validation["label"]])
        shares = np.array(validation["probabilities"])

        def loss(log_temperature: Any) -> float:
            found = _at_temperature(shares, math.exp(float(np.ravel(log_temperature)[0])))
            return float(-np.log(np.maximum(found[np.arange(len(labels)), labels], 1e-12)).mean())

        steps = np.linspace(math.log(0.05), math.log(20), 121)
        begin = min(steps.tolist(), key=loss)
        best = minimize(loss, [begin], method="L-BFGS-B", bounds=[(steps[0], steps[-1])])
        yield "log loss of the validation rows at the temperature", loss(math.log(stored["temperature"])), min(float(best.fun), loss(begin))
        tuned = _at_temperature(np.array(self._rows["probabilities"]), stored["temperature"])
        predicted = [{(self._names[label],)} for label in tuned.argmax(1).tolist()]
        right = np.array([true == given for true, given in zip(self._true, predicted, strict=True)], float)
        yield "error_at_temperature", stored["error_at_temperature"], _calibration_error(right, tuned.max(1), num_bins)

    def _shares(self, system: str) -> np.ndarray:
        found = np.array(self._rows[_column(system, "probabilities")], np.float64)
        return found / found.sum(1, keepdims=True)

    def _of_probabilities(self, metric: str, shares: np.ndarray) -> float:
        from sklearn.metrics import roc_auc_score

        true = np.array([[(name,) in row for name in self._names] for row in self._true])
        if metric == "brier":
            return float(np.average(((shares - true) ** 2).sum(1), weights=self.weights))
        if metric == "log_loss":
            return float(-np.average(np.log(np.maximum(shares[true], np.finfo(np.float64).eps)), weights=self.weights))
        drawn = [self._names.index(name) for name in self._measurable or self._occurring]
        curves = [label for label in drawn if 0 < true[:, label].sum() < len(true)]
        areas = [roc_auc_score(true[:, label], shares[:, label], sample_weight=self.weights) for label in curves]
        return float(np.mean(areas)) if areas else 0.5

    def _perturbed(self, stored: Mapping[str, Any] | None) -> Iterator[Pair]:
        """Yield the scores of perturbed copies: shares of the copies that are predicted exactly right."""
        if stored is None:
            return
        for each in stored["found"]:
            kind, system = each["kind"], each["system"]
            column = self._rows[_column(system, f"predicted.{kind}")]
            copied = [row for row, found in enumerate(column) if found is not None]
            weights = group_weights([self.groups[row] for row in copied])
            given = self._given(system)
            scores = [
                float(np.average([self._true[row] == answers[row] for row in copied], weights=weights))
                for answers in (given, {row: _items(column[row]) for row in copied})
            ]
            yield f"clean score of {system}", stored["clean"][system]["estimate"], scores[0]
            yield f"score of {system} on {kind}", each["score"]["estimate"], scores[1]
            yield f"change of {system} on {kind}", each["change"]["estimate"], scores[1] - scores[0]
            yield "rows with copies", stored["num_rows"], len(copied)

    def _given(self, system: str) -> list[set[Item]]:
        return [_items(row) for row in self._rows[_column(system, "predicted")]]

    def _f1(self, metric: str, items: _Items) -> float | None:
        names = self._measurable or self._occurring
        if metric == "micro_f1":
            return items.f1(self._names)
        if metric == "macro_f1":
            return float(np.mean([items.f1([name]) for name in names])) if names else 0.0
        if metric == "weighted_f1":
            return float(np.average([items.f1([name]) for name in names], weights=[items.support(name) for name in names]))
        return None

    def _calibration_error(self, num_bins: int) -> float:
        right = np.array([true == given for true, given in zip(self._true, self._given(FINETUNED), strict=True)], float)
        return _calibration_error(right, np.array(self._rows["probability"]), num_bins)


@dataclass(frozen=True)
class _Items:
    """What is true of a row or was given to it, [items] each; what is neither has no part in an F1."""

    label: np.ndarray
    is_true: np.ndarray
    is_given: np.ndarray
    weight: np.ndarray

    @classmethod
    def of(cls, true: Sequence[set[Item]], given: Sequence[set[Item]], weights: np.ndarray) -> _Items:
        found = [
            (item[0], item in mine, item in theirs, weight)
            for mine, theirs, weight in zip(true, given, weights.tolist(), strict=True)
            for item in mine | theirs
        ]
        label, is_true, is_given, weight = zip(*found, strict=True) if found else ((), (), (), ())
        return cls(np.array(label, object), np.array(is_true, bool), np.array(is_given, bool), np.array(weight, float))

    def f1(self, labels: Sequence[str]) -> float:
        """Return the F1 of the items of some labels together; 0 where there are none."""
        from sklearn.metrics import f1_score

        mine = np.array([label in labels for label in self.label], bool)
        # Each item is true or given, so that there is something to divide by.
        return float(f1_score(self.is_true[mine], self.is_given[mine], sample_weight=self.weight[mine])) if mine.any() else 0.0

    def support(self, label: str) -> float:
        """Return how much is true of a label, by weight."""
        return float(self.weight[self.is_true & (self.label == label)].sum())


def effective_groups(mass: np.ndarray, groups: Sequence[str]) -> float:
    """Return the number of groups of equal mass that tell as much as these rows [n]: (sum m)^2 / sum m^2 over groups."""
    by_group = dict.fromkeys(groups, 0.0)
    for group, value in zip(groups, mass.tolist(), strict=True):
        by_group[group] += value
    squares = sum(value**2 for value in by_group.values())
    return sum(by_group.values()) ** 2 / squares if squares else 0.0


def answered_items(text: str, answer: Any) -> set[Item]:
    """Return the items of an answer as a file of an external system has it: a label, labels, or spans, without white space at their ends."""
    if isinstance(answer, str) or not any(isinstance(item, dict) for item in answer):
        return _items(answer)
    names = [span["label"] for span in answer]
    return _stripped(text, [(span["start"], span["end"], number) for number, span in enumerate(answer)], names)


def stored_items(cell: Any) -> set[Item]:
    """Return the items of a cell of predictions.parquet."""
    return _items(cell)


def group_weights(groups: Sequence[str]) -> np.ndarray:
    """Return 1 / min(rows of the group, 10) for each row."""
    sizes = Counter(groups)
    return np.array([1 / min(sizes[group], _MAX_GROUP_WEIGHT) for group in groups])


def _calibration_error(right: np.ndarray, probability: np.ndarray, num_bins: int) -> float:
    number = np.digitize(probability, np.linspace(0, 1, num_bins + 1)[1:-1], right=True)
    distances = [abs((right - probability)[number == n].sum()) for n in range(num_bins)]
    return float(np.sum(distances) / len(right))


def _at_temperature(shares: np.ndarray, temperature: float) -> np.ndarray:
    powers = np.maximum(shares, 1e-12) ** (1 / temperature)
    return powers / powers.sum(1, keepdims=True)


def _column(system: str, what: str) -> str:
    return what if system == FINETUNED else f"{system}.{what}"


def _items(stored: Any) -> set[Item]:
    """Return a row's items from a cell: a label, labels, or spans."""
    if isinstance(stored, str):
        return {(stored,)}
    return {(item,) if isinstance(item, str) else (item["label"], item["start"], item["end"]) for item in stored}


def _true_items(truth: Split, names: Sequence[str], target: str) -> list[set[Item]]:
    if target == "spans":
        return [_stripped(text, spans, names) for text, spans in zip(truth.texts, truth.spans or [], strict=True)]
    if target == "labels":
        return [{(names[label],) for label in np.flatnonzero(row).tolist()} for row in truth.labels]
    return [{(names[label],)} for label in truth.labels.tolist()]


def _stripped(text: str, spans: Sequence[tuple[int, int, int]], names: Sequence[str]) -> set[Item]:
    """Return spans without the white space at their ends; one of nothing else is no span."""
    found = set()
    for start, end, label in spans:
        while start < end and text[start].isspace():
            start += 1
        while start < end and text[end - 1].isspace():
            end -= 1
        if start < end:
            found.add((names[label], start, end))
    return found
