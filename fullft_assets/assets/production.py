"""production: delivered files -> production_documents [window]; with the champion -> batch_predictions [window]."""

from collections.abc import Iterator

import dagster as dg

from fullft_assets import documents, monitoring, release
from fullft_assets.assets.case import Case
from fullft_assets.resources import one_line_errors
from fullft_assets.store import Manifest, Store, artifact_key, digest
from fullft_assets.training.metadata import CheckpointMetadata


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
        ins={"production_documents": dg.AssetIn(case.key("production_documents"), input_manager_key=case.io_key)},
        deps=[case.key("champion_model")],
        partitions_def=case.windows,
        description="What the champion predicts of each document of one window: a line of JSON each. Without a champion there is none.",
        code_version=case.code_version(monitoring.PREDICTIONS_VERSION + log_version, "chunks"),
        kinds={"pytorch", "json"},
        pool="monitoring",
        check_specs=case.checks("batch_predictions", [] if log is None else [monitoring.LOG_CHECK]),
        output_required=False,
        **case.shared(launches=True),
    )
    def batch_predictions(context: dg.AssetExecutionContext, production_documents: Manifest) -> Iterator[dg.MaterializeResult]:
        store = case.store(context)
        with one_line_errors(store, case.name):
            manifest, champion = logged_predictions(case, store, production_documents), release.read_champion(store, case.name)
            if champion is None:
                context.log.info(f"{case.name} has no champion yet, so nothing is predicted; materialise this window again when it has one")
                return
            if manifest is None:
                inputs = {"production_documents": production_documents, "finetuned_checkpoint": store.load(champion.checkpoint)}
                digests = {name: made.content_digest for name, made in inputs.items()}
                settings = monitoring.predictions_key(case.settings)
                key = artifact_key("batch_predictions", monitoring.PREDICTIONS_VERSION, settings, digests, case.settings.seed)
                manifest = case.find_or_launch(context, "prediction", "batch_predictions", key, inputs)
        yield case.result(manifest, "batch_predictions", store)

    return [production_documents, batch_predictions]


def logged_predictions(case: Case, store: Store, documents: Manifest) -> Manifest | None:
    """Return what the champion answered as the log of a window has it; None without `monitoring.log`, or before the first champion."""
    log, state = case.settings.monitoring.log, release.read_state(store, case.name)
    if log is None or state is None:
        return None
    champion = store.load(state.checkpoint)
    labels = CheckpointMetadata.of(champion).labels
    return monitoring.read_log(
        store,
        case.name,
        log=log,
        documents=documents,
        champion=champion,
        since=state.in_use_since,
        labels=labels,
        seed=case.settings.seed,
    )
