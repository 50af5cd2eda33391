"""A drift verdict as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fullft_assets.monitoring.verdict import ALARMED, DriftVerdict

#: Dagster shows Markdown inline only below 1,000 characters.
MAX_TABLE_CHARACTERS = 999


def render_table(verdict: DriftVerdict) -> str:
    """Return the tests as a Markdown table short enough to be shown inline by Dagster (below 1,000
    characters).
    """
    if not verdict.comparisons:
        return verdict.summary
    lines = ["| test | windows | p-value | effect |", "|---|---|---|---|"]
    for each in verdict.comparisons:
        p_value = f"**{each.p_value:.2g}**" if each.drifted else f"{each.p_value:.2g}"
        lines.append(f"| {each.test} | {each.num_windows} | {p_value} | {each.effect:.3f} |")
    return "\n".join(lines)[:MAX_TABLE_CHARACTERS]


def render_report(
    verdict: DriftVerdict, title: str, windows: Sequence[tuple[str, Mapping[str, float]]]
) -> str:
    """Return the verdict with all its tests, and the numbers of the windows that were read, as Markdown.

    Args:
        windows: name and numbers of each window, oldest first, this one last.
    """
    lines = [f"# {title}", "", f"Status: **{verdict.status}**.", ""]
    lines += [f"- {change}" for change in (verdict.moved or [verdict.summary])] + [""]
    lines += [f"Note: {note}.\n" for note in verdict.notes if note not in verdict.summary]
    if verdict.comparisons:
        lines += [
            f"{verdict.num_rows:,} independent documents against {verdict.num_reference_rows:,} of "
            f"{verdict.num_reference_windows} reference windows.",
            "",
            render_table(verdict),
            "",
        ]
    if verdict.status in ALARMED:
        lines += ["`explanation.md` has the words whose share changed most, and places of documents.", ""]
    names = list(dict.fromkeys(name for _, numbers in windows for name in numbers))
    if names:
        lines += ["| window | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
        for window, numbers in windows:
            cells = (f"{numbers[name]:.4g}" if name in numbers else "" for name in names)
            lines.append(f"| {window} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
