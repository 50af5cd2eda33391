"""Labelled spans as tags of tokens, and back: the recipe of a new head on every token, and its scores on the
test rows.

Each label has two tags, B- for the first token of a span and I- for a later one, and O is for tokens outside
of all spans (BIO; Ramshaw and Marcus 1995, arXiv cmp-lg/9505040). A span has the tokens of which a character
is in it; where spans overlap, the one that starts first, then the longer, has the token, and one that is left
without any is not learned (see `chunks.cutting`).

Chunks of a long text share tokens. Each token belongs to one of them, the one in which it is farthest from
an edge that another chunk goes beyond: there it is trained, and there it is predicted, once each.

The loss of an optimizer step is the mean cross-entropy over its tokens, however many chunks, passes and
processes they are in: special tokens, padding, and tokens that belong to another chunk count for nothing.
Scores on the validation rows are those of exact spans, in characters, as the evaluation counts them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import torch
from transformers import PreTrainedModel

from fullft_assets import report
from fullft_assets.base_model import ModelFolder
from fullft_assets.chunks import Tokenization, cutting
from fullft_assets.errors import DataError, StoreError
from fullft_assets.evaluation import external
from fullft_assets.models import precision
from fullft_assets.models.inference import (
    Inputs,
    Items,
    forward_batches,
    load_for_training,
    load_tagger,
    read_by_head,
)
from fullft_assets.models.token_loss import IGNORED
from fullft_assets.progress import Listener
from fullft_assets.settings import TrainingSettings, UseCaseSettings
from fullft_assets.snapshot import Split
from fullft_assets.tasks.baseline import Baseline, OpenedModel, StoredBaseline
from fullft_assets.tasks.classification.recipe import chunk_feed
from fullft_assets.tasks.context import (
    EvaluationContext,
    EvaluationResult,
    column_of,
    pick_answers,
    shared_labels,
)
from fullft_assets.tasks.encoder import Encoder
from fullft_assets.tasks.token_classification import assessment
from fullft_assets.tasks.token_classification.assessment import Span
from fullft_assets.training import sharding
from fullft_assets.training.recipe import Prepared

OUTSIDE = 0
_SHOWN_SPANS = 8
_SPANS = pa.list_(pa.struct({"start": pa.int64(), "end": pa.int64(), "label": pa.string()}))
#: Tokens that a new head is fitted on, drawn at random from the training rows.
_MOST_TOKENS = 30_000


def tag_names(labels: Sequence[str]) -> list[str]:
    """Return the tags of labels, in the order of the head's outputs: O, then B- and I- of each label."""
    return ["O", *(f"{prefix}-{label}" for label in labels for prefix in "BI")]


def labels_of_tags(names: Sequence[str]) -> list[str]:
    """Return the labels whose tags a head has.

    Raises:
        StoreError: it is no head for tags as `tag_names` orders them.
    """
    labels = [name[2:] for name in names[1::2]]
    if list(names) != tag_names(labels):
        raise StoreError(
            f"the model's outputs ({', '.join(names[:5])} ...) are no tags of spans (O, B-label, I-label ...)"
        )
    return labels


def tags_of(marks: np.ndarray | Sequence[int], span_labels: Sequence[int]) -> np.ndarray:
    """Return the tags int64 [tokens] of a row's marks (see `chunks.schema`)."""
    marks = np.asarray(marks, np.int64)
    # A token outside of all spans takes the last one's.
    label = np.append(np.asarray(span_labels, np.int64), 0)[np.abs(marks) - 1]
    return np.where(marks == 0, OUTSIDE, 1 + 2 * label + (marks < 0))


