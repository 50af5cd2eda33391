"""evaluation: finetuned_checkpoint, cheaper_baselines, pilot_run, training_snapshot -> evaluation_report.

Run by a launcher or by hand: `python -m fullft_assets.launch.workloads.evaluation --job URI`; under torchrun
where `training.sharding` is on.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import pyarrow.parquet as pq

from fullft_assets import evaluation as evaluation_version, report
from fullft_assets.artifacts import (
    CHEAPER_BASELINES,
    EVALUATION_FILE,
    FINETUNED_CHECKPOINT,
    PILOT_RUN,
    TRAINING_SNAPSHOT,
)
from fullft_assets.base_model import read_header
from fullft_assets.checkpoint import read_step_log
from fullft_assets.checkpoint.lineage import snapshots_learned_from
from fullft_assets.checkpoint.metadata import CheckpointMetadata
from fullft_assets.errors import DataError
from fullft_assets.evaluation import (
    ANCHOR,
    CHAMPION,
    FINETUNED,
    LOOK,
    SEED_RUN,
    Evaluation,
    read_evaluation,
)
from fullft_assets.evaluation.base import assumed_seed_noise, forgetting_of, seed_noise
from fullft_assets.evaluation.gates import BEATS_CHAMPION, eroded_labels, worse_slices
from fullft_assets.evaluation.metadata import EvaluationMetadata
from fullft_assets.evaluation.verdict import DECISION, ReleaseVerdict, check_outcomes, verdict
from fullft_assets.job import Job
from fullft_assets.launch.entry import run_workload
from fullft_assets.models.inference import claim_device
from fullft_assets.planning import BaselinesMetadata, PilotMetadata
from fullft_assets.planning.worth import Worth, asked, judge_worth, turning_points
from fullft_assets.progress import Progress
from fullft_assets.ranks import is_first_rank, num_ranks
from fullft_assets.release import candidates, champion_rule, choice_sentence, recipe_digest
from fullft_assets.settings import UseCaseSettings
from fullft_assets.snapshot import SnapshotMetadata, Split, load_split
from fullft_assets.snapshot.near_text.pairs import near_duplicates
from fullft_assets.store import Manifest, Store, digest
from fullft_assets.task import BASELINES, task_of
from fullft_assets.tasks.context import EvaluationContext, EvaluationResult, store_baseline
from fullft_assets.tasks.language.assessment import ANSWERS
from fullft_assets.training import ranks

NOTHING = ("", None)


@dataclass(frozen=True)
class Judged:
    """A system's evaluation on the test rows, and what the gates say of it."""

    context: EvaluationContext
    result: EvaluationResult
    evaluation: Evaluation
    decision: ReleaseVerdict
    worth: Worth
    costs: Mapping[str, report.SystemCost]


def work(job: Job, store: Store, progress: Progress) -> None:
    """Evaluate a candidate on the test rows and write the report; where a baseline is to become champion, a
    report on that as well. Several processes share the models that are evaluated, and the first one writes.
    """
    claim_device()
    ranks.connect()
    inputs = job.load_inputs(store)
    all_rows = load_split(store, inputs[TRAINING_SNAPSHOT], "test")
    test = unseen(job, store, inputs, all_rows)
    num_left_out = len(all_rows) - len(test)
    if num_left_out:
        progress.say(
            f"{num_left_out:,} test rows excluded: a model learned from them, or from"
            " near-duplicates, in an older snapshot"
        )
    judgement = _judge(EvaluationContext(job, store, inputs, progress, shares_models=num_ranks() > 1), test)
    choice = _choose(judgement, test, num_left_out)
    if is_first_rank():
        _write(judgement, job.key, num_left_out, *choice)


def _judge(context: EvaluationContext, test: Split) -> Judged:
    inputs = context.inputs
    settings = context.job.settings
    result = task_of(settings.examples).evaluate(context, test)
    candidate = inputs[FINETUNED_CHECKPOINT]
    evaluation = result.evaluation.model_copy(update={"forgetting": forgetting_of(candidate)})
    num_train_rows = SnapshotMetadata.of(inputs[TRAINING_SNAPSHOT]).num_train_rows
    noise = seed_noise(_seed_runs(context.store, inputs)) or assumed_seed_noise(evaluation, num_train_rows)
    worth = _worth(settings, inputs, evaluation)
    rule = champion_rule(candidate, inputs[CHAMPION]) if CHAMPION in inputs else "superiority"
    # A gate of another package may judge otherwise in another process.
    decision = ranks.from_first(
        verdict(evaluation, settings.release, rule, noise, look=1 + len(_refs(inputs, LOOK)))
    )
    context.progress.say(f"{evaluation.justification.sentence} {worth.sentence}")
    context.progress.say(decision.sentence)
    return Judged(
        context,
        result,
        evaluation,
        decision,
        worth,
        costs=report.system_costs(inputs, settings, context.seconds, len(test)),
    )


