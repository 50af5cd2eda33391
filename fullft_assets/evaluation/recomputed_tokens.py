"""The numbers of a language model's evaluation, computed a second time from the losses of its documents: see
`verification`.

Its scores are weighted means of the documents' own means.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence

import numpy as np

from fullft_assets.evaluation.recomputation import (
    FINETUNED,
    MOST_NAMED,
    Asked,
    Pair,
    Recomputed,
    Rows,
    Tree,
    group_weights,
)
from fullft_assets.evaluation.recomputed_intervals import SummedScore

_TOKEN_CAP_QUANTILE = 0.9
#: Above this the evaluation bounds a mean loss, so that the perplexity is finite.
_MAX_LOSS = 70.0
_MIN_GROUP_TOKENS = 100
_NUM_BINS, _LEAST_CHANGE = 24, 1e-3


class Tokens(Recomputed):
    """A language model's: losses of documents, but for those of which a system has no token."""

    def __init__(self, rows: Rows):
        counts = [np.array(rows[name]) for name in rows if name.startswith("num_tokens_")]
        self._scored = np.flatnonzero(np.logical_and.reduce([count > 0 for count in counts]))
        self._rows = rows
        self._tokens = self._column(f"num_tokens_{FINETUNED}")
        self._cap = max(1, round(float(np.quantile(self._tokens, _TOKEN_CAP_QUANTILE))))
        self.groups = [rows["group"][row] for row in self._scored.tolist()]
        self._counted = np.minimum(self._tokens, self._cap) * group_weights(self.groups)
        self.weights = self._counted / self._tokens

    def score(self, metric: str, system: str) -> float | None:
        """Return a score from the documents' means, each weighted by its capped tokens."""
        if metric == "token_accuracy":
            return float(
                np.average(self._column(f"num_right_{system}") / self._tokens, weights=self._counted)
            )
        mean = float(np.average(self._column(f"loss_{system}") / self._tokens, weights=self._counted))
        if metric == "bits_per_byte":
            # Of the same rows and weights, each row in bytes of its own text.
            in_bytes = np.dot(self._column("num_bytes"), self.weights) * math.log(2)
            return float(np.dot(self._column(f"loss_{system}"), self.weights) / in_bytes)
        return {"token_probability": math.exp(-mean), "perplexity": math.exp(min(mean, _MAX_LOSS))}.get(
            metric
        )

    def sums(self, metric: str, system: str) -> SummedScore:
        """Return what is summed: what the system lost, or got right, and the tokens or bytes of it."""
        counted = f"num_right_{system}" if metric == "token_accuracy" else f"loss_{system}"
        units = self._column("num_bytes") * math.log(2) if metric == "bits_per_byte" else self._tokens
        table = np.stack([self._column(counted) * self.weights, units * self.weights], axis=1)

        def of_sums(sums: np.ndarray) -> np.ndarray:
            mean = sums[:, 0] / sums[:, 1]
            if metric == "token_probability":
                return np.exp(-mean)
            return np.exp(np.minimum(mean, _MAX_LOSS)) if metric == "perplexity" else mean

        return SummedScore(table, of_sums)

    def part(self, rows: np.ndarray) -> Recomputed:
        """Return those of some documents."""
        part = copy.copy(self)
        part._scored = self.positions[rows]
        part.groups = [self.groups[row] for row in rows.tolist()]
        part.weights, part._tokens, part._counted = (
            self.weights[rows],
            self._tokens[rows],
            self._counted[rows],
        )
        return part

    @property
    def positions(self) -> np.ndarray:
        """Those with tokens."""
        return self._scored

    def mass(self, metric: str) -> np.ndarray:
        """Return the tokens of each document."""
        return self._tokens

    def columns(self) -> Iterator[Pair]:
        """Yield nothing: there are no labels."""
        yield from ()

    def fields(self, asked: Asked, best_baseline: str) -> Tree:
        """Return numbers of tokens, how documents changed, and the perplexity of groups and lengths."""
        return {
            "token_cap": self._cap,
            "num_test_tokens": int(self._tokens.sum()),
            "num_rows_without_tokens": len(self._rows["group"]) - len(self._scored),
            "rescaled": [name for name in self._systems if f"num_right_{name}" not in self._rows],
            "changes": self._changes(),
            "weakest_groups": self._weakest_groups(),
            "per_length": self._per_length(),
        }

    @property
    def _systems(self) -> list[str]:
        return [name.removeprefix("loss_") for name in self._rows if name.startswith("loss_")]

    def _changes(self) -> Tree:
        ids = [self._rows["id"][row] for row in self._scored.tolist()]
        ours, theirs = (self._column(f"loss_{system}") / self._tokens for system in (FINETUNED, "base_model"))
        change = (self._column(f"loss_{FINETUNED}") - self._column("loss_base_model")) / self._tokens
        worse = sorted((-float(change[row]), ids[row], row) for row in np.flatnonzero(change > 0).tolist())[
            :MOST_NAMED
        ]
        named = [
            {
                "id": id_,
                "group": self.groups[row],
                "num_tokens": int(self._tokens[row]),
                "loss": ours[row],
                "base_loss": theirs[row],
            }
            for _, id_, row in worse
        ]
        low, high = (
            min(float(np.quantile(change, 0.01)), -_LEAST_CHANGE),
            max(float(np.quantile(change, 0.99)), _LEAST_CHANGE),
        )
        edges = [low + (high - low) * number / _NUM_BINS for number in range(_NUM_BINS + 1)]
        counts = np.bincount(np.digitize(change, edges[1:-1]), minlength=_NUM_BINS).tolist()
        bins = [
            {"low": edges[number], "high": edges[number + 1], "num_rows": count}
            for number, count in enumerate(counts)
        ]
        sides = {"better": change < 0, "worse": change > 0, "equal": change == 0}
        return {
            **{f"num_{name}": int(side.sum()) for name, side in sides.items()},
            "bins": bins,
            "largest_regressions": named,
        }

    def _weakest_groups(self) -> list[Tree]:
        members: dict[str, list[int]] = {}
        for row, group in enumerate(self.groups):
            members.setdefault(group, []).append(row)
        found = [{"group": group, **self._perplexities(rows)} for group, rows in members.items()]
        large = [each for each in found if each["num_tokens"] >= _MIN_GROUP_TOKENS]
        return sorted(large, key=lambda each: (-each["perplexity"], each["group"]))[:MOST_NAMED]

    def _per_length(self) -> list[Tree]:
        lengths = self._tokens.tolist()
        # The shortest documents belong to the first part, however many there are of them.
        edges = [edge for edge in quarter_edges(lengths) if edge > min(lengths)] or [max(lengths)]
        found: dict[int, list[int]] = {}
        for row, length in enumerate(lengths):
            found.setdefault(next(edge for edge in edges if length <= edge), []).append(row)
        ranges = {edge: [lengths[row] for row in rows] for edge, rows in found.items()}
        return [
            {"low": min(ranges[edge]), "high": max(ranges[edge]), **self._perplexities(found[edge])}
            for edge in sorted(found)
        ]

    def _perplexities(self, rows: Sequence[int]) -> Tree:
        tokens = int(self._tokens[rows].sum())
        ours, theirs = (
            math.exp(min(float(self._column(f"loss_{system}")[rows].sum()) / tokens, _MAX_LOSS))
            for system in (FINETUNED, "base_model")
        )
        return {"num_rows": len(rows), "num_tokens": tokens, "perplexity": ours, "base_perplexity": theirs}

    def _column(self, name: str) -> np.ndarray:
        return np.array(self._rows[name])[self._scored]


def quarter_edges(lengths: Sequence[int]) -> list[int]:
    """Return the longest of each quarter of the lengths; fewer where many are equally long."""
    ranked = sorted(lengths)
    return sorted({ranked[math.ceil(len(ranked) * quarter / 4) - 1] for quarter in (1, 2, 3, 4)})
