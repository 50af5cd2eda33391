"""The dataframe engine that compares the rows of all batches: in this process, or on a Ray cluster."""

from __future__ import annotations

import os
from types import ModuleType


def load_engine() -> ModuleType:
    """Return the module `daft`, without its telemetry and progress bars."""
    os.environ["DAFT_ANALYTICS_ENABLED"] = "0"
    os.environ["DAFT_PROGRESS_BAR"] = "0"
    import daft

    return daft
