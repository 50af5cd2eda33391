"""Baselines that score with the base model as it is, a causal one: rows without a prompt, and the labels that
may follow a text behind a prompt. The training rows in a prompt are saved by their ids alone.

To classify, each label is scored by the mean log-probability of its tokens behind the prompt, so that long
names are not at a disadvantage (the normalisation of Brown et al. 2020, arXiv:2005.14165, section 2.4).
Nothing is drawn when it answers. Each label of each row is a pass.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

import numpy as np

from fullft_assets.base_model.header import read_config
from fullft_assets.chunks import Tokenization
from fullft_assets.errors import DataError, SettingsError
from fullft_assets.models.document_scores import DocumentScores
from fullft_assets.snapshot import Split
from fullft_assets.tasks.baseline import BaselineContext, UntrainedBaseline, export_model

#: Training rows that a few-shot prompt shows, and tokens of them together, at most; half of the positions of
#: a model that has fewer.
NUM_EXAMPLES = 8
_MAX_TOKENS = 1_024
#: What precedes a text in a prompt.
_TEXT = "\n\nText: "
#: What precedes a label.
_LABEL = "\nLabel:"


def max_tokens(context: BaselineContext) -> int:
    """Return the tokens that the examples of a few-shot prompt may have together."""
    config = read_config(Path(str(context.base_model)))
    positions = next(
        (config[key] for key in ("max_position_embeddings", "n_positions") if config.get(key)), 0
    )
    return min(_MAX_TOKENS, positions // 2) if positions else _MAX_TOKENS


def draw(labels: Sequence[int] | np.ndarray, count: int, seed: int) -> list[int]:
    """Draw at most `count` rows in random order, an equal number from each label as long as the labels have
    rows.

    Args:
        labels: of each row [n].
    """
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(labels))
    ordered_labels = np.asarray(labels)[order]
    # How many rows of the same label come before a row: the first rows of all labels are taken, then the
    # second ones.
    turn = np.zeros(len(order), np.int64)
    for label in np.unique(ordered_labels):
        turn[ordered_labels == label] = np.arange((ordered_labels == label).sum())
    return generator.permutation(order[np.argsort(turn, kind="stable")][:count]).tolist()


def save_examples(path: Path, ids: Sequence[str], labels: Sequence[int]) -> None:
    """Write which rows are shown, without their texts, which an erasure could not remove here."""
    path.write_text(json.dumps({"ids": list(ids), "labels": list(labels)}), encoding="utf-8")


def load_examples(path: Path, context: BaselineContext) -> tuple[Split, list[int]]:
    """Return the rows that are shown and the label of each, without those that the snapshot lacks.

    Raises:
        DataError: the snapshot has none of them.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    rows = context.train_rows()
    row_of_id = {id_: row for row, id_ in enumerate(rows.ids)}
    examples = [
        (row_of_id[id_], label)
        for id_, label in zip(content["ids"], content["labels"], strict=True)
        if id_ in row_of_id
    ]
    if not examples:
        raise DataError(
            f"{path.name}: none of its {len(content['ids'])} example rows trains any more; materialise"
            " cheaper_baselines again"
        )
    return rows.select([row for row, _ in examples]), [label for _, label in examples]


class ZeroShot(UntrainedBaseline):
    """The base model with a prompt: the instruction alone."""

    name = "zero_shot"
    title = "base model, zero-shot prompt"
    tasks = ("classification",)
    needs_causal_model = True
    needs_whole_model = True
    serving_rank = 3

    def export(self, folder: Path, context: BaselineContext) -> None:
        from fullft_assets.models.inference import load_causal

        export_model(load_causal(context.base_model, context.added_tokens), folder, context)
        super().export(folder, context)

    def predict(self, rows: Split) -> np.ndarray:
        from scipy.special import softmax

        context = self.context
        writer = PromptWriter(context)
        opening = [*writer.instruction, *self._examples(writer)]
        prompts = [opening + text for text in writer.ask(rows.texts, context.settings.chunks.max_tokens)]
        chunks = [[prompt + label] for prompt in prompts for label in writer.labels]
        marks = [[[0] * len(prompt) + [1] * len(label)] for prompt in prompts for label in writer.labels]
        scores = _score(context, chunks, marks)
        return softmax((-scores.loss / scores.num_tokens).reshape(len(rows), len(writer.labels)), axis=1)

    def _examples(self, writer: "PromptWriter") -> list[int]:
        return []


