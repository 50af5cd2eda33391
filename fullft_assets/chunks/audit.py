"""Audit: how a tokenizer treats the domain's language, and which words should be tokens of their own."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel

from fullft_assets.chunks.tokenization import add_terms, pieces
from fullft_assets.examples.texts import UNKNOWN, language_of
from fullft_assets.store import CheckOutcome
from fullft_assets.store.checks import CheckSpec
from fullft_assets.store.metadata import Metadata

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from fullft_assets.chunks.tokenization import Tokenization


class ChunkCounts(BaseModel):
    """What is counted of a batch's rows."""

    num_rows: int
    num_tokens: int
    num_windows: int
    num_unknown_tokens: int
    num_byte_tokens: int
    num_rows_of_several_windows: int
    num_rows_cut: int
    num_tokens_cut_off: int
    num_trained_tokens: int
    num_rows_without_trained_tokens: int
    num_rows_with_control_tokens: int
    num_spans_without_tokens: int
    longest_text_tokens: int


class ChunksMetadata(ChunkCounts, Metadata):
    """Metadata of `tokenized_chunks`."""

    batch: str
    num_sampled_texts: int
    num_sampled_words: int
    num_sampled_tokens: int
    num_erased: int | None = None


class AuditMetadata(Metadata):
    """Metadata of `tokenizer_audit`."""

    #: Tokens a word.
    fertility: float
    unknown_share: float
    byte_fallback_share: float
    mean_term_pieces: float
    num_terms: int
    num_proposed_tokens: int
    #: Share of all tokens that the proposed ones would save.
    proposal_saves_share: float
    #: What mined terms are rarer in. Mined words are the documents' own: they stay in the artifact's files.
    general_words: str | None = None
    #: The listed terms that cost most. None: terms were mined.
    worst_terms: list[dict[str, Any]] | None = None


def general_words_key(languages: Sequence[str]) -> dict[str, Any]:
    """Return what the comparison with general language depends on, beside the words."""
    return {"languages": list(languages), "pyspellchecker": version("pyspellchecker")}


def _per_million(
    words: Sequence[str], commonest: Sequence[str], languages: Sequence[str] = ()
) -> tuple[str, list[float] | None]:
    """Return what the words are compared with, in words, and how often each occurs in a million words of
    general language.

    Args:
        words: in lower case. One that no list knows has 0.
        commonest: the corpus's commonest words, which identify its language.
        languages: that the texts may be in (ISO 639-1). Default: the identified one.

    Returns:
        The name, and the frequencies; of several languages the highest. None: there is no list, only the
        vocabulary is compared with.
    """
    from spellchecker import SpellChecker

    identified = ""
    if not languages:
        language = language_of(" ".join(commonest))
        if language == UNKNOWN:
            return "the vocabulary alone: the language was not identified", None
        languages = [language]
        identified = " (identified)"
    listed = [language for language in languages if language in SpellChecker.languages()]
    missing = ", ".join(language for language in languages if language not in listed)
    if not listed:
        return f"the vocabulary alone: no list for {missing}{identified}", None
    name = f"the general words of {', '.join(listed)}{identified}"
    frequencies = [0.0] * len(words)
    for language in listed:
        # Up to 100 MB, of one language at a time.
        usage = SpellChecker(language=language).word_usage_frequency
        frequencies = [max(most, 1e6 * usage(word)) for most, word in zip(frequencies, words, strict=True)]
    return f"{name}; no list for {missing}" if missing else name, frequencies


