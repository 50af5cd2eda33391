"""Chat: a model's own template turns a conversation into text, and marks the characters that the assistant
wrote: its reasoning, its tool calls, its answer and the end of its turn.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from fullft_assets.base_model import ModelFolder
from fullft_assets.conversations import Message
from fullft_assets.errors import DataError, SettingsError

TrainOn = Literal["assistant", "last_turn", "everything"]
Span = tuple[int, int]
#: For a model without a template of its own, if its tokenizer has the two tokens: ChatML, one turn after the
#: other.
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] +"
    " '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")
#: What a template that writes the date sees (Llama 3's own fallback): equal data must give equal tokens on
#: any day.
TODAY = datetime(2024, 7, 26)
_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_GENERATION = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
#: What templates call the reasoning of a turn (Qwen3, gpt-oss, LFM2.5).
_REASONING = ("reasoning_content", "thinking", "reasoning")
#: Around a part of a message, to see where the template puts it; the numbers of message and part follow.
_MARK = "0the0part0stands0here0"
_MARKS = re.compile(_MARK + "[0-9a-z]{6}[0-9]{6}")
#: Parts of a message by their numbers; each call has one.
_PARTS = ("the text of a turn", "reasoning", "a tool call")
#: A conversation as text, and characters (start, end exclusive) of it that an assistant wrote.
Rendered = tuple[str, list[tuple[int, int]]]


@dataclass(frozen=True)
class ChatTemplate:
    """A model's chat template, rendered in jinja2's sandbox with the variables of transformers'
    `apply_chat_template`.

    `variables` are the special tokens by name (`bos_token` ...); a turn may end with one of the tokens
    `ends`.
    """

    source: str
    variables: Mapping[str, str]
    ends: tuple[str, ...]

    @classmethod
    def load(cls, model_folder: ModelFolder, special: Collection[str]) -> ChatTemplate:
        """Read a model folder's template: `chat_template.jinja`, else that of `tokenizer_config.json`, else
        ChatML.

        Args:
            model_folder: a transformers folder.
            special: the tokenizer's special tokens.

        Raises:
            SettingsError: there is no template and the tokenizer lacks ChatML's tokens, or the template is
                broken.
        """
        if (source := read_template(model_folder)) is None:
            if not set(CHATML_TOKENS) <= set(special):
                raise SettingsError(
                    f"base_model: {model_folder} has no chat template, which conversations need; take the"
                    " model's instruct variant, or put a chat_template.jinja into its folder"
                )
            source = CHATML
        template = cls(source, read_special_tokens(model_folder), tuple(sorted(special)))
        assert template._compiled is not None
        return template

    @cached_property
    def inner(self) -> frozenset[str]:
        """Special tokens that a turn has before its end, such as gpt-oss's between reasoning and answer."""
        messages = [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b", "extras": '{"reasoning": "c"}'},
        ]
        before = self.render(messages[:1], add_generation_prompt=True)
        text = self.render(messages)
        turn = text.removeprefix(before).rstrip() if text.startswith(before) else ""
        end = max((token for token in self.ends if turn.endswith(token)), key=len, default="")
        return frozenset(token for token in self.ends if token in turn.removesuffix(end))

    @cached_property
    def _compiled(self) -> Any:
        return _compile(self.source)

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        """Return the text of a conversation.

        Raises:
            DataError: the template refuses the conversation (roles that do not alternate, say).
        """
        return self._render(_read(messages), add_generation_prompt)[0]

    def _render(self, conversation: _Conversation, add_generation_prompt: bool = False) -> Rendered:
        from fullft_assets.chunks import bounded_template

        blocks: list[str] = []
        spans: list[Span] = []
        self._compiled.environment.tracked = (blocks, spans)
        variables = {
            "messages": conversation.messages,
            "add_generation_prompt": add_generation_prompt,
            "tools": conversation.tools,
            "xml_tools": conversation.tools,  # what SmolLM3 calls them
            "documents": None,
        }
        try:
            # Block by block: the place of what the assistant wrote is the length of what was rendered before
            # it.
            bounded_template.render(self._compiled, blocks, {**variables, **self.variables})
        except Exception as error:  # a template is code of others, and may fail in every way
            # It may also quote what it refuses: only a message that it has word for word is shown.
            why = (
                " ".join(str(error).split())
                if (str(error) and str(error) in self.source) or isinstance(error, bounded_template.Exceeded)
                else type(error).__name__
            )
            raise DataError(f"the chat template refuses the conversation: {why}") from None
        return "".join(blocks), spans

    def render_trained(self, messages: Sequence[Message], train_on: TrainOn) -> Rendered:
        """Render a conversation and find its trained characters; a turn of weight 0 has none.

        What the assistant wrote is what the template puts between `{% generation %}` marks, if it has them.
        Else it is what turn k adds to the conversation before it with the prompt to answer, end-of-turn token
        included; white space behind that token is not the assistant's.

        Raises:
            DataError: the template refuses the conversation, or leaves out a part of it.
        """
        conversation = _read(messages)
        text, blocks = rendering = self._render(conversation)
        self._require_shown(conversation)
        turns = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
        turns = turns[-1:] if train_on == "last_turn" else turns
        learned_turns = [number for number in turns if messages[number].get("weight") != 0]
        if train_on == "everything":
            gaps = [
                span
                for number in turns
                if number not in learned_turns
                for span in self._spans(conversation, number, rendering)
            ]
            return text, [
                (end, start)
                for (_, end), (start, _) in zip([(0, 0), *gaps], [*gaps, (len(text), 0)], strict=True)
            ]
        return (
            rendering
            if train_on == "assistant" and learned_turns == turns and _GENERATION.search(self.source)
            else (
                text,
                [span for number in learned_turns for span in self._spans(conversation, number, rendering)],
            )
        )

    def _require_shown(self, conversation: _Conversation) -> None:
        """Refuse a conversation of which the template leaves out a tool, or a part of a message that it does
        not even show where the conversation ends with it (Qwen3 drops the reasoning of earlier turns).
        """
        if not conversation.tools and all(len(message) == 2 for message in conversation.messages):
            return
        marked_conversation = conversation.marked(range(len(conversation.messages)))
        shown_marks = set(_MARKS.findall(self._render(marked_conversation)[0]))
        if not shown_marks.issuperset(_MARKS.findall(json.dumps(marked_conversation.tools))):
            raise DataError("the chat template does not show the declared tools")
        for number, message in enumerate(marked_conversation.messages):
            marks = (
                _MARKS.findall(json.dumps(message)) if len(message) > 2 or message["role"] == "tool" else ()
            )
            if (hidden := set(marks) - shown_marks) and (
                hidden := hidden.difference(_MARKS.findall(self._render(marked_conversation.upto(number))[0]))
            ):
                raise DataError(
                    f"the chat template does not show {_PARTS[min(int(min(hidden)[-6:]) // 2, 2)]}"
                )

    def _spans(self, conversation: _Conversation, number: int, rendering: Rendered) -> list[Span]:
        text, blocks = rendering
        if not _GENERATION.search(self.source):
            return [self._turn(conversation, number, text)]
        marked_text, marked_blocks = self._render(conversation.marked([number]))
        if len(marked_blocks) != len(blocks):
            raise DataError("the chat template rewrites the conversation depending on its content")
        return [
            block
            for block, (start, end) in zip(blocks, marked_blocks, strict=True)
            if _mark(number, "") in marked_text[start:end]
        ]

    def _turn(self, conversation: _Conversation, number: int, text: str) -> Span:
        if number:
            before = self._render(conversation.upto(number - 1), True)[0]
            upto = (
                text
                if number + 1 == len(conversation.messages)
                else self._render(conversation.upto(number))[0]
            )
            if len(before) <= len(upto) and text.startswith(before) and text.startswith(upto):
                return len(before), len(before) + self._length(upto[len(before) :])
        return self._rewritten_turn(conversation, number, text)

    def _length(self, turn: str) -> int:
        # The white space behind the token that ends a turn is not the assistant's.
        text = turn.rstrip()
        return len(text if text.endswith(self.ends) else turn)

    def _rewritten_turn(self, conversation: _Conversation, number: int, text: str) -> Span:
        """Find a turn in a template that rewrites earlier turns (drops their reasoning, say): from the prompt
        to answer before the turn's first part to the end of the turn behind its last part.
        """
        marked_conversation = conversation.marked([number])
        before, after = (
            _MARKS.sub("", part) for part in _around(self._render(marked_conversation)[0], number)
        )
        if not (text.startswith(before) and text.endswith(after) and len(before) + len(after) <= len(text)):
            raise DataError(
                "the chat template rewrites the conversation depending on its content; mark the answers with"
                " {% generation %} in it"
            )
        start = len(before)
        pair = self._render(conversation.marked([number - 1, number]))[0]
        if _mark(number - 1, "") in pair:
            earlier = conversation.upto(number - 1)
            prompt = self._render(earlier, True)[0].partition(self._render(earlier)[0] or "\0")[2]
            between = _around(_around(pair, number - 1)[1], number)[0]
            # A prompt may also open the reasoning, which this turn does not have: as much of it, up to a line
            # or a special token, as the turn has.
            header = max(
                (
                    prompt[:end]
                    for end in range(len(prompt) + 1)
                    if end in (0, len(prompt)) or prompt[:end].endswith(("\n", *self.ends))
                    if prompt[:end] in between
                ),
                key=len,
            )
            start -= len(between) - between.rindex(header) - len(header)
        end = len(text) - len(after)
        ending = _around(self._render(marked_conversation.upto(number))[0], number)[1]
        return (
            (start, end + self._length(ending))
            if after.startswith(ending)
            else (start, end + max((len(token) for token in self.ends if after.startswith(token)), default=0))
        )


