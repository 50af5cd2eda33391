"""Heavy work: the launchers that start it, one module a backend, and the workloads that they start."""

from fullft_assets.launch.base import Launcher, LaunchSpec, Logs, Status, Unreachable
