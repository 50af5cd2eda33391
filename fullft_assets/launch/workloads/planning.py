"""planning: training_snapshot -> feasibility_plan, cheaper_baselines, pilot_run, in one process, or in
several that share the model.

Run by a launcher or by hand: `python -m fullft_assets.launch.workloads.planning --job URI`; under torchrun
where `training.sharding` is on.
"""

import json
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from fullft_assets import planning
from fullft_assets.artifacts import (
    BASELINE_MODEL,
    CHEAPER_BASELINES,
    FEASIBILITY_PLAN,
    PILOT_RUN,
    TRAINING_SNAPSHOT,
)
from fullft_assets.checkpoint import plan_settings
from fullft_assets.errors import DivergenceError, OutOfMemory, SettingsError, is_out_of_memory
from fullft_assets.job import Job
from fullft_assets.launch.entry import run_workload
from fullft_assets.models.hardware import free_memory, local_hardware
from fullft_assets.models.inference import claim_device
from fullft_assets.planning.targets import lora_share, recommendation, shares, table
from fullft_assets.progress import Progress
from fullft_assets.ranks import is_first_rank, num_ranks
from fullft_assets.release import candidates
from fullft_assets.settings import TrainingSettings, UseCaseSettings
from fullft_assets.snapshot import SnapshotMetadata, label_names
from fullft_assets.store import CheckOutcome, Draft, Manifest, Store
from fullft_assets.store.metadata import Metadata
from fullft_assets.task import BASELINES
from fullft_assets.tasks.context import baseline_context, open_recipe, store_baseline
from fullft_assets.tasks.trained import AdaptedRecipe, lora_settings
from fullft_assets.training import ranks
from fullft_assets.training.finetuning import Fit, fine_tune, require
from fullft_assets.training.measuring import CannotCount, TargetPlanner, measure
from fullft_assets.training.recipe import Recipe


@dataclass
class Planning:
    """The inputs that the three artifacts share; the rows are read once.

    Attributes:
        processes: that share the model in planning as they will in training; 1 if this process holds all of
            it.
    """

    job: Job
    store: Store
    progress: Progress
    snapshot: Manifest
    recipe: Recipe
    processes: int = 1

    def write(self, stage: str, make: Callable[[Draft], Manifest | None]) -> Manifest | None:
        """Return the artifact of a stage, made now unless it exists; None in processes after the first one
        that helped to make it.

        Args:
            stage: its name.
            make: fills a draft. All processes do so, as they share the model; that of the first one is kept.
        """
        if (manifest := self.store.find(self.job.case, stage, self.job.key)) is not None:
            return manifest
        self.progress.raise_if_stopped()
        self.progress.say(f"{stage} ...")
        with self.store.create(
            self.job.case, stage, self.job.key, version=planning.VERSION, seed=self.job.settings.seed
        ) as draft:
            return make(draft)

    def commit(self, draft: Draft, metadata: Metadata, checks: list[CheckOutcome]) -> Manifest | None:
        """Commit a draft with the shared settings and inputs; in processes after the first one leave it to be
        removed.
        """
        if not is_first_rank():
            return None
        return draft.commit(
            settings={
                "planning": self.job.settings.model_dump(include={"planning"})["planning"],
                "training": plan_settings(self.job.settings),
            },
            inputs={TRAINING_SNAPSHOT: self.snapshot.content_digest},
            metadata=metadata.as_dict(),
            checks=checks,
        )


def work(job: Job, store: Store, progress: Progress) -> None:
    """Write the three planning artifacts.

    Raises:
        SettingsError: training would refuse its settings, see `finetuning.require`; or the rows are too few
            for a pilot.
    """
    settings = job.settings
    claim_device()
    if job.stage == BASELINE_MODEL:
        if is_first_rank():
            _store_best_baseline(job, store, progress)
        return
    # Checked now: training itself would check only after the pilot.
    require(settings.training, settings.launcher.processes)
    snapshot = job.load_inputs(store)[TRAINING_SNAPSHOT]
    recipe = open_recipe(job, store, snapshot)
    _pilot_rows(recipe, settings)
    job = job.model_copy(update={"settings": settings.with_epochs(recipe.num_rows)})
    workload = Planning(job, store, progress, snapshot, recipe, processes=num_ranks())
    workload.write(FEASIBILITY_PLAN, lambda draft: _write_plan(workload, draft))
    baselines = workload.write(CHEAPER_BASELINES, lambda draft: _write_baselines(workload, draft))
    workload.write(
        PILOT_RUN,
        lambda draft: _write_pilot(workload, draft, cast(Manifest, ranks.from_first(baselines))),
    )