#: Of `tokenizer_audit`; chunks have one of their own.
VERSION = "5"
TERMS_ARE_WHOLE = CheckSpec("domain_terms_are_kept_whole", "Domain terms are split into few pieces.")
UNKNOWN_ARE_RARE = CheckSpec("unknown_tokens_are_rare", "The tokenizer knows the domain's characters.")
BYTES_ARE_RARE = CheckSpec("byte_tokens_are_rare", "The tokenizer seldom spells characters byte by byte.")
CHECKS = (TERMS_ARE_WHOLE, UNKNOWN_ARE_RARE, BYTES_ARE_RARE)
#: Texts of a batch whose words are counted; drawn by the texts' hashes.
SAMPLED_TEXTS = 2_000
#: Words kept of each batch, the commonest.
KEPT_WORDS = 10_000
#: The audit warns above these: mean number of tokens of a domain term, and shares of all tokens that are
#: unknown, or single bytes of a character.
MAX_TERM_PIECES = 3.0
MAX_UNKNOWN_SHARE = 0.001
MAX_BYTE_SHARE = 0.01
#: A mined term has at least this many letters, and occurs in at least this many texts and this share of them.
MIN_TERM_LETTERS = 5
MIN_TERM_DOCUMENTS = 3
MIN_TERM_SHARE = 0.001
#: A mined term is this many times more frequent here than in general language, with this constant added to
#: both counts in a million words.
MIN_KEYNESS = 20.0
SMOOTHING_PER_MILLION = 0.3
#: The commonest words of the corpus, which identify its language.
COMMONEST_WORDS = 50
#: At most this many mined terms are reported, and tokens proposed.
MINED_TERMS = 200
PROPOSED_TOKENS = 100
_WORD = re.compile(r"[^\W\d_][\w'-]*")


@dataclass
class WordCounts:
    """Words of a sample of a batch's texts, as the tokenizer distinguishes them (`folds_case`)."""

    folds_case: bool
    num_texts: int = 0
    num_words: int = 0
    num_tokens: int = 0
    documents: Counter[str] = field(default_factory=Counter)
    occurrences: Counter[str] = field(default_factory=Counter)

    def count(self, texts: Sequence[str], num_tokens: int) -> None:
        """Count texts that are `num_tokens` long in all."""
        for text in texts:
            words = _WORD.findall(text.lower() if self.folds_case else text)
            self.num_words += len(words)
            self.occurrences.update(words)
            self.documents.update(set(words))
        self.num_texts += len(texts)
        self.num_tokens += num_tokens

    def table(self) -> pa.Table:
        """Return the commonest words: `word`, `num_documents`, `num_occurrences`, by falling number of
        documents.
        """

        # Sets iterate in another order in each process: ties are broken by the word, or equal data had
        # unequal digests.
        words = sorted(self.documents, key=lambda word: (-self.documents[word], word))[:KEPT_WORDS]
        return pa.table(
            {
                "word": pa.array(words, pa.string()),
                "num_documents": pa.array([self.documents[word] for word in words], pa.int32()),
                "num_occurrences": pa.array([self.occurrences[word] for word in words], pa.int32()),
            }
        )

    def metadata(self) -> dict[str, int]:
        """Return the sample's sizes."""
        return {
            "num_sampled_texts": self.num_texts,
            "num_sampled_words": self.num_words,
            "num_sampled_tokens": self.num_tokens,
        }


def folds_case(tokenizer: Tokenizer) -> bool:
    """Return whether upper and lower case are one to a tokenizer."""
    return tokenizer.normalizer is not None and "a" in tokenizer.normalizer.normalize_str("A")


def draw_sample(text_hashes: pa.Array | pa.ChunkedArray, most: int = SAMPLED_TEXTS) -> np.ndarray:
    """Return which rows are sampled, bool [rows]: the rows with the smallest hashes, in any order of the
    rows.
    """

    chosen = np.zeros(len(text_hashes), bool)
    order = pc.call_function("sort_indices", [text_hashes], pc.SortOptions(sort_keys=[("", "ascending")]))
    chosen[order.to_numpy(zero_copy_only=False)[:most]] = True
    return chosen


@dataclass(frozen=True)
class Audit:
    """How the tokenizer treats the domain's language."""

    terms: list[dict[str, Any]]
    metadata: AuditMetadata
    checks: list[CheckOutcome]
    proposal: list[str]

    def proposal_yaml(self) -> str:
        """Return the proposed tokens as the YAML that adds them."""
        return f"chunks:\n  added_tokens: {json.dumps(self.proposal, ensure_ascii=False)}\n"


