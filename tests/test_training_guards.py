"""Guards: each rule on real numbers of a run, and what follows from its action in runs that really go
wrong.
"""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from fullft_assets.errors import DivergenceError, classify
from fullft_assets.settings import TrainingSettings
from fullft_assets.tasks.classification import recipe as classification
from fullft_assets.training import checkpoints, guards as rules, loop as training_loop
from fullft_assets.training.checkpoints import (
    STEP_LOG,
    Incident,
    RunHistory,
    StepLog,
    all_checkpoints,
    complete_checkpoints,
    last_good,
    latest_checkpoint,
    publish,
    retain,
    step_of,
)
from fullft_assets.training.finetuning import Fit, fine_tune
from fullft_assets.training.recorder import Meter, StepRecorder, Tracker
from fullft_assets.training.watching import GuardActions, RolledBack
from tests.prepared import QUIET, Prepared, quick


def guard(num_steps: int = 1_000, **guards: str) -> rules.GuardSet:
    return rules.GuardSet(guards, rules.PlannedRun(num_steps))


def fired(watching: rules.GuardSet, losses: list[float], name: str = "loss") -> list[tuple[int, str, int]]:
    """Show a guard one number a step; return (step, rule, since) of what it found."""
    return [
        (step, finding.rule, finding.since)
        for step, value in enumerate(losses, start=1)
        for finding in watching.observe(rules.StepMetrics(step, **{"loss": 1.0, name: value}))
    ]


class TestRules:
    falling = [2.0 * 0.99**step + 0.05 * math.sin(step * 1.7) for step in range(100)]

    def test_a_healthy_run_is_left_alone(self):
        watching = guard(num_steps=200)
        for step, loss in enumerate(self.falling, start=1):
            assert not watching.observe(rules.StepMetrics(step, loss=loss, grad_norm=1 + loss))
        assert not watching.observe(rules.StepMetrics(100, validation_loss=1.0))

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("name", ["loss", "grad_norm", "validation_loss"])
    def test_what_is_not_finite_is_found_at_once(self, name, value):
        (finding,) = guard().observe(rules.StepMetrics(7, **{name: value}))
        assert (finding.action, finding.rule, finding.since) == ("roll_back", "non_finite", 7)

    def test_a_spike_must_last(self):
        two, three = ([*self.falling[:60], *[9.0] * count, *self.falling[60:]] for count in (2, 3))
        assert fired(guard(), two) == []
        assert fired(guard(), three) == [(63, "loss_spike", 61)]

    def test_a_spike_is_measured_in_deviations_of_the_recent_losses(self):
        noisy = [1.0 + 0.5 * math.sin(step * 1.7) for step in range(60)]
        assert fired(guard(), [*noisy, *[3.5] * 5]) == []
        assert fired(guard(), [*noisy, *[9.0] * 3]) == [(63, "loss_spike", 61)]

    def test_no_progress_is_looked_at_once(self):
        flat = [1.0 - 0.01 * (-1) ** step for step in range(100)]
        assert fired(guard(num_steps=200), flat * 2) == [(100, "no_progress", 1)]
        assert fired(guard(num_steps=198), flat * 2) == [], "99 steps are too few to judge"
        assert fired(guard(num_steps=200), self.falling) == []

    def test_overfitting_is_a_validation_loss_that_stays_above_its_best(self):
        def of(*losses: float) -> list[int]:
            watching = guard()
            seen = [
                watching.observe(rules.StepMetrics(step, validation_loss=loss))
                for step, loss in enumerate(losses, start=1)
            ]
            return [step for step, findings in enumerate(seen, start=1) if findings]

        assert of(1.0, 0.8, 0.9, 0.85, 0.95) == []
        assert of(1.0, 0.8, 0.9, 0.95) == [4]

    def test_the_strongest_action_counts(self):
        found = fired(guard(200, no_progress="stop"), [*[1.0] * 97, *[99.0] * 3])
        assert found == [(100, "no_progress", 1), (100, "loss_spike", 98)]

    numbers = st.floats(0.0, 50.0) | st.sampled_from([math.nan, math.inf])

    @settings(max_examples=50, deadline=None)
    @given(st.lists(st.tuples(numbers, numbers, st.none() | numbers), min_size=2, max_size=150), st.data())
    def test_a_guard_that_replays_the_log_continues_as_if_it_had_watched(self, seen, data):
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(rules, "_MIN_HISTORY", 10)
            patched.setattr(rules, "_PROGRESS_STEPS", 8)
            patched.setattr(rules, "_OVERFITTED_LOOKS", 1)
            self.replay(seen, data)

    def replay(self, seen, data):
        lines = []
        for step, (loss, norm, validation) in enumerate(seen, start=1):
            lines.append({"step": step, "loss": loss, "grad_norm": norm})
            if validation is not None:
                lines.append({"step": step, "validation_loss": validation})
        at = data.draw(st.integers(1, len(lines) - 1))
        straight, resumed = guard(len(seen)), guard(len(seen))
        for line in lines[:at]:
            straight.observe(rules.StepMetrics.of_line(line))
        resumed.replay(
            json.loads(json.dumps([*lines[:at], {"step": 1, "event": "no_progress", "action": "warn"}]))
        )
        for line in lines[at:]:
            metrics = rules.StepMetrics.of_line(line)
            assert repr(straight.observe(metrics)) == repr(resumed.observe(metrics))


