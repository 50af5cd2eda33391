"""examples: raw_documents [batch] -> labeled_examples [batch], quarantined_examples [batch]."""

from collections.abc import Iterator

import dagster as dg

from fullft_assets import examples
from fullft_assets.assets.case import Case
from fullft_assets.chunks import ingestion
from fullft_assets.resources import one_line_errors
from fullft_assets.store import Manifest


def build(case: Case) -> list[dg.AssetsDefinition]:
    """Return the assets of this stage."""
    version = case.code_version(examples.VERSION, "examples")
    about = {
        "io_manager_key": case.io_key,
        "code_version": version,
        "kinds": {"parquet", "greatexpectations"},
    }

    @dg.multi_asset(
        name=f"{case.name}__examples",
        outs={
            "labeled_examples": dg.AssetOut(
                key=case.key("labeled_examples"),
                description="Valid labelled examples of the batch, as Great Expectations rules find them.",
                **about,
            ),
            "quarantined_examples": dg.AssetOut(
                key=case.key("quarantined_examples"),
                description=(
                    "The rest of the batch, each row with its reasons and source line; nothing is dropped"
                    " silently."
                ),
                **about,
            ),
        },
        ins={"raw_documents": dg.AssetIn(case.key("raw_documents"), input_manager_key=case.io_key)},
        partitions_def=case.batches,
        group_name=case.name,
        check_specs=case.checks("labeled_examples", examples.checks_of(case.settings.examples)),
        required_resource_keys=case.shared(launches=True)["required_resource_keys"],
    )
    def labeled_and_quarantined(
        context: dg.AssetExecutionContext, raw_documents: Manifest
    ) -> Iterator[dg.MaterializeResult]:
        store = case.store(context)
        with one_line_errors(store, case.name):
            case.ingest(context)
            valid, quarantined = examples.validate(store, case.use_case, raw_documents)
            if valid.red_gates:
                ingestion.mark_done(store, case.use_case, context.partition_key)
        yield case.result(valid, "labeled_examples", store)
        yield case.result(quarantined, "quarantined_examples", store)

    return [labeled_and_quarantined]
