"""monitoring: production_documents [window]; with finetuned_checkpoint -> drift_report [window]."""

import dagster as dg

from fullft_assets import documents, monitoring, release
from fullft_assets.assets.case import Case
from fullft_assets.resources import one_line_errors
from fullft_assets.store import Manifest, artifact_key


def build(case: Case) -> list[dg.AssetsDefinition]:
    """Return the assets of this stage."""

    @dg.asset(
        key=case.key("production_documents"),
        partitions_def=case.windows,
        description="What production saw in one window, unchanged.",
        code_version=case.code_version(documents.VERSION, "documents"),
        kinds={"parquet"},
        check_specs=case.checks("production_documents", [("files_are_readable", "Every file of the window could be read.", False)]),
        **case.shared(),
    )
    def production_documents(context: dg.AssetExecutionContext):
        store = case.store(context.instance)
        with one_line_errors():
            manifest = documents.keep(store, case.use_case, context.partition_key, "window")
        return case.result(manifest, "production_documents", store)

    @dg.asset(
        key=case.key("drift_report"),
        ins={name: dg.AssetIn(case.key(name), input_manager_key=case.io_key) for name in ("production_documents", "finetuned_checkpoint")},
        partitions_def=case.windows,
        description="Is what the model sees today what it learned on? Six tests, corrected together.",
        code_version=case.code_version(monitoring.VERSION, "monitoring"),
        kinds={"scipy", "pytorch"},
        # A pool of its own: windows follow each other (the first one makes the reference), and none waits for a long training.
        pool="monitoring",
        check_specs=case.checks("drift_report", [("window_matches_reference", "Production looks like the held-out rows.", False)]),
        **case.shared(),
    )
    def drift_report(
        context: dg.AssetExecutionContext,
        production_documents: Manifest,
        finetuned_checkpoint: Manifest,
    ):
        store = case.store(context.instance)
        with one_line_errors():
            # Production runs the champion; before the first one, the newest model stands for it. The reference is what
            # that model learned on, not the newest snapshot: a periodic evaluation moves that towards the new data.
            champion = release.read_champion(store, case.name)
            checkpoint = store.load(champion.checkpoint) if champion else finetuned_checkpoint
            inputs = {
                "production_documents": production_documents,
                "training_snapshot": store.load(checkpoint.metadata["snapshot"]),
                "finetuned_checkpoint": checkpoint,
            }
            for upstream in (inputs["training_snapshot"], checkpoint):
                upstream.require_green("drift_report")
            digests = {name: manifest.content_digest for name, manifest in inputs.items()}
            key = artifact_key("drift_report", monitoring.VERSION, monitoring.key_settings(case.settings), digests, case.settings.seed)
            job = case.job("drift_report", key, context.instance, inputs)
            manifest = store.find(case.name, "drift_report", key) or case.launcher().run(context, "monitoring", job, store)
        return case.result(manifest, "drift_report", store, {"table": dg.MetadataValue.md(manifest.metadata["table"])})

    return [production_documents, drift_report]
