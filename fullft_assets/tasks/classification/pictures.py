"""The pictures that only the report of a classifier has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fullft_assets.report.pictures import (
    ACCENT,
    GRID,
    INK,
    MAX_LABELS,
    MUTED,
    name_axes,
    new_axes,
    shorten_name,
)
from fullft_assets.tasks.classification.assessment import ClassificationEvaluation

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def confusion(evaluation: ClassificationEvaluation) -> Figure:
    """Return the confusion matrix of the labels with the most errors."""
    import numpy as np

    matrix = np.array(evaluation.confusion)
    errors = matrix.sum(0) + matrix.sum(1) - 2 * np.diag(matrix)
    shown = np.sort(np.argsort(-errors, kind="stable")[:MAX_LABELS])
    matrix, names = matrix[np.ix_(shown, shown)], [shorten_name(evaluation.labels[i]) for i in shown]
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    size = max(3.6, min(9.0, 2.2 + 0.42 * len(names)))
    figure, axes = new_axes(size + 0.9, size)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.spines[:].set_visible(False)
    if len(names) <= 12:
        for row, column in np.ndindex(*matrix.shape):
            color = "white" if shares[row, column] > 0.55 else INK
            axes.text(
                column, row, f"{matrix[row, column]:,}", ha="center", va="center", color=color, fontsize=9
            )
    axes.set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names)
    bar = figure.colorbar(image, ax=axes, shrink=0.8)
    bar.outline.set_visible(False)
    bar.set_label("share of the true label's rows", color=INK, fontsize=9)
    name_axes(axes, "predicted label", "true label")
    if len(shown) < len(evaluation.labels):
        axes.set_title(
            f"the {len(shown)} of {len(evaluation.labels)} labels with the most errors",
            fontsize=9.5,
            color=INK,
        )
    return figure


def reliability(evaluation: ClassificationEvaluation) -> Figure:
    """Return confidence against accuracy."""
    figure, axes = new_axes(4.9, 4.0)
    bins = evaluation.reliability
    axes.plot([0, 1], [0, 1], color=MUTED, linestyle="--", linewidth=1, label="perfectly calibrated")
    axes.bar(
        [(b.low + b.high) / 2 for b in bins],
        [b.num_rows / evaluation.num_test_rows for b in bins],
        width=[b.high - b.low for b in bins],
        color=GRID,
        edgecolor="white",
        label="share of test rows",
    )
    axes.plot(
        [b.confidence for b in bins],
        [b.accuracy for b in bins],
        "o-",
        color=ACCENT,
        linewidth=1.8,
        markersize=5,
        label="model",
    )
    axes.set(xlim=(0, 1.02), ylim=(0, 1.02))
    name_axes(axes, "confidence (highest probability)", "accuracy")
    axes.legend(frameon=False, fontsize=8.5, loc="best")
    return figure
