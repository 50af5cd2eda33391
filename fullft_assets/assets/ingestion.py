"""The assets of the job `ingest`: delivered files -> raw_documents -> labeled_examples,
quarantined_examples -> tokenized_chunks [batch]; tokenized_chunks -> tokenizer_audit.

A new tokenizer (another base model, added tokens) or other windows make every batch's chunks stale, but not
its documents and examples. A backfill would start a run for each of up to 10,000 batches; `retokenize`
tokenises them one after the other, and emits the events that such runs would have emitted.
"""

from collections.abc import Iterator

import dagster as dg

from fullft_assets import chunks, documents, examples
from fullft_assets.artifacts import (
    LABELED_EXAMPLES,
    QUARANTINED_EXAMPLES,
    RAW_DOCUMENTS,
    TOKENIZED_CHUNKS,
    TOKENIZER_AUDIT,
)
from fullft_assets.assets.graph import CaseGraph
from fullft_assets.chunks import ingestion
from fullft_assets.resources import latest_by_partition, one_line_errors, set_latest
from fullft_assets.store import Manifest, Store
from fullft_assets.task import task_of


def _build_documents(graph: CaseGraph) -> list[dg.AssetsDefinition]:
    @dg.asset(
        key=graph.key(RAW_DOCUMENTS),
        freshness_policy=graph.freshness,
        partitions_def=graph.batches,
        deps=[dg.AssetKey.from_user_string(key) for key in graph.settings.documents.deps],
        description="What arrived, from where, unchanged: one row a delivered row, with its file and line.",
        code_version=graph.code_version(documents.VERSION, "documents"),
        kinds={"parquet"},
        check_specs=graph.checks(RAW_DOCUMENTS, (*documents.CHECKS, documents.FILES_ARE_READ)),
        **graph.shared(launches=True),
    )
    def raw_documents(context: dg.AssetExecutionContext):
        with graph.open_store(context) as store:
            graph.ingest(context)
            manifest = documents.keep(store, graph.use_case, context.partition_key)
            left = documents.check_leftovers(store, graph.name)
        return graph.result(manifest, RAW_DOCUMENTS, store, checks=[left])

    return [raw_documents]


def _build_examples(graph: CaseGraph) -> list[dg.AssetsDefinition]:
    version = graph.code_version(examples.VERSION, "examples")
    about = {
        "io_manager_key": graph.io_key,
        "code_version": version,
        "kinds": {"parquet", "greatexpectations"},
    }

    @dg.multi_asset(
        name=f"{graph.name}__examples",
        outs={
            LABELED_EXAMPLES: dg.AssetOut(
                key=graph.key(LABELED_EXAMPLES),
                description="Valid labelled examples of the batch, as Great Expectations rules find them.",
                **about,
            ),
            QUARANTINED_EXAMPLES: dg.AssetOut(
                key=graph.key(QUARANTINED_EXAMPLES),
                description=(
                    "The rest of the batch, each row with its reasons and source line; nothing is dropped"
                    " silently."
                ),
                **about,
            ),
        },
        ins={RAW_DOCUMENTS: dg.AssetIn(graph.key(RAW_DOCUMENTS), input_manager_key=graph.io_key)},
        partitions_def=graph.batches,
        group_name=graph.name,
        check_specs=graph.checks(LABELED_EXAMPLES, examples.checks_of(graph.settings.examples)),
        required_resource_keys=graph.shared(launches=True)["required_resource_keys"],
    )
    def labeled_and_quarantined(
        context: dg.AssetExecutionContext, raw_documents: Manifest
    ) -> Iterator[dg.MaterializeResult]:
        with graph.open_store(context) as store:
            graph.ingest(context)
            valid, quarantined = examples.validate(store, graph.use_case, raw_documents)
            if valid.red_gates:
                ingestion.mark_done(store, graph.use_case, context.partition_key)
        yield graph.result(valid, LABELED_EXAMPLES, store)
        yield graph.result(quarantined, QUARANTINED_EXAMPLES, store)

    return [labeled_and_quarantined]


def code_version(graph: CaseGraph) -> str:
    """Return the code version of this stage's batches."""
    return graph.code_version(chunks.VERSION, "chunks")


