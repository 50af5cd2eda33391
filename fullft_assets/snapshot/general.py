"""General documents, drawn for a snapshot: those that are replayed in training, so that the model keeps what
it knew, and the general set, which never trains and on which is measured what the model forgets.

Which documents is a keyed hash of their contents: the choice depends neither on the order of the files nor on
what else is there, and more tokens take the same documents and more. A document that overlaps a held-out row,
or an external evaluation set, is passed over as a training row would be. Both are frozen with the snapshot:
two trainings are measured on the same text. Replay passes over the general set and its near-duplicates, and a
text that is a row of the task is not in the general set.
"""

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fullft_assets.artifacts import (
    CHUNKS_COLUMN,
    CHUNKS_FILE,
    EXAMPLES_FILE,
    GENERAL_DOCUMENTS,
    REPLAY_DOCUMENTS,
)
from fullft_assets.base_model import resolve_base_model
from fullft_assets.chunks import (
    VERSION as CHUNKS_VERSION,
    Tokenization,
    chunk,
    key_settings as chunk_settings,
    schema as chunk_schema,
    tokenizer_digest,
)
from fullft_assets.conversations import messages_hash
from fullft_assets.documents.erasure import is_erased, read_tombstones
from fullft_assets.errors import DataError
from fullft_assets.settings import DocumentsSettings, ReplaySettings
from fullft_assets.settings.use_case import UseCase
from fullft_assets.snapshot.frozen_batches import chunk_lengths, drawn_folder, steady, to_lists
from fullft_assets.snapshot.metadata import GeneralMetadata, ReplayMetadata
from fullft_assets.snapshot.screening import Screen, Way, locate, read_external
from fullft_assets.store import Draft, Identity, Manifest, Outcome, Store, digest
from fullft_assets.store.hashing import text_hash, unit_hash
from fullft_assets.task import CONVERSATIONS, PLAIN_TEXT, task_of

_REPLAY_VERSION = "7"
_GENERAL_VERSION = "4"
#: Characters of candidates kept for each token that is wanted: twice what usual texts have. Where they do not
#: suffice, more are read.
_CHARACTERS_A_TOKEN = 8
#: Documents that are looked at together.
_BLOCK_ROWS = 1_024


@dataclass
class Draw:
    """Documents in the order of the draw, with the columns of a batch's artifacts.

    Attributes:
        num_candidates: usable documents that were looked at.
        num_unusable: reason -> rows.
        num_passed_over: documents that a screen kept out, by screen.
    """

    examples: pa.Table
    chunks: pa.Table
    num_tokens: int
    num_candidates: int
    num_unusable: Counter[str]
    num_passed_over: list[int]

    def write(self, draft: Draft, chunk_inputs: dict[str, Any]) -> dict[str, Any]:
        """Write both tables as an artifact, and return their metadata.

        Args:
            draft: the artifact's draft.
            chunk_inputs: what `made_with` returns.
        """

        pq.write_table(self.examples, draft.path / EXAMPLES_FILE, compression="zstd")
        pq.write_table(self.chunks, draft.path / CHUNKS_FILE, compression="zstd")
        # Not of the files: they hold from where, and when, documents were delivered.
        draft.identity = Identity(
            files=[],
            values={
                "documents": self.examples["text_hash"].to_pylist(),
                "num_tokens": self.num_tokens,
                **chunk_inputs,
            },
        )
        return {
            "num_rows": len(self.examples),
            "num_tokens": self.num_tokens,
            "num_unusable": self.num_unusable,
        }


def made_with(use_case: UseCase) -> dict[str, Any]:
    """Return the settings that shape chunks of general documents: `chunks`, and the digest of the
    `tokenizer`.
    """
    settings = use_case.settings
    return {
        "chunks": chunk_settings(settings),
        "tokenizer": tokenizer_digest(
            resolve_base_model(settings.base_model, use_case.project_root),
            settings.chunks,
            settings.examples.task,
        ),
    }


def pin_files(path: str, use_case: UseCase, setting: str) -> dict[str, str]:
    """Return the digest of each file of a path: what pins its documents, without reading their rows.

    Raises:
        DataError: the path is not there, or holds no file that can be read; `setting` is named.
    """
    source, files = locate(path, use_case, setting)
    return {file.path: source.digest(file) for file in files}


