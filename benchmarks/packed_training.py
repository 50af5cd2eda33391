"""Training SmolLM2-135M on packed rows against the alternatives: useful tokens a second, padding not counted.

Ours and one other side take turns (`turns`): all together take more than 20 GB. All have the same weights,
documents, threads, precision and optimizer:

- `padded`: transformers' Trainer, rows padded to the longest of their pass;
- `trl`: TRL's SFTTrainer with `packing_strategy="bfd_split"`, without its default of gradient checkpointing;
  `trl_row_by_row`: with passes of one row, as it puts the rows of a pass into one, whose attention costs as
  many times more;
- `bare`: a loop of ten lines over our packed rows with the model's own loss; `bare_same_loss`: with ours.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from benchmarks.packed_sides import SCALES, SIDES
from benchmarks.table import Row
from benchmarks.turns import paired_row, take_turns, times_as_fast

ROUNDS = 7
_OTHERS = {"padded": "Trainer, padded to longest", "trl": "TRL, bfd_split", "bare": "a bare packed loop"}
#: Minimum speed relative to the other.
_GOALS = {"padded": 2.2, "trl": 1.25, "bare": 0.97}


def measure_packed_training(
    model: Path, logs: Path, rounds: int = ROUNDS, threads: int | None = None
) -> list[Row]:
    """Measure all sides, taking turns.

    Args:
        model: folder of the model; written there if it does not exist.
        logs: folder for what the sides print.
        rounds: turns of each side.
        threads: of each side. Default: one a core.
    """
    from fullft_assets.demos import standard_library

    standard_library.write_model(model)
    threads = threads or os.cpu_count() or 1
    found = {name: take_turns(name, model, logs, rounds, threads) for name in SIDES if name != "ours"}
    row_by_row, same_loss = (
        times_as_fast(found[side].pairs("seconds")) for side in ("trl_row_by_row", "bare_same_loss")
    )
    notes = {
        "padded": (
            f"{threads} threads; load average up to {max(turns.load for turns in found.values()):.1f} (of"
            f" which ours: {threads})"
        ),
        "trl": f"against TRL with one row a pass and {SCALES['cpu'].num_rows} passes a step: {row_by_row}",
        "bare": f"against the same loop with our loss: {same_loss}",
    }
    rows = [paired_row(name, found[name], _OTHERS[name], _GOALS[name]) for name in _OTHERS]
    return [replace(row, notes=[*row.notes, notes[name]]) for name, row in zip(_OTHERS, rows, strict=True)]
