"""The section `monitoring`."""

from __future__ import annotations

from pydantic import Field

from fullft_assets.settings.base import Settings


class MonitoringSettings(Settings):
    """How production documents are cut into windows and compared with those of the first windows under the champion."""

    path: str | None = Field(default=None, description="Folder with production documents. Default: no monitoring assets for this use case.")
    max_new_tokens: int = Field(
        default=100, ge=1, description="Maximum number of tokens that a language model writes for each document of `batch_predictions`."
    )
    min_window_rows: int = Field(
        default=100, ge=20, description="A window with fewer independent documents gives `insufficient_data` and is not compared."
    )
    max_window_rows: int = Field(
        default=1_000, ge=20, description="Maximum number of independent documents of a window that are compared, drawn by hash."
    )
    reference_windows: int = Field(
        default=12,
        ge=6,
        description="Number of windows, the first ones under a champion, that later windows are compared with. From six on they are "
        "compared with what there is.",
    )
