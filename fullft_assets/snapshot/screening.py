"""Screening: which training texts overlap an external evaluation set, so that no score on it is bought by
memory.

A text overlaps where it shares a run of SCREEN_WORDS consecutive words with an evaluation text:
the n-gram overlap of Brown et al. 2020 ("Language Models are Few-Shot Learners", appendix C, n = 8 to 13), or
where it is a near-duplicate of one. An evaluation text with fewer words than a run can only be found as a
near-duplicate. Where a script has no spaces between words, two Chinese characters or three letters of another
script are as long as a word (`words.SIXTHS`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from fullft_assets.documents.batches import Batch, bounded
from fullft_assets.documents.formats import is_readable, known_endings
from fullft_assets.documents.reading import read_documents
from fullft_assets.documents.sources import Source, SourceFile, open_source
from fullft_assets.errors import DataError
from fullft_assets.settings import DocumentsSettings
from fullft_assets.settings.use_case import UseCase
from fullft_assets.snapshot.frozen_batches import positions_in
from fullft_assets.snapshot.near_text.pairs import Texts, sketch
from fullft_assets.snapshot.near_text.words import SIXTHS, WORD, hash_runs, hash_words
from fullft_assets.store import digest
from fullft_assets.task import CONVERSATIONS, PLAIN_TEXT

#: Consecutive words shared with an external evaluation set that count as overlap.
SCREEN_WORDS = 13
#: Texts looked up at once: their words' hashes take about 10 MB.
_BLOCK_ROWS = 10_000


#: How documents are read: formats and fields, and what a row has to hold.
Way = tuple[DocumentsSettings, str]


@dataclass(frozen=True)
class EvaluationTexts:
    """The texts of the external evaluation sets.

    Attributes:
        texts: distinct texts of all sets, sorted.
        num_texts: how many each path of `snapshot.screen` holds.
        digest: of the texts; it is in the keys of what is screened.
    """

    texts: list[str]
    num_texts: dict[str, int]
    digest: str


def read_evaluation_texts(use_case: UseCase) -> EvaluationTexts:
    """Read the files and folders of `snapshot.screen`; none where it is empty.

    A row's text is what the use case's own field holds, else its turns, prompt and answer (any format of
    conversations), else its field `text`.

    Raises:
        DataError: a path is not there, or one of its files or rows cannot be read: an evaluation text that
            cannot be read cannot be screened for.
    """
    texts: set[str] = set()
    num_texts = {}
    for path in use_case.settings.snapshot.screen:
        texts_of_set = [text for text in _read_set(path, use_case) if text.strip()]
        if not texts_of_set:
            raise DataError(f"snapshot.screen: {path} holds no text; fix it, or leave it out")
        num_texts[path] = len(texts_of_set)
        texts.update(texts_of_set)
    return EvaluationTexts(sorted(texts), num_texts, digest(sorted(texts)))


def _read_set(path: str, use_case: UseCase) -> list[str]:
    settings = use_case.settings
    documents = settings.documents.model_copy(update={"path": path, "format": "auto"})
    plain = DocumentsSettings.model_validate({"path": path})
    ways: list[Way] = [
        (documents, settings.examples.task),
        (plain, CONVERSATIONS),
        (plain, PLAIN_TEXT),
        (DocumentsSettings.model_validate({"path": path, "text": "question"}), PLAIN_TEXT),
    ]
    texts: list[str] = []
    problems: list[str] = []
    for uri, table in read_external(path, use_case, ways, "snapshot.screen"):
        for source, row, text, problem in zip(
            *(table[name].to_pylist() for name in ("source", "row", "text", "problem")), strict=True
        ):
            if text is None:
                problems.append(f"{uri}/{source}:{row}: {problem or 'no text'}")
            else:
                texts.append(text)
    if problems:
        more = f" (and {len(problems) - 1:,} more rows)" if len(problems) > 1 else ""
        raise DataError(
            f"{problems[0]}{more}; what cannot be read cannot be screened for: give each row a field `text`"
            " (or `question`, or messages), or take it out of snapshot.screen"
        )
    return texts


def locate(path: str, use_case: UseCase, setting: str) -> tuple[Source, list[SourceFile]]:
    """Return the readable files of a folder, of an S3 prefix, or a single file, and the source that they are
    in.

    Raises:
        DataError: there is none; the message names the setting.
    """
    is_remote = path.startswith("s3://")
    full = path if is_remote else str(use_case.resolve(path))
    is_file = is_readable(full) if is_remote else Path(full).is_file()
    if not is_remote and not Path(full).exists():
        raise DataError(f"{setting}: {path} not found; relative paths start at {use_case.project_root}")
    if is_file:
        folder, _, name = full.rpartition("/")
        source = open_source(folder, use_case.project_root)
        file = source.status(name) if is_readable(name) else None
        files = [] if file is None else [file]
    else:
        source = open_source(full, use_case.project_root)
        files = source.files()
    if not files:
        raise DataError(f"{setting}: no readable file at {path}; known endings: {known_endings()}")
    return source, files


def read_external(
    path: str, use_case: UseCase, ways: Sequence[Way], setting: str
) -> Iterator[tuple[str, pa.Table]]:
    """Read documents that are no delivery of the use case, a bounded batch of files at a time.

    Args:
        path: folder, file or S3 prefix.
        use_case: where relative paths start.
        ways: formats and fields, and what a row has to hold beside its text; a row counts as the first of
            them gives it a text.
        setting: named in messages.

    Yields:
        Where the files are, and a table of `documents.schema()`: rows that no way gives a text have none, and
        the last one's `problem`.

    Raises:
        DataError: see `locate`; or a file cannot be read.
    """
    source, files = locate(path, use_case, setting)
    for group in bounded(files, use_case.settings.documents):
        with source.fetched(group):
            table = _read_group(source, group, ways[0], use_case, setting)
            for way in ways[1:]:
                if not table["text"].null_count:
                    break
                table = _fill(table, _read_group(source, group, way, use_case, setting))
        yield source.uri, table


def _read_group(
    source: Source, group: list[SourceFile], way: Way, use_case: UseCase, setting: str
) -> pa.Table:
    documents, task = way
    fields = {"task": task, "label": None, "group": None, "domain": None, "slice_by": None}
    reading = read_documents(
        source,
        Batch(setting, group),
        documents,
        use_case.settings.examples.model_copy(update=fields),
        may_be_empty=True,
    )
    for name, why in reading.unreadable.items():
        raise DataError(f"{source.uri}/{name}: cannot be read ({why}); fix it, or take it out of {setting}")
    return reading.table


def _fill(table: pa.Table, other_table: pa.Table) -> pa.Table:
    """Return a table in which the rows without a text are replaced by the same rows of another table."""
    position = positions_in(other_table, table)
    stays = table["text"].is_valid().to_numpy() | (position < 0)
    return pa.concat_tables([table, other_table]).take(
        np.where(stays, np.arange(len(table)), len(table) + position)
    )


class Screen:
    """Texts that others must not overlap, ready to look texts up in: build it once, ask it batch by batch.

    Args:
        texts: such as those of evaluation sets; nothing overlaps none.
        num_words: words in a row that count as overlap. None: only near-duplicates overlap.
    """

    def __init__(self, texts: Sequence[str], *, num_words: int | None = SCREEN_WORDS):
        self._texts = _as_arrow(texts)
        self._num_words = num_words
        self._hashes = (
            np.zeros(0, np.uint64) if num_words is None else np.unique(_runs(self._texts, num_words)[0])
        )
        self._sketches = sketch(self._texts)

    def overlapping(self, texts: pa.ChunkedArray | Sequence[str]) -> np.ndarray:
        """Return for each text whether it shares a run of words with one of these, or is a near-duplicate of
        one.
        """

        column = _as_arrow(texts)
        overlaps = self.shares_a_run(column)
        positions = np.flatnonzero(~overlaps)
        overlaps[positions] = self.is_near(column.take(pa.array(positions)))
        return overlaps

    def shares_a_run(self, texts: pa.ChunkedArray | Sequence[str]) -> np.ndarray:
        """Return for each text whether it shares a run of words with one of these."""
        column = _as_arrow(texts)
        shares = np.zeros(len(column), bool)
        if self._num_words is None or not len(self._hashes):
            return shares
        for start in range(0, len(column), _BLOCK_ROWS):
            hashes, text = _runs(column.slice(start, _BLOCK_ROWS), self._num_words)
            shares[start + text[np.isin(hashes, self._hashes)]] = True
        return shares

    def is_near(self, texts: pa.ChunkedArray | Sequence[str]) -> np.ndarray:
        """Return for each text whether it is a near-duplicate of one of these."""

        column = _as_arrow(texts)
        pooled = pa.chunked_array([*self._texts.chunks, *column.chunks], pa.string())
        reference, candidates = np.split(np.arange(len(pooled)), [len(self._texts)])
        sketches = [self._sketches.column, sketch(column).column]
        return np.isin(candidates, list(Texts(sketches, pooled.take).find_near(reference, candidates)))


def _runs(texts: pa.Array | pa.ChunkedArray, num_words: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the hash of every run as long as `num_words` words, and the text that each is in."""
    words = hash_words(texts)
    length = np.concatenate([[0], np.cumsum(SIXTHS[words.kinds])])
    # A run that ends with its text has that end, one that would be longer the next number after all words.
    return hash_runs(words, np.searchsorted(length, length[:-1] + num_words * SIXTHS[WORD]))


def _as_arrow(texts: pa.ChunkedArray | Sequence[str]) -> pa.ChunkedArray:

    return texts if isinstance(texts, pa.ChunkedArray) else pa.chunked_array([texts], pa.string())
