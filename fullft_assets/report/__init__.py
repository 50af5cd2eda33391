"""The evaluation report: measurements and pictures as one self-contained HTML file, and as Markdown beside
its pictures.
"""

from fullft_assets.report.rendering import (
    LABEL_ERRORS,
    AnsweredRow,
    Continuation,
    DoubtfulRow,
    EvaluationReport,
    SystemCost,
    cost_rows,
    data_rows,
    delimiter_of,
    forgetting_rows,
    label_errors_file,
    lineage_rows,
    next_action,
    promise_rows,
    read_list,
    render,
    score_rows,
    shorten,
    system_costs,
    with_outcome,
    write,
    write_label_errors,
    write_list,
)
