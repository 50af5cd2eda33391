"""Orphans: jobs that run, and are paid for, though no run follows them any more; and how they are ended.

A job outlives its run where the run was killed, or its machine was lost: the next run attaches to it. Where
none does, the job is stopped an hour later, with a checkpoint as if it were cancelled. What
may be an orphan is known from the store and from Dagster alone (`suspects`); whether it is one, only its
backend knows (`find_orphans`), which may be reached from a run alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from fullft_assets.errors import FailureClass, FullftError, WorkloadError
from fullft_assets.jobs.launchers import open_recorded
from fullft_assets.launchers import records
from fullft_assets.launchers.base import Launcher, Status
from fullft_assets.launchers.records import Launch
from fullft_assets.settings import LauncherSettings, UseCaseSettings
from fullft_assets.settings.launcher import ComputeSettings
from fullft_assets.store import Store

#: The next run has so long to attach to a job whose run has ended.
_ATTACH_SECONDS = 3600.0
#: When a run, by its id, ended, in seconds since the epoch; None of one that may still follow its job.
EndedAt = Callable[[str], float | None]


@dataclass(frozen=True)
class Suspect:
    """A launch whose run is over, and whose job may still be at its backend.

    Attributes:
        since: when the run ended; seconds since the epoch.
        due_at: from when the job is ended.
    """

    launch: Launch
    since: float
    due_at: float


@dataclass(frozen=True)
class Orphan:
    """What the backend of a suspect says.

    Attributes:
        launch: on record for its key.
        state: `over` = it runs no more; `unknown` = its backend does not say.
        line: for people, what was found.
    """

    launch: Launch
    state: Literal["running", "over", "unknown"]
    line: str


def suspects(store: Store, case: str, ended_at: EndedAt) -> Iterator[Suspect]:
    """Yield the launches of a use case that have not ended on record and that no run follows; no backend is
    asked.
    """
    for launch in records.launches(store, case):
        since = ended_at(launch.run_id) if launch.ended_at is None else None
        if since is not None:
            yield Suspect(launch, since, since + _ATTACH_SECONDS)


def find_orphans(store: Store, suspected: Iterable[Suspect]) -> Iterator[Orphan]:
    """Yield what the backends say of suspects; one that does not answer is asked once."""
    silent: dict[str, str] = {}
    for suspect in suspected:
        launch = suspect.launch
        try:
            if launch.place in silent:
                raise WorkloadError(silent[launch.place], "infrastructure")
            yield _look(launch, open_recorded(launch.launcher), store)
        except FullftError as error:
            silent.setdefault(launch.place, str(error))
            yield Orphan(launch, "unknown", f"{_about(launch, store)} cannot be asked for: {error}")


def _look(launch: Launch, launcher: Launcher, store: Store) -> Orphan:
    if launcher.ends_with_run:
        return Orphan(launch, "over", f"{_about(launch, store)} has ended with its run")
    if launcher.place != launch.place:
        raise WorkloadError(f"the section on record leads to {launcher.place} from here", "settings")
    if launcher.look(launch.name_in(store)).is_over:
        return Orphan(launch, "over", f"{_about(launch, store)} has ended")
    hours = launch.hours + launch.earlier_hours
    spent = f"{hours:.2f} h" + ("" if launch.usd is None else f" and {launch.usd:,.2f} USD")
    return Orphan(launch, "running", f"{_about(launch, store)} runs without a run, after {spent}")


def end_orphan(store: Store, orphan: Orphan) -> bool:
    """End the job of an orphan, remove what its backend keeps of it, and record that; return False if a run
    has attached to it meanwhile.

    Raises:
        WorkloadError: its backend does not answer; a job that may run is on record as running.
    """
    launch, launcher = orphan.launch, open_recorded(orphan.launch.launcher)
    name = launch.name_in(store)
    status = Status("gone") if launcher.ends_with_run else launcher.poll(name)
    # Recorded first: a run that begins now launches a new attempt, which ends this one, instead of attaching
    # to what is being ended.
    state, reason, failure = _end_of(status, launch)
    seconds = status.billed_seconds
    if not records.end(store, launch, state, reason, failure, seconds, followed_by=launch.run_id):
        return False
    try:
        launcher.stop(name)
    except WorkloadError:
        if not status.is_over:
            records.reopen(store, launch)
        raise
    return True


def sections(settings: UseCaseSettings) -> list[LauncherSettings]:
    """Return where workloads of a use case run, each place once."""
    found: list[LauncherSettings] = []
    for workload in ("training", *ComputeSettings.model_fields):
        if (section := settings.launcher_of(workload)) not in found:
            found.append(section)
    return found


def _end_of(
    status: Status, launch: Launch
) -> tuple[Literal["succeeded", "failed", "stopped"], str, FailureClass]:
    if status.state == "succeeded":
        return "succeeded", "", status.failure
    if status.state == "failed":
        return "failed", status.reason, status.failure
    if status.state == "gone":
        return "failed", f"is gone from {launch.place}", "infrastructure"
    return "stopped", "its run had ended, and no other one attached to it", "preemption"


def _about(launch: Launch, store: Store) -> str:
    return f"{launch.case}/{launch.stage}: {launch.name_in(store)} at {launch.place}"


def waiting_line(suspect: Suspect, store: Store, now: float) -> str:
    """Return what a tick says of a suspect that is not due yet."""
    return (
        f"{_about(suspect.launch, store)}: its run has ended {max(0.0, now - suspect.since) / 3600:.2f} h"
        f" ago; it is left alone for {(suspect.due_at - now) / 3600:.2f} h more, or until a run attaches"
    )


def due(suspected: Iterable[Suspect], now: float | None = None) -> list[Suspect]:
    """Return the suspects whose jobs are ended by now."""
    now = time.time() if now is None else now
    return [suspect for suspect in suspected if suspect.due_at <= now]
