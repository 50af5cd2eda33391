"""A baseline written into the store as the model of a champion; `baseline.open_model` reads it."""

from __future__ import annotations

import shutil
from pathlib import Path

from fullft_assets.artifacts import BASELINE_MODEL, CHEAPER_BASELINES, TRAINING_SNAPSHOT
from fullft_assets.base_model import find_base_model, read_header, weights_digest
from fullft_assets.checkpoint import CHECKS
from fullft_assets.checkpoint.metadata import CheckpointMetadata
from fullft_assets.jobs import Job
from fullft_assets.jobs.progress import Progress
from fullft_assets.planning import BaselinesMetadata
from fullft_assets.release import choice
from fullft_assets.snapshot import load_split
from fullft_assets.store import CheckOutcome, Draft, Manifest, Outcome, Store
from fullft_assets.store.hashing import digest
from fullft_assets.task import BASELINES
from fullft_assets.tasks.baseline import THRESHOLDS
from fullft_assets.tasks.context import fitted_context


def store_baseline(
    job: Job, store: Store, snapshot: Manifest, baselines: Manifest, name: str, progress: Progress
) -> Manifest:
    """Return the `baseline_model` of a baseline, written now unless it exists.

    Args:
        baselines: the `cheaper_baselines` that it is one of.
    """
    settings, fitted = job.settings, BaselinesMetadata.of(baselines)
    header = read_header(find_base_model(settings, Path(job.project_root)))
    source = store.folder(baselines)

    def write(draft: Draft) -> Outcome:
        progress.say(f"storing {name} ...")
        rows = load_split(store, snapshot, "validation")
        context = fitted_context(job, store, snapshot, fitted.labels, rows, progress)
        BASELINES.get(name).load(source, context).export(draft.path / "model", context)
        if (thresholds := source / f"{name}_{THRESHOLDS}").is_file():
            shutil.copy(thresholds, draft.path / "model" / THRESHOLDS)
        metadata = CheckpointMetadata(
            system=name,
            base_model=settings.base_model,
            base_model_revision=header.revision,
            base_model_weights=weights_digest(header.folder),
            snapshot=snapshot.ref,
            labels=fitted.labels,
            trained_from="the base model",
            num_parameters=0,
            num_trained_parameters=0,
            num_steps=0,
            model_of_step=0,
            num_tokens=0,
            training_seconds=fitted.seconds[name],
            tokens_per_second=0.0,
            training_usd=fitted.usd[name],
            resumed_from_step=0,
            peak_memory_gib=0.0,
            micro_batch_size=0,
            incidents=[],
            num_warnings=0,
            precision="fp32",
            facts={f"validation_{settings.primary_metric}": fitted.scores[name]},
            settings_digest=digest(settings.model_dump(mode="json")),
        )
        checks = [CheckOutcome(name=check.name, passed=True, description="not trained") for check in CHECKS]
        return metadata.as_dict(), checks

    return store.ensure(
        job.case,
        BASELINE_MODEL,
        write,
        version=choice.VERSION,
        settings=choice.stored_settings(name, settings),
        inputs={
            TRAINING_SNAPSHOT: snapshot.content_digest,
            CHEAPER_BASELINES: baselines.content_digest,
        },
        seed=settings.seed,
    )
