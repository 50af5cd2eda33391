"""documents: delivered files -> raw_documents [batch]."""

import dagster as dg

from fullft_assets import documents
from fullft_assets.assets.case import Case
from fullft_assets.resources import one_line_errors


def build(case: Case) -> list[dg.AssetsDefinition]:
    """Return the assets of this stage."""

    @dg.asset(
        key=case.key("raw_documents"),
        freshness_policy=case.freshness,
        partitions_def=case.batches,
        deps=[dg.AssetKey.from_user_string(key) for key in case.settings.documents.deps],
        description="What arrived, from where, unchanged: one row a delivered row, with its file and line.",
        code_version=case.code_version(documents.VERSION, "documents"),
        kinds={"parquet"},
        check_specs=case.checks("raw_documents", (*documents.CHECKS, documents.FILES_ARE_READ)),
        **case.shared(launches=True),
    )
    def raw_documents(context: dg.AssetExecutionContext):
        store = case.store(context)
        with one_line_errors(store, case.name):
            case.ingest(context)
            manifest = documents.keep(store, case.use_case, context.partition_key)
            left = documents.check_leftovers(store, case.name)
        return case.result(manifest, "raw_documents", store, checks=[left])

    return [raw_documents]
