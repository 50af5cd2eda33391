"""Recomputes the numbers of a stored evaluation from the stored predictions and the snapshot's labels.

It shares no code with the evaluation, so that a mistake of one does not hide in the other: `recomputation` does the sums.
Intervals are not recomputed; the estimate must lie within them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fullft_assets.errors import DataError, StoreError
from fullft_assets.evaluation.recomputation import (
    FINETUNED,
    Labels,
    Recomputed,
    Tokens,
    answered_items,
    effective_groups,
    group_weights,
    stored_items,
)
from fullft_assets.evaluation.recomputed_answers import answer_score
from fullft_assets.evaluation.recomputed_leakage import marker_numbers
from fullft_assets.evaluation.recomputed_slices import slice_numbers, values_of
from fullft_assets.snapshot import Split, label_names, load_messages, load_split
from fullft_assets.store import Manifest, Store
from fullft_assets.store.hashing import file_digest
from fullft_assets.task import TASKS

#: Sums in another order differ in the last digits, and probabilities are stored in single precision.
_RELATIVE, _ABSOLUTE = 1e-6, 1e-7
#: More rows are not searched for what gives labels away, but some drawn from them.
_MOST_SEARCHED = 10_000


@dataclass
class Verification:
    """What came of recomputing.

    Attributes:
        num_agreeing: numbers that are as they are stored.
        differences: one line for each other one.
        unverified: metrics that the stored predictions are not enough for.
    """

    num_agreeing: int = 0
    differences: list[str] = field(default_factory=list)
    unverified: list[str] = field(default_factory=list)

    def compare(self, name: str, stored: Any, recomputed: Any) -> None:
        """Count a number that agrees, and write a line on one that does not."""
        if _agree(stored, recomputed):
            self.num_agreeing += 1
        else:
            self.differences.append(f"{name}: stored {_shown(stored)}, recomputed {_shown(recomputed)}")

    def compare_column(self, name: str, stored: Sequence[Any], recomputed: Sequence[Any]) -> None:
        """Likewise with a column of the predictions as one number; the first row that differs is named."""
        differing = [row for row, pair in enumerate(zip(stored, recomputed, strict=True)) if pair[0] != pair[1]]
        if not differing:
            self.num_agreeing += 1
            return
        row = differing[0]
        self.differences.append(
            f"{name} of {len(differing):,} rows, the first is row {row} of predictions.parquet: stored {_shown(stored[row])}, "
            f"recomputed {_shown(recomputed[row])}"
        )

    @property
    def lines(self) -> list[str]:
        """What to print: each difference, or how many numbers agree."""
        lines = self.differences or [f"{self.num_agreeing:,} numbers agree"]
        return lines + ([f"not recomputed: {', '.join(self.unverified)}"] if self.unverified else [])


def verify(store: Store, report: Manifest) -> Verification:
    """Recompute the numbers of an `evaluation_report`.

    Raises:
        DataError: its rows are not among the test rows of the snapshot any more.
        StoreError: an artifact that it needs is gone.
    """
    import pyarrow.parquet as pq

    found, snapshot = Verification(), _snapshot_of(store, report)
    _compare_artifacts(found, store, report, snapshot)
    folder = store.folder(report)
    stored = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    rows = _Columns(pq.read_table(folder / "predictions.parquet").to_pydict())
    test = load_split(store, snapshot, "test")
    truth = test.select(_positions(rows["id"], test, report))
    found.compare("num_test_rows_left_out", report.metadata["num_test_rows_left_out"], len(test) - len(truth))
    target, names = TASKS.get(stored["task"]).target, label_names(snapshot)
    recomputed = Tokens(rows) if target is None else Labels(rows, truth, names, target)
    for name, mine, theirs in (("group", rows["group"], truth.groups), *recomputed.columns()):
        found.compare_column(name, mine, theirs)
    _compare_external(found, store, report, rows, truth)
    _compare_shared(found, stored, report, recomputed)
    _compare_slices(found, stored, store, snapshot, report, recomputed, truth)
    for name, mine, theirs in recomputed.numbers(stored, report):
        found.compare(name, mine, theirs)
    if stored.get("temperature") is not None and isinstance(recomputed, Labels):
        validation = _Columns(pq.read_table(folder / "validation.parquet").to_pydict())
        num_bins = report.settings["evaluation"]["calibration_bins"]
        for name, mine, theirs in recomputed.fitted(stored, validation, num_bins):
            found.compare(name, mine, theirs)
    _compare_leakage(found, stored.get("leakage"), recomputed, truth)
    if stored.get("answers") is not None:
        _compare_answers(found, stored["answers"], folder / "answers.jsonl", load_messages(store, snapshot, "test"), test)
    return found


def _snapshot_of(store: Store, report: Manifest) -> Manifest:
    """Return the snapshot that a report was made on."""
    wanted = report.inputs["training_snapshot"]
    for snapshot in reversed(store.artifacts(report.case, "training_snapshot")):
        if snapshot.content_digest == wanted:
            return snapshot
        if wanted in snapshot.replaces:
            raise DataError(f"{report.ref}: rows of its snapshot were erased since, so its numbers cannot be recomputed; evaluate again")
    raise StoreError(f"{report.ref}: its snapshot (content {wanted}) is not in the store, so its numbers cannot be recomputed")


def _compare_artifacts(found: Verification, store: Store, report: Manifest, snapshot: Manifest) -> None:
    """Compare the models that the report names, and the files of what it was made from, with what is in the store."""
    named = {"finetuned_checkpoint": "checkpoint", "champion": "incumbent", "first_champion": "anchor"}
    checked = [report, snapshot]
    for name, key in named.items():
        ref = report.metadata.get(key)
        if ref is None:
            continue
        try:
            made = store.load(ref)
        except StoreError as error:
            found.differences.append(f"{name}: {error}")
            continue
        found.compare(f"content of {name}", report.inputs[name], made.content_digest)
        if name == "finetuned_checkpoint":
            checked.append(made)
    for made in checked:
        folder = store.folder(made)
        for name, entry in made.files.items():
            found.compare(f"digest of {made.stage}/{name}", entry.sha256, file_digest(folder / name))


def _compare_external(found: Verification, store: Store, report: Manifest, rows: Mapping[str, list[Any]], truth: Split) -> None:
    """Compare the predictions of external systems with the copies of their files."""
    wanted = report.inputs.get("external_predictions")
    if wanted is None:
        return
    kept = next((made for made in store.artifacts(report.case, "external_predictions") if made.content_digest == wanted), None)
    if kept is None:
        found.unverified.append("answers of external systems, whose files' copies are gone")
        return
    for name in kept.metadata["num_rows"]:
        lines = (store.folder(kept) / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        answers = {row["id"]: row[kept.settings["target"]] for row in map(json.loads, lines)}
        theirs = [answered_items(text, answers[id_]) for id_, text in zip(truth.ids, truth.texts, strict=True)]
        found.compare_column(f"{name}.predicted", [stored_items(cell) for cell in rows[f"{name}.predicted"]], theirs)


def _compare_answers(
    found: Verification, stored: Mapping[str, Any], path: Path, conversations: Mapping[str, Sequence[Mapping[str, str]]], test: Split
) -> None:
    """Compare the scores of written answers with those of the stored texts against the snapshot's conversations."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    group_of = dict(zip(test.ids, test.groups, strict=True))
    groups = [group_of.get(row["id"]) for row in rows]
    found.compare("num_answers", stored["num_answers"], len(rows))
    found.compare("num_groups of answers", stored["num_groups"], len(set(groups)))
    found.compare_column("group of answers.jsonl", [row["group"] for row in rows], groups)
    truth = [[turn["content"] for turn in conversations[row["id"]] if turn["role"] == "assistant"][-1] for row in rows]
    known = [row["group"] for row in rows]
    found.compare("effective_groups of answers", stored["effective_groups"], effective_groups(group_weights(known), known))
    for metric, systems in stored["scores"].items():
        values = {system: answer_score(metric, truth, [row[system] for row in rows], known) for system in systems}
        for system, value in values.items():
            if value is None:
                found.unverified.append(f"{metric} of {system}")
                continue
            _compare_interval(found, f"{metric} of {system}", systems[system], value)
            ours = values[FINETUNED]
            if system != FINETUNED and ours is not None:
                _compare_interval(found, f"gain in {metric} over {system}", stored["gains"][metric][system], ours - value)


