"""The label of a record, as the task needs it: one name, a sorted list of names, or spans.

Where several annotators answered, the majority's answer is taken and each single one is kept. Groups are in
one spelling, and the offsets of spans are compared with the text that each span was exported with.
"""

import ast
import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from functools import lru_cache
from typing import Any


@lru_cache(maxsize=1 << 16)
def group_key(name: str) -> str:
    """Return the one spelling of a group's name: without surrounding space, case or the leading zeros of a
    number.

    `P-7 `, `p-7` and `P-7` are one group, so are `00012`, `12.0` and 12. Two groups taken for one only share
    a side of the split; one taken for two would be on both sides.
    """
    folded = " ".join(unicodedata.normalize("NFKC", name).casefold().split())
    # A whole number as a table or a form writes it: with leading zeros, or with the point that a column with
    # gaps gets.
    return number[1] if (number := re.fullmatch(r"0*([0-9]+?)(?:\.0+)?", folded)) else folded


def is_missing(word: str, words: Collection[str]) -> bool:
    """Return whether a trimmed word means that there is no value: it is empty, or is among `words` (in lower
    case).
    """
    return not word or word.casefold() in words


Span = dict[str, Any]
Target = str | list[str] | list[Span]
_STARTS = ("start", "startOffset", "start_offset")
#: A list of texts as Python, or numpy with spaces between them, writes it into a CSV file.
_QUOTED = r"""(?:'(?:[^'\\]|\\.)*+'|"(?:[^"\\]|\\.)*+")"""
_WRITTEN_LIST = re.compile(rf"\[\s*+(?:{_QUOTED}\s*+,?\s*+)*+\]", re.DOTALL)


class Malformed(ValueError):
    """A value does not have the shape that the task needs; the message names the field and contains nothing
    of the value.
    """


@dataclass(frozen=True)
class Answer:
    """One annotator's answer for a row: the value as exported, and its time."""

    annotator: str | None
    value: Any
    time: str | None = None


def target_of(
    value: Any,
    field: str,
    column: str,
    missing: Collection[str] = (),
    text: str | None = None,
    separator: str | None = None,
) -> Target | None:
    """Return a value as the label, the labels or the spans of a row, or None where there is none.

    Args:
        value: as it was delivered.
        field: its name, for a message.
        column: `label`, `labels` or `spans`.
        missing: words, in lower case, that mean that there is none.
        text: the row's text: what spans are compared with.
        separator: what separates several labels in one text; None: a text is one label.

    Raises:
        Malformed: it has another shape.
    """
    if (
        value is None
        or (isinstance(value, float) and math.isnan(value))
        or (isinstance(value, str) and is_missing(value.strip(), missing))
    ):
        return None
    if column == "label":
        return name_of(value, field).strip()
    return (
        _names_of(value, field, missing, separator) if column == "labels" else _spans_of(value, field, text)
    )


