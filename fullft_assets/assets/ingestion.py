"""The assets of the job `ingest`: delivered files -> raw_documents -> labeled_examples,
quarantined_examples -> tokenized_chunks [batch]; labeled_examples -> tokenizer_audit.
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
from fullft_assets.store import Manifest
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
            leftovers = documents.check_leftovers(store, graph.name)
        return graph.result(manifest, RAW_DOCUMENTS, store, checks=[leftovers])

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


def _build_chunks(graph: CaseGraph) -> list[dg.AssetsDefinition]:
    @dg.asset(
        key=graph.key(TOKENIZED_CHUNKS),
        ins={LABELED_EXAMPLES: dg.AssetIn(graph.key(LABELED_EXAMPLES), input_manager_key=graph.io_key)},
        partitions_def=graph.batches,
        description="What the model will read: each text's windows of token ids, tokenised once.",
        code_version=graph.code_version(chunks.VERSION, "chunks"),
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
        ins={LABELED_EXAMPLES: dg.AssetIn(graph.key(LABELED_EXAMPLES), input_manager_key=graph.io_key)},
        description=(
            "Whether the tokenizer shreds the domain's terms: fertility, unknown and byte tokens, pieces a"
            " term; and tokens to add."
        ),
        code_version=graph.code_version(chunks.AUDIT_VERSION, "chunks"),
        kinds={"huggingface"},
        check_specs=graph.checks(TOKENIZER_AUDIT, chunks.AUDIT_CHECKS),
        **graph.shared(),
    )
    def tokenizer_audit(context: dg.AssetExecutionContext, labeled_examples: dict[str, Manifest]):
        with graph.open_store(context) as store:
            manifest = chunks.audit_tokenizer(store, graph.use_case, labeled_examples)
        folder = store.folder(manifest)
        ui_metadata = {
            name: dg.MetadataValue.path(str(folder / file))
            for name, file in (("terms", "terms.json"), ("proposal", "proposal.yaml"))
        }
        return graph.result(manifest, TOKENIZER_AUDIT, store, ui_metadata)

    return [tokenized_chunks, tokenizer_audit]


def build(graph: CaseGraph) -> list[dg.AssetsDefinition]:
    """Return the assets."""
    return [*_build_documents(graph), *_build_examples(graph), *_build_chunks(graph)]
