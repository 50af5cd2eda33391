"""monitoring: production_documents [window]; with finetuned_checkpoint -> drift_report [window]."""

from functools import partial

import dagster as dg

from fullft_assets import monitoring, release
from fullft_assets.assets.case import Case
from fullft_assets.resources import latest, one_line_errors
from fullft_assets.store import Manifest, Store, artifact_key
from fullft_assets.training.metadata import CheckpointMetadata


def build(case: Case) -> list[dg.AssetsDefinition]:
    """Return the assets of this stage."""

    @dg.asset(
        key=case.key("drift_report"),
        ins={name: dg.AssetIn(case.key(name), input_manager_key=case.io_key) for name in ("production_documents", "finetuned_checkpoint")},
        partitions_def=case.windows,
        description="Is what the model sees today what it saw when it was new? Windows against the first ones under this champion.",
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
            settings = monitoring.key_settings(case.settings)
            history = monitoring.read_history(
                context.partition_key,
                store.list_pointers(f"latest/{case.name}/drift_report"),
                partial(latest, store, case.name, "drift_report"),
                store.load,
                documents=production_documents,
                model=inputs["finetuned_checkpoint"],
                settings=settings,
                num_reference=case.settings.monitoring.reference_windows,
            )
            inputs |= history.as_inputs()
            # The checkpoint determines its snapshot.
            digests = {name: manifest.content_digest for name, manifest in inputs.items() if name != "training_snapshot"}
            key = artifact_key("drift_report", monitoring.VERSION, settings, digests, case.settings.seed)
            manifest = case.find_or_launch(context, "monitoring", "drift_report", key, inputs)
        return case.result(manifest, "drift_report", store, {"table": dg.MetadataValue.md(monitoring.DriftMetadata.of(manifest).table)})

    return [drift_report]


def _model_in_use(case: Case, store: Store, newest: Manifest) -> dict[str, Manifest]:
    """Return the checkpoint that production runs and the snapshot that it was trained on.

    Production runs the champion; before the first one, the newest model takes its place. The scale is fitted on what that model was measured
    on, not on the newest snapshot: a periodic evaluation moves that towards the new data.
    """
    champion = release.read_champion(store, case.name)
    checkpoint = store.load(champion.checkpoint) if champion else newest
    return {"training_snapshot": store.load(CheckpointMetadata.of(checkpoint).snapshot), "finetuned_checkpoint": checkpoint}