def _choose(finetuned: Judged, test: Split, num_left_out: int) -> tuple[str, Manifest | None]:
    """Return which of several systems is chosen and why, and where it is a baseline the report on it. All
    processes that share the models must call this; the first one's answer counts.

    The systems are confirmed on the test rows one after the other, in the order of their validation scores:
    the next one only where the one before did not fail against the champion, so that baselines which are not
    better than the champion pass no more often than with one comparison (fixed sequence, Maurer et al. 1995).
    The fine-tuned model has its own gates wherever it stands: with it there are two.
    """
    context = finetuned.context
    inputs = context.inputs
    settings = context.job.settings
    snapshot = inputs[TRAINING_SNAPSHOT]
    baselines = inputs[CHEAPER_BASELINES]
    about = CheckpointMetadata.of(inputs[FINETUNED_CHECKPOINT])
    if about.system != FINETUNED:
        return _untrained(finetuned), None
    score = about.facts.get(f"validation_{settings.primary_metric}")
    is_comparable = (
        about.snapshot == snapshot.ref and baselines.inputs.get(TRAINING_SNAPSHOT) == snapshot.content_digest
    )
    if not is_comparable or score is None or finetuned.decision.answer == "insufficient_data":
        return NOTHING
    systems = candidates(BaselinesMetadata.of(baselines), settings.release, score)
    for name in systems:
        judgement = finetuned
        if name != FINETUNED:
            model = context.result_of(
                partial(
                    store_baseline, context.job, context.store, snapshot, baselines, name, context.progress
                ),
                by_first=True,
            )
            if CHAMPION in inputs and model.ref == inputs[CHAMPION].ref:
                continue  # it stays, unless another one is better
            baseline_context = replace(
                context,
                inputs={**inputs, FINETUNED_CHECKPOINT: model},
                outputs={system: output for system, output in context.outputs.items() if system != name},
            )
            judgement = replace(_judge(baseline_context, test), costs=finetuned.costs)
        if any(
            reason.gate == BEATS_CHAMPION.name and not reason.passed for reason in judgement.decision.reasons
        ):
            break
        gains = judgement.evaluation.gains[judgement.evaluation.primary_metric]
        rivals = [rival for rival in systems if rival != FINETUNED or finetuned.decision.promote]
        # The validation rows were too few to show that another one is better.
        is_refuted = any(gains[rival].high < -settings.release.worth for rival in rivals if rival in gains)
        if judgement.decision.promote and (judgement is finetuned or not is_refuted):
            return _choice(judgement, finetuned, systems, num_left_out) if is_first_rank() else NOTHING
    return NOTHING


def _untrained(baseline: Judged) -> str:
    """Return why a baseline is to become champion where nothing was trained; nothing of one that is not, or
    that is champion.
    """
    inputs = baseline.context.inputs
    if not baseline.decision.promote or (
        CHAMPION in inputs and inputs[CHAMPION].ref == inputs[FINETUNED_CHECKPOINT].ref
    ):
        return ""
    return _sentence(
        baseline,
        baseline.evaluation.justification.best_baseline,
        "the best of the others; nothing was fine-tuned",
        baseline.costs,
    )


def _sentence(judgement: Judged, rival: str, reason: str, costs: Mapping[str, report.SystemCost]) -> str:
    # The costs of predictions from outside are unknown.
    making, that = (
        costs.get(name, report.SystemCost()).all for name in (judgement.evaluation.candidate, rival)
    )
    sentence = choice_sentence(
        judgement.evaluation, rival, reason=reason, costs=f"making it took {making}, and that {that}"
    )
    judgement.context.progress.say(sentence)
    return sentence


def _choice(
    judgement: Judged, finetuned: Judged, systems: list[str], num_left_out: int
) -> tuple[str, Manifest | None]:
    context = judgement.context
    rival = FINETUNED
    reason = "which did not pass its gates"
    if judgement is finetuned:
        if len(systems) == 1:
            return NOTHING
        is_first = systems[0] == FINETUNED
        rival = systems[int(is_first)]
        reason = f"the {'next' if is_first else 'first'} choice by the validation rows"
    elif finetuned.decision.promote:
        worth = f"{context.job.settings.release.worth:g} (release.worth)"
        reason = f"which costs more to serve and was not better by {worth} on the validation rows"
    sentence = _sentence(judgement, rival, reason, finetuned.costs)
    if judgement is finetuned:
        return sentence, None
    key = digest([context.job.key, judgement.evaluation.candidate])
    manifest = context.store.find(context.job.case, context.job.stage, key)
    return sentence, manifest or _write(judgement, key, num_left_out, sentence)


