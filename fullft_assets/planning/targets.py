"""What a training needs on each machine that a plan compares (this one, the user's own, and a dated table of
GPU instances): does it fit and with which settings, how long does it take, what does it cost, with a year of
retraining. The settings go down the memory ladder from those of the YAML.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from importlib import resources
from typing import Any, Literal

import yaml

from fullft_assets.durations import duration
from fullft_assets.errors import SettingsError
from fullft_assets.models.hardware import peak_flops
from fullft_assets.planning.metadata import StepMemory, Work
from fullft_assets.planning.pilot import pilot_rows
from fullft_assets.planning.plan import (
    GIB,
    GPU_CONTEXT_BYTES,
    MEMORY_LADDER,
    peak_on_cpu,
    peak_on_gpu,
    state_bytes,
    total_state_bytes,
)
from fullft_assets.record import Record
from fullft_assets.settings import PlanningSettings, TrainingSettings, UseCaseSettings, contradictions
from fullft_assets.settings.optimizers import OPTIMIZERS
from fullft_assets.task import BASELINES, task_of

_TABLE = "instances.yaml"
#: Share of the peak that trainings reach (MFU), from slow to fast: small models do not fill a card.
#: Assumptions.
_MFU = (0.15, 0.45)
_MFU_OF_SMALL = (0.03, 0.20)
_SMALL_PARAMETERS = 200e6
#: Cards without matrix units for bf16: they compute in fp16.
_WITHOUT_BF16 = ("V100", "T4")


class Target(Record):
    """A machine that could train.

    Attributes:
        gpu: None: it trains on its CPU.
        memory_bytes: that a process may take: of one GPU, or of the machine.
        libraries_bytes: resident bytes of a process before it loads a model, without a GPU.
        flops: dense 16-bit peak of one GPU in FLOP/s; None: not known. Of a machine without GPU None.
        speed: FLOP/s that all its processes reach, slow and fast, where that is measured, or assumed without
            a peak.
        hourly_usd: None: not known.
        spot: lowest and highest share of the price at which it is let as a spot instance; None: it is not.
        is_measured: whether the speed was measured in a plan of this use case.
        kind: where it comes from. `price_only`: this project was not run on it.
    """

    name: str
    gpu: str | None = None
    gpus: int = 1
    memory_bytes: int = 0
    libraries_bytes: int = 0
    flops: float | None = None
    speed: tuple[float, float] | None = None
    is_measured: bool = False
    hourly_usd: float | None = None
    spot: tuple[float, float] | None = None
    kind: Literal["here", "own", "table", "price_only"] = "table"

    @property
    def precision(self) -> Literal["bf16", "fp16"]:
        """What `training.precision: auto` is on its GPU."""
        return "fp16" if self.gpu in _WITHOUT_BF16 else "bf16"

    def reached(self, num_parameters: int, gpus: int) -> tuple[float, float] | None:
        """Return the FLOP/s, slow and fast, that a training on so many of its GPUs reaches; None where
        nothing is known.
        """
        if self.speed is not None:
            return self.speed
        if self.flops is None:
            return None
        slow, fast = _MFU if num_parameters >= _SMALL_PARAMETERS else _MFU_OF_SMALL
        return slow * self.flops * gpus, fast * self.flops * gpus


def targets(settings: PlanningSettings) -> list[Target]:
    """Return the user's own machines and those of the table, in this order."""
    table = _read()
    own_machines = [
        Target(
            name=machine.name,
            gpu=machine.gpu,
            gpus=machine.gpus,
            memory_bytes=int(machine.memory_gib * 2**30) - GPU_CONTEXT_BYTES,
            flops=peak_flops(machine.gpu, "bf16"),
            hourly_usd=machine.hourly_usd,
            kind="own",
        )
        for machine in settings.targets
    ]
    instances = [
        Target(
            name=row["name"],
            gpu=row["gpu"],
            gpus=row["gpus"],
            memory_bytes=row["memory_mib"] * 2**20 - GPU_CONTEXT_BYTES,
            flops=peak_flops(row["gpu"], "bf16"),
            hourly_usd=row["hourly_usd"] * settings.price_factor,
            spot=tuple(table["spot"]),
        )
        for row in table["instances"]
    ]
    price_only = [
        Target(
            name=row["name"],
            gpu=row["chip"],
            gpus=row["chips"],
            hourly_usd=None if row["hourly_usd"] is None else row["hourly_usd"] * settings.price_factor,
            kind="price_only",
        )
        for row in table["price_only"]
    ]
    return [*own_machines, *instances, *price_only]