#: Of each rule: lines of a step log of which the last one makes it fire.
FIRING: dict[str, list[dict[str, float]]] = {
    "non_finite": [{"loss": 1.0}, {"loss": math.nan}],
    "loss_spike": [*[{"loss": 1.0}] * 30, *[{"loss": 99.0}] * 3],
    "no_progress": [{"loss": 1.0}] * 100,
    "overfitting": [{"validation_loss": 1.0}, *[{"validation_loss": 2.0}] * 2],
}


@pytest.mark.parametrize("rule", FIRING)
@pytest.mark.parametrize("action", ["off", "warn", "roll_back", "stop"])
def test_each_rule_is_followed_by_the_action_that_the_yaml_gives_it(
    rule: str, action: str, tmp_path: Path
) -> None:
    lines = FIRING[rule]
    chosen = TrainingSettings.model_validate({"guards": {rule: action}, "learning_rate": 1e-3, "track": []})
    history, meter = RunHistory(tmp_path), Meter(np.full(100, 8), np.full(100, 8.0), None)
    recorder = StepRecorder(StepLog(tmp_path / STEP_LOG, 0), Tracker([], tmp_path, {}, QUIET), meter, QUIET)
    watching = GuardActions(chosen, recorder, history, num_steps=200, resumable=False)
    last = len(lines)
    for step, line in enumerate(lines[:-1], start=1):
        watching.check({"step": step, **line})
    assert recorder.log.lines == [] and history.incidents == []
    error = {"roll_back": RolledBack, "stop": None if rule == "overfitting" else DivergenceError}.get(action)
    if action in ("roll_back", "stop") and error is not None:
        with pytest.raises(error) as raised:
            watching.check({"step": last, **lines[-1]})
    else:
        watching.check({"step": last, **lines[-1]})
    logged = [(line["event"], line["step"]) for line in recorder.log.lines]
    if action == "off":
        assert (logged, history.incidents) == ([], [])
    elif action == "warn":
        assert (logged, history.incidents) == ([(rule, last)], [])
    elif action == "roll_back":
        [incident] = history.incidents
        assert (incident.kind, incident.rule, incident.step, incident.learning_rate) == (
            "roll_back",
            rule,
            last,
            5e-4,
        )
    elif rule == "overfitting":
        assert logged == [("early_stop", last)] and history.end_step == last
    else:
        assert logged == [(rule, last)] and f"training stopped at step {last} by its guard {rule}: " in str(
            raised.value
        )
        assert classify(raised.value) == "divergence"


def test_only_the_first_rank_writes_what_happens_to_all(tmp_path):
    of_another = RunHistory(tmp_path, is_writer=False)
    of_another.add(Incident("roll_back", 20, 6, "loss nan", 3.5))
    assert RunHistory(tmp_path).incidents == []
    of_another.add(Incident("out_of_memory", 9, 6, "memory ran out", 4.5), is_local=True)
    assert RunHistory(tmp_path).incidents == of_another.incidents


