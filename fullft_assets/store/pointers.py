"""Pointers: small JSON files (the champion, the newest artifact of an asset), each replaced in one atomic
write; and leases: work on one thing in the store that one process does at a time, on whatever machine.
"""

import json
import logging
import os
import secrets
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from fullft_assets.errors import SettingsError, StoreError
from fullft_assets.store.buckets import FileVersion
from fullft_assets.store.disk import one_at_a_time
from fullft_assets.store.files import DamagedError, Files

_log = logging.getLogger("fullft_assets")
Model = TypeVar("Model", bound=BaseModel)

#: Writes at the same time that may only create the first object of a store.
_AT_ONCE = 8
#: Stores in buckets that this process has seen to heed the conditions of a write: URL and endpoint.
_heeding: set[tuple[str, str | None]] = set()
#: A version that no object has.
_NO_VERSION = FileVersion(f'"{"0" * 32}"', "1")
#: A holder renews its lease this often, and may write for so long after the last time.
_RENEW_SECONDS = 5.0
_VALID_SECONDS = 20.0
#: A lease that another saw unchanged for so long, by its own clock, belongs to a process that is gone.
_DEAD_SECONDS = 40.0
#: How often one that waits looks, and when it gives up.
_LOOK_SECONDS = 0.5
_PATIENCE_SECONDS = 600.0


