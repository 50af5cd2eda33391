"""The protocol of a launcher.

This file stays light: the supervisor of a workload imports it, and must start fast.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from fullft_assets.errors import FailureClass, WorkloadError

if TYPE_CHECKING:
    from fullft_assets.settings import LauncherSettings, PlanningSettings


class Unreachable(WorkloadError):
    """A backend does not answer; its jobs may go on. A read is tried again."""

    def __init__(self, message: str):
        super().__init__(message, "infrastructure")


@dataclass(frozen=True)
class LaunchSpec:
    """One workload to be run.

    Attributes:
        name: of the job, at most 63 characters; a backend never runs two jobs of one name at once.
        module: of the workload, which Python runs with `-m`.
        job: the workload's arguments, which name and pin its job file.
        processes: those that share the work; torchrun starts them if there is more than one.
        environment: variables to set; nothing else of this process's environment has to reach the job.
        run_id: Dagster's id of the run that launches it.
        watched: processes of this machine that a job on this machine must not outlive.
    """

    name: str
    module: str
    job: tuple[str, ...]
    processes: int = 1
    environment: Mapping[str, str] = field(default_factory=dict)
    run_id: str = ""
    watched: tuple[int, ...] = ()

    @property
    def arguments(self) -> list[str]:
        """Arguments of Python that run the workload on one machine."""
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(self.processes)]
        return [*(torchrun if self.processes > 1 else ()), "-m", self.module, *self.job]


@dataclass(frozen=True)
class Status:
    """How far a job is.

    Attributes:
        state: `gone` = the backend has no job of this name (any more).
        reason: of a failed one: the workload's own line, or what happened to it, such as `was killed by
            SIGKILL`; of a pending one: what it waits for, where that is known.
        is_own_line: whether the workload itself gave the reason.
        billed_seconds: of an ended one, where the backend says for how long it is paid.
    """

    state: Literal["pending", "running", "succeeded", "failed", "gone"]
    reason: str = ""
    failure: FailureClass = "unknown"
    is_own_line: bool = False
    billed_seconds: float | None = None

    @property
    def is_over(self) -> bool:
        """Whether nothing of it runs."""
        return self.state in ("succeeded", "failed", "gone")


@dataclass(frozen=True)
class Logs:
    """What a job wrote since a cursor: whole lines, and where to read on.

    A backend that has one stream puts all into `stdout`, progress messages included: the driver tells them
    apart.

    Attributes:
        is_more: whether there is more to read right now.
    """

    cursor: str
    stdout: str = ""
    stderr: str = ""
    messages: str = ""
    is_more: bool = False


def awaited(status: Callable[[], Status], wait_seconds: float, look_seconds: float) -> Status:
    """Return how far a job is; wait for its end for so long at most, with a pause between two looks."""
    deadline = time.monotonic() + wait_seconds
    while not (newest := status()).is_over and (seconds := deadline - time.monotonic()) > 0:
        time.sleep(min(seconds, look_seconds))
    return newest


class Launcher(ABC):
    """Runs `python -m fullft_assets.launch.workloads.<workload> --job URI --sha256 DIGEST` somewhere: starts
    it, and answers questions about it.

    All else is the driver's: records in the store, following, cancelling, retries, the manifest. A launcher
    keeps nothing between two calls that another process could not find out again, so that any run can attach
    to a job.

    Another package adds a launcher by an entry point in the group `fullft_assets.launchers` that names a
    subclass; `launcher.kind` of a YAML chooses it. Each method may raise `Unreachable`, or a `WorkloadError`
    with one line.
    """

    #: Class of the section `launcher` for this kind; None: the keys that all kinds have.
    settings_class: "ClassVar[type[LauncherSettings] | None]" = None
    #: Whether a job ends with the processes of the run, so that a run that is ended stops it, whatever ends
    #: it.
    ends_with_run: ClassVar[bool] = False
    #: Time between two looks at a job: that of a short one, and that of one which has run for hours. Its end
    #: is noticed at once.
    look_seconds: ClassVar[tuple[float, float]] = (1.0, 30.0)

    def __init__(self, settings: "LauncherSettings"):
        self.settings = settings

    @property
    @abstractmethod
    def place(self) -> str:
        """Where jobs run, for people and to tell one machine or cluster from another."""

    @abstractmethod
    def submit(self, spec: LaunchSpec) -> None:
        """Start a job and return at once. A job of this name that runs is left as it is, an ended one is
        replaced.
        """

    @abstractmethod
    def poll(self, name: str, wait_seconds: float = 0.0) -> Status:
        """Return how far a job is; wait for its end for so long at most."""

    @abstractmethod
    def logs(self, name: str, cursor: str) -> Logs:
        """Return the job's output after a cursor; the empty cursor is the beginning."""

    @abstractmethod
    def stop(self, name: str) -> None:
        """End a job, if it runs, within `launcher.grace_seconds` for a checkpoint, and remove what the
        backend keeps of it.

        A name without a job is no error: the driver makes sure that an earlier attempt is gone.
        """

    def has_room(self, processes: int) -> bool:
        """Return whether so many processes can compute at once where planning and evaluation run."""
        return True

    def hourly_usd(self, planning: "PlanningSettings", processes: int) -> float | None:
        """Return the price of an hour of a job of so many processes, where the plan's table of prices has its
        machines.
        """
        return None
