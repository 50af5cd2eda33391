"""What the manifests of a batch's chunks and of the tokenizer's audit contain beside their files."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from fullft_assets.store.metadata import Metadata


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
