"""The evaluation of labelled spans: F1 of exact spans, and what kind of errors there are.

A predicted span is right where a true one has the same first and last character and the same label, as the
entity-level scores of CoNLL-2003 (Tjong Kim Sang and De Meulder 2003, arXiv cs/0306050) and seqeval count,
there in words. Spans are compared without the white space at their ends. Micro-F1 counts all labels' spans
together, macro-F1 is the mean over the labels that the test rows have. A true span that no chunk holds, or
that shares all its tokens with another, still counts: it was not found.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from fullft_assets.evaluation.base import LabelEvaluation, label_fields, weakest_label
from fullft_assets.evaluation.comparison import Comparison
from fullft_assets.evaluation.intervals import Record
from fullft_assets.evaluation.metrics.base import Predictions, compute

#: (start, end exclusive, position of the label), in characters.
Span = tuple[int, int, int]
METRICS = ("micro_f1", "macro_f1")


class SpanErrors(Record):
    """What is wrong with the fine-tuned model's spans.

    Attributes:
        num_wrong_label: predicted at the place of a true one, with another label.
        num_wrong_edges: predicted over a part of a true one, or over more.
        num_invented: predicted where no true one is.
        num_missed: true ones that no predicted one overlaps.
    """

    num_right: int
    num_wrong_label: int
    num_wrong_edges: int
    num_invented: int
    num_missed: int


class SpanEvaluation(LabelEvaluation):
    """Everything measured of a model that finds spans."""

    num_spans: int
    num_rows_without_spans: int
    errors: SpanErrors

    @property
    def limits(self) -> list[str]:
        sentences = weakest_label(self.per_label, "test spans")
        errors = self.errors
        sentences.append(
            f"Of {self.num_spans:,} true spans it finds {errors.num_right:,} exactly and misses"
            f" {errors.num_missed:,} altogether; {errors.num_wrong_edges:,} of its spans have wrong edges,"
            f" {errors.num_wrong_label:,} a wrong label, and {errors.num_invented:,} are where there is none."
        )
        return sentences


def count_spans(
    truth: Sequence[Sequence[Span]], predicted_spans: Sequence[Sequence[Span]], num_labels: int
) -> tuple[np.ndarray, ...]:
    """Return exactly found, true and predicted spans of each row and label: int [rows, labels] each; a span
    twice counts once.
    """
    tables = tuple(np.zeros((len(truth), num_labels), np.int64) for _ in range(3))
    for row, (true, answer) in enumerate(zip(map(set, truth), map(set, predicted_spans), strict=True)):
        for table, spans in zip(tables, (true & answer, true, answer), strict=True):
            for _, _, label in spans:
                table[row, label] += 1
    return tables


def scores(
    truth: Sequence[Sequence[Span]], predicted_spans: Sequence[Sequence[Span]], num_labels: int
) -> dict[str, float]:
    """Return micro-F1 and macro-F1 of exact spans."""
    return compute(METRICS, predictions_of(truth, predicted_spans, num_labels))


def predictions_of(
    truth: Sequence[Sequence[Span]], predicted_spans: Sequence[Sequence[Span]], num_labels: int
) -> Predictions:
    """Return the input of metrics: the spans that a system found in rows with true spans."""
    right, true, num_predicted = count_spans(truth, predicted_spans, num_labels)
    return Predictions(
        truth=truth,
        predicted=predicted_spans,
        true_positives=right,
        true=true,
        num_predicted=num_predicted,
        is_right=np.array(
            [set(row) == set(spans) for row, spans in zip(truth, predicted_spans, strict=True)], bool
        ),
    )


def errors(truth: Sequence[Sequence[Span]], predicted_spans: Sequence[Sequence[Span]]) -> SpanErrors:
    """Sort predicted spans by what is wrong with them."""
    counts = dict.fromkeys(SpanErrors.model_fields, 0)
    for true, spans in zip(truth, predicted_spans, strict=True):
        places = {(start, end) for start, end, _ in true}
        for span in set(spans):
            if span in set(true):
                counts["num_right"] += 1
            elif span[:2] in places:
                counts["num_wrong_label"] += 1
            elif any(_overlap(span, other_span) for other_span in true):
                counts["num_wrong_edges"] += 1
            else:
                counts["num_invented"] += 1
        counts["num_missed"] += sum(
            not any(_overlap(span, other_span) for other_span in spans) for span in set(true)
        )
    return SpanErrors(**counts)


def _overlap(first: Span, second: Span) -> bool:
    return first[0] < second[1] and second[0] < first[1]


def assess(
    truth: Sequence[Sequence[Span]],
    predicted_spans: Mapping[str, Sequence[Sequence[Span]]],
    groups: Sequence[str],
    label_names: Sequence[str],
    comparison: Comparison,
) -> SpanEvaluation:
    """Measure everything of an evaluation.

    Args:
        predicted_spans: those of `finetuned`, each baseline and, if there is one, `champion`.

    Raises:
        ValueError: input is empty or misaligned; the message names what.
    """
    predictions = {
        name: replace(predictions_of(truth, spans, len(label_names)), labels=label_names)
        for name, spans in predicted_spans.items()
    }
    num_true = np.asarray(predictions[comparison.candidate].true).sum(1)
    return SpanEvaluation(
        **label_fields(predictions, groups, label_names, comparison),
        num_spans=int(num_true.sum()),
        num_rows_without_spans=int((num_true == 0).sum()),
        errors=errors(truth, predicted_spans[comparison.candidate]),
    )
