"""release: a candidate becomes champion only through its gates; the champion is a pointer with a history."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict

from fullft_assets.errors import GateError
from fullft_assets.evaluation import Evaluation, read_evaluation
from fullft_assets.evaluation.verdict import Verdict, verdict
from fullft_assets.store import Draft, Manifest, Store
from fullft_assets.store import Outcome as StageOutcome
from fullft_assets.training import lineage

if TYPE_CHECKING:
    from fullft_assets.settings.use_case import UseCase

VERSION = "1"
#: Past champions kept in the pointer; their artifacts stay in the store.
MAX_HISTORY = 50


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Champion(_Record):
    """The model in use and where it comes from; artifacts by `Manifest.ref`, time in seconds since 1970."""

    checkpoint: str
    snapshot: str
    evaluation: str
    score: float
    promoted_at: float
    run_id: str


class Retired(_Record):
    """A past champion; `rolled_back` when it was taken out of use rather than succeeded."""

    champion: Champion
    rolled_back: bool
    retired_at: float


class _Pointer(_Record):
    current: Champion
    history: list[Retired] = []


@dataclass(frozen=True)
class Outcome:
    """What came of a decision, and the champion after it; a run that repeats itself finds `already_champion`."""

    kind: Literal["promoted", "already_champion", "kept"]
    sentence: str
    champion: Champion | None


def read_champion(store: Store, case: str) -> Champion | None:
    """Return the use case's champion, or None before the first promotion."""
    pointer = _read(store, case)
    return None if pointer is None else pointer.current


def read_history(store: Store, case: str) -> list[Retired]:
    """Return the past champions, newest first."""
    pointer = _read(store, case)
    return [] if pointer is None else pointer.history


def incumbent(store: Store, case: str, candidate: Manifest) -> str | None:
    """Return the ref of the checkpoint that a candidate checkpoint is judged against, or None if there is none.

    Once `publish` has dealt with a candidate this is fixed. A later champion, the candidate itself
    included, does not reopen the decision: a repeated run finds the recorded one.
    """
    fixed = store.read_pointer(_decision_pointer(candidate))
    if fixed is not None:
        return fixed["incumbent"]
    champion = read_champion(store, case)
    return champion.checkpoint if champion else None


def consider(store: Store, case: str, decision: Verdict, champion: Champion, judged_against: str | None) -> Outcome:
    """Say what is to come of a recorded decision now; nothing is written.

    Args:
        store: where the pointer lives.
        case: the use case.
        decision: the verdict recorded with the evaluation.
        champion: what the candidate would be as champion.
        judged_against: ref of the incumbent's checkpoint in that evaluation.
    """
    pointer = _read(store, case)
    current = pointer.current if pointer else None
    if current is not None and current.checkpoint == champion.checkpoint:
        return Outcome("already_champion", "Already champion: nothing to change.", current)
    if not decision.promote:
        return Outcome("kept", decision.sentence, current)
    if pointer and any(r.rolled_back and r.champion.checkpoint == champion.checkpoint for r in pointer.history):
        text = "Not promoted: this checkpoint was champion and was rolled back; deliver new data or raise training.retry_epoch."
        return Outcome("kept", text, current)
    if (current.checkpoint if current else None) != judged_against:
        text = "Not promoted: the champion has changed since this candidate was judged; raise training.retry_epoch to train anew."
        return Outcome("kept", text, current)
    return Outcome("promoted", decision.sentence, champion)


def publish(
    store: Store, use_case: UseCase, *, report: Manifest, checkpoint: Manifest, snapshot: Manifest, run_id: str
) -> tuple[Outcome, Manifest | None]:
    """Judge a candidate by its recorded figures and, if every gate passes, make it the champion with a model card.

    Returns:
        What came of it, and the `champion_model` artifact if this candidate is the champion now.

    Raises:
        GateError: a check upstream is red, or the report judged another checkpoint or snapshot.
    """
    checkpoint.require_green("champion_model")
    snapshot.require_green("champion_model")
    for name, manifest in (("finetuned_checkpoint", checkpoint), ("training_snapshot", snapshot)):
        if report.inputs[name] != manifest.content_digest:
            raise GateError(f"champion_model refused: evaluation_report judged another {name}; materialise evaluation_report again")
    evaluation, case = _read_evaluation(store, report), use_case.name
    decision, judged_against = verdict(evaluation, use_case.settings.release), report.metadata["incumbent"]
    candidate = Champion(
        checkpoint=checkpoint.ref,
        snapshot=checkpoint.metadata["snapshot"],
        evaluation=report.ref,
        score=evaluation.score.estimate,
        promoted_at=time.time(),
        run_id=run_id,
    )
    if store.read_pointer(_decision_pointer(checkpoint)) is None:
        record = {"incumbent": judged_against, "evaluation": report.ref, "promote": decision.promote}
        store.write_pointer(_decision_pointer(checkpoint), record)
    outcome = consider(store, case, decision, candidate, judged_against)
    if outcome.kind == "kept":
        return outcome, None
    if outcome.kind == "already_champion":  # possibly evaluated anew on newer rows; its card stays with its promotion
        report, snapshot = store.load(outcome.champion.evaluation), store.load(outcome.champion.snapshot)
    manifest = _write_card(store, use_case, report, checkpoint)
    if outcome.kind == "promoted":
        # The pointer moves last: a run killed before it finds the card and moves it then.
        promote(store, case, candidate)
    return outcome, manifest


