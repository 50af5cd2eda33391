"""The evaluation report: measurements and pictures as one self-contained HTML file, and as Markdown beside its pictures."""

from fullft_assets.report.rendering import (
    AnsweredRow,
    Continuation,
    EvaluationReport,
    Spent,
    cost_rows,
    data_rows,
    forgetting_rows,
    lineage_rows,
    promise_rows,
    render,
    score_rows,
    shorten,
    spent_by_system,
    write,
)
