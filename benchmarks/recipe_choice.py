"""Which learning rate, batch and number of steps tune an encoder best, each set judged by what the others choose:
`python -m benchmarks.recipe_choice`, tables in Markdown.

`benchmarks/data/recipe_scores.jsonl` has real trainings on public sets, cut at 48 tokens, at 300, 1,000 and
5,000 rows, scored on the test rows; `--measure SET ... [--rows 300] [--seeds 0 1] [--batches 16]` adds some,
one to six minutes of a core each. A recipe's gain is over the frozen probe, which the head begins as; its interval is
over groups of test rows, the mean of the seeds' ends. For a set and a number of rows the recipe is chosen
that gains most on the other sets in the mean.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

SCORES = Path(__file__).with_name("data") / "recipe_scores.jsonl"
SETS = ("diagnoses", "sections", "functions", "tags", "reviews", "entities")
NUM_ROWS = (300, 1_000, 5_000)
#: Learning rate, rows of a batch, and the rows that passes read at least; at most 20 passes.
RECIPES = (
    (5e-5, 32, 16_000),
    (1e-4, 32, 16_000),
    (1e-4, 32, 8_000),
    (1e-4, 16, 16_000),
    (1e-4, 16, 8_000),
)
_MOST_PASSES, _LEAST_PASSES = 20, 3


@dataclass(frozen=True)
class Scored:
    """A training's test score, and its gain over the probe with the ends of a 95% interval.

    Attributes:
        other: score of TF-IDF, or of a dictionary of spans.
        low, high: None: not resampled.
    """

    name: str
    num_rows: int
    rate: float
    batch: int
    read: int
    seed: int
    probe: float
    other: float
    score: float
    low: float | None = None
    high: float | None = None

    @property
    def recipe(self) -> tuple[float, int, int]:
        """Learning rate, rows of a batch, and rows read at least."""
        return self.rate, self.batch, self.read

    @property
    def gain(self) -> float:
        """What it has more than the probe."""
        return self.score - self.probe


def passes(num_rows: int, read: int) -> float:
    """Return the passes over so many rows that read so many."""
    return float(min(max(_LEAST_PASSES, -(-read // num_rows)), _MOST_PASSES))


def measured(
    name: str, root: Path, num_rows: int, seeds: Sequence[int], batches: Sequence[int]
) -> Iterator[Scored]:
    """Train on the first rows of a set by each recipe that is another one at this number of rows."""
    from benchmarks import public_sets, recipes
    from fullft_assets.training.finetuning import fine_tune

    if not (root / ".home").exists():
        rows = {"max_train_rows": 6_000, "max_validation_rows": 1_000}
        public_sets.measure(
            name, root, rows=20_000, snapshot=rows, chunks={"max_tokens": 48, "max_chunks": 1}
        )
    bench = recipes.Bench(name, root)
    bench.recipe = bench.whole.first(min(num_rows, bench.whole.num_rows))
    is_tagger = bench.job.settings.examples.task == "token_classification"
    probe, other = (
        bench.baseline(baseline)
        for baseline in (("token_probe", "dictionary") if is_tagger else ("frozen_probe", "tfidf"))
    )
    every = np.arange(len(bench.test))
    for seed in seeds:
        for rate, batch, read in _different(num_rows):
            if batch not in batches:
                continue
            changes = {
                "learning_rate": rate,
                "batch_size": batch,
                "epochs": passes(bench.recipe.num_rows, read),
            }
            settings = bench.job.settings.training.model_copy(update=changes)
            with tempfile.TemporaryDirectory() as folder:
                fit = fine_tune(
                    bench.recipe,
                    settings,
                    seed,
                    Path(folder),
                    bench.progress,
                    evaluate_at=[],
                    resumable=False,
                )
            bench.recipe.finish(fit.model, bench.progress)
            predicted = bench.recipe.predict(fit.model, bench.test, bench.progress)
            _, low, high = bench.gain([predicted], probe)
            yield Scored(
                name,
                num_rows,
                rate,
                batch,
                read,
                seed,
                probe=bench.score(probe, every),
                other=bench.score(other, every),
                score=bench.score(predicted, every),
                low=low,
                high=high,
            )


def _different(num_rows: int) -> list[tuple[float, int, int]]:
    by_passes = {
        (rate, batch, passes(num_rows, read)): (rate, batch, read) for rate, batch, read in reversed(RECIPES)
    }
    return [recipe for recipe in RECIPES if recipe in by_passes.values()]


def chosen(scored: Sequence[Scored], without: str, num_rows: int) -> tuple[float, int, int]:
    """Return the recipe that gains most in the mean, seed 0, on the sets but one, of those that were measured
    on all of these.
    """
    gains = {
        recipe: [
            each.gain
            for each in scored
            if (each.recipe, each.num_rows, each.seed) == (recipe, num_rows, 0) and each.name != without
        ]
        for recipe in _different(num_rows)
    }
    num_others = len({each.name for each in scored} - {without})
    complete = {recipe: found for recipe, found in gains.items() if len(found) == num_others}
    return max(complete, key=lambda recipe: float(np.mean(complete[recipe])))


def tables(scored: Sequence[Scored]) -> Iterator[str]:
    """Yield the lines of a table for each number of rows."""
    for num_rows in NUM_ROWS:
        different = _different(num_rows)
        titles = [
            f"{rate:g}, {passes(num_rows, read):.0f} passes of {batch}" for rate, batch, read in different
        ]
        yield f"\n| {num_rows:,} rows | probe | TF-IDF | {' | '.join(titles)} | the others choose | gain over the probe (95%), seeds |"
        yield f"|---|--:|--:|{'--:|' * len(titles)}---|---|"
        gains: list[float] = []
        for name in dict.fromkeys(each.name for each in scored):
            of_set = [each for each in scored if (each.name, each.num_rows) == (name, num_rows)]
            if not of_set:
                continue
            recipe = chosen(scored, name, num_rows)
            by_seed = [each for each in of_set if each.recipe == recipe]
            means = (
                np.mean(found) if (found := [each.score for each in of_set if each.recipe == one]) else np.nan
                for one in different
            )
            gains.append(float(np.mean([each.gain for each in by_seed])))
            ends = [(each.low, each.high) for each in by_seed if each.low is not None]
            low, high = np.mean(np.array(ends, float), axis=0) if ends else (np.nan, np.nan)
            cells = [
                name,
                f"{of_set[0].probe:.3f}",
                f"{of_set[0].other:.3f}",
                *(f"{mean:.3f}" for mean in means),
            ]
            cells += [
                titles[different.index(recipe)],
                f"{gains[-1]:+.3f} ({low:+.3f} to {high:+.3f}), {len(by_seed)}",
            ]
            yield f"| {' | '.join(cells)} |"
        yield f"| mean | | |{' |' * len(titles)} | {np.mean(gains):+.3f} |"


def main(arguments: Sequence[str]) -> Iterator[str]:
    """Yield the lines of the tables, or of what was measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recipe_choice", description=__doc__)
    parser.add_argument("--measure", nargs="*", default=[], choices=SETS, metavar="SET")
    parser.add_argument("--rows", nargs="*", type=int, default=NUM_ROWS)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--batches", nargs="*", type=int, default=[16, 32], help="rows of a batch")
    parser.add_argument("--projects", type=Path, help="folder in which projects are kept between runs")
    parsed = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="fullft-recipe-choice-") as scratch, SCORES.open("a") as file:
        for name in parsed.measure:
            root = (parsed.projects or Path(scratch)) / name
            root.mkdir(parents=True, exist_ok=True)
            for num_rows in parsed.rows:
                for scored in measured(name, root, num_rows, parsed.seeds, parsed.batches):
                    print(json.dumps(asdict(scored)), file=file, flush=True)
                    yield json.dumps(asdict(scored))
    if not parsed.measure:
        yield from tables([Scored(**json.loads(line)) for line in SCORES.read_text().splitlines()])


if __name__ == "__main__":
    for line in main(sys.argv[1:]):
        print(line, flush=True)
