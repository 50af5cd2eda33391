"""`fullft predict`: apply the champion to a text, or to each text of a file. Imports torch."""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fullft_assets.conversations import text_of
from fullft_assets.documents.formats import Delivered, Record, Unreadable, name_of_format
from fullft_assets.documents.formats.rows import Malformed, Message, messages_of, value_of
from fullft_assets.documents.reading import FileReader
from fullft_assets.errors import DataError, FullftError
from fullft_assets.resources.champion import load_champion
from fullft_assets.settings import DocumentsSettings, UseCaseSettings
from fullft_assets.settings.use_case import UseCase
from fullft_assets.store import Store
from fullft_assets.store.disk import replace_synced
from fullft_assets.task import task_of

#: Formats of files with a record for each text; every other file has a text on each line.
_OF_RECORDS = ("jsonl", "csv")
_EMPTY = "the text is empty; a model would answer with what is likeliest of all texts"
#: Rows without a text that are named.
_SHOWN_ROWS = 10


@dataclass(frozen=True)
class _Row:
    """One text of a file, or conversation without its last answer: the number of its line, and its id if it
    has one. `problem` is why there is no text.
    """

    number: int
    text: str | list[Message] = ""
    id: str | None = None
    problem: str | None = None


def predict(use_case: UseCase, store: Store, text: str, max_new_tokens: int) -> None:
    """Print what the champion predicts for a text: labels, spans, or text that it writes.

    Raises:
        FullftError: there is no champion yet, or the text is empty.
    """
    if _is_empty(text):
        raise FullftError(f"{use_case.name}: {_EMPTY}")
    for prediction in _predictions(use_case, store, [text], max_new_tokens):
        for line in task_of(use_case.settings.examples).show(prediction):
            print(line)


def predict_file(use_case: UseCase, store: Store, path: Path, out: Path | None, max_new_tokens: int) -> int:
    """Write a line of JSON for each text of a file; name the rows that have none, and return how many these
    are.

    Args:
        out: file to write; None: to the terminal.

    Raises:
        FullftError: there is no champion yet, or the file cannot be read or has no text at all.
    """
    rows = list(read_texts(path, use_case.settings))
    good = [row for row in rows if row.problem is None]
    bad = [row for row in rows if row.problem is not None]
    for row in bad[:_SHOWN_ROWS]:
        print(f"{path}:{row.number}: {row.problem}", file=sys.stderr)
    if len(bad) > _SHOWN_ROWS:
        print(f"{path}: {len(bad) - _SHOWN_ROWS:,} more rows without a text", file=sys.stderr)
    if not good:
        raise DataError(
            f"{path}: no row has a text in the field `{_text_field(use_case.settings.documents)}`, so there"
            " is nothing to predict"
        )
    predictions = _predictions(use_case, store, [row.text for row in good], max_new_tokens)
    lines = (
        json.dumps(
            {"row": row.number, **({} if row.id is None else {"id": row.id}), **prediction},
            ensure_ascii=False,
        )
        for row, prediction in zip(good, predictions, strict=True)
    )
    if out is None:
        for line in lines:
            print(line, flush=True)
    else:
        replace_synced(out, "".join(f"{line}\n" for line in lines))
    return len(bad)


def read_texts(path: Path, settings: UseCaseSettings) -> Iterator[_Row]:
    """Yield the rows of a file: of JSON lines or CSV the field `documents.text` (and `documents.id`; chats in
    any form that is delivered), else each line that is not blank.

    Raises:
        DataError: the file cannot be read.
    """
    # The file is one like those delivered, whatever format the deliveries are said to have.
    documents = settings.documents.model_copy(update={"format": "auto"})
    format_name = name_of_format(path.name)
    if format_name not in (None, "text", *_OF_RECORDS):
        raise DataError(
            f"{path}: {format_name} is not read here; give JSON lines, CSV, or text with one text a line"
        )
    try:
        if format_name in _OF_RECORDS:
            with FileReader(documents, settings.examples, all_fields=True) as reader:
                records, _ = reader.read(Delivered(path, path.name), lambda records, *_: list(records))
            rows = [_row(number, record, settings) for number, record in records]
        else:
            with Delivered(path, path.name).text() as lines:
                rows = [
                    _Row(number, line.rstrip("\r\n"))
                    for number, line in enumerate(lines, start=1)
                    if line.strip()
                ]
    except (UnicodeDecodeError, Unreadable, OSError) as error:
        why = "not UTF-8" if isinstance(error, UnicodeDecodeError) else error
        raise DataError(f"{path}: cannot be read ({why})") from error
    yield from (
        row if row.problem or not _is_empty(row.text) else _Row(row.number, problem=_EMPTY) for row in rows
    )


def _row(number: int, record: Record, settings: UseCaseSettings) -> _Row:
    if isinstance(record, str):
        return _Row(number, problem=record)
    field = _text_field(settings.documents)
    text: Any = value_of(record, field)
    document_id = value_of(record, settings.documents.id)
    if task_of(settings.examples).has_messages:
        try:
            # Each form of a question has an answer; here it is to come.
            messages = messages_of({"response": "", **record, field: text}, settings.documents.text)
            while messages and messages[-1]["role"] == "assistant":
                messages.pop()
            text = messages
        except Malformed as error:
            if not isinstance(text, str):
                return _Row(number, problem=str(error))
    elif not isinstance(text, str):
        return _Row(number, problem=f"no text in the field `{field}` (documents.text)")
    return _Row(number, text, None if document_id is None else str(document_id))


def _text_field(documents: DocumentsSettings) -> str:
    return documents.text or "text"


def _is_empty(text: str | list[Message]) -> bool:
    """Return whether nothing of a text can be seen: a zero-width space is no text either."""
    return not any(
        character.isprintable() and not character.isspace()
        for character in (text if isinstance(text, str) else text_of(text))
    )


def _predictions(
    use_case: UseCase, store: Store, texts: Sequence[str | list[Message]], max_new_tokens: int
) -> Iterator[dict[str, Any]]:
    # A reader of predictions has no use for the bars of the library that loads the weights.
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    return load_champion(store, use_case.name, use_case.settings).each(texts, max_new_tokens)
