"""monitoring: production_documents [window]; with the champion -> batch_predictions [window], drift_report [window]."""

from collections.abc import Iterator

import dagster as dg

from fullft_assets import documents, monitoring, release
from fullft_assets.assets.case import Case
from fullft_assets.resources import one_line_errors
from fullft_assets.store import Manifest, Store, artifact_key
from fullft_assets.training.metadata import CheckpointMetadata


def build(case: Case) -> list[dg.AssetsDefinition]:
    """Return the assets of this stage: what the champion predicts, and where the task allows it whether production has drifted."""

    @dg.asset(
        key=case.key("production_documents"),
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
        code_version=case.code_version(monitoring.PREDICTIONS_VERSION, "chunks"),
        kinds={"pytorch", "json"},
        pool="monitoring",
        output_required=False,
        **case.shared(launches=True),
    )
    def batch_predictions(context: dg.AssetExecutionContext, production_documents: Manifest) -> Iterator[dg.MaterializeResult]:
        store = case.store(context)
        with one_line_errors(store, case.name):
            champion = release.read_champion(store, case.name)
            if champion is None:
                context.log.info(f"{case.name} has no champion yet, so nothing is predicted; materialise this window again when it has one")
                return
            inputs = {"production_documents": production_documents, "finetuned_checkpoint": store.load(champion.checkpoint)}
            digests = {name: manifest.content_digest for name, manifest in inputs.items()}
            settings = monitoring.predictions_key(case.settings)
            key = artifact_key("batch_predictions", monitoring.PREDICTIONS_VERSION, settings, digests, case.settings.seed)
            manifest = case.find_or_launch(context, "prediction", "batch_predictions", key, inputs)
        yield case.result(manifest, "batch_predictions", store)

    @dg.asset(
        key=case.key("drift_report"),
        ins={name: dg.AssetIn(case.key(name), input_manager_key=case.io_key) for name in ("production_documents", "finetuned_checkpoint")},
        partitions_def=case.windows,
        description="Is what the model sees today what it learned on? Six tests, corrected together.",
        code_version=case.code_version(monitoring.VERSION, "monitoring"),
        kinds={"scipy", "pytorch"},
        # A pool of its own: windows follow each other (the first one makes the reference), and none waits for a long training.
        pool="monitoring",
        check_specs=case.checks("drift_report", monitoring.CHECKS),
        **case.shared(launches=True),
    )
    def drift_report(
        context: dg.AssetExecutionContext,
        production_documents: Manifest,
        finetuned_checkpoint: Manifest,
    ):
        store = case.store(context)
        with one_line_errors(store, case.name):
            inputs = {"production_documents": production_documents, **_model_in_use(case, store, finetuned_checkpoint)}
            for name in ("training_snapshot", "finetuned_checkpoint"):
                inputs[name].require_green("drift_report")
            digests = {name: manifest.content_digest for name, manifest in inputs.items()}
            key = artifact_key("drift_report", monitoring.VERSION, monitoring.key_settings(case.settings), digests, case.settings.seed)
            manifest = case.find_or_launch(context, "monitoring", "drift_report", key, inputs)
        return case.result(manifest, "drift_report", store, {"table": dg.MetadataValue.md(monitoring.DriftMetadata.of(manifest).table)})

    return [production_documents, batch_predictions, *([drift_report] if case.is_monitored else [])]


def _model_in_use(case: Case, store: Store, newest: Manifest) -> dict[str, Manifest]:
    """Return the checkpoint that production runs and the snapshot that it was trained on.

    Production runs the champion; before the first one, the newest model takes its place. The reference is what that model learned on, not
    the newest snapshot: a periodic evaluation moves that towards the new data.
    """
    champion = release.read_champion(store, case.name)
    checkpoint = store.load(champion.checkpoint) if champion else newest
    return {"training_snapshot": store.load(CheckpointMetadata.of(checkpoint).snapshot), "finetuned_checkpoint": checkpoint}
