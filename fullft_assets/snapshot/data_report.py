"""What a person should know of the data before training: sizes, balance, lengths, excluded rows, one row as
the model reads it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from typing import Any

import numpy as np

from fullft_assets.examples.labels import variants
from fullft_assets.markdown import escape_name, fenced, to_html
from fullft_assets.snapshot.data_facts import DataFacts, ExcludedRows
from fullft_assets.snapshot.metadata import SnapshotMetadata

_BAR = 40
_STYLE = (
    "body{max-width:60em;margin:2em auto;padding:0 1em;font:15px/1.5 system-ui,sans-serif;color:#1f2937}"
    "table{border-collapse:collapse;display:block;overflow-x:auto}th,td{text-align:left;padding:.3em"
    " .8em;border-bottom:1px solid #e5e7eb}"
    "td:first-child{overflow-wrap:anywhere;min-width:8em}li{overflow-wrap:break-word}"
    "pre{background:#f1f5f9;padding:1em;overflow-x:auto;white-space:pre-wrap}"
    "h2{margin-top:1.6em;font-size:19px}"
    "@media(max-width:600px){th,td{padding:.3em;font-size:12px}td:first-child{min-width:4em}"
    "pre{padding:.5em;font-size:10px}}"
)
_SPLITS = ("train", "validation", "test")
_REASONS = {"few_rows": "fewer than snapshot.min_rows_per_label", "no_training_row": "no row that may train"}


@dataclass(frozen=True)
class Example:
    """One training row: its text, what is trained on it in words, and the tokens of its first window."""

    text: str
    target: str
    tokens: list[str]


def target_of(row: Mapping[str, Any]) -> str:
    """Say what is trained on a row of the snapshot's index."""
    if "label" in row:
        return row["label"]
    if "labels" in row:
        return ", ".join(row["labels"] or []) or "no label"
    if "spans" in row:
        return (
            ", ".join(f"{span['label']} [{span['start']}:{span['end']}]" for span in row["spans"] or [])
            or "no span"
        )
    return "the text itself"


def length_metadata(num_tokens: Sequence[int] | np.ndarray, max_tokens: int) -> dict[str, Any]:
    """Return quantiles of the texts' lengths in tokens and how many texts are longer than a window."""
    lengths = np.asarray(num_tokens)
    quantiles = {f"p{q}": int(np.percentile(lengths, q)) for q in (10, 50, 90, 99)}
    return {
        "text_tokens": {**quantiles, "longest": int(lengths.max())},
        "num_rows_over_max_tokens": int((lengths > max_tokens).sum()),
    }


def render(
    metadata: SnapshotMetadata,
    num_tokens: Sequence[int] | np.ndarray,
    *,
    max_tokens: int,
    max_windows: int | None,
    facts: DataFacts,
    example: Example | None = None,
    case: str = "",
    source: str = "",
) -> str:
    """Render the data report as Markdown, with the time of today.

    Args:
        metadata: of the snapshot.
        num_tokens: length of each kept text.
        max_tokens: longest window.
        max_windows: windows kept of a text, or None.
        facts: what is known beside.
        example: one training row.
        case: the use case.
        source: where its documents are delivered.
    """
    written_at = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    lines = [
        f"# Data report of {case}",
        "",
        f"{written_at}, of the documents in {escape_name(source)}",
        "",
        *_sizes(metadata),
    ]
    lines += [*_to_do(metadata, facts), *_set_aside(facts), *_labels(metadata)]
    lines += [
        *_groups(facts),
        "",
        "## Length in tokens",
        "",
        "```",
        *_histogram(num_tokens),
        "```",
        "",
    ]
    over = int((np.asarray(num_tokens) > max_tokens).sum())
    fate = (
        "is read in overlapping windows, nothing is cut"
        if max_windows is None
        else f"is cut after {max_windows} window(s)"
    )
    lines.append(
        f"{over:,} of {len(num_tokens):,} texts are longer than chunks.max_tokens ({max_tokens}); such a text"
        f" {fate}."
    )
    if metadata.num_packed_rows is not None:
        lines += [
            "",
            f"Packed for training: {metadata.num_packed_rows:,} rows, {metadata.packing_fill:.2%} full.",
        ]
    if example is not None:
        lines += [
            "",
            "## One training row",
            "",
            f"what is trained: **{escape_name(example.target)}**",
            "",
            fenced(example.text[:500]),
            "",
        ]
        lines += ["as the model reads it:", "", fenced(" ".join(example.tokens[:120])), ""]
    return "\n".join(lines)


def to_page(report: str) -> str:
    """Return the report as a page of HTML that needs no other file; its first line is the title."""
    title = report.split("\n", 1)[0].removeprefix("# ")
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width,'
        f' initial-scale=1"><title>{escape(title)}</title>'
    )
    return f'<!doctype html>\n<html lang="en">{head}<style>{_STYLE}</style>\n{to_html(report, {})}</html>\n'


