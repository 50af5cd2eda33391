"""The verdict on a window of production documents: is it like the data that the model learned from?

Six tests compare the window with held-out rows of the training snapshot: text length, tokenizer fertility, unknown
words, prediction entropy, predicted labels and embeddings. A Bonferroni correction holds the false alarm rate of all six together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from fullft_assets.monitoring.detectors import NUM_TESTS, DriftTestResult, detectors
from fullft_assets.monitoring.features import Features
from fullft_assets.settings import MonitoringSettings, UseCaseSettings
from fullft_assets.store import CheckOutcome
from fullft_assets.store.checks import CheckSpec

VERSION = "2"
CHECKS = (CheckSpec("window_matches_reference", "Production looks like the held-out rows."),)

Status = Literal["warming_up", "ok", "alarm", "confirmed", "insufficient_data", "feed_broken"]


class DriftVerdict(BaseModel):
    """The verdict on one window.

    `moved` describes in words what the tests in `alarms` found; a test alarms when its p-value is at most `threshold`.
    """

    model_config = ConfigDict(frozen=True)

    status: Status
    num_rows: int
    num_reference_rows: int | None
    threshold: float
    tests: list[DriftTestResult] = []
    alarms: list[str] = []
    moved: list[str] = []
    notes: list[str] = []

    @property
    def summary(self) -> str:
        """The verdict in one line."""
        if self.status == "insufficient_data":
            return "insufficient data: " + "; ".join(self.notes)
        if self.status == "ok":
            return f"{self.num_rows:,} documents are like the data that the model learned from"
        return "; ".join(self.moved)


def compare(reference: Features, current: Features, settings: MonitoringSettings, seed: int, labels: Sequence[str] = ()) -> DriftVerdict:
    """Compare a window with the reference.

    Both should have one row for each group (`one_per_group`): related texts that arrive in bursts are not independent, and
    raise false alarms. The false alarm rate holds over draws of the reference too: one unlucky small reference errs in
    window after window, so it should have several times the rows of a window if so many are held out.

    Args:
        reference: held-out rows of the snapshot that the model was trained on.
        current: the window's rows, read by the same model.
    """
    if min(len(reference), len(current)) < settings.min_window_rows:
        return insufficient(len(current), settings, num_reference_rows=len(reference))
    if reference.embeddings.shape[1] != current.embeddings.shape[1]:
        raise ValueError(
            f"embeddings have {reference.embeddings.shape[1]} and {current.embeddings.shape[1]} dimensions: "
            "reference and window were read by different models"
        )
    outcomes = [test(reference, current) for test in detectors(settings, seed, labels)]
    threshold = settings.false_alarm_rate / NUM_TESTS
    alarmed = [outcome for outcome in outcomes if outcome.p_value <= threshold]
    return DriftVerdict(
        status="confirmed" if alarmed else "ok",
        num_rows=len(current),
        num_reference_rows=len(reference),
        threshold=threshold,
        tests=outcomes,
        alarms=[outcome.name for outcome in alarmed],
        moved=[outcome.change for outcome in alarmed],
    )


def insufficient(num_rows: int, settings: MonitoringSettings, *, num_reference_rows: int | None = None) -> DriftVerdict:
    """Return the verdict for a window, or a reference, with too few rows."""
    counts = {"window": num_rows, "reference": num_reference_rows}
    return DriftVerdict(
        status="insufficient_data",
        num_rows=num_rows,
        num_reference_rows=num_reference_rows,
        threshold=settings.false_alarm_rate / NUM_TESTS,
        notes=[
            f"{count:,} {name} documents of the {settings.min_window_rows:,} needed (monitoring.min_window_rows)"
            for name, count in counts.items()
            if count is not None and count < settings.min_window_rows
        ],
    )


def check(verdict: DriftVerdict) -> CheckOutcome:
    """Return the check of a window: green unless it drifted, with what changed and what to do."""
    description = verdict.summary
    if verdict.status == "confirmed":
        description += ". Read some of these documents; if more of them are to come, label and deliver them, and retrain"
    elif verdict.status == "insufficient_data":
        description += ". Collect more documents in a window"
    return CheckOutcome(name="window_matches_reference", passed=verdict.status != "confirmed", severity="warn", description=description)


def key_settings(settings: UseCaseSettings) -> dict[str, Any]:
    """Return the settings that determine a drift report."""
    return {
        "monitoring": settings.monitoring.model_dump(exclude={"path", "max_new_tokens"}),
        "chunks": settings.chunks.model_dump(include={"max_tokens", "stride", "max_windows"}),
        "group": settings.examples.group,
    }