def hourly_usd_of(instance_type: str, settings: PlanningSettings) -> float | None:
    """Return the price on demand of an hour of one of EC2's instances, also one without a GPU; None where it
    is not known.
    """
    price = next((machine.hourly_usd for machine in targets(settings) if machine.name == instance_type), None)
    cpus = {row["name"]: row["hourly_usd"] * settings.price_factor for row in _read()["cpus"]}
    return cpus.get(instance_type) if price is None else price


def source_of_prices(settings: PlanningSettings) -> str:
    """Return where the table's prices come from, and of when."""
    table = _read()
    factor = (
        f", times planning.price_factor ({settings.price_factor:g})" if settings.price_factor != 1 else ""
    )
    low, high = table["spot"]
    return (
        f"prices of {table['region']}, {table['date']}{factor}, spot {low:.0%} to {high:.0%} of them; check"
        f" them: {table['page']}"
    )


def _read() -> dict[str, Any]:
    return yaml.safe_load(
        resources.files("fullft_assets.planning").joinpath(_TABLE).read_text(encoding="utf-8")
    )


def setups(training: TrainingSettings, processes: int, *, is_gpu: bool = False) -> Iterator[TrainingSettings]:
    """Yield settings that keep the effective batch, each taking less memory than the one before, as a rule.

    First smaller passes, which cost little; then recomputed activations; then sharding over several
    processes; then the lower rungs of optimizer and weights, sharded where there are several processes. Those
    that contradict other settings are excluded.
    """
    keys = set()
    for changes in _changes(training, processes, is_gpu=is_gpu):
        setup = training.model_copy(update=changes)
        if setup.batch_size % (setup.rows_a_pass() * processes) or any(contradictions(setup, processes)):
            continue
        if (key := setup.model_dump_json()) not in keys:
            keys.add(key)
            yield setup


def changed(
    setup: TrainingSettings, training: TrainingSettings, processes: int, *, is_gpu: bool
) -> dict[str, Any]:
    """Return the keys of training that differ, with their new values, without those to which
    `micro_batch_size: auto` comes by itself.
    """
    of_auto = setup.model_copy(update={"micro_batch_size": "auto"}).rows_a_pass(processes)
    is_by_itself = {"gradient_checkpointing": is_gpu}
    is_by_itself["micro_batch_size"] = is_gpu or of_auto == setup.micro_batch_size
    is_auto = training.micro_batch_size == "auto"
    return {
        name: value
        for name in type(training).model_fields
        if (value := getattr(setup, name)) != getattr(training, name)
        and not (is_auto and is_by_itself.get(name, False))
    }


def passes(training: TrainingSettings, processes: int, *, is_gpu: bool) -> list[dict[str, Any]]:
    """Return changes of training that make its passes smaller, from the most memory to the least: from those
    of its setting on, where that is `auto` on a GPU from a whole batch on.
    """
    share = training.batch_size // processes
    first = (
        share
        if (is_gpu and training.micro_batch_size == "auto")
        else min(training.rows_a_pass(processes), share)
    )
    sizes = [size for size in range(first, 0, -1) if share % size == 0]
    # Halving is enough: what fits between two of them would save little time.
    sizes = [size for number, size in enumerate(sizes) if number == 0 or size & (size - 1) == 0]
    return [
        {"micro_batch_size": size, **more}
        for more in ({}, {"gradient_checkpointing": True})
        for size in sizes
    ]


def _changes(training: TrainingSettings, processes: int, *, is_gpu: bool) -> Iterator[dict[str, Any]]:
    smaller = passes(training, processes, is_gpu=is_gpu)
    yield from smaller
    last = smaller[-1]
    sharding = {"sharding": "fsdp2"} if processes > 1 and training.sharding == "none" else {}
    yield {**last, **sharding}
    for more in (sharding, {}):
        for optimizer, weights in MEMORY_LADDER:
            if state_bytes(optimizer, weights) < state_bytes(training.optimizer, training.weights):
                # One that steps in the backward pass cannot accumulate.
                size = (
                    {"micro_batch_size": training.batch_size}
                    if OPTIMIZERS.get(optimizer).steps_in_backward
                    else {}
                )
                yield {**last, **more, **size, "optimizer": optimizer, "weights": weights}


