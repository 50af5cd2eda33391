"""The baselines of language models: the base model as it is, and with training conversations before what it
reads.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from fullft_assets.errors import SettingsError
from fullft_assets.snapshot import Split
from fullft_assets.tasks import prompting
from fullft_assets.tasks.baseline import Baseline, BaselineContext, UntrainedBaseline
from fullft_assets.tasks.language.assessment import DocumentScores


class BaseModel(UntrainedBaseline):
    """The base model without any training."""

    name = "base_model"
    title = "base model, not fine-tuned"
    tasks = ("sft", "language_modeling")

    def predict(self, rows: Split) -> DocumentScores:
        from fullft_assets.models.inference import load_causal
        from fullft_assets.models.token_loss import score_documents

        model = load_causal(self.context.base_model, self.context.added_tokens)
        scores = score_documents(model, rows.windows, rows.marks, progress=self.context.progress)
        return DocumentScores(scores.num_tokens, scores.loss, scores.num_right)


class FewShotConversations(Baseline):
    """The base model with training conversations before each window, drawn by the seed, at most as many
    tokens as the settings allow.

    Args:
        shown: the rows; of each its first window with something to learn is shown.
    """

    name = "few_shot_conversations"
    title = "base model, few-shot prompt"
    tasks = ("sft",)
    needs_causal_model = True
    needs_whole_model = True

    def __init__(self, shown: Split, context: BaselineContext):
        self.shown, self.context = shown, context

    @classmethod
    def fit(cls, train: Any, context: BaselineContext) -> Self:
        rows, settings = context.train_rows(), context.settings
        chosen = []
        room = most = prompting.max_tokens(context)
        for row in prompting.draw([0] * len(rows), len(rows), settings.seed):
            window = _example(rows, row)
            if 0 < len(window) <= room and len(chosen) < prompting.NUM_EXAMPLES:
                chosen.append(row)
                room -= len(window)
        if not chosen:
            raise SettingsError(
                f"planning.baselines: no training conversation has at most {most:,} tokens, so"
                f" {cls.name} has nothing to show; remove it"
            )
        return cls(rows.select(chosen), context)

    def predict(self, rows: Split) -> DocumentScores:
        from fullft_assets.models.inference import load_causal
        from fullft_assets.models.token_loss import score_documents

        before = [token for row in range(len(self.shown)) for token in _example(self.shown, row)]
        windows = [[before + window for window in document] for document in rows.windows]
        # The first token of a window has nothing before it for the other systems, so it counts for none.
        marks = [[[0] * len(before) + [0] + mark[1:] for mark in document] for document in rows.marks or []]
        model = load_causal(self.context.base_model, self.context.added_tokens)
        prompting.require_room(
            max((len(window) for document in windows for window in document), default=0), model
        )
        scores = score_documents(model, windows, marks, progress=self.context.progress)
        return DocumentScores(scores.num_tokens, scores.loss, scores.num_right)

    def save(self, folder: Path) -> None:
        prompting.save_examples(folder / f"{self.name}.json", self.shown.ids)

    @classmethod
    def load(cls, folder: Path, context: BaselineContext) -> Self:
        return cls(prompting.load_examples(folder / f"{cls.name}.json", context)[0], context)


def _example(rows: Split, row: int) -> list[int]:
    """Return a row's first window with a token to learn; empty where it has none."""
    pairs = zip(rows.windows[row], (rows.marks or [])[row], strict=True)
    return next((window for window, mark in pairs if 1 in mark), [])
