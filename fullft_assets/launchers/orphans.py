"""Orphans: jobs that run, and are paid for, though no run follows them any more; and how they are ended.

A job outlives its run where the run was killed, or its machine was lost: the next run attaches to it. Where none does, the job is ended after
`launcher.orphan_hours`, with a checkpoint as if it were cancelled. An attempt that still runs though it is over on record, or though a newer one
took its place, is ended at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from fullft_assets.errors import FullftError, WorkloadError
from fullft_assets.jobs.launchers import open_recorded
from fullft_assets.launchers import records
from fullft_assets.launchers.base import Launcher, Status
from fullft_assets.launchers.records import Launch
from fullft_assets.store import Store

#: A run that has just recorded the end of a job, or a newer attempt, is about to end it itself.
_SETTLE_SECONDS = 900.0


@dataclass(frozen=True)
class Orphan:
    """A job without a run.

    Attributes:
        launch: on record for its key; the job may be an earlier attempt of it.
        name: of the job.
        state: `over` = its end is not on record; `running`; `replaced` = runs though its attempt is over; `unknown` = its backend does not say.
        is_due: whether it is ended now.
        line: for people, what was found.
    """

    launch: Launch
    name: str
    state: Literal["over", "running", "replaced", "unknown"]
    is_due: bool
    line: str


def find_orphans(store: Store, case: str, ended_at: Callable[[str], float | None], now: float | None = None) -> Iterator[Orphan]:
    """Yield the jobs of a use case that no run follows, as far as their backends can be asked from here.

    Args:
        ended_at: returns when a run, by its id, ended (seconds since the epoch); None of one that may still follow its job.
        now: seconds since the epoch. Default: the clock's.
    """
    now = time.time() if now is None else now
    names: dict[str, set[str]] = {}
    for launch in records.launches(store, case):
        since = ended_at(launch.run_id) if launch.ended_at is None else None
        if launch.ended_at is None and since is None and launch.attempt == 1:
            continue
        try:
            launcher = open_recorded(launch.launcher)
            if launcher.place != launch.place:  # processes of another machine, which only it can see
                continue
            if launch.place not in names:
                names[launch.place] = set(launcher.list())
            if since is not None:
                yield _unfollowed(launch, launcher, store, since, now)
            yield from _replaced(launch, launcher, store, names[launch.place], now)
        except FullftError as error:
            yield Orphan(launch, launch.name_in(store), "unknown", False, f"{_place(launch, store)} cannot be asked for: {error}")


def _unfollowed(launch: Launch, launcher: Launcher, store: Store, since: float, now: float) -> Orphan:
    status, name, limit = launcher.poll(launch.name_in(store)), launch.name_in(store), launcher.settings.orphan_hours
    if status.is_over:
        return Orphan(
            launch, name, "over", True, f"{_place(launch, store)} has ended ({status.state}) after its run, which did not record it"
        )
    hours = (now - since) / 3600
    runs_on = f"{_place(launch, store)} runs {hours:.2f} h after the end of its run, {_spent(launch)}"
    if limit is None or hours < limit:
        left = (
            "it runs on until a run attaches to it"
            if limit is None
            else f"it is ended in {limit - hours:.2f} h unless a run attaches to it"
        )
        return Orphan(launch, name, "running", False, f"{runs_on}; {left}")
    return Orphan(launch, name, "running", True, f"{runs_on}, and no run has attached to it; the next run resumes from its checkpoint")


def _replaced(launch: Launch, launcher: Launcher, store: Store, names: set[str], now: float) -> Iterator[Orphan]:
    """Yield attempts that run though they are over on record."""
    is_newest_over = launch.ended_at is not None and launch.ended_at < now - _SETTLE_SECONDS
    is_settled = launch.submitted_at < now - _SETTLE_SECONDS
    for attempt in range(1, launch.attempt + 1):
        is_newest = attempt == launch.attempt
        name = launch.model_copy(update={"attempt": attempt}).name_in(store)
        if (is_newest_over if is_newest else is_settled) and name in names and not launcher.poll(name).is_over:
            why = "though its end is on record" if is_newest else f"beside attempt {launch.attempt}"
            yield Orphan(launch, name, "replaced", True, f"{_place(launch, store)}: attempt {attempt} ({name}) runs {why}")


def end_orphan(store: Store, orphan: Orphan) -> bool:
    """End the job of an orphan, remove what its backend keeps of it, and record its end; return False if a run has attached to it meanwhile.

    Raises:
        WorkloadError: its backend does not answer; the job is on record as running, as it may.
    """
    launch, launcher = orphan.launch, open_recorded(orphan.launch.launcher)
    if orphan.state == "replaced":
        launcher.stop(orphan.name)
        return True
    status = launcher.poll(orphan.name)
    state, reason, failure = _end_of(status, launch)
    # Recorded first: a run that begins now launches a new attempt, which ends this one, instead of attaching to what is being ended.
    if not records.end(store, launch, state, reason, failure, status.billed_seconds, followed_by=launch.run_id):
        return False
    try:
        launcher.stop(orphan.name)
    except WorkloadError:
        if not status.is_over:
            records.reopen(store, launch)
        raise
    return True


def _end_of(status: Status, launch: Launch) -> tuple[Literal["succeeded", "failed", "stopped"], str, records.FailureClass]:
    if status.state == "succeeded":
        return "succeeded", "", status.failure
    if status.state == "failed":
        return "failed", status.reason, status.failure
    if status.state == "gone":
        return "failed", f"is gone from {launch.place}", "infrastructure"
    return "stopped", "its run had ended, and no other one attached to it", "preemption"


def _place(launch: Launch, store: Store) -> str:
    return f"{launch.case}/{launch.stage}: {launch.name_in(store)} at {launch.place}"


def _spent(launch: Launch) -> str:
    return f"after {launch.hours + launch.earlier_hours:.2f} h" + ("" if launch.usd is None else f" and {launch.usd:,.2f} USD")
