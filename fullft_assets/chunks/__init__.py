"""chunks: examples -> token ids, cut into chunks, with their marks, tokenised once; and the audit of how the
tokenizer treats the domain.
"""

from fullft_assets.chunks.audit import (
    CHECKS as AUDIT_CHECKS,
    VERSION as AUDIT_VERSION,
    Audit,
    AuditMetadata,
    audit_tokenizer,
)
from fullft_assets.chunks.chat import ChatTemplate
from fullft_assets.chunks.tokenization import (
    Tokenization,
    former_pieces,
    load_tokenization,
    save_tokenizer,
    tokenizer_digest,
)
from fullft_assets.chunks.tokenizing import (
    VERSION,
    ChunksMetadata,
    Expected,
    check_specs,
    checks,
    chunk,
    key_settings,
    rows_without_trained_tokens,
    schema,
    tokenize,
)