def _positions(ids: Sequence[str], test: Split, report: Manifest) -> list[int]:
    """Return where each row of the predictions is among the snapshot's test rows."""
    position = {id_: number for number, id_ in enumerate(test.ids)}
    known = {id_ for id_ in ids if id_ in position}
    if len(known) < len(ids):
        raise DataError(
            f"{report.ref}/predictions.parquet: {len(ids) - len(known):,} of {len(ids):,} rows are no test rows of the snapshot, or are there "
            "twice; evaluate again"
        )
    return [position[id_] for id_ in ids]


def _compare_shared(found: Verification, stored: Mapping[str, Any], report: Manifest, recomputed: Recomputed) -> None:
    """Compare what every evaluation has: sizes, scores, gains and what follows of them."""
    groups, primary = recomputed.groups, stored["primary_metric"]
    found.compare("num_test_rows", stored["num_test_rows"], len(groups))
    found.compare("num_test_groups", stored["num_test_groups"], len(set(groups)))
    found.compare("effective_groups", stored["effective_groups"], effective_groups(recomputed.mass(primary) * recomputed.weights, groups))
    scores: dict[str, dict[str, float]] = {}
    for metric, systems in stored["scores"].items():
        values = {system: recomputed.score(metric, system) for system in systems}
        if None in values.values():
            found.unverified.append(metric)
            continue
        scores[metric] = {system: value for system, value in values.items() if value is not None}
        for system, value in scores[metric].items():
            _compare_interval(found, f"{metric} of {system}", systems[system], value)
            shown = report.metadata.get(metric if system == FINETUNED else f"{system}_{metric}", value)
            found.compare(f"{metric} of {system} in the metadata", shown, value)
        for system, gain in stored["gains"][metric].items():
            _compare_interval(found, f"gain in {metric} over {system}", gain, scores[metric][FINETUNED] - scores[metric][system])
    justified, deciding = stored["justification"], scores[primary]
    best = max(stored["baselines"], key=lambda name: deciding[name])
    found.compare("best_baseline", justified["best_baseline"], best)
    _compare_interval(found, "gain over the best baseline", justified["gain"], deciding[FINETUNED] - deciding[best])


