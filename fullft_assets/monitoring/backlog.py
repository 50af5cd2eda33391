"""The windows that wait behind a window: its job reads them, too, since starting a process and loading the
models costs more than reading one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fullft_assets.store import Manifest

#: Most windows that one job reads ahead, and the time after which it begins no further one: its own run waits
#: for it.
MOST_AHEAD, AHEAD_SECONDS = 12, 300.0
_INPUT = "next"


def as_inputs(windows: Sequence[Manifest]) -> dict[str, Manifest]:
    """Return the `production_documents` of these windows by the names that they have among a job's inputs."""
    return {f"{_INPUT}_{number:02d}": window for number, window in enumerate(windows)}


def of_inputs(inputs: Mapping[str, Manifest]) -> list[Manifest]:
    """Return what `as_inputs` named, oldest first."""
    return [inputs[name] for name in sorted(inputs) if name.startswith(f"{_INPUT}_")]
