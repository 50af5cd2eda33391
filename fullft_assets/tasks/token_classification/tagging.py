"""Labelled spans as tags of tokens, and back: what a token classifier learns, and what it finds in a text.

Each label has two tags, B- for the first token of a span and I- for a later one, and O is for tokens outside
of all spans (BIO; Ramshaw and Marcus 1995, arXiv cmp-lg/9505040). A span has the tokens of which a character
is in it; where spans overlap, the one that starts first, then the longer, has the token, and one that is left
without any is not learned (see `chunks.masks`).

Windows of a long text share tokens. Each token belongs to one of them, the one in which it is farthest from
an edge that another window goes beyond: there it is trained, and there it is predicted, once each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from fullft_assets.base_model import ModelFolder
from fullft_assets.chunks import Tokenization, windows
from fullft_assets.chunks.windows import gather, to_lists
from fullft_assets.errors import DataError, StoreError
from fullft_assets.jobs.progress import Listener
from fullft_assets.models.inference import forward_batches, load_tagger
from fullft_assets.models.token_loss import IGNORED
from fullft_assets.snapshot import Split
from fullft_assets.tasks.token_classification.assessment import Span

OUTSIDE = 0


def tag_names(labels: Sequence[str]) -> list[str]:
    """Return the tags of labels, in the order of the head's outputs: O, then B- and I- of each label."""
    return ["O", *(f"{place}-{label}" for label in labels for place in "BI")]


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
    """Return the tags int64 [tokens] of a row's marks (see `chunks.schema`).

    Raises:
        DataError: a mark is of a span that the row does not have.
    """
    marks = np.asarray(marks, np.int64)
    number = np.abs(marks) - 1
    if len(number) and number.max() >= len(span_labels):
        raise DataError(
            f"a token is marked as one of span {number.max() + 1:,}, its row has {len(span_labels):,};"
            " tokenise the batches again"
        )
    label = np.append(np.asarray(span_labels, np.int64), 0)[number]
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
    label, is_first = (tags - 1) // 2, tags % 2 == 1
    before = np.concatenate([[-1], np.where(tags != OUTSIDE, label, -1)[:-1]])
    starts = inside[is_first[inside] | (before[inside] != label[inside])]
    decoded = []
    for begin, until in zip(starts, np.append(starts[1:], len(tags)), strict=True):
        own = np.arange(begin, until)
        own = own[tags[own] != OUTSIDE]
        start, end = windows.strip_span(text, int(characters[own, 0].min()), int(characters[own, 1].max()))
        if start < end:
            decoded.append((start, end, int(label[begin])))
    return decoded


def normal(texts: Sequence[str], spans: Sequence[Sequence[Span]]) -> list[list[Span]]:
    """Return each text's spans without the white space at their ends; a span of nothing else is dropped."""
    stripped = [
        [(*windows.strip_span(text, start, end), label) for start, end, label in row]
        for text, row in zip(texts, spans, strict=True)
    ]
    return [[span for span in row if span[0] < span[1]] for row in stripped]


def owned(lengths: Sequence[int], stride: int) -> list[np.ndarray]:
    """Return for each window of a text which of its tokens belong to it: bool [tokens]."""
    begins = np.concatenate([[0], np.cumsum(np.asarray(lengths, np.int64) - stride)])[: len(lengths)]
    total = int(begins[-1] + lengths[-1])
    best, owner = np.full(total, -1), np.zeros(total, np.int64)
    for number, (begin, length) in enumerate(zip(begins.tolist(), lengths, strict=True)):
        place = np.arange(length)
        # The text's own ends are no edges: there is nothing beyond that another window would see.
        left = place if number else np.full(length, total)
        right = place[::-1] if number < len(lengths) - 1 else np.full(length, total)
        distance, there = np.minimum(left, right), slice(begin, begin + length)
        is_better = distance > best[there]
        best[there][is_better], owner[there][is_better] = distance[is_better], number
    return [
        owner[begin : begin + length] == number
        for number, (begin, length) in enumerate(zip(begins.tolist(), lengths, strict=True))
    ]


