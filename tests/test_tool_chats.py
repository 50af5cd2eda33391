"""Chats with tools, reasoning and weights on real chat templates: what is trained of them is what the assistant
wrote, what a template does not show is refused, and no part is hidden from searches.
"""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
import trl
from tokenizers import Tokenizer
from transformers import AutoTokenizer
from transformers.models.llama4 import processing_llama4

from fullft_assets import chunks, examples
from fullft_assets.chunks import Tokenization
from fullft_assets.conversations import messages_hash
from fullft_assets.documents.formats.labels import Malformed
from fullft_assets.documents.formats.rows import messages_of
from fullft_assets.documents.reading import schema
from fullft_assets.settings import ChunksSettings, ExamplesSettings
from fullft_assets.tasks.language.scoring import _Scorer
from tests.prepared import take
from tests.project import create
from tests.smollm2 import write_tiny_model
from tests.test_chunks import smol as smol
from tests.test_examples import sound_rows, table

pytestmark = pytest.mark.quick

#: Chat templates as the models' makers publish them (trl and transformers, Apache-2.0), read where they are
#: installed; those with `_training` are trl's, with the marks of `{% generation %}`.
FOLDER = Path(trl.__file__).parent / "chat_templates"
NAMES = ("qwen3", "gptoss", "llama3_1", "qwen2_5", "qwen3_training", "gptoss_training", "lfm2")
TEMPLATES = {name: (FOLDER / f"{name}.jinja").read_text(encoding="utf-8") for name in NAMES}
TEMPLATES["llama4"] = processing_llama4.chat_template
#: In the manner of SmolLM3's: tools have another name, calls are written as text, generations are marked.
TEMPLATES["like smollm3"] = (
    "<|im_start|>system\n{% if xml_tools %}{% for tool in xml_tools %}{{ tool | string }}{% endfor %}{% endif %}"
    "<|im_end|>\n{% for message in messages %}{% if message.role == 'assistant' %}{% generation %}"
    "{{ '<|im_start|>assistant\n' + message.content + '<|im_end|>\n' }}{% endgeneration %}{% else %}"
    "{{ '<|im_start|>user\n' + message.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = [
    "<|start|>",
    "<|end|>",
    "<|message|>",
    "<|channel|>",
    "<|call|>",
    "<|return|>",
    "<|eot|>",
    "<|header_start|>",
    "<|header_end|>",
    "<|python_start|>",
    "<|python_end|>",
    "<|eot_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
]
PLACE = {"type": "object", "properties": {"city": {"type": "string", "description": "Where"}}}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "description": "Degrees", "parameters": PLACE}},
]


def call(city: str) -> dict[str, Any]:
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": {"city": city}}}],
    }


def answer(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


CHAT = [
    answer("system", "Be brief."),
    answer("user", "Paris?"),
    call("Paris"),
    answer("tool", "18", name="weather"),
    answer("assistant", "18 degrees."),
    answer("user", "Rome?"),
    call("Rome"),
    answer("tool", "25", name="weather"),
    answer("assistant", "25 degrees."),
]
#: The same with reasoning, as Qwen3 and as gpt-oss call it.
THOUGHTS = {2: "I ask.", 4: "It is 18.", 6: "Again.", 8: "It is 25."}
REASONED = [
    {**turn, **dict.fromkeys(("reasoning_content", "thinking"), THOUGHTS[number])}
    if number in THOUGHTS
    else turn
    for number, turn in enumerate(CHAT)
]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "%s"}}\n</tool_call><|im_end|>'
TO = ' to=functions.weather<|channel|>commentary json<|message|>{"city": "%s"}<|call|>'
LLAMA4 = '<|python_start|><|python_end|>{"name": "weather", "parameters": {"city": "%s"}}<|eot|>'
LLAMA3 = '{"name": "weather", "parameters": {"city": "%s"}}<|eot_id|>'
END = "<|im_end|>"