#: (settings, precision, whether on a GPU, processes) -> what one process holds.
CountMemory = Callable[[TrainingSettings, str, bool, int], StepMemory]
#: A forward pass is a third of a forward and backward pass; recomputed activations add another third,
#: without their matrix products next to nothing.
_FORWARD = 1 / 3
_RECOMPUTED = 4 / 3
#: Systems that an evaluation runs on its rows: the candidate, the base model or a probe on it, the champion.
_EVALUATED_SYSTEMS = 3
#: What LoRA on the pilot's rows may take unasked, in trainings.
_MOST_LORA = 0.35
_DAYS_A_YEAR = 365
#: What an hour of waiting counts for beside the price, an assumption.
WAITING_USD = 1.0
#: Hours until a rented machine is installed, an assumption.
_RENTED_HOURS = 0.25


class Shares(Record):
    """Work of each part, in trainings: the training itself is 1."""

    pilot: float
    baselines: float
    evaluation: float
    retrains_a_year: float

    @property
    def first(self) -> float:
        """A first model: pilot, baselines, training and evaluation."""
        return 1 + self.pilot + self.baselines + self.evaluation

    @property
    def year(self) -> float:
        """A first model, and a year of retraining it."""
        return self.first * (1 + self.retrains_a_year)


class TargetPlan(Record):
    """A training on one target; numbers are None where they are not known.

    Attributes:
        fits: None: this project does not run on it.
        setup: changes of the YAML's training section.
        peak_gib: of each process.
        hours: of training, from fast to slow.
        usd: of a first model, from fast to slow; `year_usd`: with a year of retraining.
    """

    target: Target
    processes: int = 1
    fits: bool | None = None
    setup: dict[str, Any] = {}
    peak_gib: float | None = None
    memory_gib: float | None = None
    hours: tuple[float, float] | None = None
    usd: tuple[float, float] | None = None
    year_usd: tuple[float, float] | None = None


def shares(settings: UseCaseSettings, num_training_rows: int, num_held_out_rows: int) -> Shares:
    """Return the work of each part in trainings.

    Baselines are charged with one forward pass over the training rows (the probe) and with what those train
    that are trainings themselves, an evaluation with three systems' forward passes over the held-out rows.
    What runs on a CPU beside them, such as TF-IDF, and prompts are not charged.
    """
    training = settings.training
    rows = max(1, num_training_rows)
    try:
        pilot = pilot_rows(rows, settings.planning.pilot_share, training.batch_size) / rows
    except SettingsError:  # the pilot says so itself
        pilot = 0.0
    forward = _FORWARD / training.num_epochs
    return Shares(
        pilot=pilot + lora_share(settings, pilot),
        baselines=forward + sum(BASELINES.get(name).trainings(settings) for name in settings.baselines),
        evaluation=forward * _EVALUATED_SYSTEMS * num_held_out_rows / rows,
        retrains_a_year=retrains_a_year(settings),
    )


def lora_share(settings: UseCaseSettings, pilot: float) -> float:
    """Return what LoRA takes on the pilot's rows, in trainings; 0 where it is not trained on them: it takes
    too much, is a baseline on all rows, or no baseline of the task or of sharded weights.

    Args:
        pilot: share of the training rows that the pilot is trained on.
    """
    is_open = "lora" in task_of(settings.examples).more_baselines and "lora" not in settings.baselines
    share = pilot * BASELINES.get("lora").trainings(settings)
    return share if is_open and settings.training.sharding == "none" and share <= _MOST_LORA else 0.0


def retrains_a_year(settings: UseCaseSettings) -> float:
    """Return the retrainings that a year's cost includes."""
    return _DAYS_A_YEAR / settings.retraining.max_age_days


def plan_targets(
    settings: UseCaseSettings,
    here: Target,
    work: Work,
    parts: Shares,
    count: CountMemory,
    *,
    here_precision: str,
) -> list[TargetPlan]:
    """Return the plan on each target: this machine first.

    Args:
        here: this machine.
        here_precision: what `training.precision` is on it.
    """
    training = settings.training
    is_auto = training.precision == "auto" or training.weights == "bf16"
    precisions = [
        (target, target.precision if is_auto else training.precision) for target in targets(settings.planning)
    ]
    return [
        _plan_target(target, settings, work, parts, count, precision)
        for target, precision in [(here, here_precision), *precisions]
    ]