def _write(
    judgement: Judged, key: str, num_left_out: int, choice: str, ships: Manifest | None = None
) -> Manifest:
    job = judgement.context.job
    result = judgement.result
    decision = judgement.decision.model_copy(
        update={"answer": (judgement.decision.answer if ships is None else "baseline"), "choice": choice}
    )
    with judgement.context.store.create(
        job.case, job.stage, key, version=evaluation_version.VERSION, seed=job.settings.seed
    ) as draft:
        pq.write_table(result.rows, draft.path / "predictions.parquet")
        (draft.path / EVALUATION_FILE).write_text(
            judgement.evaluation.model_dump_json(indent=1), encoding="utf-8"
        )
        (draft.path / DECISION).write_text(decision.model_dump_json(indent=1), encoding="utf-8")
        report.write(draft.path, _report(judgement, decision, key))
        if result.written:
            report.write_list(draft.path / ANSWERS, result.written)
        if result.label_errors:
            report.write_label_errors(
                draft.path / report.LABEL_ERRORS,
                result.label_errors,
                job.settings.examples.label or "label",
                job.settings.documents.id,
            )
        return draft.commit(
            settings=job.settings.model_dump(include={"evaluation", "release"}, mode="json")
            | {"worth": asked(job.settings)},
            inputs={name: manifest.content_digest for name, manifest in judgement.context.inputs.items()},
            metadata=_metadata(judgement, decision, num_left_out, ships).as_dict(),
            checks=check_outcomes(decision, judgement.worth, job.settings),
        )


def _report(judgement: Judged, decision: ReleaseVerdict, key: str) -> report.EvaluationReport:
    job = judgement.context.job
    inputs = judgement.context.inputs
    evaluation = judgement.evaluation
    is_finetuned = evaluation.candidate == FINETUNED
    gain = evaluation.gain_over_best_baseline
    turns = turning_points(
        gain.low,
        gain.estimate,
        gain.high,
        judgement.worth,
        SnapshotMetadata.of(inputs[TRAINING_SNAPSHOT]).num_train_rows,
    )
    return report.EvaluationReport(
        case=job.case,
        evaluation=evaluation,
        verdict=decision,
        base_model=job.settings.base_model,
        answers=judgement.result.examples,
        training_log=read_step_log(judgement.context.store.folder(inputs[FINETUNED_CHECKPOINT])),
        learning_curve=PilotMetadata.of(inputs[PILOT_RUN]).learning_curve,
        data=report.data_rows(inputs[TRAINING_SNAPSHOT]),
        lineage=report.lineage_rows(inputs, job.settings, key),
        cost=report.cost_rows(inputs[FINETUNED_CHECKPOINT]) if is_finetuned else (),
        forgetting=report.forgetting_rows(evaluation.forgetting),
        promise=report.promise_rows(inputs[PILOT_RUN], evaluation) if is_finetuned else (),
        not_asked=_not_asked(judgement.context, evaluation),
        worth=[("worth its cost", judgement.worth.sentence), *(turns if is_finetuned else [])],
        costs=judgement.costs,
        worst=judgement.result.worst,
        label_errors=judgement.result.label_errors,
        worse_slices=worse_slices(evaluation, job.settings.release),
        eroded_labels=eroded_labels(evaluation, job.settings.release),
        min_slice_groups=job.settings.release.min_effective_groups,
        next_action=report.next_action(job.case, decision, evaluation, job.settings.release),
    )


def _not_asked(context: EvaluationContext, evaluation: Evaluation) -> list[str]:
    is_causal = read_header(context.base_model).may_predict_tokens
    return [
        name
        for name in task_of(context.job.settings.examples).more_baselines
        if name not in evaluation.baselines and (is_causal or not BASELINES.get(name).needs_causal_model)
    ]


