"""Chats with tools, reasoning and weights on real chat templates: what is trained of them is what the
assistant wrote, what a template does not show is refused, and no part is hidden from searches.
"""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trl
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PretrainedConfig
from transformers.models.llama4 import processing_llama4

from fullft_assets import chunks, examples
from fullft_assets.conversations import messages_hash
from fullft_assets.documents.formats.labels import Malformed
from fullft_assets.documents.formats.rows import messages_of
from fullft_assets.settings import ExamplesSettings
from fullft_assets.tasks.language import scoring
from tests.prepared import prepare
from tests.smollm2 import write_tiny_model
from tests.test_chunks import smol as smol
from tests.test_chunks_masks import load, with_template
from tests.test_examples import sound_rows, table

#: Chat templates as the models' makers publish them (trl and transformers, Apache-2.0), read where they are
#: installed; those with `_training` are trl's, with the marks of `{% generation %}`.
TEMPLATES = {
    "llama4": processing_llama4.chat_template,
    # In the manner of SmolLM3's: another name for tools, calls as text, marked generations.
    "like smollm3": (
        "<|im_start|>system\n{% if xml_tools %}{% for tool in xml_tools %}{{ tool | string }}{% endfor %}"
        "{% endif %}<|im_end|>\n{% for message in messages %}{% if message.role == 'assistant' %}"
        "{% generation %}"
        "{{ '<|im_start|>assistant\n' + message.content + '<|im_end|>\n' }}{% endgeneration %}{% else %}"
        "{{ '<|im_start|>user\n' + message.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "chatml": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}",
    **{
        file.stem: file.read_text(encoding="utf-8")
        for file in (Path(trl.__file__).parent / "chat_templates").glob("*.jinja")
    },
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Degrees",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "description": "Where"}},
            },
        },
    },
]
CALLS = {
    "qwen": '<tool_call>\n{"name": "weather", "arguments": {"city": "%s"}}\n</tool_call><|im_end|>',
    "gptoss": ' to=functions.weather<|channel|>commentary json<|message|>{"city": "%s"}<|call|>',
    "llama4": '<|python_start|><|python_end|>{"name": "weather", "parameters": {"city": "%s"}}<|eot|>',
    "qwen3_5": "<tool_call>\n<function=weather>\n<parameter=city>\n%s\n</parameter>\n</function>"
    "\n</tool_call><|im_end|>",
    "llama3": '{"name": "weather", "parameters": {"city": "%s"}}<|eot_id|>',
}


