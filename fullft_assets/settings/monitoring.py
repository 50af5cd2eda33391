"""The section `monitoring`."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, model_validator

from fullft_assets.registry import Registry
from fullft_assets.settings.base import Float, OneOf, Settings

#: Drift tests by name; another package registers a subclass of `monitoring.DriftTest` as an entry point of
#: this group.
DRIFT_TESTS: Registry[Any] = Registry(
    "drift test",
    "fullft_assets.drift_tests",
    {
        "embeddings": "fullft_assets.monitoring.drift_tests:Content",
        "text_statistics": "fullft_assets.monitoring.drift_tests:TextStatistics",
        "predicted_labels": "fullft_assets.monitoring.drift_tests:PredictedLabels",
    },
)
OUR_DRIFT_TESTS = ("embeddings", "text_statistics", "predicted_labels")
DriftTestName = Annotated[str, OneOf("drift test", lambda: DRIFT_TESTS.names)]
#: Maximum number of independent documents of a window that are compared, drawn by hash.
MAX_WINDOW_ROWS = 1_000


class WindowSettings(Settings):
    """Where a window ends: give one of the two."""

    rows: int | None = Field(
        default=None,
        ge=20,
        description=(
            "Number of rows: the file with which the window has as many is its last one. A file with more is"
            " never divided."
        ),
    )
    hours: Float | None = Field(
        default=None,
        gt=0,
        description=(
            "Hours: a file that was written so long after the first one of the window, or later, begins the"
            " next window."
        ),
    )

    @model_validator(mode="after")
    def _is_one_of_two(self) -> Self:
        if (self.rows is None) == (self.hours is None):
            raise ValueError("give either rows or hours")
        return self


class MonitoringSettings(Settings):
    """How production documents are cut into windows and compared with those of the first windows under the
    champion.
    """

    REMOVED: ClassVar[Mapping[str, str]] = {
        "log": "the champion predicts each production row anew",
        "max_new_tokens": "a language model writes 100 tokens at most for a document",
        "max_window_rows": f"at most {MAX_WINDOW_ROWS:,} documents of a window are compared",
        "reference_windows": "the first 12 windows under a champion are compared with, from the sixth on",
    }
    path: str | None = Field(
        default=None,
        description="Folder with production documents. Default: no monitoring assets for this use case.",
    )
    window: WindowSettings | None = Field(
        default=None,
        description=(
            "Windows are cut by number of rows or by time, from whole files in the order of their arrival."
            " Default: each file is a window."
        ),
    )
    #: Maximum number of tokens that a language model writes for each document of `batch_predictions`.
    max_new_tokens: ClassVar[int] = 100
    min_window_rows: int = Field(
        default=100,
        ge=20,
        le=MAX_WINDOW_ROWS,
        description=(
            "A window with fewer independent documents gives `insufficient_data` and is not compared."
        ),
    )
    drift_tests: list[DriftTestName] = Field(
        default=list(OUR_DRIFT_TESTS),
        min_length=1,
        description=(
            "Drift tests by which windows are compared: the content of the texts, their statistics, what the"
            " model predicts, or those of other packages."
        ),
    )
