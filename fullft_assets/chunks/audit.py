"""Audit: how a tokenizer treats the domain's language, and which words should be tokens of their own."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fullft_assets.artifacts import EXAMPLES_FILE, TOKENIZER_AUDIT
from fullft_assets.chunks import cutting
from fullft_assets.chunks.tokenization import (
    Tokenization,
    add_terms,
    load_tokenization,
    pieces,
    tokenizer_digest_of,
)
from fullft_assets.errors import DataError
from fullft_assets.examples.texts import language_of
from fullft_assets.store import CheckOutcome, Draft, Manifest, Outcome, Store
from fullft_assets.store.checks import CheckSpec
from fullft_assets.store.metadata import Metadata

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from fullft_assets.settings.use_case import UseCase


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
    #: What terms are rarer in. The terms are the documents' own: they stay in the artifact's files.
    general_words: str


#: Of `tokenizer_audit`; chunks have one of their own.
VERSION = "7"
TERMS_ARE_WHOLE = CheckSpec("domain_terms_are_kept_whole", "Domain terms are split into few pieces.")
#: A tokenizer has either a token for what it does not know, or one for each byte.
CHARACTERS_ARE_KNOWN = CheckSpec("characters_are_known", "The tokenizer knows the domain's characters.")
CHECKS = (TERMS_ARE_WHOLE, CHARACTERS_ARE_KNOWN)
#: Batches that are looked at, spread over all of them; and texts of each, drawn by their hashes.
SAMPLED_BATCHES = 20
SAMPLED_TEXTS = 2_000
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


def audit_tokenizer(store: Store, use_case: "UseCase", batches: Mapping[str, Manifest]) -> Manifest:
    """Audit the tokenizer and write the terms, costliest first, and a proposal of tokens to add.

    Args:
        store, use_case: where.
        batches: `labeled_examples` by batch name.

    Raises:
        DataError: no batch has valid examples yet.
    """
    if not (usable := [batches[name] for name in sorted(batches) if not batches[name].red_gates]):
        raise DataError(f"{use_case.name}: no batch is ingested yet; run {use_case.name}_ingest first")
    sampled = usable[:: -(-len(usable) // SAMPLED_BATCHES)]
    languages = (settings := use_case.settings).examples.languages or []

    def write(draft: Draft) -> Outcome:
        texts = [text for batch in sampled for text in sample_texts(store.folder(batch) / EXAMPLES_FILE)]
        audit = judge(texts, load_tokenization(use_case), languages)
        (draft.path / "terms.json").write_text(
            json.dumps(audit.terms, indent=1, ensure_ascii=False), encoding="utf-8"
        )
        (draft.path / "proposal.yaml").write_text(audit.proposal_yaml(), encoding="utf-8")
        return audit.metadata.as_dict(), audit.checks

    return store.ensure(
        use_case.name,
        TOKENIZER_AUDIT,
        write,
        version=VERSION,
        settings={"languages": list(languages), "pyspellchecker": version("pyspellchecker")},
        inputs={
            "tokenizer": tokenizer_digest_of(use_case),
            "examples": sorted(batch.content_digest for batch in sampled),
        },
        seed=settings.seed,
    )


def sample_texts(file: Path, most: int = SAMPLED_TEXTS) -> list[str]:
    """Return the texts with the smallest hashes of a batch's examples, whatever the order of the rows."""
    table = pq.read_table(file, columns=["text", "text_hash"])
    return table["text"].take(pc.sort_indices(table["text_hash"])[:most]).to_pylist()


@dataclass
class Words:
    """The words of some texts: in how many texts each occurs, and how often in all."""

    num_texts: int
    documents: Counter[str] = field(default_factory=Counter)
    occurrences: Counter[str] = field(default_factory=Counter)


