"""The machines that a plan compares: this one, the user's own, and a dated table of GPU instances."""

from __future__ import annotations

from importlib import resources
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict

from fullft_assets.models.hardware import peak_flops
from fullft_assets.planning.memory import GPU_CONTEXT_BYTES
from fullft_assets.settings import PlanningSettings

_TABLE = "instances.yaml"
#: Share of the peak that trainings reach (MFU), from slow to fast: small models do not fill a card.
#: Assumptions.
_MFU = (0.15, 0.45)
_MFU_OF_SMALL = (0.03, 0.20)
_SMALL_PARAMETERS = 200e6
#: Cards without matrix units for bf16: they compute in fp16.
_WITHOUT_BF16 = ("V100", "T4")


class Target(BaseModel):
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
        kind: where it comes from. `price_only`: this project does not run on it.
    """

    model_config = ConfigDict(frozen=True)

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
            name=one.name,
            gpu=one.gpu,
            gpus=one.gpus,
            memory_bytes=int(one.memory_gib * 2**30) - GPU_CONTEXT_BYTES,
            flops=one.tflops * 1e12 if one.tflops is not None else peak_flops(one.gpu, "bf16"),
            hourly_usd=one.hourly_usd,
            kind="own",
        )
        for one in settings.targets
    ]
    rented = [
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
    others = [
        Target(
            name=row["name"],
            gpu=row["chip"],
            gpus=row["chips"],
            hourly_usd=None if row["hourly_usd"] is None else row["hourly_usd"] * settings.price_factor,
            kind="price_only",
        )
        for row in table["price_only"]
    ]
    return [*own_machines, *rented, *others]


def hourly_usd_of(instance_type: str, settings: PlanningSettings) -> float | None:
    """Return the price on demand of an hour of one of EC2's instances, also one without a GPU; None where it
    is not known.
    """
    price = next((one.hourly_usd for one in targets(settings) if one.name == instance_type), None)
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
