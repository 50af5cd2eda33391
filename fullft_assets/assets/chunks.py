"""chunks: labeled_examples [batch] -> tokenized_chunks [batch]; tokenized_chunks -> tokenizer_audit."""

import dagster as dg

from fullft_assets import chunks
from fullft_assets.assets.case import Case
from fullft_assets.chunks import ingestion
from fullft_assets.resources import one_line_errors
from fullft_assets.store import Manifest

#: Checks on every batch's chunks (name, description, blocking), and those that a task adds.
CHECKS = [
    ("texts_are_kept_whole", "No token is cut off a text.", False),
    ("contents_hold_no_control_tokens", "No text and nobody's words hold the model's special tokens.", False),
]
TASK_CHECKS = {
    "sft": [
        ("rows_have_trained_tokens", "Each conversation has a token that is trained.", True),
    ],
    "token_classification": [("spans_have_tokens", "Each labelled span has a token of its own.", False)],
}


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
        check_specs=case.checks("tokenized_chunks", [*CHECKS, *TASK_CHECKS.get(case.settings.examples.task, [])]),
        **case.shared(),
    )
    def tokenized_chunks(context: dg.AssetExecutionContext, labeled_examples: Manifest):
        store = case.store(context.instance)
        with one_line_errors():
            manifest = chunks.tokenize(store, case.use_case, labeled_examples)
            ingestion.mark_done(store, case.use_case, context.partition_key)
        return case.result(manifest, "tokenized_chunks", store)

    @dg.asset(
        key=case.key("tokenizer_audit"),
        ins={"tokenized_chunks": dg.AssetIn(case.key("tokenized_chunks"), input_manager_key=case.io_key)},
        description="Whether the tokenizer shreds the domain's terms: fertility, unknown and byte tokens, pieces a term; and tokens to add.",
        code_version=case.code_version(chunks.AUDIT_VERSION, "chunks"),
        kinds={"huggingface"},
        check_specs=case.checks(
            "tokenizer_audit",
            [
                ("domain_terms_are_kept_whole", "Domain terms are split into few pieces.", False),
                ("unknown_tokens_are_rare", "The tokenizer knows the domain's characters.", False),
                ("byte_tokens_are_rare", "The tokenizer seldom spells characters byte by byte.", False),
            ],
        ),
        **case.shared(),
    )
    def tokenizer_audit(context: dg.AssetExecutionContext, tokenized_chunks: dict[str, Manifest]):
        store = case.store(context.instance)
        with one_line_errors():
            manifest = chunks.audit_tokenizer(store, case.use_case, tokenized_chunks)
        folder = store.folder(manifest)
        shown = {name: dg.MetadataValue.path(str(folder / file)) for name, file in (("terms", "terms.json"), ("proposal", "proposal.yaml"))}
        return case.result(manifest, "tokenizer_audit", store, shown)

    return [tokenized_chunks, tokenizer_audit]
