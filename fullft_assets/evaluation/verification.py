"""Recomputes the numbers of a stored evaluation from the stored predictions and the snapshot's labels.

It shares no code with the evaluation, so that a mistake of one does not hide in the other: the modules
`recomputation` and `recomputed_*` do the sums. What they return has the fields of evaluation.json; a number
there that they do not have is named as not recomputed, so that no new one goes unnoticed.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fullft_assets.checkpoint.metadata import CheckpointMetadata
from fullft_assets.errors import DataError, StoreError
from fullft_assets.evaluation.metadata import EvaluationMetadata
from fullft_assets.evaluation.recomputation import FINETUNED, Asked, Tree
from fullft_assets.evaluation.recomputed_answers import answer_fields, drawn_answers
from fullft_assets.evaluation.recomputed_label_errors import label_errors
from fullft_assets.evaluation.recomputed_labels import RecomputedLabels, answered_items, stored_items
from fullft_assets.evaluation.recomputed_leakage import Labelled, leakage_fields
from fullft_assets.evaluation.recomputed_slices import slice_fields, values_of
from fullft_assets.evaluation.recomputed_tokens import Tokens
from fullft_assets.snapshot import SnapshotMetadata, Split, label_names, load_messages, load_split
from fullft_assets.store import Manifest, Store
from fullft_assets.store.hashing import digest, file_digest
from fullft_assets.task import TASKS

#: Sums in another order differ in the last digits, and probabilities are stored in single precision.
_RELATIVE, _ABSOLUTE = 1e-6, 1e-7
#: Fields of evaluation.json that the metadata repeats.
_SHARED = (
    "num_test_rows", "num_test_groups", "effective_groups", "calibration_error", "num_test_tokens",
    "num_rows_without_tokens", "labels_a_row",
)  # fmt: skip
#: Of the metadata: what training cost is no number of its predictions.
_OF_OTHER_STAGES = ("cost_usd",)
_MISSING = object()


@dataclass
class Verification:
    """The result of recomputing.

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

    def compare_fields(self, stored: Any, recomputed: Any, path: str = "") -> None:
        """Compare every number of a stored tree, and what else is recomputed, with the tree of the
        same form.
        """
        if not _has_number(stored) and recomputed is _MISSING:
            return
        if recomputed is _MISSING:
            self.unverified.append(path)
        elif isinstance(stored, Mapping) and isinstance(recomputed, Mapping):
            for name, value in stored.items():
                self.compare_fields(value, recomputed.get(name, _MISSING), f"{path}.{name}" if path else name)
        elif isinstance(stored, list) and isinstance(recomputed, list) and len(stored) == len(recomputed):
            for number, pair in enumerate(zip(stored, recomputed, strict=True)):
                self.compare_fields(*pair, f"{path}[{number}]")
        elif isinstance(stored, list) and isinstance(recomputed, list):
            self.compare(f"length of {path}", len(stored), len(recomputed))
        else:
            self.compare(path, stored, recomputed)

    def compare_column(self, name: str, stored: Sequence[Any], recomputed: Sequence[Any]) -> None:
        """Likewise with a column of the predictions as one number; the first row that differs is named."""
        differing = [
            row for row, pair in enumerate(zip(stored, recomputed, strict=True)) if pair[0] != pair[1]
        ]
        if not differing:
            self.num_agreeing += 1
            return
        row = differing[0]
        self.differences.append(
            f"{name} of {len(differing):,} rows, the first is row {row} of predictions.parquet: stored"
            f" {_shown(stored[row])}, recomputed {_shown(recomputed[row])}"
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
    found, snapshot = Verification(), _snapshot_of(store, report)
    made = _Stored(store, report, snapshot)
    _compare_artifacts(found, store, report, snapshot)
    for name, mine, theirs in (("group", made.rows["group"], made.truth.groups), *made.recomputed.columns()):
        found.compare_column(name, mine, theirs)
    _compare_external(found, store, report, made.rows, made.truth)
    found.compare_fields(made.evaluation, recompute(made, found))
    _compare_metadata(found, made)
    _compare_verdict(found, made)
    _compare_label_errors(found, made)
    return found


class _Stored:
    """An evaluation as it is stored, with the test rows that it was made on.

    Attributes:
        truth: the snapshot's rows, in the order of the predictions.
    """

    def __init__(self, store: Store, report: Manifest, snapshot: Manifest):
        self.store, self.report, self.snapshot, self.folder = store, report, snapshot, store.folder(report)
        self.evaluation: dict[str, Any] = json.loads(
            (self.folder / "evaluation.json").read_text(encoding="utf-8")
        )
        self.rows = _read(self.folder / "predictions.parquet")
        self.test = load_split(store, snapshot, "test")
        self.truth = self.test.select(_positions(self.rows["id"], self.test, report))
        self.names = label_names(snapshot)
        self.asked = Asked(report.settings["evaluation"], report.seed, self.evaluation["primary_metric"])
        target = TASKS.get(self.evaluation["task"]).target
        self.recomputed = (
            Tokens(self.rows)
            if target is None
            else RecomputedLabels(self.rows, self.truth, self.names, target, self._thresholds(target))
        )

    @cached_property
    def validation(self) -> _Columns | None:
        """What the temperature was fitted on."""
        path = self.folder / "validation.parquet"
        return _read(path) if path.is_file() else None

    @property
    def checkpoint(self) -> Manifest:
        """The fine-tuned model."""
        return self.store.load(EvaluationMetadata.of(self.report).checkpoint)

    @property
    def model(self) -> Path:
        """Its folder."""
        return self.store.folder(self.checkpoint) / "model"

    @property
    def systems(self) -> list[str]:
        """The systems that are compared."""
        return list(self.evaluation["scores"][self.asked.primary])

    def _thresholds(self, target: str) -> dict[str, float] | None:
        if target != "labels":
            return None
        config = json.loads((self.model / "config.json").read_text(encoding="utf-8"))
        known = {
            config["id2label"][str(number)]: value for number, value in enumerate(config["label_thresholds"])
        }
        return {name: known.get(name, 1.0) for name in self.names}


def recompute(made: _Stored, found: Verification) -> Tree:
    """Return the fields of evaluation.json as they should be."""
    stored, recomputed, asked, settings = made.evaluation, made.recomputed, made.asked, made.report.settings
    scores, gains = {}, {}
    for metric, systems in stored["scores"].items():
        measured = recomputed.measured(metric, list(systems), asked)
        if measured is not None:
            scores[metric], gains[metric] = measured
    deciding = {name: each["estimate"] for name, each in scores[asked.primary].items()}
    best = max(stored["baselines"], key=lambda name: deciding[name])
    bar = max(settings["release"]["min_gain_over_baselines"], 0.0)
    justified = all(gains[asked.primary][name]["low"] > bar for name in stored["baselines"])
    tree: Tree = {
        "confidence": asked.settings["confidence"],
        "resamples": asked.settings["resamples"],
        "num_test_rows": len(recomputed.groups),
        "num_test_groups": len(set(recomputed.groups)),
        "effective_groups": recomputed.effective(asked.primary),
        "influences": (
            asked.sampling(recomputed.groups).influences(
                deciding[FINETUNED], recomputed.sums(asked.primary, FINETUNED)
            )
        ),
        "groups_digest": digest(sorted(set(recomputed.groups))),
        "has_champion": "champion" in deciding,
        "scores": scores,
        "gains": gains,
        "justification": {
            "best_baseline": best,
            "gain": gains[asked.primary][best],
            "justified": justified,
            "sentence": _with_numbers(
                stored["justification"]["sentence"], scores, gains[asked.primary][best], asked.primary, best
            ),
        },
        "forgetting": _forgetting(made.checkpoint),
        **recomputed.fields(asked, best),
    }
    if stored["slices"] is not None:
        tree["slices"] = _slices(made, "champion" if tree["has_champion"] else best)
    if isinstance(recomputed, RecomputedLabels):
        if stored["robustness"] is not None:
            tree["robustness"] = recomputed.robustness(stored["robustness"], asked)
        if stored["leakage"] is not None:
            train = load_split(made.store, made.snapshot, "train", windows=False)
            ours, theirs = (Labelled.of(rows, len(made.names), asked.seed) for rows in (made.truth, train))
            tree["leakage"] = leakage_fields(stored["leakage"], theirs, ours, made.names, asked.seed)
        if stored.get("temperature") is not None and made.validation is not None:
            tree |= recomputed.fitted(
                stored["temperature"], made.validation, asked.settings["calibration_bins"]
            )
    if stored.get("answers") is not None:
        tree["answers"] = _answers(found, made)
    return tree


def _with_numbers(sentence: str, scores: Tree, gain: Mapping[str, float], primary: str, best: str) -> str:
    """Return a sentence that has the numbers that it should, in order; else these numbers."""
    numbers = [f"{scores[primary][system]['estimate']:.3f}" for system in (FINETUNED, best)]
    numbers += [f"{gain[end]:+.3f}" for end in ("estimate", "low", "high")]
    if "perplexity" in scores:
        numbers += [f"{scores['perplexity'][system]['estimate']:.2f}" for system in (FINETUNED, best)]
    return sentence if re.search(".*".join(map(re.escape, numbers)), sentence) else ", ".join(numbers)


def _forgetting(checkpoint: Manifest) -> Tree | None:
    """Return what the trainings since the base model say that they forgot."""
    made = CheckpointMetadata.of(checkpoint)
    ends = [
        (each.general_before, each.general_loss or each.general_distance) for each in (*made.lineage, made)
    ]
    if None in ends[-1]:
        return None
    rises = [after - before for before, after in ends if before is not None and after is not None]
    return {
        "measure": "loss" if made.general_loss is not None else "distance",
        "before": ends[-1][0],
        "after": ends[-1][1],
        "rise": sum(rises),
        "num_trainings": len(ends),
        "num_unmeasured": len(ends) - len(rises),
        "training_budget": checkpoint.settings.get("training", {}).get("max_general_rise"),
    }


def _slices(made: _Stored, rival: str) -> Tree:
    stored = made.evaluation["slices"]
    kinds = [*dict.fromkeys([*(each["kind"] for each in stored["found"]), *stored["num_small"]])]
    field_of_user = next((kind.removeprefix("field ") for kind in kinds if kind.startswith("field ")), None)
    rows = made.truth.select(made.recomputed.positions)
    values = values_of(made.store, made.snapshot, made.report, kinds, field_of_user, rows)
    return slice_fields(stored, made.recomputed, values, rival, made.asked)


def _answers(found: Verification, made: _Stored) -> Tree:
    """Return the scores of what is in answers.jsonl, against the snapshot's conversations."""
    from tokenizers import Tokenizer

    rows = [
        json.loads(line) for line in (made.folder / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    by_id = load_messages(made.store, made.snapshot, "test")
    truth = [
        [turn["content"] for turn in by_id[row["id"]] if turn["role"] == "assistant"][-1] for row in rows
    ]
    group_of = dict(zip(made.test.ids, made.test.groups, strict=True))
    found.compare_column(
        "group of answers.jsonl", [row["group"] for row in rows], [group_of.get(row["id"]) for row in rows]
    )
    tree = answer_fields(made.evaluation["answers"], rows, truth, [row["group"] for row in rows], made.asked)
    if FINETUNED in made.evaluation["rescaled"]:
        # Lengths are counted with the snapshot's tokenizer, which this model does not have.
        return tree
    tokenizer = Tokenizer.from_file(str(made.model / "tokenizer.json"))
    conversations = [by_id[id_] for id_ in made.truth.ids]
    drawn, bounds = drawn_answers(
        conversations,
        made.truth.groups,
        made.asked,
        lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids),
    )
    found.compare("ids of answers.jsonl", [row["id"] for row in rows], [made.truth.ids[row] for row in drawn])
    return tree | bounds


def _compare_metadata(found: Verification, made: _Stored) -> None:
    """Compare the numbers of the manifest with those of evaluation.json, which are recomputed."""
    stored, primary = made.evaluation, made.asked.primary
    gain, champion = stored["justification"]["gain"], stored["gains"][primary].get("champion")
    expected: Tree = {name: stored.get(name) for name in _SHARED if name in stored} | {
        "num_test_rows_left_out": len(made.test) - len(made.truth),
        "gain_over_best_baseline": gain["estimate"],
        "gain_over_best_baseline_low": gain["low"],
        "gain_over_best_baseline_high": gain["high"],
        "gain_over_champion": None if champion is None else champion["estimate"],
        "best_baseline": stored["justification"]["best_baseline"],
        **{
            name: value
            for name, value in CheckpointMetadata.of(made.checkpoint).as_dict().items()
            if name.startswith("general_")
        },
    }
    for name, values in stored["scores"].items():
        ours = values[FINETUNED]
        expected |= {name: ours["estimate"], f"{name}_low": ours["low"], f"{name}_high": ours["high"]}
        expected |= {
            f"{system}_{name}": each["estimate"] for system, each in values.items() if system != FINETUNED
        }
    if "errors" in stored:
        expected |= {
            "num_test_spans": stored["num_spans"],
            "num_test_rows_without_spans": stored["num_rows_without_spans"],
            **stored["errors"],
        }
    if "changes" in stored:
        better, worse, equal = (stored["changes"][f"num_{side}"] for side in ("better", "worse", "equal"))
        share = better / (better + worse + equal)
        expected |= {
            "num_rows_better_than_base": better,
            "num_rows_worse_than_base": worse,
            "share_better_than_base": share,
        }
    known = {name: value for name, value in made.report.metadata.items() if name not in _OF_OTHER_STAGES}
    found.compare_fields(known, expected, "metadata")


def _compare_verdict(found: Verification, made: _Stored) -> None:
    """Compare which gates pass that are bars for one number, and the answer that follows of all gates."""
    decision = json.loads((made.folder / "decision.json").read_text(encoding="utf-8"))
    stored, release, primary = made.evaluation, made.report.settings["release"], made.asked.primary
    lowest = min(stored["gains"][primary][name]["low"] for name in stored["baselines"])
    passes = {
        "test_set_is_large_enough": (
            stored["effective_groups"] >= release["min_effective_groups"] and stored["measurable_labels"] != 0
        ),
        "beats_baselines": lowest > release["min_gain_over_baselines"],
        "score_is_sufficient": stored["scores"][primary][FINETUNED]["estimate"] >= release["min_score"],
        "is_calibrated": (stored["calibration_error"] or 0.0) <= (release["max_calibration_error"] or 1.0),
        "forgetting_is_within_budget": is_within_budget(stored["forgetting"], release["max_forgetting"]),
    }
    failing = [reason for reason in decision["reasons"] if not reason["passed"]]
    for reason in decision["reasons"]:
        found.compare(
            f"gate {reason['gate']}", reason["passed"], passes.get(reason["gate"], reason["passed"])
        )
    if any(reason["gate"] == "test_set_is_large_enough" for reason in failing):
        answer = "insufficient_data"
    else:
        answer = (
            "promote"
            if not failing
            else "inconclusive"
            if all(reason["is_undecided"] for reason in failing)
            else "keep"
        )
    for place, value in (
        ("decision.json", decision["answer"]),
        ("the metadata", EvaluationMetadata.of(made.report).answer),
    ):
        found.compare(f"answer of {place}", value, answer)


def is_within_budget(forgetting: Tree | None, limit: float | None) -> bool:
    """Return whether what was forgotten is within the limit, else the training's own, else twice the
    perplexity; a distance has no limit.

    Args:
        limit: `release.max_forgetting`; where it is set, what was not measured is not within it.
    """
    if forgetting is None:
        return limit is None
    limits = (
        limit,
        forgetting["training_budget"],
        math.log(2) if forgetting["measure"] == "loss" else math.inf,
    )
    return forgetting["rise"] <= next(each for each in limits if each is not None)


def _compare_label_errors(found: Verification, made: _Stored) -> None:
    """Compare the rows for annotators with those that the stored probabilities give, and the validation rows
    with the snapshot's.
    """
    if not isinstance(made.recomputed, RecomputedLabels) or "probabilities" not in made.rows:
        return
    ids, labels, probabilities = made.truth.ids, made.rows["label"], made.rows["probabilities"]
    if made.validation is not None:
        rows = load_split(made.store, made.snapshot, "validation", windows=False)
        found.compare("ids of validation.parquet", made.validation["id"], rows.ids)
        if made.validation["id"] == rows.ids:
            true = [made.names[label] for label in rows.labels.tolist()]
            found.compare_column("label of validation.parquet", made.validation["label"], true)
        ids, labels = [*ids, *made.validation["id"]], [*labels, *made.validation["label"]]
        probabilities = [*probabilities, *made.validation["probabilities"]]
    name = next((name for name in made.report.files if name.startswith("label_errors.")), None)
    mine = label_errors(ids, labels, np.array(probabilities), made.names)
    if mine is None:
        found.unverified.append("rows whose label is probably wrong (cleanlab is not installed)")
        return
    rows = [] if name is None else _list(made.folder / name)
    listed = {
        id_: {"label": label, "suggested": suggested, "probability": float(p)}
        for id_, label, suggested, p in (row.values() for row in rows)
    }
    found.compare("number of likely label errors", len(rows), len(mine))
    found.compare_fields(listed, {row.id: row.shown for row in mine}, name or "label_errors")
    order = {row.id: row.own for row in mine}
    ranks = [order.get(id_, 0.0) for id_ in listed]
    found.compare("order of likely label errors", ranks, sorted(ranks))


def _list(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a list for annotators: JSON lines or a table."""
    import csv

    with path.open(encoding="utf-8", newline="") as file:
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in file]
        delimiter = file.readline().rstrip("\n").removesuffix("probability")[-1:]
        file.seek(0)
        return list(csv.DictReader(file, delimiter=delimiter))


def _read(path: Path) -> _Columns:
    import pyarrow.parquet as pq

    return _Columns(pq.read_table(path).to_pydict(), path.name)


def _snapshot_of(store: Store, report: Manifest) -> Manifest:
    """Return the snapshot that a report was made on."""
    wanted = report.inputs["training_snapshot"]
    for snapshot in reversed(store.artifacts(report.case, "training_snapshot")):
        if snapshot.content_digest == wanted:
            return snapshot
        if wanted in [each.snapshot_digest for each in SnapshotMetadata.of(snapshot).erasures or []]:
            raise DataError(
                f"{report.ref}: rows of its snapshot were erased since, so its numbers cannot be recomputed;"
                " evaluate again"
            )
    raise StoreError(
        f"{report.ref}: its snapshot (content {wanted}) is not in the store, so its numbers cannot be"
        " recomputed"
    )


def _compare_artifacts(found: Verification, store: Store, report: Manifest, snapshot: Manifest) -> None:
    """Compare the models that the report names, and the files of what it was made from, with what is in the
    store.
    """
    known = EvaluationMetadata.of(report)
    named = {
        "finetuned_checkpoint": known.checkpoint,
        "champion": known.incumbent,
        "first_champion": known.anchor,
    }
    checked = [report, snapshot]
    for name, ref in named.items():
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


def _compare_external(
    found: Verification, store: Store, report: Manifest, rows: Mapping[str, list[Any]], truth: Split
) -> None:
    """Compare the predictions of external systems with the copies of their files."""
    wanted = report.inputs.get("external_predictions")
    if wanted is None:
        return
    kept = next(
        (
            made
            for made in store.artifacts(report.case, "external_predictions")
            if made.content_digest == wanted
        ),
        None,
    )
    if kept is None:
        found.unverified.append("answers of external systems, whose files' copies are gone")
        return
    for file in kept.files:
        name = file.removesuffix(".jsonl")
        lines = (store.folder(kept) / file).read_text(encoding="utf-8").splitlines()
        answers = {row["id"]: row[kept.settings["target"]] for row in map(json.loads, lines)}
        theirs = [
            answered_items(text, answers[id_]) for id_, text in zip(truth.ids, truth.texts, strict=True)
        ]
        found.compare_column(
            f"{name}.predicted", [stored_items(cell) for cell in rows[f"{name}.predicted"]], theirs
        )


def _positions(ids: Sequence[str], test: Split, report: Manifest) -> list[int]:
    """Return where each row of the predictions is among the snapshot's test rows."""
    position = {id_: number for number, id_ in enumerate(test.ids)}
    known = {id_ for id_ in ids if id_ in position}
    if len(known) < len(ids):
        raise DataError(
            f"{report.ref}/predictions.parquet: {len(ids) - len(known):,} of {len(ids):,} rows are no test"
            " rows of the snapshot, or are there twice; evaluate again"
        )
    return [position[id_] for id_ in ids]


class _Columns(dict[str, list[Any]]):
    def __init__(self, columns: Mapping[str, list[Any]], name: str):
        super().__init__(columns)
        self._name = name

    def __missing__(self, name: str) -> list[Any]:
        raise DataError(
            f"{self._name}: there is no column {name}, so the scores that rest on it cannot be recomputed;"
            " evaluate again"
        )


def _has_number(stored: Any) -> bool:
    if isinstance(stored, (Mapping, list)):
        return any(map(_has_number, stored.values() if isinstance(stored, Mapping) else stored))
    return isinstance(stored, (int, float)) and not isinstance(stored, bool)


def _agree(stored: Any, recomputed: Any) -> bool:
    if isinstance(stored, (int, float)) and isinstance(recomputed, (int, float)):
        return math.isclose(stored, recomputed, rel_tol=_RELATIVE, abs_tol=_ABSOLUTE)
    return stored == recomputed


def _shown(value: Any) -> str:
    """Return a value as a line shows it; names may hold any character."""
    if isinstance(value, set):
        value = sorted(value)
    return f"{value:.9g}" if isinstance(value, float) else ascii(value)
