"""The pictures of an evaluation report, drawn by matplotlib; which there are goes by the kind of evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fullft_assets.evaluation import (
    FINETUNED,
    ClassificationEvaluation,
    Evaluation,
    LanguageEvaluation,
    MultiLabelEvaluation,
    SpanEvaluation,
    title,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INK, _MUTED, _ACCENT, _SECOND, _GRID = "#1f2937", "#6b7280", "#2563eb", "#d97706", "#e5e7eb"
#: A larger confusion matrix shows the labels with the most errors.
_MAX_MATRIX_LABELS = 25
_MAX_LABEL_CHARACTERS = 22


def draw(
    folder: Path, evaluation: Evaluation, training_log: Sequence[Mapping[str, Any]], learning_curve: Sequence[Mapping[str, Any]]
) -> list[str]:
    """Write the pictures that there are figures for, as PNG; return their names in reading order.

    Args:
        folder: where to.
        evaluation: the figures.
        training_log: lines with `step` and `loss` or `validation_loss`.
        learning_curve: points with `rows` and the primary metric.
    """
    figures = {
        "scores": _scores(evaluation),
        **{name: make(evaluation) for name, make in _OF_A_KIND[evaluation.kind].items()},
        "loss": _loss(training_log),
        "general": _general(training_log),
        "learning_curve": _learning_curve(learning_curve, evaluation),
    }
    drawn = {name: figure for name, figure in figures.items() if figure is not None}
    for name, figure in drawn.items():
        figure.savefig(folder / f"{name}.png", format="png", dpi=110)
    return list(drawn)


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    # A bare Figure draws with Agg and leaves pyplot's global state alone.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_MUTED)
    axes.tick_params(colors=_MUTED, labelcolor=_INK, labelsize=9)
    return figure, axes


def _name_axes(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x, color=_INK, fontsize=9.5)
    axes.set_ylabel(y, color=_INK, fontsize=9.5)


def _scores(evaluation: Evaluation) -> Figure:
    found = evaluation.scores[evaluation.primary_metric]
    systems = sorted(found, key=lambda name: found[name].estimate)
    figure, axes = _axes(6.4, 0.9 + 0.42 * len(systems))
    for row, name in enumerate(systems):
        score = found[name]
        color = _ACCENT if name == FINETUNED else _MUTED
        axes.plot([score.low, score.high], [row, row], color=color, linewidth=3, solid_capstyle="round", alpha=0.45)
        axes.plot([score.estimate], [row], "o", color=color, markersize=7)
        place = {"xytext": (0, 7), "textcoords": "offset points", "ha": "center"}
        axes.annotate(f"{score.estimate:.3f}", (score.estimate, row), fontsize=8.5, color=color, **place)
    axes.set_yticks(range(len(systems)), [title(name) for name in systems])
    axes.set_ylim(-0.6, len(systems) - 0.2)
    axes.grid(axis="x", color=_GRID)
    axes.set_axisbelow(True)
    _name_axes(axes, f"{title(evaluation.primary_metric)} with {evaluation.confidence:.0%} interval", "")
    return figure


def _confusion(evaluation: ClassificationEvaluation) -> Figure:
    import numpy as np

    matrix = np.array(evaluation.confusion)
    errors = matrix.sum(0) + matrix.sum(1) - 2 * np.diag(matrix)
    shown = np.sort(np.argsort(-errors, kind="stable")[:_MAX_MATRIX_LABELS])
    matrix, names = matrix[np.ix_(shown, shown)], [_ellipsis(evaluation.labels[i]) for i in shown]
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    size = max(3.6, min(9.0, 2.2 + 0.42 * len(names)))
    figure, axes = _axes(size + 0.9, size)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.spines[:].set_visible(False)
    if len(names) <= 12:
        for row, column in np.ndindex(*matrix.shape):
            color = "white" if shares[row, column] > 0.55 else _INK
            axes.text(column, row, f"{matrix[row, column]:,}", ha="center", va="center", color=color, fontsize=9)
    axes.set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names)
    bar = figure.colorbar(image, ax=axes, shrink=0.8)
    bar.outline.set_visible(False)
    bar.set_label("share of the true label's rows", color=_INK, fontsize=9)
    _name_axes(axes, "predicted label", "true label")
    if len(shown) < len(evaluation.labels):
        axes.set_title(f"the {len(shown)} of {len(evaluation.labels)} labels with the most errors", fontsize=9.5, color=_INK)
    return figure


def _reliability(evaluation: ClassificationEvaluation) -> Figure:
    figure, axes = _axes(4.9, 4.0)
    bins = evaluation.reliability
    axes.plot([0, 1], [0, 1], color=_MUTED, linestyle="--", linewidth=1, label="perfectly calibrated")
    axes.bar(
        [(b.low + b.high) / 2 for b in bins],
        [b.num_rows / evaluation.num_test_rows for b in bins],
        width=[b.high - b.low for b in bins],
        color=_GRID,
        edgecolor="white",
        label="share of test rows",
    )
    axes.plot([b.confidence for b in bins], [b.accuracy for b in bins], "o-", color=_ACCENT, linewidth=1.8, markersize=5, label="model")
    axes.set(xlim=(0, 1.02), ylim=(0, 1.02))
    _name_axes(axes, "confidence (highest probability)", "accuracy")
    axes.legend(frameon=False, fontsize=8.5, loc="best")
    return figure


def _label_scores(evaluation: MultiLabelEvaluation | SpanEvaluation) -> Figure | None:
    measured = [score for score in evaluation.per_label if score.support]
    shown = sorted(measured, key=lambda score: score.f1)[:_MAX_MATRIX_LABELS][::-1]
    if not shown:
        return None
    figure, axes = _axes(6.4, 0.9 + 0.3 * len(shown))
    rows = range(len(shown))
    axes.barh(rows, [score.f1 for score in shown], color=_GRID, edgecolor="white", height=0.8, label="F1")
    for name, color in (("precision", _ACCENT), ("recall", _SECOND)):
        axes.plot([getattr(score, name) for score in shown], rows, "o", color=color, markersize=5, label=name)
    axes.set_yticks(rows, [_ellipsis(score.label) for score in shown])
    axes.set_xlim(0, 1.02)
    axes.legend(frameon=False, fontsize=8.5, loc="best")
    _name_axes(axes, "on the test rows", "")
    return figure


def _changes(evaluation: LanguageEvaluation) -> Figure:
    figure, axes = _axes(4.9, 4.0)
    for part in evaluation.changes.bins:
        middle = (part.low + part.high) / 2
        axes.bar(middle, part.num_rows, width=part.high - part.low, color=_ACCENT if middle < 0 else _SECOND, edgecolor="white", alpha=0.8)
    axes.axvline(0, color=_MUTED, linewidth=1)
    axes.grid(axis="y", color=_GRID)
    axes.set_axisbelow(True)
    _name_axes(axes, "change of a test row's mean loss (nats a token)", "test rows")
    return figure


def _per_length(evaluation: LanguageEvaluation) -> Figure:
    parts = evaluation.per_length
    figure, axes = _axes(4.9, 4.0)
    curves = (("base model", [p.base_perplexity for p in parts], _MUTED), ("fine-tuned", [p.perplexity for p in parts], _ACCENT))
    for name, values, color in curves:
        axes.plot(range(len(parts)), values, "o-", color=color, linewidth=1.8, label=name)
    axes.set_xticks(range(len(parts)), [f"{p.low:,}–{p.high:,}" for p in parts])
    axes.set_ylim(bottom=1)
    axes.grid(axis="y", color=_GRID)
    axes.legend(frameon=False, fontsize=8.5)
    _name_axes(axes, "trained tokens of a test row", "perplexity")
    return figure


def _loss(log: Sequence[Mapping[str, Any]]) -> Figure | None:
    keys = {"training": "loss", "validation": "validation_loss"}
    curves = {name: [(row["step"], row[key]) for row in log if row.get(key) is not None] for name, key in keys.items()}
    if not any(curves.values()):
        return None
    figure, axes = _axes(4.9, 4.0)
    for (name, points), color, style in zip(curves.items(), (_ACCENT, _SECOND), ("-", "o-"), strict=True):
        if points:
            axes.plot(*zip(*points, strict=True), style, color=color, linewidth=1.6, markersize=4.5, label=name)
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", color=_GRID)
    axes.legend(frameon=False, fontsize=8.5)
    _name_axes(axes, "optimizer step", "loss")
    return figure


def _general(log: Sequence[Mapping[str, Any]]) -> Figure | None:
    axis = {"general_loss": "loss on general text (nats a token)", "general_distance": "distance of general texts' representations"}
    found = {name: [(row["step"], row[name]) for row in log if row.get(name) is not None] for name in axis}
    name = next((name for name, points in found.items() if points), None)
    if name is None:
        return None
    figure, axes = _axes(4.9, 4.0)
    axes.plot(*zip(*found[name], strict=True), "o-", color=_SECOND, linewidth=1.6, markersize=4.5)
    axes.axhline(found[name][0][1], color=_MUTED, linestyle=":", linewidth=1.4)
    axes.grid(axis="y", color=_GRID)
    _name_axes(axes, "optimizer step", axis[name])
    return figure


def _learning_curve(curve: Sequence[Mapping[str, Any]], evaluation: Evaluation) -> Figure | None:
    metric = evaluation.primary_metric
    points = sorted((point["rows"], point[metric]) for point in curve if point.get(metric) is not None)
    if not points:
        return None
    figure, axes = _axes(4.9, 4.0)
    axes.plot(*zip(*points, strict=True), "o-", color=_ACCENT, linewidth=1.8, label="pilot")
    for system, color, style in ((evaluation.justification.best_baseline, _SECOND, "--"), (FINETUNED, _MUTED, ":")):
        axes.axhline(evaluation.scores[metric][system].estimate, color=color, linestyle=style, linewidth=1.4, label=title(system))
    axes.grid(axis="y", color=_GRID)
    axes.legend(frameon=False, fontsize=8.5, loc="best")
    _name_axes(axes, "training rows of the pilot", title(metric))
    return figure


def _ellipsis(name: str) -> str:
    return name if len(name) <= _MAX_LABEL_CHARACTERS else name[: _MAX_LABEL_CHARACTERS - 1] + "…"


_OF_A_KIND: dict[str, dict[str, Any]] = {
    ClassificationEvaluation.kind: {"confusion": _confusion, "reliability": _reliability},
    MultiLabelEvaluation.kind: {"label_scores": _label_scores},
    SpanEvaluation.kind: {"label_scores": _label_scores},
    LanguageEvaluation.kind: {"changes": _changes, "per_length": _per_length},
}
