"""Base classes of what is written once, as JSON, and read back."""

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """Fields that cannot be changed. Keys that an earlier release wrote and nothing reads are ignored."""

    model_config = ConfigDict(frozen=True)


class StrictRecord(Record):
    """A record for which an unknown key is an error."""

    model_config = ConfigDict(extra="forbid")