def _plan_target(
    target: Target, settings: UseCaseSettings, work: Work, parts: Shares, count: CountMemory, precision: str
) -> TargetPlan:
    if target.kind == "price_only":
        return TargetPlan(target=target)
    training = settings.training
    limit = target.memory_bytes
    # As many GPUs as a batch can be shared by.
    processes = next(number for number in range(target.gpus, 0, -1) if training.batch_size % number == 0)
    hosts = 1
    if target.kind == "here":
        processes = settings.launcher.processes
        hosts = getattr(settings.launcher, "nodes", 1)
        if settings.planning.max_memory_gib is not None:
            limit = min(limit, int(settings.planning.max_memory_gib * GIB))
    peaks: list[int] = []
    is_gpu = target.gpu is not None
    for setup in setups(training, processes, is_gpu=is_gpu):
        min_bytes = total_state_bytes(work.num_parameters, work.num_trained_parameters, setup) // num_sharing(
            setup, processes, hosts
        )
        peaks.append(
            min_bytes if min_bytes > limit else peak_bytes(target, setup, processes, count, precision, hosts)
        )
        if peaks[-1] <= limit:
            hours = training_hours(target, setup, work, processes)
            price = None if hours is None else target.hourly_usd
            fast, slow = hours or (0.0, 0.0)
            return TargetPlan(
                target=target,
                processes=processes,
                fits=True,
                setup=changed(setup, training, processes, is_gpu=is_gpu),
                peak_gib=peaks[-1] / GIB,
                memory_gib=limit / GIB,
                hours=hours,
                usd=None if price is None else (fast * price * parts.first, slow * price * parts.first),
                year_usd=None if price is None else (fast * price * parts.year, slow * price * parts.year),
            )
    return TargetPlan(
        target=target, fits=False, peak_gib=min(peaks) / GIB if peaks else None, memory_gib=limit / GIB
    )


def training_hours(
    target: Target, setup: TrainingSettings, work: Work, processes: int
) -> tuple[float, float] | None:
    """Return the hours of a training, fast and slow; None where nothing is known of the target's speed."""
    speed = target.reached(work.num_parameters, processes)
    if speed is None:
        return None
    flops = work.flops * work.num_padded_tokens / max(1, work.num_tokens)
    flops *= _RECOMPUTED if setup.gradient_checkpointing is True else 1
    slow, fast = speed
    return flops / fast / 3600, flops / slow / 3600


def recommend(plans: Sequence[TargetPlan], settings: UseCaseSettings) -> TargetPlan | None:
    """Return the target with the least price and time, at its slow end, on which a training fits and ends
    within `planning.max_hours` and `planning.max_usd`.
    """
    max_usd = math.inf if settings.planning.max_usd is None else settings.planning.max_usd
    by_cost: dict[float, TargetPlan] = {}
    for plan in plans:
        if plan.fits and plan.usd is not None and plan.hours is not None:
            hours = plan.hours[1]
            usd = plan.usd[1]
            if hours <= settings.planning.max_hours and usd <= max_usd:
                by_cost.setdefault(
                    usd + WAITING_USD * (hours + (_RENTED_HOURS if plan.target.kind == "table" else 0)), plan
                )
    return by_cost[min(by_cost)] if by_cost else None


def yaml_lines(plan: TargetPlan, training: TrainingSettings) -> list[str]:
    """Return the YAML lines that a target needs: the changes of `training` and `launcher`, and the price."""
    hourly_usd = 0 if plan.target.kind == "here" else plan.target.hourly_usd
    sections = {
        "training": plan.setup,
        "launcher": {"processes": plan.processes} if plan.processes > 1 else {},
        "planning": {"hourly_usd": f"{hourly_usd:g}"} if hourly_usd else {},
    }
    return [
        line
        for section, values in sections.items()
        if values
        for line in (f"{section}:", *(f"  {name}: {_yaml(value)}" for name, value in values.items()))
    ]


def table(plans: Sequence[TargetPlan]) -> Iterator[dict[str, str]]:
    """Yield a row of text for each target."""
    for plan in plans:
        changes = ", ".join(f"{name} {_yaml(value)}" for name, value in plan.setup.items())
        unknown = "unknown" if plan.fits else ""
        target = plan.target
        yield {
            "target": target.name if target.gpu is None else f"{target.name} ({target.gpus} x {target.gpu})",
            "fits": {None: "price only", False: "no"}.get(plan.fits, changes or "as it is"),
            "memory a process": (
                "" if plan.peak_gib is None else f"{plan.peak_gib:.1f} of {plan.memory_gib:.1f} GiB"
            ),
            "training": unknown if plan.hours is None else _duration(plan.hours),
            "USD an hour": "unknown" if target.hourly_usd is None else f"{target.hourly_usd:,.2f}",
            "first model, USD": unknown if plan.usd is None else _range(*plan.usd),
            "as spot, USD": (
                ""
                if plan.usd is None or plan.target.spot is None
                else _range(plan.usd[0] * plan.target.spot[0], plan.usd[1] * plan.target.spot[1])
            ),
            "with a year, USD": unknown if plan.year_usd is None else _range(*plan.year_usd),
        }


