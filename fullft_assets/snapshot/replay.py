"""Replay: general documents mixed into training, so that the model keeps what it knew.

Which documents is a keyed hash of their contents: the choice depends neither on the order of the files nor on
what else is there, and a larger share takes the same documents and more. A document that overlaps a held-out
row, or an external evaluation set, is passed over as a training row would be.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fullft_assets.chunks import VERSION as CHUNKS_VERSION
from fullft_assets.documents.erasure import read_tombstones
from fullft_assets.errors import DataError
from fullft_assets.settings import ReplaySettings
from fullft_assets.snapshot.general_sampling import Drawn, KeepsOut, draw_tokens, made_with, pin_files
from fullft_assets.snapshot.metadata import ReplayMetadata
from fullft_assets.snapshot.screening import Reference, Screen
from fullft_assets.store import Draft, Manifest, Outcome, Store, digest

if TYPE_CHECKING:
    import pyarrow as pa

    from fullft_assets.settings.use_case import UseCase

VERSION = "6"
STAGE = "replay_documents"
_SETTING = "snapshot.replay"


def draw(
    store: Store,
    use_case: UseCase,
    num_task_tokens: int,
    held_out: Sequence[str],
    screened: Sequence[str] = (),
    measured: Mapping[str, str] | None = None,
) -> Manifest:
    """Choose the general documents that train beside the task's, and write them as an artifact of their own.

    Its `examples.parquet` and `chunks.parquet` have the columns of a batch's artifacts, row by row in the
    order of the draw. Of the last document only the windows that are needed are kept, so that the share is
    met to within a window.

    Args:
        store: where the artifact is found or written.
        use_case: settings; `snapshot.replay` must be set.
        num_task_tokens: tokens of the training rows as they are packed (lengths of all windows, special
            tokens included).
        held_out: texts of the validation and test rows.
        screened: texts of external evaluation sets.
        measured: texts by content hash that forgetting is measured on (`general`): neither they nor their
            near-duplicates train.

    Raises:
        DataError: the path is not there, a file of it cannot be read, it holds nothing usable, or there is
            too little of it; the message contains how many tokens are missing.
    """
    replay, apart = use_case.settings.snapshot.replay, _Apart(held_out, screened, measured or {})
    assert replay is not None, "there is nothing to draw from"
    num_needed = num_replay_tokens(num_task_tokens, replay.share)
    files, making = pin(use_case), made_with(use_case)

    def write(draft: Draft) -> Outcome:
        tombstones = read_tombstones(store, use_case.name)
        drawn = draw_tokens(
            use_case, replay.path, num_needed, _SETTING, apart.measured, apart.screens(use_case), tombstones
        )
        if drawn.num_tokens < num_needed:
            raise _too_little(replay, num_needed, drawn)
        share = drawn.num_tokens / (drawn.num_tokens + num_task_tokens) if drawn.num_tokens else 0.0
        passed_over = dict(
            zip(("num_near_held_out", "num_screened", "num_near_general"), drawn.num_passed_over, strict=True)
        )
        return (
            ReplayMetadata(
                **drawn.write(draft, making), share=share, num_files=len(files), **passed_over
            ).as_dict(),
            [],
        )

    read = {
        "files": digest(files),
        "tokenizer": making["tokenizer"],
        "num_tokens": num_needed,
        "num_task_tokens": num_task_tokens,
    }
    return store.ensure(
        use_case.name,
        STAGE,
        write,
        version=f"{VERSION}-{CHUNKS_VERSION}",
        settings={"chunks": making["chunks"]},
        inputs={**read, **apart.digests()},
        seed=use_case.settings.seed,
    )


@dataclass(frozen=True)
class _Apart:
    """The texts that no general document may be near to, by kind; see `draw`."""

    held_out: Sequence[str]
    screened: Sequence[str]
    measured: Mapping[str, str]

    def screens(self, use_case: UseCase) -> list[KeepsOut]:
        """Return what finds the documents that are passed over for each kind."""
        return [
            _Screen(self.held_out, use_case),
            _Screen(self.screened, use_case),
            _Near(list(self.measured.values()), use_case),
        ]

    def digests(self) -> dict[str, str]:
        """Return what distinguishes the draw from one with other texts."""
        digests = {"held_out": digest(sorted(self.held_out)), "screened": digest(sorted(self.screened))}
        return {**digests, **({"measured": digest(sorted(self.measured))} if self.measured else {})}


def num_replay_tokens(num_task_tokens: int, share: float) -> int:
    """Return how many tokens of general data make up the share of all: replay / (replay + task) >= share."""
    return math.ceil(num_task_tokens * share / (1 - share))


def pin(use_case: UseCase) -> dict[str, str]:
    """Return the digest of each file of `snapshot.replay.path`: what pins the general documents, without
    reading their rows.

    Raises:
        DataError: the path is not there, or holds no file that can be read.
    """
    replay = use_case.settings.snapshot.replay
    return {} if replay is None else pin_files(replay.path, use_case, _SETTING)


class _Screen:
    """Texts that no general document may overlap, looked up only when there are any."""

    def __init__(self, texts: Sequence[str], use_case: UseCase):
        self._screen = Screen(texts) if texts else None

    def overlapping(self, texts: pa.ChunkedArray) -> np.ndarray:
        """Return for each text whether it shares a run of words with one of these, or is a near-duplicate of
        one.
        """
        return np.zeros(len(texts), bool) if self._screen is None else self._screen.overlapping(texts)


class _Near:
    """Texts that no general document may be a near-duplicate of; a shared run of words, such as a licence's,
    is no overlap here.
    """

    def __init__(self, texts: Sequence[str], use_case: UseCase):
        self._reference = Reference(texts) if texts else None

    def overlapping(self, texts: pa.ChunkedArray) -> np.ndarray:
        """Return for each text whether it is a near-duplicate of one of these."""
        return np.zeros(len(texts), bool) if self._reference is None else self._reference.is_near(texts)


def _too_little(replay: ReplaySettings, num_needed: int, drawn: Drawn) -> DataError:
    why = [f"{count:,} rows: {reason}" for reason, count in drawn.num_unusable.most_common(3)]
    why += [
        f"{count:,} overlap {what}"
        for what, count in zip(
            ("held-out rows", "snapshot.screen", "snapshot.general"), drawn.num_passed_over, strict=True
        )
        if count
    ]
    detail = f" ({'; '.join(why)})" if why else ""
    if not drawn.num_candidates:
        return DataError(
            f"{_SETTING}: {replay.path} holds no usable document{detail}; give each row a field `text` (for"
            " sft: or messages)"
        )
    return DataError(
        f"{_SETTING}: {replay.path} holds {drawn.num_tokens:,} usable tokens{detail},"
        f" {num_needed - drawn.num_tokens:,} fewer than snapshot.replay.share ({replay.share:g}) needs; add"
        " documents, or lower the share"
    )
