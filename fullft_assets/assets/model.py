"""The assets of the job `model`: labeled_examples, tokenized_chunks -> training_snapshot -> feasibility_plan,
cheaper_baselines, pilot_run -> finetuned_checkpoint -> evaluation_report -> champion_model.
"""

import base64
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import dagster as dg

from fullft_assets import checkpoint as checkpoint_key, evaluation, planning, release, security, snapshot
from fullft_assets.artifacts import (
    BASELINE_MODEL,
    CHAMPION_MODEL,
    CHEAPER_BASELINES,
    EVALUATION_FILE,
    EVALUATION_REPORT,
    FEASIBILITY_PLAN,
    FINETUNED_CHECKPOINT,
    LABELED_EXAMPLES,
    PILOT_RUN,
    PROBE_FILE,
    TOKENIZED_CHUNKS,
    TRAINING_SNAPSHOT,
)
from fullft_assets.assets.graph import CaseGraph, markdown_table, sentences, sparkline
from fullft_assets.base_model import find_base_model, read_header
from fullft_assets.checking.sample import suggested_group
from fullft_assets.checkpoint.metadata import CheckpointMetadata
from fullft_assets.errors import GateError
from fullft_assets.evaluation import external
from fullft_assets.evaluation.metadata import EvaluationMetadata
from fullft_assets.evaluation.verdict import check_specs
from fullft_assets.examples.labels import may_be_named
from fullft_assets.models.hardware import local_hardware
from fullft_assets.planning import refusal, worth
from fullft_assets.release import starting_point
from fullft_assets.resources import latest, one_line_errors, place_in, report_link
from fullft_assets.store import Manifest, Store, artifact_key, digest


def _build_snapshot(graph: CaseGraph) -> list[dg.AssetsDefinition]:
    @dg.asset(
        key=graph.key(TRAINING_SNAPSHOT),
        ins={
            name: dg.AssetIn(graph.key(name), input_manager_key=graph.io_key)
            for name in (LABELED_EXAMPLES, TOKENIZED_CHUNKS)
        },
        description=(
            "Exactly which rows train, validate and test: deduplicated, split without leaks, frozen under a"
            " digest."
        ),
        code_version=graph.code_version(snapshot.VERSION, "snapshot"),
        kinds={"parquet"},
        check_specs=graph.checks(
            TRAINING_SNAPSHOT, (*snapshot.checks_of(graph.settings), snapshot.VERDICT_IS_POSSIBLE)
        ),
        **graph.shared(),
    )
    def training_snapshot(
        context: dg.AssetExecutionContext,
        labeled_examples: dict[str, Manifest],
        tokenized_chunks: dict[str, Manifest],
    ):
        with graph.open_store(context) as store:
            arriving_batches = _arriving(graph, context.instance, store, labeled_examples, tokenized_chunks)
            if arriving_batches:
                context.log.info(
                    f"{len(arriving_batches):,} batches that are being ingested wait for the next snapshot:"
                    f" {', '.join(arriving_batches[:5])}"
                )
            examples = {
                name: batch for name, batch in labeled_examples.items() if name not in arriving_batches
            }
            manifest = snapshot.take(
                store,
                graph.use_case,
                examples,
                tokenized_chunks,
                suggest_group=lambda: suggested_group(graph.use_case),
                say=context.log.info,
            )
        metadata = snapshot.SnapshotMetadata.of(manifest)
        ui_metadata: dict[str, dg.MetadataValue] = {
            "data_report": report_link(graph.use_case, store, manifest),
        }
        if metadata.labels and may_be_named(metadata.labels):
            ui_metadata["label_counts"] = dg.MetadataValue.md(markdown_table(_labels(metadata)))
        return graph.result(
            manifest,
            TRAINING_SNAPSHOT,
            store,
            ui_metadata,
            checks=[snapshot.verdict_check(metadata, graph.settings)],
        )

    return [training_snapshot]