@dataclass(frozen=True)
class _Conversation:
    # As a template reads it.
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None

    def upto(self, number: int) -> _Conversation:
        return _Conversation(self.messages[: number + 1], self.tools)

    def marked(self, numbers: Collection[int]) -> _Conversation:
        messages = [
            _marked(message, number) if number in numbers else message
            for number, message in enumerate(self.messages)
        ]
        return _Conversation(messages, self.tools and _named(self.tools, "tools"))


def _read(messages: Sequence[Message]) -> _Conversation:
    # As transformers' `apply_chat_template` gives it to a template.
    tools = None
    plain_messages = []
    for message in messages:
        extras = json.loads(message.get("extras") or "{}")
        tools = extras.pop("tools", tools)
        thoughts = dict.fromkeys(_REASONING, extras.pop("reasoning")) if "reasoning" in extras else {}
        plain_messages.append({"role": message["role"], "content": message["content"], **thoughts, **extras})
    return _Conversation(plain_messages, tools)


def _marked(message: Mapping[str, Any], number: int) -> dict[str, Any]:
    marked_message = dict(message)
    for key in ("content", *_REASONING):
        if message.get(key):
            begin, end = (_mark(number, part) for part in ((0, 1) if key == "content" else (2, 3)))
            marked_message[key] = f"{begin}{message[key]}{end}"
    if "tool_calls" in message:
        marked_message["tool_calls"] = _named(message["tool_calls"], number)
    return marked_message


