"""The decision on a candidate: promoted if every gate passes and nothing has changed since it was judged."""

import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fullft_assets.artifacts import (
    BASELINE_MODEL,
    CHAMPION_MODEL,
    EVALUATION_FILE,
    EVALUATION_REPORT,
    FINETUNED_CHECKPOINT,
    MODELS,
    TRAINING_SNAPSHOT,
)
from fullft_assets.checkpoint import plan_settings
from fullft_assets.checkpoint.metadata import CheckpointMetadata
from fullft_assets.errors import GateError
from fullft_assets.evaluation import FINETUNED, Evaluation, read_evaluation, title
from fullft_assets.evaluation.base import least_groups
from fullft_assets.evaluation.gates import ChampionRule
from fullft_assets.evaluation.metadata import EvaluationMetadata
from fullft_assets.evaluation.verdict import ReleaseVerdict, read_verdict
from fullft_assets.planning import BaselinesMetadata
from fullft_assets.planning.worth import asked
from fullft_assets.release.champion import (
    Champion,
    ReleaseState,
    one_line,
    promote,
    read_champion,
    read_state,
)
from fullft_assets.release.model_card import write_card
from fullft_assets.settings import ReleaseSettings, UseCaseSettings
from fullft_assets.settings.use_case import UseCase
from fullft_assets.snapshot import verdict_check
from fullft_assets.snapshot.metadata import SnapshotMetadata
from fullft_assets.store import Manifest, Store, artifact_key, digest
from fullft_assets.task import BASELINES, task_of

#: How a release ends that the gates decided: said where the pointer moved, and nowhere else.
PROMOTED = "Promoted: every gate passed."
#: The newest judged trainings that the store remembers.
_MAX_RUNS = 100
#: Trainings of one recipe may differ in these: the first one changes the seed, the second one the initial
#: weights.
_NOT_OF_A_RECIPE = ("retry_epoch", "retrain_from")
#: Version of the code that writes a `baseline_model`.
BASELINE_VERSION = "3"
#: A prediction costs a pass of the base model: more than TF-IDF (0), and less than a prompt (3), which is a
#: longer pass for each label, and a service (4).
_RANK_OF_FINETUNED = 2


@dataclass(frozen=True)
class ReleaseOutcome:
    """Outcome of a decision; a repeated run finds `already_champion`.

    Attributes:
        champion: the champion after it.
        closed_by: what kept the champion though every gate of the candidate passed.
    """

    kind: Literal["promoted", "already_champion", "kept"]
    sentence: str
    champion: Champion | None
    closed_by: Literal["security_audit"] | None = None


@dataclass(frozen=True)
class JudgedAgainst:
    """Refs of the checkpoints that a candidate is judged against.

    Attributes:
        champion: None: there was none.
        anchor: the last champion that was promoted as better (see `ReleaseState.anchor`), where
            non-inferiority to it is asked for and it is not the champion itself.
        seed_runs: reports on trainings that others of their recipe repeat with another seed; they tell how
            much seeds alone change.
        looks: reports on the candidates that were compared with this champion before, or where there is none
            on the fine-tuned ones that were compared with the baselines, on at least half as many test
            groups.
    """

    champion: str | None
    anchor: str | None
    seed_runs: tuple[str, ...] = ()
    looks: tuple[str, ...] = ()


def judged_against(store: Store, case: str, candidate: Manifest, snapshot: Manifest) -> JudgedAgainst:
    """Return the checkpoints and reports that a candidate checkpoint is judged against.

    Once `publish` has decided on a candidate this is fixed. A later champion, the candidate itself
    included, does not reopen the decision: a repeated run finds the recorded one. A baseline that became
    champion in its place is measured beside it on newer rows.

    Args:
        snapshot: whose test rows it is judged on.
    """
    record = store.read_pointer(_decision_pointer(candidate))
    state = read_state(store, case)
    if record is not None:
        if (
            (snapshot.ref != CheckpointMetadata.of(candidate).snapshot)
            and state is not None
            and record.get("ships") == state.checkpoint
        ):
            return JudgedAgainst(state.checkpoint, None)
        return JudgedAgainst(
            record["incumbent"], record["anchor"], tuple(record["seed_runs"]), tuple(record.get("looks", ()))
        )
    incumbent = None if state is None else state.checkpoint
    num_groups = SnapshotMetadata.of(snapshot).num_test_groups
    looks = tuple(
        run["evaluation"]
        for run in _runs(store, case)
        # Records of earlier releases lack it.
        if "num_test_groups" in run
        and run["incumbent"] == incumbent
        # Without a champion the fine-tuned model alone has to be better than something.
        and (incumbent is not None or run.get("candidate", FINETUNED) == FINETUNED)
        and 2 * run["num_test_groups"] >= num_groups
    )
    if state is None:
        return JudgedAgainst(None, None, looks=looks)
    champion = store.load(state.checkpoint)
    anchor = state.anchor.checkpoint
    # A champion that is a baseline may be judged again by its own recipe.
    is_asked = champion_rule(candidate, champion) == "non_inferiority" or champion.stage == BASELINE_MODEL
    return JudgedAgainst(
        state.checkpoint,
        anchor if is_asked and anchor not in (state.checkpoint, candidate.ref) else None,
        tuple(ref for refs in seed_runs(store, case).values() for ref in refs),
        looks,
    )


