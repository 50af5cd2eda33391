"""What people do against, or beside, the gates: it is recorded before it is done, and may need one approver,
or two. An SSH signature at a terminal, or the login in front of the UI, shows who somebody is.
"""

import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from fullft_assets.errors import GateError, SettingsError
from fullft_assets.security.record import Entry, Identity, append, read_record
from fullft_assets.settings.use_case import UseCase
from fullft_assets.store import Store

#: What a signature is for: one that was made for another program does not count.
_NAMESPACE = "fullft"
#: In `release.approvers` in place of a key: the login in front of the UI shows who the approver is.
BY_PROXY = "proxy"
#: Tag of a run with who launched it, which the web server alone writes: see `cli.webserver`.
PERSON_TAG = "fullft/person"
_SECONDS = 30
#: Beginning of the action of an entry that waits for another approver.
APPROVE = "approve "


class Person(NamedTuple):
    """A person who asks for an act, and how the person's identity is known.

    Attributes:
        name: an account's name, or an address; with a key, the name of the approver who has the key.
        key: file of a private SSH key, or of a public SSH key whose private key an SSH agent has.
        run: the id of Dagster's run that carries out the act, if there is one.
    """

    name: str
    identity: Identity = "unverified"
    key: Path | None = None
    run: str = ""


def statement(entry: Entry) -> bytes:
    """Return the bytes that a person signs: the act, its object, the reason and the time."""
    fields = entry.model_dump(include={"case", "about", "reason", "at"})
    fields["action"] = entry.action.removeprefix(APPROVE)
    return json.dumps(fields, sort_keys=True).encode()


def sign(entry: Entry, key: Path, approvers: Mapping[str, str]) -> Entry:
    """Return an entry with the signature of a key, and with the name of the approver who has the key.

    Raises:
        SettingsError: the key cannot sign, or is no approver's.
    """
    result = _run(["ssh-keygen", "-q", "-Y", "sign", "-f", str(key), "-n", _NAMESPACE], statement(entry))
    if result.returncode:
        message = " ".join(result.stderr.decode(errors="replace").split())
        raise SettingsError(f"{key}: cannot sign ({message}); give an SSH key of yours")
    signature = result.stdout.decode()
    person = person_of_signature(statement(entry), signature, approvers)
    if person is None:
        raise SettingsError(
            f"{key}: is the key of none of release.approvers ({', '.join(sorted(approvers))})"
        )
    return entry.model_copy(update={"person": person, "identity": "ssh", "signature": signature})


def is_signed(entry: Entry, approvers: Mapping[str, str]) -> bool:
    """Return whether an entry has the signature of the person that it names."""
    return person_of_signature(statement(entry), entry.signature, approvers) == entry.person


def person_of_signature(content: bytes, signature: str, approvers: Mapping[str, str]) -> str | None:
    """Return the approver who signed this content, or None."""
    with tempfile.TemporaryDirectory() as folder:
        signers_file = Path(folder, "signers")
        signers_file.write_text(
            "".join(
                f'{name} namespaces="{_NAMESPACE}" {key}\n'
                for name, key in approvers.items()
                if key != BY_PROXY
            )
        )
        signature_file = Path(folder, "signature")
        signature_file.write_text(signature)
        command = [
            "ssh-keygen",
            "-Y",
            "verify",
            "-n",
            _NAMESPACE,
            "-f",
            str(signers_file),
            "-s",
            str(signature_file),
            "-I",
        ]
        return next((name for name in approvers if _run([*command, name], content).returncode == 0), None)


def _run(command: list[str], content: bytes) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(command, input=content, capture_output=True, timeout=_SECONDS, check=False)
    except FileNotFoundError:
        raise SettingsError("release.approvers needs the program ssh-keygen (OpenSSH 8.2)") from None
    except subprocess.TimeoutExpired:
        raise SettingsError(f"{command[0]} waits for a passphrase; add the key to an SSH agent") from None


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
        person=person.name,
        identity=person.identity,
        run=person.run,
    )
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
        append(
            store,
            Entry(
                action=f"undone {act.action}",
                case=use_case.name,
                about=act.about,
                reason=str(error) or type(error).__name__,
                run=person.run,
            ),
        )
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


def _approvals(store: Store, request: Entry, approvers: dict[str, str]) -> set[str]:
    """Return the approvers who asked for the same action since it was done last, in the last 7 days."""
    names = set[str]()
    for entry in read_record(store).entries:
        if (entry.case, entry.about) != (request.case, request.about):
            continue
        if entry.action == request.action:
            names.clear()
        elif (
            entry.action == f"{APPROVE}{request.action}"
            and request.at - entry.at < _WAIT_SECONDS
            and (
                is_signed(entry, approvers)
                if entry.identity == "ssh"
                else entry.identity == approvers.get(entry.person) == BY_PROXY
            )
        ):
            names.add(entry.person)
    return names & {*approvers}