def decode(tags: np.ndarray, characters: np.ndarray, text: str) -> list[Span]:
    """Return the spans of tags, as characters; without the white space around them.

    An I- behind no token of its label begins a span, as in CoNLL's and seqeval's count.

    Args:
        tags: int [tokens].
        characters: int [tokens, 2], the characters of each token.
    """
    tags = np.asarray(tags, np.int64)
    inside = np.flatnonzero(tags != OUTSIDE)
    if not len(inside):
        return []
    label = (tags - 1) // 2
    before = np.concatenate([[-1], np.where(tags != OUTSIDE, label, -1)[:-1]])
    starts = inside[(tags[inside] % 2 == 1) | (before[inside] != label[inside])]
    spans = []
    for begin, until in zip(starts, np.append(starts[1:], len(tags)), strict=True):
        tokens = np.arange(begin, until)
        tokens = tokens[tags[tokens] != OUTSIDE]
        start, end = cutting.strip_span(
            text, int(characters[tokens, 0].min()), int(characters[tokens, 1].max())
        )
        if start < end:
            spans.append((start, end, int(label[begin])))
    return spans


def normal(texts: Sequence[str], spans: Sequence[Sequence[Span]]) -> list[list[Span]]:
    """Return each text's spans without the white space at their ends; a span of nothing else is dropped."""
    stripped_rows = [
        [(*cutting.strip_span(text, start, end), label) for start, end, label in row]
        for text, row in zip(texts, spans, strict=True)
    ]
    return [[span for span in row if span[0] < span[1]] for row in stripped_rows]


def owned(lengths: Sequence[int], stride: int) -> list[np.ndarray]:
    """Return for each chunk of a text which of its tokens belong to it: bool [tokens]."""
    begins = np.concatenate([[0], np.cumsum(np.asarray(lengths, np.int64) - stride)])[: len(lengths)]
    total = int(begins[-1] + lengths[-1])
    best = np.full(total, -1)
    owner = np.zeros(total, np.int64)
    for number, (begin, length) in enumerate(zip(begins.tolist(), lengths, strict=True)):
        index = np.arange(length)
        # The text's own ends are no edges: there is nothing beyond that another chunk would see.
        distance = np.minimum(
            index if number else total,
            index[::-1] if number < len(lengths) - 1 else total,
        )
        tokens = slice(begin, begin + length)
        owner[tokens] = np.where(distance > best[tokens], number, owner[tokens])
        best[tokens] = np.maximum(distance, best[tokens])
    return [
        owner[begin : begin + length] == number
        for number, (begin, length) in enumerate(zip(begins.tolist(), lengths, strict=True))
    ]