def count_words(texts: Sequence[str], tokenizer: "Tokenizer") -> Words:
    """Count the words of texts, as the tokenizer distinguishes them: by case or not."""
    folds_case = tokenizer.normalizer is not None and "a" in tokenizer.normalizer.normalize_str("A")
    words = Words(len(texts))
    for text in texts:
        words_of_text = _WORD.findall(text.lower() if folds_case else text)
        words.occurrences.update(words_of_text)
        words.documents.update(set(words_of_text))
    return words


def judge(texts: Sequence[str], tokenization: Tokenization, languages: Sequence[str] = ()) -> Audit:
    """Audit the tokenizer on texts.

    Args:
        texts: a sample of the documents.
        tokenization: the tokenizer.
        languages: that the texts may be in (ISO 639-1); mined terms are rarer in them in general. Default:
            the language that the words are in.

    Returns:
        The terms (mined ones, see docs/decisions/0005), those that cost most first; fertility (tokens a
        word), shares of unknown and byte tokens; the checks on the thresholds; and a proposal.
    """
    ids = cutting.encode(tokenization.tokenizer, texts).ids
    words = count_words(texts, tokenization.tokenizer)
    terms, reference = _mine(words, tokenization.tokenizer, languages)
    _estimate_savings(terms, tokenization.tokenizer)
    # A tie is broken by the term: equal data has equal digests in every process.
    terms.sort(key=lambda term: (-term["num_tokens_saved"], -term["num_documents"], term["term"]))
    proposed_terms = [term for term in terms if term["num_tokens_saved"] > 0][:PROPOSED_TOKENS]
    weights = [term["num_documents"] for term in terms]
    num_pieces = [term["num_pieces"] for term in terms]
    metadata = AuditMetadata(
        fertility=len(ids) / max(1, words.occurrences.total()),
        unknown_share=float((ids == tokenization.unknown_id).sum() / max(1, len(ids))),
        byte_fallback_share=float(tokenization.byte_tokens[ids].sum() / max(1, len(ids))),
        mean_term_pieces=float(np.average(num_pieces, weights=weights)) if terms else 0.0,
        num_terms=len(terms),
        num_proposed_tokens=len(proposed_terms),
        proposal_saves_share=sum(term["num_tokens_saved"] for term in proposed_terms) / max(1, len(ids)),
        general_words=reference,
    )
    return Audit(terms, metadata, _checks(metadata), [term["term"] for term in proposed_terms])


def _mine(words: Words, tokenizer: "Tokenizer", languages: Sequence[str]) -> tuple[list[dict[str, Any]], str]:
    """Return the words that the tokenizer splits and that are markedly commoner here than in general
    language; and what that is.

    Keyness is the ratio of the frequencies in a million words, smoothed by a constant added to both:
    Kilgarriff, "Simple maths for keywords", Corpus Linguistics 2009.
    """
    min_documents = max(MIN_TERM_DOCUMENTS, MIN_TERM_SHARE * words.num_texts)
    # Compounds with a hyphen are split at it by most tokenizers; their parts are counted where they occur
    # alone.
    common = [
        word
        for word, count in sorted(words.documents.items())
        if count >= min_documents and len(word) >= MIN_TERM_LETTERS and word.isalnum()
    ]
    # What the vocabulary holds as a word of its own costs nothing, also in capitals.
    lowered = pieces(tokenizer, [word.lower() for word in common])
    ids_of = {
        word: ids
        for word, ids, ids_lowered in zip(common, pieces(tokenizer, common), lowered, strict=True)
        if min(len(ids), len(ids_lowered)) > 1
    }
    # Lists of general words know no case.
    counts = Counter[str]()
    for word, count in words.occurrences.items():
        counts[word.lower()] += count
    reference, frequencies = _per_million([word.lower() for word in ids_of], counts, languages)
    terms = []
    for number, (word, ids) in enumerate(ids_of.items()):
        term: dict[str, Any] = {
            "term": word,
            "num_documents": words.documents[word],
            "num_occurrences": words.occurrences[word],
            "num_pieces": len(ids),
            "pieces": " ".join(tokenizer.id_to_token(part) or "" for part in ids),
        }
        if frequencies is not None:
            in_a_million = 1e6 * counts[word.lower()] / counts.total()
            keyness = (in_a_million + SMOOTHING_PER_MILLION) / (frequencies[number] + SMOOTHING_PER_MILLION)
            if keyness < MIN_KEYNESS:
                continue
            term["keyness"] = round(keyness, 1)
        terms.append(term)
    terms.sort(key=lambda term: (-term["num_documents"] * (term["num_pieces"] - 1), term["term"]))
    return terms[:MINED_TERMS], reference