def _to_do(metadata: SnapshotMetadata, facts: DataFacts) -> list[str]:
    lines = [f"- **{name}**: {escape_name(what)}" for name, what in facts.to_do]
    for spellings in variants(metadata.labels):
        named = ", ".join(map(escape_name, spellings))
        lines.append(
            f"- labels that differ in spelling alone: {named}; list one spelling in examples.labels, or fix"
            " the source"
        )
    lines += [
        f"- batch {escape_name(name)} is excluded, because these checks are red: {', '.join(red)}; its run"
        " names the rows and the fix"
        for name, red in facts.held_back.items()
    ]
    return ["", "## What to do", "", *(lines or ["Nothing: every check is green."])]


def _set_aside(facts: DataFacts) -> list[str]:
    num_kept = facts.num_valid - sum(each.num_rows for each in facts.left_out)
    lines = []
    if facts.num_rows:
        lines += [
            "",
            "## Rows",
            "",
            "| read | quarantined | excluded by the snapshot | kept |",
            "|---|---|---|---|",
        ]
        lines += [
            f"| {facts.num_rows:,} | {facts.num_rows - facts.num_valid:,} | {facts.num_valid - num_kept:,} |"
            f" {num_kept:,} |"
        ]
        lines += ["", "## Quarantined", "", *_reasons(facts.quarantined)]
    return [*lines, "", "## Excluded rows", "", *_reasons(facts.left_out)]


def _reasons(excluded: Sequence[ExcludedRows]) -> list[str]:
    shown = []
    for each in excluded:
        places = ", ".join(escape_name(place) for place in each.places)
        more = ", ..." if each.num_rows > len(each.places) else ""
        shown.append(f"- {each.num_rows:,} {escape_name(each.reason)}{f': {places}{more}' if places else ''}")
    return shown or ["- nothing"]


def _groups(facts: DataFacts) -> list[str]:
    if not facts.num_groups:
        return []
    lines = [
        "",
        "## Groups",
        "",
        f"{facts.num_groups:,} groups; {facts.num_ungrouped:,} rows without one. The largest:",
        "",
    ]
    lines += ["| group | split | rows |", "|---|---|---|"]
    return [
        *lines,
        *(
            f"| {escape_name(name)} | {split} | {num_rows:,} |"
            for name, split, num_rows in facts.largest_groups
        ),
    ]


def _num_rows(metadata: SnapshotMetadata) -> dict[str, int]:
    return {
        "train": metadata.num_train_rows,
        "validation": metadata.num_validation_rows,
        "test": metadata.num_test_rows,
    }


def _sizes(metadata: SnapshotMetadata) -> list[str]:
    rows = " | ".join(f"{count:,}" for count in _num_rows(metadata).values())
    return [f"| | {' | '.join(_SPLITS)} |", "|---" * (len(_SPLITS) + 1) + "|", f"| rows | {rows} |"]


def _labels(metadata: SnapshotMetadata) -> list[str]:
    if not metadata.labels:
        return []
    lines = [
        "",
        "## Labels",
        "",
        (
            "rows, share of the split's rows; groups; k_eff = the number of equal groups with as much"
            " information"
        ),
        "",
    ]
    lines += ["| label | " + " | ".join(_SPLITS) + " |", "|---" * (len(_SPLITS) + 1) + "|"]
    statistics = {(s.label, s.split): s for s in metadata.label_statistics}
    for label in metadata.labels:
        cells = []
        for split, num_rows in _num_rows(metadata).items():
            cell = statistics.get((label, split))
            cells.append(
                "0"
                if cell is None
                else (
                    f"{cell.rows:,} ({cell.rows / max(1, num_rows):.0%}); {cell.groups:,} groups; k_eff"
                    f" {cell.k_eff:,.1f}"
                )
            )
        lines.append(f"| {escape_name(label)} | {' | '.join(cells)} |")
    if metadata.rare_labels:
        lines += [
            "",
            f"Too few test groups for a reliable score: {escape_name(', '.join(metadata.rare_labels))}.",
        ]
    if metadata.labels_untested:
        lines += [
            "",
            (
                "Trained but not tested, because there is no other group:"
                f" {escape_name(', '.join(metadata.labels_untested))}."
            ),
        ]
    if metadata.labels_set_aside:
        lines += [
            "",
            f"{metadata.num_labels_set_aside:,} labels are set aside:",
            "",
        ]
        lines += [
            f"- {escape_name(set_aside.label)}: {set_aside.rows:,} rows, {set_aside.groups:,} groups;"
            f" {_REASONS[set_aside.reason]}"
            for set_aside in metadata.labels_set_aside
        ]
    if metadata.num_groups_moved:
        lines += [
            "",
            (
                f"{metadata.num_groups_moved:,} groups are not where their hash puts them, so that each label"
                " is in each split."
            ),
        ]
    return lines


def _histogram(num_tokens: Sequence[int] | np.ndarray) -> list[str]:
    lengths = np.maximum(np.asarray(num_tokens), 1)
    edges = 2 ** np.arange(0, int(np.ceil(np.log2(lengths.max() + 1))) + 1)
    counts, _ = np.histogram(lengths, bins=[*edges, edges[-1] * 2])
    most = counts.max()
    return [
        f"{low:>7,} - {2 * low - 1:<7,} {count:>7,} {'#' * round(_BAR * count / most)}"
        for low, count in zip(edges, counts, strict=True)
        if count
    ]
