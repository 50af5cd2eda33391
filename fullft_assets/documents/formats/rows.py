"""Records -> rows of `documents.parquet`: which field goes into which column, and what is wrong with a row.

Chat and instruction data become messages of the roles system, user, assistant and tool. Forms: `messages`
(OpenAI), `conversations` with from and value (ShareGPT), instruction with output or response and perhaps
input (Alpaca) or context (Dolly), prompt with completion or response, question with answer or response, as
texts or as lists of messages. What a turn has beside its text (reasoning, tool calls, the name of a tool that
answers) becomes its `extras`, see `conversations`.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Self

from fullft_assets.conversations import encoded, text_of
from fullft_assets.documents.formats import labels
from fullft_assets.documents.formats.delivered import Record
from fullft_assets.documents.formats.labels import Malformed, group_key, is_missing
from fullft_assets.settings import DocumentsSettings, ExamplesSettings
from fullft_assets.task import task_of

Message = dict[str, Any]
#: The role by the name that it has somewhere.
_ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "model", "bing", "bard", "claude"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation", "function_response", "tool_response"), "tool"),
}
_LISTS = ("messages", "conversations", "conversation")
_QUESTIONS = ("instruction", "prompt", "question")
_ANSWERS = {
    "instruction": ("output", "response"),
    "prompt": ("completion", "response"),
    "question": ("answer", "response"),
}
#: What an instruction or a question is about; it follows it.
_SUBJECTS = ("input", "context")
_TOOLS = ("tools", "functions")
#: Also roles, in formats that write a call as a turn.
_CALLS = ("tool_calls", "tool_call", "function_call")
_REASONING = ("reasoning_content", "reasoning", "thinking")
_WEIGHTS = ("weight", "train", "training", "trainable", "loss", "train_detail")
#: Every field that may be read of a record.
_ANSWER_FIELDS = dict.fromkeys(name for names in _ANSWERS.values() for name in names)
FIELDS = (*_LISTS, *_QUESTIONS, *_SUBJECTS, *_ANSWER_FIELDS, *_TOOLS, "system", "history")


def messages_of(record: dict[str, Any], field: str | None) -> list[Message]:
    """Return the messages of a record.

    Args:
        record: in any of the forms.
        field: the field with the list of messages. Default: whichever form the record has.

    Raises:
        Malformed: it has none of the forms, a turn is not a text, or its tools, calls and answers do not fit.
    """
    messages = _messages(record, field)
    tools = _tools(record)
    _require_answered(messages, {tool["function"]["name"] for tool in tools})
    if tools:
        messages[0].setdefault("extras", {})["tools"] = tools
    try:
        messages = [
            message | {key: encoded(message[key]) for key in message if key == "extras"}
            for message in messages
        ]
        # Half of a surrogate pair has no encoding.
        text_of(messages, has_tools=True).encode()
    except (TypeError, ValueError, RecursionError):
        raise Malformed("its tools or its tool calls are not JSON, or nested too deeply") from None
    return messages


def _messages(record: dict[str, Any], field: str | None) -> list[Message]:
    lists = [field] if field is not None else [name for name in _LISTS if record.get(name) is not None]
    if lists:
        if lists[0] not in record:
            raise Malformed(f"no field `{lists[0]}`")
        if not (messages := _turns(record[lists[0]], lists[0])):
            raise Malformed(f"field `{lists[0]}` has no message")
        return _with_system(record, messages)
    if (question := next((name for name in _QUESTIONS if record.get(name) is not None), None)) is None:
        raise Malformed("no field `messages`, `conversations`, `instruction`, `prompt` or `question`")
    answer = next((name for name in _ANSWERS[question] if record.get(name) is not None), None)
    if answer is None:
        raise Malformed(f"no field {' or '.join(f'`{name}`' for name in _ANSWERS[question])}")
    turns = _turns(record[question], question, "user")
    for name in _SUBJECTS if question != "prompt" else ():
        # A list of passages, as retrieval exports have it, is no part of the question.
        if record.get(name) not in (None, "") and not (
            name == "context" and isinstance(record.get(name), list)
        ):
            turns[-1]["content"] += f"\n\n{_turn_text(record[name], f'field `{name}`')}"
    return _with_system(record, [*_history(record), *turns, *_turns(record[answer], answer, "assistant")])


def _with_system(record: dict[str, Any], messages: list[Message]) -> list[Message]:
    system = record.get("system")
    return (
        messages
        if system in (None, "") or messages[0]["role"] == "system"
        else [{"role": "system", "content": _turn_text(system, "field `system`")}, *messages]
    )


def _history(record: dict[str, Any]) -> list[Message]:
    history = record.get("history") or []
    if not isinstance(history, list) or not all(
        isinstance(pair, list | tuple) and len(pair) == 2 for pair in history
    ):
        raise Malformed("field `history` is not a list of [question, answer]")
    turns = []
    for number, (question, answer) in enumerate(history, start=1):
        subject = f"turn {number} of field `history`"
        turns += [
            {"role": "user", "content": _turn_text(question, subject)},
            {"role": "assistant", "content": _turn_text(answer, subject)},
        ]
    return turns


def _turns(value: Any, field: str, role: str | None = None) -> list[Message]:
    if role is not None and isinstance(value, str):
        return [{"role": role, "content": value}]
    if not isinstance(value, list):
        raise Malformed(f"field `{field}` is not a list of messages")
    return [_turn(turn, f"turn {number} of field `{field}`") for number, turn in enumerate(value, start=1)]


def _turn(turn: Any, subject: str) -> Message:
    if not isinstance(turn, dict):
        raise Malformed(f"{subject} is not an object")
    if (name := turn.get("role", turn.get("from"))) in _CALLS:
        turn = {"content": None, "tool_calls": turn.get("content", turn.get("value"))}
        name = "assistant"
    role = _ROLES.get(name.lower()) if isinstance(name, str) else None
    if role is None:
        raise Malformed(f"{subject} has no known role")
    content = turn["content"] if "content" in turn else turn.get("value")
    if content is None and role != "assistant":
        raise Malformed(f"{subject} has no content")
    message: Message = {"role": role, "content": "" if content is None else _turn_text(content, subject)}
    extras = {
        "reasoning": _turn_text(_first(turn, _REASONING) or "", subject),
        "tool_calls": _calls(_first(turn, _CALLS) or [], subject),
        **{key: str(turn.get(key) or "") for key in ("name", "tool_call_id") if role == "tool"},
    }
    if extras := {key: value for key, value in extras.items() if value}:
        message["extras"] = extras
    if (weight := _first(turn, _WEIGHTS)) not in (None, 0, 1) or (weight and role != "assistant"):
        raise Malformed(f"{subject} has a weight other than 0, or 1 for the assistant")
    return message if weight is None else {**message, "weight": int(weight)}


def _first(fields: dict[str, Any], names: Iterable[str]) -> Any:
    # A weight of 0 is not empty.
    return next((fields[name] for name in names if fields.get(name) not in (None, "", "[]", [], {})), None)


def _tools(record: dict[str, Any]) -> list[dict[str, Any]]:
    tools = labels.parsed(_first(record, _TOOLS) or [])
    if not isinstance(tools, list) or None in map(_function, tools):
        raise Malformed("the declared tools are not a list of JSON schemas of functions with a name")
    # The form without `function` around it is an older one.
    return [tool if "function" in tool else {"type": "function", "function": tool} for tool in tools]


def _function(value: Any) -> dict[str, Any] | None:
    function = value.get("function", value) if isinstance(value, dict) else None
    return function if isinstance(function, dict) and isinstance(function.get("name"), str) else None


def _calls(value: Any, subject: str) -> list[dict[str, Any]]:
    calls = []
    for call in value if isinstance(value := labels.parsed(value), list) else [value]:
        if (function := _function(call)) is None:
            raise Malformed(f"{subject} has a tool call without the name of a function")
        arguments = labels.parsed(function.get("arguments", function.get("parameters"))) or {}
        if not isinstance(arguments, dict):
            raise Malformed(f"{subject} has a tool call whose arguments are not a JSON object")
        id_ = {} if call.get("id") is None else {"id": str(call["id"])}
        calls.append(
            {**id_, "type": "function", "function": {"name": function["name"], "arguments": arguments}}
        )
    return calls


def _require_answered(messages: list[Message], tools: set[str]) -> None:
    # A conversation may also write its calls as text.
    calls_of = [message.get("extras", {}).get("tool_calls", []) for message in messages]
    for number, (message, calls) in enumerate(zip(messages, calls_of, strict=True)):
        if tools and any(call["function"]["name"] not in tools for call in calls):
            raise Malformed(f"message {number + 1} calls a tool that is not among the declared ones")
        id_ = message.get("extras", {}).get("tool_call_id")
        is_answer = any(not id_ or call.get("id", id_) == id_ for call in chain(*calls_of[:number]))
        if message["role"] == "tool" and not is_answer and (id_ or any(calls_of)):
            raise Malformed(f"message {number + 1} is the answer of a tool that was not called before it")


def _turn_text(content: Any, subject: str) -> str:
    if isinstance(content, list) and all(
        isinstance(part, dict) and part.get("type") == "text" for part in content
    ):
        content = "".join(part["text"] if isinstance(part.get("text"), str) else "" for part in content)
    if not isinstance(content, str):
        raise Malformed(f"{subject} is not text")
    return content


#: A row's columns that are not null; `problem` says what is malformed.
Row = dict[str, Any]
#: Columns whose equal values tie rows together, so that they must be equal however they were written.
_SHARED = ("group", "domain", "slice_by")
#: Field of a record, and key of its row, that is counted for a check and in no column.
PAGES_WITHOUT_TEXT = "num_pages_without_text"
_TRUTHS = {
    True: True,
    False: False,
    "yes": True,
    "no": False,
    "true": True,
    "false": False,
    "1": True,
    "0": False,
}


@dataclass(frozen=True)
class RowSettings:
    """Which fields of a record make its row, and what the task needs of them."""

    text: str | None
    label: str | None
    #: (column, field) of what is a plain name.
    names: tuple[tuple[str, str], ...]
    has_messages: bool = False
    target: str = "label"
    #: Words, in lower case, that mean that a row has no label, group or domain.
    missing: frozenset[str] = frozenset()
    #: What separates several labels in one text.
    separator: str | None = None

    @classmethod
    def of(cls, documents: DocumentsSettings, examples: ExamplesSettings) -> Self:
        """Return the fields that the settings name, with the needs of their task."""
        task = task_of(examples)
        names = [
            ("id", documents.id),
            ("group", examples.group),
            ("domain", examples.domain),
            ("slice_by", examples.slice_by),
        ]
        names += [("annotator", documents.annotator), ("time", "time")]
        return cls(
            text=documents.text,
            label=examples.label,
            names=tuple((column, field) for column, field in names if field is not None),
            has_messages=task.has_messages,
            target=task.target or "label",
            missing=frozenset(word.strip().casefold() for word in documents.missing_values),
            separator=examples.label_separator,
        )

    @property
    def fields(self) -> set[str]:
        """Every field that may be read of a plain record; of a path also each part of it, as a field of a
        table may be named.
        """
        fields = {
            self.text or "text",
            *(field for _, field in self.names),
            "confidence",
            "human_annotated",
            "human-annotated",
        }
        fields |= {self.label} if self.label else set()
        fields |= {field[:at] for field in fields for at, character in enumerate(field) if character == "."}
        return fields | set(FIELDS) if self.has_messages else fields


_MISSING = object()


def _look_up(record: Any, field: str) -> Any:
    if not isinstance(record, dict):
        return _MISSING
    if field in record:
        return record[field]
    for at, character in enumerate(field):
        if (
            character == "."
            and field[:at] in record
            and (value := _look_up(record[field[:at]], field[at + 1 :])) is not _MISSING
        ):
            return value
    return _MISSING


def value_of(record: dict[str, Any], field: str) -> Any:
    """Return the value of a field, which may be a path such as `payload.body`; None where there is none."""
    return None if (value := _look_up(record, field)) is _MISSING else value


def has_field(record: dict[str, Any], field: str) -> bool:
    """Return whether a record has a field, which may be a path."""
    return _look_up(record, field) is not _MISSING


def rows(
    records: Iterable[tuple[int, Record]], make_row: Callable[[dict[str, Any]], Row]
) -> Iterator[tuple[int, Row]]:
    """Yield (row number, row) of each record."""
    yield from (
        (number, {"problem": record} if isinstance(record, str) else make_row(record))
        for number, record in records
    )


def row_of(record: dict[str, Any], settings: RowSettings) -> Row:
    """Return the row of a record whose fields are plain."""
    row = content_of(record, settings, settings.text or "text")
    add_names(row, record, settings)
    if settings.label is not None:
        add_target(row, value_of(record, settings.label), settings)
    if PAGES_WITHOUT_TEXT in record:
        row[PAGES_WITHOUT_TEXT] = record[PAGES_WITHOUT_TEXT]
    add_annotation(
        row, record.get("confidence"), record.get("human_annotated", record.get("human-annotated"))
    )
    return row


def row_with_answers(
    fields: dict[str, Any], settings: RowSettings, answers: Callable[[], list[labels.Answer]]
) -> Row:
    """Return the row of a record of an annotation tool: its plain fields, and the label that its annotators
    gave.
    """
    row = row_of(fields, replace(settings, label=None))
    if settings.label is not None:
        try:
            labels.add_answers(row, answers(), settings.label, settings.target, settings.missing)
        except Malformed as error:
            add_problem(row, str(error))
    return row


def content_of(record: dict[str, Any], settings: RowSettings, field: str) -> Row:
    """Return a row with the text (of a conversation, the messages) of a record."""
    if settings.has_messages:
        try:
            messages = messages_of(_with_path(record, settings.text), settings.text)
        except Malformed as error:
            return {"problem": str(error)}
        return {"messages": messages, "text": text_of(messages)}
    if isinstance((text := value_of(record, field)), str):
        return {"text": text}
    return (
        {"problem": f"field `{field}` is not text"}
        if text is not None
        else {}
        if has_field(record, field)
        else {"problem": f"no field `{field}`"}
    )


def _with_path(record: dict[str, Any], field: str | None) -> dict[str, Any]:
    return (
        record
        if field is None or field in record or not has_field(record, field)
        else {**record, field: value_of(record, field)}
    )


def add_names(row: Row, record: dict[str, Any], settings: RowSettings) -> None:
    """Put id, group, domain, slice_by, annotator and time into a row."""
    for column, field in settings.names:
        value = value_of(record, field)
        if value is None or value != value:  # a table with gaps has NaN for None
            continue
        try:
            name = value if type(value) is str else labels.name_of(value, field)
        except Malformed as error:
            add_problem(row, str(error))
            continue
        if column in _SHARED:
            name = "" if is_missing(stripped := name.strip(), settings.missing) else stripped
        if name:
            row[column] = group_key(name) if column == "group" else name


def add_target(row: Row, value: Any, settings: RowSettings) -> None:
    """Put the label, the labels or the spans into a row."""
    try:
        target = labels.target_of(
            value,
            settings.label or "",
            settings.target,
            settings.missing,
            row.get("text"),
            settings.separator,
        )
    except Malformed as error:
        add_problem(row, str(error))
        return
    if target is not None:
        row[settings.target] = target


def add_annotation(row: Row, confidence: Any, human: Any) -> None:
    """Put the confidence, and whether a human annotated, into a row."""
    if confidence is not None and confidence != "":
        try:
            value = float(confidence)  # CSV has nothing but text
        except (TypeError, ValueError, OverflowError):
            value = math.inf
        if math.isfinite(value):
            row["confidence"] = value
        elif not math.isnan(value) or isinstance(confidence, str):
            add_problem(row, "confidence is not a number")
    if human is not None and human != "":
        truth = (
            _TRUTHS.get(human.lower() if isinstance(human, str) else human)
            if isinstance(human, str | bool | int)
            else None
        )
        if truth is None:
            add_problem(row, "human_annotated is neither yes nor no")
        else:
            row["human_annotated"] = truth


def add_problem(row: Row, problem: str) -> None:
    """Add a problem to the problems of a row."""
    row["problem"] = f"{row['problem']}; {problem}" if "problem" in row else problem
