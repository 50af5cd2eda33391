"""training: training_snapshot -> finetuned_checkpoint. Every weight is trained.

Run by a launcher or by hand: `python -m fullft_assets.workloads.training --job URI`. The same command
after a kill resumes at the last whole checkpoint.
"""

from __future__ import annotations

import os
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from fullft_assets import training
from fullft_assets.base_model import copy_code, find_base_model, read_header, weights_digest
from fullft_assets.chunks import save_tokenizer
from fullft_assets.engine import spot
from fullft_assets.engine.checkpoints import STEP_LOG, claim, room_needed
from fullft_assets.engine.finetuning import Fit, exclusive, fine_tune
from fullft_assets.engine.telemetry import EVENT_FILES
from fullft_assets.jobs import Job
from fullft_assets.jobs.process import Progress, run_workload
from fullft_assets.models import precision
from fullft_assets.models.inference import claim_device
from fullft_assets.snapshot import label_names
from fullft_assets.store import Manifest, Store, digest
from fullft_assets.tasks.opening import open_recipe
from fullft_assets.training import lineage


def work(job: Job, store: Store, progress: Progress) -> None:
    """Train, or resume training, and write the checkpoint artifact; one that exists is left as it is."""
    is_first_rank = int(os.environ.get("RANK", "0")) == 0
    if is_first_rank:
        _remove_left(job, store)
    found = store.find(job.case, job.stage, job.key)
    if found is not None:
        progress.say(f"{found.ref} exists already")
        return
    claim_device()
    inputs = job.load_inputs(store)
    snapshot = inputs["training_snapshot"]
    start = inputs.get("champion")
    recipe = open_recipe(job, store, snapshot, start)
    record = lineage.record(start, job.settings)
    progress.say(f"training begins with {record['trained_from']}")
    folder = store.work_folder(job.case, job.stage, job.key)
    with exclusive(folder) if is_first_rank else nullcontext(), spot.heeded(job.settings.launcher, progress):
        if is_first_rank:
            revision = read_header(find_base_model(job.settings, Path(job.project_root))).revision
            claim(folder, {**{name: manifest.content_digest for name, manifest in inputs.items()}, "base_model": revision})
        fit = fine_tune(
            recipe,
            job.settings.training,
            job.settings.seed + job.settings.training.retry_epoch,
            folder,
            progress,
            num_processes=int(os.environ.get("WORLD_SIZE", "1")),
        )
        if is_first_rank:
            fixed = recipe.finish(fit.model, progress)
            with room_needed(folder, "the trained model"):
                _write(job, store, inputs, folder, fit, {**record, **fixed})
            shutil.rmtree(folder)


def _remove_left(job: Job, store: Store) -> None:
    """Remove the checkpoints of trainings whose model is whole: a process that is killed then has not done so itself."""
    for folder in store.work_folders(job.case, job.stage):
        if store.find(job.case, job.stage, folder.name) is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _write(job: Job, store: Store, inputs: dict[str, Manifest], folder: Path, fit: Fit, record: dict[str, Any]) -> Manifest:
    settings = job.settings
    base_model = find_base_model(settings, Path(job.project_root))
    header = read_header(base_model)
    with store.create(job.case, job.stage, job.key, version=training.VERSION, seed=settings.seed) as draft:
        fit.model.save_pretrained(draft.path / "model", safe_serialization=True)
        save_tokenizer(base_model, settings.chunks.added_tokens, draft.path / "model")
        copy_code(base_model, draft.path / "model")
        (draft.path / "logs").mkdir()
        shutil.copy(folder / STEP_LOG, draft.path / "logs" / STEP_LOG)
        if (folder / EVENT_FILES).is_dir():
            shutil.copytree(folder / EVENT_FILES, draft.path / "logs" / EVENT_FILES)
        return draft.commit(
            settings=training.key_settings(settings),
            inputs={name: manifest.content_digest for name, manifest in inputs.items()},
            metadata={
                "base_model": settings.base_model,
                "base_model_revision": header.revision,
                "base_model_weights": weights_digest(header.folder),
                "snapshot": inputs["training_snapshot"].ref,
                "labels": label_names(inputs["training_snapshot"]),
                **record,
                "num_parameters": fit.model.num_parameters(),
                "num_trained_parameters": fit.model.num_parameters(only_trainable=True),
                "num_steps": fit.num_steps,
                "model_of_step": fit.step,
                "num_tokens": fit.num_tokens,
                "training_seconds": fit.seconds,
                "tokens_per_second": fit.num_tokens / fit.seconds,
                "training_usd": fit.seconds / 3600 * settings.planning.hourly_usd,
                "resumed_from_step": fit.resumed_from_step,
                "peak_memory_gib": fit.peak_memory_bytes / 2**30,
                "micro_batch_size": fit.micro_batch_size,
                "incidents": [{"event": i.kind, "step": i.step, "went_on_from_step": i.to_step, "reason": i.reason} for i in fit.incidents],
                "num_warnings": sum(line.get("action") == "warn" for line in fit.history),
                "precision": precision.of(settings.training),
                **fit.scores,
                **(
                    {} if fit.interpolated is None else {"wise_ft_alpha": fit.interpolated.alpha, "wise_ft_scores": fit.interpolated.scores}
                ),
                **({} if (before := training.score_before(fit.history)) is None else {"general_before": before}),
                **fit.about,
                "settings_digest": digest(settings.model_dump(mode="json")),
            },
            checks=training.checks(fit.history, fit.scores),
        )


if __name__ == "__main__":
    run_workload(work)
