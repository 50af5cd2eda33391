"""Typed metadata: what a stage's manifest holds beside its files, as a model that producer and consumers import."""

from __future__ import annotations

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from fullft_assets.errors import StoreError
from fullft_assets.store.manifest import Manifest


class Metadata(BaseModel):
    """Base of each stage's metadata; a key that is missing or unknown is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: Content digests of the artifacts that this one replaced (`Store.rewrite`). None: it was written once.
    replaces: list[str] | None = None

    @classmethod
    def of(cls, manifest: Manifest) -> Self:
        """Return the metadata of a manifest of this stage.

        Raises:
            StoreError: another version of the stage wrote it: a key is missing, unknown or of another type.
        """
        try:
            return cls.model_validate(manifest.metadata)
        except ValidationError as error:
            key = ".".join(map(str, error.errors()[0]["loc"]))
            raise StoreError(
                f"{manifest.ref}: metadata of another version ({key}: {error.errors()[0]['msg']}); materialise it again"
            ) from None

    def as_dict(self) -> dict[str, Any]:
        """Return what a manifest keeps: plain values, without those that are None."""
        return self.model_dump(mode="json", exclude_none=True)
