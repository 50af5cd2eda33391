"""`fullft plan`: what a training of the newest snapshot needs on this machine and on others, before one of
them is rented.
"""

from fullft_assets.artifacts import FEASIBILITY_PLAN, TRAINING_SNAPSHOT
from fullft_assets.errors import FullftError
from fullft_assets.job import Job
from fullft_assets.models.hardware import local_hardware
from fullft_assets.planning import PlanMetadata
from fullft_assets.planning.targets import plan_lines
from fullft_assets.release import verdict_outlook
from fullft_assets.resources import latest
from fullft_assets.settings.use_case import UseCase
from fullft_assets.snapshot import SnapshotMetadata
from fullft_assets.store import Store
from fullft_assets.tasks.context import open_recipe
from fullft_assets.training.measuring import CannotCount, TargetPlanner


def plan(use_case: UseCase, store: Store) -> list[str]:
    """Return the lines of the plan.

    Raises:
        FullftError: there is no snapshot yet, or the model cannot be counted without weights.
    """
    name = use_case.name
    snapshot = latest(store, name, TRAINING_SNAPSHOT)
    if snapshot is None:
        raise FullftError(
            f"{name} has no snapshot yet, so nothing is known of its texts' lengths; `fullft ingest {name}`"
            " takes one"
        )
    job = Job(
        case=name,
        stage=FEASIBILITY_PLAN,
        key="plan",
        project_root=str(use_case.project_root),
        store_url=store.url,
        kms_key=store.kms_key,
        settings=use_case.settings,
        inputs={TRAINING_SNAPSHOT: snapshot.ref},
    )
    metadata = SnapshotMetadata.of(snapshot)
    planner = TargetPlanner(
        open_recipe(job, store, snapshot),
        use_case.settings,
        metadata.num_validation_rows + metadata.num_test_rows,
    )
    try:
        plans = planner.plans(_measured_speed(store, name))
    except CannotCount as error:
        raise FullftError(
            f"{name}: {error}; `fullft run {name}` measures the plan on this machine"
        ) from error
    outlook = verdict_outlook(metadata, use_case.settings)
    return [*plan_lines(plans, use_case.settings, name), *(["", outlook] if outlook else [])]


def _measured_speed(store: Store, name: str) -> float | None:
    """Return the FLOP/s that the newest plan measured on a machine like this one; None without such a
    plan.
    """
    newest_plan = latest(store, name, FEASIBILITY_PLAN)
    metadata = None if newest_plan is None else PlanMetadata.of(newest_plan)
    return (
        None
        if metadata is None or metadata.hardware != local_hardware() or not metadata.flops
        else metadata.flops / metadata.predicted_seconds
    )
