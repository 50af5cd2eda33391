"""Typed metadata: what a stage's manifest holds beside its files, as a model that producer and consumers
import.
"""

from enum import Enum
from typing import Any, ClassVar, Self

from pydantic import (
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from fullft_assets.errors import StoreError
from fullft_assets.record import StrictRecord
from fullft_assets.store.manifest import Manifest

#: Keys that manifests of earlier stores may have, and that nothing is read from.
_UNREAD = (
    "replaces",
    "withdrawn",
    "erased_from",
    "erased_up_to",
    "optimistic",
    "kappa_method",
    "left_out",
    "num_older_rows_kept",
    "num_with_control_tokens",
    "num_without_score",
    "predictions",
)


class Private(Enum):
    """What a field holds that others than the store's readers must not see, and what they see in its place.

    Dagster's event log is for ever, is backed up and is read by more people than the store. A field is marked
    in its model: `files: Annotated[dict[str, int], Private.FILES]`.

    Attributes:
        FILES: names of files; their number is shown.
        BY_FILE: a value of each file, by its name; how many files have each value is shown.
        LABELS: labels, or something by label; shown where labels are short and few
            (`examples.labels.may_be_named`), else their number. Of `Metadata.spread_field`, each item that is
            a dictionary is by label.
        COUNTED: names of which another field has the number; nothing is shown.
    """

    FILES = "files"
    BY_FILE = "by_file"
    LABELS = "labels"
    COUNTED = "counted"


class Metadata(StrictRecord):
    """Base of each stage's metadata; a key that is missing or unknown is an error.

    Attributes:
        spread_field: name of a dictionary field whose items are keys of the manifest's metadata, as the other
            fields are, so that the UI plots each number. None: there is no such field.
    """

    spread_field: ClassVar[str | None] = None

    @model_validator(mode="before")
    @classmethod
    def _collect_items(cls, values: Any) -> Any:
        if cls.spread_field is None or not isinstance(values, dict) or cls.spread_field in values:
            return values
        field_values = {name: value for name, value in values.items() if name in cls.model_fields}
        return {
            **field_values,
            cls.spread_field: {name: value for name, value in values.items() if name not in field_values},
        }

    @model_serializer(mode="wrap")
    def _spread_items(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values = handler(self)
        items = {} if self.spread_field is None else values.pop(self.spread_field)
        return {**values, **items}

    @classmethod
    def private(cls, name: str, value: Any) -> Private | None:
        """Return how the item of this name and value is marked, or None."""
        is_spread = name not in cls.model_fields and cls.spread_field is not None and isinstance(value, dict)
        field = cls.model_fields.get(str(cls.spread_field) if is_spread else name)
        marks = [] if field is None else field.metadata
        return next((mark for mark in marks if isinstance(mark, Private)), None)

    @classmethod
    def of(cls, manifest: Manifest) -> Self:
        """Return the metadata of a manifest of this stage.

        Raises:
            StoreError: another version of the stage wrote it: a key is missing, unknown or of another type.
        """
        try:
            return cls.model_validate(
                {
                    name: value
                    for name, value in manifest.metadata.items()
                    if name in cls.model_fields or name not in _UNREAD
                }
            )
        except ValidationError as error:
            key = ".".join(map(str, error.errors()[0]["loc"]))
            raise StoreError(
                f"{manifest.ref}: metadata of another version ({key}: {error.errors()[0]['msg']});"
                " materialise it again"
            ) from None

    def as_dict(self) -> dict[str, Any]:
        """Return the metadata as a manifest stores them: plain values, without those that are None."""
        return self.model_dump(mode="json", exclude_none=True)
