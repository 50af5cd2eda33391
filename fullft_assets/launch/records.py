"""Launch records: who launched what, where, since when and how it ended; in the store, so that any run can
attach to a job.

A job outlives its run where the run was killed, or its machine was lost: the next run attaches to it. Where
none does, the job is an orphan, and is stopped an hour later, with a checkpoint as if it were cancelled. What
may be an orphan is known from the store and from Dagster alone (`orphans`); whether it is one, only its
backend knows (`end_orphans`), which may be reached from a run alone.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

from fullft_assets.errors import FailureClass, FullftError, WorkloadError
from fullft_assets.job import launch_record
from fullft_assets.launch.base import Status
from fullft_assets.record import Record
from fullft_assets.settings.launcher_kinds import open_recorded
from fullft_assets.store import Store, digest


class Launch(Record):
    """A launched job: the newest attempt to make the artifact of one key.

    Attributes:
        launcher: the section of the YAML, from which any process can make the launcher again.
        run_id: the run that follows the job and may cancel it; a second run may follow, but cannot cancel.
        job: arguments that name and pin the job file.
        hourly_usd: US dollars an hour; None where no price is known.
        billed_seconds: seconds that the backend bills for an ended job; None if it does not say.
        earlier_hours: hours of earlier attempts without a result.
    """

    case: str
    stage: str
    key: str
    workload: str
    launcher: dict[str, Any]
    place: str
    attempt: int = 1
    run_id: str
    job: list[str]
    submitted_at: float
    ended_at: float | None = None
    state: Literal["running", "succeeded", "failed", "stopped"] = "running"
    reason: str = ""
    failure: FailureClass = "unknown"
    hourly_usd: float | None = None
    earlier_hours: float = 0.0
    billed_seconds: float | None = None

    @property
    def record(self) -> str:
        """Name of its pointer in the store."""
        return launch_record(self.case, self.stage, self.key)

    def name_in(self, store: Store) -> str:
        """Return the job's name: one for each attempt, also where several stores share a backend.

        The store's URL alone is not enough, as two buckets of one name may be at different endpoints; nor is
        its own name, which its copies have.
        """
        case_digest = digest([store.url, store.store_id, self.case])[:10]
        return f"fullft-{case_digest}{digest([self.stage, self.key])[:10]}-{self.attempt}"

    @property
    def hours(self) -> float:
        """Hours since it was submitted, or until it ended; or those that are paid, where the backend
        says so.
        """
        # The two times may be of two machines.
        seconds = (
            max(0.0, (self.ended_at or time.time()) - self.submitted_at)
            if self.billed_seconds is None
            else self.billed_seconds
        )
        return seconds / 3600

    @property
    def usd(self) -> float | None:
        """US dollars that the job and the attempts before it have cost so far, or None without a known
        price.
        """
        return None if self.hourly_usd is None else (self.hours + self.earlier_hours) * self.hourly_usd


def claim(store: Store, request: Launch, is_active: Callable[[str], bool | None]) -> tuple[Launch, bool]:
    """Record a launch, or find the one to attach to; of two runs at once, one launches.

    Args:
        is_active: whether a run, by its id, may still be following a job; None if that is unknown here.

    Returns:
        The launch, and whether it is new.

    Raises:
        WorkloadError: another run's job for this key is at another place.
    """
    launch: Launch = request

    def change(record: dict[str, Any] | None) -> dict[str, Any] | None:
        nonlocal launch
        launch = request
        if record is None:
            return request.model_dump()
        current = store.validated(request.record, record, Launch)
        if current.ended_at is None and current.place == request.place:
            # A run of another Dagster keeps its job: whoever took it over would stop it when cancelled.
            is_over = current.run_id != request.run_id and is_active(current.run_id) is False
            launch = current.model_copy(update={"run_id": request.run_id}) if is_over else current
            return None if launch == current else launch.model_dump()
        # A run that goes on in another container is its own successor.
        if current.ended_at is None and current.run_id != request.run_id and is_active(current.run_id):
            raise WorkloadError(
                f"run {current.run_id[:8]} has {current.stage} made at {current.place}; wait for its end, or"
                " cancel it",
                "infrastructure",
            )
        earlier = 0.0 if current.state == "succeeded" else current.earlier_hours + current.hours
        launch = request.model_copy(update={"attempt": current.attempt + 1, "earlier_hours": earlier})
        return launch.model_dump()

    store.change_pointer(request.record, change)
    return launch, launch.submitted_at == request.submitted_at


def end(
    store: Store,
    launch: Launch,
    state: Literal["succeeded", "failed", "stopped"],
    reason: str,
    failure: FailureClass,
    billed_seconds: float | None = None,
    *,
    followed_by: str | None = None,
) -> bool:
    """Record how an attempt ended, unless that is known or there is a newer one; return whether it was
    recorded now.

    Args:
        followed_by: do so only if this run, by its id, is the one that follows it.
    """
    return _update(
        store,
        launch,
        lambda record: record["ended_at"] is None and followed_by in (None, record["run_id"]),
        ended_at=time.time(),
        state=state,
        reason=reason,
        failure=failure,
        billed_seconds=billed_seconds,
    )


def adopt(store: Store, launch: Launch, run_id: str, is_active: Callable[[str], bool | None]) -> bool:
    """Make a run that has attached to a job the one that follows it, if that one is gone; return whether it
    is now.

    Args:
        is_active: see `claim`.
    """
    return _update(
        store,
        launch,
        lambda record: (
            record["ended_at"] is None
            and (record["run_id"] == run_id or is_active(record["run_id"]) is False)
        ),
        run_id=run_id,
    )


def reopen(store: Store, launch: Launch) -> None:
    """Record that an attempt that was to be over may still run, unless there is a newer one: the next run
    attaches to it.
    """
    _update(store, launch, lambda _: True, ended_at=None, state="running")


def _update(
    store: Store, launch: Launch, may_change: Callable[[dict[str, Any]], bool], **values: Any
) -> bool:
    is_changed = False

    def change(record: dict[str, Any] | None) -> dict[str, Any] | None:
        nonlocal is_changed
        is_changed = record is not None and record["attempt"] == launch.attempt and may_change(record)
        return {**record, **values} if record is not None and is_changed else None

    store.change_pointer(launch.record, change)
    return is_changed


def read(store: Store, launch: Launch) -> Launch | None:
    """Return the present record of a launch's key, or None."""
    record = store.read_pointer(launch.record)
    return None if record is None else store.validated(launch.record, record, Launch)