def name_of(value: Any, field: str) -> str:
    """Return a name, number, date or truth value as text, which is the same text in every format.

    A truth value is `true` or `false`, and an integer has no point: a table with gaps makes 1.0 of a 1, and
    CSV has only text.

    Raises:
        Malformed: it is anything else.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return str(value).lower()
    # Beyond that a float does not distinguish integers.
    if isinstance(value, float | Decimal) and abs(value) <= 2**53 and value == int(value):
        return str(int(value))
    if isinstance(value, date):  # a datetime is one too
        return value.isoformat()
    if isinstance(value, int | Decimal) or (isinstance(value, float) and math.isfinite(value)):
        return str(value)
    raise Malformed(f"field `{field}` is {_shape(value)} where a name or a number is expected")


def _shape(value: Any) -> str:
    kinds = ((list, "a list"), (dict, "an object"), (bytes, "bytes"), (float, "not finite"))
    return next((name for kind, name in kinds if isinstance(value, kind)), f"of type {type(value).__name__}")


def _names_of(value: Any, field: str, missing: Collection[str], separator: str | None) -> list[str]:
    if isinstance((value := _parsed_list(value)), str):
        if _WRITTEN_LIST.fullmatch(value):
            value = [_unquoted(literal) for literal in re.findall(_QUOTED, value, re.DOTALL)]
        elif separator is not None:
            value = value.split(separator)
    if not isinstance(value, list):
        return [name_of(value, field).strip()]
    names = {name_of(name, field).strip() for name in value if name is not None}
    return sorted(name for name in names if not is_missing(name, missing))


def _unquoted(literal: str) -> str:
    try:
        return str(ast.literal_eval(literal))
    except (ValueError, SyntaxError):  # an escape that Python does not know, or a line end
        return literal[1:-1]


def parsed(text: Any) -> Any:
    """Return the value of a text that is JSON, else what is given itself."""
    try:
        return json.loads(text)
    except (TypeError, ValueError, RecursionError):
        return text


def _parsed_list(value: Any) -> Any:
    # A list in a CSV file is JSON in a field.
    return parsed(value) if isinstance(value, str) and value.startswith("[") else value


def _spans_of(value: Any, field: str, text: str | None) -> list[Span]:
    if not isinstance((value := _parsed_list(value)), list):
        raise Malformed(f"field `{field}` is {_shape(value)} where a list of spans is expected")
    spans: list[Span] = []
    quotes: list[tuple[int, str | None]] = []
    for number, exported_span in enumerate(value, start=1):
        spans_by_label = _spans_by_label(exported_span, f"span {number} of field `{field}`")
        quote = exported_span.get("text") if isinstance(exported_span, dict) else None
        spans += spans_by_label
        quotes += [(number, quote if isinstance(quote, str) else None)] * len(spans_by_label)
    if text is not None:
        spans = _in_characters(spans, quotes, text, field)
    return sorted(spans, key=lambda span: (span["start"], span["end"], span["label"]))


def _in_characters(
    spans: list[Span], quotes: list[tuple[int, str | None]], text: str, field: str
) -> list[Span]:
    """Return spans with offsets in characters, by the numbers of the exported spans and their texts.

    JavaScript counts UTF-16 code units, two for an emoji. Where the offsets of a row fit its quoted texts
    only in that reading, all of its offsets are converted.
    """
    if (number := _first_wrong(spans, quotes, text)) is None:
        return spans
    units = text.encode("utf-16-le", "surrogatepass")
    converted_spans = [
        span
        | {name: len(units[: 2 * span[name]].decode("utf-16-le", "replace")) for name in ("start", "end")}
        for span in spans
    ]
    if text.isascii() or _first_wrong(converted_spans, quotes, text) is not None:
        raise Malformed(
            f"span {number} of field `{field}` was exported with another text than the one at its offsets"
        )
    return converted_spans


def _first_wrong(spans: list[Span], quotes: list[tuple[int, str | None]], text: str) -> int | None:
    # Spaces are compared as one.
    return next(
        (
            number
            for span, (number, quote) in zip(spans, quotes, strict=True)
            if quote is not None and text[span["start"] : span["end"]].split() != quote.split()
        ),
        None,
    )


def _spans_by_label(value: Any, subject: str) -> list[Span]:
    if isinstance(value, dict):
        start, end = (
            next((value[name] for name in names if name in value), None)
            for names in (_STARTS, ("end", "endOffset", "end_offset"))
        )
        labels = value.get("label", value.get("labels"))
    elif isinstance(value, list | tuple) and len(value) == 3:
        start, end, labels = value
    else:
        raise Malformed(f"{subject} is neither an object nor [start, end, label]")
    for name, offset in (("start", start), ("end", end)):
        if type(offset) is not int or not -(2**31) <= offset < 2**31:
            raise Malformed(f"{subject} has no whole number as its {name}")
    labels = labels if isinstance(labels, list) else [labels]
    names = [label.strip() for label in labels if isinstance(label, str)]
    if not names or len(names) < len(labels) or not all(names):
        raise Malformed(f"{subject} has no label")
    return [{"start": start, "end": end, "label": name} for name in names]


def add_answers(
    row: dict[str, Any], answers: list[Answer], field: str, column: str, missing: Collection[str] = ()
) -> None:
    """Put the annotators' answers into a row: the only answer, or each answer and the majority's.

    The confidence of a row with several annotators is the mean Jaccard similarity of their answers to
    the one adopted: for a single label, the share of the votes.

    Raises:
        Malformed: an answer has another shape than the task needs, or no label has the most votes.
    """
    # Who answered again meant the last answer.
    latest = {
        answer.annotator if answer.annotator is not None else at: answer for at, answer in enumerate(answers)
    }
    targets = (
        (answer, target_of(answer.value, field, column, missing, row.get("text")))
        for answer in latest.values()
    )
    if not (answers_with_targets := [(answer, target) for answer, target in targets if target is not None]):
        return
    row["human_annotated"] = True
    if times := [answer.time for answer, _ in answers_with_targets if answer.time]:
        row["time"] = max(times)
    if len(answers_with_targets) == 1:
        answer, row[column] = answers_with_targets[0]
        if answer.annotator is not None:
            row["annotator"] = answer.annotator
        return
    row["annotations"] = [
        {
            "annotator": answer.annotator or f"annotator {number}",
            "label": target if isinstance(target, str) else json.dumps(target, ensure_ascii=False),
        }
        for number, (answer, target) in enumerate(answers_with_targets, start=1)
    ]
    answers_parts = [_parts(target) for _, target in answers_with_targets]
    adopted = _majority(answers_parts, field, column)
    # The mean Jaccard similarity of an answer and the adopted one.
    row["confidence"] = sum(
        len(parts & adopted) / len(parts | adopted) if parts or adopted else 1.0 for parts in answers_parts
    ) / len(answers_parts)
    if column == "label":
        [row["label"]] = adopted
    else:
        row[column] = (
            sorted(adopted)
            if column == "labels"
            else [{"start": s, "end": e, "label": label} for s, e, label in sorted(adopted)]
        )


def _parts(target: Target) -> frozenset[Any]:
    return (
        frozenset([target])
        if isinstance(target, str)
        else frozenset(
            part if isinstance(part, str) else (part["start"], part["end"], part["label"]) for part in target
        )
    )


def _majority(answers: list[frozenset[Any]], field: str, column: str) -> frozenset[Any]:
    votes = Counter(part for parts in answers for part in parts)
    if column != "label":
        return frozenset(part for part, count in votes.items() if count > len(answers) / 2)
    first, *other_votes = votes.most_common(2)
    if other_votes and other_votes[0][1] == first[1]:
        raise Malformed(f"the annotators of field `{field}` disagree: no label has the most votes")
    return frozenset([first[0]])
