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

#: Keys that manifests of earlier stores may have, and that nothing is read from.
_UNREAD = ("replaces", "withdrawn", "erased_from")


class Metadata(BaseModel):
    """Base of each stage's metadata; a key that is missing or unknown is an error.

    Attributes:
        rest: name of a field, a dictionary whose items are keys of the manifest's metadata like the others,
            so that the UI plots each number.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    rest: ClassVar[str | None] = None

    @model_validator(mode="before")
    @classmethod
    def _collect_rest(cls, values: Any) -> Any:
        if cls.rest is None or not isinstance(values, dict) or cls.rest in values:
            return values
        known = {name: value for name, value in values.items() if name in cls.model_fields}
        return {**known, cls.rest: {name: value for name, value in values.items() if name not in known}}

    @model_serializer(mode="wrap")
    def _spread_rest(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values = handler(self)
        rest = {} if self.rest is None else values.pop(self.rest)
        return {**values, **rest}

    @classmethod
    def of(cls, manifest: Manifest) -> Self:
        """Return the metadata of a manifest of this stage.

        Raises:
            StoreError: another version of the stage wrote it: a key is missing, unknown or of another type.
        """
        try:
            return cls.model_validate(
                {name: value for name, value in manifest.metadata.items() if name not in _UNREAD}
            )
        except ValidationError as error:
            key = ".".join(map(str, error.errors()[0]["loc"]))
            raise StoreError(
                f"{manifest.ref}: metadata of another version ({key}: {error.errors()[0]['msg']});"
                " materialise it again"
            ) from None

    def as_dict(self) -> dict[str, Any]:
        """Return what a manifest keeps: plain values, without those that are None."""
        return self.model_dump(mode="json", exclude_none=True)