@dataclass(frozen=True)
class Frame:
    """Numbers of tokens before and behind a window's own ones, and of tokens that two windows share."""

    prefix: int
    suffix: int
    stride: int

    @classmethod
    def of(cls, tokenization: Tokenization) -> Frame:
        """Return the frame of a tokenizer's windows."""
        return cls(len(tokenization.prefix), len(tokenization.suffix), tokenization.settings.stride)

    def owned(self, windows: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """Return for each window of a document which of its tokens belong to it, special tokens included:
        bool [tokens].
        """
        inner = owned([len(window) - self.prefix - self.suffix for window in windows], self.stride)
        return [np.pad(part, (self.prefix, self.suffix)) for part in inner]

    def tags(self, marks: Sequence[Sequence[int]], span_labels: Sequence[int]) -> list[list[int]]:
        """Return the tags of a document's windows, -100 where a token is none of the text or belongs to
        another window.
        """
        return [
            np.where(is_owned, tags_of(window, span_labels), IGNORED).tolist()
            for window, is_owned in zip(marks, self.owned(marks), strict=True)
        ]

    def tags_of_rows(self, rows: Split) -> list[list[list[int]]]:
        """Return the tags of each row's windows."""
        assert rows.marks is not None and rows.span_labels is not None
        return [self.tags(marks, labels) for marks, labels in zip(rows.marks, rows.span_labels, strict=True)]


#: Scores of each token's tags in a model's output: [windows, tokens, tags].
Scores = Callable[[Any], torch.Tensor]


@dataclass(frozen=True)
class Tagged:
    """Documents with a tag for each token that a window has.

    Attributes:
        tags: int16 [tokens] of each document.
        loss: summed cross-entropy of the true tags in nats; nan where an output was not finite.
        num_tokens: tokens that have one.
    """

    tags: list[np.ndarray]
    loss: float
    num_tokens: int


def tag(
    model: PreTrainedModel,
    windows: Sequence[Sequence[Sequence[int]]],
    frame: Frame,
    truth: Sequence[Sequence[Sequence[int]]] | None = None,
    *,
    scores: Scores = lambda output: output.logits,
    progress: Listener | None = None,
) -> Tagged:
    """Predict the tag of each token, once, in the window that it belongs to.

    Args:
        truth: aligned with the windows, -100 where nothing is to be predicted; for the loss.
    """
    owned = [frame.owned(document) for document in windows]
    found = [[np.zeros(0, np.int16)] * len(document) for document in windows]
    loss = 0.0
    count = 0
    is_finite = True
    for items, _, output in forward_batches(model, windows, progress):
        logits = scores(output).float()
        is_finite &= bool(torch.isfinite(logits).all())
        best = logits.argmax(-1).cpu().numpy().astype(np.int16)
        for at, (row, number) in enumerate(items):
            found[row][number] = best[at, : len(owned[row][number])][owned[row][number]]
        if truth is not None:
            labels = [torch.tensor(truth[row][number]) for row, number in items]
            padded = torch.nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=IGNORED).to(
                logits.device
            )
            loss += float(
                torch.nn.functional.cross_entropy(
                    logits.flatten(0, 1), padded.flatten(), ignore_index=IGNORED, reduction="sum"
                )
            )
            count += int((padded != IGNORED).sum())
    tags = [np.concatenate(document) if document else np.zeros(0, np.int16) for document in found]
    return Tagged(tags, loss if is_finite else float("nan"), count)


@dataclass(frozen=True)
class TokenizedTexts:
    """Texts as a tokenizer reads them.

    Attributes:
        characters: int [tokens, 2] of each document, the characters of its tokens.
    """

    texts: Sequence[str]
    windows: list[list[list[int]]]
    characters: list[np.ndarray]
    frame: Frame

    @classmethod
    def of(cls, tokenization: Tokenization, texts: Sequence[str]) -> TokenizedTexts:
        """Read texts with a tokenizer that was loaded for the task token_classification."""
        encoded, cuts = tokenization.read(texts, spans=True)
        windows = to_lists(*gather(encoded.ids, cuts, tokenization.prefix, tokenization.suffix), cuts)
        spans = np.zeros((0, 2), np.int32) if encoded.spans is None else encoded.spans
        characters = [
            spans[begin:end] for begin, end in zip(encoded.bounds, encoded.bounds[1:], strict=False)
        ]
        return cls(texts, windows, characters, Frame.of(tokenization))

    def spans(self, tags: Sequence[np.ndarray]) -> list[list[Span]]:
        """Return the spans of the documents' tags; tokens that no window has are outside of all."""
        return [
            decode(row_tags, characters[: len(row_tags)], text)
            for row_tags, characters, text in zip(tags, self.characters, self.texts, strict=True)
        ]


def find_spans(
    model: PreTrainedModel,
    reading: TokenizedTexts,
    *,
    scores: Scores = lambda output: output.logits,
    progress: Listener | None = None,
) -> list[list[Span]]:
    """Return the spans that a model finds in each text; labels are positions in its own order."""
    return reading.spans(tag(model, reading.windows, reading.frame, scores=scores, progress=progress).tags)


def load_finder(model_folder: ModelFolder) -> tuple[PreTrainedModel, list[str]]:
    """Load a fine-tuned token classifier and the labels of its spans."""
    model = load_tagger(model_folder)
    names: dict[Any, str] = dict(model.config.id2label or {})
    return model, labels_of_tags([names[i] for i in range(len(names))])
