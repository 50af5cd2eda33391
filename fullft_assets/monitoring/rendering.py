"""A drift verdict as Markdown."""

from __future__ import annotations

from fullft_assets.monitoring.verdict import DriftVerdict

#: Dagster shows Markdown inline only below 1,000 characters.
MAX_TABLE_CHARACTERS = 999


def render_table(verdict: DriftVerdict) -> str:
    """Return the tests as a Markdown table short enough to be shown inline by Dagster (below 1,000 characters)."""
    if not verdict.tests:
        return verdict.summary
    lines = ["| test | p-value | effect | alarm |", "|---|---|---|---|"]
    for test in verdict.tests:
        alarm = "**yes**" if test.name in verdict.alarms else "no"
        lines.append(f"| {test.name} | {test.p_value:.2g} | {test.effect_name} {test.effect:.3f} | {alarm} |")
    lines += ["", f"An alarm is p <= {verdict.threshold:.2g}."]
    return "\n".join(lines)[:MAX_TABLE_CHARACTERS]


def render_report(verdict: DriftVerdict, title: str) -> str:
    """Return the verdict with all its tests as Markdown."""
    lines = [f"# {title}", "", f"Status: **{verdict.status}**.", ""]
    lines += [f"- {change}" for change in (verdict.moved or [verdict.summary])] + [""]
    lines += [f"Note: {note}.\n" for note in verdict.notes if note not in verdict.summary]
    if verdict.tests:
        lines += [
            f"{verdict.num_rows:,} window documents against {verdict.num_reference_rows:,} held-out documents of the "
            "training snapshot, one a group.",
            "",
        ]
        lines += [render_table(verdict)]
    return "\n".join(lines) + "\n"