def _arriving(
    graph: CaseGraph,
    instance: dg.DagsterInstance,
    store: Store,
    examples: Mapping[str, Manifest],
    chunks: Mapping[str, Manifest],
) -> list[str]:
    """Return the batches that are between two steps of their ingestion, where that leaves any other one.

    A snapshot that was taken at such a moment failed, and the run of the model or of the daily evaluation
    with it.
    """
    waiting_batches = [
        name for name, manifest in examples.items() if name not in chunks and not manifest.red_gates
    ]
    if not waiting_batches or len(waiting_batches) == len(examples):
        return []
    runs = instance.get_runs(dg.RunsFilter(tags={"dagster/partition": waiting_batches}))
    in_flight = {run.tags["dagster/partition"] for run in runs if not run.is_finished}
    return [
        name
        for name in waiting_batches
        if name in in_flight or latest(store, graph.name, TOKENIZED_CHUNKS, name) is not None
    ]


def _labels(metadata: snapshot.SnapshotMetadata) -> list[dict[str, Any]]:
    counts = metadata.label_counts
    effective_sizes = {
        statistics.label: statistics.k_eff
        for statistics in metadata.label_statistics
        if statistics.split == "test"
    }
    return [
        {
            "label": label,
            **{split: counts[split].get(label, 0) for split in counts},
            "test k_eff": effective_sizes.get(label, 0),
        }
        for label in metadata.labels
    ]


_ASSETS = {
    FEASIBILITY_PLAN: (
        "Does it fit and what will it cost: memory, time and price, measured on this machine."
    ),
    CHEAPER_BASELINES: (
        "What baselines score on the same rows: majority label, TF-IDF, a probe on the frozen model; or the"
        " base model as it is."
    ),
    PILOT_RUN: (
        "A fine-tuning on a tenth of the rows: does its gain over baselines predict one on all rows?"
    ),
}


def _build_planning(graph: CaseGraph) -> list[dg.AssetsDefinition]:
    version = graph.code_version(
        f"{planning.VERSION}.{graph.settings.primary_metric}", "planning", "training"
    )

    @dg.multi_asset(
        name=f"{graph.name}__planning",
        outs={
            name: dg.AssetOut(
                key=graph.key(name),
                description=description,
                code_version=version,
                kinds={"pytorch"} if name != CHEAPER_BASELINES else {"scikitlearn", "pytorch"},
                io_manager_key=graph.io_key,
            )
            for name, description in _ASSETS.items()
        },
        ins={TRAINING_SNAPSHOT: dg.AssetIn(graph.key(TRAINING_SNAPSHOT), input_manager_key=graph.io_key)},
        group_name=graph.name,
        check_specs=[
            *graph.checks(FEASIBILITY_PLAN, planning.PLAN_CHECKS),
            *graph.checks(PILOT_RUN, planning.PILOT_CHECKS),
        ],
        pool=graph.settings.launcher_of("planning").pool,
        required_resource_keys=graph.shared(launches=True)["required_resource_keys"],
    )
    def plan_baselines_and_pilot(
        context: dg.AssetExecutionContext, training_snapshot: Manifest
    ) -> Iterator[dg.MaterializeResult]:
        with graph.open_store(context) as store:
            training_snapshot.require_green(FEASIBILITY_PLAN)
            # What is missing, or another one, is refused before anything costs time.
            artifacts = external.keep(store, graph.name, graph.settings, graph.use_case.project_root)
            if external.PREDICTIONS in artifacts:
                external.require_complete(store, artifacts[external.PREDICTIONS], training_snapshot)
            key = planning_key(graph, training_snapshot, base_model_revision(graph))
            manifests = {name: store.find(graph.name, name, key) for name in _ASSETS}
            if None in manifests.values():
                job = graph.job(PILOT_RUN, key, store, {TRAINING_SNAPSHOT: training_snapshot})
                graph.launcher(context).run(context, "planning", job, store)
                manifests = {name: store.find(graph.name, name, key) for name in _ASSETS}
        for name, manifest in manifests.items():
            assert manifest is not None, "the pilot is written last, and the launcher found it"
            yield graph.result(manifest, name, store)

    return [plan_baselines_and_pilot]


def base_model_revision(graph: CaseGraph) -> str:
    """Return the revision of the base model, which identifies its content."""
    return read_header(find_base_model(graph.settings, graph.use_case.project_root)).revision


def planning_key(graph: CaseGraph, snapshot: Manifest, revision: str) -> str:
    """Return the key that the three planning artifacts share; `revision` is the base model's."""
    settings = {
        **graph.settings.model_dump(include={"planning"}, mode="json"),
        "primary_metric": graph.settings.primary_metric,
        "training": checkpoint_key.plan_settings(graph.settings),
        "processes": graph.settings.launcher.processes,
    }
    launcher = graph.settings.launcher_of("planning")
    inputs = {
        TRAINING_SNAPSHOT: snapshot.content_digest,
        "base_model": revision,
        "hardware": local_hardware() if launcher.kind == "local" else launcher.target,
    }
    return artifact_key("planning", planning.VERSION, settings, inputs, graph.settings.seed)


