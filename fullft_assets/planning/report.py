"""The plan on all targets as lines for a terminal, and as sentences."""

from __future__ import annotations

from collections.abc import Sequence

from fullft_assets.planning.target_plans import (
    WAITING_USD,
    TargetPlan,
    duration,
    recommend,
    retrains_a_year,
    table,
    yaml_lines,
)
from fullft_assets.planning.targets import source_of_prices
from fullft_assets.settings import UseCaseSettings


def plan_lines(
    plans: Sequence[TargetPlan], settings: UseCaseSettings, name: str, rungs: Sequence[dict[str, str]] = ()
) -> list[str]:
    """Return the table of all targets, what its numbers rest on, and the recommendation with its YAML.

    Args:
        rungs: memory at each rung of the ladder; see `target_plans.rung_table`.
    """
    lines = [f"{name}: plan", *_columns(list(table(plans))), ""]
    if rungs:
        lines += [
            "Memory of one process on a GPU, in GiB, at each rung of the memory ladder",
            *_columns(rungs),
            "",
        ]
    return [*lines, *notes(plans, settings), "", recommendation(plans, settings), *_indented(plans, settings)]


def _columns(rows: Sequence[dict[str, str]]) -> list[str]:
    widths = {column: max(len(column), *(len(row[column]) for row in rows)) for column in rows[0]}
    shown = [dict(zip(widths, widths, strict=True)), *rows]
    return ["  ".join(row[column].ljust(width) for column, width in widths.items()).rstrip() for row in shown]


def recommendation(plans: Sequence[TargetPlan], settings: UseCaseSettings) -> str:
    """Return the sentence that names the best target by price and time, and the cheapest where that is
    another one.
    """
    chosen, cheapest = recommend(plans, settings), recommend(plans, settings, waiting_usd=0)
    if chosen is None:
        limit = (
            ""
            if settings.planning.max_usd is None
            else f" and planning.max_usd ({settings.planning.max_usd:g})"
        )
        return (
            f"No target fits within planning.max_hours ({settings.planning.max_hours:g}){limit}: raise a"
            " limit, choose a smaller base_model, or lower chunks.max_tokens"
        )
    assert cheapest is not None
    how = (
        "with the YAML as it is"
        if not yaml_lines(chosen, settings.training)
        else "with these lines in the YAML:"
    )
    why = (
        f"the best by price and time, an hour of waiting counted as {WAITING_USD:g} USD; the cheapest is"
        f" {_cost(cheapest)}"
    )
    return f"Recommended: {_cost(chosen)}, {why if chosen != cheapest else 'the cheapest that fits'}; {how}"


def _cost(plan: TargetPlan) -> str:
    assert plan.usd is not None and plan.hours is not None
    return (
        f"{plan.name} ({duration(*plan.hours)} of training, at most {plan.usd[1]:,.2f} USD for a first model)"
    )


def notes(plans: Sequence[TargetPlan], settings: UseCaseSettings) -> list[str]:
    """Return what the numbers rest on, one sentence each."""
    here = plans[0]
    speed = "measured by the last plan" if here.is_measured else "assumed"
    return [
        "Memory is counted tensor by tensor without weights; on GPUs a margin for the allocator is assumed.",
        (
            "Time is that of the arithmetic at a share of the peak: 15 to 45% (below 200M weights 3 to 20%),"
            f" an assumption; on this machine {speed}."
        ),
        (
            "A first model is pilot, baselines, training and evaluation. A year adds"
            f" {retrains_a_year(settings):.1f} retrainings (retraining.max_age_days);"
            " new data and drift may ask for more."
        ),
        f"Instances: {source_of_prices(settings.planning)}.",
    ]


def _indented(plans: Sequence[TargetPlan], settings: UseCaseSettings) -> list[str]:
    chosen = recommend(plans, settings)
    return [] if chosen is None else [f"  {line}" for line in yaml_lines(chosen, settings.training)]