def unseen(job: Job, store: Store, inputs: Mapping[str, Manifest], test: Split) -> Split:
    """Return the test rows that neither the candidate nor a champion has learned from, literally or nearly.

    A snapshot keeps its own training rows away from its test rows, but a checkpoint that is older than the
    snapshot (periodic evaluation, a champion) was trained on another one's.
    """
    checkpoints = [inputs[name] for name in (FINETUNED_CHECKPOINT, CHAMPION, ANCHOR) if name in inputs]
    refs = dict.fromkeys(ref for checkpoint in checkpoints for ref in snapshots_learned_from(checkpoint))
    snapshots = {snapshot.content_digest: snapshot for snapshot in map(store.load, refs)}
    snapshots.pop(inputs[TRAINING_SNAPSHOT].content_digest, None)
    learned_rows: set[int] = set()
    for snapshot in snapshots.values():
        learned_rows.update(
            near_duplicates(load_split(store, snapshot, "train", chunks=False).texts, test.texts)
        )
    if len(learned_rows) == len(test):
        raise DataError(
            "evaluation: every test row was learned from by a model that is evaluated; deliver new labelled"
            " documents"
        )
    return test.select([row for row in range(len(test)) if row not in learned_rows]) if learned_rows else test


def _seed_runs(store: Store, inputs: Mapping[str, Manifest]) -> dict[str, list[Evaluation]]:
    """Return the evaluations that tell how much the seed alone changes, by the snapshot and settings that
    their trainings share.
    """
    evaluations: dict[str, list[Evaluation]] = defaultdict(list)
    for name, manifest in inputs.items():
        if name.startswith(SEED_RUN):
            evaluations[recipe_digest(store.load(EvaluationMetadata.of(manifest).checkpoint))].append(
                read_evaluation((store.folder(manifest) / EVALUATION_FILE).read_bytes())
            )
    return evaluations


def _refs(inputs: Mapping[str, Manifest], prefix: str) -> list[str]:
    return [manifest.ref for name, manifest in inputs.items() if name.startswith(prefix)]


def _worth(settings: UseCaseSettings, inputs: Mapping[str, Manifest], evaluation: Evaluation) -> Worth:
    if evaluation.candidate != FINETUNED:
        answer = "no" if asked(settings) else "not_asked"
        return Worth(answer=answer, cost_usd=0.0, break_even=None, sentence="It was not trained.")
    gain = evaluation.gain_over_best_baseline
    training_seconds = CheckpointMetadata.of(inputs[FINETUNED_CHECKPOINT]).training_seconds
    seconds = training_seconds + PilotMetadata.of(inputs[PILOT_RUN]).seconds
    return judge_worth(gain.low, gain.estimate, gain.high, seconds, settings)


def _metadata(
    judgement: Judged, decision: ReleaseVerdict, num_left_out: int, ships: Manifest | None
) -> EvaluationMetadata:
    evaluation = judgement.evaluation
    inputs = judgement.context.inputs
    worth = judgement.worth
    candidate = inputs[FINETUNED_CHECKPOINT]
    gain = evaluation.gain_over_best_baseline
    over_champion = evaluation.gain_over_champion
    return EvaluationMetadata(
        verdict=decision.sentence,
        justification=evaluation.justification.sentence,
        worth_sentence=worth.sentence,
        worth=worth.answer,
        cost_usd=worth.cost_usd,
        answer=decision.answer,
        promote=decision.promote,
        justified=evaluation.justification.justified and worth.answer in ("yes", "not_asked"),
        primary_metric=evaluation.primary_metric,
        metrics=evaluation.metrics,
        num_test_rows=evaluation.num_test_rows,
        num_test_groups=evaluation.num_test_groups,
        effective_groups=evaluation.effective_groups,
        num_test_rows_left_out=num_left_out,
        best_baseline=evaluation.justification.best_baseline,
        gain_over_best_baseline=gain.estimate,
        gain_over_best_baseline_low=gain.low,
        gain_over_best_baseline_high=gain.high,
        gain_over_champion=over_champion.estimate if over_champion else None,
        candidate=evaluation.candidate,
        checkpoint=candidate.ref,
        ships=None if ships is None else ships.ref,
        incumbent=inputs[CHAMPION].ref if CHAMPION in inputs else None,
        anchor=inputs[ANCHOR].ref if ANCHOR in inputs else None,
        seed_runs=_refs(inputs, SEED_RUN),
        looks=_refs(inputs, LOOK),
        scores={
            name: {
                metric: values[name].estimate
                for metric, values in evaluation.columns.items()
                if name in values
            }
            for name in evaluation.scores[evaluation.primary_metric]
            if name != evaluation.candidate
        },
        measured={**judgement.result.headline, **CheckpointMetadata.of(candidate).general_scores},
    )


if __name__ == "__main__":
    run_workload(work)