def champion_rule(candidate: Manifest, champion: Manifest) -> ChampionRule:
    """Return the rule that a candidate must pass: non-inferiority where the champion's recipe was trained on
    other data, else superiority.

    Data that grow seldom help by what a test set can show, so superiority would keep an old champion for
    ever; a changed recipe is a choice, and has to be better.
    """
    same_recipe = _recipe(candidate) == _recipe(champion)
    same_data = CheckpointMetadata.of(candidate).snapshot == CheckpointMetadata.of(champion).snapshot
    return "non_inferiority" if same_recipe and not same_data else "superiority"


def consider(
    state: ReleaseState | None, case: str, verdict: ReleaseVerdict, candidate: Champion, incumbent: str | None
) -> ReleaseOutcome:
    """Return the outcome of a recorded verdict in this state of the release; nothing is written."""
    current = None if state is None else state.current
    if state is not None and state.checkpoint == candidate.checkpoint:
        return ReleaseOutcome("already_champion", "Already champion: nothing to change.", current)
    if not verdict.promote:
        return ReleaseOutcome("kept", verdict.sentence, current)
    if state is not None and any(
        past.rolled_back and past.champion.checkpoint == candidate.checkpoint for past in state.history
    ):
        return ReleaseOutcome(
            "kept",
            "Not promoted: this checkpoint was champion and was rolled back; deliver new data or raise"
            " training.retry_epoch.",
            current,
        )
    if (None if state is None else state.checkpoint) != incumbent:
        return ReleaseOutcome(
            "kept",
            "Not promoted: the champion has changed since this candidate was judged; raise"
            " training.retry_epoch to train again.",
            current,
        )
    if state is not None and state.frozen is not None:
        return ReleaseOutcome(
            "kept",
            f"Not promoted though every gate passed, since the champion is frozen. {state.frozen.sentence}."
            f" Run the job {case}_by_hand with act: unfreeze, then materialise champion_model again.",
            current,
        )
    return ReleaseOutcome("promoted", _promoted(verdict), candidate)


def _promoted(verdict: ReleaseVerdict) -> str:
    return f"{PROMOTED} {verdict.choice}".strip()


def publish(
    store: Store,
    use_case: UseCase,
    *,
    report: Manifest,
    checkpoint: Manifest,
    snapshot: Manifest,
    run_id: str,
    reason_to_keep: Callable[[], str | None] = lambda: None,
) -> tuple[ReleaseOutcome, Manifest | None]:
    """Carry out the verdict that the report recorded: if every gate passed, make the candidate the champion
    with a model card.

    Args:
        reason_to_keep: called once, for a candidate that would be promoted; errors of the security audit
            that it returns keep the champion.

    Returns:
        The outcome, and the `champion_model` artifact if this candidate is the champion now.

    Raises:
        GateError: a check upstream is red, or the report judged another checkpoint or snapshot, or by other
            gates.
    """
    _require_judged(use_case, report, checkpoint, snapshot)
    metadata = EvaluationMetadata.of(report)
    evaluations = [(checkpoint, report)]
    if metadata.ships is not None:
        report = store.load(metadata.ships)
        checkpoint = store.load(EvaluationMetadata.of(report).checkpoint)
        evaluations.append((checkpoint, report))
    verdict = read_verdict(store.folder(report))
    candidate = _candidate(store, report, checkpoint, run_id, verdict.is_better)
    for judged_checkpoint, judged_report in evaluations:
        _fix_decision(store, judged_checkpoint, judged_report)

    def decide(state: ReleaseState | None) -> ReleaseOutcome:
        return consider(state, use_case.name, verdict, candidate, metadata.incumbent)

    def allowed(state: ReleaseState | None) -> bool:
        nonlocal outcome
        return (outcome := decide(state)).kind != "kept"

    outcome = decide(read_state(store, use_case.name))
    manifest = None
    if outcome.kind == "promoted" and (reason := reason_to_keep()) is not None:
        outcome = ReleaseOutcome("kept", reason, read_champion(store, use_case.name), "security_audit")
    if outcome.kind == "promoted":
        card = write_card(store, use_case, report, checkpoint, outcome=outcome.sentence)
        # The pointer moves last: a run killed before it finds the card and moves it then.
        manifest = card if promote(store, use_case.name, candidate, allowed=allowed) else None
    elif outcome.kind == "already_champion":
        manifest = card_of_champion(store, use_case, checkpoint)
    for judged_checkpoint, _ in evaluations:
        _record_outcome(store, judged_checkpoint, outcome, _promoted(verdict))
    return outcome, manifest


