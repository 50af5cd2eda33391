"""The section `monitoring`."""

from __future__ import annotations

from pydantic import Field

from fullft_assets.settings.base import Float, Settings


class MonitoringSettings(Settings):
    """How production documents are compared with the data that the model was trained on."""

    path: str | None = Field(default=None, description="Folder with production documents. Default: no monitoring assets for this use case.")
    max_new_tokens: int = Field(
        default=100, ge=1, description="Maximum number of tokens that a language model writes for each document of `batch_predictions`."
    )
    min_window_rows: int = Field(default=100, ge=20, description="A window with fewer rows gives `insufficient data`.")
    max_window_rows: int = Field(default=1_000, ge=20, description="Maximum number of rows of a window that are compared, drawn by hash.")
    reference_rows: int = Field(default=1_000, ge=50, description="Number of held-out rows of the snapshot that a window is compared with.")
    false_alarm_rate: Float = Field(
        default=0.05, gt=0, lt=0.5, description="Share of unchanged windows that may raise a false alarm, over all tests together."
    )
    permutations: int = Field(
        default=1_000,
        ge=100,
        le=10_000,
        description="Minimum number of permutations of the embedding test; a small false_alarm_rate needs more.",
    )
