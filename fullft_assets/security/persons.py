"""Who somebody is: by an SSH signature at a terminal, by the login in front of the UI, or not known."""

import json
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from fullft_assets.errors import SettingsError
from fullft_assets.security.record import Entry, Identity

#: What a signature is for: one that was made for another program does not count.
_NAMESPACE = "fullft"
#: A `release.approvers` who has this instead of a key is known by the login in front of the UI.
BY_PROXY = "proxy"
#: Tag of a run with who launched it, which the web server alone writes: see `cli.webserver`.
PERSON_TAG = "fullft/person"
_SECONDS = 30
#: Beginning of the action of an entry that waits for another approver.
APPROVE = "approve "


class Person(NamedTuple):
    """Who asks for something, and how that is known.

    Attributes:
        name: an account's name, or an address; with a key, the approver's whose key it is.
        key: file of a private SSH key, or of a public one whose private one an agent has.
        run: Dagster's run, where one does what the person asks for.
    """

    name: str
    identity: Identity = "unverified"
    key: Path | None = None
    run: str = ""


def statement(entry: Entry) -> bytes:
    """Return what a person signs: what is asked for, of what, why and when."""
    signed = entry.model_dump(include={"case", "about", "reason", "at"})
    signed["action"] = entry.action.removeprefix(APPROVE)
    return json.dumps(signed, sort_keys=True).encode()


def sign(entry: Entry, key: Path, approvers: Mapping[str, str]) -> Entry:
    """Return an entry with the signature of a key, and with the approver whose it is.

    Raises:
        SettingsError: the key cannot sign, or is no approver's.
    """
    command = ["ssh-keygen", "-q", "-Y", "sign", "-f", str(key), "-n", _NAMESPACE]
    done = _run(command, statement(entry))
    if done.returncode:
        said = " ".join(done.stderr.decode(errors="replace").split())
        raise SettingsError(f"{key}: cannot sign ({said}); give an SSH key of yours")
    signature = done.stdout.decode()
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
        signers, signed = Path(folder, "signers"), Path(folder, "signature")
        signers.write_text(
            "".join(
                f'{name} namespaces="{_NAMESPACE}" {key}\n'
                for name, key in approvers.items()
                if key != BY_PROXY
            )
        )
        signed.write_text(signature)
        command = [
            "ssh-keygen",
            "-Y",
            "verify",
            "-n",
            _NAMESPACE,
            "-f",
            str(signers),
            "-s",
            str(signed),
            "-I",
        ]
        persons = (name for name in approvers if _run([*command, name], content).returncode == 0)
        return next(persons, None)


def _run(command: list[str], content: bytes) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(command, input=content, capture_output=True, timeout=_SECONDS, check=False)
    except FileNotFoundError:
        raise SettingsError("release.approvers needs the program ssh-keygen (OpenSSH 8.2)") from None
    except subprocess.TimeoutExpired:
        raise SettingsError(f"{command[0]} waits for a passphrase; add the key to an SSH agent") from None