def turn(role: str, content: str | None, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def call(city: Any) -> dict[str, Any]:
    return turn(
        "assistant",
        "",
        tool_calls=[{"type": "function", "function": {"name": "weather", "arguments": {"city": city}}}],
    )


CHAT = [
    turn("system", "Be brief."),
    turn("user", "Paris?"),
    call("Paris"),
    turn("tool", "18", name="weather"),
    turn("assistant", "18 degrees."),
    turn("user", "Rome?"),
    call("Rome"),
    turn("tool", "25", name="weather"),
    turn("assistant", "25 degrees."),
]
#: The same with reasoning, as Qwen3 and as gpt-oss call it.
REASONED = [
    message
    | {key: f"Thought {number}." for key in ("reasoning_content", "thinking") if number in (2, 4, 6, 8)}
    for number, message in enumerate(CHAT)
]


@pytest.fixture(scope="module")
def folder(smol: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = with_template(smol, tmp_path_factory.mktemp("tokenizer"), None)
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    tokenizer.add_special_tokens(
        re.findall(r"<\|\w+\|>", TEMPLATES["gptoss"] + TEMPLATES["llama4"] + TEMPLATES["llama3_1"])
    )
    tokenizer.save(str(path / "tokenizer.json"))
    return path


def using(folder: Path, template: str, **changes: Any) -> Any:
    (folder / "chat_template.jinja").write_text(TEMPLATES[template], encoding="utf-8")
    return load(folder, max_tokens=4_096, **changes)


def stored(messages: list[dict[str, Any]], tools: Any = TOOLS) -> list[dict[str, Any]]:
    return messages_of({"messages": messages, "tools": tools}, None)


def chunked(tokenization: Any, messages: list[dict[str, Any]]) -> Any:
    return chunks.chunk(
        table([{"id": "0", "text": "", "messages": stored(messages), "source": "a.jsonl", "row": 1}]),
        tokenization,
        "sft",
    )


def trained(tokenization: Any, messages: list[dict[str, Any]]) -> str:
    [[ids]], [[marks]] = (
        chunked(tokenization, messages).table[name].to_pylist() for name in ("windows", "marks")
    )
    return tokenization.tokenizer.decode(
        [id_ for id_, mark in zip(ids, marks, strict=True) if mark], skip_special_tokens=False
    )


@pytest.mark.parametrize(
    ("template", "calls", "messages", "around"),
    [
        (
            "qwen3",
            "qwen",
            REASONED,
            [
                "%s",
                "%s<|im_end|>",
                "<think>\nThought 6.\n</think>\n\n%s",
                "<think>\nThought 8.\n</think>\n\n%s<|im_end|>",
            ],
        ),
        ("qwen3", "qwen", CHAT, ["%s", "%s<|im_end|>", "%s", "<think>\n\n</think>\n\n%s<|im_end|>"]),
        ("qwen2_5", "qwen", CHAT, ["%s", "%s<|im_end|>", "%s", "%s<|im_end|>"]),
        (
            "qwen3_5_think",
            "qwen3_5",
            CHAT,
            ["%s", "%s<|im_end|>", "\n</think>\n\n%s", "\n</think>\n\n%s<|im_end|>"],
        ),
        (
            "gptoss",
            "gptoss",
            REASONED,
            [
                "%s",
                "<|channel|>final<|message|>%s<|end|>",
                "%s",
                "<|channel|>analysis<|message|>Thought 8.<|end|><|start|>assistant"
                "<|channel|>final<|message|>%s<|return|>",
            ],
        ),
        ("llama4", "llama4", CHAT, ["%s", "%s<|eot|>", "%s", "%s<|eot|>"]),
        ("llama3_1", "llama3", CHAT, ["%s", "%s<|eot_id|>", "%s", "%s<|eot_id|>"]),
    ],
)
def test_what_the_assistant_wrote_is_trained_of_what_transformers_renders(
    folder: Path, template: str, calls: str, messages: list[dict[str, Any]], around: list[str]
) -> None:
    turns = [
        form % text
        for form, text in zip(
            around, (CALLS[calls] % "Paris", "18 degrees.", CALLS[calls] % "Rome", "25 degrees."), strict=True
        )
    ]
    tokenization = using(folder, template)
    rendered = tokenization.chat.render(stored(messages))
    reference = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        messages, tools=TOOLS, tokenize=False
    )
    assert len({re.sub(r"\d{4}-\d\d-\d\d|\d\d \w{3} \d{4}", "", text) for text in (rendered, reference)}) == 1
    assert trained(tokenization, messages) == "".join(turns)
    unlearned = [*messages[:4], {**messages[4], "weight": 0}, *messages[5:]]
    assert trained(tokenization, unlearned) == "".join([turns[0], *turns[2:]])
    assert trained(using(folder, template, train_on="last_turn"), messages) == turns[-1]
    assert rendered.replace(turns[1], "", 1) == trained(
        using(folder, template, train_on="everything"), unlearned
    )


@pytest.mark.parametrize("template", ["qwen3_training", "gptoss_training", "like smollm3"])
def test_marks_are_those_of_the_template_s_generation_blocks(folder: Path, template: str) -> None:
    tokenization = using(folder, template)
    messages = (
        [*CHAT[:2], turn("assistant", "<code>weather()</code>"), turn("tool", "18"), *CHAT[4:6], CHAT[8]]
        if template == "like smollm3"
        else [*REASONED[:-1], CHAT[8]]
    )
    expected = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        messages, tools=TOOLS, xml_tools=TOOLS, return_dict=True, return_assistant_tokens_mask=True
    )
    assert chunked(tokenization, messages).table["marks"].to_pylist() == [[expected["assistant_masks"]]]
    last = trained(
        tokenization,
        [{**message, "weight": 0} if message["role"] == "assistant" else message for message in messages[:-1]]
        + messages[-1:],
    )
    assert last == trained(using(folder, template, train_on="last_turn"), messages)
    assert "weather" in trained(tokenization, messages).removesuffix(last) and "weather" not in last