def promote_by_hand(
    store: Store, use_case: UseCase, ref: str, *, reason: str, by: str
) -> tuple[ReleaseOutcome, Manifest]:
    """Make an evaluated checkpoint the champion whatever its gates say, with a model card that says so.

    Args:
        ref: `CASE/finetuned_checkpoint/KEY/ATTEMPT`, as the metadata of its asset have it; or of a
            `baseline_model`.

    Raises:
        GateError: it is no checkpoint of this use case, was never evaluated, or is the champion; or no reason
            is given.
        StoreError: there is no such artifact.
    """
    case = use_case.name
    reason = one_line(reason)
    if not ref.startswith(tuple(f"{case}/{stage}/" for stage in MODELS)):
        raise GateError(
            f"checkpoint: `{ref}` does not begin with {case}/finetuned_checkpoint/; copy it from `checkpoint`"
            " of an evaluation"
        )
    checkpoint = store.load(ref)
    report = _newest_report_on(store, checkpoint)
    current = read_champion(store, case)
    if current is not None and current.checkpoint == checkpoint.ref:
        raise GateError(f"{case}: {checkpoint.ref} is the champion already")
    champion = _candidate(store, report, checkpoint, by, True)
    sentence = _by_hand(reason, by, read_verdict(store.folder(report)))
    _fix_decision(store, checkpoint, report)
    outcome = ReleaseOutcome("promoted", sentence, champion)
    manifest = write_card(store, use_case, report, checkpoint, outcome=sentence)
    promote(store, case, champion, reason=reason)
    _record_outcome(store, checkpoint, outcome)
    return outcome, manifest


def recorded_outcome(store: Store, case: str, checkpoint: str) -> ReleaseOutcome | None:
    """Return the last outcome of the release of a checkpoint (by its ref), without the champion, or None
    before its first decision; the sentence says if what it made the champion was rolled back since.
    """
    record = store.read_pointer(f"{case}/decisions/{checkpoint.split('/')[2]}")
    if record is None or "outcome" not in record:
        return None
    refs = {checkpoint, record.get("ships", checkpoint)}
    acts = [] if (state := read_state(store, case)) is None else state.interventions
    newest = next((act for act in acts if refs & {act.before, act.after}), None)
    is_undone = newest is not None and newest.action == "rollback" and newest.before in refs
    # A decision that an earlier release recorded has no `closed_by`.
    return ReleaseOutcome(
        record["outcome"],
        record["sentence"] + (f" {newest.sentence}." if newest and is_undone else ""),
        None,
        record.get("closed_by"),
    )


def recipe_digest(checkpoint: Manifest) -> str:
    """Return a digest of recipe and snapshot: trainings with the same one differ in the seed alone."""
    return digest({**_recipe(checkpoint), "snapshot": CheckpointMetadata.of(checkpoint).snapshot})


def _require_judged(use_case: UseCase, report: Manifest, checkpoint: Manifest, snapshot: Manifest) -> None:
    checkpoint.require_green(CHAMPION_MODEL)
    snapshot.require_green(CHAMPION_MODEL)
    for name, manifest in ((FINETUNED_CHECKPOINT, checkpoint), (TRAINING_SNAPSHOT, snapshot)):
        if report.inputs[name] != manifest.content_digest:
            raise GateError(
                f"champion_model refused: evaluation_report judged another {name}; materialise"
                " evaluation_report again"
            )
    if ReleaseSettings.from_manifest(report.settings["release"]).model_dump(
        mode="json"
    ) != use_case.settings.release.model_dump(mode="json"):
        raise GateError(
            "champion_model refused: evaluation_report judged by other settings of release; materialise"
            " evaluation_report again"
        )
    if report.settings.get("worth", {}) != asked(use_case.settings):
        raise GateError(
            "champion_model refused: evaluation_report judged the cost by other settings of planning;"
            " materialise evaluation_report again"
        )


