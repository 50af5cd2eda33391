"""representation: training_snapshot, production_documents, drift_report -> the check
training_data_represents_production.
"""

import dagster as dg

from fullft_assets import release
from fullft_assets.assets.case import Case
from fullft_assets.checkpoint.metadata import CheckpointMetadata
from fullft_assets.monitoring import representation
from fullft_assets.resources import ManifestIOManager, latest, latest_by_partition, one_line_errors


def check_key(case: Case) -> dg.AssetCheckKey:
    """Return the key of the check."""
    return dg.AssetCheckKey(case.key("training_snapshot"), representation.CHECK.name)


def build(case: Case) -> list[dg.AssetChecksDefinition]:
    """Return the check. It is looked at again when either side is new: behind each snapshot, and behind each
    window's drift report.

    It judges the snapshot that its run made, or the newest one when the run began: what a training would
    learn from, since it asks for more data. That the champion was trained on another one is what the novel
    share and the drift report show.
    """

    @dg.asset_check(
        asset=case.key("training_snapshot"),
        name=representation.CHECK.name,
        additional_deps=[case.key("drift_report")],
        description=representation.CHECK.description,
        required_resource_keys={case.store_key},
    )
    def training_data_represents_production(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        store = case.store(context)
        with one_line_errors(store, case.name):
            snapshot = ManifestIOManager(store, context.instance, context.run).load_of_run(
                case.key("training_snapshot")
            )
            windows, reports = (
                latest_by_partition(store, case.name, name)
                for name in ("production_documents", "drift_report")
            )
            champion = release.read_champion(store, case.name)
            model = (
                store.load(champion.checkpoint)
                if champion
                else latest(store, case.name, "finetuned_checkpoint")
            )
            labels = CheckpointMetadata.of(model).labels if model else []
            outcome = representation.judge(store, snapshot, windows, reports, model, labels)
        judged = outcome.model_copy(update={"metadata": {**outcome.metadata, "snapshot": snapshot.ref}})
        return case.check_result(judged, "training_snapshot")

    return [training_data_represents_production]
