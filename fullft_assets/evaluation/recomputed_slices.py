"""The slices of a stored evaluation, computed a second time: which rows they have, and what each system scores on them.

It shares no code with the evaluation: see `verification`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fullft_assets.documents.aliases import alias
from fullft_assets.evaluation.recomputation import FINETUNED, Labels, Pair, Recomputed, effective_groups
from fullft_assets.examples.language import language_of
from fullft_assets.snapshot import Split, load_values, read_index
from fullft_assets.store import Manifest, Store

_LENGTHS = re.compile(r"([\d,]+) to ([\d,]+) characters")
#: Columns of the rows by kind of slice; a kind that begins with `field` is the user's own.
_COLUMNS = ("source", "domain", "annotator")


def slice_numbers(
    stored: Mapping[str, Any], recomputed: Recomputed, values: Mapping[str, Sequence[str | None]], texts: Sequence[str]
) -> Iterator[Pair]:
    """Yield (name, as stored, as recomputed): sizes, scores and gains of each slice.

    Args:
        stored: the field `slices` of evaluation.json.
        values: kind -> what each row has of it (see `values_of`).
        texts: of the rows.
    """
    metric, rival = stored["metric"], stored["rival"]
    for each in stored["found"]:
        kind, name = each["kind"], each["name"]
        title = f"slice {kind} {name!a}"
        if kind == "label":
            assert isinstance(recomputed, Labels), "only rows with labels have slices by label"
            mass = recomputed.of_label(name)
            rows = np.flatnonzero(mass)
            part, mass = recomputed.part(rows), mass[rows]
            scores: list[float | None] = [recomputed.label_f1(name, system) for system in (FINETUNED, rival)]
        else:
            rows = _rows_of(kind, name, values, texts)
            part = recomputed.part(rows)
            mass = part.mass(metric)
            scores = [part.score(metric, system) for system in (FINETUNED, rival)]
        yield f"rows of {title}", each["num_rows"], len(rows)
        yield f"groups of {title}", each["num_groups"], len(set(part.groups))
        yield f"effective groups of {title}", each["effective_groups"], effective_groups(mass * part.weights, part.groups)
        ours, theirs = scores
        if ours is not None and theirs is not None:
            yield f"score of {title}", each["score"]["estimate"], ours
            yield f"score of the rival on {title}", each["rival"]["estimate"], theirs
            yield f"gain on {title}", each["gain"]["estimate"], ours - theirs
    measured = Counter(each["kind"] for each in stored["found"])
    for kind, given in values.items():
        different = {value for value in given if value is not None}
        if different and not (len(different) == 1 and None not in given):
            yield f"small slices by {kind}", stored["num_small"].get(kind, 0), len(different) - measured[kind]


def values_of(
    store: Store, snapshot: Manifest, report: Manifest, kinds: Sequence[str], slice_by: str | None, truth: Split
) -> dict[str, list[str | None]]:
    """Return what each row has of the kinds of slice that are values: kind -> value; a length is in a slice's own name."""
    found: dict[str, list[str | None]] = {}
    for kind in kinds:
        column = "slice_by" if kind == f"field {slice_by}" else kind
        if column in (*_COLUMNS, "slice_by"):
            by_id = load_values(store, snapshot, "test", column)
            given = [by_id[id_] for id_ in truth.ids]
            found[kind] = [alias(value) if column == "source" and value is not None else value for value in given]
        elif kind == "language":
            found[kind] = [language_of(text) for text in truth.texts]
        elif kind == "champion's test rows":
            index = read_index(store, store.load(store.load(report.metadata["incumbent"]).metadata["snapshot"]))
            pairs = zip(index["id"].to_pylist(), index["split"].to_pylist(), strict=True)
            judged = {id_ for id_, split in pairs if split == "test"}
            found[kind] = ["rows that it was judged on" if id_ in judged else "rows that came since" for id_ in truth.ids]
    return found


def _rows_of(kind: str, name: str, values: Mapping[str, Sequence[str | None]], texts: Sequence[str]) -> np.ndarray:
    if kind == "length" and (ends := _LENGTHS.fullmatch(name)):
        low, high = (int(end.replace(",", "")) for end in ends.groups())
        return np.array([row for row, text in enumerate(texts) if low <= len(text) <= high], np.int64)
    return np.array([row for row, value in enumerate(values.get(kind, ())) if value == name], np.int64)
