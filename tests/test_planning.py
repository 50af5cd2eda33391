"""Planning: gates as pure functions, and the real workload on a small project."""

import math
import re
from pathlib import Path

import psutil
import pytest
from hypothesis import given, settings, strategies as st

from fullft_assets.errors import SettingsError
from fullft_assets.launch import entry
from fullft_assets.launch.contract import EXIT_FIXABLE
from fullft_assets.models.hardware import memory_limit
from fullft_assets.planning import (
    Measured,
    Point,
    pilot_check,
    pilot_rows,
    plan_checks,
    predict_score,
    stop_note,
)
from fullft_assets.progress import Progress
from fullft_assets.settings import PlanningSettings, TrainingSettings
from tests import project as projects
from tests.prepared import Prepared, prepare

pytestmark = pytest.mark.quick

MEASURED = Measured(
    num_parameters=22_000_000,
    num_trained_parameters=22_000_000,
    num_rows=20_000,
    num_steps=1_875,
    num_tokens=3_000_000,
    num_padded_tokens=3_200_000,
    predicted_seconds=7_200.0,
    peak_memory_bytes=3 * 2**30,
    available_memory_bytes=8 * 2**30,
    device="CPU x86_64",
    precision="fp32",
)


class TestPlanChecks:
    def verdicts(self, **settings: float) -> dict[str, bool]:
        _, checks = plan_checks(MEASURED, PlanningSettings(**settings))
        return {check.name: check.passed for check in checks}

    def test_plan_within_its_limits_is_green_and_priced(self):
        plan, checks = plan_checks(MEASURED, PlanningSettings(hourly_usd=3.0, max_usd=6.0, max_hours=2.0))
        assert all(check.passed for check in checks) and plan.planned_hours == 2.0
        assert plan.planned_usd == 6.0 and plan.padding_share == pytest.approx(0.0625)

    def test_the_price_has_pilot_baselines_and_evaluation_in_it(self):
        plan, (_, budget) = plan_checks(
            MEASURED, PlanningSettings(hourly_usd=3.0, max_usd=6.0, max_hours=2.0), trainings=1.5
        )
        assert not budget.passed and "planning.max_usd is 6" in budget.description
        assert (
            plan.planned_hours == budget.metadata["planned_hours"] == 2.0
            and budget.metadata["planned_usd"] == 9.0
        )

    @pytest.mark.parametrize(
        ("limits", "red"),
        [
            ({"max_hours": 1.9}, "within_budget"),
            ({"hourly_usd": 3.0, "max_usd": 5.9}, "within_budget"),
            ({"max_memory_gib": 2.9}, "fits_in_memory"),
        ],
    )
    def test_each_limit_turns_its_check_red(self, limits, red):
        assert self.verdicts(**limits) == {name: name != red for name in ("fits_in_memory", "within_budget")}

    def test_device_limits_what_the_settings_do_not(self):
        short = MEASURED.model_copy(update={"available_memory_bytes": 2 * 2**30})
        for limit in (None, 100.0):
            _, (fits, _) = plan_checks(short, PlanningSettings(max_memory_gib=limit))
            assert not fits.passed and "lower training.micro_batch_size" in fits.description

    def test_unsharded_processes_hold_buckets_of_gradients(self):
        frozen = MEASURED.model_copy(update={"num_trained_parameters": 20_000_000})
        plan, (fits, _) = plan_checks(frozen, PlanningSettings(), TrainingSettings(), 2)
        assert plan.peak_memory_gib * 2**30 == pytest.approx(3 * 2**30 + 80_000_000)
        assert "in each of 2 processes" in fits.description
        lean, _ = plan_checks(frozen, PlanningSettings(), TrainingSettings(weights="bf16"), 2)
        assert lean.peak_memory_gib * 2**30 == pytest.approx(3 * 2**30 + 40_000_000)
        for sharding, processes in (("fsdp2", 2), ("none", 1)):
            plan, _ = plan_checks(frozen, PlanningSettings(), TrainingSettings(sharding=sharding), processes)
            assert plan.peak_memory_gib <= 3

    @pytest.mark.parametrize(
        ("device", "num_measured", "changes", "more"),
        [
            ("CPU x86_64", 1, {}, 0),
            ("CPU x86_64", 1, {"optimizer": "adafactor"}, 264 - 168),
            ("NVIDIA A10", 1, {"optimizer": "adafactor"}, 0),
            ("CPU x86_64", 2, {"optimizer": "adafactor", "sharding": "fsdp2"}, (264 - 168) / 2),
            # Measured with the teacher, the weights to pull to, and their importance.
            (
                "NVIDIA A10",
                1,
                {"optimizer": "adafactor", "sharding": "fsdp2", "ewc": 0.1, "distillation": {}},
                -(168 + 88 + 160) / 2,
            ),
        ],
    )
    def test_copies_that_interpolation_holds_count(self, device, num_measured, changes, more):
        """Three of the weights, in MB, where gradients and moments were: more only on a low rung."""
        facts = {"device": device, "num_processes": num_measured, "num_trained_parameters": 20_000_000}
        training = TrainingSettings.model_validate({"wise_ft": [0.5, 1], **changes})
        processes = 2 if "sharding" in changes else 1
        plan, _ = plan_checks(MEASURED.model_copy(update=facts), PlanningSettings(), training, processes)
        assert plan.peak_memory_gib * 2**30 == pytest.approx(3 * 2**30 + more * 1e6)

    @pytest.mark.parametrize(
        ("optimizer", "weights", "bytes_a_weight"),
        [
            ("adamw", "fp32", 12),
            ("adamw", "bf16", 6),
            ("adafactor_in_backward", "bf16", 2),
        ],
    )
    def test_a_stop_takes_a_step_and_the_save_of_weights_and_moments(
        self, optimizer, weights, bytes_a_weight
    ):
        slow = MEASURED.model_copy(update={"predicted_seconds": 40.0 * MEASURED.num_steps})
        plan, _ = plan_checks(
            slow, PlanningSettings(), TrainingSettings(optimizer=optimizer, weights=weights)
        )
        seconds = plan.stop_seconds
        assert seconds == pytest.approx(40 + bytes_a_weight * 22_000_000 / (125 * 2**20))
        assert stop_note(seconds, 45) == ""
        assert re.fullmatch(
            r"a request to stop may take 4\d s to its checkpoint .* kills after 30; set [89]\d, or lower .*",
            stop_note(seconds, 30),
        )


