"""training: training_snapshot -> finetuned_checkpoint. Every weight is trained.

Run by a launcher or by hand: `python -m fullft_assets.workloads.training --job URI`. The same command
after a kill resumes at the last whole checkpoint.
"""

from __future__ import annotations

import os
import shutil
from contextlib import nullcontext
from pathlib import Path

from fullft_assets import training
from fullft_assets.base_model import read_header, resolve_base_model, weights_digest
from fullft_assets.jobs import Job
from fullft_assets.snapshot import label_names, load_split
from fullft_assets.store import Manifest, Store, digest
from fullft_assets.workloads import precision
from fullft_assets.workloads.entry import Progress, run_workload
from fullft_assets.workloads.finetuning import STEP_LOG, Fit, exclusive, fine_tune

#: Files of a base model that a transformers folder needs beside weights and configuration.
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "vocab.json", "merges.txt")


def work(job: Job, store: Store, progress: Progress) -> None:
    """Train, or resume training, and write the checkpoint artifact; one that exists is left as it is."""
    found = store.find(job.case, job.stage, job.key)
    if found is not None:
        progress.say(f"{found.ref} exists already")
        return
    inputs = job.load_inputs(store)
    snapshot = inputs["training_snapshot"]
    base_model = resolve_base_model(job.settings.base_model, Path(job.project_root))
    folder = store.work_folder(job.case, job.stage, job.key)
    is_first_rank = int(os.environ.get("RANK", "0")) == 0
    train, validation = load_split(store, snapshot, "train"), load_split(store, snapshot, "validation")
    with exclusive(folder) if is_first_rank else nullcontext():
        fit = fine_tune(
            base_model,
            train,
            validation,
            label_names(snapshot),
            job.settings.training,
            job.settings.seed + job.settings.training.retry_epoch,
            folder,
            progress,
            num_processes=int(os.environ.get("WORLD_SIZE", "1")),
        )
        if is_first_rank:
            _write(job, store, inputs, base_model, folder, fit)
            shutil.rmtree(folder)


def _write(job: Job, store: Store, inputs: dict[str, Manifest], base_model: Path, folder: Path, fit: Fit) -> Manifest:
    settings = job.settings
    header = read_header(base_model)
    final = next(line for line in reversed(fit.history) if "validation_loss" in line)
    with store.create(job.case, job.stage, job.key, version=training.VERSION, seed=settings.seed) as draft:
        fit.model.save_pretrained(draft.path / "model", safe_serialization=True)
        for name in _TOKENIZER_FILES:
            if (base_model / name).is_file():
                shutil.copy(base_model / name, draft.path / "model" / name)
        (draft.path / "logs").mkdir()
        shutil.copy(folder / STEP_LOG, draft.path / "logs" / STEP_LOG)
        return draft.commit(
            settings=training.key_settings(settings),
            inputs={name: manifest.content_digest for name, manifest in inputs.items()},
            metadata={
                "base_model": settings.base_model,
                "base_model_revision": header.revision,
                "base_model_weights": weights_digest(base_model),
                "snapshot": inputs["training_snapshot"].ref,
                "labels": label_names(inputs["training_snapshot"]),
                "num_parameters": fit.model.num_parameters(),
                "num_trained_parameters": fit.model.num_parameters(only_trainable=True),
                "num_steps": fit.num_steps,
                "num_tokens": fit.num_tokens,
                "training_seconds": fit.seconds,
                "tokens_per_second": fit.num_tokens / fit.seconds,
                "training_usd": fit.seconds / 3600 * settings.planning.hourly_usd,
                "resumed_from_step": fit.resumed_from_step,
                "peak_memory_gib": fit.peak_memory_bytes / 2**30,
                "precision": precision.resolve(settings.training.precision),
                "validation_loss": final["validation_loss"],
                "validation_accuracy": final["validation_accuracy"],
                "validation_macro_f1": final["validation_macro_f1"],
                "settings_digest": digest(settings.model_dump(mode="json")),
            },
            checks=training.checks(fit.history),
        )


if __name__ == "__main__":
    run_workload(work)
