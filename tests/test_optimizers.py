"""The memory ladder: each optimizer's arithmetic against the known one, and each through the engine: resume,
guards, refusals.
"""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers.optimization import Adafactor

from benchmarks import low_memory
from fullft_assets import planning
from fullft_assets.errors import Interrupted
from fullft_assets.progress import Progress
from fullft_assets.settings import PlanningSettings, TrainingSettings, UseCaseSettings, contradictions
from fullft_assets.training import loop
from fullft_assets.training.finetuning import Fit, fine_tune
from fullft_assets.training.optimizers import adafactor, adamw
from fullft_assets.training.optimizers.low_memory import LowMemoryOptimizer, Update
from tests.optimizer_steps import Stopping
from tests.prepared import Prepared
from tests.test_isolation import LEAKING, build
from tests.test_planning import MEASURED

pytestmark = pytest.mark.numeric

RATE, DECAY = 1e-3, 0.1


def network() -> torch.nn.Module:
    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.Linear(30, 500), torch.nn.GELU(), torch.nn.Linear(500, 70))


def groups(model: torch.nn.Module) -> list[dict]:
    matrices, vectors = (
        [p for p in model.parameters() if (p.dim() > 1) is wanted] for wanted in (True, False)
    )
    return [
        {"params": matrices, "lr": RATE, "weight_decay": DECAY},
        {"params": vectors, "lr": RATE, "weight_decay": 0.0},
    ]


def trained(make: Callable[[torch.nn.Module], torch.optim.Optimizer], steps: int = 12) -> torch.Tensor:
    """Return the weights after some steps of a network of two layers."""
    model = network()
    optimizer = make(model)
    generator = torch.Generator().manual_seed(3)
    for _ in range(steps):
        rows = torch.randn(32, 30, generator=generator)
        loss = (model(rows) - rows[:, :1]).square().mean()
        if isinstance(optimizer, LowMemoryOptimizer) and optimizer.in_backward:
            with optimizer.updating():
                loss.backward()
            assert all(weight.grad is None for weight in model.parameters())
        else:
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return torch.cat([weight.detach().flatten() for weight in model.parameters()])


def descend(update: Update) -> None:
    """Gradient descent, the plainest rule."""
    for part, slope in update.chunks(update.weight, update.gradient):
        value = part.float().sub_(slope.float(), alpha=update.group["lr"])
        update.write(part, value, update.noise(value))


class TestArithmetic:
    def test_adamw_is_torchs(self):
        known = trained(lambda model: torch.optim.AdamW(groups(model)))
        assert torch.allclose(
            trained(lambda model: LowMemoryOptimizer(groups(model), adamw.step)), known, rtol=0, atol=1e-6
        )

    @pytest.mark.parametrize("in_backward", [False, True])
    def test_adafactor_is_transformers(self, in_backward):
        assert torch.allclose(
            trained(lambda model: LowMemoryOptimizer(groups(model), adafactor.step, in_backward=in_backward)),
            trained(lambda model: Adafactor(groups(model), scale_parameter=False, relative_step=False)),
            rtol=0,
            atol=1e-6,
        )


class TestRounding:
    """A bf16 weight of 1 has its neighbours at 1 - 2^-8 and 1 + 2^-7."""

    @pytest.mark.parametrize("rule", [adamw.step, adafactor.step])
    def test_updates_too_small_for_bf16_add_up(self, rule):
        moved = []
        for dtype in (torch.float32, torch.bfloat16):
            weight = torch.nn.Parameter(torch.ones(64, 64, dtype=dtype))
            optimizer = LowMemoryOptimizer(
                [{"params": [weight], "lr": 1e-4, "weight_decay": 0.0}], rule, seed=5
            )
            for _ in range(50):
                weight.grad = torch.ones_like(weight)
                optimizer.step()
            moved.append(1 - float(weight.detach().float().mean()))
        assert moved[0] == pytest.approx(50e-4, rel=0.01)
        assert moved[1] == pytest.approx(moved[0], rel=0.1)
        assert float(torch.ones((), dtype=torch.bfloat16) - 1e-4) == 1.0

    def test_noise_depends_on_seed_step_and_weight_alone(self):
        def step(seed: int) -> torch.Tensor:
            weight = torch.nn.Parameter(torch.ones(4_096, dtype=torch.bfloat16))
            weight.grad = torch.ones_like(weight)
            torch.rand(3)
            LowMemoryOptimizer(
                [{"params": [weight], "lr": 1e-3, "weight_decay": 0.0}], descend, seed=seed
            ).step()
            return weight.detach()

        assert torch.equal(step(1), step(1)) and not torch.equal(step(1), step(2))

    def test_values_that_are_not_finite_stay_so(self):
        weight = torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
        weight.grad = torch.tensor([math.nan, math.inf, 0.0], dtype=torch.bfloat16)
        LowMemoryOptimizer([{"params": [weight], "lr": 1.0, "weight_decay": 0.0}], descend).step()
        assert [math.isfinite(value) for value in weight.tolist()] == [False, False, True]


def quick(optimizer: str, **changes: object) -> TrainingSettings:
    values = {
        "epochs": 1.0,
        "batch_size": 8,
        "micro_batch_size": 8,
        "learning_rate": 1e-3,
        "optimizer": optimizer,
        "track": [],
    }
    return TrainingSettings(
        **{**values, "precision": "auto" if changes.get("weights") == "bf16" else "fp32", **changes}
    )


def train(case: Prepared, folder: Path, chosen: TrainingSettings, **options: object) -> Fit:
    return fine_tune(
        case.recipe, chosen, work_folder=folder, **{"seed": 17, "progress": Progress(silent=True), **options}
    )


