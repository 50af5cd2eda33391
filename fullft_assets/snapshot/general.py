"""General set: general documents that never train, on which is measured what a model forgets.

They are drawn as replay's are, by a keyed hash of their contents, and frozen with the snapshot: two trainings on it are measured
on the same text. Replay passes them and their near-duplicates over, and a text that is a row of the task is none of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fullft_assets.base_model import resolve_base_model
from fullft_assets.chunks import VERSION as CHUNKS_VERSION
from fullft_assets.chunks import key_settings as chunk_settings
from fullft_assets.chunks import tokenizer_digest
from fullft_assets.errors import DataError
from fullft_assets.snapshot.replay import Candidates, Drawn, take_tokens
from fullft_assets.snapshot.screening import locate
from fullft_assets.store import Draft, Identity, Manifest, Outcome, Store, digest

if TYPE_CHECKING:
    import pyarrow as pa

    from fullft_assets.use_case import UseCase

VERSION = "1"
STAGE = "general_documents"
_SETTING = "snapshot.general"
#: Characters of candidates kept for each token that is wanted; where they do not suffice, more are read.
_CHARACTERS_A_TOKEN = 8
_MORE = 8


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
    """Choose the general documents that forgetting is measured on, and write them as an artifact of their own.

    Its `examples.parquet` and `chunks.parquet` are like those of replay. Where the folder holds less than `snapshot.general.max_tokens`,
    all that it holds is taken.

    Metadata: `num_rows`, `num_tokens`, `num_files`, `num_unusable` (reason -> rows).

    Args:
        store: where the artifact is found or written.
        use_case: settings; `snapshot.general` must be set.
        task_hashes: content hashes of the task's rows, of all splits.

    Raises:
        DataError: the path is not there, a file of it cannot be read, or it holds nothing usable.
    """
    settings = use_case.settings
    general = settings.snapshot.general
    assert general is not None, "there is nothing to draw from"
    files = pin(use_case)
    tokenizer = tokenizer_digest(resolve_base_model(settings.base_model, use_case.project_root), settings.chunks, settings.examples.task)

    def write(draft: Draft) -> Outcome:
        import pyarrow.parquet as pq

        drawn = _draw(use_case, general.path, general.max_tokens, task_hashes)
        pq.write_table(drawn.examples, draft.path / "examples.parquet", compression="zstd")
        pq.write_table(drawn.chunks, draft.path / "chunks.parquet", compression="zstd")
        documents = drawn.examples["text_hash"].to_pylist()
        made_with = {"chunks": chunk_settings(settings), "tokenizer": tokenizer}
        draft.identity = Identity(files=[], values={"documents": documents, "num_tokens": drawn.num_tokens, **made_with})
        counts = {"num_files": len(files), "num_unusable": drawn.num_unusable}
        return {"num_rows": len(drawn.examples), "num_tokens": drawn.num_tokens, **counts}, []

    return store.ensure(
        use_case.name,
        STAGE,
        write,
        version=f"{VERSION}-{CHUNKS_VERSION}",
        settings={"chunks": chunk_settings(settings), "max_tokens": general.max_tokens},
        inputs={"files": digest(files), "tokenizer": tokenizer, "task": digest(sorted(set(task_hashes)))},
        seed=settings.seed,
    )


def pin(use_case: UseCase) -> dict[str, str]:
    """Return the digest of each file of `snapshot.general.path`: what pins the general documents, without reading their rows.

    Raises:
        DataError: the path is not there, or holds no file that can be read.
    """
    general = use_case.settings.snapshot.general
    if general is None:
        return {}
    source, files = locate(general.path, use_case, _SETTING)
    return {file.path: source.digest(file) for file in files}


def texts_by_hash(store: Store, made: Manifest) -> dict[str, str]:
    """Return the documents' texts by their content hashes: what must not train."""
    table = _read(store, made, "examples")
    return dict(zip(table["text_hash"].to_pylist(), table["text"].to_pylist(), strict=True))


def load(store: Store, snapshot: Manifest) -> General | None:
    """Read the general set that a snapshot froze; None where it has none."""
    ref = snapshot.metadata.get("general")
    if ref is None:
        return None
    made = store.load(ref)
    examples, chunks = _read(store, made, "examples"), _read(store, made, "chunks")
    marks = None if chunks["marks"].null_count else chunks["marks"].to_pylist()
    return General(examples["text"].to_pylist(), chunks["windows"].to_pylist(), marks)


def _read(store: Store, made: Manifest, name: str) -> pa.Table:
    import pyarrow.parquet as pq

    return pq.read_table(store.folder(made) / f"{name}.parquet")


def _draw(use_case: UseCase, path: str, max_tokens: int, task_hashes: Collection[str]) -> Drawn:
    most = max_tokens * _CHARACTERS_A_TOKEN
    while True:
        candidates = Candidates.read(use_case, path, most, frozenset(task_hashes), _SETTING)
        drawn = take_tokens(use_case, candidates, max_tokens, ())
        if drawn.num_tokens >= max_tokens or candidates.is_all:
            break
        most *= _MORE
    if not drawn.num_tokens:
        told = "; ".join(f"{count:,} rows: {reason}" for reason, count in Counter(drawn.num_unusable).most_common(3))
        raise DataError(
            f"{_SETTING}: {path} holds no usable document{f' ({told})' if told else ''}; give each row a field `text` (for sft: or messages), "
            "and texts that are no rows of the task"
        )
    return drawn
