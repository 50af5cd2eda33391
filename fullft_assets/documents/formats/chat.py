"""Chat and instruction data -> messages of the roles system, user, assistant and tool.

Forms: `messages` (OpenAI), `conversations` with from and value (ShareGPT), instruction with output or
    response and perhaps
input (Alpaca) or context (Dolly), prompt with completion or response, question with answer or response, as
texts or as lists of messages.
"""

from __future__ import annotations

from typing import Any

from fullft_assets.documents.formats.labels import Malformed

Message = dict[str, str]
#: The role by the name that it has somewhere.
_ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(
        ("assistant", "gpt", "chatgpt", "bot", "model", "bing", "bard", "claude", "function_call"),
        "assistant",
    ),
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
#: What cannot be trained yet. Without it another conversation would be trained: an empty answer instead of a
#: tool call.
_TOOLS = ("tools", "functions")
_UNTRAINED = {
    **dict.fromkeys(("tool_calls", "function_call"), "a tool call"),
    **dict.fromkeys(("reasoning_content", "reasoning", "thinking"), "reasoning apart from the content"),
    **dict.fromkeys(
        ("weight", "train", "training", "trainable", "train_detail", "loss"), "a weight of its own"
    ),
}
#: Every field that may be read of a record.
_ANSWER_FIELDS = dict.fromkeys(name for names in _ANSWERS.values() for name in names)
FIELDS = (*_LISTS, *_QUESTIONS, *_SUBJECTS, *_ANSWER_FIELDS, *_TOOLS, "system", "history")


def messages_of(record: dict[str, Any], field: str | None) -> list[Message]:
    """Return the messages of a record.

    Args:
        record: in any of the forms.
        field: the field with the list of messages. Default: whichever form the record has.

    Raises:
        Malformed: it has none of the forms, a turn is not a text, or it has what cannot be trained yet.
    """
    tools = next((name for name in _TOOLS if not _is_empty(record.get(name))), None)
    if tools is not None:
        raise Malformed(f"field `{tools}`: chats with tools cannot be trained yet")
    lists = [field] if field is not None else [name for name in _LISTS if record.get(name) is not None]
    if lists:
        if lists[0] not in record:
            raise Malformed(f"no field `{lists[0]}`")
        messages = _turns(record[lists[0]], lists[0])
        if not messages:
            raise Malformed(f"field `{lists[0]}` has no message")
        return _with_system(record, messages)
    question = next((name for name in _QUESTIONS if record.get(name) is not None), None)
    if question is None:
        raise Malformed("no field `messages`, `conversations`, `instruction`, `prompt` or `question`")
    answer = next((name for name in _ANSWERS[question] if record.get(name) is not None), None)
    if answer is None:
        raise Malformed(f"no field {' or '.join(f'`{name}`' for name in _ANSWERS[question])}")
    asked = _turns(record[question], question, "user")
    for name in _SUBJECTS if question != "prompt" else ():
        # A list of passages, as retrieval exports have it, is no part of the question.
        is_list = name == "context" and isinstance(record.get(name), list)
        if record.get(name) not in (None, "") and not is_list:
            asked[-1]["content"] += f"\n\n{_text(record[name], f'field `{name}`')}"
    return _with_system(record, [*_history(record), *asked, *_turns(record[answer], answer, "assistant")])


def _with_system(record: dict[str, Any], messages: list[Message]) -> list[Message]:
    system = record.get("system")
    if system in (None, "") or messages[0]["role"] == "system":
        return messages
    return [{"role": "system", "content": _text(system, "field `system`")}, *messages]


def _history(record: dict[str, Any]) -> list[Message]:
    history = record.get("history") or []
    if not isinstance(history, list) or not all(
        isinstance(pair, list | tuple) and len(pair) == 2 for pair in history
    ):
        raise Malformed("field `history` is not a list of [question, answer]")
    turns = []
    for number, (asked, answered) in enumerate(history, start=1):
        place = f"turn {number} of field `history`"
        turns += [
            {"role": "user", "content": _text(asked, place)},
            {"role": "assistant", "content": _text(answered, place)},
        ]
    return turns


def _turns(value: Any, field: str, role: str | None = None) -> list[Message]:
    """Return a list of turns, or a text as the one turn of `role`."""
    if role is not None and isinstance(value, str):
        return [{"role": role, "content": value}]
    if not isinstance(value, list):
        raise Malformed(f"field `{field}` is not a list of messages")
    return [_turn(turn, f"turn {number} of field `{field}`") for number, turn in enumerate(value, start=1)]


def _turn(turn: Any, place: str) -> Message:
    if not isinstance(turn, dict):
        raise Malformed(f"{place} is not an object")
    name = turn.get("role", turn.get("from"))
    role = _ROLES.get(name.lower()) if isinstance(name, str) else None
    if role is None:
        raise Malformed(f"{place} has no known role")
    untrained = next((name for name in _UNTRAINED if not _is_empty(turn.get(name))), None)
    if untrained is not None:
        raise Malformed(f"{place} has {_UNTRAINED[untrained]} (`{untrained}`), which cannot be trained yet")
    content = turn["content"] if "content" in turn else turn.get("value")
    return {"role": role, "content": "" if content is None else _text(content, place)}


def _is_empty(value: Any) -> bool:
    return value is None or value in ("", "[]", [], {})  # a weight of 0 is not empty


def _text(content: Any, place: str) -> str:
    if isinstance(content, list) and all(
        isinstance(part, dict) and part.get("type") == "text" for part in content
    ):
        content = "".join(part["text"] if isinstance(part.get("text"), str) else "" for part in content)
    if not isinstance(content, str):
        raise Malformed(f"{place} is not text")
    return content
