"""Chat: a model's own template turns a conversation into text, and marks the characters that the assistant
wrote.
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
from fullft_assets.errors import DataError, SettingsError

TrainOn = Literal["assistant", "last_turn", "everything"]
Message = Mapping[str, str]
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
#: Placeholder of an answer, to see what the template puts around one.
_PLACEHOLDER = "0the0answer0stands0here0"


@dataclass(frozen=True)
class Rendered:
    """A conversation as text, and the characters (start, end exclusive) that are trained."""

    text: str
    trained: list[Span]


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
        source = read_template(model_folder)
        if source is None:
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
    def _compiled(self) -> Any:
        return _compile(self.source)

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        """Return the text of a conversation.

        Raises:
            DataError: the template refuses the conversation (roles that do not alternate, say).
        """
        return self._render(messages, add_generation_prompt)[0]

    def _render(
        self, messages: Sequence[Message], add_generation_prompt: bool = False
    ) -> tuple[str, list[Span]]:
        from fullft_assets.chunks import bounded_template

        blocks: list[str] = []
        spans: list[Span] = []
        self._compiled.environment.tracked = (blocks, spans)
        variables = {
            "messages": messages,
            "add_generation_prompt": add_generation_prompt,
            "tools": None,
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
        """Render a conversation and find the characters that are trained.

        What the assistant wrote is what the template puts between `{% generation %}` marks, if it has them.
        Else it is what turn k adds to the conversation before it with the prompt to answer, end-of-turn token
        included; white space behind that token is not the assistant's.

        Raises:
            DataError: the template refuses the conversation.
        """
        text, spans = self._render(messages)
        if train_on == "everything":
            return Rendered(text, [(0, len(text))])
        if not _GENERATION.search(self.source):
            turns = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
            spans = [
                self._turn(messages, number, text)
                for number in (turns[-1:] if train_on == "last_turn" else turns)
            ]
        return Rendered(text, spans[-1:] if train_on == "last_turn" else spans)

    def _turn(self, messages: Sequence[Message], number: int, text: str) -> Span:
        if number:
            before = self.render(messages[:number], add_generation_prompt=True)
            upto = text if number == len(messages) - 1 else self.render(messages[: number + 1])
            if len(before) <= len(upto) and text.startswith(before) and text.startswith(upto):
                turn = text[len(before) : len(upto)]
                stripped = turn.rstrip()
                return len(before), len(before) + len(stripped if stripped.endswith(self.ends) else turn)
        return self._answer(messages, number, text)

    def _answer(self, messages: Sequence[Message], number: int, text: str) -> Span:
        """Find a turn in a template that rewrites earlier turns (drops their reasoning, say): its content and
        its end.
        """
        messages_with_placeholder = [
            *messages[:number],
            {**messages[number], "content": _PLACEHOLDER},
            *messages[number + 1 :],
        ]
        before, placeholder, after = self.render(messages_with_placeholder).partition(_PLACEHOLDER)
        if not placeholder or not (
            text.startswith(before) and text.endswith(after) and len(before) + len(after) <= len(text)
        ):
            raise DataError(
                "the chat template rewrites the conversation depending on its content; mark the answers with"
                " {% generation %} in it"
            )
        end = len(text) - len(after)
        return len(before), end + max(
            (len(token) for token in self.ends if after.startswith(token)), default=0
        )


def _compile(source: str) -> Any:
    import jinja2
    import jinja2.ext
    import jinja2.nodes
    import jinja2.parser

    from fullft_assets.chunks import bounded_template

    class Generation(jinja2.ext.Extension):
        """`{% generation %}`: what the assistant wrote."""

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
            blocks, written = vars(self.environment)["tracked"]
            begin = sum(map(len, blocks))
            written.append((begin, begin + len(text)))
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
    file = model_folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    templates = _read_json(model_folder / "tokenizer_config.json").get("chat_template")
    if isinstance(templates, list):
        return next((entry["template"] for entry in templates if entry["name"] == "default"), None)
    return templates


def read_special_tokens(model_folder: ModelFolder) -> dict[str, str]:
    """Return the special tokens that a model folder names: `bos_token` and so on."""
    entries = {
        **_read_json(model_folder / "special_tokens_map.json"),
        **_read_json(model_folder / "tokenizer_config.json"),
    }
    tokens = {}
    for name in _SPECIAL_TOKENS:
        token = entries.get(name)
        token = token.get("content") if isinstance(token, Mapping) else token
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
