"""What each system of an evaluation took to make, and what the fine-tuned model cost more than the best
baseline.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fullft_assets.checkpoint.metadata import CheckpointMetadata
from fullft_assets.durations import duration
from fullft_assets.evaluation import ANCHOR, CHAMPION, FINETUNED, Evaluation, title
from fullft_assets.planning import BaselinesMetadata
from fullft_assets.store import Manifest


@dataclass(frozen=True)
class SystemCost:
    """What making a system took; for a baseline with scoring the validation rows. None: unknown."""

    seconds: float | None = None
    usd: float | None = None

    @property
    def time(self) -> str:
        """The time in words."""
        return "–" if self.seconds is None else duration(self.seconds)

    @property
    def money(self) -> str:
        """The price in USD, or a dash."""
        return "–" if self.usd is None else f"{self.usd:,.2f}"


def system_costs(inputs: Mapping[str, Manifest]) -> dict[str, SystemCost]:
    """Return what each system took to make; a champion took it when it was trained. What an external
    system took is unknown.
    """
    baselines = BaselinesMetadata.of(inputs["cheaper_baselines"])
    of_baselines = {
        name: SystemCost(seconds, baselines.usd[name] or None) for name, seconds in baselines.seconds.items()
    }
    checkpoints = {FINETUNED: inputs["finetuned_checkpoint"]} | {
        name: inputs[name] for name in (CHAMPION, ANCHOR) if name in inputs
    }
    trained = {
        name: _of_training(CheckpointMetadata.of(checkpoint)) for name, checkpoint in checkpoints.items()
    }
    return of_baselines | trained


def worth_rows(evaluation: Evaluation, costs: Mapping[str, SystemCost]) -> list[tuple[str, str]]:
    """Return what the gain over the best baseline cost, as (name, value) rows; none where a time is not
    known.
    """
    best, gain = evaluation.justification.best_baseline, evaluation.gain_over_best_baseline
    finetuned, baseline = costs.get(FINETUNED), costs.get(best)
    if finetuned is None or baseline is None or finetuned.seconds is None or baseline.seconds is None:
        return []
    rows = [(f"longer than {title(best)}", duration(max(0.0, finetuned.seconds - baseline.seconds)))]
    if finetuned.usd is None or baseline.usd is None:
        return [*rows, ("costs more", "unknown, as no price is given")]
    extra = finetuned.usd - baseline.usd
    rows.append((f"costs more than {title(best)}", f"{extra:,.2f} USD"))
    if gain.estimate > 0:
        rows.append(("a point of gain (0.01) costs", f"{extra / gain.estimate / 100:,.2f} USD"))
    return rows


def _of_training(metadata: CheckpointMetadata) -> SystemCost:
    return SystemCost(metadata.training_seconds, metadata.training_usd or None)
