"""How much a model loses on perturbed copies of test texts, against the same texts as they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from fullft_assets.evaluation.comparison import MAX_GROUP_WEIGHT
from fullft_assets.evaluation.intervals import Gain, Interval, Record
from fullft_assets.evaluation.metrics.base import Metric, Predictions
from fullft_assets.evaluation.resampling import measure, number_groups

_CLEAN, _PERTURBED = "clean", "perturbed"


class PerturbedScore(Record):
    """The score of one system on one kind of perturbed copies.

    Attributes:
        num_changed: rows that the system's tokenizer reads as other tokens than before.
        change: perturbed minus as they are, on the same rows.
    """

    kind: str
    system: str
    num_changed: int
    score: Interval
    change: Gain


class Robustness(Record):
    """How the fine-tuned model and the champion fare on perturbed copies.

    Attributes:
        effective_groups: how many groups of equal weight it rests on.
        clean: system -> score on the same rows as they are.
    """

    metric: str
    num_rows: int
    num_groups: int
    effective_groups: float
    clean: dict[str, Interval]
    found: list[PerturbedScore]


def measure_robustness(
    clean: Mapping[str, Predictions],
    perturbed: Mapping[str, Mapping[str, tuple[Predictions, int]]],
    groups: Sequence[str],
    metric: Metric,
    *,
    resamples: int,
    confidence: float,
    seed: int,
) -> Robustness | None:
    """Measure each system on each kind of copies; None where the rows are of fewer than two groups.

    Args:
        clean: of each system on the rows [n] as they are.
        perturbed: kind -> system -> predictions on the copies [n], and how many copies were read as other
            tokens.
    """
    sizes = Counter(groups)
    if len(sizes) < 2:
        return None
    index, num_groups = number_groups(groups, len(groups))
    weights = np.array([1 / min(sizes[group], MAX_GROUP_WEIGHT) for group in groups])
    before, found, effective = {}, [], 0.0
    for kind, systems in perturbed.items():
        for system, (predictions, num_changed) in systems.items():
            pair = {
                _PERTURBED: replace(predictions, weights=weights),
                _CLEAN: replace(clean[system], weights=weights),
            }
            measured = measure(
                metric,
                pair,
                index,
                reference=_PERTURBED,
                resamples=resamples,
                confidence=confidence,
                seed=seed,
            )
            before[system], effective = measured.scores[_CLEAN], measured.effective_groups
            score, change = measured.scores[_PERTURBED], measured.gains[_CLEAN]
            found.append(
                PerturbedScore(kind=kind, system=system, num_changed=num_changed, score=score, change=change)
            )
    return Robustness(
        metric=metric.name,
        num_rows=len(groups),
        num_groups=num_groups,
        effective_groups=effective,
        clean=before,
        found=found,
    )
