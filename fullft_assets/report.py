"""The evaluation report: figures and pictures as one self-contained HTML file, and as Markdown beside its pictures.

Texts of test rows only appear in the HTML.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fullft_assets.evaluation import FINETUNED, Evaluation, Interval, title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from fullft_assets.release import Verdict
    from fullft_assets.settings import UseCaseSettings
    from fullft_assets.store import Manifest

_TEMPLATES = Path(__file__).parent / "templates"
_INK, _MUTED, _ACCENT, _SECOND, _GRID = "#1f2937", "#6b7280", "#2563eb", "#d97706", "#e5e7eb"
#: A larger confusion matrix shows the labels with the most errors.
_MAX_MATRIX_LABELS = 25
_MAX_LABEL_CHARACTERS = 22


@dataclass(frozen=True)
class Answer:
    """One test row with the answers of the best cheaper baseline and of the fine-tuned model."""

    text: str
    label: str
    baseline: str
    finetuned: str


@dataclass(frozen=True)
class Report:
    """What a report shows beside the evaluation's figures; tables are (name, value) rows.

    `training_log` has `step` with `loss` or `validation_loss`; `learning_curve` has `rows` and the primary metric.
    """

    case: str
    evaluation: Evaluation
    verdict: Verdict
    base_model: str
    answers: Sequence[Answer] = ()
    training_log: Sequence[Mapping[str, Any]] = ()
    learning_curve: Sequence[Mapping[str, Any]] = ()
    data: Sequence[tuple[str, str]] = ()
    lineage: Sequence[tuple[str, str]] = ()
    cost: Sequence[tuple[str, str]] = ()


def write(folder: Path, report: Report) -> list[str]:
    """Write `report.html`, `report.md` and `pictures/*.png`; return the pictures' names."""
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    pictures = draw(folder / "pictures", report)
    embedded = {name: base64.b64encode((folder / "pictures" / f"{name}.png").read_bytes()).decode() for name in pictures}
    (folder / "report.html").write_text(render("report.html.j2", report=report, pictures=embedded), encoding="utf-8")
    (folder / "report.md").write_text(render("report.md.j2", report=report, pictures=pictures), encoding="utf-8")
    return pictures


def render(template: str, **context: Any) -> str:
    """Fill a template of this package; HTML is escaped, a missing value is an error."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=lambda name: name is not None and ".html" in name,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(interval=_interval, signed=_signed, cell=_cell)
    return environment.get_template(template).render(title=title, FINETUNED=FINETUNED, **context)


def draw(folder: Path, report: Report) -> list[str]:
    """Write the pictures that there are figures for, as PNG; return their names in reading order."""
    figures = {
        "scores": _scores(report.evaluation),
        "confusion": _confusion(report.evaluation),
        "reliability": _reliability(report.evaluation),
        "loss": _loss(report.training_log),
        "learning_curve": _learning_curve(report.learning_curve, report.evaluation),
    }
    drawn = {name: figure for name, figure in figures.items() if figure is not None}
    for name, figure in drawn.items():
        figure.savefig(folder / f"{name}.png", format="png", dpi=110)
    return list(drawn)


def shorten(text: str, most: int = 240) -> str:
    """Return the beginning of a text on one line."""
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1].rstrip() + "…"


def data_rows(snapshot: Manifest) -> list[tuple[str, str]]:
    """Summarise a training snapshot as (name, value) rows."""
    found = snapshot.metadata
    names = {
        "num_train_rows": "training rows",
        "num_validation_rows": "validation rows",
        "num_test_rows": "test rows",
        "num_test_groups": "test groups",
        "num_batches": "batches",
    }
    rows = [(name, f"{found[key]:,}") for key, name in names.items() if key in found]
    for split, counts in found.get("label_counts", {}).items():
        rows.append((f"labels, {split}", _listed(counts)))
    if found.get("left_out"):
        rows.append(("left out", _listed(found["left_out"])))
    return rows


def lineage_rows(inputs: Mapping[str, Manifest], settings: UseCaseSettings, key: str) -> list[tuple[str, str]]:
    """Say what made a model and its evaluation, as (name, value) rows."""
    checkpoint = inputs["finetuned_checkpoint"]
    rows = [(name.replace("_", " "), manifest.ref) for name, manifest in inputs.items()]
    rows.append(("evaluation key", key))
    rows.append(("base model", settings.base_model))
    if "base_model_revision" in checkpoint.metadata:
        rows.append(("base model revision", str(checkpoint.metadata["base_model_revision"])))
    rows.append(("training settings", _listed(checkpoint.settings.get("training", checkpoint.settings))))
    rows.append(("training code version", checkpoint.version))
    rows.append(("seed", str(checkpoint.seed)))
    return rows


def cost_rows(checkpoint: Manifest) -> list[tuple[str, str]]:
    """Say what a training took, as (name, value) rows; what the checkpoint does not say is left out."""
    shown = {
        "training_seconds": ("training time", lambda v: f"{int(v // 3600)} h {int(v % 3600 // 60)} min {v % 60:.0f} s"),
        "training_usd": ("cost", lambda v: f"{v:,.2f} USD"),
        "num_parameters": ("parameters", lambda v: f"{v:,}"),
        "num_trained_parameters": ("trained parameters", lambda v: f"{v:,}"),
        "num_steps": ("optimizer steps", lambda v: f"{v:,}"),
        "num_tokens": ("useful tokens", lambda v: f"{v:,}"),
        "tokens_per_second": ("useful tokens a second", lambda v: f"{v:,.0f}"),
        "peak_memory_gib": ("peak memory", lambda v: f"{v:.2f} GiB"),
        "precision": ("precision", str),
    }
    found = checkpoint.metadata
    return [(name, text(found[key])) for key, (name, text) in shown.items() if found.get(key) is not None]


def _listed(values: Mapping[str, Any]) -> str:
    shown = {name: f"{v:,}" if type(v) is int else v for name, v in values.items()}
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in shown.items())


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


def _confusion(evaluation: Evaluation) -> Figure:
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


def _reliability(evaluation: Evaluation) -> Figure:
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


def _interval(value: Interval) -> str:
    return f"{value.low:.3f} to {value.high:.3f}"


def _signed(value: Interval | float, digits: int = 3) -> str:
    if isinstance(value, Interval):
        return f"{value.low:+.{digits}f} to {value.high:+.{digits}f}"
    return f"{value:+.{digits}f}"


def _cell(value: object) -> str:
    """Make a value safe in a cell of a Markdown table."""
    return str(value).replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ").replace("<", "&lt;").replace("`", "'")