def draw_tokens(
    use_case: UseCase,
    path: str,
    num_needed: int,
    setting: str,
    left_out: Collection[str] = (),
    screens: Sequence[Screen] = (),
    tombstones: Collection[str] = (),
) -> Draw:
    """Draw documents until they have the number of tokens that is needed, or all documents are drawn.

    Args:
        use_case: where relative paths start; the task, the tokenizer and the seed.
        path: of the documents.
        num_needed: tokens.
        setting: named in messages.
        left_out: content hashes of documents that are not drawn.
        screens: a document that overlaps the texts of one of them is not drawn either.
        tombstones: of erased documents, which are not drawn either (see `documents.erasure`).

    Raises:
        DataError: the path is not there, or a file of it cannot be read.
    """
    most = num_needed * _CHARACTERS_A_TOKEN
    while True:
        unusable: Counter[str] = Counter()
        candidates, is_all = _first_candidates(
            _usable(use_case, path, unusable, left_out, setting, tombstones), most
        )
        draw = _take_tokens(use_case, candidates, unusable, num_needed, screens)
        if draw.num_tokens >= num_needed or is_all:
            return draw
        most *= 8


def _first_candidates(tables: Iterator[pa.Table], min_characters: int) -> tuple[pa.Table, bool]:
    """Return the first documents of the draw in its order, each content once, with at least `min_characters`
    characters together; and whether there are no other documents. It holds a few times as many characters.
    """
    candidates: list[pa.Table] = []
    num_characters = 0
    last_place = 1.0
    is_all = True
    for table in tables:
        earlier_documents = table.filter(np.asarray(table["place"]) <= last_place)
        is_all &= len(earlier_documents) == len(table)
        candidates.append(earlier_documents)
        num_characters += _num_characters(earlier_documents).sum()
        if num_characters > 2 * min_characters:
            documents = _in_order(candidates)
            first_documents = documents.slice(
                0, int(np.searchsorted(np.cumsum(_num_characters(documents)), min_characters)) + 1
            )
            is_all &= len(first_documents) == sum(map(len, candidates))
            candidates = [first_documents]
            num_characters = _num_characters(first_documents).sum()
            last_place = first_documents["place"][-1].as_py()
    return _in_order(candidates), is_all


def _usable(
    use_case: UseCase,
    path: str,
    unusable: Counter[str],
    left_out: Collection[str],
    setting: str,
    tombstones: Collection[str],
) -> Iterator[pa.Table]:
    """Yield tables of usable documents with `text_hash` and their `place` in the draw, and count the other
    documents in `unusable`, by reason.
    """

    plain = DocumentsSettings.model_validate({"path": path})
    ways: list[Way] = [
        *([(plain, CONVERSATIONS)] if task_of(use_case.settings.examples).has_messages else []),
        (plain, PLAIN_TEXT),
    ]
    for _, table in read_external(path, use_case, ways, setting):
        has_text = pc.fill_null(pc.not_equal(pc.utf8_trim_whitespace(table["text"]), ""), False)
        is_malformed = table["problem"].is_valid()
        unusable["malformed row"] += pc.sum(is_malformed).as_py() or 0
        unusable["empty text"] += pc.sum(pc.invert(pc.or_(has_text, is_malformed))).as_py() or 0
        table = table.filter(pc.and_not(has_text, is_malformed)).drop_columns(["problem"])
        hashes = [
            text_hash(text) if turns is None else messages_hash(turns)
            for text, turns in zip(table["text"].to_pylist(), table["messages"].to_pylist(), strict=True)
        ]
        places = [unit_hash(use_case.settings.seed, "replay", hash_) for hash_ in hashes]
        table = table.append_column("text_hash", pa.array(hashes, pa.string())).append_column(
            "place", pa.array(places, pa.float64())
        )
        is_out = is_erased(use_case.name, table, tombstones)
        unusable["erased"] += int(is_out.sum())
        is_out |= np.array([hash_ in left_out for hash_ in hashes], bool)
        yield table.filter(pa.array(~is_out)) if is_out.any() else table


def _num_characters(table: pa.Table) -> np.ndarray:

    return pc.utf8_length(table["text"]).to_numpy().astype(np.int64)


