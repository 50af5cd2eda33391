"""The audit of a platform: what `findings` sees and the chain of the record, kept and recorded."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from fullft_assets.security import findings
from fullft_assets.security.overruling import is_signed
from fullft_assets.security.record import Entry, append, read_record
from fullft_assets.settings.use_case import UseCase
from fullft_assets.store import Store, digest

#: Beginning of the pointer with the digest of the findings that were recorded last for some use cases.
_NEWEST = "security/audit"
#: Findings whose evidence changes though nothing did: the process of a web server, the age of a list.
_MOVING = ("ui_open", "osv_old")


def audit(root: Path, home: Path, store: Store, use_cases: Sequence[UseCase]) -> list[findings.Finding]:
    """Return the findings that have to be fixed, errors first.

    Args:
        root: of the project, whose source and lock file are read.
        home: of Dagster; `security/` in it has the list of vulnerabilities and that of licences.
        store: where the record is.
        use_cases: whose YAML, models and data are looked at.
    """
    licences = findings.read_licences(home)
    all_findings = [
        *findings.of_modes(home, store),
        *findings.of_secrets(root, home, store, use_cases),
        *findings.of_web_servers(home),
        *(finding for use_case in use_cases for finding in findings.of_model(use_case, licences)),
        *(finding for use_case in use_cases for finding in findings.of_data(use_case, licences)),
        *findings.of_packages(home),
        *findings.of_account(home),
        *findings.of_lock(root),
        *findings.of_images(root),
        *_of_record(store, use_cases),
    ]
    lines = findings.read_accepted(home)
    return sorted(
        (finding.accepted_by(lines) for finding in all_findings),
        key=lambda finding: finding.severity != "error",
    )


def _of_record(store: Store, use_cases: Iterable[UseCase]) -> Iterable[findings.Finding]:
    record = read_record(store)
    fix = (
        "restore it from a copy of the bucket or the disk, and find out who wrote it; without a copy move"
        " record/ and pointers/record.json aside: the next entry begins another chain"
    )
    if record.broken is not None:
        yield findings.Finding("record_broken", "error", f"{store.url}: {record.broken}", fix)
    approvers = {use_case.name: use_case.settings.release.approvers for use_case in use_cases}
    signatures = set[str]()
    for entry in record.entries:
        # The key of somebody who approves no longer is not known.
        if entry.identity == "ssh" and entry.person in approvers.get(entry.case, {}):
            if entry.signature in signatures or not is_signed(entry, approvers[entry.case]):
                yield findings.Finding(
                    "signature_wrong",
                    "error",
                    f"{store.url}: entry {entry.number}: the signature of {entry.person} is of something"
                    " else",
                    fix,
                )
            signatures.add(entry.signature)


def audit_and_record(
    root: Path, home: Path, store: Store, use_cases: Sequence[UseCase]
) -> list[findings.Finding]:
    """Return the findings of `audit`, and record them if they have changed since the last record."""
    all_findings = audit(root, home, store, use_cases)
    names = sorted({finding.id if finding.id in _MOVING else finding.evidence for finding in all_findings})
    newest = {"digest": digest(names), "findings": [finding._asdict() for finding in all_findings]}
    pointer = f"{_NEWEST}_{digest(sorted(use_case.name for use_case in use_cases))[:8]}"
    before = store.read_pointer(pointer)
    if before is None or before["digest"] != newest["digest"]:
        reason = json.dumps([f"{finding.severity}: {finding.id}" for finding in all_findings])
        append(store, Entry(action="audit", case="", about=newest["digest"], reason=reason))
        store.write_pointer(pointer, newest)
    return all_findings


def reason_to_keep(use_case: UseCase, home: Path, store: Store) -> str | None:
    """Return why no candidate of a use case may become champion now: the errors of an audit. Return None if
    it has no error.
    """
    all_findings = audit_and_record(use_case.project_root, home, store, [use_case])
    errors = [finding.id for finding in all_findings if finding.severity == "error"]
    if not errors:
        return None
    return (
        f"Not promoted though every gate passed: the security audit has {len(errors)} errors"
        f" ({', '.join(sorted(set(errors)))}). `fullft audit` says what to fix; then materialise"
        " champion_model again."
    )