class Pointers(Files):
    """Pointers and leases by name. In a local store leases are locks of files, in a bucket objects that are
    changed by compare-and-swap.
    """

    @cached_property
    def store_id(self) -> str:
        """A random name that the store gets when it is first asked for: two stores may have one URL, at
        different endpoints.
        """
        self.change_pointer(
            "store", lambda pointer: {"id": secrets.token_hex(8)} if pointer is None else None
        )
        pointer = self.read_pointer("store")
        assert pointer is not None, "it was just written, by this process or another"
        return pointer["id"]

    def require_conditions(self) -> None:
        """Refuse a bucket whose server ignores the conditions of a write; it is asked once a process.

        Nothing but the store's id is written where it heeds them.

        Raises:
            SettingsError: two processes would undo each other's changes there.
        """
        address = (self.url, os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"))
        if self.is_local or address in _heeding:
            return
        file = "pointers/store.json"
        is_new = self.read_bytes(file) is None
        num_created = sum(self._create_at_once(file)) if is_new else 0
        # Written again by a server that should have refused, it has the same content as before.
        content = self.read_bytes(file) or b""
        # Some servers look first, and write then.
        if num_created > 1 or any(
            self.bucket.write_where(file, content, version) for version in (None, _NO_VERSION)
        ):
            if is_new:
                self.remove(file)
            raise SettingsError(
                f"{self.url}: its server ignores If-Match and If-None-Match, so two processes would undo each"
                " other's changes; use a server that heeds them: docs/deployment.md names some"
            )
        _heeding.add(address)

    def _create_at_once(self, file: str) -> list[bool]:
        contents = [json.dumps({"id": secrets.token_hex(8)}).encode() for _ in range(_AT_ONCE)]
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            return list(pool.map(lambda content: self.bucket.write_where(file, content, None), contents))

    def read_pointer(self, name: str) -> dict[str, Any] | None:
        """Return the JSON object under `pointers/<name>.json`, or None."""
        return self.read_json(f"pointers/{name}.json")

    def validated(self, name: str, value: Mapping[str, Any], model_class: type[Model]) -> Model:
        """Return the content of a pointer as a model.

        Raises:
            DamagedError: it has other keys, or values of other types.
        """
        try:
            return model_class.model_validate(value)
        except ValidationError as error:
            problem = error.errors()[0]
            raise DamagedError(
                f"{self.url}/pointers/{name}.json: damaged, {'.'.join(map(str, problem['loc']))}:"
                f" {problem['msg']}; put a copy of it back"
            ) from None

    def write_pointer(self, name: str, value: Mapping[str, Any]) -> None:
        """Replace the JSON object under `pointers/<name>.json` in one atomic write."""
        self.write_json(f"pointers/{name}.json", value)

    def delete_pointer(self, name: str) -> None:
        """Remove the pointer `pointers/<name>.json`; nothing where there is none."""
        self.remove(f"pointers/{name}.json")

    def change_pointer(
        self, name: str, change: Callable[[dict[str, Any] | None], Mapping[str, Any] | None]
    ) -> bool:
        """Replace the JSON object under `pointers/<name>.json` by what `change` makes of it; of two changes
        at once none is lost. Return whether it was changed.

        In a local store changes wait for each other; in a bucket one that another has overtaken is made again
        of what is there then (compare-and-swap by ETag).

        Args:
            change: gets the present object or None, and returns the new one, or None to leave it; it may be
                called several times. What it returns has a time or a name of its own: a bucket cannot tell
                two writes of equal content apart.

        Raises:
            StoreError: others kept changing the pointer.
        """
        if self.is_local:
            path = Path(self.url, f"pointers/{name}.lock")
            self.make_folder(path.parent)
            with one_at_a_time(path, self.file_mode):
                new_value = change(self.read_pointer(name))
                if new_value is not None:
                    self.write_pointer(name, new_value)
            return new_value is not None
        return self._swap(f"pointers/{name}.json", change)

    def _swap(self, file: str, change: Callable[[dict[str, Any] | None], Mapping[str, Any] | None]) -> bool:
        self.require_conditions()
        new_content: bytes | None = None
        versions = set()
        # Each try costs two requests; one of the processes that change a pointer at the same time always gets
        # through.
        for _ in range(50):
            # The version is read first: content that is newer than it fails the comparison.
            version = self.bucket.version_of(file)
            content = self.read_bytes(file)
            versions.add(version)
            if new_content is not None and content == new_content:
                return True  # written, but the answer was lost and the request repeated
            new_value = change(None if content is None else self.parsed(file, content))
            if new_value is None:
                return False
            new_content = json.dumps(new_value, indent=1, sort_keys=True).encode()
            if self.write_if_version(file, new_content, version):
                return True
        if len(versions) == 1:
            # Seen of Ceph 18 where a bucket keeps versions, and of SeaweedFS 4.44 where it kept them once.
            raise StoreError(
                f"{self.url}/{file}: the server refuses a write whose condition holds; if the bucket keeps "
                "or kept versions, suspend that or take another bucket, and run the same command again"
            )
        raise StoreError(f"{self.url}/{file}: other processes keep changing it; run the same command again")

    def list_pointers(self, folder: str) -> list[str]:
        """Return the names (without `.json`) of the pointers in a folder, sorted."""
        return sorted(
            name.removesuffix(".json") for name in self.names(f"pointers/{folder}") if name.endswith(".json")
        )

    @contextmanager
    def alone(self, name: str, patience_seconds: float | None = None) -> Iterator["Lease"]:
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
            warning = threading.Timer(_RENEW_SECONDS, lambda: _log.warning(_why_not(path, path.read_text())))
            warning.daemon = True
            warning.start()
            with one_at_a_time(path, self.file_mode):
                warning.cancel()
                path.write_text(_holder())
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
        if self.is_lost or _now() - self._renewed_at > _VALID_SECONDS:
            raise StoreError(
                f"pointers/{self._name}.json: another process may have taken this work over; run the same"
                " command again"
            )

    def take(self, patience_seconds: float) -> None:
        began = since = time.monotonic()
        last_seen: dict[str, Any] | None = None
        has_said = False
        while True:
            lease = self._pointers.read_pointer(self._name)
            now = time.monotonic()
            if now - began > _RENEW_SECONDS and not has_said:
                has_said = True
                _log.warning(self._why_not(lease))
            if lease != last_seen:
                last_seen = lease
                since = now
            # Clocks of machines differ: what counts is how long this process saw no sign of life.
            if lease is None or lease["by"] is None or now - since > _DEAD_SECONDS:
                if self._replace(lease, self._by):
                    return
            elif now - began > patience_seconds:
                raise StoreError(self._why_not(lease))
            time.sleep(_LOOK_SECONDS)

    def _why_not(self, lease: dict[str, Any] | None) -> str:
        address = f"{self._pointers.url}/pointers/{self._name}.json"
        reason = _why_not(address, (lease or {}).get("who", "another process"))
        return f"{reason}; one that was killed is known after {_DEAD_SECONDS:.0f} s"

    def renew_until(self, ended: threading.Event) -> None:
        while not ended.wait(_RENEW_SECONDS):
            try:
                lease = self._pointers.read_pointer(self._name)
                if lease is None or lease["by"] != self._by or not self._replace(lease, self._by):
                    self.is_lost = True
                    return
            except Exception:  # the bucket may answer again before the lease ends; `require` sees if not
                continue

    def release(self) -> None:
        lease = self._pointers.read_pointer(self._name)
        if lease is not None and lease["by"] == self._by:
            self._replace(lease, None)

    def _replace(self, lease: dict[str, Any] | None, by: str | None) -> bool:
        started_at = _now()
        is_written = self._pointers.change_pointer(
            self._name,
            lambda current: (
                {"by": by, "who": _holder(), "sign": uuid.uuid4().hex} if current == lease else None
            ),
        )
        if is_written:
            self._renewed_at = started_at
        return is_written


def _holder() -> str:
    """Return what others read of this process while it holds a lease."""
    home = os.environ.get("DAGSTER_HOME")
    return f"process {os.getpid()} of {socket.gethostname()}" + (f" with DAGSTER_HOME={home}" if home else "")


def _why_not(address: Path | str, holder: str) -> str:
    return f"{address}: {holder} has this work; wait, or end it"


def _now() -> float:
    """Return the seconds since the machine's start, also those that it was suspended: `time.monotonic` stands
    still then.
    """
    return time.clock_gettime(time.CLOCK_BOOTTIME)
