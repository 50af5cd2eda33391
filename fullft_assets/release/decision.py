"""The decision on a candidate: promoted if every gate passes and nothing has changed since it was judged."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fullft_assets.errors import GateError
from fullft_assets.evaluation import read_evaluation
from fullft_assets.evaluation.metadata import EvaluationMetadata
from fullft_assets.evaluation.verdict import ReleaseVerdict, read_verdict
from fullft_assets.release.champion import Champion, promote, read_champion, read_history
from fullft_assets.release.model_card import write_card
from fullft_assets.store import Manifest, Store
from fullft_assets.training.metadata import CheckpointMetadata

if TYPE_CHECKING:
    from fullft_assets.settings.use_case import UseCase


@dataclass(frozen=True)
class ReleaseOutcome:
    """Outcome of a decision, and the champion after it; a repeated run finds `already_champion`."""

    kind: Literal["promoted", "already_champion", "kept"]
    sentence: str
    champion: Champion | None


def incumbent(store: Store, case: str, candidate: Manifest) -> str | None:
    """Return the ref of the checkpoint that a candidate checkpoint is judged against, or None if there is none.

    Once `publish` has decided on a candidate this is fixed. A later champion, the candidate itself
    included, does not reopen the decision: a repeated run finds the recorded one.
    """
    fixed = store.read_pointer(_decision_pointer(candidate))
    if fixed is not None:
        return fixed["incumbent"]
    champion = read_champion(store, case)
    return champion.checkpoint if champion else None


def consider(store: Store, case: str, verdict: ReleaseVerdict, candidate: Champion, judged_against: str | None) -> ReleaseOutcome:
    """Return what a recorded verdict leads to now; nothing is written."""
    current = read_champion(store, case)
    if current is not None and current.checkpoint == candidate.checkpoint:
        return ReleaseOutcome("already_champion", "Already champion: nothing to change.", current)
    if not verdict.promote:
        return ReleaseOutcome("kept", verdict.sentence, current)
    if any(past.rolled_back and past.champion.checkpoint == candidate.checkpoint for past in read_history(store, case)):
        text = "Not promoted: this checkpoint was champion and was rolled back; deliver new data or raise training.retry_epoch."
        return ReleaseOutcome("kept", text, current)
    if (current.checkpoint if current else None) != judged_against:
        text = "Not promoted: the champion has changed since this candidate was judged; raise training.retry_epoch to train again."
        return ReleaseOutcome("kept", text, current)
    return ReleaseOutcome("promoted", verdict.sentence, candidate)


def publish(
    store: Store, use_case: UseCase, *, report: Manifest, checkpoint: Manifest, snapshot: Manifest, run_id: str
) -> tuple[ReleaseOutcome, Manifest | None]:
    """Carry out the verdict that the report recorded: if every gate passed, make the candidate the champion with a model card.

    Returns:
        The outcome, and the `champion_model` artifact if this candidate is the champion now.

    Raises:
        GateError: a check upstream is red, or the report judged another checkpoint or snapshot, or by other gates.
    """
    checkpoint.require_green("champion_model")
    snapshot.require_green("champion_model")
    for name, manifest in (("finetuned_checkpoint", checkpoint), ("training_snapshot", snapshot)):
        if report.inputs[name] != manifest.content_digest:
            raise GateError(f"champion_model refused: evaluation_report judged another {name}; materialise evaluation_report again")
    if report.settings["release"] != use_case.settings.release.model_dump(mode="json"):
        raise GateError(
            "champion_model refused: evaluation_report judged by other settings of release; materialise evaluation_report again"
        )
    folder, case = store.folder(report), use_case.name
    verdict, judged_against = read_verdict(folder), EvaluationMetadata.of(report).incumbent
    candidate = Champion(
        checkpoint=checkpoint.ref,
        snapshot=CheckpointMetadata.of(checkpoint).snapshot,
        evaluation=report.ref,
        score=read_evaluation((folder / "evaluation.json").read_bytes()).score.estimate,
        promoted_at=time.time(),
        run_id=run_id,
    )
    if store.read_pointer(_decision_pointer(checkpoint)) is None:
        record = {"incumbent": judged_against, "evaluation": report.ref, "promote": verdict.promote}
        store.write_pointer(_decision_pointer(checkpoint), record)
    outcome = consider(store, case, verdict, candidate, judged_against)
    if outcome.kind == "kept":
        return outcome, None
    if outcome.kind == "already_champion":
        # It may have been evaluated again on newer rows; its card stays with its promotion.
        assert outcome.champion is not None, "this candidate is the champion"
        report = store.load(outcome.champion.evaluation)
    manifest = write_card(store, use_case, report, checkpoint)
    if outcome.kind == "promoted":
        # The pointer moves last: a run killed before it finds the card and moves it then.
        promote(store, case, candidate)
    return outcome, manifest


def _decision_pointer(checkpoint: Manifest) -> str:
    return f"{checkpoint.case}/decisions/{checkpoint.key}"