def _named(functions: list[dict[str, Any]], number: int | str) -> list[dict[str, Any]]:
    return [
        {**entry, "function": {**entry["function"], "name": _mark(number, part) + entry["function"]["name"]}}
        for part, entry in enumerate(functions, start=4)
    ]


def _mark(number: int | str, part: int | str) -> str:
    return f"{_MARK}{number:0>6}{part:0>6}" if part != "" else f"{_MARK}{number:0>6}"


def _around(text: str, number: int) -> tuple[str, str]:
    """Return what is before the parts of a marked message, and what is behind them. A name may be repeated
    there: gpt-oss writes it before the tool's answer.
    """
    first_places = [
        text.index(mark) for mark in set(_MARKS.findall(text)) if mark.startswith(_mark(number, ""))
    ]
    return (
        (text, text)
        if not first_places
        else (text[: min(first_places)], text[max(first_places) + len(_mark(number, 0)) :])
    )


def _compile(source: str) -> Any:
    import jinja2
    import jinja2.ext
    import jinja2.nodes
    import jinja2.parser

    from fullft_assets.chunks import bounded_template

    class Generation(jinja2.ext.Extension):
        """The template block `{% generation %}`, which encloses what the assistant wrote."""

        tags = {"generation"}

        def __init__(self, environment: jinja2.Environment):
            super().__init__(environment)
            environment.extend(tracked=([], []))

        def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.CallBlock(self.call_method("_written"), [], [], body).set_lineno(line)

        def _written(self, caller: Callable[[], str]) -> str:
            text = caller()
            blocks, ranges = vars(self.environment)["tracked"]
            begin = sum(map(len, blocks))
            ranges.append((begin, begin + len(text)))
            return text

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    def to_json(
        value: Any,
        ensure_ascii: bool = False,
        indent: Any = None,
        separators: Any = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(
            value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )

    environment = bounded_template.BoundedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = bounded_template.bounded(to_json)
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda pattern: TODAY.strftime(pattern)
    try:
        return environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise SettingsError(
            f"base_model: its chat template is broken in line {error.lineno}: {error.message}"
        ) from error
    except (
        Exception
    ) as error:  # Python's compiler refuses what is nested too deep, or numbers of thousands of digits
        raise SettingsError(
            f"base_model: its chat template cannot be compiled ({type(error).__name__})"
        ) from error


def read_template(model_folder: ModelFolder) -> str | None:
    """Return the source of a model folder's chat template, or None."""
    if (file := model_folder / "chat_template.jinja").is_file():
        return file.read_text(encoding="utf-8")
    templates = _read_json(model_folder / "tokenizer_config.json").get("chat_template")
    return (
        next((entry["template"] for entry in templates if entry["name"] == "default"), None)
        if isinstance(templates, list)
        else templates
    )


def read_special_tokens(model_folder: ModelFolder) -> dict[str, str]:
    """Return the special tokens that a model folder names: `bos_token` and so on."""
    entries = {
        **_read_json(model_folder / "special_tokens_map.json"),
        **_read_json(model_folder / "tokenizer_config.json"),
    }
    tokens = {}
    for name in _SPECIAL_TOKENS:
        token = token.get("content") if isinstance((token := entries.get(name)), Mapping) else token
        if token:
            tokens[name] = token
    return tokens


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"{path}: not JSON ({error})") from error
    if not isinstance(content, dict):
        raise SettingsError(f"{path}: no JSON object")
    return content
