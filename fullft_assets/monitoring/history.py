"""Which earlier windows a window is compared with: each report names them, so that the next one goes on from there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from fullft_assets.monitoring.metadata import DriftMetadata
from fullft_assets.monitoring.verdict import ALARMED, NUM_RECENT, VERSION, Status
from fullft_assets.store import Manifest

T = TypeVar("T")
#: File of a drift report with the window's sums; a report without it was not read by the model.
SUMS = "sums.npz"
_REFERENCE_INPUT, _RECENT_INPUT = "reference", "recent"


@dataclass(frozen=True)
class History:
    """Earlier drift reports, oldest first: the reference windows, and the last ones after them."""

    reference: list[Manifest]
    recent: list[Manifest]

    def as_inputs(self) -> dict[str, Manifest]:
        """Return the reports by the names that they have among a job's inputs."""
        named = ((_REFERENCE_INPUT, self.reference), (_RECENT_INPUT, self.recent))
        return {f"{kind}_{number:02d}": report for kind, reports in named for number, report in enumerate(reports)}

    @classmethod
    def of_inputs(cls, inputs: Mapping[str, Manifest]) -> History:
        """Return what `as_inputs` named."""
        kinds = {
            kind: [inputs[name] for name in sorted(inputs) if name.startswith(f"{kind}_")] for kind in (_REFERENCE_INPUT, _RECENT_INPUT)
        }
        return cls(kinds[_REFERENCE_INPUT], kinds[_RECENT_INPUT])

    def after(self, report: Manifest, num_reference: int) -> History:
        """Return what the window after one is compared with.

        Args:
            report: of that window, which was compared with this history.
            num_reference: windows of a complete reference.
        """
        return History(*advance(self.reference, self.recent, report, DriftMetadata.of(report).status, num_reference))


def read_history(
    window: str,
    made: Iterable[str],
    find: Callable[[str], Manifest | None],
    load: Callable[[str], Manifest],
    *,
    documents: Manifest,
    model: Manifest,
    settings: Mapping[str, Any],
    num_reference: int,
    is_logged: bool = False,
) -> History:
    """Return the windows that a window is compared with: the first ones under this champion, and the last five.

    The newest earlier report under this champion names its own; the window that it is about joins the reference until that is complete,
    unless it alarmed, and the recent ones after that. So a report costs the same after a thousand windows. What is
    complete stays as it is, and a window that comes late changes nothing. A window that is materialised again keeps what it was
    compared with, so its verdict stays.

    Args:
        window: its key; keys sort in the order of arrival.
        made: keys of the windows that have a report.
        find: returns the newest report of a window.
        load: returns a report by its reference.
        documents: of the window.
        model: the checkpoint in use.
        settings: of the report, see `verdict.key_settings`.
        num_reference: windows of a complete reference.
        is_logged: whether predictions of the window come from the user's own log. Before the first champion they do not, and the windows of then
            are of all documents.
    """
    made = sorted(made)

    def is_comparable(report: Manifest) -> bool:
        same_model = report.inputs.get("finetuned_checkpoint") in {model.content_digest, *model.replaces}
        same_source = ("batch_predictions" in report.inputs) == is_logged
        return report.version == VERSION and report.settings == settings and same_model and same_source

    own = find(window) if window in made else None
    if own is not None and is_comparable(own) and own.inputs.get("production_documents") == documents.content_digest:
        found = DriftMetadata.of(own)
        return History([load(ref) for ref in found.reference], [load(ref) for ref in found.recent])
    for name in reversed([name for name in made if name < window]):
        report = find(name)
        if report is None or not is_comparable(report):
            break
        if SUMS in report.files:
            found = DriftMetadata.of(report)
            reference, recent = ([load(ref) for ref in refs] for refs in (found.reference, found.recent))
            return History(reference, recent).after(report, num_reference)
    return History([], [])


def advance(reference: list[T], recent: list[T], window: T, status: Status, num_reference: int) -> tuple[list[T], list[T]]:
    """Return what the window after this one is compared with: the reference, and the recent windows after it.

    The first windows under a champion are the reference, but for those that alarmed: what differs from six windows would hide the next one
    that differs in the same way.
    """
    if len(reference) < num_reference and status not in ALARMED:
        return [*reference, window], recent
    return reference, [*recent, window][-NUM_RECENT:]