def _store_best_baseline(job: Job, store: Store, progress: Progress) -> None:
    """Write the model of the baseline that is judged where the pilot refused the training."""
    inputs = job.load_inputs(store)
    baselines = inputs[CHEAPER_BASELINES]
    name = candidates(planning.BaselinesMetadata.of(baselines), job.settings.release, None)[0]
    store_baseline(job, store, inputs[TRAINING_SNAPSHOT], baselines, name, progress)


def _on_targets(
    workload: Planning, measurement: planning.Measured | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the plan on other machines for the metadata of the plan, calibrated on this one where its speed
    was measured; and the changes of training with which it fits here.
    """
    if not is_first_rank():
        return {}, {}
    settings = workload.job.settings
    planner = TargetPlanner(workload.recipe, settings, _num_held_out_rows(workload))
    try:
        flops = planner.work().flops
        plans = planner.plans(None if measurement is None else flops / measurement.predicted_seconds)
    except CannotCount as error:
        workload.progress.say(f"no plan for other machines: {error}")
        return {}, {}
    recommended = recommendation(plans, settings)
    workload.progress.say(recommended)
    facts = {"flops": flops, "targets": list(table(plans)), "recommended": recommended}
    return facts, plans[0].setup if plans[0].fits else {}


def _num_held_out_rows(workload: Planning) -> int:
    metadata = SnapshotMetadata.of(workload.snapshot)
    return metadata.num_validation_rows + metadata.num_test_rows


def _write_plan(workload: Planning, draft: Draft) -> Manifest | None:
    try:
        measurement, about = measure(workload.recipe, workload.job.settings, workload.processes)
    except Exception as error:
        if not (isinstance(error, OutOfMemory) or is_out_of_memory(error)):
            raise
        alone = (
            "; this process held the complete model: start planning under torchrun, as the launcher does"
            if workload.job.settings.training.sharding != "none" and workload.processes == 1
            else ""
        )
        # The frames hold what did not fit.
        traceback.clear_frames(error.__traceback__)
        free_memory()
        # The others of several processes end at once, and with them one that still counts.
        raise OutOfMemory(
            "not one training pass of the largest size fits in memory; lower training.micro_batch_size or"
            " chunks.max_tokens, set training.gradient_checkpointing, or go down the memory ladder"
            f" (training.optimizer, training.weights){alone}"
            + planning.fitting_note(_on_targets(workload, None)[1] if workload.processes == 1 else {})
        ) from error
    settings = workload.job.settings
    parts = shares(settings, workload.recipe.num_rows, _num_held_out_rows(workload))
    on_targets, fitting = _on_targets(workload, measurement)
    plan, checks = planning.plan_checks(
        measurement,
        settings.planning,
        settings.training,
        # That share a model.
        settings.launcher.processes
        // (getattr(settings.launcher, "nodes", 1) if settings.training.sharding == "fsdp2_by_host" else 1),
        trainings=parts.first,
        fitting=fitting,
    )
    metadata = planning.PlanMetadata(
        **{**plan.model_dump(), "hardware": local_hardware(), **on_targets, **about}
    )
    (draft.path / "plan.json").write_text(json.dumps(metadata.as_dict(), indent=1))
    for check in checks:
        workload.progress.say(f"{check.name}: {check.description}")
    if note := planning.stop_note(plan.stop_seconds, settings.launcher.grace_seconds):
        workload.progress.say(note)
    return workload.commit(draft, metadata, checks)


def _write_baselines(workload: Planning, draft: Draft) -> Manifest | None:
    metric = workload.job.settings.primary_metric
    measured = {}
    seconds = {}
    context = replace(
        baseline_context(workload.job, workload.store, workload.snapshot, workload.progress),
        shares_models=workload.processes > 1,
    )

    def score(name: str) -> dict[str, Any]:
        return dict(workload.recipe.score_baselines([name], draft.path, context))[name]

    for name in workload.job.settings.baselines:
        began = time.monotonic()
        measured[name] = (
            ranks.by_first(partial(score, name), workload.progress)
            if context.shares_models and not BASELINES.get(name).shares_model
            else score(name)
        )
        seconds[name] = time.monotonic() - began
        workload.progress.say(f"{name}: validation {metric} {measured[name][metric]:.4f}")
    scores = {name: metrics[metric] for name, metrics in measured.items()}
    best = max(scores, key=scores.__getitem__)
    metadata = planning.BaselinesMetadata(
        labels=label_names(workload.snapshot),
        scores=scores,
        seconds=seconds,
        usd={
            name: seconds[name] / 3600 * workload.job.settings.planning.hourly_usd
            + context.paid.get(name, 0.0)
            for name in seconds
        },
        rises={
            name: metrics["general_rise"] for name, metrics in measured.items() if "general_rise" in metrics
        },
        best=best,
        best_score=scores[best],
    )
    return workload.commit(draft, metadata, [])


def _pilot_rows(recipe: Recipe, settings: UseCaseSettings) -> int:
    return planning.pilot_rows(recipe.num_rows, settings.planning.pilot_share, settings.training.batch_size)


def _write_pilot(workload: Planning, draft: Draft, baselines: Manifest) -> Manifest | None:
    settings = workload.job.settings
    metric = settings.primary_metric
    to_beat = planning.BaselinesMetadata.of(baselines)
    # Sharding needs more than one process.
    changes = {"max_general_rise": None, "wise_ft": []} | (
        {"sharding": "none"} if workload.processes == 1 else {}
    )
    workload.progress.say(f"pilot on {_pilot_rows(workload.recipe, settings):,} rows ...")
    fit = _pilot_fit(workload, workload.recipe, settings.training.model_copy(update=changes), [0])
    start = next(line[f"validation_{metric}"] for line in fit.history if f"validation_{metric}" in line)
    fitted = _cheap_baselines_on_pilot_rows(workload)
    # A head that more rows fit begins higher; everything else begins alike.
    starts = (
        [score for name, score in to_beat.scores.items() if BASELINES.get(name).is_start]
        if workload.recipe.has_new_head
        else [start]
    )
    on_pilot_rows = [*fitted.values(), *([start] if starts else [])]
    point = planning.Point(
        rows=_pilot_rows(workload.recipe, settings),
        start=start,
        score=fit.scores[f"validation_{metric}"],
        baseline=max(on_pilot_rows) if on_pilot_rows else start,
    )
    prediction = planning.predict_score(
        point,
        max([*starts, *(to_beat.scores[name] for name in fitted)], default=None),
        workload.recipe.num_rows,
        SnapshotMetadata.of(workload.snapshot).num_validation_rows,
        in_nats=metric == "token_probability",
    )
    lora_score = _lora_score(workload)
    check = planning.pilot_check(prediction, to_beat.scores, settings.planning, lora_score)
    workload.progress.say(check.description)
    metadata = planning.PilotMetadata(
        lora_score=lora_score,
        learning_curve=[
            {"rows": point.rows, "start": start, "baseline": point.baseline, metric: point.score}
        ],
        predicted=prediction.predicted,
        predicted_low=prediction.low,
        predicted_high=prediction.high,
        target_rows=prediction.target_rows,
        best_baseline=to_beat.best,
        best_baseline_score=to_beat.best_score,
        seconds=fit.seconds,
        num_tokens=fit.num_tokens,
    )
    (draft.path / "pilot.json").write_text(
        json.dumps({**metadata.as_dict(), "history": fit.history}, indent=1)
    )
    return workload.commit(draft, metadata, [check])


def _cheap_baselines_on_pilot_rows(workload: Planning) -> dict[str, float]:
    """Return the validation scores of the baselines of the lowest rank, such as TF-IDF, which learn in
    seconds.
    """
    settings = workload.job.settings
    # The point is the first process's; the others have the same.
    names = [name for name in settings.baselines if is_first_rank() and BASELINES.get(name).serving_rank == 0]
    context = baseline_context(workload.job, workload.store, workload.snapshot, workload.progress)
    with tempfile.TemporaryDirectory(prefix="fullft-pilot-") as folder:
        scored = workload.recipe.first(_pilot_rows(workload.recipe, settings)).score_baselines(
            names, Path(folder), context
        )
        return {name: metrics[settings.primary_metric] for name, metrics in scored}


def _pilot_fit(
    workload: Planning, recipe: Any, training: TrainingSettings, evaluate_at: Sequence[int] = ()
) -> Fit:
    settings = workload.job.settings
    with tempfile.TemporaryDirectory(prefix="fullft-pilot-") as folder:
        return fine_tune(
            recipe.first(_pilot_rows(workload.recipe, settings)),
            training,
            settings.seed,
            Path(folder),
            workload.progress,
            num_processes=workload.processes,
            max_memory_gib=settings.planning.max_memory_gib,
            evaluate_at=evaluate_at,
            resumable=False,
        )


def _lora_score(workload: Planning) -> float | None:
    """Return the validation score of LoRA on the pilot's rows; None where it is not trained on them."""
    settings = workload.job.settings
    if not lora_share(settings, _pilot_rows(workload.recipe, settings) / workload.recipe.num_rows):
        return None
    workload.progress.say("LoRA on the same rows ...")
    try:
        fit = _pilot_fit(workload, AdaptedRecipe(workload.recipe), lora_settings(settings))
    except (DivergenceError, SettingsError) as error:
        workload.progress.say(f"LoRA was not measured: {error}")
        return None
    return fit.scores[f"validation_{settings.primary_metric}"]


if __name__ == "__main__":
    run_workload(work)
