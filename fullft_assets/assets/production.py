"""The assets of the job `monitor`: delivered files -> production_documents -> batch_predictions, drift_report
[window]; with later labels -> live_quality; and the check training_data_represents_production.
"""

from collections.abc import Iterator
from functools import partial

import dagster as dg

from fullft_assets import documents, monitoring, release
from fullft_assets.artifacts import (
    BATCH_PREDICTIONS,
    CHAMPION_MODEL,
    DRIFT_REPORT,
    FINETUNED_CHECKPOINT,
    LABELED_EXAMPLES,
    LIVE_QUALITY,
    PRODUCTION_DOCUMENTS,
    TRAINING_SNAPSHOT,
)
from fullft_assets.assets.graph import CaseGraph, sparkline
from fullft_assets.checkpoint.metadata import CheckpointMetadata
from fullft_assets.errors import StoreError
from fullft_assets.evaluation.metadata import EvaluationMetadata
from fullft_assets.monitoring import History, live, representation
from fullft_assets.resources import ManifestIOManager, latest, latest_by_partition
from fullft_assets.snapshot import SnapshotMetadata
from fullft_assets.store import CheckOutcome, Manifest, Store


def read_history(
    graph: CaseGraph,
    store: Store,
    window: str,
    window_documents: Manifest,
    checkpoint: Manifest,
) -> History:
    """Return the drift reports that a window is compared with.

    Args:
        window: its key.
        window_documents: its `production_documents`.
        checkpoint: the model in use.
    """
    return monitoring.read_history(
        window,
        store.list_pointers(f"latest/{graph.name}/{DRIFT_REPORT}"),
        partial(latest, store, graph.name, DRIFT_REPORT),
        store.load,
        documents=window_documents,
        model=checkpoint,
        settings=monitoring.key_settings(graph.settings),
    )


def snapshot_of(store: Store, checkpoint: Manifest) -> Manifest:
    """Return the snapshot that a checkpoint was trained on.

    The scale is fitted on what that model was measured on, not on the newest snapshot: a periodic evaluation
    moves that towards the new data.
    """
    return store.load(CheckpointMetadata.of(checkpoint).snapshot)


def _build_predictions(graph: CaseGraph) -> list[dg.AssetsDefinition]:
    @dg.asset(
        key=graph.key(PRODUCTION_DOCUMENTS),
        freshness_policy=graph.freshness,
        partitions_def=graph.windows,
        description="What production saw in one window, unchanged.",
        code_version=graph.code_version(documents.VERSION, "documents"),
        kinds={"parquet"},
        check_specs=graph.checks(PRODUCTION_DOCUMENTS, documents.WINDOW_CHECKS),
        **graph.shared(),
    )
    def production_documents(context: dg.AssetExecutionContext):
        with graph.open_store(context) as store:
            manifest = documents.keep(store, graph.use_case, context.partition_key, "window")
        return graph.result(manifest, PRODUCTION_DOCUMENTS, store)

    @dg.asset(
        key=graph.key(BATCH_PREDICTIONS),
        ins={
            PRODUCTION_DOCUMENTS: dg.AssetIn(graph.key(PRODUCTION_DOCUMENTS), input_manager_key=graph.io_key)
        },
        deps=[graph.key(CHAMPION_MODEL)],
        partitions_def=graph.windows,
        description=(
            "What the champion predicts of each document of one window: a line of JSON each. Without a"
            " champion there is none."
        ),
        code_version=graph.code_version(monitoring.PREDICTIONS_VERSION, "chunks"),
        kinds={"pytorch", "json"},
        pool="monitoring",
        output_required=False,
        **graph.shared(launches=True),
    )
    def batch_predictions(
        context: dg.AssetExecutionContext, production_documents: Manifest
    ) -> Iterator[dg.MaterializeResult]:
        with graph.open_store(context) as store:
            champion = release.read_champion(store, graph.name)
            if champion is None:
                context.log.info(
                    f"{graph.name} has no champion yet, so nothing is predicted; materialise this window"
                    " again when it has one"
                )
                return
            inputs = {
                PRODUCTION_DOCUMENTS: production_documents,
                FINETUNED_CHECKPOINT: store.load(champion.checkpoint),
            }
            manifest = graph.find_or_launch(
                context,
                "prediction",
                BATCH_PREDICTIONS,
                monitoring.predictions_artifact_key(graph.settings, inputs),
                inputs,
            )
        yield graph.result(manifest, BATCH_PREDICTIONS, store)

    return [production_documents, batch_predictions]


