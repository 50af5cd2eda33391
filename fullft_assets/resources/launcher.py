"""The launchers of a use case as a Dagster resource."""

import dagster as dg

from fullft_assets.jobs.launchers import open_launcher
from fullft_assets.launchers.driver import LaunchDriver
from fullft_assets.settings import UseCaseSettings


def launcher_resource(settings: UseCaseSettings) -> dg.ResourceDefinition:
    """Return the resource that runs workloads where `launcher` and `compute` say; a launcher's module is
    imported when a step asks for it.
    """

    @dg.resource(description=f"Runs workloads: {settings.launcher.kind}.")
    def launcher(_: dg.InitResourceContext) -> LaunchDriver:
        return LaunchDriver(lambda workload: open_launcher(settings.launcher_of(workload)))

    return launcher