def _build_chunks(graph: CaseGraph) -> list[dg.AssetsDefinition]:
    @dg.asset(
        key=graph.key(TOKENIZED_CHUNKS),
        ins={LABELED_EXAMPLES: dg.AssetIn(graph.key(LABELED_EXAMPLES), input_manager_key=graph.io_key)},
        partitions_def=graph.batches,
        description="What the model will read: each text's windows of token ids, tokenised once.",
        code_version=code_version(graph),
        kinds={"parquet", "huggingface"},
        check_specs=graph.checks(TOKENIZED_CHUNKS, chunks.check_specs(task_of(graph.settings.examples))),
        **graph.shared(launches=True),
    )
    def tokenized_chunks(context: dg.AssetExecutionContext, labeled_examples: Manifest):
        with graph.open_store(context) as store:
            graph.ingest(context)
            manifest = chunks.tokenize(store, graph.use_case, labeled_examples)
            ingestion.mark_done(store, graph.use_case, context.partition_key)
        return graph.result(manifest, TOKENIZED_CHUNKS, store)

    @dg.asset(
        key=graph.key(TOKENIZER_AUDIT),
        ins={TOKENIZED_CHUNKS: dg.AssetIn(graph.key(TOKENIZED_CHUNKS), input_manager_key=graph.io_key)},
        description=(
            "Whether the tokenizer shreds the domain's terms: fertility, unknown and byte tokens, pieces a"
            " term; and tokens to add."
        ),
        code_version=graph.code_version(chunks.AUDIT_VERSION, "chunks"),
        kinds={"huggingface"},
        check_specs=graph.checks(TOKENIZER_AUDIT, chunks.AUDIT_CHECKS),
        **graph.shared(),
    )
    def tokenizer_audit(context: dg.AssetExecutionContext, tokenized_chunks: dict[str, Manifest]):
        with graph.open_store(context) as store:
            manifest = chunks.audit_tokenizer(store, graph.use_case, tokenized_chunks)
        folder = store.folder(manifest)
        shown = {
            name: dg.MetadataValue.path(str(folder / file))
            for name, file in (("terms", "terms.json"), ("proposal", "proposal.yaml"))
        }
        return graph.result(manifest, TOKENIZER_AUDIT, store, shown)

    return [tokenized_chunks, tokenizer_audit]


STAGES = (RAW_DOCUMENTS, LABELED_EXAMPLES, TOKENIZED_CHUNKS)


def retokenize(graph: CaseGraph, context: dg.OpExecutionContext) -> Iterator:
    """Tokenise every batch that needs it and yield the events of it; when it is cut short, the next run
    continues where it stopped.
    """
    with graph.open_store(context) as store:
        raw, labeled, tokenized = (latest_by_partition(store, graph.name, stage) for stage in STAGES)
        needing = ingestion.needing_tokens(graph.use_case, raw, labeled, tokenized)
    context.log.info(f"{len(needing):,} of {len(labeled):,} batches need tokenising")
    for number, batch in enumerate(needing, 1):
        with one_line_errors(store, graph.name):
            manifest = chunks.tokenize(store, graph.use_case, labeled[batch])
        # Reported before the store knows it: the next run repeats what a run that dies between the two has
        # not done.
        yield from events(graph, store, context.instance, batch, manifest)
        set_latest(store, graph.name, TOKENIZED_CHUNKS, manifest, batch)
        ingestion.mark_done(store, graph.use_case, batch)
        context.log.info(
            f"{batch}: {chunks.ChunksMetadata.of(manifest).num_rows:,} rows tokenised ({number:,} of"
            f" {len(needing):,} batches)"
        )


def events(
    graph: CaseGraph, store: Store, instance: dg.DagsterInstance, batch: str, manifest: Manifest
) -> Iterator:
    """Yield the events of a run of the batch's `tokenized_chunks`: its materialisation and the outcomes of
    its checks.

    Unlike in a run of the asset, Dagster adds no provenance of its own; without it an edit of the YAML would
    not mark these batches as stale.
    """
    shown = graph.result(manifest, TOKENIZED_CHUNKS, store)
    upstream = graph.key(LABELED_EXAMPLES)
    newest = instance.fetch_materializations(
        dg.AssetRecordsFilter(upstream, asset_partitions=[batch]), limit=1
    ).records
    tags = {
        "dagster/data_version": manifest.content_digest,
        "dagster/data_version_is_user_provided": "true",
        "dagster/code_version": code_version(graph),
        f"dagster/input_data_version/{upstream.to_user_string()}": manifest.inputs[LABELED_EXAMPLES],
        f"dagster/input_event_pointer/{upstream.to_user_string()}": (
            str(newest[0].storage_id) if newest else "NULL"
        ),
    }
    key = graph.key(TOKENIZED_CHUNKS)
    yield dg.AssetMaterialization(asset_key=key, partition=batch, metadata=shown.metadata, tags=tags)
    for outcome in manifest.checks:
        yield graph.check_evaluation(outcome, TOKENIZED_CHUNKS, blocking=outcome.severity == "error")


def build(graph: CaseGraph) -> list[dg.AssetsDefinition]:
    """Return the assets."""
    return [*_build_documents(graph), *_build_examples(graph), *_build_chunks(graph)]