def card_of_champion(store: Store, use_case: UseCase, checkpoint: Manifest) -> Manifest:
    """Return the card of the present champion; it may have been evaluated again on newer rows, but its card
    stays with its promotion.
    """
    state = read_state(store, use_case.name)
    assert state is not None, "this checkpoint is the champion"
    report = store.load(state.evaluation)
    promotion = next(
        (
            intervention
            for intervention in state.interventions
            if intervention.action == "promote" and intervention.after == checkpoint.ref
        ),
        None,
    )
    verdict = read_verdict(store.folder(report))
    outcome = _promoted(verdict) if promotion is None else _by_hand(promotion.reason, promotion.by, verdict)
    return write_card(store, use_case, report, checkpoint, outcome=outcome)


def _by_hand(reason: str, by: str, verdict: ReleaseVerdict) -> str:
    return f"Promoted by hand ({by}): {reason}. The gates said: {verdict.sentence}"


def _candidate(
    store: Store, report: Manifest, checkpoint: Manifest, run_id: str, is_better: bool
) -> Champion:
    return Champion(
        checkpoint=checkpoint.ref,
        snapshot=CheckpointMetadata.of(checkpoint).snapshot,
        evaluation=report.ref,
        score=read_evaluation((store.folder(report) / EVALUATION_FILE).read_bytes()).score.estimate,
        promoted_at=time.time(),
        run_id=run_id,
        is_better=is_better,
    )


def _newest_report_on(store: Store, checkpoint: Manifest) -> Manifest:
    for report in map(store.load, store.refs(checkpoint.case, EVALUATION_REPORT)):
        if report.inputs[FINETUNED_CHECKPOINT] == checkpoint.content_digest:
            return report
    raise GateError(f"{checkpoint.ref} was never evaluated; materialise evaluation_report of it first")


def _fix_decision(store: Store, checkpoint: Manifest, report: Manifest) -> None:
    """Record what a checkpoint was judged against, unless a run did before."""
    if store.read_pointer(_decision_pointer(checkpoint)) is not None:
        return
    _record_run(store, checkpoint, report)
    metadata = EvaluationMetadata.of(report)
    against: dict[str, Any] = {
        name: getattr(metadata, name) for name in ("incumbent", "anchor", "seed_runs", "looks")
    }
    if metadata.ships is not None:
        against["ships"] = EvaluationMetadata.of(store.load(metadata.ships)).checkpoint
    store.write_pointer(
        _decision_pointer(checkpoint), {**against, "evaluation": report.ref, "promote": metadata.promote}
    )


def _record_outcome(
    store: Store, checkpoint: Manifest, outcome: ReleaseOutcome, promotion: str = PROMOTED
) -> None:
    """Record how the release ended. A repeated run that finds the checkpoint as champion keeps the record of
    its promotion.
    """
    record = store.read_pointer(_decision_pointer(checkpoint)) or {}
    if outcome.kind == "already_champion":
        if record.get("outcome") == "promoted":
            return
        # A run was killed after the promotion.
        outcome = ReleaseOutcome("promoted", promotion, outcome.champion)
    store.write_pointer(
        _decision_pointer(checkpoint),
        {**record, "outcome": outcome.kind, "sentence": outcome.sentence, "closed_by": outcome.closed_by},
    )


def seed_runs(store: Store, case: str) -> dict[str, list[str]]:
    """Return the reports on trainings that differ in the seed alone (`training.retry_epoch`), by a digest of
    what they share.
    """
    refs_by_recipe: dict[str, list[str]] = defaultdict(list)
    for run in _runs(store, case):
        refs_by_recipe[run["recipe"]].append(run["evaluation"])
    return {recipe: refs for recipe, refs in refs_by_recipe.items() if len(refs) > 1}


def _runs(store: Store, case: str) -> list[dict[str, Any]]:
    return (store.read_pointer(f"{case}/runs") or {"runs": []})["runs"]


