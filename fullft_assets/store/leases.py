"""Leases: work on one thing in the store that one process does at a time, on whatever machine."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fullft_assets.errors import StoreError
from fullft_assets.store.disk import one_at_a_time
from fullft_assets.store.pointers import Pointers

#: A holder renews its lease this often, and may write for so long after the last time.
_RENEW_SECONDS = 5.0
_VALID_SECONDS = 20.0
#: A lease that another saw unchanged for so long, by its own clock, belongs to a process that is gone.
_DEAD_SECONDS = 40.0
#: How often one that waits looks, and when it gives up.
_LOOK_SECONDS = 0.5
_PATIENCE_SECONDS = 600.0


class Leases(Pointers):
    """Leases by name. In a local store they are locks of files, in a bucket objects that are changed by
    compare-and-swap.
    """

    @contextmanager
    def alone(self, name: str, patience_seconds: float | None = None) -> Iterator[Lease]:
        """Wait until no other process of any machine that uses the store is in such a block for this name.

        Args:
            patience_seconds: how long to wait in a bucket for one that is alive; one that is gone is known
                after 40 s. Default: 10 minutes.

        Raises:
            StoreError: another one held it for too long.
        """
        if self.is_local:
            path = Path(self.url, f"leases/{name}.lock")
            self.make_folder(path.parent)
            with one_at_a_time(path, self.file_mode):
                yield Lease()
            return
        lease = _BucketLease(self, f"leases/{name}")
        lease.take(_PATIENCE_SECONDS if patience_seconds is None else patience_seconds)
        ended = threading.Event()
        renewing = threading.Thread(target=lease.renew_until, args=(ended,), daemon=True)
        renewing.start()
        try:
            yield lease
        finally:
            ended.set()
            renewing.join()
            lease.release()


class Lease:
    """The right to work alone; a lock of the disk ends only with its process."""

    #: Another process has it now, and this one never again.
    is_lost = False

    def require(self) -> None:
        """Refuse to go on if another process may have taken over; call it before each write."""


class _BucketLease(Lease):
    def __init__(self, pointers: Pointers, name: str):
        self._pointers = pointers
        self._name = name
        self._by = uuid.uuid4().hex
        self._renewed_at = float("-inf")

    def require(self) -> None:
        # A process that was stopped, or was cut off from the bucket, may have been taken for dead.
        if _now() - self._renewed_at > _VALID_SECONDS:
            raise StoreError(
                f"pointers/{self._name}.json: another process may have taken this work over; run the same"
                " command again"
            )

    def take(self, patience_seconds: float) -> None:
        began = since = time.monotonic()
        seen: dict[str, Any] | None = None
        while True:
            lease = self._pointers.read_pointer(self._name)
            now = time.monotonic()
            if lease != seen:
                seen, since = lease, now
            # Clocks of machines differ: what counts is how long this process saw no sign of life.
            if lease is None or lease["by"] is None or now - since > _DEAD_SECONDS:
                if self._replace(lease, self._by):
                    return
            elif now - began > patience_seconds:
                raise StoreError(
                    f"pointers/{self._name}.json: another process has been working for {now - began:.0f} s;"
                    " try again later"
                )
            time.sleep(_LOOK_SECONDS)

    def renew_until(self, ended: threading.Event) -> None:
        while not ended.wait(_RENEW_SECONDS):
            try:
                lease = self._pointers.read_pointer(self._name)
                if lease is None or lease["by"] != self._by or not self._replace(lease, self._by):
                    self.is_lost, self._renewed_at = True, float("-inf")
                    return
            except Exception:  # the bucket may answer again before the lease ends; `require` sees if not
                continue

    def release(self) -> None:
        lease = self._pointers.read_pointer(self._name)
        if lease is not None and lease["by"] == self._by:
            self._replace(lease, None)

    def _replace(self, lease: dict[str, Any] | None, by: str | None) -> bool:
        """Write the lease if it is still what was found; return whether it was written."""
        asked_at, is_written = _now(), False

        def change(current: dict[str, Any] | None) -> dict[str, Any] | None:
            nonlocal is_written
            is_written = current == lease
            return {"by": by, "sign": uuid.uuid4().hex} if is_written else None

        self._pointers.change_pointer(self._name, change)
        if is_written:
            self._renewed_at = asked_at
        return is_written


def _now() -> float:
    """Return the seconds since the machine's start, also those that it was suspended: `time.monotonic` stands
    still then.
    """
    return time.clock_gettime(time.CLOCK_BOOTTIME)
