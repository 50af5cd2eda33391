"""Which earlier windows a window is compared with: each report names them, so that the next one goes on from
there.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self, TypeVar

from fullft_assets.artifacts import DRIFT_SCALE, FINETUNED_CHECKPOINT, PRODUCTION_DOCUMENTS
from fullft_assets.monitoring.drift_tests import POOLED
from fullft_assets.monitoring.verdict import (
    ALARMED,
    REFERENCE_WINDOWS,
    VERSION,
    WITHOUT_VERDICT,
    DriftMetadata,
    Past,
)
from fullft_assets.store import Manifest

T = TypeVar("T")
#: File of a drift report with the window's sums; a report without it was not read by the model.
SUMS = "sums.npz"
#: Prefix of a job's inputs that are the reports of `History.kept_past`.
_KEPT = "kept_"


@dataclass(frozen=True)
class History:
    """Drift reports of earlier windows.

    Attributes:
        model: reports of windows under this champion.
        kept_past: reports of windows that the content of the texts is compared with, where windows of an
            earlier champion are among them; else None.
        scale: the `drift_scale` of that champion.
    """

    model: Past[Manifest]
    kept_past: Past[Manifest] | None = None
    scale: Manifest | None = None

    @property
    def content(self) -> Past[Manifest]:
        """What the content of the texts is compared with."""
        return self.model if self.kept_past is None else self.kept_past

    @property
    def windows(self) -> list[Manifest]:
        """The reports that are read, oldest first."""
        return [*self.content.reference, *self.content.recent]

    def as_inputs(self) -> dict[str, Manifest]:
        """Return the artifacts by the names that they have among a job's inputs."""
        pasts = {"": self.model} | ({} if self.kept_past is None else {_KEPT: self.kept_past})
        inputs = {
            f"{prefix}{side}_{number:02d}": report
            for prefix, past in pasts.items()
            for side, reports in past._asdict().items()
            for number, report in enumerate(reports)
        }
        return inputs | ({} if self.scale is None else {DRIFT_SCALE: self.scale})

    @classmethod
    def of_inputs(cls, inputs: Mapping[str, Manifest]) -> Self:
        """Return the history from a job's inputs, as `as_inputs` names them."""

        def past(prefix: str) -> Past[Manifest]:
            reference, recent = (
                [inputs[name] for name in sorted(inputs) if name.startswith(f"{prefix}{side}_")]
                for side in Past._fields
            )
            return Past(reference, recent)

        scale = inputs.get(DRIFT_SCALE)
        return cls(past(""), None if scale is None else past(_KEPT), scale)

    def after(self, report: Manifest) -> Self:
        """Return the history that the next window is compared with.

        Args:
            report: the drift report of a window that was compared with this history.
        """
        status = DriftMetadata.of(report).status
        kept_past = None if self.kept_past is None else self.kept_past.after(report, status)
        return replace(self, model=self.model.after(report, status), kept_past=kept_past)


def read_history(
    window: str,
    reported: Iterable[str],
    find: Callable[[str], Manifest | None],
    load: Callable[[str], Manifest],
    *,
    documents: Manifest,
    model: Manifest,
    settings: Mapping[str, Any],
) -> History:
    """Return the windows that a window is compared with: the first ones under this champion, and the last
    five.

    The newest earlier report under this champion names its own; the window that it is about joins the
    reference until that is complete, unless it alarmed, and the recent ones after that. So a report costs the
    same after a thousand windows. What is complete stays as it is, and a window that comes late changes
    nothing. A window that is materialised again keeps what it was compared with, so its verdict stays.

    Where production was calm when the champion was released, the content of the texts is compared with the
    last windows before that: see `kept_reference`.

    Args:
        window: its key; keys sort in the order of arrival.
        reported: keys of the windows that have a report.
        find: returns the newest report of a window.
        load: returns an artifact by its reference.
        documents: the window's `production_documents`.
        model: the checkpoint in use.
        settings: the settings of its report, see `verdict.key_settings`.
    """
    reported = sorted(reported)

    def is_comparable(report: Manifest) -> bool:
        return report.version == VERSION and report.settings == settings

    def is_of_model(report: Manifest) -> bool:
        return report.inputs.get(FINETUNED_CHECKPOINT) == model.content_digest

    def compared_with(report: Manifest) -> History:
        metadata = DriftMetadata.of(report)
        past = Past([load(ref) for ref in metadata.reference], [load(ref) for ref in metadata.recent])
        if not metadata.kept_reference:
            return History(past)
        kept_past = Past(
            [load(ref) for ref in metadata.kept_reference], [load(ref) for ref in metadata.kept_recent]
        )
        return History(past, kept_past, load(metadata.scale))

    def earlier() -> Iterator[tuple[Manifest, DriftMetadata]]:
        for name in reversed([name for name in reported if name < window]):
            report = find(name)
            if report is None or not is_comparable(report):
                return
            if SUMS in report.files:
                yield report, DriftMetadata.of(report)

    own_report = find(window) if window in reported else None
    if (
        own_report is not None
        and is_comparable(own_report)
        and is_of_model(own_report)
        and own_report.inputs.get(PRODUCTION_DOCUMENTS) == documents.content_digest
    ):
        return compared_with(own_report)
    newest = next(earlier(), None)
    if newest is None:
        return History(Past([], []))
    report, newest_metadata = newest
    if is_of_model(report):
        return compared_with(report).after(report)
    # From the first window on that the newest one was compared with: all since then were read on one scale.
    before = compared_with(report).content.reference
    first = DriftMetadata.of(before[0]).window if before else newest_metadata.window
    since = itertools.takewhile(lambda entry: entry[1].window >= first, earlier())
    kept_windows = kept_reference(((report, metadata.status) for report, metadata in since))
    return (
        History(Past([], []), Past(kept_windows, []), load(newest_metadata.scale))
        if kept_windows
        else History(Past([], []))
    )


def kept_reference(earlier: Iterable[tuple[T, str]]) -> list[T]:
    """Return the reference of the texts' content for the first window under a new champion; nothing if it
    begins anew.

    Each champion would else be blind for its first six windows, and see little in the next six. A champion
    that was released while production was calm, as one for new data is, changes nothing about the texts, so
    its content is compared with the last windows that did not alarm. One that was released while windows
    alarmed has learned what is new, and begins anew.

    Args:
        earlier: windows that were read on one scale, with their verdicts, the last one first.
    """
    kept_windows: list[T] = []
    num_verdicts = 0
    for window, status in earlier:
        if num_verdicts < POOLED and status not in WITHOUT_VERDICT:
            num_verdicts += 1
            if status in ALARMED:
                return []
        if status not in ALARMED:
            kept_windows.append(window)
        if len(kept_windows) == REFERENCE_WINDOWS:
            break
    return kept_windows[::-1]
