"""The record of a store: what was released, overruled, erased, decided and found, one object each.

Each entry has the SHA-256 of the entry before it, so that a changed, inserted or removed one breaks the chain
(Haber and Stornetta 1991, How to Time-Stamp a Digital Document). A pointer has the digest of the newest one:
it shows that the end was cut off, and where the next entry goes. Whoever can write both could make the whole
chain again, so `fullft audit` prints that digest, to be kept elsewhere.
"""

import hashlib
import secrets
import time
from typing import Literal, NamedTuple

from pydantic import ValidationError

from fullft_assets.record import StrictRecord
from fullft_assets.store import Store
from fullft_assets.store.files import DamagedError

#: Folder of the entries, which a bucket's policy may keep from being written again, and name of the pointer.
FOLDER = "record"
Identity = Literal["ssh", "proxy", "unverified", "platform"]


class Entry(StrictRecord):
    """What was done.

    Attributes:
        number: 1 for the first entry.
        at: seconds since 1970.
        action: such as `rollback`; `approve ACTION` asks for one that waits for another approver.
        case: the use case; empty: it concerns all of them.
        about: what it was done to: the reference of an artifact, or a digest.
        person: who did it; empty: the platform.
        identity: how the person is known.
        run: id of Dagster's run, where one did it.
        signature: of `persons.statement`, where the identity is `ssh`.
        token: random, so that two entries differ.
        before: SHA-256 of the entry before, as its file has it; None: there is none.
    """

    number: int = 0
    at: float = 0.0
    action: str
    case: str
    about: str
    reason: str
    person: str = ""
    identity: Identity = "platform"
    run: str = ""
    signature: str = ""
    token: str = ""
    before: str | None = None


class Record(NamedTuple):
    """The entries of a store, the oldest first. `broken` says where the chain breaks, or is None."""

    entries: list[Entry]
    broken: str | None
    digest: str | None


def append(store: Store, entry: Entry) -> Entry:
    """Add an entry, and return it with its number and the digest of the entry before. Several processes may
    add entries at the same time.
    """
    store.require_conditions()
    try:
        head = store.read_pointer(FOLDER) or {"number": 0, "digest": None}
    except DamagedError:  # the entries themselves lead to the end
        store.delete_pointer(FOLDER)
        head = {"number": 0, "digest": None}
    number = head["number"]
    before = head["digest"]
    entry = entry.model_copy(update={"at": entry.at or time.time(), "token": secrets.token_hex(8)})
    while True:
        number += 1
        entry = entry.model_copy(update={"number": number, "before": before})
        data = entry.model_dump_json(indent=1).encode()
        if store.write_new(_file(number), data):
            break
        before = _digest(store.read_bytes(_file(number)) or b"")
    newest = {"number": number, "digest": _digest(data)}
    store.change_pointer(FOLDER, lambda head: newest if head is None or head["number"] < number else None)
    return entry


def read_record(store: Store) -> Record:
    """Read the whole record, and check its chain up to the first break."""
    files = [f"{FOLDER}/{name}" for name in store.names(FOLDER) if name.endswith(".json")]
    head = None
    damage = None
    try:
        head = store.read_pointer(FOLDER)
    except DamagedError as error:
        damage = str(error)
    entries: list[Entry] = []
    digest = None
    for file, data in zip(files, store.each(store.read_bytes, files), strict=True):
        number = len(entries) + 1
        if file != _file(number):
            return Record(entries, f"{_file(number)} is missing", digest)
        try:
            entry = Entry.model_validate_json(data or b"")
        except ValidationError:
            return Record(entries, f"{file} was changed: it is no entry any more", digest)
        if entry.before != digest or entry.number != number:
            changed_file = _file(number - 1) if entry.number == number > 1 else file
            return Record(entries, f"{changed_file} was changed after {file} was written", digest)
        entries.append(entry)
        digest = _digest(data or b"")
    if head is not None and head["number"] > len(entries):
        return Record(entries, f"{_file(len(entries) + 1)} is missing at the end", digest)
    if head is not None and head["number"] == len(entries) and head["digest"] != digest:
        return Record(entries, f"{_file(len(entries))} was changed", digest)
    return Record(entries, damage, digest)


def _file(number: int) -> str:
    return f"{FOLDER}/{number:08d}.json"


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
