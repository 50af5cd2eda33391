"""examples: raw documents -> valid labelled examples, and the quarantine of the rest with reasons."""

from fullft_assets.examples.expectations import problems
from fullft_assets.examples.rules import Rule, rules_for
from fullft_assets.examples.validation import (
    MERGED,
    SUPERSEDED,
    VERSION,
    Examined,
    count_labels,
    count_reasons,
    examine,
    key_settings,
    validate,
    write_examples,
)

__all__ = [
    "Examined",
    "MERGED",
    "Rule",
    "SUPERSEDED",
    "VERSION",
    "count_labels",
    "count_reasons",
    "examine",
    "key_settings",
    "problems",
    "rules_for",
    "validate",
    "write_examples",
]
