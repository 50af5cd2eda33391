"""What baselines with examples in their prompt share: which training rows are shown, kept by their ids
alone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fullft_assets.base_model.header import read_config
from fullft_assets.errors import DataError, SettingsError
from fullft_assets.snapshot import Split
from fullft_assets.tasks.baseline import BaselineContext

#: Training rows that a few-shot prompt shows, and tokens of them together, at most; half of the positions of
#: a model that has fewer.
NUM_EXAMPLES = 8
_MAX_TOKENS = 1_024


def max_tokens(context: BaselineContext) -> int:
    """Return the tokens that the examples of a few-shot prompt may have together."""
    config = read_config(Path(str(context.base_model)))
    positions = next(
        (config[key] for key in ("max_position_embeddings", "n_positions") if config.get(key)), 0
    )
    return min(_MAX_TOKENS, positions // 2) if positions else _MAX_TOKENS


def draw(labels: Sequence[int] | np.ndarray, count: int, seed: int) -> list[int]:
    """Draw at most `count` rows, from each label as often as from another where it has as many rows; in
    random order.

    Args:
        labels: of each row [n].
    """
    generator = np.random.default_rng(seed)
    drawn = generator.permutation(len(labels))
    of_label = np.asarray(labels)[drawn]
    # How many rows of its label were drawn before a row: the first of each label come first, then the second
    # ones.
    turn = np.zeros(len(drawn), np.int64)
    for label in np.unique(of_label):
        turn[of_label == label] = np.arange((of_label == label).sum())
    return generator.permutation(drawn[np.argsort(turn, kind="stable")][:count]).tolist()


def save_examples(path: Path, ids: Sequence[str], **more: Sequence[Any]) -> None:
    """Write which rows are shown, without their texts, which an erasure could not remove here."""
    path.write_text(json.dumps({"ids": list(ids), **more}), encoding="utf-8")


def load_examples(path: Path, context: BaselineContext) -> tuple[Split, dict[str, list[Any]]]:
    """Return the rows that are shown and what was saved beside them; a newer snapshot may lack some.

    Raises:
        DataError: it has none of them.
    """
    saved, rows = json.loads(path.read_text(encoding="utf-8")), context.train_rows()
    place = {id_: number for number, id_ in enumerate(rows.ids)}
    places = [number for number, id_ in enumerate(saved["ids"]) if id_ in place]
    if not places:
        raise DataError(
            f"{path.name}: none of its {len(saved['ids'])} example rows trains any more; materialise"
            " cheaper_baselines again"
        )
    return rows.select([place[saved["ids"][number]] for number in places]), {
        name: [values[number] for number in places] for name, values in saved.items()
    }


def require_room(num_tokens: int, model: Any) -> None:
    """Check that a model has positions for the longest prompt with what follows it.

    Raises:
        SettingsError: it has fewer.
    """
    positions = getattr(model.config, "max_position_embeddings", None)
    if isinstance(positions, int) and num_tokens > positions:
        raise SettingsError(
            f"planning.baselines: the longest prompt of the base model has {num_tokens:,} tokens, base_model"
            f" reads {positions:,}; lower chunks.max_tokens, or remove the baseline"
        )
