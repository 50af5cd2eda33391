"""Checks of a snapshot: their declarations, and the outcomes that are computed from the result as one."""

import math
from typing import Literal

from fullft_assets.examples.labels import variants
from fullft_assets.examples.outcomes import agreement_outcome
from fullft_assets.examples.rules import snapshot_rules
from fullft_assets.settings import ExamplesSettings, UseCaseSettings
from fullft_assets.snapshot.batches import ARCHIVED_FILES_COUNT
from fullft_assets.snapshot.deliveries import IDS_NAME_ONE_DOCUMENT, LATER_ROWS_ARE_NEWER
from fullft_assets.snapshot.group_splits import MOST_TEST_SHARE
from fullft_assets.snapshot.labels import LABELS_ARE_COMMON, LABELS_ARE_SPLIT
from fullft_assets.snapshot.metadata import SnapshotMetadata
from fullft_assets.snapshot.split import (
    SPLITS_ARE_DISJOINT,
    TRAINING_ROWS_SUFFICE,
    Frozen,
)
from fullft_assets.store import CheckOutcome
from fullft_assets.store.checks import CheckSpec
from fullft_assets.task import task_of

CHECKS = (
    SPLITS_ARE_DISJOINT,
    TRAINING_ROWS_SUFFICE,
    IDS_NAME_ONE_DOCUMENT,
    LATER_ROWS_ARE_NEWER,
    ARCHIVED_FILES_COUNT,
)
#: Not of the artifact, whose key does not have the settings of the release.
VERDICT_IS_POSSIBLE = CheckSpec(
    "verdict_is_possible", "There are as many test groups as a verdict needs at least."
)
#: Rules on row identity, over all batches; their severity is that of examples.severities.
_IDENTITY = {
    "ids_are_unique": "No id is twice in one file.",
    "texts_are_unique": "Texts are unique, but for few copies, of which one counts.",
    "equal_texts_have_equal_labels": (
        "No two equal texts have different labels, and no vote of annotators is tied."
    ),
    "labels_have_one_spelling": "No two labels differ only in case, or in what separates their words.",
    "annotators_agree": "Annotators whose answers are rows of one id agree beyond chance.",
}
#: What happens to the rows that break a rule on row identity, and what to do about it.
_CONSEQUENCES = {
    "ids_are_unique": (
        "rows have an id that a later row of their file has, such as {} and {}, and only the last one"
        " counts; give each document an id of its own"
    ),
    "texts_are_unique": "rows repeat another row's text and are excluded",
    "equal_texts_have_equal_labels": (
        "rows have the text of a row with another label, or of a tied vote, and are all excluded; deliver "
        "those of one label again with the other, or one row of the tied id without an annotator"
    ),
}


def checks_of(settings: UseCaseSettings) -> tuple[CheckSpec, ...]:
    """Return the checks that a use case's snapshot has."""
    return (
        *CHECKS,
        *((LABELS_ARE_COMMON, LABELS_ARE_SPLIT) if task_of(settings.examples).has_labels else ()),
        *(
            CheckSpec(name, f"{_IDENTITY[name]} Over all batches.", blocking=rule.severity == "error")
            for name, rule in snapshot_rules(settings.examples).items()
        ),
    )


def identity_outcomes(frozen: Frozen, settings: ExamplesSettings) -> list[CheckOutcome]:
    """Return the outcomes of the rules on row identity, over all batches."""
    outcomes = []
    for name, rule in snapshot_rules(settings).items():
        if name == "annotators_agree":
            outcomes.append(agreement_outcome(rule, frozen.agreement))
            continue
        if name == "labels_have_one_spelling":
            outcomes.append(_spelling_outcome(frozen.labels, rule.severity))
            continue
        count = frozen.num_breaking[name]
        is_harmless = (
            name == "texts_are_unique"
            and rule.severity == "warn"
            # From so large a share of the rows on, copies are a fault of the delivery.
            and count < 0.1 * (count + len(frozen.index))
        )
        fix = "; look at how the files are made" if name == "texts_are_unique" and not is_harmless else ""
        outcomes.append(
            CheckOutcome(
                name=name,
                passed=not count or is_harmless,
                severity=rule.severity,
                description=f"{count:,} {_CONSEQUENCES[name].format(*frozen.twice)}{fix}" if count else "",
                metadata={"num_failed": count},
            )
        )
    return outcomes


def _spelling_outcome(labels: list[str], severity: Literal["error", "warn"]) -> CheckOutcome:
    labels_of_several = variants(labels)
    return CheckOutcome(
        name="labels_have_one_spelling",
        passed=not labels_of_several,
        severity=severity,
        description=(
            f"{sum(map(len, labels_of_several)):,} labels are {len(labels_of_several):,} in several"
            " spellings, and the model learns to tell them apart; the data report names them: list one"
            " spelling of each in examples.labels, or fix the source"
            if labels_of_several
            else ""
        ),
        metadata={"num_labels": len(labels), "num_spellings": sum(map(len, labels_of_several))},
    )


def verdict_check(metadata: SnapshotMetadata, settings: UseCaseSettings) -> CheckOutcome:
    """Return whether the test groups, of equal weight at best, are as many as a verdict needs; what else
    would do where they are not.
    """
    num_groups = metadata.num_test_groups
    num_needed = settings.release.min_effective_groups
    group = settings.examples.group
    more = math.ceil((num_needed - num_groups) / settings.snapshot.least_test_share)
    of_few = "" if settings.snapshot.test_share else f" (of 100 in all {MOST_TEST_SHARE:.0%})"
    finer = "" if group is None else f", name a field with more values than `{group}` in examples.group"
    return CheckOutcome(
        name=VERDICT_IS_POSSIBLE.name,
        passed=num_groups >= num_needed,
        severity="warn",
        description=(
            ""
            if num_groups >= num_needed
            else (
                f"{num_groups:,} test groups, and a verdict needs {num_needed:g}"
                " (release.min_effective_groups),"
                f" so that of any training will be insufficient data: deliver about {more:,} more groups, of"
                f" which {settings.snapshot.least_test_share:.0%} are tested{of_few}{finer}, or lower"
                " release.min_effective_groups"
            )
        ),
        metadata={"num_test_groups": num_groups},
    )
