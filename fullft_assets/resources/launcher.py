"""The launcher of a use case as a Dagster resource."""

from typing import Any

import dagster as dg

from fullft_assets.jobs.launchers import LAUNCHERS
from fullft_assets.settings import LauncherSettings


def launcher_resource(settings: LauncherSettings) -> dg.ResourceDefinition:
    """Return the resource that makes the launcher of `launcher.kind`; its module is imported when a step asks for it."""

    @dg.resource(description=f"Runs workloads: {settings.kind}.")
    def launcher(_: dg.InitResourceContext) -> Any:
        return LAUNCHERS.get(settings.kind)(settings)

    return launcher
