"""The baseline that only classifiers with several labels a row have; the others are those of classification.

Each gives a probability for each label; its thresholds are chosen on the validation rows, as the fine-tuned
model's are.
"""

from __future__ import annotations

from typing import Self

from fullft_assets.snapshot import Split
from fullft_assets.tasks.baseline import BaselineContext
from fullft_assets.tasks.classification.baselines import Majority


class LabelShares(Majority):
    """Each label with its share of the training rows, whatever the text: at its threshold, always or
    never.
    """

    name = "label_shares"
    title = "labels by their shares"
    tasks = ("multi_label",)

    @classmethod
    def fit(cls, train: Split, context: BaselineContext) -> Self:
        return cls(train.labels.mean(0))
