"""Scores models that find spans on the test rows: spans of the candidate, each baseline and the champion."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from fullft_assets import report
from fullft_assets.chunks import Tokenization, windows
from fullft_assets.evaluation import FINETUNED, external
from fullft_assets.snapshot import Split
from fullft_assets.tasks.baseline import Baseline
from fullft_assets.tasks.context import (
    EvaluationContext,
    EvaluationResult,
    column_of,
    pick_rows,
    shared_labels,
)
from fullft_assets.tasks.token_classification import assessment
from fullft_assets.tasks.token_classification.assessment import Span, SpanEvaluation
from fullft_assets.tasks.token_classification.tagging import (
    TokenizedTexts,
    find_spans,
    load_finder,
    normal,
    tags_of,
)

#: Characters of a test row that the report shows.
_SHOWN_CHARACTERS = 400
_SHOWN_SPANS = 8
_SPANS = pa.list_(pa.struct({"start": pa.int64(), "end": pa.int64(), "label": pa.string()}))


def evaluate(context: EvaluationContext, test: Split) -> EvaluationResult:
    """Score every system on the test rows."""
    settings, names = context.job.settings, context.labels
    assert test.spans is not None
    tokenization = Tokenization.load(context.base_model, settings.chunks, settings.examples.task)
    spans = _find_all(context, test, names, tokenization)
    truth, comparison = normal(test.texts, test.spans), context.comparison(test)
    right, num_tokens = count_right_tokens(tokenization, test.texts, truth, spans)
    evaluation = assessment.assess(truth, spans, right, num_tokens, test.groups, names, comparison)
    headline = {
        **evaluation.headline,
        "num_test_spans": evaluation.num_spans,
        "num_test_rows_without_spans": evaluation.num_rows_without_spans,
        "labels_without_test_spans": evaluation.unmeasured,
        **evaluation.errors.model_dump(),
    }
    examples = _pick_answers(test, truth, spans, evaluation, settings.seed)
    return EvaluationResult(
        evaluation, headline, _rows(test, truth, spans, right, num_tokens, names), examples
    )


def _find_all(
    context: EvaluationContext, test: Split, names: list[str], tokenization: Tokenization
) -> dict[str, list[list[Span]]]:
    def by_baseline(name: str, baseline: Baseline) -> list[list[Span]]:
        return in_order(baseline.predict(test), context.baseline_labels, names)

    def by_external(name: str, answers: list[list[dict[str, Any]]]) -> list[list[Span]]:
        return normal(test.texts, external.spans(name, answers, test, names))

    return context.predict_with_all(
        test, lambda name: _find(context, name, test, names), by_baseline, tokenization, by_external
    )


def _find(context: EvaluationContext, checkpoint: str, test: Split, names: list[str]) -> list[list[Span]]:
    """Return the spans that a checkpoint finds; each reads the texts with its own tokenizer, and spans are
    characters to all.
    """
    folder, settings = context.model_folder(checkpoint), context.job.settings
    reading = TokenizedTexts.of(
        Tokenization.load_saved(folder, settings.chunks, settings.examples.task), test.texts
    )
    model, labels = load_finder(folder)
    spans = find_spans(model, reading, progress=context.progress)
    del model
    # Two large models at a time may not fit.
    gc.collect()
    return in_order(spans, labels, names)


def in_order(
    spans: Sequence[Sequence[Span]], model_labels: Sequence[str], labels: Sequence[str]
) -> list[list[Span]]:
    """Return spans with the positions of their labels in `labels`; spans with another label are left out.

    Args:
        model_labels: the system's labels, in the order of its positions.
    """
    known = shared_labels(model_labels, labels)
    place = {number: labels.index(label) for number, label in enumerate(model_labels) if label in known}
    return [[(start, end, place[label]) for start, end, label in row if label in place] for row in spans]


def count_right_tokens(
    tokenization: Tokenization,
    texts: Sequence[str],
    truth: Sequence[Sequence[Span]],
    predicted: Mapping[str, Sequence[Sequence[Span]]],
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return how many tokens of each text have the true tag under each system's spans, and how many there
    are: int [n] each.
    """
    encoded, _ = tokenization.read(texts, spans=True)
    rows = np.repeat(np.arange(len(texts)), encoded.lengths())

    def tags(spans_of: Sequence[Sequence[Span]]) -> np.ndarray:
        marks = windows.locate_spans(
            encoded, texts, [[(start, end) for start, end, _ in row] for row in spans_of]
        ).marks
        edges = zip(encoded.bounds, encoded.bounds[1:], strict=False)
        each = [
            tags_of(marks[begin:end], [label for *_, label in row])
            for (begin, end), row in zip(edges, spans_of, strict=True)
        ]
        return np.concatenate(each)

    true = tags(truth)
    right = {
        name: np.bincount(rows[tags(spans_of) == true], minlength=len(texts))
        for name, spans_of in predicted.items()
    }
    return right, encoded.lengths()


def _pick_answers(
    test: Split,
    truth: Sequence[Sequence[Span]],
    predicted: Mapping[str, Sequence[Sequence[Span]]],
    evaluation: SpanEvaluation,
    seed: int,
) -> list[report.AnsweredRow]:
    tuned, baseline = predicted[FINETUNED], predicted[evaluation.justification.best_baseline]
    agrees = np.array(
        [
            set(of_finetuned) == set(of_baseline)
            for of_finetuned, of_baseline in zip(tuned, baseline, strict=True)
        ]
    )
    return [
        report.AnsweredRow(
            report.shorten(test.texts[i], _SHOWN_CHARACTERS),
            *(_listed(test.texts[i], each[i], evaluation.labels) for each in (truth, baseline, tuned)),
            id=test.ids[i],
        )
        for i in pick_rows(agrees, seed)
    ]


def _listed(text: str, row: Sequence[Span], names: Sequence[str]) -> str:
    shown = [
        f"{names[label]}: {report.shorten(text[start:end], 60)}" for start, end, label in sorted(set(row))
    ]
    more = f"; and {len(shown) - _SHOWN_SPANS} more" if len(shown) > _SHOWN_SPANS else ""
    return "; ".join(shown[:_SHOWN_SPANS]) + more if shown else "none"


def _rows(
    test: Split,
    truth: Sequence[Sequence[Span]],
    found: Mapping[str, Sequence[Sequence[Span]]],
    right_tokens: Mapping[str, np.ndarray],
    num_tokens: np.ndarray,
    names: Sequence[str],
) -> pa.Table:
    columns = {
        "id": test.ids,
        "num_spans": [len(set(row)) for row in truth],
        "num_tokens": num_tokens,
        "group": test.groups,
    }
    for name, spans in found.items():
        predicted = [
            [{"start": start, "end": end, "label": names[label]} for start, end, label in sorted(set(row))]
            for row in spans
        ]
        columns[column_of(name, "predicted")] = pa.array(predicted, _SPANS)
        columns[column_of(name, "num_predicted")] = [len(row) for row in predicted]
        columns[column_of(name, "num_right")] = [
            len(set(true) & set(row)) for true, row in zip(truth, spans, strict=True)
        ]
        columns[column_of(name, "num_right_tokens")] = right_tokens[name]
    return pa.table(columns)
