"""Where heavy work runs: one small interface, one module a backend."""

from fullft_assets.launchers.base import Launcher

__all__ = ["Launcher"]