def judge(
    counts: Iterable[Mapping[str, Any]],
    words: Iterable[pa.Table],
    tokenization: Tokenization,
    languages: Sequence[str] = (),
) -> Audit:
    """Audit the tokenizer on all batches.

    Args:
        counts: `Chunked.metadata` of each batch.
        words: `WordCounts.table` of each batch, in the same order.
        tokenization: the tokenizer and the thresholds.
        languages: that the texts may be in; mined terms are rarer in them in general. Default: the language
            that the words are in.

    Returns:
        The terms (mined ones, see docs/decisions/0005), those that cost most
        first; fertility (tokens a word), shares of unknown and byte tokens; the checks on the thresholds; and
        a proposal.
    """
    totals, word_counts = _add_up(counts, words)
    terms, against = _mine(word_counts, totals, tokenization.tokenizer, languages)
    _estimate_savings(terms, tokenization, totals["num_word_tokens"])
    terms.sort(
        key=lambda term: (
            -term["num_tokens_saved"],
            -term["num_pieces"],
            -term["num_documents"],
            term["term"],
        )
    )
    proposal = [term["term"] for term in terms if term["num_tokens_saved"] > 0][:PROPOSED_TOKENS]
    saved = sum(term["num_tokens_saved"] for term in terms[: len(proposal)]) / max(
        1.0, totals["num_word_tokens"]
    )
    weight = sum(max(1.0, term["num_documents"]) for term in terms)
    mean_pieces = (
        sum(max(1.0, term["num_documents"]) * term["num_pieces"] for term in terms) / weight if terms else 0.0
    )
    metadata = AuditMetadata(
        fertility=totals["num_word_tokens"] / max(1.0, totals["num_words"]),
        unknown_share=totals["num_unknown_tokens"] / max(1, totals["num_tokens"]),
        byte_fallback_share=totals["num_byte_tokens"] / max(1, totals["num_tokens"]),
        mean_term_pieces=mean_pieces,
        num_terms=len(terms),
        num_proposed_tokens=len(proposal),
        proposal_saves_share=saved,
        general_words=against,
    )
    # Mined words are the documents' own: they stay in the artifact's files, out of metadata and descriptions.
    basis = f"; mined against {against}; terms.json has the terms"
    return Audit(terms, metadata, _checks(metadata, basis), proposal)


def _add_up(
    counts: Iterable[Mapping[str, Any]], words: Iterable[pa.Table]
) -> tuple[Counter[str], dict[str, tuple[float, float]]]:
    totals: Counter[str] = Counter()
    documents: Counter[str] = Counter()
    occurrences: Counter[str] = Counter()
    for batch, table in zip(counts, words, strict=True):
        scale = batch["num_rows"] / max(1, batch["num_sampled_texts"])
        totals.update({name: batch[name] for name in ("num_tokens", "num_unknown_tokens", "num_byte_tokens")})
        totals["num_texts"] += batch["num_rows"]
        totals["num_words"] += scale * batch["num_sampled_words"]
        totals["num_word_tokens"] += scale * batch["num_sampled_tokens"]
        columns = [table[name].to_pylist() for name in ("word", "num_documents", "num_occurrences")]
        for word, in_documents, times in zip(*columns, strict=True):
            documents[word] += scale * in_documents
            occurrences[word] += scale * times
    return totals, {word: (documents[word], occurrences[word]) for word in documents}


