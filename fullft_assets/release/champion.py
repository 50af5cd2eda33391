"""The champion: a pointer to the model in use, with past champions, and with what people did to it by
hand.
"""

import time
from collections.abc import Callable, Collection
from typing import Any, Literal

from fullft_assets.errors import GateError, StoreError
from fullft_assets.escaping import visible
from fullft_assets.record import StrictRecord
from fullft_assets.store import Store

#: Past champions, and interventions, kept in the pointer; the artifacts stay in the store.
MAX_HISTORY = 50
Action = Literal["promote", "rollback", "freeze", "unfreeze"]
_DONE = {"promote": "Promoted", "rollback": "Rolled back", "freeze": "Frozen", "unfreeze": "Unfrozen"}


class Champion(StrictRecord):
    """The model in use and where it comes from; artifacts by `Manifest.ref`, time in seconds since 1970.

    Attributes:
        is_better: it was better than the champion before it by more than chance, or a person promoted it.
    """

    checkpoint: str
    snapshot: str
    evaluation: str
    score: float
    promoted_at: float
    run_id: str
    is_better: bool = False


class Retired(StrictRecord):
    """A past champion; `rolled_back` if it was taken out of use, not replaced by a better one."""

    champion: Champion
    rolled_back: bool
    retired_at: float


class Intervention(StrictRecord):
    """What a person did to the champion, and why.

    Attributes:
        by: who: the run, or the user of a terminal.
        before: checkpoint in use before it; None: there was none.
        after: checkpoint in use after it.
    """

    action: Action
    reason: str
    by: str
    at: float
    before: str | None
    after: str

    @property
    def sentence(self) -> str:
        """What was done, in words."""
        return f"{_DONE[self.action]} by hand ({self.by}): {self.reason}"


class ReleaseState(Champion):
    """The pointer's file: the champion's fields, past champions and interventions, the newest first, and the
    freeze if there is one.
    """

    history: list[Retired] = []
    interventions: list[Intervention] = []
    frozen: Intervention | None = None

    @property
    def current(self) -> Champion:
        """The champion."""
        return Champion(**self.model_dump(include=set(Champion.model_fields)))

    @property
    def anchor(self) -> Champion:
        """What a row of small losses is measured against: the newest champion that was promoted as better or
        by hand, else the first one. Champions that were rolled back do not count.
        """
        champions = [self.current, *(past.champion for past in self.history if not past.rolled_back)]
        return next((champion for champion in champions if champion.is_better), champions[-1])


def read_state(store: Store, case: str) -> ReleaseState | None:
    """Return the champion with its history, or None before the first promotion."""
    value = store.read_pointer(f"{case}/champion")
    return None if value is None else store.validated(f"{case}/champion", value, ReleaseState)


def read_champion(store: Store, case: str) -> Champion | None:
    """Return the use case's champion, or None before the first promotion."""
    state = read_state(store, case)
    return None if state is None else state.current


def read_history(store: Store, case: str) -> list[Retired]:
    """Return the past champions, newest first."""
    state = read_state(store, case)
    return [] if state is None else state.history


def promote(
    store: Store,
    case: str,
    champion: Champion,
    *,
    allowed: Callable[[ReleaseState | None], bool] = lambda _: True,
    reason: str | None = None,
) -> bool:
    """Make this the champion, the previous one joining the history in the same atomic write; return whether
    it is the champion now.

    Args:
        allowed: asked of the state that the write replaces, so that nothing comes between question and
            promotion.
        reason: of a promotion by hand; None: the gates decided.
    """
    is_champion = False

    def change(state: ReleaseState | None) -> ReleaseState | None:
        nonlocal is_champion
        is_champion = allowed(state)
        if not is_champion or (state is not None and state.checkpoint == champion.checkpoint):
            return None
        past = (
            []
            if state is None
            else [Retired(champion=state.current, rolled_back=False, retired_at=time.time()), *state.history]
        )
        new_state = _with(state, champion, _trimmed(past))
        return new_state if reason is None else _noted(new_state, state, "promote", reason, champion.run_id)

    _change(store, case, change)
    return is_champion


def kept_champions(state: ReleaseState | None, number: int) -> list[Champion]:
    """Return the champions to keep: the present one, then past ones that a roll-back can return to, the
    newest first, and last the anchor where that is older.

    Args:
        number: of past champions.
    """
    if state is None:
        return []
    past = [retired.champion for retired in state.history if not retired.rolled_back]
    champions = [state.current, *past[:number]]
    return champions if state.anchor in champions else [*champions, state.anchor]


