"""examples: raw documents -> valid labelled examples, and the quarantine of the rest with reasons.

The rules are Great Expectations on a *profile*: a narrow table of numbers, flags and hashes, one row a
document, without its text (validating text columns takes several times the time and memory).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fullft_assets.settings import ExamplesSettings, UseCaseSettings
from fullft_assets.store import CheckOutcome, Draft, Manifest, Outcome, Store

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from fullft_assets.use_case import UseCase

VERSION = "2"
#: Rules about one row; a row that breaks one is quarantined with the rule's reason.
ROW_RULES = {
    "rows_are_well_formed": "malformed row",
    "texts_are_present": "empty text",
    "text_lengths_are_in_bounds": "text too short or too long",
    "labels_are_present": "no label",
    "labels_are_known": "unknown label",
    "annotations_are_confident": "low annotation confidence",
    "ids_are_unique": "id occurs before in this batch",
    "texts_are_unique": "duplicate text",
    "equal_texts_have_equal_labels": "equal text with another label",
}
#: Rules about the batch; while one is red the batch goes no further.
BATCH_RULES = {
    "rows_are_accounted_for": "rows in = valid + quarantined",
    "quarantined_share_is_bounded": "most of the batch is usable",
}


@dataclass(frozen=True)
class Examined:
    """A batch after validation: `valid` + `quarantined` = what came in."""

    valid: pa.Table
    quarantined: pa.Table
    checks: list[CheckOutcome]
    label_counts: dict[str, int]


def validate(store: Store, use_case: UseCase, raw: Manifest) -> tuple[Manifest, Manifest]:
    """Validate a batch and write its valid examples and its quarantine, both also when empty.

    Returns:
        The artifacts `labeled_examples` and `quarantined_examples`.
    """
    import pyarrow.parquet as pq

    settings = use_case.settings
    examined: list[Examined] = []

    def examine_once() -> Examined:
        if not examined:
            documents = pq.read_table(store.folder(raw) / "documents.parquet")
            examined.append(examine(documents, settings.examples, raw.metadata["batch"]))
        return examined[0]

    def write_valid(draft: Draft) -> Outcome:
        found = examine_once()
        pq.write_table(found.valid, draft.path / "examples.parquet")
        metadata = {
            "batch": raw.metadata["batch"],
            "files": raw.metadata["files"],
            "num_rows": len(found.valid) + len(found.quarantined),
            "num_valid": len(found.valid),
            "num_quarantined": len(found.quarantined),
            "label_counts": found.label_counts,
        }
        return metadata, found.checks

    def write_quarantined(draft: Draft) -> Outcome:
        found = examine_once()
        pq.write_table(found.quarantined, draft.path / "quarantined.parquet")
        reasons = Counter(r for text in found.quarantined["reasons"].to_pylist() for r in text.split("; "))
        return {"batch": raw.metadata["batch"], "num_quarantined": len(found.quarantined), "reasons": dict(reasons.most_common())}, []

    shared = {
        "version": VERSION,
        "settings": key_settings(settings),
        "inputs": {"raw_documents": raw.content_digest},
        "seed": settings.seed,
    }
    valid = store.ensure(use_case.name, "labeled_examples", write_valid, **shared)
    return valid, store.ensure(use_case.name, "quarantined_examples", write_quarantined, **shared)


def key_settings(settings: UseCaseSettings) -> dict[str, Any]:
    """Return the settings that shape the examples."""
    return settings.examples.model_dump()


def text_hash(text: str) -> str:
    """Return 128 bits of the text's BLAKE2b as hex: the identity of a text across batches."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def examine(documents: pa.Table, settings: ExamplesSettings, batch_name: str) -> Examined:
    """Validate a batch of documents.

    Args:
        documents: table with `documents.COLUMNS`.
        settings: the rules' thresholds.
        batch_name: named in the messages of red checks.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    hashes = [None if text is None else text_hash(text) for text in documents["text"].to_pylist()]
    table = documents.append_column("text_hash", pa.array(hashes, pa.string()))
    frame = profile(table, settings)
    failures = run_expectations(frame, settings) if len(frame) else {}
    reasons: dict[int, list[str]] = {}
    for rule, reason in ROW_RULES.items():
        for row in failures.get(rule, []):
            reasons.setdefault(row, []).append(reason)
    is_bad = pa.array([row in reasons for row in range(len(table))], pa.bool_())
    valid = table.filter(pc.invert(is_bad)).drop_columns(["problem"])
    quarantined = table.filter(is_bad)
    quarantined = quarantined.append_column("reasons", pa.array(["; ".join(reasons[row]) for row in sorted(reasons)], pa.string()))
    checks = [_row_outcome(rule, failures.get(rule, []), table) for rule in ROW_RULES]
    checks += _batch_outcomes(len(table), valid, quarantined, settings, batch_name)
    return Examined(valid, quarantined, checks, dict(Counter(valid["label"].to_pylist()).most_common()))


def profile(table: pa.Table, settings: ExamplesSettings) -> pd.DataFrame:
    """Return the narrow table that the expectations run on: no text, one row a document.

    Only a sound row can make another one a duplicate: a broken first delivery must not shadow the good one.
    Of equal texts the one of the smallest group, then id, stays, whatever the order of arrival.
    """
    import pandas as pd

    frame = pd.DataFrame(
        {
            "well_formed": [problem is None for problem in table["problem"].to_pylist()],
            "num_characters": [None if t is None or not t.strip() else len(t) for t in table["text"].to_pylist()],
            "label": pd.Series(table["label"].to_pylist(), dtype=object),
            "confidence": pd.Series(table["confidence"].to_pylist(), dtype=float),
            "text_hash": pd.Series(table["text_hash"].to_pylist(), dtype=object),
            "id": pd.Series(table["id"].to_pylist(), dtype=object),
        }
    )
    frame["num_characters"] = frame["num_characters"].astype(float)
    sound = frame["well_formed"] & frame["num_characters"].between(settings.min_characters, settings.max_characters)
    sound &= frame["label"].notna() if settings.labels is None else frame["label"].isin(settings.labels)
    sound &= ~frame["confidence"].lt(settings.min_confidence)
    frame["repeats_id"] = sound & frame["id"].where(sound).duplicated(keep="first")
    labels_a_text = frame[sound].groupby("text_hash")["label"].nunique()
    frame["conflicts"] = sound & frame["text_hash"].map(labels_a_text).fillna(0).gt(1)
    group = pd.Series([group or "" for group in table["group"].to_pylist()], dtype=object)
    usable = frame.assign(group=group)[sound & ~frame["conflicts"] & ~frame["repeats_id"]]
    kept_first = usable.sort_values(["group", "id"], kind="stable")
    frame["repeats_text"] = kept_first["text_hash"].duplicated(keep="first").reindex(frame.index, fill_value=False)
    return frame.drop(columns=["id", "text_hash"])


def run_expectations(frame: pd.DataFrame, settings: ExamplesSettings) -> dict[str, list[int]]:
    """Return the row numbers that break each rule, as Great Expectations finds them.

    A first pass only counts; the rows are listed in a second one, for the rules that failed.
    """
    import great_expectations as gx

    gxe = gx.expectations
    suite = {
        "rows_are_well_formed": gxe.ExpectColumnValuesToBeInSet(column="well_formed", value_set=[True]),
        "texts_are_present": gxe.ExpectColumnValuesToNotBeNull(column="num_characters"),
        "text_lengths_are_in_bounds": gxe.ExpectColumnValuesToBeBetween(
            column="num_characters", min_value=settings.min_characters, max_value=settings.max_characters
        ),
        "labels_are_present": gxe.ExpectColumnValuesToNotBeNull(column="label"),
        "annotations_are_confident": gxe.ExpectColumnValuesToBeBetween(column="confidence", min_value=settings.min_confidence),
        "ids_are_unique": gxe.ExpectColumnValuesToBeInSet(column="repeats_id", value_set=[False]),
        "texts_are_unique": gxe.ExpectColumnValuesToBeInSet(column="repeats_text", value_set=[False]),
        "equal_texts_have_equal_labels": gxe.ExpectColumnValuesToBeInSet(column="conflicts", value_set=[False]),
    }
    if settings.labels is not None:
        suite["labels_are_known"] = gxe.ExpectColumnValuesToBeInSet(column="label", value_set=settings.labels)
    failed = [rule for rule, result in _validate(frame, suite, "BASIC").items() if not result["success"]]
    complete = _validate(frame, {rule: suite[rule] for rule in failed}, "COMPLETE") if failed else {}
    return {rule: sorted(result["result"]["unexpected_index_list"]) for rule, result in complete.items()}


def _validate(frame: pd.DataFrame, suite: dict[str, Any], detail: str) -> dict[str, dict[str, Any]]:
    import great_expectations as gx

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}
    asset = context.data_sources.add_pandas("profile").add_dataframe_asset("documents")
    batch = asset.add_batch_definition_whole_dataframe("batch").get_batch({"dataframe": frame})
    # The result's order is not the suite's: the rule's name travels in `meta`.
    expectations = [expectation.copy(update={"meta": {"rule": rule}}) for rule, expectation in suite.items()]
    results = batch.validate(
        gx.ExpectationSuite(name="examples", expectations=expectations),
        result_format={"result_format": detail, "exclude_unexpected_values": True},
    )
    found = {}
    for result in results.results:
        if result.exception_info and result.exception_info.get("raised_exception"):
            raise RuntimeError(f"expectation {result.expectation_config.meta['rule']} failed to run: {result.exception_info}")
        found[result.expectation_config.meta["rule"]] = result.to_json_dict()
    return found


def _row_outcome(rule: str, rows: list[int], table: pa.Table) -> CheckOutcome:
    places = [f"{table['source'][row].as_py()}:{table['row'][row].as_py()}" for row in rows[:5]]
    description = ""
    if rows:
        more = f" and {len(rows) - len(places):,} more" if len(rows) > len(places) else ""
        description = (
            f"{len(rows):,} of {len(table):,} rows quarantined ({ROW_RULES[rule]}): {', '.join(places)}{more}; "
            "mend them in the source and deliver the file again"
        )
    return CheckOutcome(
        name=rule,
        passed=not rows,
        severity="warn",
        description=description,
        metadata={"num_rows": len(table), "num_failed": len(rows)},
    )


def _batch_outcomes(
    num_rows: int, valid: pa.Table, quarantined: pa.Table, settings: ExamplesSettings, batch_name: str
) -> list[CheckOutcome]:
    share = len(quarantined) / num_rows if num_rows else 1.0
    bounded = share <= settings.max_quarantined_share and len(valid) > 0
    reasons = Counter(r for text in quarantined["reasons"].to_pylist() for r in text.split("; ")).most_common(1)
    why = f", most often: {reasons[0][0]}" if reasons else ""
    finding = f"{len(quarantined):,} of {num_rows:,} rows quarantined{why}" if num_rows else "its files hold no rows"
    return [
        CheckOutcome(
            name="rows_are_accounted_for",
            passed=num_rows == len(valid) + len(quarantined),
            description=f"{num_rows:,} in = {len(valid):,} valid + {len(quarantined):,} quarantined",
            metadata={"num_rows": num_rows, "num_valid": len(valid), "num_quarantined": len(quarantined)},
        ),
        CheckOutcome(
            name="quarantined_share_is_bounded",
            passed=bounded,
            description=""
            if bounded
            else f"batch {batch_name}: {finding}; mend the source and deliver it again"
            + (", or raise examples.max_quarantined_share" if len(valid) else ""),
            metadata={"quarantined_share": share},
        ),
    ]