def _build_training(graph: CaseGraph) -> list[dg.AssetsDefinition]:
    # An output that may be missing may lack its checks, too.
    @dg.multi_asset(
        name=f"{graph.name}__finetuned_checkpoint",
        outs={
            FINETUNED_CHECKPOINT: dg.AssetOut(
                key=graph.key(FINETUNED_CHECKPOINT),
                description=(
                    "The model: every weight trained, resumable, saved as safetensors with its lineage."
                ),
                code_version=graph.code_version(checkpoint_key.VERSION, "training"),
                kinds={"pytorch", "huggingface"},
                io_manager_key=graph.io_key,
                is_required=False,
            )
        },
        can_subset=True,
        ins={
            name: dg.AssetIn(graph.key(name), input_manager_key=graph.io_key)
            for name in (TRAINING_SNAPSHOT, FEASIBILITY_PLAN, CHEAPER_BASELINES, PILOT_RUN)
        },
        check_specs=graph.checks(FINETUNED_CHECKPOINT, checkpoint_key.CHECKS),
        group_name=graph.name,
        pool=graph.settings.launcher_of("training").pool,
        required_resource_keys=graph.shared(launches=True)["required_resource_keys"],
    )
    def finetuned_checkpoint(
        context: dg.AssetExecutionContext,
        training_snapshot: Manifest,
        feasibility_plan: Manifest,
        cheaper_baselines: Manifest,
        pilot_run: Manifest,
    ) -> Iterator[dg.MaterializeResult]:
        with graph.open_store(context) as store:
            for upstream in (training_snapshot, feasibility_plan):
                upstream.require_green(FINETUNED_CHECKPOINT)
            revision = base_model_revision(graph)
            key = planning_key(graph, training_snapshot, revision)
            for plan in (feasibility_plan, cheaper_baselines, pilot_run):
                if plan.key != key:
                    raise GateError(
                        f"finetuned_checkpoint refused: {plan.stage} was made for another snapshot, other"
                        f" settings or another machine; materialise {plan.stage} again"
                    )
            reason_to_refuse = refusal(pilot_run)
            if reason_to_refuse is not None:
                # An answer, no failure: the best baseline is judged in its place, or nothing is made below.
                context.log.warning(reason_to_refuse)
                baseline = _best_baseline(graph, context, training_snapshot, cheaper_baselines)
                if baseline is not None:
                    yield graph.result(baseline, FINETUNED_CHECKPOINT, store)
                return
            start = starting_point.find(
                store,
                graph.name,
                graph.settings,
                training_snapshot,
                revision=revision,
                decision=_training_key(graph, training_snapshot, revision),
            )
            inputs = {TRAINING_SNAPSHOT: training_snapshot}
            if start is not None:
                inputs["champion"] = start
            elif PROBE_FILE in cheaper_baselines.files:
                inputs[CHEAPER_BASELINES] = cheaper_baselines
            key = _training_key(graph, training_snapshot, revision, start)
            manifest = graph.find_or_launch(context, "training", FINETUNED_CHECKPOINT, key, inputs)
        yield graph.result(manifest, FINETUNED_CHECKPOINT, store, _curves(store, manifest))

    return [finetuned_checkpoint]


def _best_baseline(
    graph: CaseGraph, context: dg.AssetExecutionContext, snapshot: Manifest, baselines: Manifest
) -> Manifest | None:
    """Return the model of the baseline that is to be judged where nothing is trained; None where none may
    become champion, or there is no other system to compare it with.
    """
    metadata = planning.BaselinesMetadata.of(baselines)
    names = release.candidates(metadata, graph.settings.release, None)
    if not names or len(metadata.scores) < 2:
        return None
    inputs = {TRAINING_SNAPSHOT: snapshot, CHEAPER_BASELINES: baselines}
    key = release.stored_baseline_key(names[0], inputs, graph.settings)
    return graph.find_or_launch(context, "planning", BASELINE_MODEL, key, inputs)