@pytest.fixture(scope="module")
def folder(smol: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    (path / "tokenizer_config.json").write_bytes((smol / "tokenizer_config.json").read_bytes())
    tokenizer = Tokenizer.from_file(str(smol / "tokenizer.json"))
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.save(str(path / "tokenizer.json"))
    return path


def load(folder: Path, template: str, **changes: Any) -> Tokenization:
    (folder / "chat_template.jinja").write_text(TEMPLATES[template], encoding="utf-8")
    return Tokenization.load(folder, ChunksSettings(max_tokens=4_096, **changes), "sft")


def rows_of(*records: dict[str, Any]) -> pa.Table:
    rows = [
        {"id": str(row), "text": "", "messages": messages_of(record, None), "source": "a.jsonl", "row": row}
        for row, record in enumerate(records)
    ]
    return pa.Table.from_pylist(rows, schema=schema())


def trained(tokenization: Tokenization, record: dict[str, Any]) -> str:
    [[ids]], [[marks]] = (
        chunks.chunk(rows_of(record), tokenization, "sft").table[name].to_pylist()
        for name in ("windows", "marks")
    )
    learned = [id_ for id_, mark in zip(ids, marks, strict=True) if mark]
    return tokenization.tokenizer.decode(learned, skip_special_tokens=False)


@pytest.mark.parametrize(
    ("template", "messages", "turns"),
    [
        (
            "qwen3",
            REASONED,
            [
                CALL % "Paris",
                "18 degrees." + END,
                "<think>\nAgain.\n</think>\n\n" + CALL % "Rome",
                "<think>\nIt is 25.\n</think>\n\n25 degrees." + END,
            ],
        ),
        (
            "qwen3",
            CHAT,
            [
                CALL % "Paris",
                "18 degrees." + END,
                CALL % "Rome",
                "<think>\n\n</think>\n\n25 degrees." + END,
            ],
        ),
        ("qwen2_5", CHAT, [CALL % "Paris", "18 degrees." + END, CALL % "Rome", "25 degrees." + END]),
        (
            "gptoss",
            REASONED,
            [
                TO % "Paris",
                "<|channel|>final<|message|>18 degrees.<|end|>",
                TO % "Rome",
                "<|channel|>analysis<|message|>It is 25.<|end|><|start|>assistant<|channel|>final<|message|>25"
                " degrees.<|return|>",
            ],
        ),
        ("llama4", CHAT, [LLAMA4 % "Paris", "18 degrees.<|eot|>", LLAMA4 % "Rome", "25 degrees.<|eot|>"]),
        (
            "llama3_1",
            CHAT,
            [LLAMA3 % "Paris", "18 degrees.<|eot_id|>", LLAMA3 % "Rome", "25 degrees.<|eot_id|>"],
        ),
    ],
)
def test_what_the_assistant_wrote_is_trained_of_what_transformers_renders(
    folder: Path, template: str, messages: list[dict[str, Any]], turns: list[str]
) -> None:
    tokenization = load(folder, template)
    record = {"messages": messages, "tools": TOOLS}
    reference = AutoTokenizer.from_pretrained(folder)
    rendered = [
        tokenization.chat.render(messages_of(record, None)),
        reference.apply_chat_template(messages, tools=TOOLS, tokenize=False),
    ]
    assert len({re.sub(r"\d{4}-\d\d-\d\d|\d\d \w{3} \d{4}", "today", text) for text in rendered}) == 1
    assert trained(tokenization, record) == "".join(turns)
    assert trained(load(folder, template, train_on="last_turn"), record) == turns[-1]
    unlearned = [{**turn, "weight": 0} if number == 4 else turn for number, turn in enumerate(messages)]
    without = {**record, "messages": unlearned}
    assert trained(tokenization, without) == "".join([turns[0], *turns[2:]])
    whole = trained(load(folder, template, train_on="everything"), without)
    assert whole.replace(turns[1], "") == whole == rendered[0].replace(turns[1], "", 1)


@pytest.mark.parametrize("template", ["qwen3_training", "gptoss_training"])
def test_marks_are_those_of_the_template_s_generation_blocks(folder: Path, template: str) -> None:
    tokenization = load(folder, template)
    record = {"messages": REASONED, "tools": TOOLS}
    options = {"return_dict": True, "return_assistant_tokens_mask": True}
    expected = AutoTokenizer.from_pretrained(folder).apply_chat_template(REASONED, tools=TOOLS, **options)
    [[marks]] = chunks.chunk(rows_of(record), tokenization, "sft").table["marks"].to_pylist()
    assert marks == expected["assistant_masks"] and sum(marks) > 40
    zero = [{**turn, "weight": 0} if number != 8 else turn for number, turn in enumerate(REASONED)]
    zero = [turn if turn["role"] == "assistant" else REASONED[number] for number, turn in enumerate(zero)]
    last = trained(load(folder, template, train_on="last_turn"), record)
    assert trained(tokenization, {**record, "messages": zero}) == last
    assert "It is 25." in last and "25 degrees." in last and "Rome" not in last


def test_a_template_like_smollm3_s_trains_calls_that_are_written_as_text(folder: Path) -> None:
    tokenization = load(folder, "like smollm3")
    turns = [answer("user", "Paris?"), answer("assistant", "<code>weather()</code>"), answer("tool", "18")]
    turns.append(answer("assistant", "18 degrees.", weight=1))
    text = trained(tokenization, {"messages": turns, "tools": TOOLS})
    assert text.split("<|im_start|>assistant\n")[1:] == [f"{turns[at]['content']}{END}\n" for at in (1, 3)]
    assert "'name': 'weather'" in tokenization.chat.render(
        messages_of({"messages": turns, "tools": TOOLS}, None)
    )


@pytest.mark.parametrize(
    ("template", "messages", "hidden"),
    [
        ("like smollm3", CHAT, "a tool call"),
        ("lfm2", CHAT, "a tool call"),
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
    found = chunks.chunk(rows_of({"messages": messages, "tools": TOOLS}), load(folder, template), "sft")
    assert len(found.unfit) == 1 and found.unfit[0].endswith(f" (the chat template does not show {hidden})")
    assert found.table["windows"].to_pylist() == [[[]]]


def test_chatml_shows_no_tools(smol: Path) -> None:
    tokenization = Tokenization.load(smol, ChunksSettings(max_tokens=64), "sft")
    found = chunks.chunk(rows_of({"messages": CHAT[:2] + CHAT[4:5], "tools": TOOLS}), tokenization, "sft")
    assert found.unfit[0].endswith(" (the chat template does not show the declared tools)")


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
            {"messages": [{"role": "function_call", "content": '{"name": "weather", "arguments": "now"}'}]},
            "turn 1 of field `messages` has a tool call whose arguments are not a JSON object",
        ),
        (
            {"messages": [call("a"), answer("tool", "18", tool_call_id="c1"), CHAT[3], call(float("nan"))]},
            "message 4 has tools or a tool call that are not JSON, or nested too deeply",
        ),
        (
            {"messages": [call("\ud800")]},
            "message 1 has tools or a tool call that are not JSON, or nested too deeply",
        ),
        (
            {"messages": [CHAT[3], call("Rome")]},
            "message 1 is the answer of a tool that was not called before it",
        ),
        (
            {"messages": [answer("user", "Hm?", thinking="Hm.")]},
            "turn 1 of field `messages` has a tool call or reasoning and is not the assistant's",
        ),
        (
            {"messages": [answer("assistant", "a", weight=0.5)]},
            "turn 1 of field `messages` has a weight other than 0, or 1 for the assistant",
        ),
    ],
)
def test_what_does_not_fit_is_named(record: dict[str, Any], problem: str) -> None:
    with pytest.raises(Malformed) as caught:
        messages_of({"messages": CHAT, "tools": TOOLS} | record, None)
    assert str(caught.value) == problem


