"""How often the markers of a stored evaluation are right, counted a second time by searching the texts. It shares no code: see `verification`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fullft_assets.evaluation.recomputation import Labels, Pair, effective_groups

#: Kinds of characters that a word of this kind is a whole run of.
_RUNS = (r"[^\W\d_]", r"\d", r"_", r"[^\w\s]")


def marker_numbers(stored: Mapping[str, Any], recomputed: Labels, texts: Sequence[str]) -> Iterator[Pair]:
    """Yield (name, as stored, as recomputed): precision, recall and groups of each marker on the test rows [n]."""
    for each in stored["markers"]:
        label, kind, rule = each["label"], each["kind"], each["rule"]
        given = np.array([_has(kind, rule, text) for text in texts])
        right = recomputed.weights * given * (recomputed.of_label(label) > 0)
        name = f"of the marker of label {label!a}"
        yield f"precision {name}", each["precision"], float(right.sum() / recomputed.weights[given].sum())
        yield f"recall {name}", each["recall"], float(right.sum() / recomputed.weights[recomputed.of_label(label) > 0].sum())
        yield f"effective groups {name}", each["effective_groups"], effective_groups(right, recomputed.groups)


def _has(kind: str, rule: str, text: str) -> bool:
    folded = text.casefold()
    if kind == "length":
        limit = int(re.sub(r"\D", "", rule))
        return len(text) <= limit if rule.startswith("at most") else len(text) > limit
    if kind == "name":
        # As words alone, so that signs between them do not count.
        name, words = (" ".join(["", *re.findall(r"[^\W_]+", part), ""]) for part in (rule.casefold(), folded))
        return name in words
    run = next((run for run in _RUNS if re.fullmatch(f"{run}+", rule)), None)
    if run is not None and re.search(f"(?<!{run}){re.escape(rule)}(?!{run})", folded):
        return True
    # White space, and pairs of characters of scripts without spaces.
    return (run is None or (not rule.isascii() and len(rule) == 2)) and rule in folded
