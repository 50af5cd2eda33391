"""training: training_snapshot -> finetuned_checkpoint. Every weight is trained.

Run by a launcher or by hand: `python -m fullft_assets.launch.workloads.training --job URI`. The same command
after a kill resumes at the last complete checkpoint.
"""

import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from fullft_assets import checkpoint as checkpoint_key
from fullft_assets.artifacts import CHEAPER_BASELINES, TRAINING_SNAPSHOT
from fullft_assets.base_model import BaseModelHeader, copy_code, find_base_model, read_header, weights_digest
from fullft_assets.checkpoint import lineage
from fullft_assets.checkpoint.metadata import CheckpointMetadata, RecordedIncident
from fullft_assets.chunks import save_tokenizer
from fullft_assets.job import Job
from fullft_assets.launch.entry import run_workload
from fullft_assets.models import loading, precision
from fullft_assets.models.inference import claim_device
from fullft_assets.progress import Progress
from fullft_assets.ranks import is_first_local_rank, is_first_rank, num_ranks
from fullft_assets.snapshot import label_names
from fullft_assets.store import Manifest, Store, checkpoints_ref, digest
from fullft_assets.tasks.context import open_recipe
from fullft_assets.training import spot
from fullft_assets.training.checkpoints import STEP_LOG, library_versions, room_needed
from fullft_assets.training.finetuning import Fit, exclusive, fine_tune
from fullft_assets.training.stored_checkpoints import stored_checkpoints


def work(job: Job, store: Store, progress: Progress) -> None:
    """Train, or resume training, and write the checkpoint artifact; one that exists is left as it is."""
    if is_first_local_rank():
        _remove_finished(job, store)
    checkpoint = store.find(job.case, job.stage, job.key)
    if checkpoint is not None:
        progress.say(f"{checkpoint.ref} exists already")
        return
    claim_device()
    inputs = job.load_inputs(store)
    start = inputs.get("champion")
    recipe = open_recipe(job, store, inputs[TRAINING_SNAPSHOT], start, inputs.get(CHEAPER_BASELINES))
    progress.say(f"training begins with {lineage.trained_from(start, job.settings)}")
    header = read_header(find_base_model(job.settings, Path(job.project_root)))
    folder = store.work_folder(job.case, job.stage, job.key)
    with (
        exclusive(folder) if is_first_rank() else nullcontext(),
        spot.stop_on_notice(job.settings.launcher, progress),
        stored_checkpoints(store, job.case, job.stage, job.key, progress) as checkpoints,
    ):
        fit = fine_tune(
            recipe,
            job.settings.with_epochs(recipe.num_rows).training,
            job.settings.seed + job.settings.training.retry_epoch,
            folder,
            progress,
            num_processes=num_ranks(),
            max_memory_gib=job.settings.planning.max_memory_gib,
            stored_in=header.dtype,
            checkpoints=checkpoints,
        )
        if is_first_rank():
            # Before the model is written: it changes the model's configuration.
            facts = fit.about | recipe.finish(fit.model, progress)
            with room_needed(folder, "the trained model"):
                _write(job, store, inputs, header, folder, fit, facts)
            if checkpoints is not None:
                checkpoints.remove_all()
            shutil.rmtree(folder)


def _remove_finished(job: Job, store: Store) -> None:
    """Remove the checkpoints of trainings whose model is in the store: a process that was killed then has not
    done so itself.

    Other hosts of a training leave their copies, which nobody needs any more.
    """
    for folder in store.work_folders(job.case, job.stage):
        if store.find(job.case, job.stage, folder.name) is not None:
            shutil.rmtree(folder, ignore_errors=True)
    for key in store.stored_work(job.case, job.stage) if is_first_rank() else ():
        if store.find(job.case, job.stage, key) is not None:
            store.remove_folder(checkpoints_ref(job.case, job.stage, key))


def _write(
    job: Job,
    store: Store,
    inputs: dict[str, Manifest],
    header: BaseModelHeader,
    folder: Path,
    fit: Fit,
    facts: dict[str, Any],
) -> Manifest:
    settings = job.settings
    base_model = find_base_model(settings, Path(job.project_root))
    with store.create(
        job.case, job.stage, job.key, version=checkpoint_key.VERSION, seed=settings.seed
    ) as draft:
        precision.round_weights(fit.model, header.dtype, keeps_format=False)
        loading.save_model(fit.model, draft.path / "model", settings.chunks.max_tokens)
        save_tokenizer(base_model, settings.chunks.added_tokens, draft.path / "model")
        copy_code(base_model, draft.path / "model")
        (draft.path / "logs").mkdir()
        shutil.copy(folder / STEP_LOG, draft.path / checkpoint_key.STEP_LOG)
        return draft.commit(
            settings=checkpoint_key.key_settings(settings),
            inputs={name: manifest.content_digest for name, manifest in inputs.items()},
            metadata=_metadata(job, inputs, header, fit, facts).as_dict(),
            checks=checkpoint_key.checks(fit.history, fit.scores),
        )


def _metadata(
    job: Job, inputs: dict[str, Manifest], header: BaseModelHeader, fit: Fit, facts: dict[str, Any]
) -> CheckpointMetadata:
    settings = job.settings
    start = inputs.get("champion")
    snapshot = inputs[TRAINING_SNAPSHOT]
    return CheckpointMetadata(
        base_model=settings.base_model,
        base_model_revision=header.revision,
        base_model_weights=weights_digest(header.folder),
        snapshot=snapshot.ref,
        labels=label_names(snapshot),
        trained_from=lineage.trained_from(start, settings),
        lineage=[] if start is None else lineage.trainings(start),
        num_parameters=fit.model.num_parameters(),
        num_trained_parameters=fit.model.num_parameters(only_trainable=True),
        num_steps=fit.num_steps,
        model_of_step=fit.step,
        num_tokens=fit.num_tokens,
        training_seconds=fit.seconds,
        tokens_per_second=fit.num_tokens / fit.seconds,
        training_usd=fit.seconds / 3600 * settings.planning.hourly_usd,
        resumed_from_step=fit.resumed_from_step,
        peak_memory_gib=fit.peak_memory_bytes / 2**30,
        micro_batch_size=fit.micro_batch_size,
        incidents=[
            RecordedIncident(event=i.kind, step=i.step, continued_from_step=i.to_step, reason=i.reason)
            for i in fit.incidents
        ],
        num_warnings=sum(line.get("action") == "warn" for line in fit.history),
        precision=precision.of(settings.training),
        general_before=checkpoint_key.score_before(fit.history),
        general_loss=fit.scores.get("general_loss"),
        general_distance=fit.scores.get("general_distance"),
        general_rise=fit.scores.get("general_rise"),
        wise_ft_alpha=None if fit.interpolated is None else fit.interpolated.alpha,
        wise_ft_scores=None if fit.interpolated is None else fit.interpolated.scores,
        facts={name: value for name, value in fit.scores.items() if name.startswith("validation_")} | facts,
        versions=library_versions(),
        settings_digest=digest(settings.model_dump(mode="json")),
    )


if __name__ == "__main__":
    run_workload(work)
