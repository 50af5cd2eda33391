"""How the systems of an evaluation are compared, on all test rows and on slices of them (of one source,
length, label, language or value of a field), and whether full fine-tuning was justified.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np

from fullft_assets.evaluation.intervals import Gain, Interval, Record, effective_number, holm
from fullft_assets.evaluation.metrics.base import Metric, Predictions, by_group, is_measurable
from fullft_assets.evaluation.metrics.labels import MICRO_F1, LabelF1
from fullft_assets.evaluation.resampling import RESAMPLES, SystemScores, measure, number_groups
from fullft_assets.evaluation.titles import ANCHOR, CHAMPION, FINETUNED, title
from fullft_assets.settings import EvaluationSettings, UseCaseSettings
from fullft_assets.store.hashing import digest
from fullft_assets.task import METRICS, TASKS

LABEL = "label"
#: The slice of all labels that too few groups have to be measured one by one.
RARE_LABELS = "rare labels together"
#: A slice of fewer groups of equal weight is counted and not measured: its interval would not hold, and it
#: could be a person.
MIN_GROUPS = 5
#: The largest slices of a kind are measured; a folder may have a source for each document.
_MOST = 50
#: Rows of a group beyond this many add nothing that the group's other rows did not tell.
MAX_GROUP_WEIGHT = 10
#: Documents of more trained tokens than this share of them has count as this many.
TOKEN_CAP_QUANTILE = 0.9


class SliceScore(Record):
    """How the fine-tuned model and its rival fare on one slice.

    Attributes:
        effective_groups: how many groups of equal weight the slice rests on.
        gain: fine-tuned minus rival.
    """

    kind: str
    name: str
    num_rows: int
    num_groups: int
    effective_groups: float
    score: Interval
    rival: Interval
    gain: Gain


class Slices(Record):
    """The slices of an evaluation.

    Attributes:
        metric: of all slices but labels, which have their F1 over all rows: a label's recall alone rises with
            its false alarms.
        rival: the champion, else the best baseline; or the last champion that was better.
        num_small: slices of each kind that have too few groups.
        lost_labels: labels with too few groups that the rival predicts rightly and the model never does.
    """

    metric: str
    rival: str
    found: list[SliceScore]
    num_small: dict[str, int]
    lost_labels: list[str] = []

    def tested(self, min_groups: float) -> list[SliceScore]:
        """Return the slices with enough groups to decide on."""
        return [score for score in self.found if score.effective_groups >= min_groups]

    def worse(self, min_groups: float, confidence: float, allowed: float = 0.0) -> list[SliceScore]:
        """Return the slices on which the model is worse than its rival by more than chance, corrected for
        the number of tested slices (Holm). Also return labels with too few groups that the rival predicts
        rightly and the model never does.

        Args:
            allowed: the smallest gain that is not worse; below 0 where the owner accepts a loss.
        """
        tested_slices = self.tested(min_groups)
        p_values = holm(
            {str(number): score.gain.p_value_against(allowed) for number, score in enumerate(tested_slices)}
        )
        forgotten_labels = [
            score
            for score in self.found
            if score.kind == LABEL
            and score not in tested_slices
            and score.score.estimate == 0
            and score.gain.high < allowed
        ]
        return forgotten_labels + [
            score
            for number, score in enumerate(tested_slices)
            if score.gain.high < allowed and p_values[str(number)] < 1 - confidence
        ]


def measure_slices(
    predictions: Mapping[str, Predictions],
    index: np.ndarray,
    slicing: Mapping[str, Sequence[str | None]],
    metric: Metric,
    *,
    reference: str,
    rival: str,
    resamples: int,
    confidence: float,
    seed: int,
) -> Slices | None:
    """Measure the reference and its rival on each slice; None where the metric cannot measure both.

    Args:
        predictions: with the weights of rows.
        index: number of each row's group [n].
        slicing: kind -> the slice that each row is in; None: in none. The kind `label` only says that labels
            are slices, too.
    """
    pair = {name: predictions[name] for name in (reference, rival)}
    if not all(metric.measures(system) for system in pair.values()):
        return None
    sampling = {"reference": reference, "resamples": resamples, "confidence": confidence, "seed": seed}
    scores: list[SliceScore] = []
    num_small: dict[str, int] = {}
    lost_labels: list[str] = []
    for kind, values in slicing.items():
        column = np.array(values, object)
        slices = (
            _labels(pair[reference])
            if kind == LABEL
            else [
                (name, np.flatnonzero(column == name), metric)
                for name in sorted({value for value in values if value is not None})
            ]
        )
        # One slice of all rows is no slice.
        if kind != LABEL and len(slices) == 1 and len(slices[0][1]) == len(index):
            continue
        sizes = [_effective(slice_metric, pair[reference], index, rows) for _, rows, slice_metric in slices]
        measurable = [
            slices[number]
            for number in sorted(range(len(slices)), key=lambda number: -sizes[number])
            if sizes[number] >= MIN_GROUPS
        ][:_MOST]
        if len(slices) > len(measurable):
            num_small[kind] = len(slices) - len(measurable)
        rare = [
            (name, slice_metric)
            for size, (name, _, slice_metric) in zip(sizes, slices, strict=True)
            if size < MIN_GROUPS and isinstance(slice_metric, LabelF1)
        ]
        if rare:
            lost_labels = [
                name
                for name, label in rare
                if label.compute(pair[reference]) == 0 < label.compute(pair[rival])
            ]
            together = LabelF1(*np.concatenate([label.labels for _, label in rare]).tolist())
            rows = np.flatnonzero(together.mass(pair[reference]))
            if _effective(together, pair[reference], index, rows) >= MIN_GROUPS:
                measurable.append((RARE_LABELS, rows, together))
        scores += [
            _measure(kind, name, rows, slice_metric, pair, index, sampling, rival)
            for name, rows, slice_metric in measurable
        ]
    return Slices(metric=metric.name, rival=rival, found=scores, num_small=num_small, lost_labels=lost_labels)


def _labels(predictions: Predictions) -> list[tuple[str, np.ndarray, Metric]]:
    if predictions.true is None or predictions.true_positives is None:
        return []
    occurs = np.asarray(predictions.true) > 0
    names = predictions.labels or [str(label) for label in range(occurs.shape[1])]
    return [
        (str(names[label]), np.flatnonzero(occurs[:, label]), LabelF1(label))
        for label in np.flatnonzero(occurs.any(0)).tolist()
    ]


def _effective(metric: Metric, predictions: Predictions, index: np.ndarray, rows: np.ndarray) -> float:
    """Return how many groups of equal weight the score of these rows rests on."""
    return effective_number(
        np.bincount(index[rows], weights=(metric.mass(predictions) * predictions.row_weights)[rows])
    )


def _measure(
    kind: str,
    name: str,
    rows: np.ndarray,
    metric: Metric,
    pair: Mapping[str, Predictions],
    index: np.ndarray,
    sampling: Mapping[str, Any],
    rival: str,
) -> SliceScore:
    # A label's F1 counts rows without the label, too: those that it was predicted of.
    counted_rows = np.arange(len(index)) if isinstance(metric, LabelF1) else rows
    scores = measure(
        metric,
        {system_name: system.take(counted_rows) for system_name, system in pair.items()},
        np.unique(index[counted_rows], return_inverse=True)[1],
        **sampling,
    )
    return SliceScore(
        kind=kind,
        name=name,
        num_rows=len(rows),
        num_groups=len(np.unique(index[rows])),
        effective_groups=scores.effective_groups,
        score=scores.scores[sampling["reference"]],
        rival=scores.scores[rival],
        gain=scores.gains[rival],
    )


class Justification(Record):
    """Whether full fine-tuning beat the best baseline, and the sentence that says so."""

    best_baseline: str
    gain: Gain
    justified: bool
    sentence: str


@dataclass(frozen=True)
class Comparison:
    """How the systems of an evaluation are compared.

    Attributes:
        slicing: kind of slice -> the slice that each row is in; see `measure_slices`.
        modules: metrics that are not registered, by name.
        candidate: the system that is compared with each other one.
    """

    settings: EvaluationSettings
    metric: str
    seed: int
    task: str
    min_gain: float = 0.0
    slicing: Mapping[str, Sequence[str | None]] = field(default_factory=dict)
    resamples: int = RESAMPLES
    modules: Mapping[str, Metric] = field(default_factory=dict)
    candidate: str = FINETUNED

    @classmethod
    def of(
        cls,
        settings: UseCaseSettings,
        slicing: Mapping[str, Sequence[str | None]] | None = None,
        modules: Mapping[str, Metric] | None = None,
        candidate: str = FINETUNED,
    ) -> Self:
        """Return the comparison that the settings ask for."""
        return cls(
            settings.evaluation,
            settings.primary_metric,
            settings.seed,
            settings.examples.task,
            settings.release.min_gain_over_baselines,
            slicing or {},
            modules=modules or {},
            candidate=candidate,
        )

    def take(self, rows: np.ndarray) -> Self:
        """Return the comparison of some of the rows, bool [n]."""
        positions = np.flatnonzero(rows).tolist()
        return replace(
            self, slicing={kind: [values[row] for row in positions] for kind, values in self.slicing.items()}
        )

    def run(
        self, predictions: Mapping[str, Predictions], groups: Sequence[str], num_rows: int
    ) -> dict[str, Any]:
        """Compute every metric of every system with its interval, and return the fields that each
        `Evaluation` has.

        Args:
            predictions: of `finetuned`, each baseline and, if there is one, `champion`.

        Raises:
            ValueError: input is misaligned, there are fewer than two groups, or there is no baseline among
                the systems.
        """
        index, num_groups = number_groups(groups, num_rows)
        extra_metrics = [
            name for name in (*self.settings.metrics, *self.modules) if not self._get(name).of_answers
        ]
        metric_names = list(dict.fromkeys([*TASKS.get(self.task).shown_metrics, *extra_metrics]))
        predictions, fields = _prepare(predictions, index, num_groups, self.candidate)
        scores_by_metric = {
            name: scores
            for name in metric_names
            if (scores := self._measure(name, predictions, index)) is not None
        }
        primary = scores_by_metric[self.metric]
        of_labels = {kind: values for kind, values in self.slicing.items() if kind == LABEL}
        baselines = [name for name in primary.scores if name not in (self.candidate, CHAMPION, ANCHOR)]
        judgement = justification(
            primary.scores,
            primary.gains,
            baselines,
            metric=self.metric,
            confidence=self.settings.confidence,
            min_gain=self.min_gain,
            candidate=self.candidate,
        )

        def slices_against(rival: str, slicing: Mapping[str, Sequence[str | None]]) -> Slices | None:
            metric = METRICS.get(TASKS.get(self.task).slice_metric or self.metric)
            return measure_slices(
                predictions, index, slicing, metric, reference=self.candidate, rival=rival, **self._sampling
            )

        return fields | {
            "task": self.task,
            "candidate": self.candidate,
            "metrics": metric_names,
            "primary_metric": self.metric,
            "confidence": self.settings.confidence,
            "resamples": self.resamples,
            "num_test_rows": num_rows,
            "num_test_groups": num_groups,
            "effective_groups": primary.effective_groups,
            "influences": primary.influences,
            "groups_digest": digest(sorted(set(groups))),
            "baselines": baselines,
            "has_champion": CHAMPION in primary.scores,
            "scores": {metric: systems.scores for metric, systems in scores_by_metric.items()},
            "gains": {metric: systems.gains for metric, systems in scores_by_metric.items()},
            "justification": judgement,
            "slices": slices_against(
                CHAMPION if CHAMPION in primary.scores else judgement.best_baseline, self.slicing
            ),
            "labels_since_anchor": next(
                # A champion that was promoted as better is its own anchor.
                (slices_against(name, of_labels) for name in (ANCHOR, CHAMPION) if name in primary.scores),
                None,
            ),
        }

    def _measure(
        self, metric_name: str, predictions: Mapping[str, Predictions], index: np.ndarray
    ) -> SystemScores | None:
        metric = self._get(metric_name)
        measurable = {name: system for name, system in predictions.items() if metric.measures(system)}
        return (
            measure(
                metric, measurable, index, reference=self.candidate, rows_chose_labels=True, **self._sampling
            )
            if self.candidate in measurable
            else None
        )

    def _get(self, name: str) -> Metric:
        return self.modules[name] if name in self.modules else METRICS.get(name)

    @property
    def _sampling(self) -> dict[str, Any]:
        return {"resamples": self.resamples, "confidence": self.settings.confidence, "seed": self.seed}


def _prepare(
    predictions: Mapping[str, Predictions], index: np.ndarray, num_groups: int, candidate: str
) -> tuple[dict[str, Predictions], dict[str, Any]]:
    """Return the predictions with the weight of each row and the labels that can be measured, and the fields
    that say so.

    Each group counts as one however many rows it has, up to `MAX_GROUP_WEIGHT`: rows of one group tell nearly
    the same. A document counts at most as many tokens as nine in ten have: the mean of unbounded lengths has
    no interval that holds.
    """
    finetuned = predictions[candidate]
    fields: dict[str, Any] = {}
    weights = 1.0 / np.minimum(np.bincount(index, minlength=num_groups), MAX_GROUP_WEIGHT)[index]
    if finetuned.loss is not None and finetuned.num_tokens is not None:
        cap = max(1, round(float(np.quantile(finetuned.num_tokens, TOKEN_CAP_QUANTILE))))
        weights = weights * np.minimum(finetuned.num_tokens, cap) / np.maximum(finetuned.num_tokens, 1)
        fields["token_cap"] = cap
    changes: dict[str, Any] = {"weights": weights}
    if finetuned.true is not None and MICRO_F1.measures(finetuned):
        measurable = measurable_labels(finetuned.true, index, num_groups, weights)
        changes["measurable"] = measurable if measurable.any() else None
        too_rare = ~measurable & (finetuned.true.sum(0) > 0)
        names = finetuned.labels or [str(label) for label in range(len(measurable))]
        fields["rare_labels"] = [names[label] for label in np.flatnonzero(too_rare).tolist()]
        fields["measurable_labels"] = int(measurable.sum())
        if too_rare.any():
            rare_sums = (
                np.asarray(table, np.float64)[:, too_rare].sum(0, keepdims=True)
                for table in MICRO_F1.count(finetuned)
            )
            fields["rare_micro_f1"] = float(MICRO_F1.score(*rare_sums)[0])
    return {name: replace(system, **changes) for name, system in predictions.items()}, fields


def measurable_labels(
    true: np.ndarray, index: np.ndarray, num_groups: int, weights: np.ndarray
) -> np.ndarray:
    """Return which labels at least `MIN_LABEL_GROUPS` groups of equal weight have: bool [labels].

    Args:
        true: how often each row has each label [n, labels].
    """
    in_groups = by_group(np.asarray(true, np.float64) * weights[:, None], index, num_groups)
    return is_measurable(in_groups.sum(0), (in_groups**2).sum(0))


def justification(
    scores: Mapping[str, Interval],
    gains: Mapping[str, Gain],
    baselines: Sequence[str],
    *,
    metric: str,
    confidence: float,
    min_gain: float = 0.0,
    candidate: str = FINETUNED,
) -> Justification:
    """Was full fine-tuning justified: is the interval of its gain over each baseline above `min_gain` (and
    zero)?

    Args:
        gains: fine-tuned minus each other system.
        baselines: names of the baselines; the one with the highest estimate is named.
        min_gain: gain that the interval's lower end must exceed.
    """
    if not baselines:
        raise ValueError("there is no baseline to compare with; materialise cheaper_baselines")
    best = max(baselines, key=lambda name: scores[name].estimate)
    gain = gains[best]
    # A gate may allow a loss (for size or speed); that does not make a loss worth its price.
    is_justified = candidate == FINETUNED and all(gains[name].low > max(min_gain, 0.0) for name in baselines)
    threshold = f"the required {min_gain:+.3f}" if min_gain > 0 else "zero"
    if candidate != FINETUNED:
        opening = f"No full fine-tuning is judged here, but the {title(candidate)}"
    elif is_justified:
        opening = "Full fine-tuning was worth it"
    else:
        opening = (
            "Full fine-tuning was not worth it, a baseline is better"
            if gain.high < 0
            else "Full fine-tuning is not shown to be worth it, the interval of its gain is not above"
            f" {threshold}"
        )
    rival = "baseline" if candidate == FINETUNED else "other system"
    sentence = (
        f"{opening}: {title(metric)} is {scores[candidate].estimate:.3f} against {scores[best].estimate:.3f}"
        f" of the best {rival} ({title(best)}), a gain of {gain.estimate:+.3f} ({confidence:.0%} interval"
        f" {gain.low:+.3f} to {gain.high:+.3f})."
    )
    return Justification(best_baseline=best, gain=gain, justified=is_justified, sentence=sentence)