def _mine(
    word_counts: Mapping[str, tuple[float, float]],
    totals: Mapping[str, float],
    tokenizer: Tokenizer,
    languages: Sequence[str],
) -> tuple[list[dict[str, Any]], str]:
    """Return the words that the tokenizer splits and that are markedly commoner here than in general
    language; and what that is.

    Keyness is the ratio of the frequencies in a million words, smoothed by a constant added to both:
    Kilgarriff, "Simple maths for keywords", Corpus Linguistics 2009.
    """
    floor = max(MIN_TERM_DOCUMENTS, MIN_TERM_SHARE * totals["num_texts"])
    # Compounds with a hyphen are split at it by most tokenizers; their parts are counted where they occur
    # alone.
    words = [
        word
        for word, (documents, _) in word_counts.items()
        if documents >= floor and len(word) >= MIN_TERM_LETTERS and word.isalnum()
    ]
    # What the vocabulary holds as a word of its own costs nothing, also in capitals.
    plain = pieces(tokenizer, [word.lower() for word in words])
    split_words = {
        word: ids
        for word, ids, low in zip(words, pieces(tokenizer, words), plain, strict=True)
        if min(len(ids), len(low)) > 1
    }
    # Lists of general words know no case.
    here: dict[str, float] = {}
    for word, (_, occurrences) in word_counts.items():
        here[word.lower()] = here.get(word.lower(), 0.0) + occurrences
    commonest = sorted(here, key=lambda word: (-here[word], word))[:COMMONEST_WORDS]
    against, frequencies = _per_million([word.lower() for word in split_words], commonest, languages)
    keyness: dict[str, dict[str, float]] = {word: {} for word in split_words}
    if frequencies is not None:
        smooth = SMOOTHING_PER_MILLION
        for word, frequency in zip(split_words, frequencies, strict=True):
            times = (1e6 * here[word.lower()] / totals["num_words"] + smooth) / (frequency + smooth)
            keyness[word]["keyness"] = round(times, 1)
            if times < MIN_KEYNESS:
                del keyness[word]
    terms = sorted(keyness, key=lambda word: (-word_counts[word][0] * (len(split_words[word]) - 1), word))[
        :MINED_TERMS
    ]
    return [
        _row(word, word_counts[word], split_words[word], tokenizer) | keyness[word] for word in terms
    ], against


def _row(term: str, count: tuple[float, float], ids: list[int], tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "term": term,
        "num_documents": round(count[0]),
        "num_occurrences": round(count[1]),
        "num_pieces": len(ids),
        "pieces": " ".join(tokenizer.id_to_token(number) or "" for number in ids),
    }


def _estimate_savings(terms: list[dict[str, Any]], tokenization: Tokenization, num_tokens: float) -> None:
    from tokenizers import Tokenizer

    if not terms:
        return
    # A byte-level vocabulary keeps the space before an added token as a token: the term alone would promise
    # too much.
    sentences = [f"of {term['term']} and" for term in terms]
    extended = Tokenizer.from_str(tokenization.tokenizer.to_str())
    add_terms(extended, [term["term"] for term in terms])
    before, after = (
        t.encode_batch_fast(sentences, add_special_tokens=False) for t in (tokenization.tokenizer, extended)
    )
    for term, old, new in zip(terms, before, after, strict=True):
        term["num_tokens_saved"] = max(0, len(old) - len(new)) * term["num_occurrences"]
        term["share_of_tokens_saved"] = term["num_tokens_saved"] / max(1.0, num_tokens)


def _checks(metadata: AuditMetadata, worst: str) -> list[CheckOutcome]:
    mean_pieces = metadata.mean_term_pieces
    unknown = metadata.unknown_share
    byte = metadata.byte_fallback_share
    proposal = ""
    if metadata.num_proposed_tokens:
        proposal = (
            f"; the {metadata.num_proposed_tokens} tokens of proposal.yaml would save"
            f" {metadata.proposal_saves_share:.1%} of all tokens"
        )
    return [
        CheckOutcome(
            name=TERMS_ARE_WHOLE.name,
            passed=mean_pieces <= MAX_TERM_PIECES,
            severity="warn",
            description=(
                f"{mean_pieces:.2f} pieces a domain term (warns above"
                f" {MAX_TERM_PIECES}){worst if metadata.num_terms else ''}{proposal}"
            ),
            metadata={"mean_term_pieces": mean_pieces, "proposal_saves_share": metadata.proposal_saves_share},
        ),
        CheckOutcome(
            name=UNKNOWN_ARE_RARE.name,
            passed=unknown <= MAX_UNKNOWN_SHARE,
            severity="warn",
            description=(
                f"{unknown:.4%} of the tokens are unknown to the tokenizer (warns above"
                f" {MAX_UNKNOWN_SHARE:.4%})"
            ),
            metadata={"unknown_share": unknown},
        ),
        CheckOutcome(
            name=BYTES_ARE_RARE.name,
            passed=byte <= MAX_BYTE_SHARE,
            severity="warn",
            description=(
                f"{byte:.4%} of the tokens are single bytes of a character (warns above {MAX_BYTE_SHARE:.4%})"
            ),
            metadata={"byte_fallback_share": byte},
        ),
    ]
