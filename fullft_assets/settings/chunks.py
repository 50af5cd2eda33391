"""The section `chunks`."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from fullft_assets.settings.base import Settings, with_fitting_default


class ChunksSettings(Settings):
    """How a text becomes the windows that the model reads."""

    REMOVED: ClassVar[Mapping[str, str]] = {
        "boundaries": "windows share `stride` tokens, so that no sentence is without its context",
        "terms": "the tokenizer audit mines its terms from the corpus",
        "general_words": "name the languages of the texts in `examples.languages`",
        "max_term_pieces": "the audit warns above 3 tokens a domain term",
        "max_unknown_share": "the audit warns above 0.1% unknown tokens",
        "max_byte_fallback_share": "the audit warns above 1% single bytes",
    }

    max_tokens: int = Field(
        default=256,
        ge=8,
        le=1_048_576,
        description="Longest window in tokens, special tokens included; at most what the model takes.",
    )
    stride: int = Field(
        default=32,
        ge=0,
        description=(
            "Tokens that two neighbouring windows of a long text share, so that context is kept. Default: 32,"
            " or a quarter of max_tokens where that is less; for language_modeling 0, so that each token is"
            " trained once."
        ),
    )
    max_windows: int | None = Field(
        default=None,
        ge=1,
        description=(
            "Maximum number of windows of one text; tokens that are cut off are counted. Default: no limit."
        ),
    )
    train_on: Literal["assistant", "last_turn", "everything"] = Field(
        default="assistant",
        description=(
            "Which tokens of a conversation are trained: all assistant turns, the last one, or every token."
        ),
    )
    added_tokens: list[str] = Field(
        default_factory=list,
        description=(
            "Domain terms that are added to the tokenizer as tokens; the tokenizer audit proposes some."
        ),
    )

    @model_validator(mode="before")
    @classmethod
    def _default_stride_fits(cls, data: Any) -> Any:
        return with_fitting_default(data, "stride", 32, other="max_tokens", divisor=4)