def _training_key(graph: CaseGraph, snapshot: Manifest, revision: str, start: Manifest | None = None) -> str:
    inputs = {TRAINING_SNAPSHOT: snapshot.content_digest, "base_model": revision}
    if start is not None:
        inputs["champion"] = start.key
    return artifact_key(
        FINETUNED_CHECKPOINT,
        checkpoint_key.VERSION,
        checkpoint_key.key_settings(graph.settings),
        inputs,
        graph.settings.seed,
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


_EVALUATION_INPUTS = (TRAINING_SNAPSHOT, CHEAPER_BASELINES, PILOT_RUN, FINETUNED_CHECKPOINT)
#: Metadata is stored in the event log.
_MAX_PICTURE_BYTES = 60_000
_PICTURE = re.compile(r"!\[(?P<title>[^\]]*)\]\((?P<path>pictures/[^)]+)\)")


def _build_evaluation(graph: CaseGraph) -> list[dg.AssetsDefinition]:
    # What a gain is worth is judged here, though its settings are those of the plan.
    worth_settings = worth.asked(graph.settings)
    worth_version = f"-{digest(worth_settings)[:8]}" if worth_settings else ""

    @dg.asset(
        key=graph.key(EVALUATION_REPORT),
        ins={
            name: dg.AssetIn(graph.key(name), input_manager_key=graph.io_key) for name in _EVALUATION_INPUTS
        },
        description=(
            "How good, how sure, where weak; was full fine-tuning justified; better than the champion?"
        ),
        code_version=graph.code_version(evaluation.VERSION + worth_version, "evaluation", "release"),
        kinds={"huggingface", "scikitlearn"},
        check_specs=graph.checks(EVALUATION_REPORT, check_specs(graph.settings)),
        pool=graph.settings.launcher_of("evaluation").pool,
        **graph.shared(launches=True),
    )
    def evaluation_report(
        context: dg.AssetExecutionContext,
        training_snapshot: Manifest,
        cheaper_baselines: Manifest,
        pilot_run: Manifest,
        finetuned_checkpoint: Manifest,
    ):
        with graph.open_store(context) as store:
            for upstream in (training_snapshot, finetuned_checkpoint):
                upstream.require_green(EVALUATION_REPORT)
            inputs = {
                TRAINING_SNAPSHOT: training_snapshot,
                CHEAPER_BASELINES: cheaper_baselines,
                PILOT_RUN: pilot_run,
                FINETUNED_CHECKPOINT: finetuned_checkpoint,
            }
            against = release.judged_against(store, graph.name, finetuned_checkpoint, training_snapshot)
            for name, ref in ((evaluation.CHAMPION, against.champion), (evaluation.ANCHOR, against.anchor)):
                if ref is not None:
                    inputs[name] = store.load(ref)
            for name, refs in ((evaluation.SEED_RUN, against.seed_runs), (evaluation.LOOK, against.looks)):
                inputs |= {f"{name}{number}": store.load(ref) for number, ref in enumerate(refs)}
            inputs |= external.keep(store, graph.name, graph.settings, graph.use_case.project_root)
            settings = {
                **graph.settings.model_dump(include={"evaluation", "release"}, mode="json"),
                "worth": worth_settings,
            }
            digests = {name: manifest.content_digest for name, manifest in inputs.items()}
            key = artifact_key(EVALUATION_REPORT, evaluation.VERSION, settings, digests, graph.settings.seed)
            manifest = graph.find_or_launch(context, "evaluation", EVALUATION_REPORT, key, inputs)
        return graph.result(manifest, EVALUATION_REPORT, store, _shown(graph, store, manifest))

    return [evaluation_report]


def _shown(graph: CaseGraph, store: Store, manifest: Manifest) -> dict[str, Any]:
    """Return the verdict, the systems side by side, and the report: readable in the UI, and as a file.

    The event log is for ever and has many readers: where labels may be texts, neither the report nor its
    pictures, which name them, go there.
    """
    metadata = EvaluationMetadata.of(manifest)
    folder = store.folder(manifest)
    rows = [
        {"system": system or evaluation.FINETUNED}
        | {
            metric: score
            for metric in metadata.metrics
            if (score := metadata.score(system, metric)) is not None
        }
        for system in (None, *metadata.systems)
    ]
    ui_metadata: dict[str, Any] = {
        "verdict": sentences(metadata.verdict),
        "justification": sentences(f"{metadata.justification} {metadata.worth_sentence}"),
        "systems": dg.MetadataValue.md(markdown_table(rows)),
        "summary": dg.MetadataValue.md((folder / "summary.md").read_text(encoding="utf-8")),
    }
    if may_be_named(json.loads((folder / EVALUATION_FILE).read_bytes()).get("labels", [])):
        ui_metadata["report"] = dg.MetadataValue.md(_with_pictures(folder))
    ui_metadata["report_file"] = report_link(graph.use_case, store, manifest)
    return ui_metadata


def _with_pictures(folder: Path) -> str:
    def inside(link: re.Match) -> str:
        data = (folder / link["path"]).read_bytes()
        return (
            f"![{link['title']}](data:image/png;base64,{base64.b64encode(data).decode()})"
            if len(data) <= _MAX_PICTURE_BYTES
            else f"*{link['title']}: see report_file*"
        )

    return _PICTURE.sub(inside, (folder / "report.md").read_text(encoding="utf-8"))


_RELEASE_INPUTS = (EVALUATION_REPORT, FINETUNED_CHECKPOINT, TRAINING_SNAPSHOT)


def _build_release(graph: CaseGraph) -> list[dg.AssetsDefinition]:
    @dg.asset(
        key=graph.key(CHAMPION_MODEL),
        ins={name: dg.AssetIn(graph.key(name), input_manager_key=graph.io_key) for name in _RELEASE_INPUTS},
        description=(
            "The model in use: promoted only through its gates, with its card, lineage and history. `Keep the"
            " champion` is a normal outcome: then an observation says why."
        ),
        code_version=graph.code_version(release.VERSION, "release"),
        kinds={"huggingface"},
        output_required=False,
        **graph.shared(),
    )
    def champion_model(
        context: dg.AssetExecutionContext,
        evaluation_report: Manifest,
        finetuned_checkpoint: Manifest,
        training_snapshot: Manifest,
    ) -> Iterator[dg.MaterializeResult]:
        with graph.open_store(context) as store:
            outcome, manifest = release.publish(
                store,
                graph.use_case,
                report=evaluation_report,
                checkpoint=finetuned_checkpoint,
                snapshot=training_snapshot,
                run_id=context.run.run_id,
                reason_to_keep=lambda: security.reason_to_keep(
                    graph.use_case, Path(context.instance.root_directory), store
                ),
            )
            security.append(
                store,
                security.Entry(
                    action=outcome.kind,
                    case=graph.name,
                    about=finetuned_checkpoint.ref,
                    reason=outcome.sentence,
                    run=context.run.run_id,
                ),
            )
        context.log.info(outcome.sentence)
        if manifest is None:
            context.log_event(observation(graph, outcome.sentence, outcome.champion))
        else:
            yield graph.result(manifest, CHAMPION_MODEL, store, shown(store, manifest))
        # Also one that stays: after a change by hand its copy may have failed.
        with one_line_errors(store, graph.name):
            for line in release.hand_over(store, graph.use_case):
                context.log.info(line)

    return [champion_model]


def shown(store: Store, manifest: Manifest) -> dict[str, Any]:
    """Return the metadata that Dagster shows first of a champion: the outcome of its release, and its card,
    unless the card names labels that may be texts.
    """
    metadata = release.ChampionMetadata.of(manifest)
    first: dict[str, Any] = {"outcome": sentences(metadata.outcome), "model": place_in(store, metadata.model)}
    if may_be_named(CheckpointMetadata.of(store.load(metadata.checkpoint)).labels):
        first["model_card"] = dg.MetadataValue.md(
            (store.folder(manifest) / release.CARD).read_text(encoding="utf-8")
        )
    return first


def observation(graph: CaseGraph, sentence: str, champion: release.Champion | None) -> dg.AssetObservation:
    """Return the event that says why the champion stays, or what a person did to it."""
    about = {"outcome": sentences(sentence), "champion": "none" if champion is None else champion.checkpoint}
    return dg.AssetObservation(asset_key=graph.key(CHAMPION_MODEL), metadata=about)


def build(graph: CaseGraph) -> list[dg.AssetsDefinition]:
    """Return the assets."""
    builders = (_build_snapshot, _build_planning, _build_training, _build_evaluation, _build_release)
    return [asset for build_stage in builders for asset in build_stage(graph)]
