"""General set: general documents that never train, on which is measured what a model forgets.

They are drawn as replay's are, by a keyed hash of their contents, and frozen with the snapshot: two trainings
on it are measured on the same text. Replay passes them and their near-duplicates over, and a text that is a
row of the task is none of them.
"""

from collections.abc import Collection
from dataclasses import dataclass

import pyarrow.parquet as pq

from fullft_assets.chunks import VERSION as CHUNKS_VERSION
from fullft_assets.documents.erasure import read_tombstones
from fullft_assets.errors import DataError
from fullft_assets.settings.use_case import UseCase
from fullft_assets.snapshot.frozen_batches import drawn_folder, steady
from fullft_assets.snapshot.metadata import GeneralMetadata
from fullft_assets.snapshot.replay import draw_tokens, made_with, pin_files
from fullft_assets.store import Draft, Manifest, Outcome, Store, digest

VERSION = "4"
STAGE = "general_documents"
_SETTING = "snapshot.general"


@dataclass(frozen=True)
class General:
    """The general set as a model reads it.

    Attributes:
        texts: of each document; of a conversation, as it is rendered for reading.
        windows: token ids of each document's windows.
        marks: aligned with the windows, 1 where a token counts; None: all do.
    """

    texts: list[str]
    windows: list[list[list[int]]]
    marks: list[list[list[int]]] | None = None


def draw(store: Store, use_case: UseCase, task_hashes: Collection[str]) -> Manifest:
    """Choose the general documents that forgetting is measured on, and write them as an artifact of their
    own.

    Its `examples.parquet` and `chunks.parquet` are like those of replay. Where the folder holds less than
    `snapshot.general.max_tokens`, all that it holds is taken.

    Args:
        store: where the artifact is found or written.
        use_case: settings; `snapshot.general` must be set.
        task_hashes: content hashes of the task's rows, of all splits.

    Raises:
        DataError: the path is not there, a file of it cannot be read, or it holds nothing usable.
    """
    settings, general = use_case.settings, use_case.settings.snapshot.general
    assert general is not None, "there is nothing to draw from"
    files, making = pin_files(general.path, use_case, _SETTING), made_with(use_case)

    def write(draft: Draft) -> Outcome:
        tombstones = read_tombstones(store, use_case.name)
        drawn = draw_tokens(
            use_case,
            general.path,
            general.max_tokens,
            _SETTING,
            frozenset(task_hashes),
            tombstones=tombstones,
        )
        if not drawn.num_tokens:
            detail = "; ".join(
                f"{count:,} rows: {reason}" for reason, count in drawn.num_unusable.most_common(3)
            )
            raise DataError(
                f"{_SETTING}: {general.path} holds no usable document{f' ({detail})' if detail else ''}; give"
                " each row a field `text` (for sft: or messages), and texts that are no rows of the task"
            )
        return GeneralMetadata(**drawn.write(draft, making), num_files=len(files)).as_dict(), []

    return store.ensure(
        use_case.name,
        STAGE,
        write,
        version=f"{VERSION}-{CHUNKS_VERSION}",
        settings={"chunks": making["chunks"], "max_tokens": general.max_tokens},
        inputs={
            "files": digest(files),
            "tokenizer": making["tokenizer"],
            "task": digest(sorted(set(task_hashes))),
        },
        seed=settings.seed,
    )


def texts_by_hash(store: Store, general: Manifest) -> dict[str, str]:
    """Return the documents' texts by their content hashes: what must not train."""

    table = pq.read_table(store.folder(general) / "examples.parquet", columns=["text_hash", "text"])
    return dict(zip(table["text_hash"].to_pylist(), table["text"].to_pylist(), strict=True))


def load(store: Store, snapshot: Manifest) -> General | None:
    """Read the general set that a snapshot froze; None where it has none.

    Raises:
        StoreError: it is gone, or was rewritten since.
        DataError: all of its documents were erased.
    """

    with steady(snapshot):
        folder = drawn_folder(store, snapshot, "general")
        if folder is None:
            return None
        examples, chunks = (pq.read_table(folder / f"{name}.parquet") for name in ("examples", "chunks"))
    if not len(examples):
        raise DataError(
            f"{_SETTING}: all documents of the snapshot's general set were erased; add others, and take the"
            " snapshot again"
        )
    marks = None if chunks["marks"].null_count else chunks["marks"].to_pylist()
    return General(examples["text"].to_pylist(), chunks["windows"].to_pylist(), marks)
