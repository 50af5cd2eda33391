"""The report of an erasure: what was rewritten, deleted and left alone, and which models had learned from the
documents.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field

from fullft_assets.store import Store


@dataclass
class ErasureReport:
    """What an erasure did; refs are `Manifest.ref`.

    Attributes:
        num_found: erased documents that some artifact held.
        missing: listed, and no document of the store has it, nor had one that was erased.
        deleted: artifacts that were deleted and are made again when needed, by stage.
        num_discarded: attempts that a killed process had left, or that were broken, and that were removed.
        num_tracebacks: of errors that nobody foresaw, all of the use case's, that were removed.
        num_in_flight: attempts without a manifest that somebody may be writing, and trainings under way that
            learned: left alone.
        num_unfinished: unfinished trainings that had learned from an erased document, and were removed.
        trained_on: checkpoints that had learned from an erased document.
        champions: those of `trained_on` that are or were champion.
    """

    num_listed: int
    num_found: int = 0
    missing: list[str] = field(default_factory=list)
    num_before: int = 0
    rewritten: Counter[str] = field(default_factory=Counter)
    deleted: Counter[str] = field(default_factory=Counter)
    num_discarded: int = 0
    num_tracebacks: int = 0
    num_in_flight: int = 0
    num_unfinished: int = 0
    trained_on: list[str] = field(default_factory=list)
    measured_on: list[str] = field(default_factory=list)
    champions: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Return the report in words, without a single id."""
        lines = [f"{self.num_found:,} documents erased, {self.num_listed:,} ids or groups listed"]
        if self.num_before:
            lines.append(f"erased before {self.num_before:,} of those listed")
        if self.missing:
            lines.append(
                f"not found    {len(self.missing):,} of those listed (tombstones keep them out if they ever"
                " come)"
            )
        lines += [f"rewritten    {count:,} {stage}" for stage, count in sorted(self.rewritten.items())]
        lines += [
            f"deleted      {count:,} {stage} (made again when needed)"
            for stage, count in sorted(self.deleted.items())
        ]
        if self.num_discarded:
            lines.append(f"deleted      {self.num_discarded:,} attempts that killed runs had left")
        if self.num_tracebacks:
            lines.append(f"deleted      {self.num_tracebacks:,} tracebacks, which may quote them")
        if self.num_unfinished:
            lines.append(
                f"deleted      {self.num_unfinished:,} unfinished trainings that had learned from them"
            )
        if self.num_in_flight:
            lines.append(
                f"left alone   {self.num_in_flight:,} unfinished attempts; once the runs have ended, erase"
                " the same list again"
            )
        lines += [
            f"learned from {ref}{' (champion)' if ref in self.champions else ''}" for ref in self.trained_on
        ]
        lines += [f"measured on  {ref}" for ref in self.measured_on]
        if self.trained_on:
            lines.append(
                "weights cannot be rewritten: train again without these documents, release, then delete the"
                " checkpoints above"
            )
        return lines

    def record(self, store: Store, case: str, reason: str) -> None:
        """Keep the report in the store, with the number of the listed documents that are missing instead of
        their ids.
        """
        counts = {
            name: value for name, value in vars(self).items() if name not in ("missing", "num_in_flight")
        }
        now = time.time()
        entry = {**counts, "at": now, "reason": reason, "num_missing": len(self.missing)}
        store.write_pointer(f"{case}/erasures/{int(now * 1000):014d}", entry)
