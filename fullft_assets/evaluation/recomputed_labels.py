"""The numbers of an evaluation of labels or spans, computed a second time: see `verification`.

Labels and spans are compared as sets, whose F1 is scikit-learn's with weights.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fullft_assets.evaluation.recomputation import (
    FINETUNED,
    MOST_NAMED,
    Asked,
    Pair,
    Recomputed,
    Rows,
    Tree,
    effective_groups,
    group_weights,
    mean_of,
    ratio,
)
from fullft_assets.evaluation.recomputed_intervals import Choosable, RankedScore, SummedScore
from fullft_assets.snapshot import Split

_MIN_LABEL_GROUPS = 5
_MIN_GROUP_ROWS = 3

#: A search ends before it is exact, and where the loss is flat any temperature is as good.
_SAME_TEMPERATURE, _SAME_LOSS = 5e-5, 1e-12

#: (label,) or (label, start, end).
Item = tuple[Any, ...]


class RecomputedLabels(Recomputed):
    """Those of labels and of spans: each row has a set of items, and each system gives it one."""

    def __init__(
        self,
        rows: Rows,
        truth: Split,
        names: Sequence[str],
        target: str,
        thresholds: Mapping[str, float] | None = None,
    ):
        self.groups = rows["group"]
        self._thresholds = thresholds
        self.weights = group_weights(self.groups)
        self._rows, self._names, self._target = rows, names, target
        self._true = _true_items(truth, names, target)
        counts = [Counter(label for label, *_ in row) for row in self._true]
        num_items = {name: np.array([count[name] for count in counts]) for name in names}
        enough = {
            name: effective_groups(num * self.weights, self.groups) > _MIN_LABEL_GROUPS - 1e-9
            for name, num in num_items.items()
        }
        self._measurable = [name for name in names if enough[name]]
        self._chose_labels = True
        self.occurring = [name for name in names if num_items[name].any()]

    def score(self, metric: str, system: str) -> float | None:
        """Return a score with each group counted once."""
        from sklearn.metrics import matthews_corrcoef

        if metric in ("accuracy", "subset_accuracy"):
            return float(np.average(self.right(system), weights=self.weights))
        if metric == "token_accuracy":
            right, tokens = self._rows[_column(system, "num_right_tokens")], self._rows["num_tokens"]
            return float(np.dot(right, self.weights) / np.dot(tokens, self.weights))
        if metric == "matthews_corrcoef":
            true = [label for ((label,),) in self._true]
            return float(
                matthews_corrcoef(true, self._rows[_column(system, "predicted")], sample_weight=self.weights)
            )
        if metric in ("auroc", "brier", "log_loss"):
            return self._of_probabilities(metric, self._shares(system))
        return self._f1(metric, _Items.of(self._true, self._given(system), self.weights))

    def sums(self, metric: str, system: str) -> SummedScore | RankedScore:
        """Return what is summed: what is right and counted, or items found, true and given of each label."""
        if metric in ("accuracy", "subset_accuracy"):
            return mean_of(self.right(system), self.weights)
        if metric == "token_accuracy":
            columns = (self._rows[_column(system, "num_right_tokens")], self._rows["num_tokens"])
            return SummedScore(
                np.stack([np.array(column) * self.weights for column in columns], axis=1), ratio
            )
        if metric in ("brier", "log_loss"):
            return mean_of(self._row_losses(metric, self._shares(system)), self.weights)
        if metric == "auroc":
            return self._curves(self._shares(system))
        names = (
            self._names if metric in ("micro_f1", "matthews_corrcoef") else self._measurable or self._names
        )
        found = self._label_sums(system, names, _OF_COUNTS[metric])
        if names is not self._measurable or not self._chose_labels:
            return found
        items = self._counts(system) * self.weights[:, None, None]
        return replace(found, choosable=Choosable(items, _OF_COUNTS[metric], _MIN_LABEL_GROUPS))

    def label_sums(self, label: str, system: str) -> SummedScore:
        """Return what is summed for the F1 of one label."""
        return self._label_sums(system, [label], _OF_COUNTS["micro_f1"])

    def _label_sums(
        self, system: str, names: Sequence[str], of_counts: Callable[[np.ndarray], np.ndarray]
    ) -> SummedScore:
        counts = (
            self._counts(system)[:, [self._names.index(name) for name in names]] * self.weights[:, None, None]
        )
        return SummedScore(
            counts.reshape(len(counts), -1), lambda sums: of_counts(sums.reshape(len(sums), len(names), 3))
        )

    def _counts(self, system: str) -> np.ndarray:
        """Return how many items of each label are right, true and given: float [n, labels, 3]."""
        place, found = (
            {name: number for number, name in enumerate(self._names)},
            np.zeros((len(self._true), len(self._names), 3)),
        )
        for row, (true, given) in enumerate(zip(self._true, self._given(system), strict=True)):
            for which, items in enumerate((true & given, true, given)):
                for label, *_ in items:
                    # One that the snapshot lacks is wrong wherever it is, and counts for no label.
                    if label in place:
                        found[row, place[label], which] += 1
        return found

    def part(self, rows: np.ndarray) -> Recomputed:
        """Return those of some rows; which labels are measured is that of all."""
        part = copy.copy(self)
        part._rows = {name: [values[row] for row in rows.tolist()] for name, values in self._rows.items()}
        part._true = [self._true[row] for row in rows.tolist()]
        part.groups, part.weights, part._chose_labels = part._rows["group"], self.weights[rows], False
        return part

    def label_f1(self, label: str, system: str) -> float:
        """Return the F1 of one label with each group counted once."""
        return _Items.of(self._true, self._given(system), self.weights).f1([label])

    def of_label(self, label: str) -> np.ndarray:
        """Return how often each row has a label [n]."""
        return np.array([sum(name == label for name, *_ in row) for row in self._true])

    def mass(self, metric: str) -> np.ndarray:
        """Return the items, or tokens, of each row where they are counted together, else 1."""
        if metric == "token_accuracy":
            return np.array(self._rows["num_tokens"])
        return np.array([len(row) if metric == "micro_f1" else 1 for row in self._true])

    def columns(self) -> Iterator[Pair]:
        """Yield the labels, or the number of spans, that are stored beside the predictions."""
        if self._target == "spans":
            yield "num_spans", self._rows["num_spans"], [len(row) for row in self._true]
        else:
            stored = self._rows[self._target]
            yield self._target, [_items(labels) for labels in stored], self._true

    def fields(self, asked: Asked, best_baseline: str) -> Tree:
        """Return which labels are measured, the tables of labels, and the rows by who was right."""
        rare = [name for name in self.occurring if name not in self._measurable]
        # Counts that a reader sees are of rows, not of groups.
        items = _Items.of(self._true, self._given(FINETUNED), np.ones(len(self.groups)))
        counts = {
            name: tuple(int(count) for count in self._counts(FINETUNED)[:, number].sum(0))
            for number, name in enumerate(self._names)
        }
        found: Tree = {
            "labels": self._names,
            "measurable_labels": len(self._measurable),
            "rare_labels": rare,
            "rare_micro_f1": items.f1(rare) if rare else None,
            "per_label": [self._label_row(name, items.f1([name]), *counts[name]) for name in self._names],
            "weakest_groups": self._weakest_groups(),
            "agreement": self._agreement(best_baseline),
            "calibration_error": None,
        }
        if self._target == "label":
            return found | self._of_one_label(asked.settings["calibration_bins"])
        found["unmeasured"] = [name for name in self._names if name not in self.occurring]
        if self._target == "labels":
            return found | {"labels_a_row": sum(map(len, self._true)) / len(self._true)}
        return found | {
            "num_spans": sum(map(len, self._true)),
            "num_rows_without_spans": sum(not row for row in self._true),
            "num_tokens": sum(self._rows["num_tokens"]),
            "errors": self._span_errors(),
        }

    def right(self, system: str) -> np.ndarray:
        """Return on which rows all is right: bool [n]."""
        return np.array(
            [true == given for true, given in zip(self._true, self._given(system), strict=True)], bool
        )

    def robustness(self, stored: Mapping[str, Any], asked: Asked) -> Tree:
        """Return the scores of perturbed copies: shares of the copies that are predicted exactly right."""
        found, clean, tree = [], {}, {}
        for each in stored["found"]:
            kind, system = each["kind"], each["system"]
            column = self._rows[_column(system, f"predicted.{kind}")]
            rows = [row for row, copied in enumerate(column) if copied is not None]
            groups = [self.groups[row] for row in rows]
            weights = group_weights(groups)
            given = {
                "clean": self.right(system)[rows],
                FINETUNED: np.array([self._true[row] == _items(column[row]) for row in rows]),
            }
            pair = {
                name: (float(np.average(is_right, weights=weights)), mean_of(is_right, weights))
                for name, is_right in given.items()
            }
            effective = effective_groups(weights, groups)
            scores, gains = asked.sampling(groups).measured("accuracy", pair, FINETUNED, effective)
            clean[system] = scores["clean"]
            num_changed = sum(bool(self._rows[_column(system, f"changed.{kind}")][row]) for row in rows)
            score = {"score": scores[FINETUNED], "change": gains["clean"]}
            found.append({"kind": kind, "system": system, "num_changed": num_changed, **score})
            tree |= {"num_rows": len(rows), "num_groups": len(set(groups)), "effective_groups": effective}
        return {**tree, "clean": clean, "found": found}

    def fitted(self, temperature: float, validation: Rows, num_bins: int) -> Tree:
        """Return the temperature, which is the best one if no other has a lower loss, and the calibration
        error that it leaves.
        """
        from scipy.optimize import minimize_scalar

        labels = np.array([self._names.index(label) for label in validation["label"]])
        shares = np.array(validation["probabilities"])

        def loss(log_temperature: float) -> float:
            found = _at_temperature(shares, math.exp(log_temperature))
            return float(-np.log(np.maximum(found[np.arange(len(labels)), labels], 1e-12)).mean())

        steps = np.linspace(math.log(0.05), math.log(20), 121).tolist()
        begin = min(range(len(steps)), key=lambda number: loss(steps[number]))
        near = steps[max(begin - 1, 0)], steps[min(begin + 1, len(steps) - 1)]
        found: Any = minimize_scalar(loss, bounds=near, method="bounded", options={"xatol": 1e-9})
        best = float(found.x)
        given = math.log(temperature)
        is_best = abs(given - best) <= _SAME_TEMPERATURE or loss(given) <= loss(best) + _SAME_LOSS
        tuned = _at_temperature(np.array(self._rows["probabilities"]), temperature)
        predicted = [{(self._names[label],)} for label in tuned.argmax(1).tolist()]
        right = np.array([true == given for true, given in zip(self._true, predicted, strict=True)], float)
        error = sum(_calibration_distances(right, tuned.max(1), num_bins).values()) / len(right)
        return {"temperature": temperature if is_best else math.exp(best), "error_at_temperature": error}

    def _of_one_label(self, num_bins: int) -> Tree:
        pairs = Counter(
            (true, given)
            for ((true,),), ((given,),) in zip(self._true, map(tuple, self._given(FINETUNED)), strict=True)
        )
        probability, right = np.array(self._rows["probability"]), self.right(FINETUNED).astype(float)
        distances = _calibration_distances(right, probability, num_bins)
        number = _bin_of(probability, num_bins)
        reliability = [
            {
                "low": each / num_bins,
                "high": (each + 1) / num_bins,
                "num_rows": int((number == each).sum()),
                "confidence": float(probability[number == each].astype(np.float64).mean()),
                "accuracy": float(right[number == each].mean()),
            }
            for each in distances
        ]
        return {
            "confusion": [[pairs[true, given] for given in self._names] for true in self._names],
            "reliability": reliability,
            "calibration_error": sum(distances.values()) / len(right),
        }

    def _label_row(self, name: str, f1: float, num_right: int, support: int, num_given: int) -> Tree:
        precision, recall = (
            num_right / num_given if num_given else 0.0,
            num_right / support if support else 0.0,
        )
        row: Tree = {
            "label": name,
            "precision": precision,
            "recall": recall,
            "f1": f1,
            "support": support,
            "num_predicted": num_given,
        }
        return row if self._thresholds is None else {**row, "threshold": self._thresholds[name]}

    def _weakest_groups(self) -> list[Tree]:
        sizes, errors = (
            Counter(self.groups),
            Counter(np.array(self.groups, object)[~self.right(FINETUNED)].tolist()),
        )
        ranked = sorted(
            (-errors[group] / sizes[group], -errors[group], group)
            for group in errors
            if sizes[group] >= _MIN_GROUP_ROWS
        )
        return [
            {"group": group, "num_rows": sizes[group], "num_errors": errors[group]}
            for *_, group in ranked[:MOST_NAMED]
        ]

    def _agreement(self, best_baseline: str) -> Tree:
        pairs = Counter(zip(self.right(FINETUNED).tolist(), self.right(best_baseline).tolist(), strict=True))
        return {
            "both_right": pairs[True, True],
            "only_finetuned_right": pairs[True, False],
            "only_baseline_right": pairs[False, True],
            "both_wrong": pairs[False, False],
        }

    def _span_errors(self) -> Tree:
        found = Counter(
            {f"num_{name}": 0 for name in ("right", "wrong_label", "wrong_edges", "invented", "missed")}
        )
        for true, given in zip(self._true, self._given(FINETUNED), strict=True):
            places = {item[1:] for item in true}
            for item in given:
                if item in true:
                    found["num_right"] += 1
                elif item[1:] in places:
                    found["num_wrong_label"] += 1
                else:
                    found["num_wrong_edges" if _touches(item, true) else "num_invented"] += 1
            found["num_missed"] += sum(not _touches(item, given) for item in true)
        return dict(found)

    def _shares(self, system: str) -> np.ndarray:
        found = np.array(self._rows[_column(system, "probabilities")], np.float64)
        return found / found.sum(1, keepdims=True)

    def _of_probabilities(self, metric: str, shares: np.ndarray) -> float:
        from sklearn.metrics import roc_auc_score

        true = self._is_true
        if metric != "auroc":
            return float(np.average(self._row_losses(metric, shares), weights=self.weights))
        drawn = [self._names.index(name) for name in self._measurable or self.occurring]
        curves = [label for label in drawn if 0 < true[:, label].sum() < len(true)]
        areas = [
            roc_auc_score(true[:, label], shares[:, label], sample_weight=self.weights) for label in curves
        ]
        return float(np.mean(areas)) if areas else 0.5

    @property
    def _is_true(self) -> np.ndarray:
        return np.array([[(name,) in row for name in self._names] for row in self._true])

    def _row_losses(self, metric: str, shares: np.ndarray) -> np.ndarray:
        if metric == "brier":
            return ((shares - self._is_true) ** 2).sum(1)
        return -np.log(np.maximum(shares[self._is_true], np.finfo(np.float64).eps))

    def _curves(self, shares: np.ndarray) -> RankedScore:
        """Return the mean area under the ROC curve of draws; a label without a curve in one is left out
        there.
        """
        drawn = [self._names.index(name) for name in self._measurable or self._names]
        true, weights = self._is_true, self.weights

        def of_counts(counts: np.ndarray) -> np.ndarray:
            areas = np.array([_areas(counts * weights, true[:, label], shares[:, label]) for label in drawn])
            known = ~np.isnan(areas)
            total = np.where(known, areas, 0.0).sum(0)
            return np.divide(total, known.sum(0), out=np.full(len(counts), 0.5), where=known.any(0))

        return RankedScore(of_counts)

    def _given(self, system: str) -> list[set[Item]]:
        return [_items(row) for row in self._rows[_column(system, "predicted")]]

    def _f1(self, metric: str, items: _Items) -> float | None:
        names = self._measurable or self.occurring
        if metric == "micro_f1":
            return items.f1(self._names)
        if metric == "macro_f1":
            return float(np.mean([items.f1([name]) for name in names])) if names else 0.0
        if metric == "weighted_f1":
            return float(
                np.average(
                    [items.f1([name]) for name in names], weights=[items.support(name) for name in names]
                )
            )
        return None


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
        return cls(
            np.array(label, object),
            np.array(is_true, bool),
            np.array(is_given, bool),
            np.array(weight, float),
        )

    def f1(self, labels: Sequence[str]) -> float:
        """Return the F1 of the items of some labels together; 0 where there are none."""
        from sklearn.metrics import f1_score

        mine = np.array([label in labels for label in self.label], bool)
        # Each item is true or given, so that there is something to divide by.
        return (
            float(f1_score(self.is_true[mine], self.is_given[mine], sample_weight=self.weight[mine]))
            if mine.any()
            else 0.0
        )

    def support(self, label: str) -> float:
        """Return how much is true of a label, by weight."""
        return float(self.weight[self.is_true & (self.label == label)].sum())


def _macro(counts: np.ndarray) -> np.ndarray:
    """Return the mean F1 of the labels that occur [b] of counts [b, labels, 3]."""
    return ratio(np.stack([np.nansum(_f1s(counts), axis=1), (counts[:, :, 1] > 0).sum(1)], axis=1))


def _weighted(counts: np.ndarray) -> np.ndarray:
    support = counts[:, :, 1]
    return ratio(np.stack([np.nansum(_f1s(counts) * support, axis=1), support.sum(1)], axis=1))


def _micro(counts: np.ndarray) -> np.ndarray:
    right, true, given = counts.sum(1).T
    return ratio(np.stack([2 * right, true + given], axis=1))


def _correlation(counts: np.ndarray) -> np.ndarray:
    """Return the correlation of true and given label [b]: of two tables of rows by label."""
    right, true, given = counts.transpose(2, 0, 1)
    rows = true.sum(1)
    between = right.sum(1) / rows - (true * given).sum(1) / rows**2
    spread = (1 - (true**2).sum(1) / rows**2) * (1 - (given**2).sum(1) / rows**2)
    return np.where(spread > 1e-15, between / np.sqrt(np.maximum(spread, 1e-15)), 0.0)


def _f1s(counts: np.ndarray) -> np.ndarray:
    """Return each label's F1 [b, labels]; one that does not occur has none."""
    right, true, given = counts.transpose(2, 0, 1)
    return np.divide(2 * right, true + given, out=np.full(true.shape, np.nan), where=true > 0)


