"""The launcher `local`: supervised processes of this machine, which end with the run that launched them."""

import socket

from fullft_assets.launch.base import Launcher, LaunchSpec, Logs, Status
from fullft_assets.launch.contract import RUN_ID
from fullft_assets.launch.machine import this_machine
from fullft_assets.models.hardware import local_hardware
from fullft_assets.settings import LauncherSettings


class LocalLauncher(Launcher):
    """Runs workloads on this machine, torchrun where several processes share the work."""

    ends_with_run = True
    look_seconds = (1.0, 1.0)

    def __init__(self, settings: LauncherSettings):
        super().__init__(settings)
        self._machine = this_machine()

    @property
    def place(self) -> str:
        return socket.gethostname()

    def submit(self, spec: LaunchSpec) -> None:
        self._machine.start(
            spec.name,
            spec.arguments,
            {**spec.environment, RUN_ID: spec.run_id},
            grace_seconds=self.settings.grace_seconds,
            max_seconds=self.settings.max_seconds,
            watched=spec.watched,
        )

    def poll(self, name: str, wait_seconds: float = 0.0) -> Status:
        return self._machine.poll(name, wait_seconds)

    def logs(self, name: str, cursor: str) -> Logs:
        return self._machine.logs(name, cursor)

    def stop(self, name: str) -> None:
        self._machine.stop(name, self.settings.grace_seconds)

    def has_room(self, processes: int) -> bool:
        """Return whether all processes can compute on this machine: on its CPU, or on a GPU each. Else the
        training is one of several hosts.
        """
        gpus = local_hardware()["gpus"]
        return not gpus or len(gpus) >= processes
