"""Key figures of a use case for a dashboard: numbers that its newest events have."""

import dagster as dg

from fullft_assets import release
from fullft_assets.artifacts import DRIFT_REPORT, LIVE_QUALITY, RAW_DOCUMENTS
from fullft_assets.assets.graph import CaseGraph
from fullft_assets.automation.decision import ASSET
from fullft_assets.monitoring import ALARMED
from fullft_assets.store import Store

_RUNNING = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED]


def key_figures(graph: CaseGraph, instance: dg.DagsterInstance, store: Store, now: float) -> dict[str, float]:
    """Return the figures that are known: `Score` of the champion at its release, `LiveAccuracy`, `Drift` (1:
    the newest window alarms), `DataAge` in days, `UsdThisMonth` of automatic retrains, and `RunningJobs`.
    """

    def newest(asset: str) -> dg.EventLogEntry | None:
        return instance.get_latest_materialization_event(graph.key(asset))

    figures: dict[str, object] = {}
    for name, asset, key in (
        ("LiveAccuracy", LIVE_QUALITY, "accuracy"),
        ("Drift", DRIFT_REPORT, "status"),
        ("UsdThisMonth", ASSET, "usd_spent_this_month"),
    ):
        event = newest(asset)
        if event is not None and event.asset_materialization is not None:
            value = event.asset_materialization.metadata.get(key)
            figures[name] = None if value is None else value.value
    if "Drift" in figures:
        figures["Drift"] = float(figures["Drift"] in ALARMED)
    if (delivery := newest(RAW_DOCUMENTS)) is not None:
        figures["DataAge"] = (now - delivery.timestamp) / 86_400
    if (champion := release.read_champion(store, graph.name)) is not None:
        figures["Score"] = champion.score
    figures["RunningJobs"] = instance.get_runs_count(
        dg.RunsFilter(statuses=_RUNNING, tags={"use_case": graph.name})
    )
    return {name: float(value) for name, value in figures.items() if isinstance(value, int | float)}