def run(
    case: Prepared,
    folder: Path,
    *,
    guards: dict | None = None,
    evaluate_at: tuple[int, ...] | None = None,
    **changes: object,
) -> Fit:
    chosen = quick(**{"track": [], "checkpoint_every_steps": 4, "guards": guards or {}} | changes)
    return fine_tune(case.recipe, chosen, 17, folder, QUIET, evaluate_at=evaluate_at)


def fault(
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[torch.Tensor], torch.Tensor],
    passes: range,
    segments: int = 1,
) -> None:
    """Spoil the logits of these training passes (1 = the first) of the first segments of a run, as broken
    hardware or bad rows would.
    """
    load, loaded = classification.load_for_training, []

    def load_faulty(*args: object, **options: object) -> object:
        model, counted = load(*args, **options), [0]
        loaded.append(model)

        def hook(module: object, inputs: object, output: object) -> None:
            if module.training:
                counted[0] += 1
                if counted[0] in passes:
                    output.logits = spoil(output.logits)

        if len(loaded) <= segments:
            model.register_forward_hook(hook)
        return model

    monkeypatch.setattr(classification, "load_for_training", load_faulty)


@pytest.fixture(params=["at once", "a step late"])
def read(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses are read as on a CPU, or as on an accelerator."""
    monkeypatch.setattr(training_loop, "most_unread_steps", lambda: int(request.param != "at once"))


def test_a_run_ends_where_no_gradient_is_finite_whatever_its_guards_do(tiny, tmp_path, monkeypatch, read):
    fault(monkeypatch, lambda logits: logits * math.nan, range(1, 99))
    with pytest.raises(DivergenceError, match="at step 20: no gradient "):
        run(tiny, tmp_path, guards={"non_finite": "off"})


class TestRollBack:
    def test_nan_rolls_back_to_the_last_good_checkpoint_with_a_lower_rate(
        self, tiny, tmp_path, monkeypatch, read
    ):
        fault(monkeypatch, lambda logits: logits * math.nan, range(14, 15))
        fit = run(tiny, tmp_path, scheduler="constant_with_warmup", warmup_share=0.0)
        [incident] = fit.incidents
        assert (incident.kind, incident.rule, incident.step, incident.to_step) == (
            "roll_back",
            "non_finite",
            14,
            12,
        )
        assert incident.learning_rate == 5e-4
        rates = {line["step"]: line["learning_rate"] for line in fit.history if "loss" in line}
        assert list(rates) == list(range(1, fit.num_steps + 1)), "each step once, the spoiled one replaced"
        assert set(list(rates.values())[:12]) == {1e-3}
        assert set(list(rates.values())[12:]) == {5e-4}
        assert all(torch.isfinite(value).all() for value in fit.model.state_dict().values())
        [event] = [line for line in fit.history if "event" in line]
        assert (event["event"], event["to_step"], event["rule"]) == ("roll_back", 12, "non_finite")

    def test_the_checkpoint_before_the_trouble_is_taken(self, tiny, tmp_path, monkeypatch):
        # NaN at step 13: nothing says that the weights of step 12 were good.
        fault(monkeypatch, lambda logits: logits * math.nan, range(13, 14))
        [incident] = run(tiny, tmp_path).incidents
        assert incident.to_step == 8

    def test_without_a_checkpoint_it_starts_again_from_the_base_model(self, tiny, tmp_path, monkeypatch):
        fault(monkeypatch, lambda logits: logits * math.nan, range(3, 4))
        fit = run(tiny, tmp_path / "a")
        assert fit.incidents[0].to_step == 0
        monkeypatch.undo()
        assert all(
            torch.equal(value, fit.model.state_dict()[name])
            for name, value in run(tiny, tmp_path / "b", learning_rate=5e-4).model.state_dict().items()
        )

    def test_a_fault_that_stays_ends_the_run_and_the_same_command_ends_alike(
        self, tiny, tmp_path, monkeypatch
    ):
        fault(monkeypatch, lambda logits: logits * math.nan, range(5, 99), segments=99)
        said = []
        for _ in range(2):
            with pytest.raises(DivergenceError) as error:
                run(tiny, tmp_path, checkpoint_every_steps=100)
            said.append(str(error.value))
        assert said[0] == said[1]
        assert " at step 5 by its guard non_finite: " in said[0]
        assert [incident.learning_rate for incident in RunHistory(tmp_path).incidents] == [5e-4, 2.5e-4]

    def test_non_finite_weights_never_become_a_model_whatever_the_action(self, tiny, tmp_path, monkeypatch):
        fault(monkeypatch, lambda logits: logits * math.nan, range(30, 31))
        with pytest.raises(DivergenceError, match="weights after .* not finite"):
            run(tiny, tmp_path, guards={"non_finite": "off"})


class TestOverfitting:
    """30 rows with labels drawn by lot, learned by heart: the validation loss has a best, then rises."""

    looks = tuple(range(10, 121, 10))

    @pytest.fixture(scope="class")
    def few(self, tiny) -> SimpleNamespace:
        rows = tiny.split("train").select(range(30))
        rows = replace(rows, labels=np.random.default_rng(0).integers(0, len(tiny.labels), 30))
        return SimpleNamespace(recipe=replace(tiny.recipe, train=rows))

    def fit(self, few, folder: Path, action: str, **changes: object) -> Fit:
        return run(
            few,
            folder,
            guards={"overfitting": action, "no_progress": "off"},
            evaluate_at=self.looks,
            epochs=36.0,
            learning_rate=2e-2,
            checkpoint_every_steps=50,
            **changes,
        )

    def test_stop_ends_in_good_order_with_the_best_weights_if_asked_for(self, few, tmp_path):
        fit = self.fit(few, tmp_path, "stop", keep_best=True)
        scored = {line["step"]: line["validation_loss"] for line in fit.history if "validation_loss" in line}
        best = min(scored, key=scored.get)
        assert fit.step == best < fit.num_steps == max(scored) < 120
        assert [(i.kind, i.rule, i.to_step) for i in fit.incidents] == [
            ("early_stop", "overfitting", fit.num_steps)
        ]

        assert classification.score(fit.model, few.recipe.validation)["loss"] == pytest.approx(
            scored[best], rel=1e-6
        )
        # The same command once more, as after a kill before the artifact was written: nothing is trained, the
        # same model comes out.
        resumed = self.fit(few, tmp_path, "stop", keep_best=True)
        assert (resumed.resumed_from_step, resumed.num_steps, resumed.step) == (
            fit.num_steps,
            fit.num_steps,
            best,
        )
        assert all(
            torch.equal(value, resumed.model.state_dict()[name])
            for name, value in fit.model.state_dict().items()
        )


class TestRetention:
    def test_the_newest_and_the_best_are_kept(self, tiny, tmp_path):
        # The validation loss is lowest early on: a rate that wanders off.
        fit = run(
            tiny,
            tmp_path,
            evaluate_at=(2, 6, 10, 14, 18, 22),
            learning_rate=0.3,
            guards={"loss_spike": "off"},
        )
        scored = {line["step"]: line["validation_loss"] for line in fit.history if "validation_loss" in line}
        best = min(scored, key=scored.get)
        kept = {step_of(path) for path in all_checkpoints(tmp_path)}
        planned = sorted(
            {*range(4, fit.num_steps, 4), fit.num_steps}
            | {step for step in scored if scored[step] == min(v for s, v in scored.items() if s <= step)}
        )
        assert kept == {*planned[-2:], best}

    def test_a_stop_does_not_change_what_a_roll_back_goes_back_to(self, tmp_path, monkeypatch):
        history = RunHistory(tmp_path)
        for step, is_planned in ((4, True), (6, False)):
            aside = tmp_path / "unfinished"
            aside.mkdir()
            (aside / "model").write_bytes(b"weights")
            publish(aside, tmp_path / f"checkpoint-{step}", num_incidents=0, is_planned=is_planned)
        written = complete_checkpoints(tmp_path, history)
        assert (last_good(written, 9), last_good(written, 5)) == (4, 0)
        assert step_of(latest_checkpoint(tmp_path)) == 6
        monkeypatch.setattr(checkpoints, "NUM_NEWEST", 1)
        retain(tmp_path, history, best=None)
        assert [step_of(path) for path in all_checkpoints(tmp_path)] == [4, 6]
