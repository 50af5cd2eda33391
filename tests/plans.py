"""Plans for changed settings without the minutes that planning takes: planning itself is tested elsewhere."""

from fullft_assets.assets.graph import CaseGraph
from fullft_assets.assets.model import base_model_revision, planning_key
from fullft_assets.resources import latest
from fullft_assets.settings.use_case import UseCase
from fullft_assets.store import Store


def approve(store: Store, use_case: UseCase) -> None:
    """Record the existing green plan and pilot as those of the current settings."""
    name = use_case.name
    graph = CaseGraph(use_case)
    key = planning_key(graph, latest(store, name, "training_snapshot"), base_model_revision(graph))
    for stage in ("feasibility_plan", "pilot_run"):
        old = latest(store, name, stage)
        with store.create(name, stage, key, version=old.version, seed=old.seed) as draft:
            new = draft.commit(
                settings=old.settings, inputs=old.inputs, metadata=old.metadata, checks=old.checks
            )
        store.write_pointer(f"latest/{name}/{stage}/all", {"ref": new.ref})