def promote(store: Store, case: str, champion: Champion) -> None:
    """Make this the champion; the previous one joins the history in the same atomic write."""
    pointer = _read(store, case)
    history = [] if pointer is None else pointer.history
    if pointer is not None:
        if pointer.current.checkpoint == champion.checkpoint:
            return
        history = [Retired(champion=pointer.current, rolled_back=False, retired_at=time.time()), *history]
    _write(store, case, _Pointer(current=champion, history=history[:MAX_HISTORY]))


def rollback(store: Store, case: str) -> Champion:
    """Bring back the newest past champion that was not itself rolled back, and return it.

    Raises:
        GateError: there is no past champion to go back to.
    """
    pointer = _read(store, case)
    if pointer is None:
        raise GateError(f"{case}: no champion was promoted yet, so there is nothing to roll back")
    for position, retired in enumerate(pointer.history):
        if not retired.rolled_back:
            taken_out = Retired(champion=pointer.current, rolled_back=True, retired_at=time.time())
            history = [taken_out, *pointer.history[:position], *pointer.history[position + 1 :]]
            _write(store, case, _Pointer(current=retired.champion, history=history))
            return retired.champion
    raise GateError(f"{case}: {pointer.current.checkpoint} is the first champion; there is none before it to roll back to")


def model_card(
    case: str,
    evaluation: Evaluation,
    *,
    lineage: Sequence[tuple[str, str]],
    training: Sequence[tuple[str, str]],
    data: Sequence[tuple[str, str]],
    base_model: str,
    decision: Verdict,
    attribution: str = "",
    intended_use: str = "",
    limits: Sequence[str] = (),
) -> str:
    """Render the model card (Markdown; Mitchell et al. 2019).

    Args:
        case: the use case.
        evaluation: the figures.
        lineage: what made the model: name, value.
        training: how it was trained: setting, value.
        data: what it was trained and tested on: name, value.
        base_model: the pretrained model.
        decision: the gates' verdict.
        attribution: the data's source, licence and attribution, if known.
        intended_use: what the model is for; by default what the task says.
        limits: further known limits; those that the figures show are added.
    """
    from fullft_assets.report import render

    return render(
        "model_card.md.j2",
        case=case,
        evaluation=evaluation,
        lineage=lineage,
        training=training,
        data=data,
        base_model=base_model,
        decision=decision,
        attribution=attribution,
        intended_use=intended_use,
        limits=[*evaluation.limits, *limits],
    )


def _read_evaluation(store: Store, report: Manifest) -> Evaluation:
    return read_evaluation((store.folder(report) / "evaluation.json").read_bytes())


def _write_card(store: Store, use_case: UseCase, report: Manifest, checkpoint: Manifest) -> Manifest:
    evaluation = _read_evaluation(store, report)
    decision = Verdict.model_validate_json((store.folder(report) / "decision.json").read_bytes())
    made = checkpoint.metadata
    # What the model learned on, which a later evaluation's snapshot need not be.
    learned = store.load(made["snapshot"])
    made_by = [
        ("Checkpoint", checkpoint.ref),
        *lineage.rows(checkpoint),
        ("Snapshot", learned.ref),
        ("Evaluation", report.ref),
        ("Base model weights (sha256)", made["base_model_weights"]),
        ("Settings digest", made["settings_digest"]),
        ("Seed", str(checkpoint.seed)),
    ]
    training = [(name, str(value)) for name, value in checkpoint.settings["training"].items()]
    training += [("precision used", made["precision"]), ("trained parameters", f"{made['num_trained_parameters']:,}")]
    counts = learned.metadata
    data = [(f"{split} rows", f"{counts[f'num_{split}_rows']:,}") for split in ("train", "validation", "test")]
    data += [("source", use_case.settings.documents.path), ("batches", f"{len(counts['parts']):,}")]

    def write(draft: Draft) -> StageOutcome:
        card = model_card(
            use_case.name,
            evaluation,
            lineage=made_by,
            training=training,
            data=data,
            base_model=made["base_model"],
            decision=decision,
            attribution=use_case.settings.documents.attribution,
        )
        (draft.path / "model_card.md").write_text(card, encoding="utf-8")
        metadata = {
            "checkpoint": checkpoint.ref,
            "score": evaluation.score.estimate,
            "verdict": decision.sentence,
            "model": f"{checkpoint.ref}/model",
        }
        return metadata, []

    return store.ensure(
        use_case.name,
        "champion_model",
        write,
        version=VERSION,
        settings=use_case.settings.release.model_dump(),
        inputs={"finetuned_checkpoint": checkpoint.content_digest, "evaluation_report": report.content_digest},
        seed=use_case.settings.seed,
    )


def _decision_pointer(checkpoint: Manifest) -> str:
    return f"{checkpoint.case}/decisions/{checkpoint.key}"


def _read(store: Store, case: str) -> _Pointer | None:
    value: Mapping[str, Any] | None = store.read_pointer(f"{case}/champion")
    if value is None:
        return None
    history = value.get("history", [])
    return _Pointer(current=Champion(**{k: v for k, v in value.items() if k != "history"}), history=history)


def _write(store: Store, case: str, pointer: _Pointer) -> None:
    history = [retired.model_dump() for retired in pointer.history]
    store.write_pointer(f"{case}/champion", {**pointer.current.model_dump(), "history": history})
