"""release: a candidate becomes champion only through its gates; the champion is a pointer with a history."""

from fullft_assets.release.promotion import (
    MAX_HISTORY,
    VERSION,
    Champion,
    Verdict,
    incumbent,
    model_card,
    promote,
    publish,
    read_champion,
    read_history,
    rollback,
    verdict,
)

__all__ = [
    "Champion",
    "MAX_HISTORY",
    "VERSION",
    "Verdict",
    "incumbent",
    "model_card",
    "promote",
    "publish",
    "read_champion",
    "read_history",
    "rollback",
    "verdict",
]