def num_sharing(setup: TrainingSettings, processes: int, hosts: int) -> int:
    """Return the number of processes that share one copy of the model, of a training's on so many hosts."""
    sharing = processes // hosts if setup.sharding == "fsdp2_by_host" else processes
    return 1 if setup.sharding == "none" else sharing


def peak_bytes(
    target: Target,
    setup: TrainingSettings,
    processes: int,
    count: CountMemory,
    precision: str,
    hosts: int = 1,
) -> int:
    """Return the peak memory of a training on a target, one of so many hosts: of one GPU, or of all processes
    on its CPU.
    """
    if setup.sharding == "fsdp2_by_host":
        # As if this host trained alone on its part of a batch.
        setup = setup.model_copy(update={"batch_size": setup.batch_size // hosts})
        processes //= hosts
        hosts = 1
    step = count(setup, "bf16" if setup.weights == "bf16" else precision, target.gpu is not None, processes)
    on_cpu = processes // hosts * peak_on_cpu(step, target.libraries_bytes)
    return on_cpu if target.gpu is None else peak_on_gpu(step, processes, is_sharded=setup.sharding != "none")


def _duration(hours: tuple[float, float]) -> str:
    low, high = (duration(end * 3600) for end in hours)
    return high if low == high else f"{low} to {high}"


def _range(low: float, high: float) -> str:
    return f"{high:,.2f}" if f"{low:.2f}" == f"{high:.2f}" else f"{low:,.2f} to {high:,.2f}"


def _yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def plan_lines(plans: Sequence[TargetPlan], settings: UseCaseSettings, name: str) -> list[str]:
    """Return the table of all targets, what its numbers rest on, and the recommendation with its YAML."""
    best = recommend(plans, settings)
    return [
        f"{name}: plan",
        *_columns(list(table(plans))),
        "",
        *notes(plans, settings),
        "",
        recommendation(plans, settings),
        *(f"  {line}" for line in ([] if best is None else yaml_lines(best, settings.training))),
    ]


def _columns(rows: Sequence[dict[str, str]]) -> list[str]:
    widths = {column: max(len(column), *(len(row[column]) for row in rows)) for column in rows[0]}
    return [
        "  ".join(row[column].ljust(width) for column, width in widths.items()).rstrip()
        for row in [dict(zip(widths, widths, strict=True)), *rows]
    ]


def recommendation(plans: Sequence[TargetPlan], settings: UseCaseSettings) -> str:
    """Return the sentence that names the best target by price and time."""
    planning = settings.planning
    best = recommend(plans, settings)
    if best is None:
        limit = "" if planning.max_usd is None else f" and planning.max_usd ({planning.max_usd:g})"
        return (
            f"No target fits within planning.max_hours ({planning.max_hours:g}){limit}: raise a"
            " limit, choose a smaller base_model, or lower chunks.max_tokens"
        )
    assert best.usd is not None and best.hours is not None, "it was chosen by them"
    how = (
        "with these lines in the YAML:"
        if bool(yaml_lines(best, settings.training))
        else "with the YAML as it is"
    )
    return (
        f"Recommended: {best.target.name} ({_duration(best.hours)} of training, at most"
        f" {best.usd[1]:,.2f} USD for a first model), the best by price and time, an hour of waiting"
        f" counted as {WAITING_USD:g} USD; {how}"
    )


def notes(plans: Sequence[TargetPlan], settings: UseCaseSettings) -> list[str]:
    """Return the assumptions behind the numbers, one sentence each."""
    speed = "measured by the last plan" if plans[0].target.is_measured else "assumed"
    return [
        "Memory is counted tensor by tensor without weights; on GPUs a margin for the allocator is assumed.",
        (
            "Time is that of the arithmetic at a share of the peak: 15 to 45% (below 200M weights 3 to 20%),"
            f" an assumption; on this machine {speed}."
        ),
        (
            "A first model is pilot, baselines, training and evaluation. A year adds"
            f" {retrains_a_year(settings):.1f} retrainings (retraining.max_age_days);"
            " new data and drift may ask for more."
        ),
        f"Instances: {source_of_prices(settings.planning)}.",
    ]