class TestPilotRows:
    @settings(max_examples=300, deadline=None)
    @given(st.integers(2, 3_000), st.floats(0.01, 1.0), st.integers(1, 64))
    def test_a_share_of_the_rows_and_two_batches_at_least(self, num_rows, share, batch_size):
        if num_rows < 2 * batch_size:
            with pytest.raises(SettingsError, match="two batches"):
                pilot_rows(num_rows, share, batch_size)
            return
        assert (
            pilot_rows(num_rows, share, batch_size) == max(2 * batch_size, int(num_rows * share)) <= num_rows
        )

    def test_refusal_names_the_key_and_a_value_that_works(self):
        with pytest.raises(SettingsError, match=r"training.batch_size: 50 .* to 6"):
            pilot_rows(50, 0.25, 32)
        assert pilot_rows(50, 0.25, 6) == 12


def pilot_of(gain: float, start: float = 0.5, baseline: float | None = None) -> Point:
    return Point(rows=300, start=start, score=start + gain, baseline=start if baseline is None else baseline)


class TestPredictedScore:
    @settings(max_examples=15, deadline=None)
    @given(st.floats(-0.5, 0.5), st.floats(0, 1), st.integers(0, 10**6))
    @pytest.mark.heavy
    def test_is_an_ordered_interval_of_scores(self, gain, start, more):
        prediction = predict_score(pilot_of(gain), start, 300 + more, 1_000)
        assert 0 <= prediction.low <= prediction.predicted <= prediction.high <= 1

    def test_the_gain_over_the_best_baseline_is_that_on_the_pilots_rows(self):
        point = pilot_of(0.1, 0.5, baseline=0.56)
        prediction = predict_score(point, 0.7, 3_000, 1_000)
        chance = 1.645 * (0.015**2 + 0.25 / 1_000) ** 0.5
        # At most what the steps gained once more.
        assert [prediction.low, prediction.predicted, prediction.high] == pytest.approx(
            [0.75 - chance, 0.75, 0.74 + 0.1 + chance]
        )
        assert predict_score(pilot_of(0.03), 0.7, 3_000, 1_000).high == pytest.approx(0.79 + chance)
        assert predict_score(point, 0.7, 3_000, 100).low < prediction.low
        whole = predict_score(point, 0.7, 300, 1_000)
        chance = 1.645 * (0.25 / 1_000) ** 0.5
        assert [whole.low, whole.predicted, whole.high] == pytest.approx([0.74 - chance, 0.74, 0.74 + chance])

    def test_the_gain_of_a_language_model_grows_in_nats(self):
        # Real trainings of SmolLM2 on source code: .035 before, .0504 after 64 rows, .0702 after 640.
        for score, verdict in ((0.0504, "go"), (0.0351, "open"), (0.03, "open")):
            prediction = predict_score(
                Point(rows=64, start=0.035, score=score, baseline=0.035), 0.035, 640, 150, in_nats=True
            )
            check = pilot_check(prediction, {"base_model": 0.035}, PlanningSettings())
            assert check.metadata["verdict"] == verdict
            # One that lost says nothing; that of the real one is right.
            assert (prediction.low < 0.0702 < prediction.high < 1) is (score == 0.0504)

    def test_a_late_take_off_stays_possible(self):
        # One that has learned nothing yet is not refused for it; one that learns, and never enough, is.
        for gain, is_refused in ((0.01, False), (0.03, True)):
            pilot = predict_score(pilot_of(gain, 0.3, baseline=0.6), 0.6, 3_000, 1_000)
            assert pilot_check(pilot, {"tfidf": 0.6}, PlanningSettings()).is_red is is_refused

    def test_a_pilot_that_failed_or_a_start_that_is_not_known_bounds_nothing(self):
        for point, start in ((pilot_of(-0.3), 0.7), (pilot_of(math.nan), 0.7), (pilot_of(0.2), None)):
            prediction = predict_score(point, start, 4_800, 1_000)
            assert (prediction.low, prediction.predicted, prediction.high) == (0, 0.7, 1)


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("baseline", "changes", "verdict", "advice"),
    [
        (0.6, {}, "go", ""),
        # A gain is predicted, and not sure.
        (0.74, {}, "open", ""),
        # A loss is predicted, but the full training may end above the baseline.
        (0.8, {}, "open", "deliver more labels, or raise planning.min_predicted_gain"),
        (0.95, {}, "no-go", "use the baseline"),
        (0.7, {"min_predicted_gain": 0.3}, "no-go", "use the baseline"),
    ],
)
def test_pilot_check_refuses_where_even_the_optimistic_end_is_too_low(
    baseline: float, changes: dict, verdict: str, advice: str
) -> None:
    prediction = predict_score(pilot_of(0.06), 0.7, 2_400, 1_000)
    check = pilot_check(prediction, {"tfidf": baseline}, PlanningSettings(**changes))
    assert check.metadata["verdict"] == verdict and check.description.startswith(f"{verdict}: ")
    assert check.is_red is (verdict == "no-go") and check.passed is (advice == "")
    assert advice in check.description and ("use the baseline" in check.description) is check.is_red
    assert check.metadata["predicted_gain"] == pytest.approx(prediction.predicted - baseline)


