"""Launchers by name: `launcher.kind` of a use case chooses one.

A registered launcher is a class whose instances have the methods of `fullft_assets.launchers.Launcher`; it is made from the use case's
`LauncherSettings`. The names are here, below the launchers themselves, because the check of a YAML needs no more than them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fullft_assets.registry import Registry
from fullft_assets.settings import LauncherSettings

LAUNCHERS: Registry[Callable[[LauncherSettings], Any]] = Registry(
    "launcher", "fullft_assets.launchers", {"local": "fullft_assets.launchers.local:LocalLauncher"}
)
