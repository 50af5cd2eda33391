"""What the pilot promises against what full trainings reach: `python -m benchmarks.pilot`, a line of JSON a
set.

A small neural network on TF-IDF is trained on growing parts of public sets, ten times each with other rows,
other seeds and other lengths of training, so that some curves take off late. The pilot sees what it would
see: four points up to a quarter of the rows. Counted are how often its 90% interval covers the score of the
full training, how wide it is, and how often it would refuse a training that is two points or more better than
a baseline.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import warnings
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, cast

import numpy as np

from benchmarks.split import SETS
from fullft_assets.planning.pilot import Point, PredictedScore, pilot_check, pilot_rows, predict_score
from fullft_assets.settings import PlanningSettings

NUM_ROWS, NUM_CURVES, BATCH_SIZE = 6_000, 10, 32
#: Passes over the rows and learning rate: the second takes off late.
RECIPES = ((40, 0.005), (6, 0.0015))


@cache
def _unique_rows(name: str) -> list[dict[str, str]]:
    return list({row["text"]: row for row in SETS[name]()}.values())


def curve(name: str, seed: int) -> tuple[PredictedScore, float]:
    """Return the prediction of one pilot, and the score of the full training."""
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
    return predict_score(points, all_rows, held), score(all_rows)


def _shown(prediction: PredictedScore, outcome: float) -> str:
    ends = (prediction.low, prediction.predicted, prediction.high, prediction.optimistic)
    points = [round(point.score, 3) for point in prediction.points]
    return json.dumps(
        {"points": points, "predicted": [round(value, 3) for value in ends], "outcome": round(outcome, 3)}
    )


def main(arguments: Sequence[str]) -> Iterator[str]:
    """Yield a line of JSON a set."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--sets",
        nargs="*",
        default=["licence rules by kind", "Debian packages by section", "docstrings by package"],
        choices=list(SETS),
    )
    parser.add_argument("--curves", type=int, default=NUM_CURVES)
    parser.add_argument("--verbose", action="store_true", help="print each curve once it is known")
    given = parser.parse_args(arguments)
    for name in given.sets:
        found = []
        for seed in range(given.curves):
            found.append(curve(name, seed))
            if given.verbose:
                yield _shown(*found[-1])
        refused = {
            gain: float(
                np.mean(
                    [
                        pilot_check(prediction, "any", outcome - gain, PlanningSettings()).is_red
                        for prediction, outcome in found
                    ]
                )
            )
            for gain in (0.02, 0.04, -0.04, -0.1, -0.2)
        }
        yield json.dumps(
            {
                "set": name,
                "curves": len(found),
                "covered": float(
                    np.mean([prediction.low <= outcome <= prediction.high for prediction, outcome in found])
                ),
                "width": round(
                    float(np.mean([prediction.high - prediction.low for prediction, _ in found])), 3
                ),
                "refused, by true gain": refused,
            }
        )


if __name__ == "__main__":
    for line in main(sys.argv[1:]):
        print(line, flush=True)
