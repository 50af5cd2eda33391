"""Language models: conversations (sft) and plain text (language_modeling)."""
