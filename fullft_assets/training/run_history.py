"""The history of a training run: each incident, and what the next segment of training changes because of it.
No torch here.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from fullft_assets.store.disk import replace_synced

#: In the folder of the unfinished work.
HISTORY_FILE = "run_history.json"

IncidentKind = Literal["roll_back", "out_of_memory", "early_stop"]


@dataclass(frozen=True)
class Incident:
    """An event after which a run continues differently from planned. It is recorded before the run acts on
    it.

    Attributes:
        kind: `roll_back`: back to `to_step` with a lower learning rate; `out_of_memory`: smaller
            micro-batches from `to_step` on; `early_stop`: `to_step` is the last step.
        to_step: the checkpoint that training continues from; 0 = the base model.
        seconds: training seconds up to then, over all segments.
        learning_rate: the peak rate from then on.
    """

    kind: IncidentKind
    step: int
    to_step: int
    reason: str
    seconds: float
    rule: str | None = None
    learning_rate: float | None = None
    micro_batch_size: int | None = None

    def line(self) -> dict[str, Any]:
        """Return it as an event of the step log."""
        known = {name: value for name, value in asdict(self).items() if value is not None}
        return {"step": self.step, "event": known.pop("kind"), **known}


class RunHistory:
    """The incidents of a run so far, stored in its work folder.

    Args:
        is_writer: False on every rank but the first.
        stored: what other machines recorded; the longer history continues the other one.
        store: also writes each history where other machines find it; at once if that one is behind.
    """

    def __init__(
        self,
        folder: Path,
        *,
        is_writer: bool = True,
        stored: bytes | None = None,
        store: Callable[[str], None] | None = None,
    ):
        self._path = folder / HISTORY_FILE
        self._is_writer = is_writer
        self._store = store
        there = json.loads(stored or b"[]")
        here = json.loads(self._path.read_bytes()) if self._path.is_file() else []
        self.incidents = [Incident(**fields) for fields in max(there, here, key=len)]
        if is_writer and store is not None and len(here) > len(there):
            store(self._text())  # it was recorded while the store did not answer

    def add(self, incident: Incident, *, is_local: bool = False) -> None:
        """Record an incident; it is on the disk before anything acts on it.

        Args:
            is_local: it happened on this rank alone, which therefore writes it.
        """
        self.incidents.append(incident)
        if self._is_writer or is_local:
            replace_synced(self._path, self._text())
            if self._store is not None:
                self._store(self._text())

    def _text(self) -> str:
        return json.dumps([asdict(known) for known in self.incidents], indent=1)

    @property
    def num_roll_backs(self) -> int:
        """Roll-backs so far."""
        return sum(incident.kind == "roll_back" for incident in self.incidents)

    @property
    def learning_rate(self) -> float | None:
        """The peak rate since the last roll-back, or None."""
        return next((i.learning_rate for i in reversed(self.incidents) if i.learning_rate is not None), None)

    @property
    def micro_batch_size(self) -> int | None:
        """Rows a forward pass since memory ran out last, or None."""
        return next(
            (i.micro_batch_size for i in reversed(self.incidents) if i.micro_batch_size is not None), None
        )

    @property
    def end_step(self) -> int | None:
        """The step at which training ended early, or None."""
        return next((i.to_step for i in self.incidents if i.kind == "early_stop"), None)

    def includes(self, step: int, num_incidents: int) -> bool:
        """Return whether a checkpoint of this step, written after so many incidents, is still valid: no later
        incident undid it.
        """
        return all(step <= incident.to_step for incident in self.incidents[num_incidents:])
