"""The next token: conversations (sft) and plain text (language_modeling)."""

from fullft_assets.tasks.language.task import LANGUAGE_MODELING, SFT
