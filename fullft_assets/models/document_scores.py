"""What a language model scored on documents; importing it loads no torch."""

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class DocumentScores:
    """How a model predicted the trained tokens of n documents; `mean_loss` and the shares pool all tokens of
    all documents.

    Attributes:
        num_tokens: int [n], tokens that were predicted.
        loss: float [n], their summed cross-entropy in nats; nan where the model's outputs are not finite.
        num_right: int [n], how many of them the model ranked first; None: of another tokenizer's tokens.
    """

    num_tokens: np.ndarray
    loss: np.ndarray
    num_right: np.ndarray | None

    def select(self, rows: np.ndarray) -> "DocumentScores":
        """Return the scores of the documents at these positions."""
        return DocumentScores(
            self.num_tokens[rows], self.loss[rows], None if self.num_right is None else self.num_right[rows]
        )

    def mean_loss(self) -> float:
        """Return the mean cross-entropy of a token in nats; nan without a token, or if an output was not
        finite.
        """
        count = self.num_tokens.sum()
        return float(self.loss.sum() / count) if count else math.nan

    def token_probability(self) -> float:
        """Return the geometric mean of the tokens' probabilities, 1 / perplexity."""
        return math.exp(-self.mean_loss())

    def token_accuracy(self) -> float:
        """Return the share of tokens that were ranked first; nan like the loss, and where that is unknown."""
        return (
            float(self.num_right.sum() / self.num_tokens.sum())
            if self.num_right is not None and math.isfinite(self.mean_loss())
            else math.nan
        )
