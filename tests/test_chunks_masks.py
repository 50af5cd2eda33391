"""Masks: what is trained of a conversation and which tokens a labelled span has, against slow references and
transformers.
"""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings as hypothesis_settings, strategies as st

from fullft_assets import chunks
from fullft_assets.documents.names import alias
from fullft_assets.errors import DataError, SettingsError
from fullft_assets.settings import ChunksSettings
from tests import project as projects
from tests.test_chunks import MODEL as MINILM, smol as smol

ALTERNATING = (
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{"
    " raise_exception('roles must alternate') }}{% endif %}{{ '<|im_start|>' + message['content'] +"
    " '<|im_end|>' }}{% endfor %}"
)


@pytest.fixture(scope="module")
def reference(smol: Path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(smol)


@pytest.fixture(scope="module")
def tokenization(smol: Path) -> chunks.Tokenization:
    return load(smol, max_tokens=4_096)


def load(folder: Path, **changes: Any) -> chunks.Tokenization:
    return chunks.Tokenization.load(folder, ChunksSettings(**changes), "sft")


def with_template(smol: Path, folder: Path, template: str | None) -> Path:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((smol / name).read_bytes())
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder


def said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def conversations(rows: list[list[dict[str, str]]]) -> pa.Table:
    return pa.table(
        {
            "id": [str(i) for i in range(len(rows))],
            "text": ["\n\n".join(message["content"] for message in row) for row in rows],
            "messages": pa.array(
                rows, pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
            ),
            "source": ["chats.jsonl"] * len(rows),
            "row": list(range(1, len(rows) + 1)),
        }
    )


def slow_marks(ids: list[int], tokenizer: Any) -> list[int]:
    """Walk the tokens of ChatML: what follows `<|im_start|>assistant` and the line's end is trained, up to
    `<|im_end|>`.
    """
    start, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    header = tokenizer.encode("assistant\n", add_special_tokens=False)
    marks, inside = [], False
    for place, number in enumerate(ids):
        begins = place - len(header)
        if begins > 0 and ids[begins - 1] == start and ids[begins:place] == header:
            inside = True
        marks.append(int(inside))
        if number == end:
            inside = False
    return marks


contents = st.text(st.sampled_from("ab cd.\n,é漢🙂-7"), min_size=1, max_size=40).map(lambda text: f"x{text}y")
chats = st.lists(st.tuples(contents, contents), min_size=1, max_size=4).map(
    lambda turns: [
        said(role, text) for turn in turns for role, text in zip(("user", "assistant"), turn, strict=True)
    ]
)
any_chats = st.tuples(st.booleans(), contents, chats, st.booleans()).map(
    lambda parts: [said("system", parts[1])] * parts[0] + parts[2] + [said("user", "And?")] * parts[3]
)


class TestConversations:
    @hypothesis_settings(deadline=None, max_examples=100)
    @given(rows=st.lists(any_chats, min_size=1, max_size=4))
    def test_tokens_are_those_of_transformers_and_marks_those_of_a_slow_walk(
        self, rows: list[list[dict[str, str]]], tokenization: chunks.Tokenization, reference: Any
    ) -> None:
        found = chunks.chunk(conversations(rows), tokenization, "sft").table
        for row, cut, marks in zip(
            rows, found["windows"].to_pylist(), found["marks"].to_pylist(), strict=True
        ):
            assert cut == [reference.apply_chat_template(row, return_dict=False)] and marks == [
                slow_marks(cut[0], reference)
            ]

    MESSAGES = [
        said("user", "One?"),
        said("assistant", "Two."),
        said("user", "Three?"),
        said("assistant", "Four."),
    ]

    def test_each_token_of_a_long_conversation_is_trained_once(
        self, smol: Path, tokenization: chunks.Tokenization
    ) -> None:
        rows = projects.licence_rows(30)
        chat = [said(("user", "assistant")[i % 2], row["text"].strip() or "x") for i, row in enumerate(rows)]
        whole = chunks.chunk(conversations([chat]), load(smol, max_tokens=100_000), "sft").table
        found = chunks.chunk(conversations([chat]), load(smol, max_tokens=64, stride=16), "sft").table
        [cut], [marks], [[full]] = (
            found["windows"].to_pylist(),
            found["marks"].to_pylist(),
            whole["marks"].to_pylist(),
        )
        assert len(cut) > 20 and [len(chunk) for chunk in cut] == [len(chunk) for chunk in marks]
        assert marks[0] + [mark for chunk in marks[1:] for mark in chunk[16:]] == full and all(
            not any(chunk[:16]) for chunk in marks[1:]
        )

    def test_rows_without_a_trained_token_are_named(self, smol: Path) -> None:
        rows = [
            self.MESSAGES,
            self.MESSAGES[:1],
            [said("user", "a long question " * 20), said("assistant", "Yes.")],
            self.MESSAGES,
        ]
        found = chunks.chunk(conversations(rows), load(smol, max_tokens=64, stride=4, max_chunks=1), "sft")
        check = next(
            c
            for c in chunks.checks(found.counts, found.unfit, "sft", 0.25)
            if c.name == "rows_have_trained_tokens"
        )
        assert (check.passed, check.severity) == (False, "error")
        assert check.description.startswith(
            f"2 of 4 rows have no trained token: {alias('chats.jsonl')}:2, {alias('chats.jsonl')}:3; "
        )
        assert found.counts["num_trained_tokens"] == 2 * 6
        fine = chunks.chunk(conversations(rows[:1]), load(smol, max_tokens=64), "sft")
        assert all(check.passed for check in chunks.checks(fine.counts, fine.unfit, "sft", 0.5))

    def test_a_conversation_that_the_template_refuses_is_named_with_why(
        self, smol: Path, tmp_path: Path
    ) -> None:
        found = chunks.chunk(
            conversations([self.MESSAGES[:2], self.MESSAGES[1:3], self.MESSAGES]),
            load(with_template(smol, tmp_path, ALTERNATING)),
            "sft",
        )
        assert found.unfit == [
            f"{alias('chats.jsonl')}:2 (the chat template refuses the conversation: roles must alternate)"
        ]
        assert found.table["windows"].to_pylist()[1] == [[]]

    @pytest.mark.parametrize("task", ["classification", "token_classification", "language_modeling"])
    def test_control_tokens_inside_texts_are_counted_whatever_the_task(self, smol: Path, task: Any) -> None:
        folder, forged = (
            (smol, "one<|im_end|>two") if task == "language_modeling" else (MINILM, "one [SEP] two")
        )
        spans = pa.array(
            [[], []],
            pa.list_(pa.struct([("start", pa.int32()), ("end", pa.int32()), ("label", pa.string())])),
        )
        rows = pa.table({"id": ["0", "1"], "text": [forged, "one end and two"], "spans": spans})
        found = chunks.chunk(
            rows, chunks.Tokenization.load(folder, ChunksSettings(max_tokens=64), task), task
        )
        check = next(
            c
            for c in chunks.checks(found.counts, [], task, 0.5)
            if c.name == "contents_hold_no_control_tokens"
        )
        assert (check.passed, check.severity, check.metadata) == (
            False,
            "warn",
            {"num_rows_with_control_tokens": 1},
        )


class TestTemplate:
    def test_without_a_template_chatml_is_used_if_the_tokenizer_has_its_tokens(
        self, smol: Path, tmp_path: Path
    ) -> None:
        assert (
            load(with_template(smol, tmp_path, None)).chat.render(
                [said("user", "Hi"), said("assistant", "Ho")], add_generation_prompt=True
            )
            == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHo<|im_end|>\n<|im_start|>assistant\n"
        )
        with pytest.raises(
            SettingsError,
            match=r"base_model: .* has no chat template",
        ):
            load(MINILM)

    def test_templates_are_found_where_transformers_saves_them(self, smol: Path, tmp_path: Path) -> None:
        with_template(smol, tmp_path, None)
        config = json.loads((tmp_path / "tokenizer_config.json").read_text())
        for source in (
            "one",
            [{"name": "tool_use", "template": "two"}, {"name": "default", "template": "one"}],
        ):
            (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": source}))
            assert load(tmp_path).chat.source == "one"
        (tmp_path / "chat_template.jinja").write_text("three")
        assert load(tmp_path).chat.source == "three"

    @pytest.mark.parametrize(
        ("source", "why"),
        [
            ("{{ 1/0 }}", "ZeroDivisionError"),
            ("{{ (messages[0].content + 'é').encode('ascii') }}", "UnicodeEncodeError"),
            ("{{ raise_exception(messages[0].content) }}", "TemplateError"),
            ("{{ raise_exception('I refuse ' + messages[0].content[:9]) }}", "TemplateError"),
            ("{{ {}[messages[0].content].more }}", "UndefinedError"),
            ("{{ raise_exception('roles\nmust alternate') }}", "roles must alternate"),
            ("{{ messages.__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
        ],
    )
    def test_a_template_that_fails_or_would_run_code_is_one_line_without_what_was_said(
        self, source: str, why: str
    ) -> None:
        with pytest.raises(DataError) as caught:
            chunks.ChatTemplate(source, {}, ()).render([said("user", "Anna owes 500 euros")])
        assert str(caught.value) == f"the chat template refuses the conversation: {why}"

    @pytest.mark.parametrize(
        ("source", "why"),
        [
            ("a\n{% for message %}", "is broken in line 2"),
            ("{{ " + "(" * 5_000 + "1" + ")" * 5_000 + " }}", r"cannot be compiled \(\w+\)$"),
            ("{{ " + "1" * 5_000 + " }}", r"cannot be compiled \(\w+\)$"),
        ],
    )
    def test_a_broken_template_is_one_line(self, smol: Path, tmp_path: Path, source: str, why: str) -> None:
        with pytest.raises(SettingsError, match=f"^base_model: .* template {why}"):
            load(with_template(smol, tmp_path, source))

    @pytest.mark.parametrize(
        "source",
        [
            "{{ '%2000000000d' % 1 }}",
            "{{ '%*d' % (2000000000, 1) }}",
            "{{ '{:>2000000000}'.format(1) }}",
            "{{ '{:>{w}}'.format(1, w=2000000000) }}",
            "{{ '%2000000000d'|format(1) }}",
            "{{ 'x'.ljust(2000000000) }}",
            "{{ 'x'.zfill(2000000000) }}",
            "{{ 'x'|center(2000000000) }}",
            "{{ 'x\ny'|indent(2000000000) }}",
            "{{ messages|tojson(indent=2000000000) }}",
            "{{ 'x' * 2000000000 }}",
            "{{ (2 ** 9) ** 2000000000 }}",
            "{{ ('x' * 100000).replace('x', 'y' * 100000) }}",
            "{{ ('x' * 100000)|replace('x', 'y' * 100000) }}",
            "{% set n = namespace(x='xy') %}{% for i in range(40) %}{% set n.x = n.x + n.x %}{% endfor %}",
            "{% set n = namespace(x='xy') %}{% for i in range(40) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
            "{% set n = namespace(x=9) %}{% for i in range(60) %}{% set n.x = n.x * n.x %}{% endfor %}",
            "{% set n = namespace(x='xy') %}{% for i in range(40) %}{% set y %}{{ n.x }}{{ n.x }}{% endset %}"
            "{% set n.x = y %}{% endfor %}",
            "{% for i in range(99999) %}{% for j in range(99999) %}{% set x = 1 %}{% endfor %}{% endfor %}",
            "{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
            "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(40) }}",
        ],
    )
    def test_a_template_is_bounded_in_width_and_time(self, source: str) -> None:
        with pytest.raises(DataError, match=r": it (writes too much|takes too long)$"):
            chunks.ChatTemplate(source, {}, ()).render([said("user", "Anna owes 500000000 euros")])

    def test_what_templates_do_is_within_the_bounds(self) -> None:
        source = (
            "{% macro show(m) %}{{ m.content|trim|replace('a', 'b') }}{% endmacro %}{% set y %}{{ 1 ~ 'x' }}"
            "{% endset %}{% for m in messages %}{{ '%s: ' % m.role + show(m) }}{% endfor %}"
            "{{ y|upper }}{{ '{:>3}'.format(7) }}{{ ('-' * 3) ~ 2 }}"
        )
        text = chunks.ChatTemplate(source, {}, ()).render([said("user", " 2000000000a " * 200_000)])
        assert text == "user: " + (" 2000000000b " * 200_000).strip() + "1X  7---2"

    def test_a_template_sees_no_clock(self) -> None:
        assert chunks.ChatTemplate("{{ strftime_now('%d %b %Y') }}", {}, ()).render([]) == "26 Jul 2024"


def slow_span_marks(text: str, offsets: list[tuple[int, int]], spans: list[tuple[int, int]]) -> list[int]:
    """Give each token to the first span (by start, longer first) of which it holds a visible character."""
    marks, next_free = [0] * len(offsets), 0
    visible = {}
    for k, span in enumerate(spans):
        characters = list(range(*span))
        while characters and text[characters[0]].isspace():
            characters.pop(0)
        while characters and text[characters[-1]].isspace():
            characters.pop()
        visible[k] = characters
    for k in sorted((k for k in visible if visible[k]), key=lambda k: (visible[k][0], -visible[k][-1])):
        holding = [
            token for token, (begin, end) in enumerate(offsets) if set(range(begin, end)) & set(visible[k])
        ]
        mine = (
            [token for token in range(min(holding), max(holding) + 1) if token >= next_free]
            if holding
            else []
        )
        for place, token in enumerate(mine):
            marks[token] = -(k + 1) if place else k + 1
        next_free = max([next_free, *(token + 1 for token in mine)])
    return marks


class TestSpans:
    @pytest.fixture(scope="class", params=["minilm", "smollm2"])
    def loaded(self, request: pytest.FixtureRequest, smol: Path) -> chunks.Tokenization:
        folder = MINILM if request.param == "minilm" else smol
        return chunks.Tokenization.load(folder, ChunksSettings(max_tokens=4_096), "token_classification")

    def examples(self, texts: list[str], spans: list[list[tuple[int, int]]]) -> pa.Table:
        kind = pa.list_(pa.struct([("start", pa.int32()), ("end", pa.int32()), ("label", pa.string())]))
        rows = [[{"start": a, "end": b, "label": "drug"} for a, b in row] for row in spans]
        return pa.table({"id": texts, "text": texts, "spans": pa.array(rows, kind)})

    @hypothesis_settings(deadline=None, max_examples=150)
    @given(data=st.data())
    def test_marks_are_those_of_a_slow_search(self, data: st.DataObject, loaded: chunks.Tokenization) -> None:
        texts = data.draw(
            st.lists(
                st.text(st.sampled_from("abz  .\n-éß漢🙂İ"), min_size=1, max_size=30), min_size=1, max_size=4
            )
        )
        spans = [
            data.draw(
                st.lists(
                    st.tuples(st.integers(0, len(text) - 1), st.integers(1, 8)).map(
                        lambda p, n=len(text): (p[0], min(n, sum(p)))
                    ),
                    max_size=4,
                )
            )
            for text in texts
        ]
        found = chunks.chunk(self.examples(texts, spans), loaded, "token_classification")
        lost = 0
        around = len(loaded.prefix), len(loaded.suffix)
        for text, row, [marks] in zip(texts, spans, found.table["marks"].to_pylist(), strict=True):
            expected = slow_span_marks(
                text, loaded.tokenizer.encode(text, add_special_tokens=False).offsets, row
            )
            assert marks == [0] * around[0] + expected + [0] * around[1]
            lost += sum(k + 1 not in expected for k in range(len(row)))
        assert found.counts["num_spans_without_tokens"] == lost

    def test_a_span_over_a_chunk_goes_on_as_a_later_token(self) -> None:
        tokenization = chunks.Tokenization.load(
            MINILM, ChunksSettings(max_tokens=8, stride=2), "token_classification"
        )
        text = "take one hydroxychloroquine tablet each day"
        start = text.index("hydro")
        found = chunks.chunk(
            self.examples([text], [[(start, start + 18), (0, 4)]]), tokenization, "token_classification"
        ).table
        [cut], [marks] = found["windows"].to_pylist(), found["marks"].to_pylist()
        assert [len(chunk) for chunk in cut] == [len(chunk) for chunk in marks] == [8, 8, 6]
        assert marks == [[0, 2, 0, 1, -1, -1, -1, 0], [0, -1, -1, -1, -1, -1, 0, 0], [0, -1, 0, 0, 0, 0]]
