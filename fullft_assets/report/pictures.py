"""The pictures of an evaluation report, drawn by matplotlib: those that all tasks have, and what tasks draw
theirs with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fullft_assets.evaluation import Evaluation, title
from fullft_assets.task import TASKS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#1f2937"
MUTED = "#6b7280"
ACCENT = "#2563eb"
SECOND = "#d97706"
GRID = "#e5e7eb"
#: Most labels of a picture: those with the most errors, or the lowest scores.
MAX_LABELS = 25
_MAX_LABEL_CHARACTERS = 22


def draw(
    folder: Path,
    evaluation: Evaluation,
    training_log: Sequence[Mapping[str, Any]],
    learning_curve: Sequence[Mapping[str, Any]],
) -> list[str]:
    """Write the pictures that there are measurements for, as PNG; return their names in reading order.

    Args:
        training_log: lines with `step` and `loss` or `validation_loss`.
        learning_curve: points with `rows` and the primary metric.
    """
    import matplotlib

    # Labels and systems have any name: between two `$` matplotlib would read a formula, and end on one that
    # it does not know.
    with matplotlib.rc_context({"text.parse_math": False}):
        figures = {
            "scores": _scores(evaluation),
            "learning_curve": _learning_curve(learning_curve, evaluation),
            "general": _lines(
                {
                    "loss (nats a token)": _logged(training_log, "general_loss"),
                    "distance of representations": _logged(training_log, "general_distance"),
                },
                {},
                "optimizer step",
                "on general text",
            ),
            **TASKS.get(evaluation.task).draw(evaluation),
            "loss": _lines(
                {
                    "training": _logged(training_log, "loss"),
                    "validation": _logged(training_log, "validation_loss"),
                },
                {},
                "optimizer step",
                "loss",
            ),
        }
        figures = {name: figure for name, figure in figures.items() if figure is not None}
        for name, figure in figures.items():
            figure.savefig(folder / f"{name}.png", format="png", dpi=110)
    return list(figures)


def new_axes(width: float, height: float) -> tuple[Figure, Axes]:
    """Return a figure of this width and height in inches, with plain axes."""
    # A bare Figure draws with Agg and leaves pyplot's global state alone.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)
    axes.tick_params(colors=MUTED, labelcolor=INK, labelsize=9)
    return figure, axes


def name_axes(axes: Axes, x: str, y: str) -> None:
    """Label both axes."""
    axes.set_xlabel(x, color=INK, fontsize=9.5)
    axes.set_ylabel(y, color=INK, fontsize=9.5)


def _scores(evaluation: Evaluation) -> Figure:
    scores = evaluation.scores[evaluation.primary_metric]
    systems = sorted(scores, key=lambda name: scores[name].estimate)
    figure, axes = new_axes(6.4, 0.9 + 0.42 * len(systems))
    for row, name in enumerate(systems):
        score = scores[name]
        color = ACCENT if name == evaluation.candidate else MUTED
        axes.plot(
            [score.low, score.high], [row, row], color=color, linewidth=3, solid_capstyle="round", alpha=0.45
        )
        axes.plot([score.estimate], [row], "o", color=color, markersize=7)
        axes.annotate(
            f"{score.estimate:.3f}",
            (score.estimate, row),
            xytext=(0, 7),
            textcoords="offset points",
            ha="center",
            fontsize=8.5,
            color=color,
        )
    axes.set_yticks(range(len(systems)), [title(name) for name in systems])
    axes.set_ylim(-0.6, len(systems) - 0.2)
    axes.grid(axis="x", color=GRID)
    axes.set_axisbelow(True)
    name_axes(axes, f"{title(evaluation.primary_metric)} with {evaluation.confidence:.0%} interval", "")
    return figure


def confusion(counts: Sequence[Sequence[int]], labels: Sequence[str]) -> Figure:
    """Return the confusion matrix of the labels with the most errors; rows are true labels."""
    import numpy as np

    all_counts = np.array(counts)
    errors = all_counts.sum(0) + all_counts.sum(1) - 2 * np.diag(all_counts)
    worst = np.sort(np.argsort(-errors, kind="stable")[:MAX_LABELS])
    names = [
        name if len(name) <= _MAX_LABEL_CHARACTERS else name[: _MAX_LABEL_CHARACTERS - 1] + "…"
        for name in (str(labels[label]) for label in worst.tolist())
    ]
    matrix = all_counts[np.ix_(worst, worst)]
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
    if len(names) < len(labels):
        axes.set_title(
            f"the {len(names)} of {len(labels)} labels with the most errors",
            fontsize=9.5,
            color=INK,
        )
    return figure


def reliability(bins: Sequence[Any], num_rows: int) -> Figure:
    """Return confidence against accuracy, by the `ReliabilityBin`s of an evaluation."""
    figure, axes = new_axes(4.9, 4.0)
    axes.plot([0, 1], [0, 1], color=MUTED, linestyle="--", linewidth=1, label="perfectly calibrated")
    axes.bar(
        [(b.low + b.high) / 2 for b in bins],
        [b.num_rows / num_rows for b in bins],
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


def _lines(
    curves: Mapping[str, Sequence[tuple[float, float]]], levels: Mapping[str, float], x: str, y: str
) -> Figure | None:
    """Return curves of points (x, y) and horizontal lines, each by its name; None without a point."""
    if not any(curves.values()):
        return None
    figure, axes = new_axes(4.9, 4.0)
    for (name, points), color in zip(curves.items(), (ACCENT, SECOND), strict=False):
        if points:
            axes.plot(*zip(*points, strict=True), "o-", color=color, linewidth=1.6, markersize=3, label=name)
    for (name, level), color, style in zip(levels.items(), (SECOND, MUTED), ("--", ":"), strict=False):
        axes.axhline(level, color=color, linestyle=style, linewidth=1.4, label=name)
    axes.grid(axis="y", color=GRID)
    axes.legend(frameon=False, fontsize=8.5, loc="best")
    name_axes(axes, x, y)
    return figure


def _logged(log: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    return [(row["step"], row[key]) for row in log if row.get(key) is not None]


def _learning_curve(curve: Sequence[Mapping[str, Any]], evaluation: Evaluation) -> Figure | None:
    metric = evaluation.primary_metric
    points = sorted((point["rows"], point[metric]) for point in curve if point.get(metric) is not None)
    levels = {
        title(system): evaluation.scores[metric][system].estimate
        for system in (evaluation.justification.best_baseline, evaluation.candidate)
    }
    return _lines({"pilot": points}, levels, "training rows of the pilot", title(metric))
