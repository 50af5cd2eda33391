"""The slices of a stored evaluation, computed a second time: which rows they have, and what each system
scores on them.

It shares no code with the evaluation: see `verification`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fullft_assets.checkpoint.metadata import CheckpointMetadata
from fullft_assets.documents.aliases import alias
from fullft_assets.evaluation.metadata import EvaluationMetadata
from fullft_assets.evaluation.recomputation import FINETUNED, Asked, Recomputed, Tree, effective_groups
from fullft_assets.evaluation.recomputed_labels import RecomputedLabels
from fullft_assets.evaluation.recomputed_tokens import quarter_edges
from fullft_assets.examples.language import language_of
from fullft_assets.snapshot import Split, load_values, read_index
from fullft_assets.store import Manifest, Store

#: Columns of the rows by kind of slice; a kind that begins with `field` is the user's own.
_COLUMNS = ("source", "domain", "annotator")


def slice_fields(
    stored: Mapping[str, Any],
    recomputed: Recomputed,
    values: Mapping[str, Sequence[str | None]],
    rival: str,
    asked: Asked,
) -> Tree:
    """Return sizes, scores and gains of each slice, and how many are too small.

    Args:
        stored: the field `slices` of evaluation.json, for the names of the slices.
        values: kind -> what each row has of it (see `values_of`).
        rival: the champion, else the best baseline.
    """
    found = [
        _slice(each["kind"], each["name"], stored["metric"], recomputed, values, rival, asked)
        for each in stored["found"]
    ]
    measured = Counter(each["kind"] for each in stored["found"])
    num_small = {}
    for kind, given in values.items():
        different = {value for value in given if value is not None}
        if len(different) > measured[kind] and not (len(different) == 1 and None not in given):
            num_small[kind] = len(different) - measured[kind]
    if (
        isinstance(recomputed, RecomputedLabels)
        and "label" in asked.settings["slices"]
        and len(recomputed.occurring) > measured["label"]
    ):
        num_small["label"] = len(recomputed.occurring) - measured["label"]
    return {"rival": rival, "found": found, "num_small": num_small}


def _slice(
    kind: str,
    name: str,
    metric: str,
    recomputed: Recomputed,
    values: Mapping[str, Sequence[str | None]],
    rival: str,
    asked: Asked,
) -> Tree:
    named: Tree = {"kind": kind, "name": name}
    if kind == "label":
        assert isinstance(recomputed, RecomputedLabels), "only rows with labels have slices by label"
        # Its F1 counts what was given to other rows, too.
        rows, part, mass = np.flatnonzero(recomputed.of_label(name)), recomputed, recomputed.of_label(name)
        pair = {
            system: (recomputed.label_f1(name, system), recomputed.label_sums(name, system))
            for system in (FINETUNED, rival)
        }
    else:
        rows = np.array([row for row, value in enumerate(values.get(kind, ())) if value == name], np.int64)
        if not len(rows):
            return {**named, "num_rows": 0}
        part = recomputed.part(rows)
        mass = part.mass(metric)
        scores = {system: part.score(metric, system) for system in (FINETUNED, rival)}
        pair = {
            system: (score, part.sums(metric, system))
            for system, score in scores.items()
            if score is not None
        }
    effective = effective_groups(mass * part.weights, part.groups)
    named |= {
        "num_rows": len(rows),
        "num_groups": len({recomputed.groups[row] for row in rows.tolist()}),
        "effective_groups": effective,
    }
    if len(pair) < 2:
        return named
    scores, gains = asked.sampling(part.groups).measured(
        metric if kind != "label" else "f1", pair, FINETUNED, effective
    )
    return {**named, "score": scores[FINETUNED], "rival": scores[rival], "gain": gains[rival]}


def values_of(
    store: Store,
    snapshot: Manifest,
    report: Manifest,
    kinds: Sequence[str],
    slice_by: str | None,
    truth: Split,
) -> dict[str, list[str | None]]:
    """Return what each row has of the kinds of slice that are values: kind -> value."""
    found: dict[str, list[str | None]] = {}
    for kind in kinds:
        column = "slice_by" if kind == f"field {slice_by}" else kind
        if column in (*_COLUMNS, "slice_by"):
            by_id = load_values(store, snapshot, "test", column)
            given = [by_id[id_] for id_ in truth.ids]
            found[kind] = [
                alias(value) if column == "source" and value is not None else value for value in given
            ]
        elif kind == "length":
            found[kind] = list(_lengths(truth.texts))
        elif kind == "language":
            found[kind] = [language_of(text) for text in truth.texts]
        elif kind == "champion's test rows":
            champion = EvaluationMetadata.of(report).incumbent
            assert champion is not None, "a kind of slice of evaluations with a champion"
            index = read_index(store, store.load(CheckpointMetadata.of(store.load(champion)).snapshot))
            pairs = zip(index["id"].to_pylist(), index["split"].to_pylist(), strict=True)
            judged = {id_ for id_, split in pairs if split == "test"}
            found[kind] = [
                "rows that it was judged on" if id_ in judged else "rows that came since" for id_ in truth.ids
            ]
    return found


def _lengths(texts: Sequence[str]) -> list[str]:
    """Return the quarter of the lengths that each text is in, in words."""
    lengths = [len(text) for text in texts]
    edges = quarter_edges(lengths)
    ends = [next(edge for edge in edges if length <= edge) for length in lengths]
    shortest = {
        end: min(length for length, other in zip(lengths, ends, strict=True) if other == end) for end in edges
    }
    return [f"{shortest[end]:,} to {end:,} characters" for end in ends]
