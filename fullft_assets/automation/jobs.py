"""The jobs of a use case, and which assets each of them materialises."""

from typing import Any

import dagster as dg

from fullft_assets.assets import representation
from fullft_assets.assets.case import Case
from fullft_assets.automation.by_hand import build_job_by_hand
from fullft_assets.automation.orphans import build_orphans_job

INGEST = ("raw_documents", "labeled_examples", "quarantined_examples", "tokenized_chunks")
MODEL = (
    "tokenizer_audit",
    "training_snapshot",
    "feasibility_plan",
    "cheaper_baselines",
    "pilot_run",
    "finetuned_checkpoint",
    "evaluation_report",
    "champion_model",
)
SNAPSHOT = ("training_snapshot",)
EVALUATE = ("training_snapshot", "evaluation_report")
PREDICT = ("production_documents", "batch_predictions")
MONITOR = (*PREDICT, "drift_report")
#: Runs of one value of this tag are launched one after the other, in the order in which they were asked for:
#: see `concurrency` in dagster.yaml.
IN_ORDER_TAG = "delivery/in_order"


def build_jobs(case: Case) -> list[dg.JobDefinition]:
    """Return the jobs; one run cannot mix partition kinds, so there is one for each."""

    def job(
        name: str,
        assets: tuple[str, ...],
        description: str,
        partitions=None,
        more_checks: tuple[dg.AssetCheckKey, ...] = (),
    ):
        selection = dg.AssetSelection.assets(*[case.key(asset) for asset in assets])
        if more_checks:
            selection |= dg.AssetSelection.checks(*more_checks)
        tags = {"use_case": case.name} | ({IN_ORDER_TAG: case.name} if partitions == case.windows else {})
        return dg.define_asset_job(
            f"{case.name}_{name}", selection, partitions_def=partitions, description=description, tags=tags
        )

    jobs: list[Any] = [
        job("ingest", INGEST, "One batch of delivered files: read, validate, tokenise.", case.batches),
        job("snapshot", SNAPSHOT, "Freeze what is ingested, and write the data report."),
        job("model", MODEL, "Snapshot, plan, baselines, pilot, full fine-tuning, evaluation, release."),
        job(
            "evaluate",
            (*EVALUATE, "live_quality") if case.is_monitored else EVALUATE,
            "Score the latest checkpoint and the champion on the newest test rows, and on production"
            " documents that were labelled since.",
        ),
    ]
    if case.is_monitored:
        about = (
            "One window of production documents: what the champion predicts of them, and whether they have"
            " drifted."
        )
        # A new window may show that the training data is no longer what production sees.
        jobs.append(job("monitor", MONITOR, about, case.windows, (representation.check_key(case),)))
    elif case.has_windows:
        jobs.append(
            job(
                "monitor",
                PREDICT,
                "One window of production documents: what the champion predicts of them.",
                case.windows,
            )
        )
    return [*jobs, build_job_by_hand(case), *build_orphans_job(case)]