def test_the_memory_of_a_container_is_what_others_leave_of_its_control_group(tmp_path: Path) -> None:
    assert 2**28 < memory_limit(tmp_path) <= psutil.virtual_memory().total
    own = psutil.Process().memory_info().rss
    projects.write_files(
        tmp_path,
        {
            "memory.max": f"{own + 2**28}\n",
            "memory.current": f"{own + 2**27 + 2**25}\n",
            "memory.stat": f"anon 5\ninactive_file {2**25}\n",
        },
    )
    assert memory_limit(tmp_path) == pytest.approx(own + 2**28 - 2**27, abs=2**24)


@pytest.mark.heavy
@pytest.mark.parametrize(("measured", "sharing"), [(1, 4), (2, 2)])
def test_processes_on_a_cpu_share_its_memory(
    monkeypatch: pytest.MonkeyPatch, measured: int, sharing: int
) -> None:
    from fullft_assets.training import measuring

    monkeypatch.setattr(measuring, "memory_limit", lambda: 1_200)
    monkeypatch.setattr(measuring, "of_accelerator", lambda name: None)
    assert measuring._available_memory_bytes(measured, 4) == 1_200 / sharing
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    assert measuring._available_memory_bytes(2, 4) == 1_200, "each on a host of its own"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare(tmp_path_factory.mktemp("planning"))


@pytest.mark.heavy
def test_a_batch_that_cannot_be_divided_is_reported_before_anything_is_measured(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    from fullft_assets.launch.workloads.planning import work

    monkeypatch.setattr(entry, "listen_for_stop", lambda progress: None)
    job = prepared.job("pilot_run", "refused", training={"micro_batch_size": 3})
    assert entry.run_job(work, job.write(prepared.store), Progress(silent=True)) == EXIT_FIXABLE
    assert re.match(r"training.batch_size: 8 .* micro_batch_size .* \(3\)$", capsys.readouterr().err)
    assert prepared.store.find("letters", "feasibility_plan", "refused") is None
