"""chunks: labeled_examples [batch] -> tokenized_chunks [batch]; tokenized_chunks -> tokenizer_audit."""

import dagster as dg

from fullft_assets import chunks
from fullft_assets.assets.case import Case
from fullft_assets.chunks import ingestion
from fullft_assets.resources import one_line_errors
from fullft_assets.store import Manifest
from fullft_assets.task import task_of


def code_version(case: Case) -> str:
    """Return the code version of this stage's batches."""
    return case.code_version(chunks.VERSION, "chunks")


def build(case: Case) -> list[dg.AssetsDefinition]:
    """Return the assets of this stage."""

    @dg.asset(
        key=case.key("tokenized_chunks"),
        ins={"labeled_examples": dg.AssetIn(case.key("labeled_examples"), input_manager_key=case.io_key)},
        partitions_def=case.batches,
        description="What the model will read: each text's windows of token ids, tokenised once.",
        code_version=code_version(case),
        kinds={"parquet", "huggingface"},
        check_specs=case.checks("tokenized_chunks", chunks.check_specs(task_of(case.settings.examples))),
        **case.shared(launches=True),
    )
    def tokenized_chunks(context: dg.AssetExecutionContext, labeled_examples: Manifest):
        store = case.store(context)
        with one_line_errors(store, case.name):
            case.ingest(context)
            manifest = chunks.tokenize(store, case.use_case, labeled_examples)
            ingestion.mark_done(store, case.use_case, context.partition_key)
        return case.result(manifest, "tokenized_chunks", store)

    @dg.asset(
        key=case.key("tokenizer_audit"),
        ins={"tokenized_chunks": dg.AssetIn(case.key("tokenized_chunks"), input_manager_key=case.io_key)},
        description=(
            "Whether the tokenizer shreds the domain's terms: fertility, unknown and byte tokens, pieces a"
            " term; and tokens to add."
        ),
        code_version=case.code_version(chunks.AUDIT_VERSION, "chunks"),
        kinds={"huggingface"},
        check_specs=case.checks("tokenizer_audit", chunks.AUDIT_CHECKS),
        **case.shared(),
    )
    def tokenizer_audit(context: dg.AssetExecutionContext, tokenized_chunks: dict[str, Manifest]):
        store = case.store(context)
        with one_line_errors(store, case.name):
            manifest = chunks.audit_tokenizer(store, case.use_case, tokenized_chunks)
        folder = store.folder(manifest)
        shown = {
            name: dg.MetadataValue.path(str(folder / file))
            for name, file in (("terms", "terms.json"), ("proposal", "proposal.yaml"))
        }
        return case.result(manifest, "tokenizer_audit", store, shown)

    return [tokenized_chunks, tokenizer_audit]