def _per_million(
    words: Sequence[str], counts: Mapping[str, int], languages: Sequence[str]
) -> tuple[str, list[float] | None]:
    """Return a phrase that names the reference of a comparison, and the frequency of each word in general
    language, per million words: with several languages the highest frequency. The frequencies are None if
    the languages have no frequency list; then the tokenizer's vocabulary is the only reference.
    """
    from spellchecker import SpellChecker

    commonest = sorted(counts, key=lambda word: (-counts[word], word))[:COMMONEST_WORDS]
    languages = languages or [language_of(" ".join(commonest))]
    listed_languages = [language for language in languages if language in SpellChecker.languages()]
    if not listed_languages:
        return f"the vocabulary alone: no list for {', '.join(languages)}", None
    frequencies = [0.0] * len(words)
    for language in listed_languages:
        # Up to 100 MB, of one language at a time.
        usage = SpellChecker(language=language).word_usage_frequency
        frequencies = [max(most, 1e6 * usage(word)) for most, word in zip(frequencies, words, strict=True)]
    return f"the general words of {', '.join(listed_languages)}", frequencies


def _estimate_savings(terms: list[dict[str, Any]], tokenizer: "Tokenizer") -> None:
    from tokenizers import Tokenizer

    # A byte-level vocabulary keeps the space before an added token as a token: the term alone would promise
    # too much.
    sentences = [f"of {term['term']} and" for term in terms]
    extended = Tokenizer.from_str(tokenizer.to_str())
    add_terms(extended, [term["term"] for term in terms])
    num_saved = cutting.encode(tokenizer, sentences).lengths() - cutting.encode(extended, sentences).lengths()
    for term, number in zip(terms, num_saved.tolist(), strict=True):
        term["num_tokens_saved"] = max(0, number) * term["num_occurrences"]


def _checks(metadata: AuditMetadata) -> list[CheckOutcome]:
    proposal = (
        f"; the {metadata.num_proposed_tokens} tokens of proposal.yaml would save"
        f" {metadata.proposal_saves_share:.1%} of all tokens"
        if metadata.num_proposed_tokens
        else ""
    )
    return [
        CheckOutcome(
            name=TERMS_ARE_WHOLE.name,
            passed=metadata.mean_term_pieces <= MAX_TERM_PIECES,
            severity="warn",
            description=(
                f"{metadata.mean_term_pieces:.2f} pieces a domain term (warns above {MAX_TERM_PIECES}); mined"
                f" against {metadata.general_words}; terms.json has the terms{proposal}"
            ),
            metadata=metadata.model_dump(include={"mean_term_pieces", "proposal_saves_share"}),
        ),
        CheckOutcome(
            name=CHARACTERS_ARE_KNOWN.name,
            passed=metadata.unknown_share <= MAX_UNKNOWN_SHARE
            and metadata.byte_fallback_share <= MAX_BYTE_SHARE,
            severity="warn",
            description=(
                f"{metadata.unknown_share:.4%} of the tokens are unknown to the tokenizer (warns above"
                f" {MAX_UNKNOWN_SHARE:.4%}), {metadata.byte_fallback_share:.4%} are single bytes of a"
                f" character (warns above {MAX_BYTE_SHARE:.4%})"
                + ("; take a base_model of their language" if metadata.unknown_share > 0.02 else "")
            ),
            metadata=metadata.model_dump(include={"unknown_share", "byte_fallback_share"}),
        ),
    ]
