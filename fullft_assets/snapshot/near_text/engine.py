"""The dataframe engine that compares the rows of all batches: in this process, or on a Ray cluster."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import TypeVar

from fullft_assets import ray_clusters
from fullft_assets.errors import SettingsError, WorkloadError
from fullft_assets.extras import require
from fullft_assets.settings.use_case import UseCase

#: No telemetry and no progress bars, here and on the machines of a cluster; which is used, the settings say.
_ENVIRONMENT = {
    "DAFT_ANALYTICS_ENABLED": "0",
    "DAFT_PROGRESS_BAR": "0",
    "DAFT_RUNNER": "native",
    **ray_clusters.ENVIRONMENT,
}
#: How often a cluster is asked: a machine that is lost takes parts of the tables with it.
_ATTEMPTS = 3

T = TypeVar("T")


def load_engine() -> ModuleType:
    """Return the module `daft`, without its telemetry and progress bars."""
    os.environ.update(_ENVIRONMENT)
    import daft

    return daft


@contextmanager
def engine_of(use_case: UseCase) -> Iterator[None]:
    """Compare rows where `compute.data` says: in this process, on a cluster that exists, or on one that is
    made and removed again. A process cannot change from one to another after its first comparison.

    Raises:
        SettingsError: the cluster cannot be used, a machine of it has other versions than this process, or
            this process compared rows elsewhere before.
        WorkloadError: the cluster was not made.
    """
    settings = use_case.settings.compute.data
    if settings.engine == "native":
        yield
        return
    require("ray", "compute.data.engine")
    load_engine()
    address = settings.address or ""
    if address.startswith("ray://"):
        _use(address)
        yield
        return
    import ray

    with ray_clusters.made_cluster(use_case.resolve(address)) as address:
        try:
            _use(address)
            yield
        finally:
            ray.shutdown()


def _use(address: str) -> None:
    daft = load_engine()
    if daft.get_or_infer_runner_type() == "native" or not ray_clusters.is_connected():
        ray_clusters.connect(address, _ENVIRONMENT)
        try:
            daft.set_runner_ray()
        except Exception as error:
            raise SettingsError(
                "compute.data: this process has compared rows elsewhere before, perhaps on a cluster that it"
                " is no longer connected to; take the snapshot in a process of its own"
            ) from error
    ray_clusters.require_equal_versions(["ray", "daft", "pyarrow"])


def searched(search: Callable[[], T]) -> T:
    """Return the result of a search with the engine. On a cluster a search that failed is repeated.

    Raises:
        WorkloadError: the cluster failed each time.
    """
    if load_engine().get_or_infer_runner_type() == "native":
        return search()
    for _ in range(1, _ATTEMPTS):
        with suppress(Exception):
            return search()
    try:
        return search()
    except Exception as error:
        reason = ray_clusters.shown(error) if ray_clusters.is_connected() else "the connection to it was lost"
        raise WorkloadError(
            f"compute.data: the Ray cluster failed {_ATTEMPTS} times: {reason}; look at its machines and run"
            " this again",
            "infrastructure",
        ) from error
