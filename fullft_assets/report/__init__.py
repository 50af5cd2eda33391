"""The evaluation report: measurements and pictures as one self-contained HTML file, and as Markdown beside
its pictures.
"""

from fullft_assets.report.rendering import (
    LABEL_ERRORS,
    AnsweredRow,
    DoubtfulRow,
    EvaluationReport,
    SystemCost,
    cost_rows,
    data_rows,
    forgetting_rows,
    lineage_rows,
    next_action,
    promise_rows,
    read_list,
    render,
    shorten,
    system_costs,
    with_outcome,
    write,
    write_label_errors,
    write_list,
)
