"""The evaluation report: measurements and pictures as one self-contained HTML file, and as Markdown beside its pictures."""

from fullft_assets.report.rendering import (
    Answer,
    Continuation,
    Report,
    cost_rows,
    data_rows,
    draw,
    forgetting_rows,
    lineage_rows,
    render,
    shorten,
    write,
)

__all__ = [
    "Answer",
    "Continuation",
    "Report",
    "cost_rows",
    "data_rows",
    "draw",
    "forgetting_rows",
    "lineage_rows",
    "render",
    "shorten",
    "write",
]
