"""The champion: a pointer to the model in use, with a history of past champions."""

from __future__ import annotations

import time

from pydantic import BaseModel, ConfigDict

from fullft_assets.errors import GateError
from fullft_assets.store import Store

#: Past champions kept in the pointer; their artifacts stay in the store.
MAX_HISTORY = 50


class Champion(BaseModel):
    """The model in use and where it comes from; artifacts by `Manifest.ref`, time in seconds since 1970."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    checkpoint: str
    snapshot: str
    evaluation: str
    score: float
    promoted_at: float
    run_id: str


class Retired(BaseModel):
    """A past champion; `rolled_back` if it was taken out of use, not replaced by a better one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    champion: Champion
    rolled_back: bool
    retired_at: float


class _Pointer(Champion):
    """The pointer's file: the champion's fields, and the past champions, newest first."""

    history: list[Retired] = []

    @property
    def current(self) -> Champion:
        return Champion(**self.model_dump(exclude={"history"}))


def read_champion(store: Store, case: str) -> Champion | None:
    """Return the use case's champion, or None before the first promotion."""
    pointer = _read(store, case)
    return None if pointer is None else pointer.current


def read_history(store: Store, case: str) -> list[Retired]:
    """Return the past champions, newest first."""
    pointer = _read(store, case)
    return [] if pointer is None else pointer.history


def read_anchor(store: Store, case: str) -> Champion | None:
    """Return the first champion that was not rolled back: what a row of small losses is measured against. None before the first promotion."""
    kept = [past.champion for past in read_history(store, case) if not past.rolled_back]
    return kept[-1] if kept else read_champion(store, case)


def promote(store: Store, case: str, champion: Champion) -> None:
    """Make this the champion; the previous one joins the history in the same atomic write."""
    pointer = _read(store, case)
    history = [] if pointer is None else pointer.history
    if pointer is not None:
        if pointer.current.checkpoint == champion.checkpoint:
            return
        history = [Retired(champion=pointer.current, rolled_back=False, retired_at=time.time()), *history]
    _write(store, case, champion, _trimmed(history))


def rollback(store: Store, case: str) -> Champion:
    """Bring back the newest past champion that was not itself rolled back, and return it.

    Raises:
        GateError: there is no past champion to go back to.
    """
    pointer = _read(store, case)
    if pointer is None:
        raise GateError(f"{case}: no champion was promoted yet, so there is nothing to roll back")
    for position, retired in enumerate(pointer.history):
        if not retired.rolled_back:
            taken_out = Retired(champion=pointer.current, rolled_back=True, retired_at=time.time())
            history = [taken_out, *pointer.history[:position], *pointer.history[position + 1 :]]
            _write(store, case, retired.champion, history)
            return retired.champion
    raise GateError(f"{case}: {pointer.current.checkpoint} is the first champion; there is none before it to roll back to")


def _trimmed(history: list[Retired]) -> list[Retired]:
    """Return the newest past champions, and the first one that counts as the anchor."""
    kept, older = history[: MAX_HISTORY - 1], history[MAX_HISTORY - 1 :]
    anchor = [past for past in older if not past.rolled_back][-1:]
    return [*kept, *(anchor or older[:1])]


def _read(store: Store, case: str) -> _Pointer | None:
    value = store.read_pointer(f"{case}/champion")
    return None if value is None else _Pointer.model_validate(value)


def _write(store: Store, case: str, current: Champion, history: list[Retired]) -> None:
    store.write_pointer(f"{case}/champion", _Pointer(**current.model_dump(), history=history).model_dump())
