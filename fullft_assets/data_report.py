"""What a person should know of the data before training: sizes, balance, lengths, what is left out, one row as the model reads it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

_BAR = 40


def length_metadata(num_tokens: Sequence[int], max_tokens: int) -> dict[str, Any]:
    """Return quantiles of the texts' lengths in tokens and how many texts are longer than a window."""
    lengths = np.asarray(num_tokens)
    quantiles = {f"p{q}": int(np.percentile(lengths, q)) for q in (10, 50, 90, 99)}
    return {"text_tokens": {**quantiles, "longest": int(lengths.max())}, "num_rows_over_max_tokens": int((lengths > max_tokens).sum())}


def render(
    metadata: dict[str, Any], num_tokens: Sequence[int], *, max_tokens: int, max_windows: int | None, example: tuple[str, str, list[str]]
) -> str:
    """Render the data report as Markdown.

    Args:
        metadata: of the snapshot: `labels`, `label_counts`, `left_out`, `num_..._rows`.
        num_tokens: length of each kept text.
        max_tokens: longest window.
        max_windows: windows kept of a text, or None.
        example: text, label and tokens of one training row.
    """
    splits = list(metadata["label_counts"])
    lines = ["# Data report", "", "| label | " + " | ".join(splits) + " |", "|---" * (len(splits) + 1) + "|"]
    for label in metadata["labels"]:
        cells = []
        for split in splits:
            count, total = metadata["label_counts"][split].get(label, 0), metadata[f"num_{split}_rows"]
            cells.append(f"{count:,} ({count / max(1, total):.0%})")
        lines.append(f"| {label} | {' | '.join(cells)} |")
    lines += ["", "## Left out", ""]
    lines += [f"- {count:,} {reason}" for reason, count in metadata["left_out"].items()] or ["- nothing"]
    lines += ["", "## Length in tokens", "", "```", *_histogram(num_tokens), "```", ""]
    over = int((np.asarray(num_tokens) > max_tokens).sum())
    fate = "is read in overlapping windows, nothing is cut" if max_windows is None else f"is cut after {max_windows} window(s)"
    lines.append(f"{over:,} of {len(num_tokens):,} texts are longer than chunks.max_tokens ({max_tokens}); such a text {fate}.")
    text, label, tokens = example
    lines += ["", "## One training row", "", f"label (what is trained): **{label}**", "", "```", text[:500], "```", ""]
    lines += ["as the model reads it:", "", "```", " ".join(tokens[:120]), "```", ""]
    return "\n".join(lines)


def _histogram(num_tokens: Sequence[int]) -> list[str]:
    lengths = np.maximum(np.asarray(num_tokens), 1)
    edges = 2 ** np.arange(0, int(np.ceil(np.log2(lengths.max() + 1))) + 1)
    counts, _ = np.histogram(lengths, bins=[*edges, edges[-1] * 2])
    most = counts.max()
    return [
        f"{low:>7,} - {2 * low - 1:<7,} {count:>7,} {'#' * round(_BAR * count / most)}"
        for low, count in zip(edges, counts, strict=True)
        if count
    ]
