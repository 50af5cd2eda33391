"""Where heavy work runs: one protocol, one module a backend."""

from fullft_assets.launchers.base import Launcher
