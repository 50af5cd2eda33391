"""The verdict on a window of production documents: is production still what it was?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict

from fullft_assets.examples.label_names import named
from fullft_assets.monitoring.comparison import HOMOGENEITY, LEAST_WINDOWS, POOLED, THRESHOLDS, test_windows
from fullft_assets.monitoring.features import NUMBERS
from fullft_assets.monitoring.scale import FAMILIES, Sums
from fullft_assets.settings import MonitoringSettings, UseCaseSettings
from fullft_assets.store import CheckOutcome, Manifest, artifact_key
from fullft_assets.store.checks import CheckSpec

VERSION = "6"
WINDOW_MATCHES_REFERENCE = CheckSpec(
    "window_matches_reference", "Production looks like the reference windows."
)
PRODUCTION_IS_SEEN = CheckSpec(
    "production_is_seen",
    "Of the ten newest windows some could be compared.",
)
CHECKS = (WINDOW_MATCHES_REFERENCE, PRODUCTION_IS_SEEN)

#: `warming_up`: this window is one of the first, which later ones are compared with. `alarm`: it, or the last
#: three windows pooled, differ from them. `confirmed`: so did windows shortly before, which are not among
#: those. `feed_broken`: no document of the window has a text.
Status = Literal["warming_up", "ok", "alarm", "confirmed", "insufficient_data", "feed_broken"]
#: A window of these differs from the reference.
ALARMED: tuple[Status, ...] = ("alarm", "confirmed")
#: Nothing follows from a window of these: one says little, and many in a row that production is not seen.
WITHOUT_VERDICT: tuple[Status, ...] = ("insufficient_data", "feed_broken")
#: With so many of them in a row, production is not seen: a person is alerted, and a check is red.
MOST_WITHOUT_VERDICT = 10
#: Windows before the current one that a verdict looks at: three pooled ones can confirm three.
NUM_RECENT = 2 * POOLED - 1

#: The family that no training moves: its reference outlives a champion, see `history.read_history`.
CONTENT = "embeddings"
T = TypeVar("T")

_WORDS = {
    "num_tokens": ("texts are longer", "texts are shorter", "tokens"),
    "fertility": ("words are split into more tokens", "words are split into fewer tokens", "tokens a word"),
    "unknown_share": (
        "more words are new to the training texts",
        "fewer words are new to the training texts",
        "of the words",
    ),
    "entropy": ("the model is less certain", "the model is more certain", "nats of entropy"),
}


class Past(NamedTuple, Generic[T]):
    """What a window is compared with, oldest first: the reference windows, and the last `NUM_RECENT` windows
    after them.
    """

    reference: Sequence[T]
    recent: Sequence[T]

    def after(self, window: T, status: Status, num_reference: int) -> Past[T]:
        """Return what the window after this one is compared with.

        The first windows are the reference, but for those that alarmed: what differs from six windows would
        hide the next one that differs in the same way.
        """
        if len(self.reference) < num_reference and status not in ALARMED:
            return Past([*self.reference, window], self.recent)
        return Past(self.reference, [*self.recent, window][-NUM_RECENT:])


class DriftTest(BaseModel):
    """Outcome of a test of one family of coordinates over the last `num_windows` windows; see
    `comparison.Outcome`.
    """

    model_config = ConfigDict(frozen=True)

    family: str
    num_windows: int
    statistic: float
    p_value: float
    effect: float

    @property
    def name(self) -> str:
        """Name of the test among metadata."""
        return self.family if self.num_windows == 1 else f"{self.family}_{self.num_windows}_windows"

    @property
    def threshold(self) -> float:
        """The p-value up to which the test alarms."""
        return THRESHOLDS[self.family, self.num_windows]

    @property
    def alarms(self) -> bool:
        """The windows differ from the reference."""
        return self.p_value <= self.threshold


class DriftVerdict(BaseModel):
    """The verdict on one window; `moved` describes in words what the tests found that alarmed.

    Attributes:
        num_rows: independent documents of the window.
        num_reference_windows, num_reference_rows: what it was compared with.
        homogeneity: p-value of the two halves of the reference; None until it is complete.
    """

    model_config = ConfigDict(frozen=True)

    status: Status
    num_rows: int
    num_reference_windows: int = 0
    num_reference_rows: int = 0
    homogeneity: float | None = None
    tests: list[DriftTest] = []
    moved: list[str] = []
    notes: list[str] = []

    @property
    def alarms(self) -> list[str]:
        """Names of the tests that alarmed."""
        return [test.name for test in self.tests if test.alarms]

    @property
    def moved_families(self) -> list[str]:
        """The families that alarmed, in the order of `moved`."""
        return list(dict.fromkeys(test.family for test in self.tests if test.alarms))

    @property
    def summary(self) -> str:
        """The verdict in one line."""
        if self.status == "insufficient_data":
            return "insufficient data: " + "; ".join(self.notes)
        if self.status == "feed_broken":
            return "the feed is broken: no document of this window has a text"
        if self.status == "warming_up":
            return (
                f"warming up: window {self.num_reference_windows + 1} of the {LEAST_WINDOWS} that a"
                " comparison needs"
            )
        if self.status == "ok":
            return (
                f"{self.num_rows:,} documents are like those of {self.num_reference_windows} reference"
                " windows"
            )
        return "; ".join(self.moved)


def judge(
    current: Sums,
    content: Past[Sums],
    model: Past[Sums],
    settings: MonitoringSettings,
    labels: Sequence[str] = (),
) -> DriftVerdict:
    """Compare a window, and the last three pooled, with the reference windows.

    Args:
        content: what the content of the texts is compared with; longer than `model`, or the same.
        model: what the rest is compared with: windows under this champion.
        labels: in the order of the model's outputs.
    """
    judged = DriftVerdict(
        status="warming_up",
        num_rows=current.num_rows,
        num_reference_windows=len(content.reference),
        num_reference_rows=sum(sums.num_rows for sums in content.reference),
    )
    pasts = {family: content if family == CONTENT else model for family in FAMILIES}
    pasts = {family: past for family, past in pasts.items() if len(past.reference) >= LEAST_WINDOWS}
    if not pasts:
        return judged
    windows = {family: [*past.recent, current] for family, past in pasts.items()}
    tests = _tests(pasts, windows)
    alarms = [test for test in tests if test.alarms]
    notes, homogeneity = [], None
    if len(content.reference) < settings.reference_windows:
        notes.append(
            f"the reference is provisional: it has {len(content.reference)} of {settings.reference_windows}"
            " windows"
        )
    elif len(content.reference) >= 2 * LEAST_WINDOWS:
        half = len(content.reference) // 2
        homogeneity = test_windows(content.reference[:half], content.reference[half:], CONTENT).p_value
        if homogeneity <= HOMOGENEITY:
            notes.append(
                "the reference is not homogeneous: production changed while it was collected, and alarms may"
                " be late or missing"
            )
    if len(model.reference) < LEAST_WINDOWS:
        notes.append(
            f"only the content is compared: there are {len(model.reference)} of {LEAST_WINDOWS} windows under"
            " this champion"
        )
    by_family = {test.family: test.num_windows for test in alarms}
    found: dict[str, Any] = {
        "status": "ok" if not alarms else "confirmed" if _is_confirmed(pasts, windows, alarms) else "alarm",
        "homogeneity": homogeneity,
        "tests": tests,
        "moved": [
            _in_words(family, pasts[family].reference, windows[family][-num:], labels)
            for family, num in by_family.items()
        ],
        "notes": notes,
    }
    return judged.model_copy(update=found)


def _tests(pasts: Mapping[str, Past[Sums]], windows: Mapping[str, Sequence[Sums]]) -> list[DriftTest]:
    """Return the tests of the last window of each family, and of its last three pooled if there are so
    many.
    """
    return [
        DriftTest(
            family=family,
            num_windows=count,
            **test_windows(past.reference, windows[family][-count:], family)._asdict(),
        )
        for family, past in pasts.items()
        for count in (1, POOLED)
        if len(windows[family]) >= count
    ]


def _is_confirmed(
    pasts: Mapping[str, Past[Sums]], windows: Mapping[str, Sequence[Sums]], alarms: Sequence[DriftTest]
) -> bool:
    """Return whether windows alarm that end before those which alarm now: one bad delivery is in three pooled
    windows, but confirms nothing.
    """
    least = min(test.num_windows for test in alarms)
    before = {family: every[-(NUM_RECENT + 1) : -least] for family, every in windows.items()}
    return any(
        test.alarms
        for end in range(1, NUM_RECENT + 1)
        for test in _tests(
            pasts, {family: every[:end] if len(every) >= end else [] for family, every in before.items()}
        )
    )


def insufficient(num_rows: int, settings: MonitoringSettings, num_not_answered: int = 0) -> DriftVerdict:
    """Return the verdict for a window with too few independent documents, or without a single text.

    Args:
        num_not_answered: documents with a text that do not count, as the log has no prediction of the
            champion for them.
    """
    if num_rows == 0 and not num_not_answered:
        return DriftVerdict(status="feed_broken", num_rows=0)
    notes = [
        f"{num_rows:,} independent documents of the {settings.min_window_rows:,} needed"
        " (monitoring.min_window_rows)"
    ]
    if num_not_answered:
        notes.append(
            f"{num_not_answered:,} more have no prediction of the champion in the log (monitoring.log)"
        )
    return DriftVerdict(status="insufficient_data", num_rows=num_rows, notes=notes)


def read_elsewhere() -> DriftVerdict:
    """Return the verdict for a window whose files were all delivered again before they were read."""
    return DriftVerdict(
        status="insufficient_data",
        num_rows=0,
        notes=["its files were delivered again, and are in a window of their own"],
    )


def check(verdict: DriftVerdict) -> CheckOutcome:
    """Return the check of a window: a warning where it differs from the reference or brought nothing, with
    what to do.
    """
    description = verdict.summary
    if verdict.status in ALARMED:
        description += (
            ". Read some of these documents, explanation.md names places; if more of them are to come, label"
            " and deliver them"
        )
    elif verdict.status == "insufficient_data":
        description += ". Deliver more documents in a file, or cut larger windows: monitoring.window"
    elif verdict.status == "feed_broken":
        description += ". Look at what production delivers"
    passed = verdict.status not in (*ALARMED, "feed_broken")
    return CheckOutcome(
        name=WINDOW_MATCHES_REFERENCE.name, passed=passed, severity="warn", description=description
    )


def seen_check(statuses: Sequence[Status]) -> CheckOutcome:
    """Return the check, a warning, that production is seen: a year of windows without a verdict reads like a
    calm one.

    Args:
        statuses: of the newest windows, the last one first.
    """
    number = next(
        (place for place, status in enumerate(statuses) if status not in WITHOUT_VERDICT), len(statuses)
    )
    said = f"{number} windows in a row have no verdict" if number > 1 else "windows have verdicts"
    fix = (
        ""
        if number < MOST_WITHOUT_VERDICT
        else ". Look at what production delivers, and at monitoring.window and monitoring.min_window_rows"
    )
    return CheckOutcome(
        name=PRODUCTION_IS_SEEN.name,
        passed=number < MOST_WITHOUT_VERDICT,
        severity="warn",
        description=said + fix,
    )


def key_settings(settings: UseCaseSettings) -> dict[str, Any]:
    """Return the settings that determine a drift report. Windows read with others are not compared with each
    other.
    """
    log = settings.monitoring.log
    return {
        **({} if log is None else {"log": log.model_dump()}),
        "monitoring": settings.monitoring.model_dump(
            include={"min_window_rows", "max_window_rows", "reference_windows"}
        ),
        "base_model": settings.base_model,
        "chunks": settings.chunks.model_dump(include={"max_tokens", "stride", "max_windows"}),
        "group": settings.examples.group,
    }


def report_key(settings: UseCaseSettings, inputs: Mapping[str, Manifest]) -> str:
    """Return the key of a drift report.

    Args:
        settings: of the use case.
        inputs: of its job, by name; the checkpoint determines its snapshot.
    """
    digests = {
        name: manifest.content_digest for name, manifest in inputs.items() if name != "training_snapshot"
    }
    return artifact_key("drift_report", VERSION, key_settings(settings), digests, settings.seed)


def _in_words(family: str, reference: Sequence[Sums], windows: Sequence[Sums], labels: Sequence[str]) -> str:
    if family == "embeddings":
        return "the content of the texts changed"
    if family == "predicted_labels":
        old, new = (_shares(side) for side in (reference, windows))
        largest = int(np.argmax(np.abs(new - old)))
        label = labels[largest] if largest < len(labels) else f"label {largest}"
        return (
            f"predicted labels shift, most {named([(label, '')], 1, labels)}: {old[largest]:.1%} ->"
            f" {new[largest]:.1%}"
        )
    changes = [
        _change(name, a, b)
        for name, a, b in zip(NUMBERS, _mean_numbers(reference), _mean_numbers(windows), strict=True)
    ]
    return ", ".join(filter(None, changes)) or "lengths and words of the texts are distributed differently"


def _change(name: str, old: float, new: float) -> str:
    more, less, unit = _WORDS[name]
    shown = [f"{value:.1%}" if name == "unknown_share" else f"{value:.3g}" for value in (old, new)]
    # Of four numbers some always differ a little: a tenth is worth a word.
    if shown[0] == shown[1] or abs(new - old) < 0.1 * max(abs(old), abs(new)):
        return ""
    return f"{more if new > old else less}: mean {shown[0]} -> {shown[1]} {unit}"


def _shares(windows: Sequence[Sums]) -> np.ndarray:
    counts = np.sum([sums.counts for sums in windows], axis=0)
    return counts / counts.sum()


def _mean_numbers(windows: Sequence[Sums]) -> list[float]:
    return np.average(
        [sums.numbers for sums in windows], axis=0, weights=[sums.num_rows for sums in windows]
    ).tolist()
