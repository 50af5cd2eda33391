"""The tokenizer's audit: counted over all batches as over one, terms mined, and a proposal that
saves what it promises.
"""

import hashlib
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from spellchecker import SpellChecker

from fullft_assets import chunks, documents, examples
from fullft_assets.chunks import Tokenization, audit
from fullft_assets.errors import DataError
from fullft_assets.settings import ChunksSettings
from fullft_assets.store import Store
from tests import project as projects, smollm2
from tests.test_chunks import MODEL as MINILM

WORD = re.compile(r"[^\W\d_][\w'-]*")


@pytest.fixture(scope="module", params=["minilm", "smollm2"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return (
        MINILM if request.param == "minilm" else smollm2.write_tokenizer(tmp_path_factory.mktemp("smollm2"))
    )


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return [row["text"] for row in projects.licence_rows(600)]


def audited(
    texts: list[str], model: Path = MINILM, languages: tuple[str, ...] = (), **changes: Any
) -> chunks.Audit:
    return audit.judge(texts, Tokenization.load(model, ChunksSettings(**changes)), languages)


def test_numbers_are_a_plain_count(texts: list[str], model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "MINED_TERMS", 50)
    tokenizer = Tokenization.load(model, ChunksSettings()).tokenizer
    tokens = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    fold = model == MINILM
    words = [WORD.findall(text.lower() if fold else text) for text in texts]
    num_documents, num_occurrences = Counter(), Counter()
    for found in words:
        num_documents.update(set(found))
        num_occurrences.update(found)
    found = audited(texts, model)
    assert found.metadata.fertility == pytest.approx(sum(len(e.ids) for e in tokens) / sum(map(len, words)))
    assert found.metadata.num_terms == len(found.terms) == 50
    for term in found.terms:
        word = term["term"]
        assert (term["num_documents"], term["num_occurrences"]) == (
            num_documents[word],
            num_occurrences[word],
        )
        assert len(word) >= 5 and num_documents[word] >= 3
        split = min(
            (tokenizer.encode(text, add_special_tokens=False).tokens for text in (word, f" {word}")), key=len
        )
        assert term["pieces"].split(" ") == split and term["num_pieces"] == len(split) > 1
        low = (word.lower(), f" {word.lower()}")
        assert all(len(tokenizer.encode(text, add_special_tokens=False).ids) > 1 for text in low), (
            "a shouted general word"
        )
    weights = [term["num_documents"] for term in found.terms]
    assert found.metadata.mean_term_pieces == pytest.approx(
        np.average([term["num_pieces"] for term in found.terms], weights=weights)
    )
    saved = [term["num_tokens_saved"] for term in found.terms]
    assert saved == sorted(saved, reverse=True)
    english = SpellChecker(language="en")
    folded = Counter(word.lower() for text in texts for word in WORD.findall(text))

    def keyness(word: str) -> float:
        """Return how many times commoner a word is here than in general English, by hand."""
        return (1e6 * folded[word.lower()] / folded.total() + 0.3) / (
            1e6 * english[word] / english.word_frequency.total_words + 0.3
        )

    assert [term["keyness"] for term in found.terms] == [
        pytest.approx(keyness(term["term"]), abs=0.05) for term in found.terms
    ]


def test_the_proposal_saves_what_it_promises(texts: list[str], model: Path) -> None:
    found = audited(texts, model)
    assert 0 < len(found.proposal) == found.metadata.num_proposed_tokens <= 100
    added = yaml.safe_load(found.proposal_yaml())["chunks"]
    before, after = (
        sum(map(len, Tokenization.load(model, ChunksSettings(**settings)).encode(texts)))
        for settings in ({}, {"added_tokens": found.proposal})
    )
    assert added == {"added_tokens": found.proposal} and 1 - after / before == pytest.approx(
        found.metadata.proposal_saves_share, rel=0.25
    )
    assert (
        f"the {len(found.proposal)} tokens of proposal.yaml would save"
        f" {found.metadata.proposal_saves_share:.1%}" in found.checks[0].description
    )
    assert not set(found.proposal) & {term["term"] for term in audited(texts, model, **added).terms}


def test_unknown_tokens_warn_where_the_vocabulary_has_no_bytes(texts: list[str]) -> None:
    odd = ["𝌆 𝌇 𝌈"] * 60
    found = audited([*texts, *odd])
    tokenizer = Tokenization.load(MINILM, ChunksSettings()).tokenizer
    tokens = Counter(
        token for text in (*texts, *odd) for token in tokenizer.encode(text, add_special_tokens=False).tokens
    )
    assert (
        found.metadata.unknown_share == tokens["[UNK]"] / tokens.total() > 0.001
        and found.metadata.byte_fallback_share == 0
    )
    assert {check.name: check.passed for check in found.checks} == {
        "domain_terms_are_kept_whole": True,
        "characters_are_known": False,
    }
    assert all(check.passed for check in audited(texts).checks)


def test_characters_spelt_byte_by_byte_warn_where_it_has(texts: list[str], tmp_path: Path) -> None:
    model = smollm2.write_tokenizer(tmp_path)
    odd = ["𝌆 ᚠ ꙮ"] * 200
    found = audited([*texts, *odd], model)
    tokenizer = Tokenization.load(model, ChunksSettings()).tokenizer
    parts = total = 0
    for text in (*texts, *odd):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        # A token that is no whole character cannot be decoded by itself.
        parts += sum("\ufffd" in tokenizer.decode([number]) for number in ids)
        total += len(ids)
    assert (
        found.metadata.byte_fallback_share == pytest.approx(parts / total)
        and found.metadata.unknown_share == 0
    )
    assert [check.name for check in found.checks if not check.passed] == ["characters_are_known"]


def test_byte_fallback_of_a_sentencepiece_vocabulary_is_counted(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, decoders, models

    vocabulary = {"<unk>": 0, **{f"<0x{byte:02X}>": byte + 1 for byte in range(256)}, "a": 257, "b": 258}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.decoder = decoders.ByteFallback()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert audited(["ab", "aéb"], tmp_path).metadata.byte_fallback_share == 2 / 6


def mined(found: chunks.Audit) -> set[str]:
    return {term["term"] for term in found.terms}


#: A language without a list of words: terms are compared with the tokenizer's vocabulary alone.
NO_LIST = ("pl",)


def test_what_the_tokenizer_splits_is_no_term_where_general_english_has_it_too() -> None:
    texts = [row["text"] for row in projects.licence_rows(1_500)]
    alone, english = audited(texts, languages=NO_LIST), audited(texts)
    assert mined(alone) - mined(english) == {
        "authorize",
        "contradict",
        "notify",
        "advertise",
        "safest",
        "assurances",
    }
    real = {
        "sublicense",
        "merchantability",
        "licensor",
        "redistribute",
        "noninfringement",
        "warranty",
        "copyleft",
        "affero",
    }
    assert real <= mined(english) & mined(alone)
    # The places that they leave go to terms that cost less.
    assert len(mined(english)) == len(mined(alone)) == 200 and mined(
        audited(texts, languages=("en",))
    ) == mined(english)
    assert [term for term in alone.terms if "keyness" in term] == []


def test_the_artifact_is_found_again_until_the_data_the_tokenizer_or_the_languages_change(
    project: projects.Project,
) -> None:
    store = Store(str(project.home / "store"))

    def take() -> Any:
        use_case = project.use_case()
        labeled = {}
        for batch in documents.list_batches(store, use_case.name):
            labeled[batch.name], _ = examples.validate(
                store, use_case, documents.keep(store, use_case, batch.name)
            )
        return chunks.audit_tokenizer(store, use_case, labeled)

    with pytest.raises(DataError, match="letters: no batch .* letters_ingest"):
        take()
    documents.look(store, project.use_case(), "batch")
    first = take()
    folder = store.folder(first)
    terms = json.loads((folder / "terms.json").read_text())
    assert len(terms) == first.metadata["num_terms"] > 0
    proposed = yaml.safe_load((folder / "proposal.yaml").read_text())["chunks"]["added_tokens"]
    assert len(proposed) == first.metadata["num_proposed_tokens"] > 0
    # The terms are the documents' own: Dagster is not shown them.
    shown = json.dumps(first.metadata) + "".join(check.description for check in first.checks)
    assert [term["term"] for term in terms if term["term"] in shown] == [] and take().ref == first.ref
    project.configure(examples={"languages": ["en", "de"]})
    assert take().metadata["general_words"].endswith(" of en, de")
    project.configure(chunks={"added_tokens": proposed[:3]})
    extended = take()
    assert extended.ref != first.ref and extended.metadata["fertility"] < first.metadata["fertility"]


def test_a_batch_is_sampled_by_the_hashes_of_its_texts(tmp_path: Path) -> None:
    hashes = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(100)]
    sampled = set()
    for order in (range(100), np.random.default_rng(0).permutation(100)):
        rows = pa.table({"text": [str(n) for n in order], "text_hash": [hashes[n] for n in order]})
        pq.write_table(rows, tmp_path / "examples.parquet")
        sampled.add(tuple(audit.sample_texts(tmp_path / "examples.parquet", 10)))
    assert len(sampled) == 1 and len(*sampled) == 10