_OF_COUNTS = {
    "macro_f1": _macro,
    "weighted_f1": _weighted,
    "micro_f1": _micro,
    "matthews_corrcoef": _correlation,
}


def _areas(weights: np.ndarray, is_true: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Return the area under the ROC curve for weights [b, n] of the rows: [b]; nan where there is no
    curve.
    """
    order = np.argsort(shares, kind="stable")
    starts = np.unique(shares[order], return_index=True)[1]
    true, other = (
        np.add.reduceat(weights[:, order] * chosen[order], starts, axis=1) for chosen in (is_true, ~is_true)
    )
    below = np.cumsum(other, axis=1) - other / 2
    with np.errstate(invalid="ignore"):
        return (true * below).sum(1) / (true.sum(1) * other.sum(1))


def answered_items(text: str, answer: Any) -> set[Item]:
    """Return the items of an answer as a file of an external system has it: a label, labels, or spans,
    without white space at their ends.
    """
    if isinstance(answer, str) or not any(isinstance(item, dict) for item in answer):
        return _items(answer)
    names = [span["label"] for span in answer]
    return _stripped(
        text, [(span["start"], span["end"], number) for number, span in enumerate(answer)], names
    )


def stored_items(cell: Any) -> set[Item]:
    """Return the items of a cell of predictions.parquet."""
    return _items(cell)


def _bin_of(probability: np.ndarray, num_bins: int) -> np.ndarray:
    return np.digitize(probability, np.linspace(0, 1, num_bins + 1)[1:-1], right=True)


def _calibration_distances(right: np.ndarray, probability: np.ndarray, num_bins: int) -> dict[int, float]:
    """Return how far the sums of what was right and of what was promised are from each other, by the bins
    that have rows.
    """
    number = _bin_of(probability, num_bins)
    return {
        each: float(abs((right - probability)[number == each].sum())) for each in np.unique(number).tolist()
    }


def _at_temperature(shares: np.ndarray, temperature: float) -> np.ndarray:
    powers = np.maximum(shares, 1e-12) ** (1 / temperature)
    return powers / powers.sum(1, keepdims=True)


def _column(system: str, what: str) -> str:
    return what if system == FINETUNED else f"{system}.{what}"


def _items(stored: Any) -> set[Item]:
    """Return a row's items from a cell: a label, labels, or spans."""
    if isinstance(stored, str):
        return {(stored,)}
    return {
        (item,) if isinstance(item, str) else (item["label"], item["start"], item["end"]) for item in stored
    }


def _true_items(truth: Split, names: Sequence[str], target: str) -> list[set[Item]]:
    if target == "spans":
        return [
            _stripped(text, spans, names) for text, spans in zip(truth.texts, truth.spans or [], strict=True)
        ]
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


def _touches(item: Item, others: set[Item]) -> bool:
    """Return whether a span has a character of one of the others."""
    return any(max(item[1], other[1]) < min(item[2], other[2]) for other in others)