def _compare_slices(
    found: Verification,
    stored: Mapping[str, Any],
    store: Store,
    snapshot: Manifest,
    report: Manifest,
    recomputed: Recomputed,
    truth: Split,
) -> None:
    """Compare the rows and scores of each slice."""
    slices = stored.get("slices")
    if slices is None:
        return
    rows = truth.select(recomputed.positions)
    rival = "champion" if stored["has_champion"] else stored["justification"]["best_baseline"]
    found.compare("rival of the slices", slices["rival"], rival)
    kinds = [*dict.fromkeys([*(each["kind"] for each in slices["found"]), *slices["num_small"]])]
    field = next((kind.removeprefix("field ") for kind in kinds if kind.startswith("field ")), None)
    values = values_of(store, snapshot, report, kinds, field, rows)
    for name, mine, theirs in slice_numbers(slices, recomputed, values, rows.texts):
        found.compare(name, mine, theirs)


def _compare_leakage(found: Verification, stored: Mapping[str, Any] | None, recomputed: Recomputed, truth: Split) -> None:
    """Compare how often what gives labels away is right."""
    if stored is None or not isinstance(recomputed, Labels):
        return
    if len(truth) > _MOST_SEARCHED:
        found.unverified.append("what gives labels away, on rows drawn from the test rows")
        return
    for name, mine, theirs in marker_numbers(stored, recomputed, truth.texts):
        found.compare(name, mine, theirs)
    if stored["num_repeated"]:
        found.unverified.append("test rows that repeat training rows")


def _compare_interval(found: Verification, name: str, stored: Mapping[str, float], recomputed: float) -> None:
    found.compare(name, stored["estimate"], recomputed)
    low, high = stored["low"], stored["high"]
    if not low - _ABSOLUTE <= stored["estimate"] <= high + _ABSOLUTE:
        found.differences.append(f"{name}: stored {_shown(stored['estimate'])} is not in its interval {_shown(low)} to {_shown(high)}")


class _Columns(dict[str, list[Any]]):
    def __missing__(self, name: str) -> list[Any]:
        raise DataError(
            f"predictions.parquet: there is no column {name}, so the scores that rest on it cannot be recomputed; evaluate again"
        )


def _agree(stored: Any, recomputed: Any) -> bool:
    if isinstance(stored, (int, float)) and isinstance(recomputed, (int, float)):
        return math.isclose(stored, recomputed, rel_tol=_RELATIVE, abs_tol=_ABSOLUTE)
    return stored == recomputed


def _shown(value: Any) -> str:
    """Return a value as a line shows it; names may hold any character."""
    if isinstance(value, set):
        value = sorted(value)
    return f"{value:.9g}" if isinstance(value, float) else ascii(value)