def test_forms_of_tools_calls_and_arguments_are_one() -> None:
    function = {"name": "weather", "arguments": '{"city": "Paris"}'}
    forms = [
        {"messages": CHAT[:4], "tools": json.dumps(TOOLS)},
        {
            "messages": [*CHAT[:2], answer("assistant", None, function_call=function), CHAT[3]],
            "functions": [TOOLS[0]["function"]],
        },
        {
            "conversations": [
                *CHAT[:2],
                {"from": "function_call", "value": json.dumps(function)},
                {"role": "function", "content": "18", "name": "weather"},
            ],
            "tools": TOOLS,
        },
    ]
    assert len({messages_hash(messages_of(form, None)) for form in forms}) == 1


MAIL = "jo@example.org"
PERSONAL = {
    "messages": [
        answer("user", "Who?"),
        answer("assistant", "", thinking=f"Ask {MAIL}.", function_call={"name": "find", "arguments": {}}),
        answer("tool", f'{{"mail": "{MAIL}"}}'),
        answer("assistant", "Found."),
    ],
    "tools": [{"name": "find", "description": f"By {MAIL}"}],
}
PERSONAL["messages"][1]["function_call"]["arguments"] = {
    MAIL: [True, None, {"line": f"a\n{MAIL}"}],
    "card": 4111111111111111,
}


