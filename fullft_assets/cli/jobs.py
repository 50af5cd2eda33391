"""`fullft jobs`: what runs where, since when, and what it has cost so far."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from fullft_assets.errors import FullftError
from fullft_assets.jobs.launchers import open_recorded
from fullft_assets.launchers.records import Launch, launches
from fullft_assets.settings.use_case import UseCase
from fullft_assets.store import Store


def job_lines(use_case: UseCase, store: Store, *, with_ended: bool) -> Iterator[str]:
    """Yield a line for each launch on record that has not ended, the newest first."""
    newest_first = sorted(launches(store, use_case.name), key=lambda launch: -launch.submitted_at)
    for launch in newest_first:
        if with_ended or launch.ended_at is None:
            yield _line(launch, _state(launch, store), launch.name_in(store))


def _line(launch: Launch, state: str, name: str) -> str:
    since = f"since {datetime.fromtimestamp(launch.submitted_at):%Y-%m-%d %H:%M:%S}"
    spent = [f"{launch.hours:.2f} h"]
    if launch.earlier_hours > 0:
        spent.append(f"{launch.earlier_hours:.2f} h in attempts before it")
    limit = launch.launcher.get("max_hours")
    if limit is not None and launch.ended_at is None:
        # `max_hours` counts from the start of the work, of which the record knows nothing.
        spent.append(f"at most {max(0.0, limit - launch.hours):.2f} h more beside its wait for GPUs")
    spent.append("price unknown" if launch.usd is None else f"{launch.usd:,.2f} USD")
    where = f"{launch.launcher['kind']} {launch.place}"
    return "  ".join(
        [
            f"{launch.case}/{launch.stage}",
            state,
            where,
            since,
            ", ".join(spent),
            f"run {launch.run_id[:8]}",
            name,
        ]
    )


def _state(launch: Launch, store: Store) -> str:
    """Return the state on record, or of what runs, what its backend says."""
    if launch.ended_at is not None:
        return f"{launch.state}" + (
            f" ({launch.reason} [{launch.failure}])" if launch.state == "failed" else ""
        )
    try:
        launcher = open_recorded(launch.launcher)
        if launcher.place != launch.place:  # processes of another machine, which only it can see
            return "running (on record)"
        status = launcher.look(launch.name_in(store))
    except FullftError as error:
        return f"unknown ({error})"
    # Whoever runs the use case again attaches to it, and records its end.
    if status.is_over:
        return f"ended, {status.state} (nobody follows it)"
    return status.state + (f" ({status.reason})" if status.reason else "")