def _in_order(tables: list[pa.Table]) -> pa.Table:

    table = pa.concat_tables(tables)
    table = table.sort_by([(name, "ascending") for name in ("place", "text_hash", "source", "row")])
    hashes = np.array([None, *table["text_hash"].to_pylist()], object)
    return table.filter(pa.array(hashes[1:] != hashes[:-1], pa.bool_()))


def _take_tokens(
    use_case: UseCase, table: pa.Table, unusable: Counter[str], num_needed: int, screens: Sequence[Screen]
) -> Draw:
    """Tokenise candidates one block after the other, until they have the tokens that are needed."""
    tokenizations = _Tokenizations(use_case)
    num_passed_over = [0 for _ in screens]
    examples = [table.slice(0, 0)]
    chunk_tables = [chunk_schema().empty_table()]
    missing = num_needed
    for start in range(0, len(table), _BLOCK_ROWS):
        if missing <= 0:
            break
        block = table.slice(start, _BLOCK_ROWS)
        # The model would read them as ends and marks that the text does not have.
        has_control = np.array(list(map(tokenizations.holds_control_token, block["text"].to_pylist())))
        masks = [screen.overlapping(block["text"]) for screen in screens]
        clean = np.flatnonzero(~np.logical_or.reduce([has_control, *masks]))
        fit, chunks = _first_tokens(tokenizations.chunk(block.take(clean)), missing)
        missing -= int(_num_tokens(chunks).sum())
        # What follows the last one was never drawn.
        looked_at = len(block) if missing > 0 else clean[fit[-1]] + 1
        num_passed_over = [
            count + int(mask[:looked_at].sum()) for count, mask in zip(num_passed_over, masks, strict=True)
        ]
        unusable["special tokens of the model"] += int(has_control[:looked_at].sum())
        unusable["no trained token"] += int((clean < looked_at).sum()) - len(fit)
        examples.append(block.take(clean[fit]))
        chunk_tables.append(chunks)
    return Draw(
        pa.concat_tables(examples).drop_columns(["place"]),
        pa.concat_tables(chunk_tables),
        num_needed - missing,
        len(table),
        +unusable,
        num_passed_over,
    )


def _first_tokens(chunks: pa.Table, missing: int) -> tuple[np.ndarray, pa.Table]:
    """Return the first rows with a trained token that have the missing tokens together, or all of them, and
    their chunks. The last row loses the chunks whose tokens are not needed.
    """

    num_trained = _num_tokens(chunks)
    # Without marks every token is trained.
    if not chunks["marks"].null_count:
        num_trained = np.array([sum(map(sum, row)) for row in to_lists(chunks["marks"])], np.int64)
    fit = np.flatnonzero(num_trained > 0)
    tokens = np.cumsum(_num_tokens(chunks)[fit])
    if (last := int(np.searchsorted(tokens, missing))) == len(fit):
        return fit, chunks.take(fit)
    fit = fit[: last + 1]
    row = chunks.slice(fit[-1], 1).to_pylist()[0]
    num_spare = int(tokens[last]) - missing
    while len(row[CHUNKS_COLUMN]) > 1 and len(row[CHUNKS_COLUMN][-1]) <= num_spare:
        num_spare -= len(row[CHUNKS_COLUMN].pop())
    row["marks"] = row["marks"] and row["marks"][: len(row[CHUNKS_COLUMN])]
    return fit, pa.concat_tables([chunks.take(fit[:-1]), pa.Table.from_pylist([row], chunks.schema)])


def _num_tokens(chunks: pa.Table) -> np.ndarray:
    return np.array([sum(lengths) for lengths in chunk_lengths(chunks[CHUNKS_COLUMN])], np.int64)


