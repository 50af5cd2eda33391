"""The evaluation report: measurements and pictures as one self-contained HTML file, and as Markdown beside
its pictures.
"""

from fullft_assets.report.costs import SystemCost, system_costs, worth_rows
from fullft_assets.report.doubtful_rows import (
    LABEL_ERRORS,
    DoubtfulRow,
    delimiter_of,
    label_errors_file,
    read_list,
    write_label_errors,
    write_list,
)
from fullft_assets.report.next_action import next_action
from fullft_assets.report.rendering import (
    AnsweredRow,
    Continuation,
    EvaluationReport,
    cost_rows,
    data_rows,
    forest_rows,
    forgetting_rows,
    lineage_rows,
    promise_rows,
    render,
    score_rows,
    shorten,
    with_outcome,
    write,
)