def _record_run(store: Store, checkpoint: Manifest, report: Manifest) -> None:
    metadata = EvaluationMetadata.of(report)
    run = {
        "recipe": recipe_digest(checkpoint),
        "evaluation": report.ref,
        "incumbent": metadata.incumbent,
        "candidate": metadata.candidate,
        "num_test_groups": metadata.num_test_groups,
    }

    def add(pointer: dict[str, Any] | None) -> dict[str, Any] | None:
        runs = (pointer or {"runs": []})["runs"]
        # A run that was killed here before is on record.
        is_known = any(past_run["evaluation"] == report.ref for past_run in runs)
        return None if is_known else {"runs": [run, *runs][:_MAX_RUNS]}

    store.change_pointer(f"{checkpoint.case}/runs", add)


def _recipe(checkpoint: Manifest) -> dict[str, Any]:
    """Return what a training would repeat: its settings, its base model and the version of its code."""
    training = {
        name: value for name, value in checkpoint.settings["training"].items() if name not in _NOT_OF_A_RECIPE
    }
    facts = CheckpointMetadata.of(checkpoint).facts
    if "learning_rate" in facts:
        training["learning_rate"] = facts["learning_rate"]
    return {
        "training": training,
        "base": CheckpointMetadata.of(checkpoint).base_model_revision,
        "version": checkpoint.version,
    }


def _decision_pointer(checkpoint: Manifest) -> str:
    return f"{checkpoint.case}/decisions/{checkpoint.key}"


def candidates(
    baselines: BaselinesMetadata, settings: ReleaseSettings, finetuned_score: float | None
) -> list[str]:
    """Return the systems that may become champion, the first choice first: of those within `release.worth` of
    the best the one that is cheapest to serve, then the others by their scores on the validation rows.

    Args:
        finetuned_score: of the fine-tuned model; None: there is none.
    """
    ranks = {name: BASELINES.get(name).serving_rank for name in baselines.scores}
    scores = {
        name: baselines.scores[name]
        for name, rank in ranks.items()
        if rank is not None and settings.candidates != "finetuned"
    }
    if finetuned_score is not None:
        scores[FINETUNED] = finetuned_score
        ranks[FINETUNED] = _RANK_OF_FINETUNED
    near_best = max(scores.values(), default=0.0) - settings.worth

    def sort_key(name: str) -> tuple[bool, int | None, float]:
        is_near = scores[name] >= near_best
        return not is_near, ranks[name] if is_near else 0, -scores[name]

    return sorted(scores, key=sort_key)


def stored_baseline_settings(name: str, settings: UseCaseSettings) -> dict[str, Any]:
    """Return the settings of a `baseline_model`: what a later one of the same recipe shares."""
    trains = BASELINES.get(name).trainings(settings) > 0
    return {"training": {"baseline": name, **(plan_settings(settings) if trains else {})}}


def stored_baseline_key(name: str, inputs: Mapping[str, Manifest], settings: UseCaseSettings) -> str:
    """Return the key of a `baseline_model`.

    Args:
        inputs: `training_snapshot` and `cheaper_baselines`.
    """
    digests = {role: manifest.content_digest for role, manifest in inputs.items()}
    return artifact_key(
        BASELINE_MODEL, BASELINE_VERSION, stored_baseline_settings(name, settings), digests, settings.seed
    )


def choice_sentence(evaluation: Evaluation, rival: str, *, reason: str, costs: str) -> str:
    """Return why a system is to become champion.

    Args:
        evaluation: of the system.
        rival: the system that it is chosen before; `reason` says what that lacks.
        costs: what making both took, in words.
    """
    metric = evaluation.primary_metric
    return (
        f"The {title(evaluation.candidate)} is chosen: {title(metric)} {evaluation.score.estimate:.3f}"
        f" on the test rows, against {evaluation.scores[metric][rival].estimate:.3f} of the {title(rival)},"
        f" {reason}; {costs}."
    )


def verdict_outlook(metadata: SnapshotMetadata, settings: UseCaseSettings) -> str | None:
    """Return which verdicts the test groups of a snapshot are too few for, and what to do; None: for none."""
    check = verdict_check(metadata, settings)
    if not check.passed:
        return f"No verdict is possible: {check.description}"
    loss = settings.release.max_tolerable_loss
    num_needed = least_groups(loss, settings.evaluation.confidence)
    if not task_of(settings.examples).has_labels or metadata.num_test_groups >= (num_needed or math.inf):
        return None
    advice = f"deliver more, {num_needed:,} may do so, or raise it" if num_needed else "raise it"
    return (
        "A first model can be promoted, a later one of the same recipe only if it is better:"
        f" {metadata.num_test_groups:,} test groups cannot exclude a loss of {loss:g}"
        f" (release.max_tolerable_loss); {advice}"
    )
