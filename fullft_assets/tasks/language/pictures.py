"""The pictures that only the report of a language model has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fullft_assets.report.pictures import ACCENT, GRID, MUTED, SECOND, name_axes, new_axes
from fullft_assets.tasks.language.assessment import LanguageEvaluation

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def changes(evaluation: LanguageEvaluation) -> Figure:
    """Return a histogram of the changes of the test rows' losses."""
    figure, axes = new_axes(4.9, 4.0)
    for part in evaluation.changes.bins:
        middle = (part.low + part.high) / 2
        axes.bar(
            middle,
            part.num_rows,
            width=part.high - part.low,
            color=ACCENT if middle < 0 else SECOND,
            edgecolor="white",
            alpha=0.8,
        )
    axes.axvline(0, color=MUTED, linewidth=1)
    axes.grid(axis="y", color=GRID)
    axes.set_axisbelow(True)
    name_axes(axes, "change of a test row's mean loss (nats a token)", "test rows")
    return figure


def per_length(evaluation: LanguageEvaluation) -> Figure:
    """Return perplexities of short and long test rows."""
    parts = evaluation.per_length
    figure, axes = new_axes(4.9, 4.0)
    curves = (
        ("base model", [p.base_perplexity for p in parts], MUTED),
        ("fine-tuned", [p.perplexity for p in parts], ACCENT),
    )
    for name, values, color in curves:
        axes.plot(range(len(parts)), values, "o-", color=color, linewidth=1.8, label=name)
    axes.set_xticks(range(len(parts)), [f"{p.low:,}–{p.high:,}" for p in parts])
    axes.set_ylim(bottom=1)
    axes.grid(axis="y", color=GRID)
    axes.legend(frameon=False, fontsize=8.5)
    name_axes(axes, "trained tokens of a test row", "perplexity")
    return figure
