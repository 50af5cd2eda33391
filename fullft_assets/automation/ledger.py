"""What is kept of retraining decisions: the log, which incidents were raised, and which Dagster decides.

What was trained is none of it: runs and artifacts say that. So a ledger that is lost or damaged repeats at
most an alert.
"""

from __future__ import annotations

import socket
import uuid
from collections.abc import Iterator
from typing import Any

import dagster as dg
from pydantic import BaseModel, ConfigDict

from fullft_assets.assets.case import Case, plain_metadata
from fullft_assets.markdown import escape_name
from fullft_assets.retraining import (
    CLOCK_SECONDS,
    Decision,
    RecordedDecision,
    Signals,
    State,
    hours_spent,
    num_unproductive,
    raised_after,
)
from fullft_assets.store import Store

#: The asset whose materialisations are the decisions.
ASSET = "retraining_decisions"
#: Of several Dagsters that share a store, another one decides once the decider was silent for so long.
_SILENT_SECONDS = 600.0
_NAME_KEY = "fullft_assets/name"


class DecisionLedger(BaseModel):
    """What the next decision needs to know; times in seconds since the epoch.

    Attributes:
        raised: when each open incident was raised last.
        decision: the newest decision.
        decider, decided_at: which Dagster made it, and when it last said that it decides.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    raised: dict[str, float] = {}
    decision: Decision | None = None
    decider: str = ""
    decided_at: float = 0.0

    def is_of_another(self, name: str, now: float) -> bool:
        """Return whether another Dagster decides. A time that a wrong clock has dated does not count."""
        is_young = -CLOCK_SECONDS <= now - self.decided_at < _SILENT_SECONDS
        return bool(self.decider) and self.decider != name and is_young


def decisions_asset(case: Case) -> dg.AssetSpec:
    """Return the asset that the UI shows decisions under; the sensor reports them."""
    return dg.AssetSpec(
        case.key(ASSET),
        group_name=case.name,
        kinds={"json"},
        code_version="1",
        description=(
            "Each retraining decision that differs from the one before, with its reasons and what it"
            " rests on."
        ),
    )


def read_ledger(store: Store, case: str) -> tuple[DecisionLedger, list[str]]:
    """Return the ledger, and a note if it was damaged and begins anew."""
    try:
        return DecisionLedger.model_validate(store.read_pointer(_name(case)) or {}), []
    except ValueError:  # JSON that is cut off, or has other keys
        note = f"the ledger {_name(case)}.json could not be read and begins anew: what lasts is raised again"
        return DecisionLedger(), [note]


def record(
    case: Case,
    instance: dg.DagsterInstance,
    store: Store,
    ledger: DecisionLedger,
    state: State,
    signals: Signals,
    decision: Decision,
    *,
    by: str,
) -> None:
    """Remember a decision, in the log and in the UI if it differs from the one before.

    Args:
        by: the name of the Dagster that decided.
    """
    if ledger.decision != decision:
        entry = RecordedDecision(case=case.name, time=signals.now, signals=signals, decision=decision)
        store.write_pointer(
            f"{_folder(case.name)}/{int(signals.now * 1000):014d}", entry.model_dump(mode="json")
        )
        shown = _shown(case, state, signals, decision)
        instance.report_runless_asset_event(
            dg.AssetMaterialization(asset_key=case.key(ASSET), metadata=shown)
        )
    decided_at = ledger.decided_at
    if ledger.decider != by or not 0 <= signals.now - decided_at < _SILENT_SECONDS / 2:
        decided_at = signals.now
    raised = raised_after(state, signals, decision)
    new = DecisionLedger(raised=raised, decision=decision, decider=by, decided_at=decided_at)
    if new != ledger or decision.notes:
        store.write_pointer(_name(case.name), new.model_dump(mode="json"))


def entries_since(
    store: Store, case: str, since: float, now: float
) -> Iterator[tuple[str, RecordedDecision]]:
    """Yield the readable decisions of the log between two times (seconds since the epoch) with their names,
    oldest first.
    """
    for name in store.list_pointers(_folder(case)):
        if (
            name.isdecimal()
            and since <= int(name) / 1000 <= now + CLOCK_SECONDS
            and (entry := _read(store, case, name)) is not None
        ):
            yield name, entry


def name_of(instance: dg.DagsterInstance) -> str:
    """Return the name of a Dagster: that of the machine it began on, and what tells it from others. Its
    storage keeps it.
    """
    storage = instance.daemon_cursor_storage
    if not storage.get_cursor_values({_NAME_KEY}):
        storage.set_cursor_values({_NAME_KEY: f"{socket.gethostname()}-{uuid.uuid4().hex[:8]}"})
    return storage.get_cursor_values({_NAME_KEY})[_NAME_KEY]


def _name(case: str) -> str:
    return f"{case}/retraining"


def _folder(case: str) -> str:
    return f"{case}/retraining_decisions"


def _read(store: Store, case: str, name: str) -> RecordedDecision | None:
    """Return an entry of the log, or None if it cannot be read."""
    try:
        return RecordedDecision.model_validate(store.read_pointer(f"{_folder(case)}/{name}"))
    except ValueError:
        return None


def _shown(case: Case, state: State, signals: Signals, decision: Decision) -> dict[str, Any]:
    """Return a decision as the UI shows it: text, and numbers that it plots."""
    settings = case.settings.retraining
    spent = hours_spent(state, signals)
    numbers = {
        "num_examples": signals.num_examples,
        "num_new_examples": max(0, signals.num_examples - state.num_trained),
        "num_uncounted_examples": signals.num_uncounted,
        "score_drop": signals.score_drop,
        "estimated_hours": signals.estimated_hours,
        "hours_spent_this_month": spent,
        "hours_of_evaluations_and_windows": signals.hours_beside,
        "usd_spent_this_month": spent * signals.hourly_usd,
        "num_attempts_in_vain": num_unproductive(state, signals, settings),
    }
    return {
        "action": decision.action,
        **({"next": decision.instruction} if decision.instruction else {}),
        "reasons": dg.MetadataValue.md(
            "\n".join(f"- {escape_name(reason)}" for reason in [*decision.reasons, *decision.notes])
        ),
        **plain_metadata(numbers),
    }
