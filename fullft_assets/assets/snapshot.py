"""snapshot: labeled_examples, tokenized_chunks -> training_snapshot."""

from typing import Any

import dagster as dg

from fullft_assets import snapshot
from fullft_assets.assets.case import Case, markdown_table
from fullft_assets.resources import one_line_errors
from fullft_assets.store import Manifest


def build(case: Case) -> list[dg.AssetsDefinition]:
    """Return the assets of this stage."""
    screened = [("evaluation_texts_can_be_found", "Texts of snapshot.screen are long enough to be found within others.", False)]
    packed = [
        ("rows_are_full", "Packed rows are at least 99.5% full, or as few as the tokens and the long texts need, or two more.", False)
    ]
    replayed = [("replay_holds_no_control_tokens", "No replayed document holds the model's special tokens.", False)]
    voted = [("annotators_agree", "Annotators whose answers are rows of one id agree beyond chance, over all batches.", False)]
    settings = case.settings.examples
    is_voted = settings.task == "classification" and settings.severities.get("annotators_agree") != "off"

    @dg.asset(
        key=case.key("training_snapshot"),
        ins={name: dg.AssetIn(case.key(name), input_manager_key=case.io_key) for name in ("labeled_examples", "tokenized_chunks")},
        description="Exactly which rows train, validate and test: deduplicated, split without leaks, frozen under a digest.",
        code_version=case.code_version(snapshot.VERSION, "snapshot"),
        kinds={"parquet"},
        check_specs=case.checks(
            "training_snapshot",
            [
                ("splits_are_disjoint", "No id, text or group stands in two splits.", True),
                ("training_rows_suffice", "There are enough training rows to go on.", True),
                ("training_rows_are_plenty", "There are as many training rows as full fine-tuning wants.", False),
                ("labels_are_common", "Enough independent groups stand for each label in the test split.", False),
                ("ids_name_one_document", "Hardly an id stands for different texts in two files.", False),
                ("later_rows_are_newer", "No row of a later batch loses to an older batch's by the times of their files.", False),
                ("archived_files_count", "Files that were taken away since their delivery count as they were read.", False),
                ("files_have_one_source", "No file has the path of another source's file, whose rows it would supersede.", False),
                *(voted if is_voted else []),
                *(screened if case.settings.snapshot.screen else []),
                *(packed if case.settings.examples.task in ("sft", "language_modeling") else []),
                *(replayed if case.settings.snapshot.replay is not None else []),
            ],
        ),
        **case.shared(),
    )
    def training_snapshot(context: dg.AssetExecutionContext, labeled_examples: dict[str, Manifest], tokenized_chunks: dict[str, Manifest]):
        store = case.store(context.instance)
        with one_line_errors():
            manifest = snapshot.take(store, case.use_case, labeled_examples, tokenized_chunks)
        shown: dict[str, dg.MetadataValue | int] = {
            "parts": len(manifest.metadata["parts"]),
            "data_report": dg.MetadataValue.path(str(store.folder(manifest) / "report.md")),
        }
        if manifest.metadata["labels"]:
            shown["label_counts"] = dg.MetadataValue.md(markdown_table(_labels(manifest.metadata)))
        return case.result(manifest, "training_snapshot", store, shown)

    return [training_snapshot]


def _labels(metadata: dict[str, Any]) -> list[dict[str, Any]]:
    """Return one row a label: its rows by split, and how many equal groups its test rows are worth."""
    counts = metadata["label_counts"]
    tested = {found["label"]: found["k_eff"] for found in metadata["label_statistics"] if found["split"] == "test"}
    return [
        {"label": label, **{split: counts[split].get(label, 0) for split in counts}, "test k_eff": tested.get(label, 0)}
        for label in metadata["labels"]
    ]
