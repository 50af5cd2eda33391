"""losses: rows of a sample that the rules will quarantine, and those that the snapshot will exclude because
of other rows.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fullft_assets.checking.corpus import Corpus, Sampled
from fullft_assets.escaping import quoted
from fullft_assets.examples import damage, language
from fullft_assets.examples.label_names import may_be_named
from fullft_assets.examples.rules import REASONS, ROLES
from fullft_assets.personal_data import pii
from fullft_assets.settings import ExamplesSettings, UseCaseSettings
from fullft_assets.task import Target, Task, task_of

OLDER, _RARE = "superseded by a newer row of their id", "rows of labels that are set aside"


@dataclass(frozen=True)
class Losses:
    """What the rules and the snapshot will exclude of a sample.

    Rows that annotators vote with are only judged by the rules.

    Attributes:
        quarantined: rows by the first reason that a rule has to quarantine them.
        excluded: rows that the snapshot excludes because of other rows, by reason; at least so many, as not
            both copies are in each sample.
        rows_left: the other rows.
        labels_left: of the rows that are left, those that are common enough.
    """

    quarantined: Counter[str]
    excluded: Counter[str]
    rows_left: list[Sampled]
    labels_left: set[str]


def labels_of(found: Sampled, target: Target | None, examples: ExamplesSettings) -> list[str]:
    """Return the labels of a row, in the case that examples.labels has."""
    value = found.row.get(target or "label")
    names = (
        [value]
        if isinstance(value, str)
        else [each["label"] if isinstance(each, dict) else each for each in value or []]
    )
    known = {label.casefold(): label for label in examples.labels or []}
    return [known.get(name.casefold(), name) for name in names]


def broken(found: Sampled, examples: ExamplesSettings) -> list[str]:
    """Return the reasons that a row would be quarantined for, as far as they are seen without Great
    Expectations.
    """
    row, task = found.row, task_of(examples)
    if "problem" in row:
        return [REASONS["rows_are_well_formed"]]
    text = row.get("text", "")
    target = row.get(task.target or "label")
    labels = labels_of(found, task.target, examples)
    confidence = row.get("confidence")
    wanted = examples.languages and {*examples.languages, language.UNKNOWN}
    breaks = {
        "texts_are_present": not text.strip() and not found.is_elsewhere,
        "text_lengths_are_in_bounds": (
            bool(text.strip()) and not examples.min_characters <= len(text) <= examples.max_characters
        ),
        "languages_are_expected": bool(wanted) and "text" in row and language.language_of(text) not in wanted,
        "encodings_are_intact": damage.damage_share(text) > examples.max_damage_share,
        "personal_data_is_absent": (
            examples.pii == "quarantine" and bool(pii.find(text, pii.kinds_named(examples.pii_kinds)))
        ),
        "labels_are_present": task.has_labels and target is None,
        "labels_are_known": (
            task.has_labels
            and examples.labels is not None
            and any(label not in examples.labels for label in labels)
        ),
        "spans_are_in_range": (
            task.target == "spans" and any(not 0 <= s["start"] < s["end"] <= len(text) for s in target or [])
        ),
        "assistant_turns_are_present": task.has_messages and _lacks_answers(row.get("messages") or []),
        "annotations_are_confident": (
            confidence is not None and not examples.min_confidence <= confidence <= 1
        ),
        "annotations_are_human": examples.human_annotated_only and row.get("human_annotated") is False,
    }
    return [
        REASONS[rule]
        for rule, is_broken in breaks.items()
        if is_broken and examples.severities.get(rule) != "off"
    ]


def _lacks_answers(turns: list[dict[str, Any]]) -> bool:
    answers = [turn for turn in turns if turn["role"] == "assistant"]
    return (
        not answers
        or any(turn["role"] not in ROLES for turn in turns)
        or any(not (turn["content"] or "").strip() for turn in answers)
    )


def losses_of(corpus: Corpus, settings: UseCaseSettings) -> Losses:
    """Return what the rules and the snapshot will exclude of a sample."""
    rows, examples, target = corpus.sample, settings.examples, task_of(settings.examples).target
    reasons = [broken(found, examples)[:1] for found in rows]
    valid = [
        found
        for found, why in zip(rows, reasons, strict=True)
        if not why and not found.is_elsewhere and "annotator" not in found.row
    ]
    newest = {found.row.get("id", found.place): found for found in valid}
    answers: dict[str, set[str]] = {}
    for found in newest.values():
        answers.setdefault(found.row["text"], set()).add(_answer(found, target, examples))
    agreed = [found for found in newest.values() if len(answers[found.row["text"]]) == 1]
    different = {found.row["text"]: found for found in agreed}
    rare = set()
    if settings.snapshot.min_rows_per_label > 1:
        scale = max(1.0, (corpus.num_rows or 0) / max(1, len(rows)))
        counts = Counter(
            label for found in different.values() for label in set(labels_of(found, target, examples))
        )
        rare = {
            label for label, count in counts.items() if count * scale < settings.snapshot.min_rows_per_label
        }
    kept = {
        text: [label for label in labels_of(found, target, examples) if label not in rare]
        for text, found in different.items()
    }
    # A row that may have several labels only loses the rare ones.
    rare_rows = {
        text
        for text, found in different.items()
        if target != "labels" and len(kept[text]) < len(labels_of(found, target, examples))
    }
    lost = {
        OLDER: len(valid) - len(newest),
        REASONS["equal_texts_have_equal_labels"]: len(newest) - len(agreed),
        REASONS["texts_are_unique"]: len(agreed) - len(different),
        _RARE: len(rare_rows),
    }
    return Losses(
        Counter(why for found in reasons for why in found),
        +Counter(lost),
        [found for text, found in different.items() if text not in rare_rows],
        {label for labels in kept.values() for label in labels},
    )


def _answer(found: Sampled, target: Target | None, examples: ExamplesSettings) -> str:
    """Return what the model is to learn of a row, as text that is equal where it is the same."""
    if target == "spans":
        return json.dumps(found.row.get("spans"), sort_keys=True)
    return json.dumps(sorted(set(labels_of(found, target, examples))))


def refusals(corpus: Corpus, losses: Losses, settings: UseCaseSettings) -> Iterator[str]:
    """Yield why a run would stop at these rows: too many would be quarantined, or too few labels would be
    left.
    """
    rows, examples, task = corpus.sample, settings.examples, task_of(settings.examples)
    num_quarantined, most = losses.quarantined.total(), examples.max_quarantined_share
    if num_quarantined > most * len(rows):
        counted = f"{num_quarantined:,} of {len(rows):,} rows read would be quarantined"
        yield (
            f"{counted}, more than examples.max_quarantined_share ({most:g}): fix the rows, or the rule that"
            " `loss` below names"
        )
    elif rows and task.has_labels and is_whole(corpus) and len(losses.labels_left) < task.min_labels:
        yield _too_few_labels(rows, losses, settings, task)


def is_whole(corpus: Corpus) -> bool:
    """Return whether the sample is all there is to judge labels by: no part of the rows, and nothing that
    annotators decide by their votes.
    """
    rows = corpus.sample
    return (
        corpus.is_exact
        and len(rows) == corpus.num_rows
        and not any(found.is_elsewhere or "annotator" in found.row for found in rows)
    )


def _too_few_labels(rows: list[Sampled], losses: Losses, settings: UseCaseSettings, task: Task) -> str:
    labels = {label for found in rows for label in labels_of(found, task.target, settings.examples)}
    if len(labels) == 1:
        only = f" ({quoted(min(labels))})" if may_be_named(labels) else ""
        return (
            f"examples.label: all {len(rows):,} rows have one label{only}, and a classifier needs two: name"
            " another field, or deliver other rows"
        )
    why = ", ".join(f"{count:,} {reason}" for reason, count in (losses.quarantined + losses.excluded).items())
    left = (
        f"examples.label: of {len(labels):,} labels in {len(rows):,} rows, {len(losses.labels_left):,} would"
        f" be left ({why}), and the task needs {task.min_labels}"
    )
    return (
        f"{left}: name another field, deliver more rows, or lower snapshot.min_rows_per_label"
        f" ({settings.snapshot.min_rows_per_label})"
    )
