"""Conversations as they are stored: messages of `role` and `content`, perhaps with `extras` and a `weight`.

`extras` is what else the model reads of a message, as the JSON text of an object: `reasoning`, `tool_calls`,
`name` and `tool_call_id`; of the first message also `tools`, which the conversation may call. An assistant's
turn of weight 0 is read but not learned.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from fullft_assets.store.hashing import text_hash

Message = Mapping[str, Any]
#: Keys of a declaration or a call that are no words of its author.
_KEYS = frozenset(
    (
        *("tools", "tool_calls", "tool_call_id", "id", "type", "function", "name", "description"),
        *("parameters", "properties", "required", "items", "enum", "arguments", "reasoning"),
    )
)
_MAX_DEPTH = 100


def with_texts(
    messages: Iterable[Message], change: Callable[[str, str], str], *, has_tools: bool = True
) -> list[dict[str, Any]]:
    """Return messages with each of their texts changed.

    Args:
        messages: of one conversation.
        change: gets what is before a text in `text_of`, and the text: a content, a key or a value of the
            extras.
        has_tools: change the declared tools too, after all messages.

    Raises:
        RecursionError: the extras are nested too deeply.
    """
    changed_messages: list[dict[str, Any]] = []
    tools = None
    for message in messages:
        content = change("\n\n", message["content"] or "")
        extras = json.loads(message.get("extras") or "{}")
        tools = extras.pop("tools", tools)
        extras = _changed(extras, "\n", change)
        changed_messages.append({**message, "content": message["content"] and content, "extras": extras})
    if tools:
        changed_messages[0]["extras"]["tools"] = _changed(tools, "\n", change) if has_tools else tools
    return [{**message, "extras": encoded(message["extras"])} for message in changed_messages]


def _changed(value: Any, before: str, change: Callable[[str, str], str], depth: int = 0) -> Any:
    if depth > _MAX_DEPTH:
        raise RecursionError
    if isinstance(value, dict):
        return {
            key if key in _KEYS else change("\n", key): _changed(
                item, "\n" if key in _KEYS else ": ", change, depth + 1
            )
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [_changed(item, before, change, depth + 1) for item in value]
    is_text = not isinstance(value, bool | None)
    return text if is_text and (text := change(before, str(value))) != str(value) else value


def encoded(extras: Mapping[str, Any]) -> str | None:
    """Return the extras of a message as they are stored; None where it has none."""
    return json.dumps(extras, ensure_ascii=False, allow_nan=False) if extras else None


def text_of(messages: Iterable[Message], *, has_tools: bool = False) -> str:
    """Return a conversation as text: the content of each message and what else is in it, for readers,
    searches and comparisons.

    Args:
        messages: of one conversation.
        has_tools: with the declared tools. They are the same in many conversations, which would be
            near-duplicates by them.
    """
    texts: list[str] = []
    with_texts(messages, lambda *parts: texts.append("".join(parts)) or parts[1], has_tools=has_tools)
    return "".join(texts).removeprefix("\n\n")


def messages_hash(messages: Iterable[Message]) -> str:
    """Return the hash of a conversation, whichever of its turns are learned."""
    turns = [
        (message["role"], message["content"], *filter(None, [message.get("extras")])) for message in messages
    ]
    return text_hash(json.dumps(turns, ensure_ascii=False, separators=(",", ":")))
