"""Documents far from the training data: places of a varied sample of them, so that an alarm leads to data.
Never their texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict

#: File of a drift report: a line of JSON for each document.
FAR = "far.jsonl"
#: Documents of a window that are kept, and clusters that they are drawn from in turn.
MAX_DOCUMENTS, MAX_CLUSTERS = 100, 10


class FarDocument(BaseModel):
    """A production document that is farther from every held-out row than 95% of those are from each other.

    Attributes:
        source, row: its file and its row there.
        distance: from its nearest held-out row, in multiples of that of those 95%.
        cluster: documents of one cluster are alike; the largest is 0.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    row: int
    distance: float
    cluster: int


def order(embeddings: np.ndarray, seed: int) -> list[tuple[int, int]]:
    """Return the index and the cluster of each document, the ones to label first in front: the middle of each
    cluster in turn.

    Args:
        embeddings: [n, d] of unit length.
    """
    from sklearn.cluster import KMeans

    if not len(embeddings):
        return []
    num_clusters = min(MAX_CLUSTERS, len(np.unique(embeddings, axis=0)))
    fitted = KMeans(num_clusters, random_state=seed)
    distances = np.asarray(fitted.fit_transform(embeddings))
    nearest = distances.argmin(axis=1)
    names, counts = np.unique(nearest, return_counts=True)
    members = []
    for number in names[np.argsort(-counts, kind="stable")]:
        inside = np.flatnonzero(nearest == number)
        members.append(inside[np.argsort(distances[inside, number], kind="stable")].tolist())
    return [
        (inside[turn], number)
        for turn in range(max(map(len, members)))
        for number, inside in enumerate(members)
        if turn < len(inside)
    ]


def write_far(path: Path, documents: Sequence[FarDocument]) -> None:
    """Write a line for each document."""
    path.write_text("".join(document.model_dump_json() + "\n" for document in documents), encoding="utf-8")


def read_far(path: Path) -> list[FarDocument]:
    """Return what `write_far` wrote."""
    return [FarDocument.model_validate_json(line) for line in path.read_text(encoding="utf-8").splitlines()]