def launches(store: Store, case: str) -> Iterator[Launch]:
    """Yield the newest launch of each key of a use case."""
    for stage in sorted(store.names(f"pointers/launches/{case}")):
        folder = f"launches/{case}/{stage}"
        for key in store.list_pointers(folder):
            record = store.read_pointer(f"{folder}/{key}")
            if record is not None:
                yield store.validated(f"{folder}/{key}", record, Launch)


#: The next run has so long to attach to a job whose run has ended.
_ATTACH_SECONDS = 3600.0
#: When a run, by its id, ended, in seconds since the epoch; None of one that may still follow its job.
EndedAt = Callable[[str], float | None]


def orphans(store: Store, case: str, ended_at: EndedAt) -> Iterator[tuple[Launch, float]]:
    """Yield the launches of a use case that have not ended on record and that no run follows, each with when
    its job is ended, in seconds since the epoch; no backend is asked.
    """
    for launch in launches(store, case):
        since = ended_at(launch.run_id) if launch.ended_at is None else None
        if since is not None:
            yield launch, since + _ATTACH_SECONDS


def end_orphans(store: Store, due: Iterable[Launch]) -> Iterator[tuple[str, bool | None]]:
    """End the jobs of launches that no run follows, remove what their backends keep, and record that.

    Yields:
        A line, and whether a job was stopped; None where it may run on, as its backend does not answer (which
        is asked once).
    """
    errors: dict[str, str] = {}
    for launch in due:
        about = f"{launch.case}/{launch.stage}: {launch.name_in(store)} at {launch.place}"
        try:
            if launch.place in errors:
                raise WorkloadError(errors[launch.place], "infrastructure")
            line, is_stopped = _end_orphan(store, launch)
        except FullftError as error:
            yield f"{about} cannot be ended: {errors.setdefault(launch.place, str(error))}", None
        else:
            yield f"{about} {line}", is_stopped


def _end_orphan(store: Store, launch: Launch) -> tuple[str, bool]:
    launcher = open_recorded(launch.launcher)
    name = launch.name_in(store)
    if not launcher.ends_with_run and launcher.place != launch.place:
        raise WorkloadError(f"the section on record leads to {launcher.place} from here", "settings")
    status = Status("gone") if launcher.ends_with_run else launcher.poll(name)
    # Recorded first: a run that begins now launches a new attempt, which ends this one, instead of attaching
    # to what is being ended.
    if not end(store, launch, *_end_of(status, launch), status.billed_seconds, followed_by=launch.run_id):
        return "is left alone: a run has attached to it", False
    try:
        launcher.stop(name)
    except WorkloadError:
        if not status.is_over:
            reopen(store, launch)
        raise
    if status.is_over:
        return "has ended", False
    cost = "" if launch.usd is None else f" and {launch.usd:,.2f} USD"
    spent = f"{launch.hours + launch.earlier_hours:.2f} h{cost}"
    return f"ran without a run and is stopped, after {spent}", True


def _end_of(
    status: Status, launch: Launch
) -> tuple[Literal["succeeded", "failed", "stopped"], str, FailureClass]:
    if status.state == "succeeded":
        return "succeeded", "", status.failure
    if status.state == "failed":
        return "failed", status.reason, status.failure
    return (
        ("failed", f"is gone from {launch.place}", "infrastructure")
        if status.state == "gone"
        else ("stopped", "its run had ended, and no other one attached to it", "preemption")
    )
