"""The protocol of a launcher.

This file stays light: the supervisor of a local workload imports it, and must start fast.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from fullft_assets.errors import WorkloadError

if TYPE_CHECKING:
    import dagster as dg

    from fullft_assets.jobs import Job
    from fullft_assets.settings import LauncherSettings
    from fullft_assets.store import Manifest, Store


class Launcher(ABC):
    """Runs `python -m fullft_assets.workloads.<workload> --job URI --sha256 DIGEST` somewhere, and waits for its end.

    Progress arrives in Dagster's log through Pipes. The result is never taken from there: it is the
    manifest that the workload writes last.

    Another package adds a launcher by an entry point in the group `fullft_assets.launchers` that names a subclass;
    `launcher.kind` of a YAML chooses it.
    """

    def __init__(self, settings: LauncherSettings):
        self.settings = settings

    @abstractmethod
    def launch(self, context: dg.AssetExecutionContext, workload: str, job: Job, store: Store) -> None:
        """Write the job file, run the workload to its end and forward its progress.

        A cancelled step stops the workload: it has the grace time for a checkpoint, then it is killed.

        Raises:
            WorkloadError: the workload failed; the message is its own one line.
        """

    def run(self, context: dg.AssetExecutionContext, workload: str, job: Job, store: Store) -> Manifest:
        """Launch a workload and return the manifest of the artifact that the job asks for.

        Raises:
            WorkloadError: the workload failed, or wrote no manifest.
        """
        self.launch(context, workload, job, store)
        manifest = store.find(job.case, job.stage, job.key)
        if manifest is None:
            raise WorkloadError(
                f"workload {workload} ended with exit code 0 but without its manifest: no artifact "
                f"{job.case}/{job.stage}/{job.key} in {store.url}; see the step's stdout"
            )
        return manifest