@pytest.mark.parametrize(
    ("template", "messages", "hidden"),
    [
        ("like smollm3", CHAT, "a tool call"),
        ("lfm2", CHAT, "a tool call"),
        ("chatml", CHAT[:2] + CHAT[4:5], "the declared tools"),
        ("llama4", REASONED, "reasoning"),
        ("llama3_1", [*CHAT[:2], {**CHAT[2], "content": "I look."}, *CHAT[3:]], "the text of a turn"),
        (
            "gptoss",
            [*CHAT[:2], {**call("Paris"), "tool_calls": 2 * call("Rome")["tool_calls"]}],
            "a tool call",
        ),
    ],
)
def test_a_row_is_refused_if_the_template_leaves_out_a_part(
    folder: Path, template: str, messages: list[dict[str, Any]], hidden: str
) -> None:
    refused = chunked(using(folder, template), messages)
    assert (refused.table["windows"].to_pylist(), refused.unfit[0].partition(" ")[2]) == (
        [[[]]],
        f"(the chat template does not show {hidden})",
    )


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        (
            {"tools": ["weather"]},
            "the declared tools are not a list of JSON schemas of functions with a name",
        ),
        (
            {"tools": "a weather"},
            "the declared tools are not a list of JSON schemas of functions with a name",
        ),
        ({"tools": [{"name": "time"}]}, "message 3 calls a tool that is not among the declared ones"),
        (
            {"messages": [*CHAT[:2], {**call("a"), "tool_calls": [{"type": "function"}]}]},
            "turn 3 of field `messages` has a tool call without the name of a function",
        ),
        (
            {"messages": [turn("function_call", '{"name": "weather", "arguments": "now"}')]},
            "turn 1 of field `messages` has a tool call whose arguments are not a JSON object",
        ),
        *(
            ({"messages": [call(city)]}, "its tools or its tool calls are not JSON, or nested too deeply")
            for city in (float("nan"), "\ud800", json.loads("[" * 300 + "]" * 300))
        ),
        (
            {"messages": [CHAT[3], call("Rome")]},
            "message 1 is the answer of a tool that was not called before it",
        ),
        (
            {"messages": [turn("tool", "1"), turn("tool", "2", tool_call_id="x")]},
            "message 2 is the answer of a tool that was not called before it",
        ),
        (
            {"messages": [turn("assistant", "a", weight=0.5)]},
            "turn 1 of field `messages` has a weight other than 0, or 1 for the assistant",
        ),
    ],
)
def test_what_does_not_fit_is_named(record: dict[str, Any], problem: str) -> None:
    with pytest.raises(Malformed, match=f"^{problem}$"):
        messages_of({"messages": CHAT, "tools": TOOLS} | record, None)


def test_what_tells_conversations_apart_is_what_the_model_reads() -> None:
    function = {"name": "weather", "arguments": '{"city": "Paris"}'}
    hashes = [
        messages_hash(stored(messages, tools))
        for messages, tools in (
            (CHAT[:4], json.dumps(TOOLS)),
            ([*CHAT[:2], turn("assistant", None, function_call=function), CHAT[3]], [TOOLS[0]["function"]]),
            (
                [
                    *CHAT[:2],
                    {"from": "function_call", "value": json.dumps(function)},
                    {**CHAT[3], "role": "function"},
                ],
                TOOLS,
            ),
            ([*CHAT[:2], {**CHAT[2], "weight": 0}, CHAT[3]], TOOLS),
            ([*CHAT[:2], call("Rome"), CHAT[3]], TOOLS),
            ([*CHAT[:3], turn("tool", "19", name="weather")], TOOLS),
            (CHAT[:4], None),
            (REASONED[:4], TOOLS),
        )
    ]
    assert len(set(hashes[:4])) == 1 and len(set(hashes[3:])) == 5


