"""release: evaluation_report, finetuned_checkpoint, training_snapshot -> champion_model."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg

from fullft_assets import release
from fullft_assets.assets.case import Case, sentences
from fullft_assets.checkpoint.metadata import CheckpointMetadata
from fullft_assets.evaluation import read_evaluation
from fullft_assets.examples.labels import may_be_named
from fullft_assets.resources import one_line_errors
from fullft_assets.store import Manifest, Store

#: Tag of a run that promoted its candidate: whether that was better than the champion by more than chance
#: (one-sided). A first champion has none.
IS_BETTER_TAG = "retraining/is_better"
_CHANCE = 0.05
_INPUTS = ("evaluation_report", "finetuned_checkpoint", "training_snapshot")


def build(case: Case) -> list[dg.AssetsDefinition]:
    """Return the assets of this stage."""

    @dg.asset(
        key=case.key("champion_model"),
        ins={name: dg.AssetIn(case.key(name), input_manager_key=case.io_key) for name in _INPUTS},
        description=(
            "The model in use: promoted only through its gates, with its card, lineage and history. `Keep the"
            " champion` is a normal outcome: then an observation says why."
        ),
        code_version=case.code_version(release.VERSION, "release"),
        kinds={"huggingface"},
        output_required=False,
        **case.shared(),
    )
    def champion_model(
        context: dg.AssetExecutionContext,
        evaluation_report: Manifest,
        finetuned_checkpoint: Manifest,
        training_snapshot: Manifest,
    ) -> Iterator[dg.MaterializeResult]:
        store = case.store(context)
        with one_line_errors(store, case.name):
            outcome, manifest = release.publish(
                store,
                case.use_case,
                report=evaluation_report,
                checkpoint=finetuned_checkpoint,
                snapshot=training_snapshot,
                run_id=context.run.run_id,
            )
        context.log.info(outcome.sentence)
        gain = read_evaluation(
            (store.folder(evaluation_report) / "evaluation.json").read_bytes()
        ).gain_over_champion
        if manifest is not None and gain is not None:
            context.instance.add_run_tags(
                context.run_id, {IS_BETTER_TAG: str(gain.estimate > 0 and gain.p_value / 2 <= _CHANCE)}
            )
        if manifest is None:
            context.log_event(observation(case, outcome.sentence, outcome.champion))
        else:
            yield case.result(manifest, "champion_model", store, shown(store, manifest))
        # Also one that stays: after a change by hand its copy may have failed.
        with one_line_errors(store, case.name):
            for done in release.hand_over(store, case.use_case):
                context.log.info(done)

    return [champion_model]


def shown(store: Store, manifest: Manifest) -> dict[str, Any]:
    """Return what Dagster shows first of a champion: how its release ended, and its card, unless that names
    labels that may be texts.
    """
    metadata = release.ChampionMetadata.of(manifest)
    first: dict[str, Any] = {"outcome": sentences(metadata.outcome), "model": _place(store, metadata.model)}
    if may_be_named(CheckpointMetadata.of(store.load(metadata.checkpoint)).labels):
        card = (store.folder(manifest) / release.CARD).read_text(encoding="utf-8")
        first["model_card"] = dg.MetadataValue.md(card)
    return first


def _place(store: Store, path: str) -> dg.MetadataValue:
    """Return where a folder of the store is: an absolute path, or a link."""
    return (
        dg.MetadataValue.path(str(Path(store.url, path).absolute()))
        if store.is_local
        else dg.MetadataValue.url(f"{store.url}/{path}")
    )


def observation(case: Case, sentence: str, champion: release.Champion | None) -> dg.AssetObservation:
    """Return the event that says why the champion stays, or what a person did to it."""
    about = {"outcome": sentences(sentence), "champion": "none" if champion is None else champion.checkpoint}
    return dg.AssetObservation(asset_key=case.key("champion_model"), metadata=about)
