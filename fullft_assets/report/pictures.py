"""The pictures of an evaluation report, drawn by matplotlib: those that all tasks have, and what tasks draw
theirs with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fullft_assets.evaluation import FINETUNED, Evaluation, title
from fullft_assets.evaluation.label_scores import LabelScore
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
            "general": _general(training_log),
            **TASKS.get(evaluation.task).draw(evaluation),
            "loss": _loss(training_log),
        }
        drawn = {name: figure for name, figure in figures.items() if figure is not None}
        for name, figure in drawn.items():
            figure.savefig(folder / f"{name}.png", format="png", dpi=110)
    return list(drawn)


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
        color = ACCENT if name == FINETUNED else MUTED
        axes.plot(
            [score.low, score.high], [row, row], color=color, linewidth=3, solid_capstyle="round", alpha=0.45
        )
        axes.plot([score.estimate], [row], "o", color=color, markersize=7)
        place = {"xytext": (0, 7), "textcoords": "offset points", "ha": "center"}
        axes.annotate(f"{score.estimate:.3f}", (score.estimate, row), fontsize=8.5, color=color, **place)
    axes.set_yticks(range(len(systems)), [title(name) for name in systems])
    axes.set_ylim(-0.6, len(systems) - 0.2)
    axes.grid(axis="x", color=GRID)
    axes.set_axisbelow(True)
    name_axes(axes, f"{title(evaluation.primary_metric)} with {evaluation.confidence:.0%} interval", "")
    return figure


def label_scores(scores: Sequence[LabelScore]) -> Figure | None:
    """Return F1, precision and recall of the weakest labels; None where the test rows have no label."""
    measured = [score for score in scores if score.support]
    shown = sorted(measured, key=lambda score: score.f1)[:MAX_LABELS][::-1]
    if not shown:
        return None
    figure, axes = new_axes(6.4, 0.9 + 0.3 * len(shown))
    rows = range(len(shown))
    axes.barh(rows, [score.f1 for score in shown], color=GRID, edgecolor="white", height=0.8, label="F1")
    for name, color in (("precision", ACCENT), ("recall", SECOND)):
        axes.plot([getattr(score, name) for score in shown], rows, "o", color=color, markersize=5, label=name)
    axes.set_yticks(rows, [shorten_name(score.label) for score in shown])
    axes.set_xlim(0, 1.02)
    axes.legend(frameon=False, fontsize=8.5, loc="best")
    name_axes(axes, "on the test rows", "")
    return figure


def _loss(log: Sequence[Mapping[str, Any]]) -> Figure | None:
    keys = {"training": "loss", "validation": "validation_loss"}
    curves = {
        name: [(row["step"], row[key]) for row in log if row.get(key) is not None]
        for name, key in keys.items()
    }
    if not any(curves.values()):
        return None
    figure, axes = new_axes(4.9, 4.0)
    for (name, points), color, style in zip(curves.items(), (ACCENT, SECOND), ("-", "o-"), strict=True):
        if points:
            axes.plot(
                *zip(*points, strict=True), style, color=color, linewidth=1.6, markersize=4.5, label=name
            )
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", color=GRID)
    axes.legend(frameon=False, fontsize=8.5)
    name_axes(axes, "optimizer step", "loss")
    return figure


def _general(log: Sequence[Mapping[str, Any]]) -> Figure | None:
    axis = {
        "general_loss": "loss on general text (nats a token)",
        "general_distance": "distance of general texts' representations",
    }
    curves = {name: [(row["step"], row[name]) for row in log if row.get(name) is not None] for name in axis}
    name = next((name for name, points in curves.items() if points), None)
    if name is None:
        return None
    figure, axes = new_axes(4.9, 4.0)
    axes.plot(*zip(*curves[name], strict=True), "o-", color=SECOND, linewidth=1.6, markersize=4.5)
    axes.axhline(curves[name][0][1], color=MUTED, linestyle=":", linewidth=1.4)
    axes.grid(axis="y", color=GRID)
    name_axes(axes, "optimizer step", axis[name])
    return figure


def _learning_curve(curve: Sequence[Mapping[str, Any]], evaluation: Evaluation) -> Figure | None:
    metric = evaluation.primary_metric
    points = sorted((point["rows"], point[metric]) for point in curve if point.get(metric) is not None)
    if not points:
        return None
    figure, axes = new_axes(4.9, 4.0)
    axes.plot(*zip(*points, strict=True), "o-", color=ACCENT, linewidth=1.8, label="pilot")
    for system, color, style in (
        (evaluation.justification.best_baseline, SECOND, "--"),
        (FINETUNED, MUTED, ":"),
    ):
        axes.axhline(
            evaluation.scores[metric][system].estimate,
            color=color,
            linestyle=style,
            linewidth=1.4,
            label=title(system),
        )
    axes.grid(axis="y", color=GRID)
    axes.legend(frameon=False, fontsize=8.5, loc="best")
    name_axes(axes, "training rows of the pilot", title(metric))
    return figure


def shorten_name(name: str) -> str:
    """Return the name, or its beginning if it is long."""
    return name if len(name) <= _MAX_LABEL_CHARACTERS else name[: _MAX_LABEL_CHARACTERS - 1] + "…"
