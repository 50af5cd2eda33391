"""examples: raw documents -> valid labelled examples, and the quarantine of the rest with reasons."""

from fullft_assets.examples.expectations import problems
from fullft_assets.examples.outcomes import count_reasons, reasons_of
from fullft_assets.examples.rules import Rule, checks_of, rules_for
from fullft_assets.examples.validation import (
    QUARANTINED,
    VERSION,
    Examined,
    ExamplesMetadata,
    QuarantineMetadata,
    count_labels,
    examine,
    key_settings,
    validate,
    write_examples,
)
