"""training: training_snapshot, feasibility_plan, pilot_run -> finetuned_checkpoint."""

from collections.abc import Iterable, Iterator

import dagster as dg

from fullft_assets import checkpoint as checkpoint_key
from fullft_assets.assets.case import Case
from fullft_assets.assets.planning import base_model_revision, planning_key
from fullft_assets.assets.sparkline import sparkline
from fullft_assets.errors import GateError
from fullft_assets.planning import refusal
from fullft_assets.release import starting_point
from fullft_assets.resources import one_line_errors
from fullft_assets.store import Manifest, Store, artifact_key


def build(case: Case) -> list[dg.AssetsDefinition]:
    """Return the assets of this stage."""

    # An output that may be missing may lack its checks, too.
    @dg.multi_asset(
        name=f"{case.name}__finetuned_checkpoint",
        outs={
            "finetuned_checkpoint": dg.AssetOut(
                key=case.key("finetuned_checkpoint"),
                description=(
                    "The model: every weight trained, resumable, saved as safetensors with its lineage."
                ),
                code_version=case.code_version(checkpoint_key.VERSION, "training"),
                kinds={"pytorch", "huggingface"},
                io_manager_key=case.io_key,
                is_required=False,
            )
        },
        can_subset=True,
        ins={
            name: dg.AssetIn(case.key(name), input_manager_key=case.io_key)
            for name in ("training_snapshot", "feasibility_plan", "pilot_run")
        },
        check_specs=case.checks("finetuned_checkpoint", checkpoint_key.CHECKS),
        group_name=case.name,
        pool=case.settings.launcher_of("training").pool,
        required_resource_keys=case.shared(launches=True)["required_resource_keys"],
    )
    def finetuned_checkpoint(
        context: dg.AssetExecutionContext,
        training_snapshot: Manifest,
        feasibility_plan: Manifest,
        pilot_run: Manifest,
    ) -> Iterator[dg.MaterializeResult]:
        store = case.store(context)
        with one_line_errors(store, case.name):
            for upstream in (training_snapshot, feasibility_plan):
                upstream.require_green("finetuned_checkpoint")
            revision = base_model_revision(case)
            _require_current_plans(
                planning_key(case, training_snapshot, revision), (feasibility_plan, pilot_run)
            )
            if (refused := refusal(pilot_run)) is not None:
                # An answer and no failure: nothing below is made either.
                context.log.warning(refused)
                return
            decision = training_key(case, training_snapshot, revision)
            start = starting_point.find(
                store, case.name, case.settings, training_snapshot, revision=revision, decision=decision
            )
            inputs = {
                "training_snapshot": training_snapshot,
                **({} if start is None else {"champion": start}),
            }
            key = training_key(case, training_snapshot, revision, start)
            manifest = case.find_or_launch(context, "training", "finetuned_checkpoint", key, inputs)
        yield case.result(manifest, "finetuned_checkpoint", store, _curves(store, manifest))

    return [finetuned_checkpoint]


def _require_current_plans(key: str, plans: Iterable[Manifest]) -> None:
    """Refuse plans of another snapshot, of other settings or of another machine.

    Raises:
        GateError: one is.
    """
    for plan in plans:
        if plan.key != key:
            raise GateError(
                f"finetuned_checkpoint refused: {plan.stage} was made for another snapshot, other settings or"
                f" another machine; materialise {plan.stage} again"
            )


def training_key(case: Case, snapshot: Manifest, revision: str, start: Manifest | None = None) -> str:
    """Return the key of the checkpoint that this snapshot and these settings make.

    Args:
        start: the champion's checkpoint that training starts from. Default: the base model.
    """
    inputs = {"training_snapshot": snapshot.content_digest, "base_model": revision}
    if start is not None:
        inputs["champion"] = start.key
    return artifact_key(
        "finetuned_checkpoint",
        checkpoint_key.VERSION,
        checkpoint_key.key_settings(case.settings),
        inputs,
        case.settings.seed,
    )


def _curves(store: Store, manifest: Manifest) -> dict[str, dg.MetadataValue]:
    lines = checkpoint_key.read_step_log(store.folder(manifest))
    curves = {"loss": "training loss", "validation_loss": "validation loss"}
    general = {
        "general_loss": "loss on general text",
        "general_distance": "distance of general texts' representations",
    }
    curves |= {key: caption for key, caption in general.items() if any(key in line for line in lines)}
    return {
        f"{key}_curve": sparkline([line[key] for line in lines if key in line], caption)
        for key, caption in curves.items()
    }
