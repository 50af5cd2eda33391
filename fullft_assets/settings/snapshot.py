"""The sections `chunks` and `snapshot`."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from fullft_assets.settings.base import Float, Settings


class ChunksSettings(Settings):
    """How a text becomes the chunks that the model reads."""

    REMOVED: ClassVar[Mapping[str, str]] = {
        "boundaries": "chunks share `stride` tokens, so that no sentence is without its context",
        "terms": "the tokenizer audit mines its terms from the corpus",
        "general_words": "name the languages of the texts in `examples.languages`",
        "max_term_pieces": "the audit warns above 3 tokens a domain term",
        "max_unknown_share": "the audit warns above 0.1% unknown tokens",
        "max_windows": "use `max_chunks`",
        "max_byte_fallback_share": "the audit warns above 1% single bytes",
    }

    max_tokens: int = Field(
        default=256,
        ge=8,
        le=1_048_576,
        description="Longest chunk in tokens, special tokens included; at most what the model takes.",
    )
    stride: int = Field(
        default=32,
        ge=0,
        description=(
            "Tokens that two neighbouring chunks of a long text share, so that context is kept. Default: 32,"
            " or a quarter of max_tokens where that is less; for language_modeling 0, so that each token is"
            " trained once."
        ),
    )
    max_chunks: int | None = Field(
        default=None,
        ge=1,
        description=(
            "Maximum number of chunks of one text; tokens that are cut off are counted. Default: no limit."
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

    def shaping(self) -> dict[str, Any]:
        """Return the settings that shape chunks, under the names that manifests have recorded from the
        beginning.
        """
        return {"max_tokens": self.max_tokens, "stride": self.stride, "max_windows": self.max_chunks}

    @classmethod
    def from_manifest(cls, recorded: Mapping[str, Any]) -> Self:
        """Return the settings that a manifest recorded."""
        return super().from_manifest({"max_chunks": recorded.get("max_windows"), **recorded})

    @model_validator(mode="before")
    @classmethod
    def _default_stride_fits(cls, data: Any) -> Any:
        # Who makes chunks smaller need not set a second key; values of a wrong type are left to their fields.
        bound = data.get("max_tokens") if isinstance(data, Mapping) and "stride" not in data else None
        return {**data, "stride": bound // 4} if isinstance(bound, int) and 4 <= bound < 4 * 32 else data


class ReplaySettings(Settings):
    """General data mixed into training, so that the model forgets less."""

    path: str = Field(
        description=(
            "Folder with general documents, in any of the formats; field `text` (or messages for sft)."
        )
    )
    share: Float = Field(
        default=0.1, gt=0, lt=1, description="Share of all training tokens that are general data."
    )


class GeneralSettings(Settings):
    """General documents that are never trained on; forgetting is measured on them."""

    path: str = Field(
        description=(
            "Folder with general documents, in any of the formats; field `text` (or messages for sft). It may"
            " be the folder of snapshot.replay."
        )
    )
    max_tokens: int = Field(
        default=20_000,
        ge=100,
        le=100_000_000,
        description="Number of tokens that are scored before training and at each validation.",
    )


class SnapshotSettings(Settings):
    """How the examples are split and frozen."""

    REMOVED: ClassVar[Mapping[str, str]] = {
        "contained_share": "texts that share 95% of their shingles are one",
        "near_duplicate_similarity": "the default of 0.8 holds",
        "screen_words": "the default of 13 holds",
        "recommended_train_rows": "the pilot says whether more rows help",
        "rare_labels": "rare labels are set aside; set `min_rows_per_label: 1` to keep them",
        "max_share_difference": "the default of 0.2 holds",
    }

    test_share: Float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description=(
            "Share of groups held out for the test set. Default: 0.15; of 100 to 240 groups more, so that a"
            " verdict is possible, at most 0.3."
        ),
    )
    validation_share: Float = Field(
        default=0.1, gt=0, lt=1, description="Share of groups held out for validation."
    )
    max_heldout_rows_per_group: int = Field(
        default=10,
        ge=1,
        description=(
            "Maximum number of test rows, and of validation rows, of one group: giant groups break confidence"
            " intervals."
        ),
    )
    #: Share of a text's word shingles that one longer text has at which the first is inside the second.
    contained_share: ClassVar[float] = 0.95
    screen: list[str] = Field(
        default_factory=list,
        description=(
            "Files or folders with external evaluation sets; training rows that overlap with one are excluded"
            " and counted."
        ),
    )
    replay: ReplaySettings | None = Field(
        default=None, description="General data for the tasks sft and language_modeling. Default: none."
    )
    general: GeneralSettings | None = Field(
        default=None,
        description=(
            "General documents on which forgetting is measured; they are held out from replay. Default: none."
        ),
    )
    max_train_rows: int | None = Field(
        default=None,
        ge=1,
        description=(
            "Maximum number of training rows, drawn by hash; use it to fit a time budget. Default: all rows."
        ),
    )
    max_validation_rows: int | None = Field(
        default=2_000, ge=1, description="Maximum number of validation rows, drawn by hash."
    )
    min_train_rows: int = Field(
        default=100, ge=1, description="With fewer training rows, training is refused."
    )
    min_rows_per_label: int = Field(
        default=5,
        ge=1,
        description=(
            "A label with fewer rows can be neither learned nor measured: it is set aside and counted. 1:"
            " none is."
        ),
    )

    @property
    def least_test_share(self) -> float:
        """`test_share`, or what is tested of many groups where it is not given."""
        return self.test_share or 0.15