def drop_from_history(
    store: Store, case: str, state_before: ReleaseState | None, champions: Collection[Champion]
) -> None:
    """Remove past champions from the history, so that no roll-back returns to one: their artifacts are to be
    deleted.

    A second call changes nothing and only checks that the champion and the history are still the same.

    Args:
        state_before: the state in which these champions were chosen.

    Raises:
        StoreError: somebody promoted or rolled back since.
    """
    # A roll-back is remembered, so that the champion that it removed does not come back by itself.
    history = (
        [past for past in state_before.history if past.rolled_back or past.champion not in champions]
        if state_before is not None
        else []
    )

    def change(state: ReleaseState | None) -> ReleaseState | None:
        if state is None and state_before is None:
            return None
        if (
            state is None
            or state_before is None
            or state.current != state_before.current
            or state.history not in (state_before.history, history)
        ):
            raise StoreError(
                f"{case}: the champion was changed during the clean-up, which ends here; clean up again"
            )
        return None if state.history == history else state.model_copy(update={"history": history})

    _change(store, case, change)


def rollback(store: Store, case: str, *, reason: str, by: str, expected: str | None = None) -> Champion:
    """Bring back the newest past champion that was not itself rolled back, and return it.

    Args:
        expected: the champion that is to be taken out.

    Raises:
        GateError: there is no past champion to go back to, or no reason; or another one is in use than was
            expected.
    """

    def change(state: ReleaseState) -> ReleaseState:
        if expected not in (None, "", state.checkpoint):
            raise GateError(f"{case}: {state.checkpoint} has become champion meanwhile; look, and ask again")
        past = next((retired for retired in state.history if not retired.rolled_back), None)
        if past is None:
            raise GateError(
                f"{case}: {state.checkpoint} is the first champion; there is none before it to roll back to"
            )
        newest = Retired(champion=state.current, rolled_back=True, retired_at=time.time())
        return _with(
            state, past.champion, [newest, *(retired for retired in state.history if retired is not past)]
        )

    return _intervene(store, case, "rollback", "roll back", reason, by, change).current


def freeze(store: Store, case: str, *, reason: str, by: str) -> Intervention:
    """Keep the champion whatever the gates say, until `unfreeze`; return what is recorded. A person may still
    promote or roll back.

    Raises:
        GateError: there is no champion, it is frozen already, or no reason is given.
    """

    def change(state: ReleaseState) -> ReleaseState:
        if state.frozen is not None:
            raise GateError(f"{case}: the champion is frozen already. {state.frozen.sentence}")
        return state

    return _intervene(store, case, "freeze", "freeze", reason, by, change).interventions[0]


def unfreeze(store: Store, case: str, *, reason: str, by: str) -> Intervention:
    """Let the gates decide again; return what is recorded.

    Raises:
        GateError: the champion is not frozen, or no reason is given.
    """

    def change(state: ReleaseState) -> ReleaseState:
        if state.frozen is None:
            raise GateError(f"{case}: the champion is not frozen")
        return state.model_copy(update={"frozen": None})

    return _intervene(store, case, "unfreeze", "unfreeze", reason, by, change).interventions[0]


def one_line(reason: str) -> str:
    """Return the reason that a person gave, on one line.

    Raises:
        GateError: it is empty.
    """
    line = visible(" ".join(reason.split()))
    if not line:
        raise GateError("reason: give one; it is kept with what you do")
    return line


def _intervene(
    store: Store,
    case: str,
    action: Action,
    to_do: str,
    reason: str,
    by: str,
    change: Callable[[ReleaseState], ReleaseState],
) -> ReleaseState:
    one_line(reason)
    states: list[ReleaseState] = []

    def change_state(state: ReleaseState | None) -> ReleaseState:
        if state is None:
            raise GateError(f"{case}: no champion was promoted yet, so there is nothing to {to_do}")
        states.append(_noted(change(state), state, action, reason, by))
        return states[-1]

    _change(store, case, change_state)
    return states[-1]


def _with(state: ReleaseState | None, champion: Champion, history: list[Retired]) -> ReleaseState:
    by_hand: dict[str, Any] = (
        {} if state is None else {"interventions": state.interventions, "frozen": state.frozen}
    )
    return ReleaseState(**champion.model_dump(), history=history, **by_hand)


def _noted(
    new_state: ReleaseState,
    old_state: ReleaseState | None,
    action: Action,
    reason: str,
    by: str,
) -> ReleaseState:
    before = None if old_state is None else old_state.checkpoint
    intervention = Intervention(
        action=action,
        reason=one_line(reason),
        by=by,
        at=time.time(),
        before=before,
        after=new_state.checkpoint,
    )
    interventions = [intervention, *new_state.interventions][:MAX_HISTORY]
    frozen = intervention if action == "freeze" else new_state.frozen
    return new_state.model_copy(update={"interventions": interventions, "frozen": frozen})


def _trimmed(history: list[Retired]) -> list[Retired]:
    older = [past for past in history[MAX_HISTORY - 1 :] if not past.rolled_back]
    anchor = [past for past in older if past.champion.is_better][:1] or older[-1:]
    return [*history[: MAX_HISTORY - 1], *anchor]


def _change(store: Store, case: str, change: Callable[[ReleaseState | None], ReleaseState | None]) -> None:
    name = f"{case}/champion"

    def swap(value: dict[str, Any] | None) -> dict[str, Any] | None:
        state = change(None if value is None else store.validated(name, value, ReleaseState))
        return None if state is None else state.model_dump()

    store.change_pointer(name, swap)
