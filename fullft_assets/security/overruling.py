"""What people do against, or beside, the gates: it is recorded before it is done, and may need one approver,
or two.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

from fullft_assets.errors import GateError
from fullft_assets.security.persons import APPROVE, BY_PROXY, Person, is_signed, sign
from fullft_assets.security.record import Entry, append, read_record
from fullft_assets.settings.use_case import UseCase
from fullft_assets.store import Store

#: An approval waits so long for the next one.
_WAIT_SECONDS = 7 * 24 * 3600.0
#: To keep the champion is always safe.
_FOR_ALL = ("freeze",)


class Act(NamedTuple):
    """What a person asks for.

    Attributes:
        action: promote, rollback, freeze, unfreeze or erase.
        about: the checkpoint, or the digest of the list of documents.
    """

    action: str
    about: str
    reason: str


def overrule(
    store: Store, use_case: UseCase, act: Act, person: Person, do: Callable[[], object]
) -> str | None:
    """Record what a person asks for, and do it; one that fails is recorded as `undone`.

    Returns:
        None, or why it was not done yet: it waits for another approver.

    Raises:
        GateError: the person is none of `release.approvers`.
    """
    entry = Entry(
        action=act.action,
        case=use_case.name,
        about=act.about,
        reason=" ".join(act.reason.split()),
        at=time.time(),
    )
    entry = entry.model_copy(update={"person": person.name, "identity": person.identity, "run": person.run})
    release = use_case.settings.release
    if release.approvers and act.action not in _FOR_ALL:
        entry = _approved(entry, person, release.approvers)
        if release.approvals > len({entry.person, *_approvals(store, entry, release.approvers)}):
            append(store, entry.model_copy(update={"action": f"{APPROVE}{act.action}"}))
            names = ", ".join(sorted({*release.approvers} - {entry.person}))
            return (
                f"{use_case.name}: {act.action} is approved by {entry.person} and waits for another approver"
                f" ({names}), who asks for the same within 7 days"
            )
    append(store, entry)
    try:
        do()
    except BaseException as error:  # a cancelled run, too
        undone = Entry(
            action=f"undone {act.action}",
            case=use_case.name,
            about=act.about,
            reason=str(error) or type(error).__name__,
            run=person.run,
        )
        append(store, undone)
        raise
    return None


def _approved(entry: Entry, person: Person, approvers: dict[str, str]) -> Entry:
    if person.key is not None:
        return sign(entry, person.key, approvers)
    if person.identity == "proxy" and approvers.get(person.name) == BY_PROXY:
        return entry
    ways = "sign with --key" if any(key != BY_PROXY for key in approvers.values()) else "use the UI's login"
    raise GateError(
        f"{entry.case}: {entry.action} is for release.approvers ({', '.join(sorted(approvers))}), and"
        f" `{person.name}` is {person.identity}; {ways}"
    )


def _approvals(store: Store, asked: Entry, approvers: dict[str, str]) -> set[str]:
    """Return who approved the same since it was done last, within the time that an approval waits."""
    names = set[str]()
    for entry in read_record(store).entries:
        if (entry.case, entry.about) != (asked.case, asked.about):
            continue
        if entry.action == asked.action:
            names.clear()
        elif (
            entry.action == f"{APPROVE}{asked.action}"
            and asked.at - entry.at < _WAIT_SECONDS
            and (
                is_signed(entry, approvers)
                if entry.identity == "ssh"
                else entry.identity == approvers.get(entry.person) == BY_PROXY
            )
        ):
            names.add(entry.person)
    return names & {*approvers}
