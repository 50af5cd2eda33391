"""What a person should know of the data before training: sizes, balance, lengths, what is left out, one row as the model reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fullft_assets.snapshot.metadata import SnapshotMetadata

_BAR = 40
_SPLITS = ("train", "validation", "test")


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
        return ", ".join(f"{span['label']} [{span['start']}:{span['end']}]" for span in row["spans"] or []) or "no span"
    return "the text itself"


def length_metadata(num_tokens: Sequence[int] | np.ndarray, max_tokens: int) -> dict[str, Any]:
    """Return quantiles of the texts' lengths in tokens and how many texts are longer than a window."""
    lengths = np.asarray(num_tokens)
    quantiles = {f"p{q}": int(np.percentile(lengths, q)) for q in (10, 50, 90, 99)}
    return {"text_tokens": {**quantiles, "longest": int(lengths.max())}, "num_rows_over_max_tokens": int((lengths > max_tokens).sum())}


def render(
    metadata: SnapshotMetadata,
    num_tokens: Sequence[int] | np.ndarray,
    *,
    max_tokens: int,
    max_windows: int | None,
    example: Example | None = None,
) -> str:
    """Render the data report as Markdown.

    Args:
        metadata: of the snapshot.
        num_tokens: length of each kept text.
        max_tokens: longest window.
        max_windows: windows kept of a text, or None.
        example: one training row.
    """
    lines = ["# Data report", "", *_sizes(metadata), *_labels(metadata), "", "## Left out", ""]
    lines += [f"- {count:,} {reason}" for reason, count in metadata.left_out.items()] or ["- nothing"]
    lines += ["", "## Length in tokens", "", "```", *_histogram(num_tokens), "```", ""]
    over = int((np.asarray(num_tokens) > max_tokens).sum())
    fate = "is read in overlapping windows, nothing is cut" if max_windows is None else f"is cut after {max_windows} window(s)"
    lines.append(f"{over:,} of {len(num_tokens):,} texts are longer than chunks.max_tokens ({max_tokens}); such a text {fate}.")
    if metadata.num_packed_rows is not None:
        lines += ["", f"Packed for training: {metadata.num_packed_rows:,} rows, {metadata.packing_fill:.2%} full."]
    if example is not None:
        lines += ["", "## One training row", "", f"what is trained: **{example.target}**", "", "```", example.text[:500], "```", ""]
        lines += ["as the model reads it:", "", "```", " ".join(example.tokens[:120]), "```", ""]
    return "\n".join(lines)


def _num_rows(metadata: SnapshotMetadata) -> dict[str, int]:
    return {"train": metadata.num_train_rows, "validation": metadata.num_validation_rows, "test": metadata.num_test_rows}


def _sizes(metadata: SnapshotMetadata) -> list[str]:
    rows = " | ".join(f"{count:,}" for count in _num_rows(metadata).values())
    return [f"| | {' | '.join(_SPLITS)} |", "|---" * (len(_SPLITS) + 1) + "|", f"| rows | {rows} |"]


def _labels(metadata: SnapshotMetadata) -> list[str]:
    """Return the balance: rows (and their share of the split), groups and the effective number of groups of each label."""
    if not metadata.labels:
        return []
    lines = [
        "",
        "## Labels",
        "",
        "rows, share of the split's rows; groups; k_eff = the number of equal groups with as much information",
        "",
    ]
    lines += ["| label | " + " | ".join(_SPLITS) + " |", "|---" * (len(_SPLITS) + 1) + "|"]
    found = {(s.label, s.split): s for s in metadata.label_statistics}
    for label in metadata.labels:
        cells = []
        for split, num_rows in _num_rows(metadata).items():
            cell = found.get((label, split))
            cells.append(
                "0"
                if cell is None
                else f"{cell.rows:,} ({cell.rows / max(1, num_rows):.0%}); {cell.groups:,} groups; k_eff {cell.k_eff:,.1f}"
            )
        lines.append(f"| {label} | {' | '.join(cells)} |")
    if metadata.rare_labels:
        lines += ["", f"Too few test groups for a reliable score: {', '.join(metadata.rare_labels)}."]
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