def test_personal_data_in_every_part_is_found_and_masked() -> None:
    messages = messages_of(PERSONAL, None)
    row = {"messages": messages, "text": "Who?", "label": None}
    settings = ExamplesSettings(task="sft", pii="mask")
    [found] = examples.examine(table(sound_rows(row)), settings, "b").valid.to_pylist()
    everything = json.dumps([found["text"], found["messages"]])
    assert "example.org" not in everything and "4111" not in everything
    extras = json.loads(found["messages"][1]["extras"])
    arguments = {"[EMAIL]": [True, None, {"line": "a\n[EMAIL]"}], "card": "[CARD]"}
    assert extras["tool_calls"][0]["function"] == {"name": "find", "arguments": arguments}
    assert json.loads(found["messages"][0]["extras"])["tools"][0]["function"]["description"] == "By [EMAIL]"
    quarantined = examples.examine(
        table(sound_rows(row)), settings.model_copy(update={"pii": "quarantine"}), "b"
    )
    assert quarantined.quarantined["reasons"].to_pylist() == ["personal data"]


def test_arguments_answers_and_tools_tell_conversations_apart_and_weights_do_not() -> None:
    other = json.loads(json.dumps(CHAT))
    other[6]["tool_calls"][0]["function"]["arguments"]["city"] = "Bonn"
    weighted = [{**turn, "weight": 0} for turn in CHAT]
    answered = [*CHAT[:7], {**CHAT[7], "content": "26"}, CHAT[8]]
    hashes = [
        messages_hash(messages_of({"messages": messages, "tools": tools}, None))
        for messages, tools in (
            (CHAT, TOOLS), (weighted, TOOLS), (other, TOOLS), (answered, TOOLS), (CHAT, None), (REASONED, TOOLS),
        )
    ]  # fmt: skip
    assert hashes[0] == hashes[1] and len(set(hashes)) == 5
    rows = [{"messages": messages_of({"messages": m}, None), "label": None} for m in (CHAT, CHAT[:-1])]
    rows += [
        {"messages": messages_of({"messages": [answer("assistant", "", thinking="a")]}, None), "label": None}
    ]
    found = examples.examine(table(sound_rows(*rows)), ExamplesSettings(task="sft"), "b")
    assert found.quarantined["reasons"].to_pylist() == ["no or empty assistant turn, or unknown role"]


def test_what_a_model_is_compared_with_has_its_reasoning_and_calls(folder: Path) -> None:
    scorer = SimpleNamespace(base_tokenization=load(folder, "qwen3"))
    written = [
        _Scorer._written(scorer, messages_of({"messages": REASONED[:at], "tools": TOOLS}, None))
        for at in (3, 5)
    ]  # pyright: ignore[reportArgumentType]
    think = "<think>\n{}\n</think>\n\n{}"
    assert written[0] == think.format("I ask.", CALL % "Paris").removesuffix(END)
    assert written[1] == think.format("It is 18.", "18 degrees.")


def test_the_data_report_shows_a_tool_chat_with_its_trained_tokens(tmp_path: Path, folder: Path) -> None:
    write_tiny_model(tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text(TEMPLATES["qwen3"], encoding="utf-8")
    project = create(
        tmp_path,
        base_model="model",
        examples={"task": "sft", "label": None, "labels": None},
        chunks={"max_tokens": 512, "max_chunks": None, "stride": 4},
    )
    rows = [
        {
            "expression": f"g{row}",
            "messages": [answer("user", f"{row}?"), answer("assistant", f"It is {row}.")],
        }
        for row in range(60)
    ]
    rows += [
        {
            "expression": f"t{row}",
            "messages": [answer("user", f"Town {row}?"), call(f"Town {row}")],
            "tools": TOOLS,
        }
        for row in range(9)
    ]
    project.deliver("delivery-1.jsonl", rows)
    prepared = take(project)
    report = (prepared.store.folder(prepared.snapshot) / "report.md").read_text(encoding="utf-8")
    assert "what is trained: **the tokens in ⟦ ⟧**" in report
    shown = report.split("as the model reads it:")[1].replace("Ġ", " ").replace("Ċ", "\n")
    [learned] = re.findall("⟦(.*?)⟧", shown.replace(" ", ""), re.DOTALL)
    assert re.fullmatch(
        r'<think></think><tool_call>\{"name":"weather",.*\}</tool_call><\|im_end\|>',
        learned.replace("\n", ""),
    )
    assert "<|im_start|>assistant⟦" in re.sub(r"\s", "", shown)
