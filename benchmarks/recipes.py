"""A fine-tuned classifier against the platform's own baselines on public sets, at default settings and few
rows.

`python -m benchmarks.recipes [SET ...] [--rows 400 4000] [--seeds 3]` prints a Markdown table: the score of
TF-IDF, of the frozen probe and of each seed's fine-tuned model on the test rows, and the mean gain over the
better baseline with a 95% interval over groups of rows.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import public_sets
from fullft_assets import snapshot
from fullft_assets.checking.validation import load_use_case
from fullft_assets.job import Job
from fullft_assets.progress import Progress
from fullft_assets.resources import latest
from fullft_assets.settings.use_case import UseCase
from fullft_assets.store import Store
from fullft_assets.task import BASELINES
from fullft_assets.tasks.context import baseline_context, open_recipe
from fullft_assets.training.finetuning import fine_tune

SETS = ("diagnoses", "functions", "sections", "reviews", "mails", "tags", "entities")
#: Rows of a set that are delivered: enough for 4,000 training rows.
_DELIVERED = {"sections": 20_000, "reviews": 15_000, "tags": 20_000, "entities": 12_000}
_RESAMPLES = 1_000


class Bench:
    """One set's snapshot in a project of its own, with what the benchmark fits on it."""

    def __init__(self, name: str, project: Path):
        self.name, self.project = name, project
        self.use_case: UseCase = load_use_case(project / "my_project" / "defs" / name / "defs.yaml")
        self.store = Store(str(project / ".home" / "store"))
        found = latest(self.store, name, "training_snapshot")
        assert found is not None, f"no snapshot in {project}"
        self.frozen = found
        settings = self.use_case.settings
        self.job = Job(
            case=name,
            stage="finetuned_checkpoint",
            key="benchmark",
            project_root=str(project),
            store_url=self.store.url,
            settings=settings,
            inputs={"training_snapshot": found.ref},
        )
        self.whole: Any = open_recipe(self.job, self.store, found)
        self.recipe = self.whole
        self.test = snapshot.load_split(self.store, found, "test")
        self.progress = Progress(silent=True)

    def baseline(self, name: str) -> Any:
        """Return what a baseline predicts of the test rows."""
        context = self.recipe._with_recipe(baseline_context(self.job, self.store, self.frozen, self.progress))
        return BASELINES.get(name).fit(self.recipe.train, context).predict(self.test)

    def tuned(self, seed: int) -> Any:
        """Return what a model that is fine-tuned at default settings predicts of the test rows."""
        settings = self.job.settings.with_epochs(self.recipe.num_rows).training
        with tempfile.TemporaryDirectory() as folder:
            fit = fine_tune(
                self.recipe, settings, seed, Path(folder), self.progress, evaluate_at=[], resumable=False
            )
        self.recipe.finish(fit.model, self.progress)
        return self.recipe.predict(fit.model, self.test, self.progress)

    def score(self, predicted: Any, rows: np.ndarray) -> float:
        """Return the task's deciding score of the test rows at these positions."""
        task, labels = self.use_case.settings.examples.task, self.recipe.labels
        if task == "token_classification":
            from fullft_assets.tasks.token_classification import assessment
            from fullft_assets.tasks.token_classification.recipe import normal

            spans = self.test.spans
            assert spans is not None
            truth = normal([self.test.texts[i] for i in rows], [spans[i] for i in rows])
            return assessment.scores(truth, [predicted[i] for i in rows], len(labels))["micro_f1"]
        from fullft_assets.evaluation.metrics.labels import MACRO_F1
        from fullft_assets.tasks.classification import assessment as classifiers

        truth, found = self.test.labels[rows], np.asarray(predicted)[rows]
        if task == "multi_label":
            decided = found >= classifiers.fit_thresholds(self.test.labels, np.asarray(predicted))
            return MACRO_F1.compute(classifiers.decisions_of(truth, decided))
        return MACRO_F1.compute(classifiers.predictions_of(truth, found, labels))

    def gain(self, ours: Sequence[Any], theirs: Any) -> tuple[float, float, float]:
        """Return the mean gain of some models over another one, and the ends of its 95% bootstrap interval
        over groups.
        """
        groups = np.unique(self.test.groups, return_inverse=True)[1]
        members = [np.flatnonzero(groups == number) for number in range(groups.max() + 1)]
        rng, drawn = np.random.default_rng(0), []
        for _ in range(_RESAMPLES if self.use_case.settings.examples.task != "token_classification" else 200):
            rows = np.concatenate([members[i] for i in rng.integers(len(members), size=len(members))])
            drawn.append(np.mean([self.score(each, rows) for each in ours]) - self.score(theirs, rows))
        every = np.arange(len(self.test))
        gain = np.mean([self.score(each, every) for each in ours]) - self.score(theirs, every)
        return float(gain), *np.quantile(drawn, [0.025, 0.975]).tolist()


def create(name: str, num_rows: int, root: Path) -> Path:
    """Write a set's project, and take its snapshot with at most so many training rows."""
    more: dict[str, Any] = {"snapshot": {"max_train_rows": num_rows, "max_validation_rows": 1_000}}
    outcome = public_sets.measure(name, root, rows=_DELIVERED.get(name), **more)
    if outcome.returncode:
        raise SystemExit("\n".join(outcome.last_lines))
    return root


def row(bench: Bench, num_rows: int, seeds: int) -> str:
    """Return the line of the table for the first training rows of a set, which are a random draw."""
    began = time.process_time()
    bench.recipe = bench.whole.first(min(num_rows, bench.whole.num_rows))
    probe = (
        "token_probe" if bench.use_case.settings.examples.task == "token_classification" else "frozen_probe"
    )
    other = "dictionary" if probe == "token_probe" else "tfidf"
    baselines = {name: bench.baseline(name) for name in (other, probe)}
    tuned = [bench.tuned(seed) for seed in range(seeds)]
    every = np.arange(len(bench.test))
    scores = {name: bench.score(predicted, every) for name, predicted in baselines.items()}
    best = max(scores, key=lambda name: scores[name])
    gain, low, high = bench.gain(tuned, baselines[best])
    ours = " ".join(f"{bench.score(each, every):.3f}" for each in tuned)
    cells = [
        bench.name,
        f"{len(bench.recipe.train):,} / {len(bench.test):,}",
        *(f"{scores[name]:.3f}" for name in (other, probe)),
        ours,
    ]
    cells += [f"{gain:+.3f} ({low:+.3f} to {high:+.3f})", f"{time.process_time() - began:.0f}"]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recipes", description=__doc__)
    parser.add_argument("sets", nargs="*", default=SETS, metavar="SET")
    parser.add_argument("--rows", nargs="*", type=int, default=[400, 4_000], help="training rows")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--projects",
        type=Path,
        help="folder in which projects are kept between runs (default: a temporary one)",
    )
    parsed = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(
        "| set | rows: train / test | TF-IDF (dictionary) | frozen probe | fine-tuned, by seed | gain over"
        " the better (95%) | CPU s |"
    )
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="fullft-recipes-") as scratch:
        for name in parsed.sets:
            project = (parsed.projects or Path(scratch)) / name
            if not (project / ".home").exists():
                project.mkdir(parents=True)
                create(name, max(parsed.rows), project)
            bench = Bench(name, project)
            for num_rows in parsed.rows:
                print(row(bench, num_rows, parsed.seeds), flush=True)


if __name__ == "__main__":
    main()
