"""The systems that an evaluation compares beside the baselines, and what people call systems and metrics."""

from __future__ import annotations

from fullft_assets.task import BASELINES, METRICS

FINETUNED = "finetuned"
CHAMPION = "champion"
BASE_MODEL = "base_model"
_SYSTEMS = {FINETUNED: "fully fine-tuned model", CHAMPION: "champion"}


def title(name: str) -> str:
    """Return what people call a system or a metric."""
    if name in _SYSTEMS:
        return _SYSTEMS[name]
    registry = METRICS if name in METRICS else BASELINES
    return registry.get(name).title if name in registry else name.replace("_", " ")
