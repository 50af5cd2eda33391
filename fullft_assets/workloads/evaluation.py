"""evaluation: finetuned_checkpoint, cheaper_baselines, pilot_run, training_snapshot -> evaluation_report.

Run by a launcher or by hand: `python -m fullft_assets.workloads.evaluation --job URI`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from fullft_assets import evaluation, report
from fullft_assets.base_model import read_header
from fullft_assets.checkpoint import read_step_log
from fullft_assets.checkpoint.lineage import snapshots_learned_from
from fullft_assets.checkpoint.metadata import CheckpointMetadata
from fullft_assets.errors import DataError
from fullft_assets.evaluation import (
    ANCHOR,
    CHAMPION,
    FINETUNED,
    SEED_RUN,
    Evaluation,
    checks,
    read_evaluation,
)
from fullft_assets.evaluation.answers import write_answers
from fullft_assets.evaluation.forgetting import forgetting_of
from fullft_assets.evaluation.gates import ChampionRule
from fullft_assets.evaluation.gates.comparisons import worse_slices
from fullft_assets.evaluation.leakage import LabelledTexts, Leakage, find_leakage
from fullft_assets.evaluation.metadata import EvaluationMetadata
from fullft_assets.evaluation.seed_noise import seed_noise
from fullft_assets.evaluation.verdict import ReleaseVerdict, verdict, write_verdict
from fullft_assets.jobs import Job
from fullft_assets.jobs.progress import Progress
from fullft_assets.planning import PilotMetadata
from fullft_assets.planning.worth import Worth, asked, judge_worth
from fullft_assets.release import champion_rule, recipe_digest
from fullft_assets.snapshot import Split, load_split, load_values
from fullft_assets.snapshot.near_text.pairs import near_duplicates
from fullft_assets.store import Manifest, Store
from fullft_assets.task import BASELINES, task_of
from fullft_assets.tasks.context import EvaluationContext, EvaluationResult
from fullft_assets.workloads.entry import run_workload


def work(job: Job, store: Store, progress: Progress) -> None:
    """Evaluate a candidate on the test rows and write the report."""
    inputs = job.load_inputs(store)
    snapshot, checkpoint = inputs["training_snapshot"], inputs["finetuned_checkpoint"]
    test = load_split(store, snapshot, "test")
    delivered = len(test)
    test = unseen(job, store, inputs, test)
    if len(test) < delivered:
        progress.say(
            f"{delivered - len(test):,} test rows excluded: a model learned from them, or from"
            " near-duplicates, in an older snapshot"
        )
    context = EvaluationContext(job, store, inputs, progress)
    result = task_of(job.settings.examples).evaluate(context, test)
    leakage = _leakage(context, test)
    found = result.evaluation.model_copy(update={"forgetting": forgetting_of(checkpoint), "leakage": leakage})
    noise = seed_noise(_seed_runs(store, inputs))
    worth = _worth(job, inputs, found)
    decision = verdict(found, job.settings.release, _rule(inputs), noise, worth)
    progress.say(f"{found.justification.sentence} {worth.sentence}")
    progress.say(decision.sentence)
    with store.create(
        job.case, job.stage, job.key, version=evaluation.VERSION, seed=job.settings.seed
    ) as draft:
        pq.write_table(result.rows, draft.path / "predictions.parquet")
        if result.validation is not None:
            pq.write_table(result.validation, draft.path / "validation.parquet")
        (draft.path / "evaluation.json").write_text(found.model_dump_json(indent=1), encoding="utf-8")
        write_verdict(draft.path, decision)
        report.write(draft.path, _shown(context, result, found, decision, worth))
        if result.written:
            write_answers(draft.path, result.written)
        if result.label_errors:
            report.write_label_errors(
                draft.path / _errors_file(context, result),
                result.label_errors,
                job.settings.examples.label or "label",
                job.settings.documents.id,
                job.settings.documents.csv.delimiter,
            )
        draft.commit(
            settings=job.settings.model_dump(include={"evaluation", "release"}, mode="json")
            | {"worth": asked(job.settings)},
            inputs={name: manifest.content_digest for name, manifest in inputs.items()},
            metadata=_metadata(
                found, result.headline, decision, worth, inputs, delivered - len(test)
            ).as_dict(),
            checks=checks.outcomes(found, decision, worth),
        )


def _shown(
    context: EvaluationContext,
    result: EvaluationResult,
    found: Evaluation,
    decision: ReleaseVerdict,
    worth: Worth,
) -> report.EvaluationReport:
    """Return what the report shows."""
    job, inputs = context.job, context.inputs
    checkpoint, snapshot = inputs["finetuned_checkpoint"], inputs["training_snapshot"]
    costs = report.system_costs(inputs)
    return report.EvaluationReport(
        case=job.case,
        evaluation=found,
        verdict=decision,
        base_model=job.settings.base_model,
        answers=result.examples,
        training_log=read_step_log(context.store.folder(checkpoint)),
        learning_curve=PilotMetadata.of(inputs["pilot_run"]).learning_curve,
        data=report.data_rows(snapshot),
        lineage=report.lineage_rows(inputs, job.settings, job.key),
        cost=report.cost_rows(checkpoint),
        forgetting=report.forgetting_rows(found.forgetting),
        promise=report.promise_rows(inputs["pilot_run"], found),
        external_scores=report.score_rows(job.settings),
        not_asked=_not_asked(context, found),
        worth=[("worth its cost", worth.sentence), *report.worth_rows(found, costs)],
        costs=costs,
        worst=result.worst,
        label_errors=result.label_errors,
        label_errors_file=_errors_file(context, result),
        worse_slices=worse_slices(found, job.settings.release),
        min_slice_groups=job.settings.release.min_effective_groups,
        next_action=report.next_action(job.case, decision, found, job.settings.release),
    )


def _errors_file(context: EvaluationContext, result: EvaluationResult) -> str:
    """Return the name of the file of likely label errors, which is in the format the labels came in."""
    ids = [row.id for row in result.label_errors or ()]
    sources = _sources(context.store, context.inputs["training_snapshot"], ids)
    return report.label_errors_file(sources, context.job.settings.documents)


def _leakage(context: EvaluationContext, test: Split) -> Leakage | None:
    """Return what gives labels away; None where rows have none of their own."""
    settings = context.job.settings
    if task_of(settings.examples).target not in ("label", "labels"):
        return None
    context.progress.say("searching for what gives labels away ...")
    train, names = (
        load_split(context.store, context.inputs["training_snapshot"], "train", windows=False),
        context.labels,
    )

    def labelled(rows: Split) -> LabelledTexts:
        labels = rows.labels if rows.labels.ndim == 2 else np.eye(len(names), dtype=bool)[rows.labels]
        return LabelledTexts(rows.texts, labels, rows.groups)

    return find_leakage(labelled(train), labelled(test), names, settings.seed)


def _sources(store: Store, snapshot: Manifest, ids: Sequence[str]) -> list[str | None]:
    """Return the file that each test or validation row came in."""
    if not ids:
        return []
    found = {
        **load_values(store, snapshot, "validation", "source"),
        **load_values(store, snapshot, "test", "source"),
    }
    return [found[id_] for id_ in ids]


def _not_asked(context: EvaluationContext, found: Evaluation) -> list[str]:
    """Return the baselines that a YAML may ask for with this base model, and did not."""
    is_causal = read_header(context.base_model).may_predict_tokens
    offered = task_of(context.job.settings.examples).more_baselines
    return [
        name
        for name in offered
        if name not in found.baselines and (is_causal or not BASELINES.get(name).needs_causal_model)
    ]


def unseen(job: Job, store: Store, inputs: Mapping[str, Manifest], test: Split) -> Split:
    """Return the test rows that neither the candidate nor a champion has learned from, literally or nearly.

    A snapshot keeps its own training rows away from its test rows, but a checkpoint that is older than the
    snapshot (periodic evaluation, a champion) was trained on another one's.
    """
    evaluated = [inputs[name] for name in ("finetuned_checkpoint", CHAMPION, ANCHOR) if name in inputs]
    learned_from = dict.fromkeys(
        ref for checkpoint in evaluated for ref in snapshots_learned_from(checkpoint)
    )
    trained_on = {snapshot.content_digest: snapshot for snapshot in map(store.load, learned_from)}
    trained_on.pop(inputs["training_snapshot"].content_digest, None)
    seen: set[int] = set()
    for snapshot in trained_on.values():
        train = load_split(store, snapshot, "train", windows=False)
        seen.update(near_duplicates(train.texts, test.texts))
    if len(seen) == len(test):
        raise DataError(
            "evaluation: every test row was learned from by a model that is evaluated; deliver new labelled"
            " documents"
        )
    return test.select([row for row in range(len(test)) if row not in seen]) if seen else test


def _rule(inputs: Mapping[str, Manifest]) -> ChampionRule:
    """Return what the candidate must show against the champion."""
    return (
        champion_rule(inputs["finetuned_checkpoint"], inputs[CHAMPION])
        if CHAMPION in inputs
        else "superiority"
    )


def _seed_runs(store: Store, inputs: Mapping[str, Manifest]) -> dict[str, list[Evaluation]]:
    """Return the evaluations that tell how much the seed alone changes, by the snapshot and settings that
    their trainings share.
    """
    found: dict[str, list[Evaluation]] = defaultdict(list)
    for name, manifest in inputs.items():
        if name.startswith(SEED_RUN):
            recipe = recipe_digest(store.load(EvaluationMetadata.of(manifest).checkpoint))
            found[recipe].append(read_evaluation((store.folder(manifest) / "evaluation.json").read_bytes()))
    return found


def _worth(job: Job, inputs: Mapping[str, Manifest], found: Evaluation) -> Worth:
    """Return whether the gain over the best baseline is worth what pilot, training and a year of retraining
    cost.
    """
    gain = found.gain_over_best_baseline
    seconds = (
        CheckpointMetadata.of(inputs["finetuned_checkpoint"]).training_seconds
        + PilotMetadata.of(inputs["pilot_run"]).seconds
    )
    return judge_worth(gain.low, gain.estimate, gain.high, seconds, job.settings)


def _metadata(
    found: Evaluation,
    headline: Mapping[str, Any],
    decision: ReleaseVerdict,
    worth: Worth,
    inputs: Mapping[str, Manifest],
    num_left_out: int,
) -> EvaluationMetadata:
    candidate = inputs["finetuned_checkpoint"]
    gain, over_champion = found.gain_over_best_baseline, found.gain_over_champion
    scores = {
        name: {metric: values[name].estimate for metric, values in found.columns.items() if name in values}
        for name in found.scores[found.primary_metric]
        if name != FINETUNED
    }
    return EvaluationMetadata(
        verdict=decision.sentence,
        justification=found.justification.sentence,
        worth_sentence=worth.sentence,
        worth=worth.answer,
        cost_usd=worth.cost_usd,
        answer=decision.answer,
        promote=decision.promote,
        justified=found.justification.justified and worth.answer in ("yes", "not_asked"),
        primary_metric=found.primary_metric,
        metrics=found.metrics,
        num_test_rows=found.num_test_rows,
        num_test_groups=found.num_test_groups,
        effective_groups=found.effective_groups,
        num_test_rows_left_out=num_left_out,
        best_baseline=found.justification.best_baseline,
        gain_over_best_baseline=gain.estimate,
        gain_over_best_baseline_low=gain.low,
        gain_over_best_baseline_high=gain.high,
        gain_over_champion=over_champion.estimate if over_champion else None,
        checkpoint=candidate.ref,
        incumbent=inputs[CHAMPION].ref if CHAMPION in inputs else None,
        anchor=inputs[ANCHOR].ref if ANCHOR in inputs else None,
        seed_runs=[manifest.ref for name, manifest in inputs.items() if name.startswith(SEED_RUN)],
        scores=scores,
        measured={**headline, **CheckpointMetadata.of(candidate).general_scores},
    )


if __name__ == "__main__":
    run_workload(work)