@pytest.mark.parametrize("pii", ["mask", "quarantine"])
def test_personal_data_in_every_part_is_found_and_masked(pii: Any) -> None:
    mail = "jo@example.org"
    messages = [
        turn("user", f"Am I {mail}?"),
        turn(
            "assistant",
            "",
            thinking=f"Ask {mail}.",
            function_call={
                "name": "find",
                "arguments": {mail: [True, None, {"line": f"a\n{mail}"}], "card": 4111111111111111},
            },
        ),
        turn("tool", f'{{"mail": "{mail}"}}'),
        turn("assistant", "Yes."),
    ]
    conversations = [
        stored(messages, [{"name": "find", "description": f"By {mail}"}]),
        stored([messages[0]], None),
    ]
    rows = sound_rows(*({"messages": conversation, "label": None} for conversation in conversations))
    found = examples.examine(table(rows), ExamplesSettings(task="sft", pii=pii), "b")
    assert [reasons[0] for reasons in found.quarantined["reasons"].to_pylist()] == (
        ["personal data"] * 2 if pii == "quarantine" else ["no or empty assistant turn, or unknown role"]
    )
    for row in found.valid.to_pylist():
        assert [message["content"] for message in row["messages"]] == [
            "Am I [EMAIL]?",
            "",
            '{"mail": "[EMAIL]"}',
            "Yes.",
        ]
        declared, called = (json.loads(message["extras"]) for message in row["messages"][:2])
        assert (
            declared["tools"][0]["function"]["description"],
            called["reasoning"],
            called["tool_calls"][0]["function"]["arguments"],
        ) == (
            "By [EMAIL]",
            "Ask [EMAIL].",
            {"[EMAIL]": [True, None, {"line": "a\n[EMAIL]"}], "card": "[CARD]"},
        )
        assert "example.org" not in row["text"] and "Ask [EMAIL]." in row["text"]


def test_what_a_model_is_compared_with_has_its_reasoning_and_calls(folder: Path) -> None:
    tokenization = using(folder, "qwen3")
    written = [scoring._written(tokenization, stored(REASONED[:end])) for end in (3, 5)]
    assert [scoring._answer(tokenization, ids) for ids in written] == [
        f"<think>\nThought 2.\n</think>\n\n{CALLS['qwen'] % 'Paris'}".removesuffix("<|im_end|>"),
        "<think>\nThought 4.\n</think>\n\n18 degrees.",
    ]


def test_an_answer_of_gpt_oss_is_what_follows_its_reasoning(folder: Path) -> None:
    tokenization = using(folder, "gptoss")
    ids = scoring._written(tokenization, stored([CHAT[1], REASONED[8] | {"content": "25 degrees."}], None))
    text = tokenization.tokenizer.decode(ids, skip_special_tokens=False)
    assert text.startswith("<|channel|>analysis<|message|>Thought 8.<|end|>")
    model = SimpleNamespace(config=PretrainedConfig(eos_token_id=None), generation_config=None)
    writer = scoring.Writer(cast(Any, model), tokenization, 9)
    assert scoring._answer(tokenization, writer._until_end([*ids, *ids])) == "25 degrees."


def test_the_data_report_shows_a_tool_chat_with_its_trained_tokens(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text(TEMPLATES["qwen3"], encoding="utf-8")
    rows = [
        *({"messages": [turn("user", f"{n}?"), turn("assistant", f"It is {n}.")]} for n in range(60)),
        *({"messages": [turn("user", f"Town {n}?"), call(f"Town {n}")], "tools": TOOLS} for n in range(9)),
    ]
    prepared = prepare(
        tmp_path,
        base_model="model",
        delivered=[row | {"expression": f"g{number}"} for number, row in enumerate(rows)],
        examples={"task": "sft", "label": None, "labels": None},
        chunks={"max_tokens": 512, "stride": 4},
    )
    page = (prepared.store.folder(prepared.snapshot) / "report.md").read_text(encoding="utf-8")
    _, shown = page.split("what is trained: **the tokens in ⟦ ⟧**")[1].split("reads it:")
    assert re.search(
        r'assistant⟦<think></think><tool_call>\{"name":"weather",.*\}</tool_call><\|im_end\|>⟧',
        re.sub(r"[\sĠĊ]", "", shown),
    )