def something_came(graph: CaseGraph) -> dg.AutomationCondition:
    """Return the condition that labels or predictions came, or another champion: of that alone `live_quality`
    is made, once there is a champion.

    A drop was reported a day late: labels that come after the daily evaluation had waited for the next one.
    Red checks are no reason to wait, since a batch that is held back does not count; nor is a window without
    predictions, which is one of before the first champion.
    """
    # A champion that another Dagster made is known by what it predicts here.
    has_champion = dg.AutomationCondition.any_deps_match(~dg.AutomationCondition.missing()).allow(
        dg.AssetSelection.assets(graph.key(CHAMPION_MODEL), graph.key(BATCH_PREDICTIONS))
    )
    is_updated = dg.AutomationCondition.any_deps_updated()
    # What changes in the minute after a request may be too late for its run, and what is measured in the
    # minute of a change may not know of it.
    request_alone = dg.AutomationCondition.newly_requested() & ~is_updated
    is_settled = ~dg.AutomationCondition.any_deps_in_progress() & ~dg.AutomationCondition.in_progress()
    return (is_updated.since(request_alone) & is_settled & has_champion).with_label("something_came")


def _build_monitoring(graph: CaseGraph) -> list[dg.AssetsDefinition]:
    @dg.asset(
        key=graph.key(DRIFT_REPORT),
        ins={
            name: dg.AssetIn(graph.key(name), input_manager_key=graph.io_key)
            for name in (PRODUCTION_DOCUMENTS, FINETUNED_CHECKPOINT)
        },
        partitions_def=graph.windows,
        description="Is what the model sees today what it saw when it was new? Windows against earlier ones.",
        code_version=graph.code_version(monitoring.VERSION, "monitoring"),
        kinds={"scipy", "pytorch"},
        # A pool of its own: windows follow each other (the first one makes the reference), and none waits for
        # a long training.
        pool="monitoring",
        check_specs=graph.checks(DRIFT_REPORT, monitoring.CHECKS),
        **graph.shared(launches=True),
    )
    def drift_report(
        context: dg.AssetExecutionContext,
        production_documents: Manifest,
        finetuned_checkpoint: Manifest,
    ):
        with graph.open_store(context) as store:
            champion = release.read_champion(store, graph.name)
            # Production runs the champion; before the first one, the newest model takes its place.
            checkpoint = store.load(champion.checkpoint) if champion else finetuned_checkpoint
            history = read_history(graph, store, context.partition_key, production_documents, checkpoint)
            model = {TRAINING_SNAPSHOT: snapshot_of(store, checkpoint), FINETUNED_CHECKPOINT: checkpoint}
            for manifest in model.values():
                manifest.require_green(DRIFT_REPORT)
            inputs = {PRODUCTION_DOCUMENTS: production_documents, **model, **history.as_inputs()}
            manifest = graph.find_or_launch(
                context, "monitoring", DRIFT_REPORT, monitoring.report_key(graph.settings, inputs), inputs
            )
        metadata = monitoring.DriftMetadata.of(manifest)
        ui_metadata: dict[str, dg.MetadataValue] = {"table": dg.MetadataValue.md(metadata.table)}
        windows = [monitoring.DriftMetadata.of(report) for report in history.windows]
        shares = [
            window.measured["novel_share"]
            for window in (*windows, metadata)
            if "novel_share" in window.measured
        ]
        if len(shares) > 1:
            ui_metadata["novel_share_curve"] = sparkline(shares, "novel share of the windows that were read")
        return graph.result(manifest, DRIFT_REPORT, store, ui_metadata)

    @dg.asset(
        key=graph.key(LIVE_QUALITY),
        deps=[graph.key(name) for name in (BATCH_PREDICTIONS, LABELED_EXAMPLES, CHAMPION_MODEL)],
        automation_condition=something_came(graph),
        description=(
            "How often the champion was right about production documents that got a label since, against its"
            " accuracy at release."
        ),
        code_version=graph.code_version(monitoring.LIVE_VERSION, "evaluation"),
        kinds={"scipy"},
        check_specs=graph.checks(LIVE_QUALITY, [monitoring.LIVE_CHECK]),
        output_required=False,
        **graph.shared(),
    )
    def live_quality(
        context: dg.AssetExecutionContext,
    ) -> Iterator[dg.MaterializeResult | dg.AssetCheckResult]:
        with graph.open_store(context) as store:
            champion = release.read_champion(store, graph.name)
            if champion is None:
                outcome = CheckOutcome(
                    name=monitoring.LIVE_CHECK.name,
                    passed=True,
                    description="no champion yet, so nothing to compare with",
                )
                yield graph.check_result(outcome, LIVE_QUALITY)
                return
            manifest = _measure_live_quality(graph, store, champion)
        yield graph.result(manifest, LIVE_QUALITY, store)

    return [drift_report, live_quality] if graph.has_live_quality else [drift_report]


