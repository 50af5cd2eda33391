"""What is kept of retraining decisions: the log, which incidents were raised, and the leases of who decides
and of who launches a run.

What was trained is none of it: runs and artifacts say that. So a ledger that is lost or damaged repeats at
most an alert.
"""

from __future__ import annotations

import socket
import uuid
from collections.abc import Iterator
from typing import Any

import dagster as dg
from pydantic import BaseModel, ConfigDict, ValidationError

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
#: A launched run is seen by every other decider of its Dagster before half of that. Then the holder of a
#: lease renews it.
LEASE_SECONDS = 600.0
_NAME_KEY = "fullft_assets/name"
#: Entries that a lost ledger is rebuilt from.
_REPLAYED = 200


class DecisionLedger(BaseModel):
    """The newest decision, and when (seconds since the epoch) each open incident was raised last."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    raised: dict[str, float] = {}
    decision: Decision | None = None


class _Lease(BaseModel):
    """Whose a lease is, and until when (seconds since the epoch)."""

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)

    by: str
    until: float


def decisions_asset(case: Case) -> dg.AssetSpec:
    """Return the asset that the UI shows decisions under; sensor and schedule report them."""
    return dg.AssetSpec(
        case.key(ASSET),
        group_name=case.name,
        owners=case.settings.owners or None,
        kinds={"json"},
        code_version="1",
        description=(
            "Each retraining decision that differs from the one before, with its reasons and what it"
            " rests on."
        ),
    )


def read_ledger(store: Store, case: str) -> tuple[DecisionLedger, list[str]]:
    """Return the ledger, and a note if it was lost or damaged and is rebuilt from the log."""
    try:
        found = store.read_pointer(_name(case))
        if found is not None:
            return DecisionLedger.model_validate(found), []
        problem = "was gone"
    except ValueError:  # JSON that is cut off, or has other keys
        problem = "could not be read"
    names = store.list_pointers(_folder(case))[-_REPLAYED:]
    if not names and problem == "was gone":
        return DecisionLedger(), []
    raised: dict[str, float] = {}
    entries = [entry for name in names if (entry := _read(store, case, name)) is not None]
    for entry in entries:
        raised = raised_after(State(raised=raised), entry.signals, entry.decision)
    lost = f", {len(names) - len(entries)} of them unreadable" if len(entries) < len(names) else ""
    note = (
        f"the ledger {_name(case)}.json {problem} and is rebuilt from {len(names)} decisions of the log{lost}"
    )
    return DecisionLedger(raised=raised, decision=entries[-1].decision if entries else None), [note]


def record(
    case: Case,
    instance: dg.DagsterInstance,
    store: Store,
    ledger: DecisionLedger,
    state: State,
    signals: Signals,
    decision: Decision,
) -> None:
    """Remember a decision, in the log and in the UI if it differs from the one before."""
    if ledger.decision != decision:
        entry = RecordedDecision(case=case.name, time=signals.now, signals=signals, decision=decision)
        store.write_pointer(
            f"{_folder(case.name)}/{int(signals.now * 1000):014d}", entry.model_dump(mode="json")
        )
        shown = _shown(case, state, signals, decision)
        instance.report_runless_asset_event(
            dg.AssetMaterialization(asset_key=case.key(ASSET), metadata=shown)
        )
    new = DecisionLedger(raised=raised_after(state, signals, decision), decision=decision)
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


def decides(store: Store, case: str, instance: dg.DagsterInstance, now: float) -> tuple[bool, str]:
    """Return whether a Dagster may decide for a use case, and the name of the one that does; of several that
    share a store, one does.

    No other one knows its runs, its attempts and what they took. It is the decider until ten minutes after
    its last decision.

    Args:
        now: seconds since the epoch.
    """
    name = name_of(instance)
    holder = claim(store, f"{case}/retraining_decider", name, now)
    return holder == name, holder


def claims_launch(store: Store, case: str, instance: dg.DagsterInstance, by: str, now: float) -> bool:
    """Return whether a run may be launched: of the two deciders of a Dagster at one moment one launches.

    Args:
        by: who asks: the sensor or the schedule.
        now: seconds since the epoch.
    """
    owner = f"{name_of(instance)} {by}"
    return claim(store, f"{case}/retraining_lease", owner, now) == owner


def name_of(instance: dg.DagsterInstance) -> str:
    """Return the name of a Dagster: that of the machine it began on, and what tells it from others. Its
    storage keeps it.
    """
    storage = instance.daemon_cursor_storage
    if not storage.get_cursor_values({_NAME_KEY}):
        storage.set_cursor_values({_NAME_KEY: f"{socket.gethostname()}-{uuid.uuid4().hex[:8]}"})
    return storage.get_cursor_values({_NAME_KEY})[_NAME_KEY]


def claim(store: Store, name: str, by: str, now: float) -> str:
    """Take a lease if it is free, and return whose it is now.

    It ends by itself, and its holder may renew it, so that a tick that dies with it, or is only previewed,
    stops nothing for long.

    Args:
        by: who asks.
        now: seconds since the epoch.
    """
    mine = {"by": by, "until": now + LEASE_SECONDS}
    holder = by

    def change(found: object) -> dict[str, Any] | None:
        nonlocal holder
        lease = _valid_lease(found, now)
        holder = by if lease is None else lease.by
        return mine if holder == by else None

    try:
        # Most ticks find their own lease young, or that of another, and write nothing.
        lease = _valid_lease(store.read_pointer(name), now)
        if lease is not None and (lease.by != by or lease.until - now > LEASE_SECONDS / 2):
            return lease.by
        store.change_pointer(name, change)
    except ValueError:  # JSON that is cut off
        store.write_pointer(name, mine)
    return holder


def _valid_lease(found: object, now: float) -> _Lease | None:
    """Return the lease that a pointer holds, or None if it has ended or is none."""
    try:
        lease = _Lease.model_validate(found)
    except ValidationError:
        return None
    # One that ends later than any may was dated by another clock.
    return lease if 0 < lease.until - now <= LEASE_SECONDS + CLOCK_SECONDS else None


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
        "reasons": dg.MetadataValue.md(
            "\n".join(f"- {escape_name(reason)}" for reason in [*decision.reasons, *decision.notes])
        ),
        **plain_metadata(numbers),
    }
