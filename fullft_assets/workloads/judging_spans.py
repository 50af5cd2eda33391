"""The judge of span finders: spans of the candidate, each cheaper way and the champion in the test rows."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from fullft_assets import report
from fullft_assets.chunks import Tokenization, masks
from fullft_assets.errors import StoreError
from fullft_assets.evaluation import CHAMPION, FINETUNED, SpanEvaluation, spans, title
from fullft_assets.snapshot import Split, label_names
from fullft_assets.workloads import span_baselines
from fullft_assets.workloads.judging import Docket, Judged
from fullft_assets.workloads.judging_labels import NUM_ANSWERS
from fullft_assets.workloads.tagging import Reading, Span, find_spans, load_finder, normal, tags_of

#: Characters of a test row that the report shows.
_SHOWN_CHARACTERS = 400
_SHOWN_SPANS = 8


def judge(docket: Docket, test: Split) -> Judged:
    """Score every system on the test rows."""
    settings = docket.job.settings
    names = label_names(docket.inputs["training_snapshot"])
    tokenization = Tokenization.load(docket.base_model, settings.chunks, settings.examples.task)
    found = _hear_all(docket, test, names, Reading.of(tokenization, test.texts))
    truth = normal(test.texts, test.spans)
    docket.progress.say(f"{settings.evaluation.resamples:,} resamples over the groups of {len(test):,} test rows ...")
    right, num_tokens = count_right_tokens(tokenization, test.texts, truth, found)
    evaluation = spans.assess(
        truth,
        found,
        right,
        num_tokens,
        test.groups,
        names,
        settings.evaluation,
        seed=settings.seed,
        metric=settings.primary_metric,
        min_gain=settings.release.min_gain_over_baselines,
    )
    headline: dict[str, object] = {}
    for metric, values in evaluation.columns.items():
        score = values[FINETUNED]
        headline |= {metric: score.estimate, f"{metric}_low": score.low, f"{metric}_high": score.high}
    headline |= {
        "num_test_spans": evaluation.num_spans,
        "num_test_rows_without_spans": evaluation.num_rows_without_spans,
        "labels_without_test_spans": evaluation.unmeasured,
        **evaluation.errors.model_dump(),
    }
    examples = _pick_answers(test, truth, found, evaluation, settings.seed)
    return Judged(evaluation, headline, _rows(test, truth, found[FINETUNED]), examples)


def _hear_all(docket: Docket, test: Split, names: list[str], reading: Reading) -> dict[str, list[list[Span]]]:
    progress, cheaper = docket.progress, docket.inputs["cheaper_baselines"]
    found = {FINETUNED: _hear(docket, FINETUNED, "finetuned_checkpoint", test, names)}
    folder, theirs = docket.store.folder(cheaper), cheaper.metadata["labels"]
    for name in span_baselines.NAMES:
        progress.raise_if_stopped()
        progress.say(f"{title(name)} on {len(test):,} test rows ...")
        added_tokens = docket.job.settings.chunks.added_tokens
        found[name] = in_order(span_baselines.find(name, folder, docket.base_model, added_tokens, reading, progress), theirs, names)
    if CHAMPION in docket.inputs:
        found[CHAMPION] = _hear(docket, CHAMPION, CHAMPION, test, names)
    return found


def _hear(docket: Docket, name: str, asset: str, test: Split, names: list[str]) -> list[list[Span]]:
    """Return the spans that a checkpoint finds; each reads the texts with its own tokenizer, and spans are characters to all."""
    docket.progress.raise_if_stopped()
    docket.progress.say(f"{title(name)} on {len(test):,} test rows ...")
    folder, settings = docket.model_folder(asset), docket.job.settings
    reading = Reading.of(Tokenization.load_saved(folder, settings.chunks, settings.examples.task), test.texts)
    model, labels = load_finder(folder)
    found = find_spans(model, reading, progress=docket.progress)
    del model
    # Two large models at a time may not fit.
    gc.collect()
    return in_order(found, labels, names)


def in_order(found: Sequence[Sequence[Span]], theirs: Sequence[str], ours: Sequence[str]) -> list[list[Span]]:
    """Bring spans from a system's label order into ours; those of a label that we do not know are left out.

    Raises:
        StoreError: the two label lists have nothing in common.
    """
    place = {number: ours.index(label) for number, label in enumerate(theirs) if label in ours}
    if not place:
        raise StoreError(
            f"the model knows none of the labels {', '.join(ours)}, only {', '.join(theirs)}; give the new labels a use case of their own"
        )
    return [[(start, end, place[label]) for start, end, label in row if label in place] for row in found]


def count_right_tokens(
    tokenization: Tokenization, texts: Sequence[str], truth: Sequence[Sequence[Span]], found: Mapping[str, Sequence[Sequence[Span]]]
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return how many tokens of each text have the true tag under each system's spans, and how many there are: int [n] each."""
    encoded, _ = tokenization.read(texts, spans=True)
    rows = np.repeat(np.arange(len(texts)), encoded.lengths())

    def tags(spans_of: Sequence[Sequence[Span]]) -> np.ndarray:
        marks = masks.locate_spans(encoded, texts, [[(start, end) for start, end, _ in row] for row in spans_of]).marks
        edges = zip(encoded.bounds, encoded.bounds[1:], strict=False)
        each = [tags_of(marks[begin:end], [label for *_, label in row]) for (begin, end), row in zip(edges, spans_of, strict=True)]
        return np.concatenate(each)

    true = tags(truth)
    right = {name: np.bincount(rows[tags(spans_of) == true], minlength=len(texts)) for name, spans_of in found.items()}
    return right, encoded.lengths()


def _pick_answers(
    test: Split, truth: Sequence[Sequence[Span]], found: Mapping[str, Sequence[Sequence[Span]]], evaluation: SpanEvaluation, seed: int
) -> list[report.Answer]:
    """Draw test rows at random, first among those on which the fine-tuned model and the best baseline disagree."""
    tuned, baseline = found[FINETUNED], found[evaluation.justification.best_baseline]
    order = np.random.default_rng(seed).permutation(len(test))
    is_same = np.array([set(tuned[i]) == set(baseline[i]) for i in order])
    chosen = order[np.argsort(is_same, kind="stable")][:NUM_ANSWERS]
    return [
        report.Answer(
            report.shorten(test.texts[i], _SHOWN_CHARACTERS),
            *(_told(test.texts[i], each[i], evaluation.labels) for each in (truth, baseline, tuned)),
            id=test.ids[i],
        )
        for i in chosen
    ]


def _told(text: str, row: Sequence[Span], names: Sequence[str]) -> str:
    shown = [f"{names[label]}: {report.shorten(text[start:end], 60)}" for start, end, label in sorted(set(row))]
    more = f"; and {len(shown) - _SHOWN_SPANS} more" if len(shown) > _SHOWN_SPANS else ""
    return "; ".join(shown[:_SHOWN_SPANS]) + more if shown else "none"


def _rows(test: Split, truth: Sequence[Sequence[Span]], found: Sequence[Sequence[Span]]) -> pa.Table:
    columns = {
        "id": test.ids,
        "num_spans": [len(set(row)) for row in truth],
        "num_predicted": [len(set(row)) for row in found],
        "num_right": [len(set(true) & set(row)) for true, row in zip(truth, found, strict=True)],
        "group": test.groups,
    }
    return pa.table(columns)