class _Tokenizations:
    """How documents become chunks: conversations through the model's chat template; a plain text is trained
    whole.
    """

    def __init__(self, use_case: UseCase):
        settings = use_case.settings
        model = resolve_base_model(settings.base_model, use_case.project_root)
        self._task = settings.examples.task
        self._plain_task = task_of(settings.examples).plain_task
        self._plain = Tokenization.load(model, settings.chunks, self._plain_task)
        self._conversations = None
        if task_of(settings.examples).has_messages:
            self._conversations = Tokenization.load(model, settings.chunks, self._task)

    def holds_control_token(self, text: str) -> bool:
        """Return whether a document spells out a special token, which the model reads as that token."""
        return (self._conversations or self._plain).holds_control_token(text)

    def chunk(self, documents: pa.Table) -> pa.Table:
        """Return the chunks of documents, as a batch's `chunks.parquet` has them."""

        if self._conversations is None:
            return chunk(documents, self._plain, self._plain_task).table
        is_plain = np.asarray(documents["messages"].is_null())
        plain = chunk(documents.filter(is_plain), self._plain, self._plain_task).table
        marks = [[[1] * len(chunk) for chunk in row] for row in plain[CHUNKS_COLUMN].to_pylist()]
        kind = plain.schema.field("marks")
        plain = plain.set_column(plain.schema.get_field_index("marks"), kind, pa.array(marks, kind.type))
        conversations = chunk(documents.filter(~is_plain), self._conversations, self._task).table
        return pa.concat_tables([plain, conversations]).take(
            np.argsort(np.argsort(~is_plain, kind="stable"), kind="stable")
        )


def draw_replay(
    store: Store,
    use_case: UseCase,
    num_task_tokens: int,
    heldout_texts: Sequence[str],
    evaluation_texts: Sequence[str] = (),
    general_texts: Mapping[str, str] | None = None,
) -> Manifest:
    """Choose the general documents that train beside the task's, and write them as an artifact of their own.

    Its `examples.parquet` and `chunks.parquet` have the columns of a batch's artifacts, row by row in the
    order of the draw. Of the last document only the chunks that are needed are kept, so that the share is
    met to within a chunk.

    Args:
        store: where the artifact is found or written.
        use_case: settings; `snapshot.replay` must be set.
        num_task_tokens: tokens of the training rows as they are packed (lengths of all chunks, special
            tokens included).
        heldout_texts: texts of the validation and test rows.
        evaluation_texts: texts of external evaluation sets.
        general_texts: texts of the general set by content hash: neither they nor their near-duplicates
            train.

    Raises:
        DataError: the path is not there, a file of it cannot be read, it holds nothing usable, or there is
            too little of it; the message contains how many tokens are missing.
    """
    replay = use_case.settings.snapshot.replay
    assert replay is not None, "there is nothing to draw from"
    num_needed = num_replay_tokens(num_task_tokens, replay.share)
    files = pin_files(replay.path, use_case, "snapshot.replay")
    chunk_inputs = made_with(use_case)
    general_texts = general_texts or {}

    def write(draft: Draft) -> Outcome:
        screens = [
            Screen(heldout_texts),
            Screen(evaluation_texts),
            # Both may have a run of words, such as a licence's.
            Screen(list(general_texts.values()), num_words=None),
        ]
        draw = draw_tokens(
            use_case,
            replay.path,
            num_needed,
            "snapshot.replay",
            general_texts,
            screens,
            read_tombstones(store, use_case.name),
        )
        if draw.num_tokens < num_needed:
            raise _too_little(replay, num_needed, draw)
        share = draw.num_tokens / (draw.num_tokens + num_task_tokens) if draw.num_tokens else 0.0
        metadata = ReplayMetadata(
            **draw.write(draft, chunk_inputs),
            share=share,
            num_files=len(files),
            **dict(
                zip(
                    ("num_near_held_out", "num_screened", "num_near_general"),
                    draw.num_passed_over,
                    strict=True,
                )
            ),
        )
        return metadata.as_dict(), []

    inputs = {
        "files": digest(files),
        "tokenizer": chunk_inputs["tokenizer"],
        "num_tokens": num_needed,
        "num_task_tokens": num_task_tokens,
        "held_out": digest(sorted(heldout_texts)),
        "screened": digest(sorted(evaluation_texts)),
    }
    if general_texts:
        inputs["measured"] = digest(sorted(general_texts))
    return store.ensure(
        use_case.name,
        REPLAY_DOCUMENTS,
        write,
        version=f"{_REPLAY_VERSION}-{CHUNKS_VERSION}",
        settings={"chunks": chunk_inputs["chunks"]},
        inputs=inputs,
        seed=use_case.settings.seed,
    )


