"""Has the fine-tuned model and the champion read perturbed copies of some test texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from fullft_assets.chunks import Tokenization
from fullft_assets.evaluation import CHAMPION, FINETUNED
from fullft_assets.evaluation.metrics.base import Predictions
from fullft_assets.evaluation.perturbations import KINDS, perturb
from fullft_assets.evaluation.robustness import Robustness, measure_robustness
from fullft_assets.evaluation.rows import one_of_each_group_first
from fullft_assets.snapshot import Split
from fullft_assets.task import METRICS, task_of
from fullft_assets.tasks.context import EvaluationContext, column_of

Windows = Sequence[Sequence[Sequence[int]]]


@dataclass(frozen=True)
class Perturbed:
    """The predictions of the copies.

    Attributes:
        columns: of predictions.parquet: what a system predicted of the copy of each test row; None where
            there is none.
        changed: likewise whether its tokenizer reads the copy as other tokens.
    """

    robustness: Robustness | None
    columns: Mapping[str, Sequence[object]] = field(default_factory=dict)
    changed: Mapping[str, Sequence[bool | None]] = field(default_factory=dict)


def score_perturbed(
    context: EvaluationContext,
    test: Split,
    clean: Mapping[str, np.ndarray],
    predict: Callable[[str, Windows], np.ndarray],
    windows_of: Callable[[str], Windows],
    predictions_of: Callable[[Sequence[int], np.ndarray], Predictions],
    shown: Callable[[np.ndarray], Sequence[object]],
) -> Perturbed:
    """Score copies of `evaluation.robustness_rows` test rows.

    Args:
        clean: what each system predicted of the test rows [n, labels].
        predict: returns what a checkpoint among the inputs predicts of windows, likewise.
        windows_of: the test rows' windows for a checkpoint among the inputs.
        predictions_of: what metrics take of the predictions of some rows, by position.
        shown: what `predictions.parquet` has of predictions.
    """
    settings = context.job.settings
    rows = one_of_each_group_first(test.groups, settings.seed)[: settings.evaluation.robustness_rows]
    if not rows:
        return Perturbed(None)
    context.progress.say(f"perturbed copies of {len(rows):,} test rows ...")
    perturbed: dict[str, dict[str, tuple[Predictions, int]]] = {kind: {} for kind in KINDS}
    columns: dict[str, list[object]] = {}
    is_changed: dict[str, list[bool | None]] = {}
    for system, checkpoint in {FINETUNED: "finetuned_checkpoint", CHAMPION: CHAMPION}.items():
        if checkpoint not in context.inputs:
            continue
        before = windows_of(checkpoint)
        tokenization = Tokenization.load_saved(context.model_folder(checkpoint), settings.chunks)
        copies = {
            kind: tokenization.windows(
                [perturb(kind, test.texts[row], f"{settings.seed}/{test.ids[row]}") for row in rows]
            )
            for kind in KINDS
        }
        # A copy that has the tokens of its original has its prediction too; for a tokenizer that ignores case
        # two kinds of copies are so.
        changed = {
            (kind, place): None
            for kind in KINDS
            for place, row in enumerate(rows)
            if copies[kind][place] != before[row]
        }
        read = predict(checkpoint, [copies[kind][place] for kind, place in changed]) if changed else []
        found = {kind: np.array(clean[system][rows]) for kind in KINDS}
        for (kind, place), output in zip(changed, read, strict=True):
            found[kind][place] = output
        for kind in KINDS:
            num_changed = sum(mine == kind for mine, _ in changed)
            perturbed[kind][system] = predictions_of(rows, found[kind]), num_changed
            column = columns[column_of(system, f"predicted.{kind}")] = [None] * len(test)
            flags = is_changed[column_of(system, f"changed.{kind}")] = [None] * len(test)
            for place, (row, value) in enumerate(zip(rows, shown(found[kind]), strict=True)):
                column[row], flags[row] = value, (kind, place) in changed
    as_they_are = {system: predictions_of(rows, clean[system][rows]) for system in perturbed[KINDS[0]]}
    task = task_of(settings.examples)
    metric = METRICS.get(task.slice_metric or settings.primary_metric)
    asked = settings.evaluation
    sampling = {"resamples": asked.resamples, "confidence": asked.confidence, "seed": settings.seed}
    groups = [test.groups[row] for row in rows]
    return Perturbed(
        measure_robustness(as_they_are, perturbed, groups, metric, **sampling), columns, is_changed
    )
