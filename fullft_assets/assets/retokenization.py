"""retokenization: labeled_examples -> tokenized_chunks of every batch that needs it, in one run.

A new tokenizer (another base model, added tokens) or other windows make every batch's chunks stale, but not
its documents and examples. A backfill would start a run for each of up to 10,000 batches; this op tokenises
them one after the other, and emits the events that such runs would have emitted.
"""

from collections.abc import Iterator

import dagster as dg

from fullft_assets import chunks
from fullft_assets.assets.case import Case
from fullft_assets.assets.chunks import code_version
from fullft_assets.chunks import ingestion
from fullft_assets.resources import latest_by_partition, one_line_errors, set_latest
from fullft_assets.store import Manifest, Store

STAGES = ("raw_documents", "labeled_examples", "tokenized_chunks")


def retokenize(case: Case, context: dg.OpExecutionContext) -> Iterator:
    """Tokenise every batch that needs it and yield the events of it; when it is cut short, the next run
    continues where it stopped.
    """
    store = case.store(context)
    with one_line_errors(store, case.name):
        raw, labeled, tokenized = (latest_by_partition(store, case.name, stage) for stage in STAGES)
        needing = ingestion.needing_tokens(case.use_case, raw, labeled, tokenized)
    context.log.info(f"{len(needing):,} of {len(labeled):,} batches need tokenising")
    for number, batch in enumerate(needing, 1):
        with one_line_errors(store, case.name):
            manifest = chunks.tokenize(store, case.use_case, labeled[batch])
        # Reported before the store knows it: the next run repeats what a run that dies between the two has
        # not done.
        yield from events(case, store, context.instance, batch, manifest)
        set_latest(store, case.name, "tokenized_chunks", manifest, batch)
        ingestion.mark_done(store, case.use_case, batch)
        context.log.info(
            f"{batch}: {chunks.ChunksMetadata.of(manifest).num_rows:,} rows tokenised ({number:,} of"
            f" {len(needing):,} batches)"
        )


def events(case: Case, store: Store, instance: dg.DagsterInstance, batch: str, made: Manifest) -> Iterator:
    """Yield the events of a run of the batch's `tokenized_chunks`: its materialisation and the outcomes of
    its checks.

    Unlike in a run of the asset, Dagster adds no provenance of its own; without it an edit of the YAML would
    not mark these batches as stale.
    """
    shown = case.result(made, "tokenized_chunks", store)
    upstream = case.key("labeled_examples")
    newest = instance.fetch_materializations(
        dg.AssetRecordsFilter(upstream, asset_partitions=[batch]), limit=1
    ).records
    tags = {
        "dagster/data_version": made.content_digest,
        "dagster/data_version_is_user_provided": "true",
        "dagster/code_version": code_version(case),
        f"dagster/input_data_version/{upstream.to_user_string()}": made.inputs["labeled_examples"],
        f"dagster/input_event_pointer/{upstream.to_user_string()}": (
            str(newest[0].storage_id) if newest else "NULL"
        ),
    }
    key = case.key("tokenized_chunks")
    yield dg.AssetMaterialization(asset_key=key, partition=batch, metadata=shown.metadata, tags=tags)
    for outcome in made.checks:
        check = case.check_result(outcome, "tokenized_chunks")
        yield dg.AssetCheckEvaluation(
            asset_key=key,
            check_name=outcome.name,
            passed=check.passed,
            severity=check.severity,
            description=check.description,
            metadata=check.metadata,
            blocking=outcome.severity == "error",
        )
