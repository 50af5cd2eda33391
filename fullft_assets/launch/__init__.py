"""Where heavy work runs: one protocol, one module a backend, one driver for all of them."""

from fullft_assets.launch.base import Launcher, LaunchSpec, Logs, Status, Unreachable