@dataclass(frozen=True)
class FewShot(ZeroShot):
    """The instruction and training rows, drawn by the seed, each label as often as another.

    Attributes:
        shown: the rows.
        labels: of each, as positions in the label order of the baselines.
    """

    name = "few_shot"
    title = "base model, few-shot prompt"

    shown: Split
    labels: Sequence[int]

    @classmethod
    def fit(cls, train: Split, context: BaselineContext) -> Self:
        examples = train.select(draw(train.labels, NUM_EXAMPLES, context.settings.seed))
        return cls(context, examples, examples.labels.tolist())

    def _examples(self, writer: "PromptWriter") -> list[int]:
        return [
            token
            for question, label in zip(
                writer.ask(
                    self.shown.texts,
                    max(1, (max_tokens(self.context) // len(self.shown) - writer.num_tokens_around)),
                ),
                self.labels,
                strict=True,
            )
            for token in question + writer.labels[label]
        ]

    def save(self, folder: Path) -> None:
        save_examples(folder / "few_shot.json", self.shown.ids, self.labels)

    @classmethod
    def load(cls, folder: Path, context: BaselineContext) -> Self:
        return cls(context, *load_examples(folder / "few_shot.json", context))


class PromptWriter:
    """Writes the parts of a prompt as token ids; each part is tokenised on its own, so that a prompt can be
    cut to a number of tokens.

    Attributes:
        instruction: the beginning of every prompt, the tokenizer's own first tokens included.
        labels: each label's name as it goes on behind a prompt.
        num_tokens_around: tokens that an example has beside its text, at most.
    """

    def __init__(self, context: BaselineContext):
        self.tokenization = Tokenization.load(context.base_model, context.settings.chunks)
        self.instruction = [
            *self.tokenization.prefix,
            *self._encode(f"Texts and their labels. The labels are: {', '.join(context.labels)}."),
        ]
        self._before_text = self._encode(_TEXT)
        self._before_label = self._encode(_LABEL)
        self.labels = [self._name(name) for name in context.labels]
        self.num_tokens_around = len(self._before_text) + len(self._before_label) + max(map(len, self.labels))

    def ask(self, texts: Sequence[str], max_tokens: int) -> list[list[int]]:
        """Return the prompt tokens of each text: the text, cut to the maximum number of tokens, between the
        words that ask for its label.
        """
        return [
            [*self._before_text, *ids[:max_tokens], *self._before_label]
            for ids in self.tokenization.encode(list(texts))
        ]

    def _name(self, label: str) -> list[int]:
        # Some tokenizers write the space before a word in its first token.
        ids = self._encode(f"{_LABEL} {label}")
        length = len(self._before_label)
        return ids[length:] if ids[:length] == self._before_label else self._encode(f" {label}")

    def _encode(self, text: str) -> list[int]:
        return self.tokenization.encode([text])[0]


class BaseModel(UntrainedBaseline):
    """The base model without any training."""

    name = "base_model"
    title = "base model, not fine-tuned"
    tasks = ("sft", "language_modeling")
    shares_model = True

    def predict(self, rows: Split) -> DocumentScores:
        return _score(self.context, rows.chunks, rows.marks)


def _score(
    context: BaselineContext,
    chunks: Sequence[Sequence[Sequence[int]]],
    marks: Sequence[Sequence[Sequence[int]]] | None,
) -> DocumentScores:
    from fullft_assets.models.inference import load_causal
    from fullft_assets.models.token_loss import score_documents
    from fullft_assets.training import sharding

    model = sharding.load_scored(
        partial(load_causal, context.base_model, context.added_tokens),
        context.settings.training,
        is_shared=context.shares_models,
    )
    positions = getattr(model.config, "max_position_embeddings", None)
    longest = max((len(chunk) for document in chunks for chunk in document), default=0)
    if isinstance(positions, int) and longest > positions:
        raise SettingsError(
            f"planning.baselines: the longest prompt of the base model has {longest:,} tokens, base_model"
            f" reads {positions:,}; lower chunks.max_tokens, or remove the baseline"
        )
    return score_documents(
        model,
        chunks,
        marks,
        progress=context.listener,
    )
