"""monitoring: production_documents [window]; with finetuned_checkpoint -> drift_report [window]; with later
labels -> live_quality.
"""

from collections.abc import Iterator

import dagster as dg

from fullft_assets import monitoring, release
from fullft_assets.assets.case import Case
from fullft_assets.assets.sparkline import sparkline
from fullft_assets.assets.windows import logged_predictions, read_history, snapshot_of
from fullft_assets.errors import StoreError
from fullft_assets.evaluation.metadata import EvaluationMetadata
from fullft_assets.monitoring import live
from fullft_assets.resources import latest, latest_by_partition, one_line_errors
from fullft_assets.snapshot import SnapshotMetadata
from fullft_assets.store import CheckOutcome, Manifest, Store


def something_came(case: Case) -> dg.AutomationCondition:
    """Return the condition that labels or predictions came, or another champion: of that alone `live_quality`
    is made, once there is a champion.

    A drop was reported a day late: labels that come after the daily evaluation had waited for the next one.
    Red checks are no reason to wait, since a batch that is held back does not count; nor is a window without
    predictions, which is one of before the first champion.
    """
    # A champion that another Dagster made is known by what it predicts here.
    shows_champion = dg.AssetSelection.assets(case.key("champion_model"), case.key("batch_predictions"))
    has_champion = dg.AutomationCondition.any_deps_match(~dg.AutomationCondition.missing()).allow(
        shows_champion
    )
    changed = dg.AutomationCondition.any_deps_updated()
    # What changes in the minute after a request may be too late for its run, and what is measured in the
    # minute of a change may not know of it.
    done = dg.AutomationCondition.newly_requested() & ~changed
    is_settled = ~dg.AutomationCondition.any_deps_in_progress() & ~dg.AutomationCondition.in_progress()
    return (changed.since(done) & is_settled & has_champion).with_label("something_came")


def build(case: Case) -> list[dg.AssetsDefinition]:
    """Return the assets of this stage."""

    @dg.asset(
        key=case.key("drift_report"),
        ins={
            name: dg.AssetIn(case.key(name), input_manager_key=case.io_key)
            for name in ("production_documents", "finetuned_checkpoint")
        },
        partitions_def=case.windows,
        description="Is what the model sees today what it saw when it was new? Windows against earlier ones.",
        code_version=case.code_version(monitoring.VERSION, "monitoring"),
        kinds={"scipy", "pytorch"},
        # A pool of its own: windows follow each other (the first one makes the reference), and none waits for
        # a long training.
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
            champion, logged = (
                release.read_champion(store, case.name),
                logged_predictions(case, store, production_documents),
            )
            # Production runs the champion; before the first one, the newest model takes its place.
            checkpoint = store.load(champion.checkpoint) if champion else finetuned_checkpoint
            history = read_history(
                case, store, context.partition_key, production_documents, checkpoint, logged
            )
            model = {"training_snapshot": snapshot_of(store, checkpoint), "finetuned_checkpoint": checkpoint}
            for manifest in model.values():
                manifest.require_green("drift_report")
            inputs = {"production_documents": production_documents, **model, **history.as_inputs(), **logged}
            key = monitoring.report_key(case.settings, inputs)
            manifest = case.find_or_launch(context, "monitoring", "drift_report", key, inputs)
        metadata = monitoring.DriftMetadata.of(manifest)
        shown: dict[str, dg.MetadataValue] = {"table": dg.MetadataValue.md(metadata.table)}
        windows = [monitoring.DriftMetadata.of(report) for report in history.windows]
        shares = [
            each.measured["novel_share"] for each in (*windows, metadata) if "novel_share" in each.measured
        ]
        if len(shares) > 1:
            shown["novel_share_curve"] = sparkline(shares, "novel share of the windows that were read")
        return case.result(
            manifest,
            "drift_report",
            store,
            shown,
            checks=[_seen(case, store, context.partition_key, metadata.status)],
        )

    @dg.asset(
        key=case.key("live_quality"),
        deps=[case.key(name) for name in ("batch_predictions", "labeled_examples", "champion_model")],
        automation_condition=something_came(case),
        description=(
            "How often the champion was right about production documents that got a label since, against its"
            " accuracy at release."
        ),
        code_version=case.code_version(monitoring.LIVE_VERSION, "evaluation"),
        kinds={"scipy"},
        check_specs=case.checks("live_quality", [monitoring.LIVE_CHECK]),
        output_required=False,
        **case.shared(),
    )
    def live_quality(
        context: dg.AssetExecutionContext,
    ) -> Iterator[dg.MaterializeResult | dg.AssetCheckResult]:
        store = case.store(context)
        with one_line_errors(store, case.name):
            champion = release.read_champion(store, case.name)
            if champion is None:
                none_yet = CheckOutcome(
                    name=monitoring.LIVE_CHECK.name,
                    passed=True,
                    description="no champion yet, so nothing to compare with",
                )
                yield case.check_result(none_yet, "live_quality")
                return
            manifest = _measure_live_quality(case, store, champion)
        yield case.result(manifest, "live_quality", store)

    return [drift_report, live_quality]


def _measure_live_quality(case: Case, store: Store, champion: release.Champion) -> Manifest:
    at_release = EvaluationMetadata.of(store.load(champion.evaluation))
    accuracy, low = (at_release.score(None, name) for name in (monitoring.METRIC, f"{monitoring.METRIC}_low"))
    if accuracy is None or low is None:
        raise StoreError(
            f"{case.name}: {champion.evaluation} has no {monitoring.METRIC}; evaluate and promote the model"
            " again"
        )
    # It has learned from the batches of its snapshot.
    learned = SnapshotMetadata.of(store.load(champion.snapshot)).parts
    usable = {
        name: manifest
        for name, manifest in latest_by_partition(store, case.name, "labeled_examples").items()
        if name not in learned and not any(check.is_red for check in manifest.checks)
    }
    return live.measure(
        store,
        case.name,
        champion=store.load(champion.checkpoint),
        release=monitoring.AtRelease(accuracy, low),
        windows=latest_by_partition(store, case.name, "production_documents"),
        predictions=latest_by_partition(store, case.name, "batch_predictions"),
        log=monitoring.log_key(case.settings),
        examples=usable,
        chosen=monitoring.exported_as_far(store, case.name),
        # As much as the interval at release may be wrong on its lower side: both together are wrong as seldom
        # as its two sides.
        error=(1 - case.settings.evaluation.confidence) / 2,
        seed=case.settings.seed,
    )


def _seen(case: Case, store: Store, window: str, status: monitoring.Status) -> CheckOutcome:
    """Return the check that production is seen; earlier windows are read only where this one has no
    verdict.
    """
    statuses: list[monitoring.Status] = [status]
    earlier = (
        name for name in reversed(store.list_pointers(f"latest/{case.name}/drift_report")) if name < window
    )
    while (
        len(statuses) < monitoring.MOST_WITHOUT_VERDICT
        and statuses[-1] in monitoring.WITHOUT_VERDICT
        and (name := next(earlier, None)) is not None
    ):
        report = latest(store, case.name, "drift_report", name)
        if report is not None:
            statuses.append(monitoring.DriftMetadata.of(report).status)
    return monitoring.seen_check(statuses)