def _measure_live_quality(graph: CaseGraph, store: Store, champion: release.Champion) -> Manifest:
    at_release = EvaluationMetadata.of(store.load(champion.evaluation))
    accuracy, low = (at_release.score(None, name) for name in (monitoring.METRIC, f"{monitoring.METRIC}_low"))
    if accuracy is None or low is None:
        raise StoreError(
            f"{graph.name}: {champion.evaluation} has no {monitoring.METRIC}; evaluate and promote the model"
            " again"
        )
    # The champion has learned from the batches of its snapshot.
    learned_batches = SnapshotMetadata.of(store.load(champion.snapshot)).parts
    examples = {
        name: manifest
        for name, manifest in latest_by_partition(store, graph.name, LABELED_EXAMPLES).items()
        if name not in learned_batches and not any(check.is_red for check in manifest.checks)
    }
    return live.measure(
        store,
        graph.name,
        champion=store.load(champion.checkpoint),
        release=monitoring.AtRelease(accuracy, low),
        windows=latest_by_partition(store, graph.name, PRODUCTION_DOCUMENTS),
        predictions=latest_by_partition(store, graph.name, BATCH_PREDICTIONS),
        examples=examples,
        exported_digests=monitoring.exported_as_far(store, graph.name),
        # As much as the interval at release may be wrong on its lower side: both together are wrong as seldom
        # as its two sides.
        error=(1 - graph.settings.evaluation.confidence) / 2,
        seed=graph.settings.seed,
    )


def check_key(graph: CaseGraph) -> dg.AssetCheckKey:
    """Return the key of the check."""
    return dg.AssetCheckKey(graph.key(TRAINING_SNAPSHOT), representation.CHECK.name)


def build_checks(graph: CaseGraph) -> list[dg.AssetChecksDefinition]:
    """Return the check. It is looked at again when either side is new: behind each snapshot, and behind each
    window's drift report.

    It judges the snapshot that its run made, or the newest one when the run began: what a training would
    learn from, since it asks for more data. That the champion was trained on another one is what the novel
    share and the drift report show.
    """

    @dg.asset_check(
        asset=graph.key(TRAINING_SNAPSHOT),
        name=representation.CHECK.name,
        additional_deps=[graph.key(DRIFT_REPORT)],
        description=representation.CHECK.description,
        required_resource_keys={graph.store_key},
    )
    def training_data_represents_production(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        with graph.open_store(context) as store:
            snapshot = ManifestIOManager(store, context.instance, context.run).load_of_run(
                graph.key(TRAINING_SNAPSHOT)
            )
            reports = latest_by_partition(store, graph.name, DRIFT_REPORT)
            champion = release.read_champion(store, graph.name)
            model = (
                store.load(champion.checkpoint)
                if champion
                else latest(store, graph.name, FINETUNED_CHECKPOINT)
            )
            outcome = representation.judge(
                store, snapshot, reports, model, CheckpointMetadata.of(model).labels if model else []
            )
        return graph.check_result(
            outcome.model_copy(update={"metadata": {**outcome.metadata, "snapshot": snapshot.ref}}),
            TRAINING_SNAPSHOT,
        )

    return [training_data_represents_production]


def build(graph: CaseGraph) -> list[dg.AssetsDefinition]:
    """Return the assets of a use case whose production delivers documents."""
    return [*_build_predictions(graph), *_build_monitoring(graph)] if graph.has_windows else []
