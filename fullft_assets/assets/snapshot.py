"""snapshot: labeled_examples, tokenized_chunks -> training_snapshot."""

from collections.abc import Mapping
from typing import Any

import dagster as dg

from fullft_assets import snapshot
from fullft_assets.assets.case import Case, markdown_table
from fullft_assets.checking.group_candidates import suggested_group
from fullft_assets.examples.labels import may_be_named
from fullft_assets.resources import latest, one_line_errors, report_link
from fullft_assets.store import Manifest, Store


def build(case: Case) -> list[dg.AssetsDefinition]:
    """Return the assets of this stage."""

    @dg.asset(
        key=case.key("training_snapshot"),
        ins={
            name: dg.AssetIn(case.key(name), input_manager_key=case.io_key)
            for name in ("labeled_examples", "tokenized_chunks")
        },
        description=(
            "Exactly which rows train, validate and test: deduplicated, split without leaks, frozen under a"
            " digest."
        ),
        code_version=case.code_version(snapshot.VERSION, "snapshot"),
        kinds={"parquet"},
        check_specs=case.checks(
            "training_snapshot", (*snapshot.checks_of(case.settings), snapshot.VERDICT_IS_POSSIBLE)
        ),
        **case.shared(),
    )
    def training_snapshot(
        context: dg.AssetExecutionContext,
        labeled_examples: dict[str, Manifest],
        tokenized_chunks: dict[str, Manifest],
    ):
        store = case.store(context)
        with one_line_errors(store, case.name):
            arriving = _arriving(case, context.instance, store, labeled_examples, tokenized_chunks)
            if arriving:
                context.log.info(
                    f"{len(arriving):,} batches that are being ingested wait for the next snapshot:"
                    f" {', '.join(arriving[:5])}"
                )
            examples = {name: batch for name, batch in labeled_examples.items() if name not in arriving}
            manifest = snapshot.take(
                store,
                case.use_case,
                examples,
                tokenized_chunks,
                suggest_group=lambda: suggested_group(case.use_case),
            )
        metadata = snapshot.SnapshotMetadata.of(manifest)
        shown: dict[str, dg.MetadataValue] = {
            "data_report": report_link(case.use_case, store, manifest),
        }
        if metadata.labels and may_be_named(metadata.labels):
            shown["label_counts"] = dg.MetadataValue.md(markdown_table(_labels(metadata)))
        return case.result(
            manifest,
            "training_snapshot",
            store,
            shown,
            checks=[snapshot.verdict_check(metadata, case.settings)],
        )

    return [training_snapshot]


def _arriving(
    case: Case,
    instance: dg.DagsterInstance,
    store: Store,
    examples: Mapping[str, Manifest],
    chunks: Mapping[str, Manifest],
) -> list[str]:
    """Return the batches that are between two steps of their ingestion, where that leaves any other one.

    A snapshot that was taken at such a moment failed, and the run of the model or of the daily evaluation
    with it.
    """
    waiting = [name for name, manifest in examples.items() if name not in chunks and not manifest.red_gates]
    if not waiting or len(waiting) == len(examples):
        return []
    runs = instance.get_runs(dg.RunsFilter(tags={"dagster/partition": waiting}))
    in_flight = {run.tags["dagster/partition"] for run in runs if not run.is_finished}
    return [
        name
        for name in waiting
        if name in in_flight or latest(store, case.name, "tokenized_chunks", name) is not None
    ]


def _labels(metadata: snapshot.SnapshotMetadata) -> list[dict[str, Any]]:
    """Return one row a label: its rows by split, and how many equal groups its test rows are worth."""
    counts = metadata.label_counts
    tested = {
        statistics.label: statistics.k_eff
        for statistics in metadata.label_statistics
        if statistics.split == "test"
    }
    return [
        {
            "label": label,
            **{split: counts[split].get(label, 0) for split in counts},
            "test k_eff": tested.get(label, 0),
        }
        for label in metadata.labels
    ]
