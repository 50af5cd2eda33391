"""monitoring: quiet on unchanged windows, awake on shifts, and the same verdict whenever a window is read
again.

Rates on real corpora are measured by `benchmarks.drift`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fullft_assets import monitoring
from fullft_assets.errors import StoreError
from fullft_assets.monitoring import (
    REFERENCE_WINDOWS,
    DriftVerdict,
    Features,
    History,
    Past,
    Scale,
    Sums,
    Vocabulary,
)
from fullft_assets.monitoring.drift_tests import compare_means
from fullft_assets.settings import MonitoringSettings
from fullft_assets.store import Manifest
from tests.manifests import drift

pytestmark = pytest.mark.quick

SETTINGS = MonitoringSettings()
NUM_LABELS, WIDTH, WINDOW = 3, 24, 150


def draw(
    rng: np.random.Generator,
    size: int = WINDOW,
    *,
    moved: float = 0.0,
    share: float = 1.0,
    predicted: int | None = None,
) -> Features:
    """Return features of documents; a share of them moved in the embedding, or all predicted alike."""
    embeddings = rng.normal(size=(size, WIDTH)) / np.sqrt(1 + np.arange(WIDTH))
    embeddings[: round(share * size), 0] += moved
    return Features(
        num_tokens=rng.poisson(40, size),
        fertility=1 + rng.gamma(2, 0.2, size),
        unknown_share=rng.beta(1, 9, size) * (rng.random(size) < 0.5),
        entropy=rng.gamma(1, 0.3, size),
        predicted=(
            rng.choice(NUM_LABELS, size, p=[0.6, 0.3, 0.1]) if predicted is None else np.full(size, predicted)
        ),
        embeddings=embeddings.astype(np.float32),
    )


@pytest.fixture(scope="module")
def scale() -> Scale:
    return Scale.fit(draw(np.random.default_rng(0), 600), NUM_LABELS)


def send(
    windows: list[Sums], labels: Sequence[str] = ("a", "b", "c"), settings: MonitoringSettings = SETTINGS
) -> list[DriftVerdict]:
    """Return the verdicts on windows in the order of their arrival."""
    past, verdicts = Past[Sums]([], []), []
    for sums in windows:
        verdicts.append(monitoring.judge(sums, past, past, settings, labels))
        past = past.after(sums, verdicts[-1].status)
    return verdicts


def windows(scale: Scale, rng: np.random.Generator, count: int, **shift: Any) -> list[Sums]:
    return [scale.sums(draw(rng, **shift)) for _ in range(count)]


def test_unchanged_production_warms_up_and_stays_quiet(scale: Scale) -> None:
    alarms, num_windows = 0, 0
    for seed in range(8):
        verdicts = send(windows(scale, np.random.default_rng(seed), 32))
        assert [verdict.status for verdict in verdicts[:6]] == ["warming_up"] * 6
        assert "provisional" in verdicts[6].notes[0] and verdicts[12].homogeneity is not None
        alarms += sum(verdict.status in monitoring.ALARMED for verdict in verdicts[12:])
        num_windows += len(verdicts[12:])
    assert alarms <= 0.05 * num_windows


def test_a_shift_alarms_and_is_confirmed_by_the_next_window(scale: Scale) -> None:
    rng = np.random.default_rng(1)
    verdicts = send([*windows(scale, rng, 14), *windows(scale, rng, 3, moved=3.0, share=0.3)])
    assert [verdict.status for verdict in verdicts[14:]] == ["alarm", "confirmed", "confirmed"]
    assert verdicts[14].alarms == ["embeddings", "embeddings_3_windows"] and verdicts[14].moved == [
        "the content of the texts changed"
    ]
    assert verdicts[14].comparisons[0].effect > 0.5


@pytest.mark.parametrize(
    ("seed", "num_shifted", "shift", "statuses"),
    [
        # One bad window alarms while it is pooled, and confirms nothing.
        (8, 1, {"moved": 6.0, "share": 0.5}, ["alarm"] * 3 + ["ok"] * 3),
        # A small shift shows over three windows, and is confirmed by the three before.
        (5, 6, {"moved": 1.9, "share": 0.2}, ["ok"] * 2 + ["alarm"] * 3 + ["confirmed"]),
    ],
)
def test_three_windows_are_pooled(
    scale: Scale, seed: int, num_shifted: int, shift: dict[str, float], statuses: list[str]
) -> None:
    rng = np.random.default_rng(seed)
    shifted = [*windows(scale, rng, 14), *windows(scale, rng, num_shifted, **shift)]
    verdicts = send([*shifted, *windows(scale, rng, 6 - num_shifted)])
    assert [verdict.status for verdict in verdicts[14:]] == statuses
    assert all(verdict.alarms == ["embeddings_3_windows"] for verdict in verdicts[16:] if verdict.alarms)


@pytest.mark.parametrize("lasting", [0.0, 0.7])
def test_topics_that_last_for_windows_are_no_drift(lasting: float) -> None:
    rng, alarms = np.random.default_rng(3), []
    for _ in range(100):
        topics = rng.normal(size=24)
        means = []
        for _ in range(REFERENCE_WINDOWS + 3):
            topics = lasting * topics + (1 - lasting**2) ** 0.5 * rng.normal(size=24)
            means.append(0.1 * (0.8 * topics + 0.6 * rng.normal(size=24)))
        alarms.append(compare_means(means[:-3], [100] * REFERENCE_WINDOWS, means[-3:], [100] * 3)[1] <= 0.03)
    assert np.mean(alarms) <= 0.08


def test_a_label_that_may_be_a_text_is_not_named(scale: Scale) -> None:
    rng = np.random.default_rng(2)
    sentences = [
        f"What patient {number} wrote in place of a label, in more than six words" for number in range(3)
    ]
    verdict = send([*windows(scale, rng, 12), scale.sums(draw(rng, predicted=2))], sentences)[-1]
    assert verdict.alarms == ["predicted_labels"]
    assert "most 1 label (not named, " in verdict.moved[0] and sentences[2] not in verdict.moved[0]


def test_the_verdict_says_what_changed(scale: Scale) -> None:
    rng = np.random.default_rng(2)
    usual = windows(scale, rng, 12)
    features = draw(rng, predicted=2)
    verdict = send(
        [*usual, scale.sums(Features(**{**vars(features), "num_tokens": 3 * features.num_tokens}))]
    )[-1]
    assert verdict.alarms == ["text_statistics", "predicted_labels"]
    assert "tokens of a text: 40" in verdict.moved[0] and "most `c`: " in verdict.moved[1]
    assert "-> 100.0%" in verdict.moved[1]
    outcome = monitoring.check(verdict)
    assert not outcome.passed
    assert outcome.severity == "warn"
    assert "explanation.md" in outcome.description
    assert DriftVerdict.model_validate_json(verdict.model_dump_json()) == verdict
    table = monitoring.render_table(verdict)
    assert len(table) < 1_000 and table.count("\n| ") == 3
    report = monitoring.render_report(
        verdict, "Drift report", [("w1", {"novel_share": 0.1}), ("w2", {"p_embeddings": 0.5})]
    )
    assert "| w1 | 0.1 |  |" in report and "| w2 |  | 0.5 |" in report


def test_a_label_that_one_document_has_is_no_drift(scale: Scale) -> None:
    rng = np.random.default_rng(4)
    usual = windows(scale, rng, 12, predicted=0)
    stray = Features(**{**vars(draw(rng, predicted=0)), "predicted": np.eye(WINDOW, dtype=int)[0] * 2})
    assert send([*usual, scale.sums(stray)])[-1].status == "ok"


def test_a_reference_that_changes_halfway_is_named(scale: Scale) -> None:
    rng = np.random.default_rng(5)
    # Too slow for any alarm while it is collected.
    slow = [scale.sums(draw(rng, moved=0.09 * number)) for number in range(12)]
    verdict = send([*slow, *windows(scale, rng, 1, moved=1.0)])[-1]
    assert verdict.homogeneity < 0.02 and "not homogeneous" in verdict.notes[0]


def test_a_confirmed_window_does_not_join_the_reference() -> None:
    assert Past([1], []).after(2, "alarm") == ([1], [2])
    assert Past([1], []).after(2, "confirmed") == ([1], [2])
    full = list(range(monitoring.REFERENCE_WINDOWS))
    assert Past(full, [13, 14]).after(15, "ok") == (full, [13, 14, 15])


class TestNewChampion:
    """What the first windows under a champion are compared with that was released in calm."""

    def usual(self, scale: Scale, rng: np.random.Generator) -> Past[Sums]:
        return Past(windows(scale, rng, 12), [])

    def test_its_first_window_alarms_where_the_content_moved(self, scale: Scale) -> None:
        rng, none = np.random.default_rng(11), Past[Sums]([], [])
        content, statuses = self.usual(scale, rng), []
        for sums in windows(scale, rng, 3, moved=3.0, share=0.3):
            verdict = monitoring.judge(sums, content, none, SETTINGS)
            content = content.after(sums, verdict.status)
            statuses.append(verdict.status)
        assert statuses == ["alarm", "confirmed", "confirmed"]
        assert {comparison.test for comparison in verdict.comparisons} == {
            "embeddings"
        } and verdict.num_reference_windows == 12
        assert verdict.notes == ["only the content is compared: there are 0 of 6 windows under this champion"]

    def test_its_predictions_are_compared_from_its_own_windows_on(self, scale: Scale) -> None:
        rng = np.random.default_rng(12)
        others = scale.sums(draw(rng, predicted=2))
        content = self.usual(scale, rng)
        assert monitoring.judge(others, content, Past(windows(scale, rng, 5), []), SETTINGS).status == "ok"
        verdict = monitoring.judge(others, content, Past(windows(scale, rng, 6), []), SETTINGS)
        assert verdict.alarms == ["predicted_labels"] and not verdict.notes

    def test_the_content_is_read_on_the_scale_of_then(self, scale: Scale) -> None:
        rng = np.random.default_rng(13)
        other = Scale.fit(draw(rng, 600), NUM_LABELS)
        features = draw(rng)
        kept, mine, old = (
            each.coordinates(features) for each in (other.with_content_of(scale), other, scale)
        )
        assert np.array_equal(kept["embeddings"], old["embeddings"]) and not np.array_equal(
            kept["embeddings"], mine["embeddings"]
        )
        assert all(
            np.array_equal(kept[family], mine[family]) for family in ("text_statistics", "predicted_labels")
        )

    def test_calm_windows_are_kept_and_an_alarm_begins_anew(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("fullft_assets.monitoring.history.REFERENCE_WINDOWS", 4)

        def kept(*statuses: monitoring.Status) -> list[int]:
            return monitoring.kept_reference([*enumerate(statuses)][::-1])

        assert kept() == [] and kept("warming_up", "warming_up") == [0, 1]
        assert kept("ok", "ok", "ok", "ok", "ok", "ok") == [2, 3, 4, 5]
        assert kept("ok", "ok", "alarm", "confirmed", "ok", "ok", "ok") == [1, 4, 5, 6]
        assert (
            kept("ok", "ok", "ok", "alarm", "ok", "ok") == []
            and kept("ok", "ok", "ok", "ok", "confirmed") == []
        )


def test_too_few_documents_and_none_at_all() -> None:
    few, none = (monitoring.insufficient(count, SETTINGS) for count in (99, 0))
    assert few.status == "insufficient_data" and "99 independent documents" in few.summary
    assert monitoring.check(few).passed
    assert none.status == "feed_broken" and not monitoring.check(none).passed
    assert monitoring.render_table(none) == none.summary


def test_other_texts_than_the_held_out_ones_are_novel(scale: Scale) -> None:
    rng = np.random.default_rng(6)
    features = draw(rng)
    # A direction in which held-out rows hardly differ.
    features.embeddings[:30, -1] += 30
    usual, other = scale.sums(draw(rng)).novel_share, scale.sums(features).novel_share
    assert abs(usual) < 0.05 < other
    assert [float(f"{share:.9f}") for share in (usual, other)] == [
        usual,
        other,
    ], "no -4e-17 where it is exactly 5%"
    assert scale.without_rows().sums(draw(rng)).novel_share is None


def test_many_novel_documents_are_named_while_there_is_no_reference(scale: Scale) -> None:
    features = draw(np.random.default_rng(6))
    features.embeddings[:30, -1] += 30
    verdicts = send([scale.sums(features)] * 7)
    assert [monitoring.check(verdict).passed for verdict in verdicts] == [False] * 6 + [True]
    assert verdicts[0].status == "warming_up" and verdicts[-1].num_reference_windows == 6
    assert "of the documents are as far" in verdicts[0].summary


NOTHING = History(Past([], []))


class TestHistory:
    """Which windows are read, as the reports in a store name them."""

    model = Manifest(
        case="c",
        stage="finetuned_checkpoint",
        key="k",
        attempt="a",
        version="1",
        seed=1,
        created_at=0,
        seconds=0,
        settings={},
        inputs={},
        files={},
        metadata={},
        checks=[],
    )

    scale = model.model_copy(update={"stage": "drift_scale"})

    @pytest.fixture(autouse=True)
    def short_reference(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for module in ("history", "verdict"):
            monkeypatch.setattr(f"fullft_assets.monitoring.{module}.REFERENCE_WINDOWS", 6)

    def report(
        self,
        window: str,
        history: History,
        status: monitoring.Status,
        model: Manifest = model,
        **changes: Any,
    ) -> Manifest:
        metadata = {
            **drift(status),
            "window": window,
            "num_reference_windows": len(history.content.reference),
            "reference": [made.ref for made in history.model.reference],
            "recent": [made.ref for made in history.model.recent],
            "kept_reference": [made.ref for made in history.kept_past.reference] if history.kept_past else [],
            "kept_recent": [made.ref for made in history.kept_past.recent] if history.kept_past else [],
            "scale": (history.scale or self.scale).ref,
        }
        inputs = {
            "finetuned_checkpoint": model.content_digest,
            "production_documents": self.model.content_digest,
        }
        about = {
            "stage": "drift_report",
            "key": window,
            "version": monitoring.VERSION,
            "inputs": inputs,
            "metadata": metadata,
        }
        sums = {} if status == "insufficient_data" else {monitoring.SUMS: {"bytes": 1, "sha256": ""}}
        return self.model.model_validate({**self.model.model_dump(), **about, "files": sums, **changes})

    def read(self, window: str, made: dict[str, Manifest], **options: Any) -> History:
        return monitoring.read_history(
            window,
            made,
            made.get,
            {artifact.ref: artifact for artifact in (*made.values(), self.scale)}.__getitem__,
            documents=self.model,
            **{"model": self.model, "settings": {}, **options},
        )

    def names(self, history: History) -> tuple[list[str], list[str]]:
        return [made.key for made in history.model.reference], [made.key for made in history.model.recent]

    def test_the_first_windows_are_the_reference_for_good(self) -> None:
        made: dict[str, Manifest] = {}
        for number in range(1, 12):
            window = f"{number:02d}"
            made[window] = self.report(
                window, self.read(window, made), "insufficient_data" if number == 2 else "ok"
            )
        reference = ["01", "03", "04", "05", "06", "07"]
        recent = ["08", "09", "10", "11"]
        assert self.names(self.read("12", made)) == (reference, recent)
        assert self.names(History.of_inputs(self.read("12", made).as_inputs())) == (reference, recent)
        made["12"] = self.report("12", self.read("12", made), "ok")
        made["13"] = self.report("13", self.read("13", made), "ok")
        assert self.names(self.read("14", made)) == (reference, ["09", "10", "11", "12", "13"])

    def test_a_window_that_is_read_again_keeps_what_it_was_compared_with(self) -> None:
        made = {"02": self.report("02", NOTHING, "ok")}
        made["03"] = self.report("03", self.read("03", made), "ok")
        made["01"] = self.report("01", NOTHING, "ok")
        assert self.names(self.read("03", made)) == (["02"], [])
        assert self.names(self.read("02", made)) == ([], [])

    def test_the_content_of_calm_windows_stays_the_reference_under_the_next_champions(self) -> None:
        made: dict[str, Manifest] = {}
        second, third = (
            Manifest.model_validate(
                {**self.model.model_dump(), "files": {"model": {"bytes": 1, "sha256": sha256}}}
            )
            for sha256 in "23"
        )

        def go_on(first: int, last: int, model: Manifest, status: monitoring.Status = "ok") -> None:
            for number in range(first, last + 1):
                window = f"{number:02d}"
                made[window] = self.report(window, self.read(window, made, model=model), status, model=model)

        def kept(window: str, model: Manifest) -> tuple[list[str], list[str]] | None:
            history = self.read(window, made, model=model)
            assert History.of_inputs(history.as_inputs()) == history
            return history.kept_past and (
                [made.key for made in history.kept_past.reference],
                [made.key for made in history.kept_past.recent],
            )

        go_on(1, 7, self.model)
        assert kept("08", self.model) is None
        assert kept("08", second) == (["02", "03", "04", "05", "06", "07"], [])
        go_on(8, 9, second)
        assert kept("10", second) == (["02", "03", "04", "05", "06", "07"], ["08", "09"])
        assert self.names(self.read("10", made, model=second)) == (["08", "09"], [])
        assert kept("10", third) == (["04", "05", "06", "07", "08", "09"], [])
        # Materialised again, also where nothing could be read.
        made["10"] = self.report("10", self.read("10", made, model=second), "insufficient_data", model=second)
        assert kept("10", second) == (["02", "03", "04", "05", "06", "07"], ["08", "09"])
        go_on(10, 10, second, "confirmed")
        assert self.read("11", made, model=third) == NOTHING
        # After a roll-back that began anew, the windows before the drift are no reference of the next
        # champion.
        go_on(11, 14, self.model)
        assert self.names(self.read("15", made)) == (["11", "12", "13", "14"], [])
        assert kept("15", third) == (["11", "12", "13", "14"], [])

    def test_other_settings_begin_anew(self) -> None:
        made = {"01": self.report("01", NOTHING, "ok", settings={"max_window_rows": 5})}
        assert self.read("02", made) == NOTHING


def test_one_row_a_group_and_one_a_cluster_whatever_the_order() -> None:
    related = [
        f"the quick brown fox jumps over the lazy dog and then it sleeps for {n} hours in the sun"
        for n in range(4)
    ]
    texts = [
        "a",
        "b",
        "c",
        "d",
        "e",
        "e",
        "f",
        *related,
        "something else entirely is said in this text of the window",
    ]
    groups = ["x", "x", "x", "y", None, "", "y", *[None] * 5]
    chosen = monitoring.independent_rows(texts, groups, 7)
    kept = {texts[index] for index in chosen}
    assert len(chosen) == 5
    assert "e" in kept
    assert len(kept & set(related)) == 1
    assert list(chosen) == sorted(chosen)
    turned = monitoring.independent_rows(texts[::-1], groups[::-1], 7)
    assert {texts[::-1][index] for index in turned} == kept
    draws = {
        frozenset(texts[index] for index in monitoring.independent_rows(texts, groups, seed))
        for seed in range(20)
    }
    assert len(draws) > 1


def test_a_limit_draws_the_same_rows_as_data_grows() -> None:
    texts = [f"text {index}" for index in range(500)]
    groups = [f"group {index}" for index in range(1_000)]
    drawn = monitoring.independent_rows(texts, groups[:500], 1, limit=50)
    assert len(drawn) == 50
    more = texts + [f"later {index}" for index in range(500)]
    later = [more[index] for index in monitoring.independent_rows(more, groups, 1, limit=50)]
    assert len({texts[index] for index in drawn} & set(later)) >= 15
    assert monitoring.independent_rows([], [], 1).shape == (0,)


def test_features_count_tokens_and_words_of_the_text() -> None:
    vocabulary = Vocabulary.of(["The cat"], 3)
    assert Vocabulary(vocabulary.hashes, 3).hashes.dtype == np.uint64 and "dog" not in vocabulary
    features = monitoring.build_features(
        ["The cat sat", "???"], [6, 3], vocabulary, np.array([[0.5, 0.5], [0.0, 1.0]]), np.ones((2, 4))
    )
    assert features.fertility.tolist() == [2.0, 3.0]
    assert features.unknown_share.tolist() == [pytest.approx(1 / 3), 0.0]
    assert features.entropy.tolist() == [pytest.approx(np.log(2)), pytest.approx(0)]
    assert features.predicted.tolist() == [0, 1]


def test_scale_and_sums_are_saved_and_loaded(tmp_path: Path, scale: Scale) -> None:
    scale.save(tmp_path / "scale.npz")
    features = draw(np.random.default_rng(1))
    for each in (Scale.load(tmp_path / "scale.npz").sums(features), scale.without_rows().sums(features)):
        each.save(tmp_path / "sums.npz")
        loaded = Sums.load(tmp_path / "sums.npz")
        assert (loaded.num_rows, loaded.novel_share) == (WINDOW, each.novel_share)
        assert loaded.counts.sum() == WINDOW and loaded.as_numbers() == each.as_numbers()
        assert all(
            np.array_equal(loaded.means[name], mean) for name, mean in scale.sums(features).means.items()
        )
    np.savez(tmp_path / "other.npz", centre=np.ones(3))
    with pytest.raises(StoreError, match="no array `held_out`"):
        Scale.load(tmp_path / "other.npz")


def test_broken_features_are_refused(scale: Scale) -> None:
    good = vars(draw(np.random.default_rng(1)))
    with pytest.raises(ValueError, match="`entropy` is not finite"):
        Features(**{**good, "entropy": np.full(WINDOW, np.nan)})
    with pytest.raises(ValueError, match="`fertility` has shape"):
        Features(**{**good, "fertility": good["fertility"][:-1]})
    with pytest.raises(ValueError, match="different models"):
        scale.sums(Features(**{**good, "embeddings": good["embeddings"][:, :10]}))


def test_an_explanation_names_words_but_no_text() -> None:
    before, now = (
        ["the cat sat"] * 40,
        ["the dog sat"] * 20 + ["the cat sat"] * 10 + ["a secret of one person"],
    )
    words = monitoring.shifted_words(before, now)
    names = [word for word, _, _ in words]
    assert set(names[:2]) == {"cat", "dog"} and "secret" not in names
    text = monitoring.render_explanation("What moved", ["the content changed"], words)
    assert "| dog | 0.0% | 64.5% |" in text and "the dog sat" not in text
