"""Pointers: small JSON files (the champion, the newest artifact of an asset), each replaced in one atomic
write.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from fullft_assets.errors import SettingsError, StoreError
from fullft_assets.store.buckets import FileVersion
from fullft_assets.store.disk import one_at_a_time
from fullft_assets.store.files import Files

#: Each try costs two requests; one of the processes that change a pointer at the same time always gets
#: through.
_MAX_TRIES = 50
#: Stores in buckets that this process has seen to heed the conditions of a write: URL and endpoint.
_heeding: set[tuple[str, str | None]] = set()
#: A version that no object has.
_NO_VERSION = FileVersion(f'"{"0" * 32}"', "1")


class Pointers(Files):
    """Pointers by name."""

    @cached_property
    def store_id(self) -> str:
        """A random name that the store gets when it is first asked for: two stores may have one URL, at
        different endpoints.
        """
        pointer = self.read_pointer("store")
        if pointer is None:
            self.change_pointer(
                "store", lambda there: {"id": secrets.token_hex(8)} if there is None else None
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
        place = (self.url, os.environ.get("AWS_ENDPOINT_URL"))
        if self.is_local or place in _heeding:
            return
        file = "pointers/store.json"
        is_new = self.read_bytes(file) is None
        if is_new:
            self.bucket.write_where(file, json.dumps({"id": secrets.token_hex(8)}).encode(), None)
        # Written again by a server that should have refused, it has the same content as before.
        known = self.read_bytes(file) or b""
        if any(self.bucket.write_where(file, known, version) for version in (None, _NO_VERSION)):
            if is_new:
                self.remove(file)
            raise SettingsError(
                f"{self.url}: its server ignores If-Match and If-None-Match, so two processes would undo each"
                " other's changes; use a server that heeds them: docs/deployment.md names some"
            )
        _heeding.add(place)

    def read_pointer(self, name: str) -> dict[str, Any] | None:
        """Return the JSON object under `pointers/<name>.json`, or None."""
        return self.read_json(f"pointers/{name}.json")

    def write_pointer(self, name: str, value: Mapping[str, Any]) -> None:
        """Replace the JSON object under `pointers/<name>.json` in one atomic write."""
        self.write_json(f"pointers/{name}.json", value)

    def delete_pointer(self, name: str) -> None:
        """Remove the pointer `pointers/<name>.json`; nothing where there is none."""
        self.remove(f"pointers/{name}.json")

    def change_pointer(
        self, name: str, change: Callable[[dict[str, Any] | None], Mapping[str, Any] | None]
    ) -> None:
        """Replace the JSON object under `pointers/<name>.json` by what `change` makes of it; of two changes
        at once none is lost.

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
                new = change(self.read_pointer(name))
                if new is not None:
                    self.write_pointer(name, new)
        else:
            self._swap(f"pointers/{name}.json", change)

    def _swap(self, file: str, change: Callable[[dict[str, Any] | None], Mapping[str, Any] | None]) -> None:
        self.require_conditions()
        tried: bytes | None = None
        versions = set()
        for _ in range(_MAX_TRIES):
            # The version is read first: content that is newer than it fails the comparison.
            version, content = self.version_of(file), self.read_bytes(file)
            versions.add(version)
            if tried is not None and content == tried:
                return  # written, but the answer was lost and the request repeated
            new = change(None if content is None else json.loads(content))
            if new is None:
                return
            tried = json.dumps(new, indent=1, sort_keys=True).encode()
            if self.write_if_version(file, tried, version):
                return
        if len(versions) == 1:
            # Seen of Ceph 18 where a bucket keeps versions.
            why = (
                "the server refuses a write whose condition holds; if the bucket keeps versions, suspend that"
            )
            raise StoreError(f"{self.url}/{file}: {why}, and run the same command again")
        raise StoreError(f"{self.url}/{file}: other processes keep changing it; run the same command again")

    def list_pointers(self, folder: str) -> list[str]:
        """Return the names (without `.json`) of the pointers in a folder, sorted."""
        return sorted(
            name.removesuffix(".json") for name in self.names(f"pointers/{folder}") if name.endswith(".json")
        )
