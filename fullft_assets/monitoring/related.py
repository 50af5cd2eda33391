"""Related documents: windows that were delivered again, and documents of one window that are not
independent.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from fullft_assets.documents import RawMetadata
from fullft_assets.documents.erasure import has_made_up_id
from fullft_assets.store import Manifest


def is_read_by_another_window(documents: Manifest) -> bool:
    """Return whether all files of a window were rewritten before they were read: what they are now is a
    window of its own, and nothing is wrong.
    """
    metadata = RawMetadata.of(documents)
    return metadata.num_files > 0 and not metadata.files and all(check.passed for check in documents.checks)


def own_ids(table: pa.Table) -> list[str | None]:
    """Return the id of each document, None where it was made up from its file and row; `table` has `id`,
    `source` and `row`.
    """
    return [
        None if is_made_up else id_
        for id_, is_made_up in zip(table["id"].to_pylist(), has_made_up_id(table).tolist(), strict=True)
    ]


#: Least Jaccard similarity of word shingles at which two texts without a group are related.
SIMILARITY = 0.3
#: Characters of a text that are compared: enough to recognise a relative, and a bound for what long texts
#: cost.
_MAX_CHARACTERS = 5_000
#: Candidates for each requested row: most clusters are small.
_CANDIDATES = 2


def independent_rows(
    texts: Sequence[str], groups: Sequence[str | None], seed: int, *, limit: int | None = None
) -> np.ndarray:
    """Return the indices, ascending, of one row a group, or of one row a cluster of near-duplicates where
    rows have no group.

    The row of a group is the one with the lowest hash of seed and text, so that the choice depends on the
    texts, not on their order. Clusters are single linkage: texts without a group are related if their word
    shingles' Jaccard similarity is at least `SIMILARITY`.

    Args:
        groups: [n] group of each row; None or "" = none.
        limit: maximum number of rows, drawn by the same hash. Default: all.
    """
    keys = [f"{seed}:{text}".encode("utf-8", "surrogatepass") for text in texts]
    ranks = [hashlib.blake2b(key, digest_size=16).digest() for key in keys]
    first: dict[tuple[str, str], int] = {}
    for index, (text, group) in enumerate(zip(texts, groups, strict=True)):
        key = ("group", group) if group else ("text", text)
        if key not in first or ranks[index] < ranks[first[key]]:
            first[key] = index
    candidates = sorted(first.values(), key=lambda index: (ranks[index], index))
    if limit is not None:
        candidates = candidates[: _CANDIDATES * limit]
    rows_without_group = [index for index in candidates if not groups[index]]
    clusters = _clusters([texts[index][:_MAX_CHARACTERS] for index in rows_without_group])
    _, firsts = np.unique(clusters, return_index=True)
    relatives = set(rows_without_group) - {rows_without_group[number] for number in firsts}
    return np.array(sorted([index for index in candidates if index not in relatives][:limit]), dtype=np.int64)


def _clusters(texts: Sequence[str]) -> np.ndarray:
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    from fullft_assets.snapshot.near_text.words import shingle_sets

    if not texts:
        return np.zeros(0, np.int64)
    values, sizes = shingle_sets(pa.array([text.casefold() for text in texts], pa.string()))
    names, columns = np.unique(values, return_inverse=True)
    table = csr_array(
        (np.ones(len(columns), np.float32), columns, np.append(0, np.cumsum(sizes))),
        shape=(len(texts), len(names)),
    )
    num_shared = (table @ table.T).tocoo()
    first, second = num_shared.coords
    is_near = num_shared.data >= SIMILARITY * (sizes[first] + sizes[second] - num_shared.data)
    links = csr_array(
        (np.ones(int(is_near.sum()), bool), (first[is_near], second[is_near])), shape=num_shared.shape
    )
    return connected_components(links, directed=False)[1]