RUNGS = [
    ("adafactor", "fp32"),
    ("adafactor", "bf16"),
    ("adamw", "bf16"),
    ("adafactor_in_backward", "fp32"),
    ("adafactor_in_backward", "bf16"),
]


class TestEngine:
    def test_steps_in_the_backward_pass_are_those_after_it(self, tiny, tmp_path):
        one, other = (
            train(tiny, tmp_path / name, quick(name, epochs=0.5, max_grad_norm=1e9))
            for name in ("adafactor", "adafactor_in_backward")
        )
        for found, known in zip(other.history, one.history, strict=True):
            for name in ("loss", "grad_norm", "learning_rate", "validation_loss"):
                assert found.get(name) == (
                    None if known.get(name) is None else pytest.approx(known[name], rel=1e-3)
                )
        for name, value in one.model.state_dict().items():
            torch.testing.assert_close(other.model.state_dict()[name], value, rtol=1e-3, atol=2e-5)

    @pytest.mark.parametrize("weights", ["fp32", "bf16"])
    def test_betas_are_those_of_the_settings(self, weights):
        chosen = quick("adamw", weights=weights, betas=["5e-1", 0.8])
        found, expected = (
            trained(lambda model, make=make, of=of: make(loop.groups_of_weights(model, of)))
            for make, of in (
                (lambda groups: chosen.chosen_optimizer.build(groups, weights, 1), chosen),
                (lambda groups: torch.optim.AdamW(groups, betas=(0.5, 0.8)), quick("adamw")),
            )
        )
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)

    @pytest.mark.parametrize(("name", "weights"), RUNGS)
    def test_stopped_and_resumed_it_ends_with_the_same_bits(self, tiny, tmp_path, name, weights):
        chosen = quick(name, weights=weights, epochs=0.15, freeze_layers=1)
        with pytest.raises(Interrupted):
            train(tiny, tmp_path / "a", chosen, progress=Stopping(1))
        resumed, straight = (train(tiny, tmp_path / folder, chosen) for folder in ("a", "b"))
        assert (resumed.resumed_from_step, straight.resumed_from_step) == (1, 0)
        dtypes = set()
        for key, value in straight.model.named_parameters():
            assert torch.equal(resumed.model.state_dict()[key], value), key
            dtypes.add(value.dtype)
        assert dtypes == {torch.bfloat16 if weights == "bf16" else torch.float32}
        assert all(
            math.isfinite(line["grad_norm"]) and line["grad_norm"] > 0
            for line in straight.history
            if "loss" in line
        )


def test_biases_norms_and_state_spaces_do_not_decay() -> None:
    model = build(LEAKING["mamba"])
    decayed, others = loop.groups_of_weights(model, quick("adamw"))
    assert decayed["weight_decay"] > others["weight_decay"] == 0.0
    names = {id(weight): name for name, weight in model.named_parameters()}
    assert {
        names[id(weight)].split("mixer.")[-1] for weight in others["params"] if "mixer" in names[id(weight)]
    } == {"A_log", "D", "conv1d.bias", "dt_proj.bias"}


@pytest.mark.parametrize(
    ("training", "key", "message"),
    [
        (
            {"optimizer": "adafactor_in_backward", "micro_batch_size": 8},
            "micro_batch_size",
            (
                "adafactor_in_backward steps in the backward pass and cannot accumulate: set all 16 rows of"
                " batch_size"
            ),
        ),
        (
            {"optimizer": "adafactor_in_backward", "micro_batch_size": 16, "ewc": 0.1},
            "ewc",
            "keeps a copy of the weights, the memory that adafactor_in_backward is there to save",
        ),
        (
            {"optimizer": "adafactor_in_backward", "micro_batch_size": 16, "precision": "fp16"},
            "precision",
            "before fp16's scaling is undone",
        ),
        ({"weights": "bf16", "precision": "fp32"}, "precision", "fp32 contradicts weights: bf16"),
        ({"optimizer": "adafactor", "betas": [0.9, 0.95]}, "betas", "adafactor has none; remove them"),
    ],
)
def test_settings_that_contradict_a_rung_are_one_line(training, key, message) -> None:
    settings = UseCaseSettings.model_validate(
        {"base_model": "m", "documents": {"path": "d"}, "examples": {"label": "l"}, "training": training}
    )
    ((where, problem),) = contradictions(settings.training, 1)
    assert where == ("training", key) and message in problem


#: Most bytes of each rung, as a share of AdamW's peak in fp32, which comes first.
MOST_BYTES = {
    ("adamw", "fp32"): 1.0,
    low_memory.LOWEST: low_memory.GOAL,
    ("adafactor", "fp32"): 0.7,
    ("adamw", "bf16"): 0.65,
    ("adafactor_in_backward", "fp32"): 0.45,
}


@pytest.mark.slow
@pytest.mark.long
def test_low_memory_mode_takes_less_than_a_third_and_learns(tmp_path: Path) -> None:
    assert {*low_memory.RUNGS} == {*MOST_BYTES}
    row = low_memory.measure_low_memory(tmp_path, list(MOST_BYTES))
    assert row.met, row.notes
    of_rungs = row.details["rungs"]
    assert all(one["losses"][-1] < one["losses"][0] - 0.4 for one in of_rungs.values()), row.notes
    assert all(
        of_rungs[" ".join(rung)]["bytes"] <= share * row.theirs for rung, share in MOST_BYTES.items()
    ), row.notes


def test_frozen_weights_have_neither_gradients_nor_moments():
    plan, _ = planning.plan_checks(
        MEASURED.model_copy(update={"num_trained_parameters": 2_000_000}), PlanningSettings()
    )
    assert plan.state_memory_gib == (22_000_000 * 4 + 2_000_000 * 12) / 2**30
