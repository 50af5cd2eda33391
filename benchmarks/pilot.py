"""What the pilot promises against what full trainings reach: `python -m benchmarks.pilot`, a line of JSON a
set.

A small neural network on TF-IDF is trained on growing parts of public sets, each time with other rows, other
seeds and other lengths of training, so that some curves take off late. The pilot sees what it would see: four
points up to a quarter of the rows. Counted are how often its 90% interval covers the score of the full
training and how wide it is; how often it refuses a training that is better, or worse, than a baseline by so
much; how often it does so where one part failed; and what share of a training it costs. The set `late` has
drawn curves whose take-off is behind the pilot's rows.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, cast

import numpy as np

from benchmarks.split import SETS
from fullft_assets.planning.pilot import Point, PredictedScore, pilot_check, pilot_rows, predict_score
from fullft_assets.settings import PlanningSettings

NUM_ROWS, NUM_CURVES, BATCH_SIZE = 4_000, 8, 32
#: Passes over the rows and learning rate: the second takes off late.
RECIPES = ((40, 0.005), (6, 0.0015))
#: Drawn curves, see `late_curve`.
LATE = "late"


@cache
def _unique_rows(name: str) -> list[dict[str, str]]:
    return list({row["text"]: row for row in SETS[name]()}.values())


@dataclass(frozen=True)
class Curve:
    """The scores of a pilot's parts, and of the training that it predicts.

    Attributes:
        floor: score of the weakest baseline, which always gives the commonest label.
    """

    points: list[Point]
    num_rows: int
    num_validation_rows: int
    outcome: float
    floor: float

    @property
    def prediction(self) -> PredictedScore:
        """What the pilot predicts."""
        return predict_score(self.points, self.num_rows, self.num_validation_rows)

    def is_refused(self, gain: float) -> bool:
        """Return whether the training is refused where it is better by `gain` than the best baseline."""
        baselines = {"majority": self.floor, "best": self.outcome - gain}
        return pilot_check(self.prediction, baselines, PlanningSettings()).is_red

    def cost(self, gain: float) -> float:
        """Return the share of a training that the parts cost, which end once they are surely better."""
        rows = 0
        for number, point in enumerate(self.points, start=1):
            rows += point.rows
            so_far = predict_score(self.points[:number], point.rows, self.num_validation_rows)
            if number > 1 and so_far.low >= self.outcome - gain:
                break
        return rows / self.num_rows


def late_curve(seed: int) -> Curve:
    """Return a drawn curve that stays at its floor for all of the pilot's rows and then rises."""
    rng = np.random.default_rng([11, seed])
    middle, steepness, top = rng.uniform(0.3, 0.7) * 3_200, rng.uniform(3, 12), rng.uniform(0.5, 0.9)

    def score(rows: int) -> float:
        return float(0.05 + (top - 0.05) / (1 + (middle / rows) ** steepness) + rng.normal(0, 0.01))

    points = [Point(rows=rows, score=max(0.0, score(rows))) for rows in pilot_rows(3_200, 0.25, BATCH_SIZE)]
    return Curve(points, 3_200, 800, score(3_200), 0.05)


def curve(name: str, seed: int) -> Curve:
    """Return the curve of one pilot."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.metrics import f1_score
    from sklearn.neural_network import MLPClassifier

    unique = _unique_rows(name)
    rows = random.Random(seed).sample(unique, min(NUM_ROWS, len(unique)))
    texts, labels = [row["text"] for row in rows], np.array([row["label"] for row in rows])
    held = len(rows) // 5
    vectorizer = TfidfVectorizer(sublinear_tf=True, min_df=2)
    found = vectorizer.fit(texts[held:]).transform(texts)
    reduced = TruncatedSVD(100, random_state=seed).fit(found[held:]).transform(found)
    reduced /= np.linalg.norm(reduced, axis=1, keepdims=True) + 1e-9
    epochs, rate = RECIPES[seed % len(RECIPES)]

    def score(num_rows: int) -> float:
        options: dict[str, Any] = {
            "max_iter": epochs,
            "batch_size": BATCH_SIZE,
            "learning_rate_init": rate,
            "n_iter_no_change": 1_000,
        }
        network = MLPClassifier((64,), random_state=seed, **options)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            network.fit(reduced[held : held + num_rows], labels[held : held + num_rows])
        return float(
            f1_score(
                labels[:held], network.predict(reduced[:held]), average="macro", zero_division=cast(Any, 0)
            )
        )

    all_rows = len(rows) - held
    points = [Point(rows=count, score=score(count)) for count in pilot_rows(all_rows, 0.25, BATCH_SIZE)]
    commonest = np.full(held, max(set(labels.tolist()), key=labels.tolist().count))
    floor = f1_score(labels[:held], commonest, average="macro", zero_division=cast(Any, 0))
    return Curve(points, all_rows, held, score(all_rows), float(floor))


def _shown(one: Curve) -> str:
    ends = (one.prediction.low, one.prediction.predicted, one.prediction.high)
    points = [round(point.score, 3) for point in one.points]
    return json.dumps(
        {"points": points, "predicted": [round(value, 3) for value in ends], "outcome": round(one.outcome, 3)}
    )


def _with_failure(one: Curve, part: int) -> Curve:
    """Return the curve whose part of this number failed: it scores no better than the floor."""
    points = list(one.points)
    points[part] = points[part].model_copy(update={"score": one.floor})
    return replace(one, points=points)


def main(arguments: Sequence[str]) -> Iterator[str]:
    """Yield a line of JSON a set."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--sets",
        nargs="*",
        default=["licence rules by kind", "Debian packages by section", "docstrings by package", LATE],
        choices=[*SETS, LATE],
    )
    parser.add_argument("--curves", type=int, default=NUM_CURVES)
    parser.add_argument("--verbose", action="store_true", help="print each curve once it is known")
    given = parser.parse_args(arguments)
    for name in given.sets:
        curves = []
        for seed in range(given.curves):
            curves.append(late_curve(seed) if name == LATE else curve(name, seed))
            if given.verbose:
                yield _shown(curves[-1])
        predictions = [one.prediction for one in curves]
        is_covered = [
            prediction.low <= one.outcome <= prediction.high
            for prediction, one in zip(predictions, curves, strict=True)
        ]
        yield json.dumps(
            {
                "set": name,
                "curves": len(curves),
                "covered": float(np.mean(is_covered)),
                "width": round(float(np.mean([each.high - each.low for each in predictions])), 3),
                "refused, by true gain": {
                    gain: float(np.mean([one.is_refused(gain) for one in curves]))
                    for gain in (0.02, -0.05, -0.1, -0.2, -0.4)
                },
                "gain of 2 points refused, by failed part": [
                    float(np.mean([_with_failure(one, part).is_refused(0.02) for one in curves]))
                    for part in range(4)
                ],
                "cost, by true gain": {
                    gain: round(float(np.mean([one.cost(gain) for one in curves])), 3)
                    for gain in (0.02, 0.1, 0.3)
                },
            }
        )


if __name__ == "__main__":
    for line in main(sys.argv[1:]):
        print(line, flush=True)
