"""Replay: general documents mixed into training, so that the model keeps what it knew.

Which documents is a keyed hash of their contents: the choice depends neither on the order of the files nor on
what else is there, and a larger share takes the same documents and more. A document that overlaps a held-out
row, or an external evaluation set, is passed over as a training row would be.
"""

import math
from collections.abc import Mapping, Sequence

from fullft_assets.chunks import VERSION as CHUNKS_VERSION
from fullft_assets.documents.erasure import read_tombstones
from fullft_assets.errors import DataError
from fullft_assets.settings import ReplaySettings
from fullft_assets.settings.use_case import UseCase
from fullft_assets.snapshot.general_sampling import Drawn, draw_tokens, made_with, pin_files
from fullft_assets.snapshot.metadata import ReplayMetadata
from fullft_assets.snapshot.screening import Screen
from fullft_assets.store import Draft, Manifest, Outcome, Store, digest

VERSION = "7"
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
    replay, seed = use_case.settings.snapshot.replay, use_case.settings.seed
    assert replay is not None, "there is nothing to draw from"
    num_needed = num_replay_tokens(num_task_tokens, replay.share)
    files, making = pin_files(replay.path, use_case, _SETTING), made_with(use_case)
    measured = measured or {}

    def write(draft: Draft) -> Outcome:
        tombstones = read_tombstones(store, use_case.name)
        screens = [
            Screen(held_out),
            Screen(screened),
            # Both may have a run of words, such as a licence's.
            Screen(list(measured.values()), num_words=None),
        ]
        drawn = draw_tokens(use_case, replay.path, num_needed, _SETTING, measured, screens, tombstones)
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

    inputs = {
        "files": digest(files),
        "tokenizer": making["tokenizer"],
        "num_tokens": num_needed,
        "num_task_tokens": num_task_tokens,
        "held_out": digest(sorted(held_out)),
        "screened": digest(sorted(screened)),
    }
    if measured:
        inputs["measured"] = digest(sorted(measured))
    return store.ensure(
        use_case.name,
        STAGE,
        write,
        version=f"{VERSION}-{CHUNKS_VERSION}",
        settings={"chunks": making["chunks"]},
        inputs=inputs,
        seed=seed,
    )


def num_replay_tokens(num_task_tokens: int, share: float) -> int:
    """Return how many tokens of general data make up the share of all: replay / (replay + task) >= share."""
    return math.ceil(num_task_tokens * share / (1 - share))


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