@dataclass(frozen=True)
class Frame:
    """Numbers of tokens before and behind a chunk's own ones, and of tokens that two chunks share."""

    prefix: int
    suffix: int
    stride: int

    @classmethod
    def of(cls, tokenization: Tokenization) -> Self:
        return cls(len(tokenization.prefix), len(tokenization.suffix), tokenization.settings.stride)

    def owned(self, chunks: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """Return for each chunk of a document which of its tokens belong to it, special tokens included:
        bool [tokens].
        """
        return [
            np.pad(part, (self.prefix, self.suffix))
            for part in owned([len(chunk) - self.prefix - self.suffix for chunk in chunks], self.stride)
        ]

    def tags(self, marks: Sequence[Sequence[int]], span_labels: Sequence[int]) -> list[np.ndarray]:
        """Return the tags of a document's chunks, int16 [tokens], -100 where a token is none of the text or
        belongs to another chunk.
        """
        return [
            np.where(is_owned, tags_of(chunk, span_labels), IGNORED).astype(np.int16)
            for chunk, is_owned in zip(marks, self.owned(marks), strict=True)
        ]


@dataclass(frozen=True)
class Tagged:
    """Documents with a tag for each token that a chunk has.

    Attributes:
        tags: int16 [tokens] of each document.
        loss: summed cross-entropy of the true tags in nats; nan where an output was not finite.
        num_tokens: tokens that have a tag.
    """

    tags: list[np.ndarray]
    loss: float
    num_tokens: int


def tag(
    model: PreTrainedModel,
    chunks: Sequence[Sequence[Sequence[int]]],
    frame: Frame,
    truth: Sequence[Sequence[np.ndarray]] | None = None,
    *,
    progress: Listener | None = None,
) -> Tagged:
    """Predict the tag of each token, once, in the chunk that it belongs to.

    Args:
        truth: aligned with the chunks, -100 where nothing is to be predicted; for the loss.
    """
    masks = [frame.owned(document) for document in chunks]
    best_tags = [[np.zeros(0, np.int16)] * len(document) for document in chunks]
    loss = 0.0
    count = 0
    is_finite = True

    def read(items: Items, _: Inputs, output: Any) -> tuple[Items, np.ndarray, bool, float, int]:
        logits = output.logits.float()
        best = logits.argmax(-1).cpu().numpy().astype(np.int16)
        targets = _padded([[] if truth is None else truth[row][number] for row, number in items])
        loss = 0.0 if truth is None else float(loss_of_output(output, targets.to(logits.device)))
        return items, best, bool(torch.isfinite(logits).all()), loss, int((targets != IGNORED).sum())

    for items, best, is_finite_pass, loss_of_pass, num_targets in forward_batches(
        model, chunks, progress, read
    ):
        is_finite &= is_finite_pass
        loss += loss_of_pass
        count += num_targets
        for at, (row, number) in enumerate(items):
            mask = masks[row][number]
            best_tags[row][number] = best[at, : len(mask)][mask]
    return Tagged(
        [np.concatenate(document) if document else np.zeros(0, np.int16) for document in best_tags],
        loss if is_finite else float("nan"),
        count,
    )


@dataclass(frozen=True)
class TokenizedTexts:
    """Texts as a tokenizer reads them.

    Attributes:
        characters: int [tokens, 2] of each document, the characters of its tokens.
    """

    texts: Sequence[str]
    chunks: list[list[list[int]]]
    characters: list[np.ndarray]
    frame: Frame

    @classmethod
    def of(cls, tokenization: Tokenization, texts: Sequence[str]) -> Self:
        """Read texts with a tokenizer that was loaded for the task token_classification."""
        encoding, cuts = tokenization.read(texts, spans=True)
        chunks = cutting.to_lists(
            *cutting.gather(encoding.ids, cuts, tokenization.prefix, tokenization.suffix), cuts
        )
        spans = np.zeros((0, 2), np.int32) if encoding.spans is None else encoding.spans
        return cls(
            texts,
            chunks,
            [spans[begin:end] for begin, end in zip(encoding.bounds, encoding.bounds[1:], strict=False)],
            Frame.of(tokenization),
        )

    def spans(self, tags: Sequence[np.ndarray]) -> list[list[Span]]:
        """Return the spans of the documents' tags; tokens that no chunk has are outside of all."""
        return [
            decode(row_tags, characters[: len(row_tags)], text)
            for row_tags, characters, text in zip(tags, self.characters, self.texts, strict=True)
        ]


def find_spans(
    model: PreTrainedModel,
    reading: TokenizedTexts,
    *,
    progress: Listener | None = None,
) -> list[list[Span]]:
    """Return the spans that a model finds in each text; labels are positions in its own order."""
    return reading.spans(tag(model, reading.chunks, reading.frame, progress=progress).tags)


def _labels_of(model: PreTrainedModel) -> list[str]:
    return labels_of_tags([name for _, name in sorted(dict(model.config.id2label or {}).items())])


def evaluate(context: EvaluationContext, test: Split) -> EvaluationResult:
    """Score every system on the test rows."""
    names = context.labels
    assert test.spans is not None
    spans = _find_all(context, test, names)
    truth = normal(test.texts, test.spans)
    evaluation = assessment.assess(truth, spans, test.groups, names, context.comparison(test))
    headline = {
        **evaluation.headline,
        "num_test_spans": evaluation.num_spans,
        "num_test_rows_without_spans": evaluation.num_rows_without_spans,
        "labels_without_test_spans": evaluation.unmeasured,
        **evaluation.errors.model_dump(),
    }
    return EvaluationResult(
        evaluation,
        headline,
        _rows(test, truth, spans, names),
        pick_answers(
            test,
            truth,
            spans,
            evaluation,
            context.job.settings.seed,
            lambda row, answer: _listed(test.texts[row], answer, names),
        ),
    )


def _find_all(context: EvaluationContext, test: Split, names: list[str]) -> dict[str, list[list[Span]]]:
    def by_baseline(name: str, baseline: Baseline) -> list[list[Span]]:
        return in_order(baseline.predict(test), context.baseline_labels, names)

    def by_external(name: str, answers: list[list[dict[str, Any]]]) -> list[list[Span]]:
        return normal(test.texts, external.spans(name, answers, test, names))

    def by_checkpoint(name: str) -> list[list[Span]]:
        model = context.open(name)
        spans, labels = context.result_of(
            partial(
                find,
                model,
                context.job.settings,
                test.texts,
                context.listener,
                is_shared=context.shares_models,
            ),
            by_first=isinstance(model, StoredBaseline),
        )
        return in_order(spans, labels, names)

    return context.predict_with_all(test, by_checkpoint, by_baseline, by_external)


def find(
    model: OpenedModel,
    settings: UseCaseSettings,
    texts: Sequence[str],
    progress: Listener | None = None,
    *,
    is_shared: bool = False,
) -> tuple[list[list[Span]], list[str]]:
    """Return the spans that a model finds in each text, and its labels in its own order.

    Each model reads the texts with its own tokenizer; spans are characters to all.

    Args:
        is_shared: whether several processes, which all call this, share the model.
    """
    if isinstance(model, StoredBaseline):
        return model.predict(texts), model.labels
    reading = TokenizedTexts.of(
        Tokenization.load_saved(model, settings.chunks, settings.examples.task), texts
    )
    finder = sharding.load_scored(partial(load_tagger, model), settings.training, is_shared=is_shared)
    return find_spans(finder, reading, progress=progress), _labels_of(finder)


def in_order(
    spans: Sequence[Sequence[Span]], model_labels: Sequence[str], labels: Sequence[str]
) -> list[list[Span]]:
    """Return spans with the positions of their labels in `labels`; spans with another label are left out.

    Args:
        model_labels: the system's labels, in the order of its positions.
    """
    common_labels = shared_labels(model_labels, labels)
    positions = {
        number: labels.index(label) for number, label in enumerate(model_labels) if label in common_labels
    }
    return [
        [(start, end, positions[label]) for start, end, label in row if label in positions] for row in spans
    ]


def _listed(text: str, row: Sequence[Span], names: Sequence[str]) -> str:
    phrases = [
        f"{names[label]}: {report.shorten(text[start:end], 60)}" for start, end, label in sorted(set(row))
    ]
    ending = f"; and {len(phrases) - _SHOWN_SPANS} more" if len(phrases) > _SHOWN_SPANS else ""
    return "; ".join(phrases[:_SHOWN_SPANS]) + ending if phrases else "none"


def _rows(
    test: Split,
    truth: Sequence[Sequence[Span]],
    spans_of_systems: Mapping[str, Sequence[Sequence[Span]]],
    names: Sequence[str],
) -> pa.Table:
    columns = {
        "id": test.ids,
        "num_spans": [len(set(row)) for row in truth],
        "group": test.groups,
    }
    for name, spans in spans_of_systems.items():
        predicted_spans = [
            [{"start": start, "end": end, "label": names[label]} for start, end, label in sorted(set(row))]
            for row in spans
        ]
        columns[column_of(name, "predicted")] = pa.array(predicted_spans, _SPANS)
        columns[column_of(name, "num_predicted")] = [len(row) for row in predicted_spans]
        columns[column_of(name, "num_right")] = [
            len(set(true) & set(row)) for true, row in zip(truth, spans, strict=True)
        ]
    return pa.table(columns)


@dataclass(frozen=True)
class TokenClassificationRecipe(Encoder):
    """Each token of a chunk that belongs to it learns a tag."""

    tokenization: Tokenization = field(kw_only=True)

    def _load(
        self,
        folder: ModelFolder,
        settings: TrainingSettings,
        added_tokens: Sequence[str] = (),
        *,
        keeps_head: bool = False,
    ) -> PreTrainedModel:
        return load_for_training(
            folder,
            tag_names(self.labels),
            added_tokens,
            load=load_tagger,
            keeps_head=keeps_head,
            dtype=precision.of_weights(settings),
        )

    def _states(
        self, model: PreTrainedModel, rows: Split, listener: Listener
    ) -> tuple[np.ndarray, np.ndarray]:
        tags = self._tags(rows)
        total = sum(np.count_nonzero(chunk != IGNORED) for document in tags for chunk in document)
        rng = np.random.default_rng(0)
        drawn = [
            [
                (chunk != IGNORED) & (rng.random(len(chunk)) < _MOST_TOKENS / max(1, total))
                for chunk in document
            ]
            for document in tags
        ]

        def pick(items: Items, states: np.ndarray, _: list[int]) -> np.ndarray:
            masks = [drawn[row][number] for row, number in items]
            return np.concatenate([states[at, : len(mask)][mask] for at, mask in enumerate(masks)])

        states = []
        targets = []
        for items, values in read_by_head(model, rows.chunks, listener, pick):
            states.append(values)
            targets += [tags[row][number][drawn[row][number]] for row, number in items]
        return np.concatenate(states), np.concatenate(targets)

    def prepare(self, model: PreTrainedModel, settings: TrainingSettings, seed: int) -> Prepared:
        chunks = [chunk for document in self.train.chunks for chunk in document]
        return self._prepared(
            model,
            chunk_feed(
                chunks,
                [chunk for document in self._tags(self.train) for chunk in document],
                model,
                settings,
                seed,
                _padded,
            ),
            loss_of_output,
            settings,
        )

    def score(self, model: PreTrainedModel, listener: Listener) -> dict[str, float]:
        reading = self._reading
        tagged = tag(model, reading.chunks, reading.frame, self._validation_tags, progress=listener)
        return (
            {
                "loss": tagged.loss / max(1, tagged.num_tokens),
                **self._score_predicted("model", reading.spans(tagged.tags), Path()),
            }
            if math.isfinite(tagged.loss)
            else dict.fromkeys(("loss", "micro_f1", "macro_f1"), math.nan)
        )

    def predict(self, model: PreTrainedModel, rows: Split, listener: Listener) -> list[list[Span]]:
        return find_spans(model, TokenizedTexts.of(self.tokenization, rows.texts), progress=listener)

    def _score_predicted(self, name: str, predictions: Any, folder: Path) -> dict[str, float]:
        return assessment.scores(self._truth, predictions, len(self.labels))

    @cached_property
    def _reading(self) -> TokenizedTexts:
        reading = TokenizedTexts.of(self.tokenization, self.validation.texts)
        if reading.chunks != self.validation.chunks:
            raise DataError(
                "the snapshot's chunks are not those that base_model's tokenizer makes of its texts today;"
                " take the snapshot again"
            )
        return reading

    @cached_property
    def _validation_tags(self) -> list[list[np.ndarray]]:
        return self._tags(self.validation)

    @cached_property
    def _truth(self) -> list[list[Span]]:
        assert self.validation.spans is not None
        return normal(self.validation.texts, self.validation.spans)

    def _tags(self, split: Split) -> list[list[np.ndarray]]:
        assert split.marks is not None and split.span_labels is not None
        frame = Frame.of(self.tokenization)
        return [
            frame.tags(marks, labels) for marks, labels in zip(split.marks, split.span_labels, strict=True)
        ]


def _padded(tags: Sequence[np.ndarray | list[int]]) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(chunk, dtype=torch.long) for chunk in tags], batch_first=True, padding_value=IGNORED
    )


def loss_of_output(output: Any, labels: torch.Tensor) -> torch.Tensor:
    """Return the summed cross-entropy of a pass; labels are tags [chunks, tokens], -100 where nothing is
    learned.
    """
    return torch.nn.functional.cross_entropy(
        output.logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum"
    )
