"""chunks: texts -> windows of token ids, tokenised once; and the audit of how the tokenizer treats the domain."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fullft_assets.base_model import resolve_base_model
from fullft_assets.errors import DataError, SettingsError
from fullft_assets.settings import ChunksSettings, UseCaseSettings
from fullft_assets.store import CheckOutcome, Draft, Manifest, Outcome, Store

if TYPE_CHECKING:
    import pyarrow as pa
    from tokenizers import Tokenizer

    from fullft_assets.use_case import UseCase

VERSION = "2"
_WORD = re.compile(r"[^\W\d_][\w'-]*")
#: Distinct words kept of each batch for the audit; rarer ones say little about the domain.
_WORDS_KEPT = 5_000


@dataclass(frozen=True)
class Tokenization:
    """A tokenizer with the use case's window settings."""

    tokenizer: Tokenizer
    prefix: list[int]
    suffix: list[int]
    unknown_id: int | None
    settings: ChunksSettings
    digest: str

    @classmethod
    def load(cls, model_folder: Path, settings: ChunksSettings) -> Tokenization:
        """Read `tokenizer.json` of a model folder.

        Raises:
            SettingsError: the folder has no such file, or special tokens leave no room for text.
        """
        from tokenizers import Tokenizer

        path = model_folder / "tokenizer.json"
        if not path.is_file():
            raise SettingsError(f"{path}: not found; base_model needs a fast tokenizer (tokenizer.json)")
        tokenizer = Tokenizer.from_file(str(path))
        # Files often carry a truncation and a padding of their own; both would cut or pad silently here.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        prefix, suffix = _special_ids(tokenizer)
        if len(prefix) + len(suffix) + 1 > settings.max_tokens - settings.stride:
            raise SettingsError(f"chunks.max_tokens: {settings.max_tokens} leaves no room beside special tokens and stride")
        unknown = getattr(tokenizer.model, "unk_token", None)
        unknown_id = tokenizer.token_to_id(unknown) if unknown else None
        return cls(tokenizer, prefix, suffix, unknown_id, settings, hashlib.sha256(path.read_bytes()).hexdigest()[:20])

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Return each text's token ids, without special tokens."""
        return [e.ids for e in self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def windows(self, texts: list[str]) -> list[list[list[int]]]:
        """Return each text's windows of token ids, special tokens included; neighbours share `stride` ids."""
        return [self.cut(ids) for ids in self.encode(texts)]

    def cut(self, ids: list[int]) -> list[list[int]]:
        """Cut one text's ids into windows; every id is in at least one, unless `max_windows` says otherwise."""
        room = self.settings.max_tokens - len(self.prefix) - len(self.suffix)
        step = room - self.settings.stride
        count = max(1, -(-(len(ids) - self.settings.stride) // step))
        if self.settings.max_windows is not None:
            count = min(count, self.settings.max_windows)
        return [[*self.prefix, *ids[i * step : i * step + room], *self.suffix] for i in range(count)]

    def num_cut_off(self, num_tokens: int) -> int:
        """Return how many of a text's tokens are in no window."""
        room = self.settings.max_tokens - len(self.prefix) - len(self.suffix)
        if self.settings.max_windows is None:
            return 0
        return max(0, num_tokens - (self.settings.max_windows - 1) * (room - self.settings.stride) - room)


def _special_ids(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    plain = tokenizer.encode("a", add_special_tokens=False).ids
    full = tokenizer.encode("a", add_special_tokens=True).ids
    for start in range(len(full) - len(plain) + 1):
        if full[start : start + len(plain)] == plain:
            return full[:start], full[start + len(plain) :]
    raise SettingsError("tokenizer.json: its post-processor changes the text's own ids; it cannot be windowed")


def tokenize(store: Store, use_case: UseCase, examples: Manifest) -> Manifest:
    """Tokenise a batch once and write its windows.

    Raises:
        GateError: a check on the batch's examples is red.
    """
    import pyarrow.parquet as pq

    examples.require_green("tokenized_chunks")
    settings = use_case.settings
    tokenization = Tokenization.load(resolve_base_model(settings.base_model, use_case.project_root), settings.chunks)

    def write(draft: Draft) -> Outcome:
        chunked = chunk(pq.read_table(store.folder(examples) / "examples.parquet", columns=["id", "text"]), tokenization)
        pq.write_table(chunked.table, draft.path / "chunks.parquet")
        (draft.path / "words.json").write_text(json.dumps(chunked.words, ensure_ascii=False), encoding="utf-8")
        cut = chunked.metadata["num_rows_cut"]
        check = CheckOutcome(
            name="texts_are_kept_whole",
            passed=not cut,
            severity="warn",
            description=f"{cut:,} texts end at chunks.max_windows; {chunked.metadata['num_tokens_cut_off']:,} tokens are not read; "
            "raise chunks.max_windows or chunks.max_tokens"
            if cut
            else "",
            metadata={"num_rows_cut": cut, "num_tokens_cut_off": chunked.metadata["num_tokens_cut_off"]},
        )
        return {"batch": examples.metadata["batch"], **chunked.metadata}, [check]

    return store.ensure(
        use_case.name,
        "tokenized_chunks",
        write,
        version=VERSION,
        settings=key_settings(settings),
        inputs={"labeled_examples": examples.content_digest, "tokenizer": tokenization.digest},
        seed=settings.seed,
    )


def key_settings(settings: UseCaseSettings) -> dict[str, Any]:
    """Return the settings that shape the chunks."""
    return settings.chunks.model_dump(include={"max_tokens", "stride", "max_windows"})


def audit_tokenizer(store: Store, use_case: UseCase, batches: Mapping[str, Manifest]) -> Manifest:
    """Audit the tokenizer over all batches and write the terms, most shredded first.

    Raises:
        DataError: no batch was tokenised yet.
    """
    if not batches:
        raise DataError(f"{use_case.name}: no batch is tokenised yet; run {use_case.name}_ingest first")
    settings = use_case.settings
    tokenization = Tokenization.load(resolve_base_model(settings.base_model, use_case.project_root), settings.chunks)

    def write(draft: Draft) -> Outcome:
        words = [json.loads((store.folder(batch) / "words.json").read_text(encoding="utf-8")) for batch in batches.values()]
        found = audit([batch.metadata for batch in batches.values()], words, tokenization)
        (draft.path / "terms.json").write_text(json.dumps(found.terms, indent=1, ensure_ascii=False), encoding="utf-8")
        return {**found.metadata, "worst_terms": found.terms[:10]}, found.checks

    return store.ensure(
        use_case.name,
        "tokenizer_audit",
        write,
        version=VERSION,
        settings=settings.chunks.model_dump(include={"terms", "max_term_pieces", "max_unknown_share"}),
        inputs={"tokenizer": tokenization.digest, "chunks": sorted(batch.content_digest for batch in batches.values())},
        seed=settings.seed,
    )


@dataclass(frozen=True)
class Chunked:
    """A batch's windows and what was counted on the way."""

    table: pa.Table
    words: dict[str, int]
    metadata: dict[str, Any]


def chunk(examples: pa.Table, tokenization: Tokenization) -> Chunked:
    """Tokenise a batch.

    Args:
        examples: table with `id` and `text`.
        tokenization: the tokenizer and window settings.

    Returns:
        A table with `id`, `num_tokens`, `windows` (list of lists of int32) in the examples' order;
        document frequencies of the commonest words; and counts.
    """
    import pyarrow as pa

    texts = examples["text"].to_pylist()
    encoded = tokenization.encode(texts)
    num_tokens = [len(ids) for ids in encoded]
    windows = [tokenization.cut(ids) for ids in encoded]
    cut_off = [tokenization.num_cut_off(count) for count in num_tokens]
    words = [_WORD.findall(text) for text in texts]
    unknown = tokenization.unknown_id
    table = pa.table(
        {
            "id": examples["id"],
            "num_tokens": pa.array(num_tokens, pa.int32()),
            "windows": pa.array(windows, pa.list_(pa.list_(pa.int32()))),
        }
    )
    frequency = Counter(word for found in words for word in {w.lower() for w in found})
    # Sets iterate in another order in each process: ties are broken by the word, or equal data had unequal digests.
    commonest = dict(sorted(frequency.items(), key=lambda item: (-item[1], item[0]))[:_WORDS_KEPT])
    metadata = {
        "num_rows": len(texts),
        "num_tokens": sum(num_tokens),
        "num_windows": sum(map(len, windows)),
        "num_words": sum(map(len, words)),
        "num_unknown_tokens": 0 if unknown is None else sum(ids.count(unknown) for ids in encoded),
        "num_rows_of_several_windows": sum(len(found) > 1 for found in windows),
        "num_rows_cut": sum(count > 0 for count in cut_off),
        "num_tokens_cut_off": sum(cut_off),
        "longest_text_tokens": max(num_tokens, default=0),
    }
    return Chunked(table, commonest, metadata)


@dataclass(frozen=True)
class Audit:
    """How the tokenizer treats the domain's language."""

    terms: list[dict[str, Any]]
    metadata: dict[str, Any]
    checks: list[CheckOutcome]


def audit(counts: Iterable[dict[str, Any]], words: Iterable[dict[str, int]], tokenization: Tokenization) -> Audit:
    """Audit the tokenizer on all batches.

    Args:
        counts: `Chunked.metadata` of each batch.
        words: `Chunked.words` of each batch.
        tokenization: the tokenizer and the thresholds.

    Returns:
        The terms (given, or the 200 commonest words of five letters and more), most shredded first, with
        their pieces; fertility (tokens a word) and unknown share; and the checks on the thresholds.
    """
    settings = tokenization.settings
    totals: Counter[str] = Counter()
    for batch in counts:
        totals.update({name: batch[name] for name in ("num_tokens", "num_words", "num_unknown_tokens")})
    frequency: Counter[str] = Counter()
    for batch in words:
        frequency.update(batch)
    commonest = sorted(frequency, key=lambda word: (-frequency[word], word))
    terms = settings.terms or [word for word in commonest if len(word) >= 5][:200]
    pieces = [tokenization.tokenizer.encode(term, add_special_tokens=False).tokens for term in terms]
    rows = [
        {"term": term, "num_documents": frequency.get(term.lower(), 0), "num_pieces": len(p), "pieces": " ".join(p)}
        for term, p in zip(terms, pieces, strict=True)
    ]
    rows.sort(key=lambda row: (-row["num_pieces"], -row["num_documents"], row["term"]))
    mean_pieces = sum(len(p) for p in pieces) / max(1, len(pieces))
    unknown_share = totals["num_unknown_tokens"] / max(1, totals["num_tokens"])
    worst = ", ".join(f"{row['term']} ({row['pieces']})" for row in rows[:3])
    checks = [
        CheckOutcome(
            name="domain_terms_are_kept_whole",
            passed=mean_pieces <= settings.max_term_pieces,
            severity="warn",
            description=f"{mean_pieces:.2f} pieces a domain term (warns above {settings.max_term_pieces}); worst: {worst}",
            metadata={"mean_term_pieces": mean_pieces},
        ),
        CheckOutcome(
            name="unknown_tokens_are_rare",
            passed=unknown_share <= settings.max_unknown_share,
            severity="warn",
            description=f"{unknown_share:.4%} of the tokens are unknown to the tokenizer (warns above {settings.max_unknown_share:.4%})",
            metadata={"unknown_share": unknown_share},
        ),
    ]
    metadata = {
        "fertility": totals["num_tokens"] / max(1, totals["num_words"]),
        "unknown_share": unknown_share,
        "mean_term_pieces": mean_pieces,
        "num_terms": len(terms),
    }
    return Audit(rows, metadata, checks)
