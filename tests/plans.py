"""Plans for settings of now without the minutes that planning takes: planning itself is tested elsewhere."""

from __future__ import annotations

from fullft_assets.assets.case import Case
from fullft_assets.assets.planning import planning_key
from fullft_assets.resources import latest
from fullft_assets.settings.use_case import UseCase
from fullft_assets.store import Store


def approve(store: Store, use_case: UseCase) -> None:
    """Let the green plan and pilot that are there stand for the settings of now."""
    name = use_case.name
    key = planning_key(Case(use_case), latest(store, name, "training_snapshot"))
    for stage in ("feasibility_plan", "pilot_run"):
        old = latest(store, name, stage)
        with store.create(name, stage, key, version=old.version, seed=old.seed) as draft:
            new = draft.commit(settings=old.settings, inputs=old.inputs, metadata=old.metadata, checks=old.checks)
        store.write_pointer(f"latest/{name}/{stage}/all", {"ref": new.ref})
