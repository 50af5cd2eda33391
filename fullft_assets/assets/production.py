"""production: delivered files -> production_documents [window]; with the champion -> batch_predictions
[window].
"""

from collections.abc import Iterator, Mapping

import dagster as dg

from fullft_assets import documents, monitoring, release
from fullft_assets.assets.case import Case
from fullft_assets.assets.windows import logged_predictions, read_history, snapshot_of
from fullft_assets.errors import FullftError
from fullft_assets.resources import one_line_errors
from fullft_assets.store import Manifest, digest


def build(case: Case) -> list[dg.AssetsDefinition]:
    """Return the assets of this stage."""
    log = monitoring.log_key(case.settings)
    log_version = f"-{digest(log)[:8]}" if log is not None else ""

    @dg.asset(
        key=case.key("production_documents"),
        freshness_policy=case.freshness,
        partitions_def=case.windows,
        description="What production saw in one window, unchanged.",
        code_version=case.code_version(documents.VERSION, "documents"),
        kinds={"parquet"},
        check_specs=case.checks("production_documents", documents.WINDOW_CHECKS),
        **case.shared(),
    )
    def production_documents(context: dg.AssetExecutionContext):
        store = case.store(context)
        with one_line_errors(store, case.name):
            manifest = documents.keep(store, case.use_case, context.partition_key, "window")
        return case.result(manifest, "production_documents", store)

    @dg.asset(
        key=case.key("batch_predictions"),
        ins={
            "production_documents": dg.AssetIn(
                case.key("production_documents"), input_manager_key=case.io_key
            )
        },
        deps=[case.key("champion_model")],
        partitions_def=case.windows,
        description=(
            "What the champion predicts of each document of one window: a line of JSON each. Without a"
            " champion there is none."
        ),
        code_version=case.code_version(monitoring.PREDICTIONS_VERSION + log_version, "chunks"),
        kinds={"pytorch", "json"},
        pool="monitoring",
        check_specs=case.checks("batch_predictions", [] if log is None else [monitoring.LOG_CHECK]),
        output_required=False,
        **case.shared(launches=True),
    )
    def batch_predictions(
        context: dg.AssetExecutionContext, production_documents: Manifest
    ) -> Iterator[dg.MaterializeResult]:
        store = case.store(context)
        with one_line_errors(store, case.name):
            manifest = logged_predictions(case, store, production_documents).get("batch_predictions")
            champion = release.read_champion(store, case.name)
            if champion is None:
                context.log.info(
                    f"{case.name} has no champion yet, so nothing is predicted; materialise this window again"
                    " when it has one"
                )
                return
            if manifest is None:
                inputs = {
                    "production_documents": production_documents,
                    "finetuned_checkpoint": store.load(champion.checkpoint),
                }
                key = monitoring.predictions_artifact_key(case.settings, inputs)
                if store.find(case.name, "batch_predictions", key) is None:
                    inputs |= _of_the_report(case, context, inputs)
                manifest = case.find_or_launch(context, "prediction", "batch_predictions", key, inputs)
        yield case.result(manifest, "batch_predictions", store)

    return [production_documents, batch_predictions]


def _of_the_report(
    case: Case, context: dg.AssetExecutionContext, inputs: Mapping[str, Manifest]
) -> dict[str, Manifest]:
    """Return what the window's drift report is made from as well: the same process writes it, unless another
    launcher makes it or nobody asks for it.
    """
    store, selection = case.store(context), context.run.asset_selection
    is_asked_for = selection is None or case.key("drift_report") in selection
    launcher_of = case.settings.launcher_of
    if not (case.is_monitored and is_asked_for and launcher_of("prediction") == launcher_of("monitoring")):
        return {}
    checkpoint, documents_of_window = inputs["finetuned_checkpoint"], inputs["production_documents"]
    try:
        snapshot = snapshot_of(store, checkpoint)
        for manifest in (snapshot, checkpoint):
            manifest.require_green("drift_report")
        history = read_history(case, store, context.partition_key, documents_of_window, checkpoint, {})
    except FullftError:  # the drift report's own step says why
        return {}
    return {"training_snapshot": snapshot, **history.as_inputs()}