def num_replay_tokens(num_task_tokens: int, share: float) -> int:
    """Return how many tokens of general data make up the share of all: replay / (replay + task) >= share."""
    return math.ceil(num_task_tokens * share / (1 - share))


def _too_little(replay: ReplaySettings, num_needed: int, draw: Draw) -> DataError:
    why = [f"{count:,} rows: {reason}" for reason, count in draw.num_unusable.most_common(3)]
    why += [
        f"{count:,} overlap {source}"
        for source, count in zip(
            ("held-out rows", "snapshot.screen", "snapshot.general"), draw.num_passed_over, strict=True
        )
        if count
    ]
    detail = f" ({'; '.join(why)})" if why else ""
    if not draw.num_candidates:
        return DataError(
            f"snapshot.replay: {replay.path} holds no usable document{detail}; give each row a field `text`"
            " (for sft: or messages)"
        )
    return DataError(
        f"snapshot.replay: {replay.path} holds {draw.num_tokens:,} usable tokens{detail},"
        f" {num_needed - draw.num_tokens:,} fewer than snapshot.replay.share ({replay.share:g}) needs; add"
        " documents, or lower the share"
    )


@dataclass(frozen=True)
class General:
    """The general set as a model reads it.

    Attributes:
        texts: of each document; of a conversation, as it is rendered for reading.
        chunks: token ids of each document's chunks.
        marks: aligned with the chunks, 1 where a token counts; None: all do.
    """

    texts: list[str]
    chunks: list[list[list[int]]]
    marks: list[list[list[int]]] | None = None


def draw_general(store: Store, use_case: UseCase, task_hashes: Collection[str]) -> Manifest:
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
    general = use_case.settings.snapshot.general
    assert general is not None, "there is nothing to draw from"
    files = pin_files(general.path, use_case, "snapshot.general")
    chunk_inputs = made_with(use_case)

    def write(draft: Draft) -> Outcome:
        draw = draw_tokens(
            use_case,
            general.path,
            general.max_tokens,
            "snapshot.general",
            frozenset(task_hashes),
            tombstones=read_tombstones(store, use_case.name),
        )
        if not draw.num_tokens:
            detail = "; ".join(
                f"{count:,} rows: {reason}" for reason, count in draw.num_unusable.most_common(3)
            )
            raise DataError(
                f"snapshot.general: {general.path} holds no usable document"
                f"{f' ({detail})' if detail else ''}; give each row a field `text` (for sft: or"
                " messages), and texts that are no rows of the task"
            )
        return GeneralMetadata(**draw.write(draft, chunk_inputs), num_files=len(files)).as_dict(), []

    return store.ensure(
        use_case.name,
        GENERAL_DOCUMENTS,
        write,
        version=f"{_GENERAL_VERSION}-{CHUNKS_VERSION}",
        settings={"chunks": chunk_inputs["chunks"], "max_tokens": general.max_tokens},
        inputs={
            "files": digest(files),
            "tokenizer": chunk_inputs["tokenizer"],
            "task": digest(sorted(set(task_hashes))),
        },
        seed=use_case.settings.seed,
    )


def texts_by_hash(store: Store, general: Manifest) -> dict[str, str]:
    """Return the documents' texts by their content hashes: what must not train."""

    table = pq.read_table(store.folder(general) / EXAMPLES_FILE, columns=["text_hash", "text"])
    return dict(zip(table["text_hash"].to_pylist(), table["text"].to_pylist(), strict=True))


def load(store: Store, snapshot: Manifest) -> General | None:
    """Read the general set that a snapshot froze; None where it has none.

    Raises:
        StoreError: it is gone, or was rewritten since.
        DataError: all of its documents were erased.
    """

    with steady(snapshot):
        if (folder := drawn_folder(store, snapshot, "general")) is None:
            return None
        examples, chunks = (pq.read_table(folder / f"{name}.parquet") for name in ("examples", "chunks"))
    if not len(examples):
        raise DataError(
            "snapshot.general: all documents of the snapshot's general set were erased; add others, and take"
            " the snapshot again"
        )
    return General(
        examples["text"].to_pylist(),
        chunks[CHUNKS_COLUMN].to_pylist(),
        None if chunks["marks"].null_count else chunks["marks"].to_pylist(),
    )
