"""Pointers: small JSON files (the champion, the newest artifact of an asset), each replaced in one atomic write."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fullft_assets.store.files import Files


class Pointers(Files):
    """Pointers by name."""

    def read_pointer(self, name: str) -> dict[str, Any] | None:
        """Return the JSON object under `pointers/<name>.json`, or None."""
        return self.read_json(f"pointers/{name}.json")

    def write_pointer(self, name: str, value: Mapping[str, Any]) -> None:
        """Replace the JSON object under `pointers/<name>.json` in one atomic write."""
        self.write_json(f"pointers/{name}.json", value)

    def list_pointers(self, folder: str) -> list[str]:
        """Return the names (without `.json`) of the pointers in a folder, sorted."""
        return sorted(name.removesuffix(".json") for name in self._names(f"pointers/{folder}") if name.endswith(".json"))
