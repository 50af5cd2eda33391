"""The verdict on a window of production documents: is production still what it was?"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Generic, Literal, NamedTuple, TypeVar

from fullft_assets.artifacts import DRIFT_REPORT, TRAINING_SNAPSHOT
from fullft_assets.monitoring.drift_tests import FAR_SHARE, POOLED, DriftTest, open_tests
from fullft_assets.monitoring.features import Sums
from fullft_assets.record import Record
from fullft_assets.settings import MonitoringSettings, UseCaseSettings
from fullft_assets.settings.production import MAX_WINDOW_ROWS, OUR_DRIFT_TESTS
from fullft_assets.store import CheckOutcome, Manifest, artifact_key
from fullft_assets.store.checks import CheckSpec
from fullft_assets.store.metadata import Metadata

VERSION = "6"
WINDOW_MATCHES_REFERENCE = CheckSpec(
    "window_matches_reference", "Production looks like the reference windows."
)
CHECKS = (WINDOW_MATCHES_REFERENCE,)

#: `warming_up`: this window is one of the first, which later windows are compared with. `alarm`: this window,
#: or the last three windows together, differ from the first ones. `confirmed`: earlier windows, which are not
#: among those, differ, too. `feed_broken`: no document of the window has a text.
Status = Literal["warming_up", "ok", "alarm", "confirmed", "insufficient_data", "feed_broken"]
#: Statuses of a window that differs from the reference.
ALARMED: tuple[Status, ...] = ("alarm", "confirmed")
#: Statuses without a verdict: one such window says little; many in a row mean that production is not seen.
WITHOUT_VERDICT: tuple[Status, ...] = ("insufficient_data", "feed_broken")
#: After so many windows without a verdict in a row, a person is alerted.
MOST_WITHOUT_VERDICT = 10
#: Windows before the current one that a verdict looks at: the three windows before the last three can confirm
#: that the last three together differ.
NUM_RECENT = 2 * POOLED - 1
#: Windows, the first ones under a champion, that later windows are compared with.
REFERENCE_WINDOWS = 12
#: Fewer reference windows say too little of how much windows differ.
LEAST_WINDOWS = 6
#: The two halves of the reference differ at a p-value of at most this.
_HOMOGENEITY = 0.02
#: A window with a larger share of documents far from all held-out rows, beyond two standard errors, is novel.
_NOVEL_SHARE = 0.02
T = TypeVar("T")


class Past(NamedTuple, Generic[T]):
    """What a window is compared with, oldest first: the reference windows, and the last `NUM_RECENT` windows
    after them.
    """

    reference: Sequence[T]
    recent: Sequence[T]

    def after(self, window: T, status: Status) -> "Past[T]":
        """Return the past that the window after this one is compared with.

        The first windows are the reference, but for those that alarmed: what differs from six windows would
        hide the next one that differs in the same way.
        """
        return (
            Past([*self.reference, window], self.recent)
            if len(self.reference) < REFERENCE_WINDOWS and status not in ALARMED
            else Past(self.reference, [*self.recent, window][-NUM_RECENT:])
        )


class Comparison(Record):
    """What a drift test says of the last `num_windows` windows; see `drift_tests.Outcome`."""

    test: str
    num_windows: int
    statistic: float
    p_value: float
    drifted: bool
    effect: float

    @property
    def name(self) -> str:
        """Name of the comparison among metadata."""
        return self.test if self.num_windows == 1 else f"{self.test}_{self.num_windows}_windows"


class DriftVerdict(Record):
    """The verdict on one window; `moved` describes in words what changed by the tests that alarmed.

    Attributes:
        num_rows: independent documents of the window.
        num_reference_windows, num_reference_rows: what it was compared with.
        homogeneity: p-value of the two halves of the reference; None until it is complete.
    """

    status: Status
    num_rows: int
    num_reference_windows: int = 0
    num_reference_rows: int = 0
    homogeneity: float | None = None
    comparisons: list[Comparison] = []
    moved: list[str] = []
    notes: list[str] = []

    @property
    def alarms(self) -> list[str]:
        """Names of the comparisons that alarmed."""
        return [comparison.name for comparison in self.comparisons if comparison.drifted]

    @property
    def summary(self) -> str:
        """The verdict in one line."""
        sentences: dict[Status, str] = {
            "insufficient_data": "insufficient data: " + "; ".join(self.notes),
            "feed_broken": "the feed is broken: no document of this window has a text",
            "warming_up": (
                f"warming up: window {self.num_reference_windows + 1} of the {LEAST_WINDOWS} that a"
                " comparison needs"
            ),
            "ok": (
                f"{self.num_rows:,} documents are like those of {self.num_reference_windows} reference"
                " windows"
            ),
        }
        return "; ".join(self.moved) or sentences[self.status]


def judge(
    current: Sums,
    content: Past[Sums],
    model: Past[Sums],
    settings: MonitoringSettings,
    labels: Sequence[str] = (),
) -> DriftVerdict:
    """Compare a window, and the last three pooled, with the reference windows.

    Args:
        content: windows that the content of the texts is compared with: those of `model`, or more.
        model: windows under this champion, which everything else is compared with.
        labels: in the order of the model's outputs.
    """
    verdict = DriftVerdict(
        status="warming_up",
        num_rows=current.num_rows,
        num_reference_windows=len(content.reference),
        num_reference_rows=sum(sums.num_rows for sums in content.reference),
    )
    tests = open_tests(settings.drift_tests, has_label=len(current.counts) > 0)
    pasts = [(test, content if test.outlives_champion else model) for test in tests]
    sides = [
        _Side(test, past, [*past.recent, current])
        for test, past in pasts
        if len(past.reference) >= LEAST_WINDOWS
    ]
    if not sides:
        return verdict.model_copy(update={"moved": list(_novelty(current))})
    comparisons = [comparison for side in sides for comparison in side.compare(side.windows)]
    alarms = [comparison for comparison in comparisons if comparison.drifted]
    homogeneity = _homogeneity(tests, content.reference)
    num_windows = {alarm.test: alarm.num_windows for alarm in alarms}
    status: Status = "ok"
    if alarms:
        status = "confirmed" if _is_confirmed(sides, alarms) else "alarm"
    update: dict[str, Any] = {
        "status": status,
        "homogeneity": homogeneity,
        "comparisons": comparisons,
        "moved": [
            side.test.in_words(side.past.reference, side.windows[-num_windows[side.test.name] :], labels)
            for side in sides
            if side.test.name in num_windows
        ],
        "notes": list(_notes(content, model, homogeneity)),
    }
    return verdict.model_copy(update=update)


def _novelty(current: Sums) -> Iterator[str]:
    """Yield a sentence where many documents are unlike the held-out rows. Without a reference nothing else
    shows what changed before the sixth window, and the windows of the change become the reference.
    """
    chance = 2 * math.sqrt(FAR_SHARE / current.num_rows)
    if current.novel_share is not None and current.novel_share > _NOVEL_SHARE + chance:
        yield (
            f"{current.novel_share + FAR_SHARE:.0%} of the documents are as far from all held-out rows as"
            f" {FAR_SHARE:.0%} of those are from each other; later windows are compared with such windows"
        )


class _Side(NamedTuple):
    test: DriftTest
    past: Past[Sums]
    windows: list[Sums]

    def compare(self, windows: Sequence[Sums]) -> list[Comparison]:
        return [
            Comparison(
                test=self.test.name,
                num_windows=count,
                **self.test.compare(self.past.reference, windows[-count:])._asdict(),
            )
            for count in (1, POOLED)
            if len(windows) >= count
        ]


def _homogeneity(tests: Sequence[DriftTest], reference: Sequence[Sums]) -> float | None:
    test = next((test for test in tests if test.outlives_champion), None)
    if test is None or len(reference) < REFERENCE_WINDOWS:
        return None
    half = len(reference) // 2
    return test.compare(reference[:half], reference[half:]).p_value


def _notes(content: Past[Sums], model: Past[Sums], homogeneity: float | None) -> Iterator[str]:
    if len(content.reference) < REFERENCE_WINDOWS:
        yield f"the reference is provisional: it has {len(content.reference)} of {REFERENCE_WINDOWS} windows"
    elif homogeneity is not None and homogeneity <= _HOMOGENEITY:
        yield (
            "the reference is not homogeneous: production changed while it was collected, and alarms may be"
            " late or missing"
        )
    if len(model.reference) < LEAST_WINDOWS:
        yield (
            f"only the content is compared: there are {len(model.reference)} of {LEAST_WINDOWS} windows under"
            " this champion"
        )


def _is_confirmed(sides: Sequence[_Side], alarms: Sequence[Comparison]) -> bool:
    """Return whether earlier windows alarm by the same test, without any of the windows that alarm now: one
    bad delivery is in three pooled windows, but confirms nothing, nor does chance in another test.
    """
    least = {alarm.test: alarm.num_windows for alarm in reversed(alarms)}
    for side in sides:
        before = side.windows[-(NUM_RECENT + 1) : -least.get(side.test.name, NUM_RECENT + 1)]
        ends = range(1, len(before) + 1)
        if any(comparison.drifted for end in ends for comparison in side.compare(before[:end])):
            return True
    return False


def insufficient(num_rows: int, settings: MonitoringSettings) -> DriftVerdict:
    """Return the verdict for a window with too few independent documents, or without a single text."""
    if num_rows == 0:
        return DriftVerdict(status="feed_broken", num_rows=0)
    notes = [
        f"{num_rows:,} independent documents of the {settings.min_window_rows:,} needed"
        " (monitoring.min_window_rows)"
    ]
    return DriftVerdict(status="insufficient_data", num_rows=num_rows, notes=notes)


def check(verdict: DriftVerdict) -> CheckOutcome:
    """Return the check of a window: a warning where it differs from the reference or brought nothing, with
    what to do.
    """
    description = verdict.summary
    if verdict.moved:
        description += (
            f". Read some of these documents ({'explanation.md names words, ' if verdict.alarms else ''}"
            "far.jsonl names places); if more of them are to come, label and deliver them"
        )
    elif verdict.status == "insufficient_data":
        description += ". Deliver more documents in a file, or cut larger windows: monitoring.window"
    elif verdict.status == "feed_broken":
        description += ". Look at what production delivers"
    return CheckOutcome(
        name=WINDOW_MATCHES_REFERENCE.name,
        passed=(not verdict.moved and verdict.status != "feed_broken"),
        severity="warn",
        description=description,
    )


def key_settings(settings: UseCaseSettings) -> dict[str, Any]:
    """Return the settings that determine a drift report. Windows read with others are not compared with each
    other.
    """
    return {
        "monitoring": {
            "min_window_rows": settings.monitoring.min_window_rows,
            "max_window_rows": MAX_WINDOW_ROWS,
            "reference_windows": REFERENCE_WINDOWS,
        },
        **other_tests(settings.monitoring),
        "base_model": settings.base_model,
        "chunks": settings.chunks.shaping(),
        "group": settings.examples.group,
    }


def other_tests(settings: MonitoringSettings) -> dict[str, Any]:
    """Return the drift tests among the settings of an artifact, where they are not the default ones."""
    names = settings.drift_tests
    return {} if names == list(OUR_DRIFT_TESTS) else {"drift_tests": names}


def report_key(settings: UseCaseSettings, inputs: Mapping[str, Manifest]) -> str:
    """Return the key of a drift report.

    Args:
        settings: of the use case.
        inputs: of its job, by name; the checkpoint determines its snapshot.
    """
    digests = {
        name: manifest.content_digest for name, manifest in inputs.items() if name != TRAINING_SNAPSHOT
    }
    return artifact_key(DRIFT_REPORT, VERSION, key_settings(settings), digests, settings.seed)


class DriftMetadata(Metadata):
    """Metadata of a `drift_report`.

    Attributes:
        num_rows: compared documents of the window: the effective number, as each is independent of the
            others.
        num_related_left_out: documents of groups, or clusters of near-duplicates, that another document
            represents.
        reference, recent: `Manifest.ref` of the drift reports of the windows that this one was compared with
            and pooled with.
        kept_reference, kept_recent: the same for the content of the texts, where it is compared with windows
            of an earlier champion.
        scale: `Manifest.ref` of the `drift_scale` that the content is read on; empty where the window was not
            read and is compared with none.
        documents: `Manifest.ref` of the window's production documents.
        measured: each number by its name: p-values, effects, and the means of what the documents are like;
            see `verdict` and `features.Sums`.
    """

    spread_field: ClassVar[str | None] = "measured"

    window: str
    status: Status
    summary: str
    table: str
    num_rows: int
    num_delivered: int
    num_unreadable: int
    num_related_left_out: int
    num_labelled: int
    num_reference_windows: int
    reference: list[str]
    recent: list[str]
    kept_reference: list[str] = []
    kept_recent: list[str] = []
    scale: str = ""
    documents: str
    measured: dict[str, float]


class ScaleMetadata(Metadata):
    """Metadata of a `drift_scale`.

    Attributes:
        num_rows: held-out rows that it was fitted on.
        num_words: distinct words of the training texts.
        num_held_out: embeddings of single rows that it still has; 0 after an erasure.
    """

    num_rows: int
    num_words: int
    num_held_out: int
