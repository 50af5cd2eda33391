"""The manifest of an artifact: what it is, what made it, and which checks it passed."""

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import model_validator

from fullft_assets.errors import GateError, StoreError
from fullft_assets.record import Record
from fullft_assets.store.hashing import digest


def is_inside(name: str) -> bool:
    """Return whether a file's relative name stays below the folder that it is joined to, on every system."""
    return (
        "\\" not in name and "\0" not in name and all(part not in ("", ".", "..") for part in name.split("/"))
    )


MANIFEST = "manifest.json"
#: Files below this folder of an artifact are kept and checked, but are not part of its content digest.
VOLATILE = "logs/"


class CheckOutcome(Record):
    """The outcome of one check, kept with the artifact that it judged."""

    name: str
    passed: bool
    severity: Literal["error", "warn"] = "error"
    description: str = ""
    metadata: dict[str, Any] = {}

    @property
    def is_red(self) -> bool:
        """Whether it stops what reads the artifact."""
        return not self.passed and self.severity == "error"


#: What a stage returns about the files that it wrote: metadata and check outcomes.
Outcome = tuple[Mapping[str, Any], list[CheckOutcome]]


class FileEntry(Record):
    """Size in bytes and sha256 of one file of an artifact."""

    bytes: int
    sha256: str


class Identity(Record):
    """What determines the content of an artifact, where that is less than its key and all its files.

    Attributes:
        files: names of the files that count, with their full content.
        values: what else counts (JSON-serialisable).
    """

    files: list[str]
    values: dict[str, Any] = {}


class Manifest(Record):
    """What an artifact is, what made it, and what was found about it.

    Its names are joined to folders of each machine that reads it, so none may leave them.
    """

    case: str
    stage: str
    key: str
    attempt: str
    version: str
    seed: int
    created_at: float
    seconds: float
    settings: dict[str, Any]
    inputs: dict[str, Any]
    files: dict[str, FileEntry]
    metadata: dict[str, Any]
    checks: list[CheckOutcome]
    #: None: the key and all files determine the content.
    identity: Identity | None = None
    #: Content digest that it has kept since rows were erased from it. None: the content determines it.
    kept_digest: str | None = None

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        for name in (self.ref, *self.files):
            if not is_inside(name):
                raise StoreError(
                    f"{self.ref!r}: {name!r} in its manifest is no name of a file inside the artifact's"
                    " folder; delete it"
                )
        for name in [] if self.identity is None else self.identity.files:
            if name not in self.files:
                raise StoreError(
                    f"{self.ref}: its identity names {name!r}, which is not among its files; delete it"
                )
        return self

    @property
    def ref(self) -> str:
        """The artifact's path within its store."""
        return f"{self.case}/{self.stage}/{self.key}/{self.attempt}"

    @property
    def content_digest(self) -> str:
        """Digest of the content: the data version in Dagster, the input of downstream keys.

        Two artifacts with one `identity` have one digest, however they came about: consumers may take either.
        """
        if self.kept_digest is not None:
            return self.kept_digest
        if self.identity is not None:
            files = {name: self.files[name].sha256 for name in self.identity.files}
            return digest(
                {"stage": self.stage, "version": self.version, "files": files, "values": self.identity.values}
            )
        content = {name: entry.sha256 for name, entry in self.files.items() if not name.startswith(VOLATILE)}
        return digest({"key": self.key, "files": content})

    def check(self, name: str) -> CheckOutcome:
        """Return the outcome of the named check."""
        for outcome in self.checks:
            if outcome.name == name:
                return outcome
        raise StoreError(f"{self.ref}: no check `{name}` in its manifest")

    @property
    def red_gates(self) -> list[CheckOutcome]:
        """The error checks that it did not pass."""
        return [outcome for outcome in self.checks if outcome.is_red]

    def require_green(self, consumer: str) -> None:
        """Refuse to build on this artifact while one of its error checks is red.

        Dagster's blocking checks only stop the run they fail in; a consumer materialised alone
        re-reads the verdict here.

        Raises:
            GateError: names the check, its description and the consumer.
        """
        for outcome in self.red_gates:
            raise GateError(f"{consumer} refused: {self.stage}.{outcome.name} is red: {outcome.description}")
