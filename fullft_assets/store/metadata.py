"""Typed metadata: what a stage's manifest holds beside its files, as a model that producer and consumers
import.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from fullft_assets.errors import StoreError
from fullft_assets.store.manifest import Manifest


class Metadata(BaseModel):
    """Base of each stage's metadata; a key that is missing or unknown is an error.

    Attributes:
        rest: name of a field, a dictionary whose items are keys of the manifest's metadata like the others,
            so that the UI plots each number.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    rest: ClassVar[str | None] = None

    #: Content digests of the artifacts that this one replaced (`Store.rewrite`). None: it was written once.
    replaces: list[str] | None = None

    @model_validator(mode="before")
    @classmethod
    def _collect_rest(cls, given: Any) -> Any:
        if cls.rest is None or not isinstance(given, dict) or cls.rest in given:
            return given
        known = {name: value for name, value in given.items() if name in cls.model_fields}
        return {**known, cls.rest: {name: value for name, value in given.items() if name not in known}}

    @model_serializer(mode="wrap")
    def _spread_rest(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        found = handler(self)
        rest = {} if self.rest is None else found.pop(self.rest)
        return {**found, **rest}

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
                f"{manifest.ref}: metadata of another version ({key}: {error.errors()[0]['msg']});"
                " materialise it again"
            ) from None

    def as_dict(self) -> dict[str, Any]:
        """Return what a manifest keeps: plain values, without those that are None."""
        return self.model_dump(mode="json", exclude_none=True)
