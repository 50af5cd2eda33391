"""Baselines that ask the base model, a causal one, which label follows a text: without examples, and with
some training rows.

Each label is scored by the mean log-probability of its tokens behind the prompt, so that long names are not
at a disadvantage (the normalisation of Brown et al. 2020, arXiv:2005.14165, section 2.4). Nothing is drawn
when it answers. Each label of each row is a pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np

from fullft_assets.chunks import Tokenization
from fullft_assets.snapshot import Split
from fullft_assets.tasks import prompting
from fullft_assets.tasks.baseline import Baseline, BaselineContext, UntrainedBaseline

#: What precedes a text, and a label, in a prompt.
_TEXT, _LABEL = "\n\nText: ", "\nLabel:"


class _Prompted(Baseline):
    """The base model with a prompt; how that begins is up to the subclass."""

    tasks = ("classification",)
    needs_causal_model = True
    needs_whole_model = True

    def __init__(self, context: BaselineContext):
        self.context = context

    def predict(self, rows: Split) -> np.ndarray:
        from fullft_assets.models.inference import load_causal
        from fullft_assets.models.token_loss import score_documents

        context = self.context
        writer = PromptWriter.of(context)
        opening, labels = [*writer.instruction, *self._examples(writer)], writer.labels
        prompts = [opening + text for text in writer.ask(rows.texts, context.settings.chunks.max_tokens)]
        model = load_causal(context.base_model, context.added_tokens)
        prompting.require_room(max(map(len, prompts), default=0) + max(map(len, labels)), model)
        windows = [[prompt + label] for prompt in prompts for label in labels]
        marks = [[[0] * len(prompt) + [1] * len(label)] for prompt in prompts for label in labels]
        found = score_documents(model, windows, marks, progress=context.progress)
        scores = (-found.loss / found.num_tokens).reshape(len(rows), len(labels))
        likelihoods = np.exp(scores - scores.max(axis=1, keepdims=True))
        return likelihoods / likelihoods.sum(axis=1, keepdims=True)

    def _examples(self, writer: PromptWriter) -> list[int]:
        """Return the tokens of the examples."""
        return []


class ZeroShot(_Prompted, UntrainedBaseline):
    """The instruction alone."""

    name, title = "zero_shot", "base model, zero-shot prompt"


class FewShot(_Prompted):
    """The instruction and training rows, drawn by the seed, each label as often as another.

    Args:
        shown: the rows.
        labels: of each, as positions in the label order of the baselines.
    """

    name, title = "few_shot", "base model, few-shot prompt"

    def __init__(self, shown: Split, labels: Sequence[int], context: BaselineContext):
        super().__init__(context)
        self.shown, self.labels = shown, labels

    @classmethod
    def fit(cls, train: Split, context: BaselineContext) -> Self:
        settings = context.settings
        shown = train.select(prompting.draw(train.labels, prompting.NUM_EXAMPLES, settings.seed))
        return cls(shown, shown.labels.tolist(), context)

    def _examples(self, writer: PromptWriter) -> list[int]:
        room = prompting.max_tokens(self.context) // len(self.shown) - writer.num_tokens_around
        asked = writer.ask(self.shown.texts, max(1, room))
        return [
            token
            for text, label in zip(asked, self.labels, strict=True)
            for token in text + writer.labels[label]
        ]

    def save(self, folder: Path) -> None:
        prompting.save_examples(folder / "few_shot.json", self.shown.ids, labels=self.labels)

    @classmethod
    def load(cls, folder: Path, context: BaselineContext) -> Self:
        shown, saved = prompting.load_examples(folder / "few_shot.json", context)
        return cls(shown, saved["labels"], context)


@dataclass(frozen=True)
class PromptWriter:
    """Writes the parts of a prompt as token ids; each part is tokenised on its own, so that a prompt can be
    cut to a number of tokens.
    """

    tokenization: Tokenization
    names: Sequence[str]

    @classmethod
    def of(cls, context: BaselineContext) -> Self:
        """Return the one for the base model's tokenizer and the labels' names."""
        return cls(Tokenization.load(context.base_model, context.settings.chunks), context.labels)

    @cached_property
    def instruction(self) -> list[int]:
        """The beginning of every prompt, the tokenizer's own first tokens included."""
        return [
            *self.tokenization.prefix,
            *self._encode(f"Texts and their labels. The labels are: {', '.join(self.names)}."),
        ]

    @cached_property
    def labels(self) -> list[list[int]]:
        """Each label's name as it goes on behind a prompt; some tokenizers write the space before a word in
        its first token.
        """
        start = self._before_label
        encoded = [self._encode(f"{_LABEL} {name}") for name in self.names]
        return [
            ids[len(start) :] if ids[: len(start)] == start else self._encode(f" {name}")
            for name, ids in zip(self.names, encoded, strict=True)
        ]

    @cached_property
    def num_tokens_around(self) -> int:
        """Tokens that an example has beside its text, at most."""
        return len(self._before_text) + len(self._before_label) + max(map(len, self.labels))

    def ask(self, texts: Sequence[str], max_tokens: int) -> list[list[int]]:
        """Return each text, cut to the maximum number of tokens, with the words that ask for its label."""
        return [
            [*self._before_text, *ids[:max_tokens], *self._before_label]
            for ids in self.tokenization.encode(list(texts))
        ]

    @cached_property
    def _before_text(self) -> list[int]:
        return self._encode(_TEXT)

    @cached_property
    def _before_label(self) -> list[int]:
        return self._encode(_LABEL)

    def _encode(self, text: str) -> list[int]:
        return self.tokenization.encode([text])[0]
