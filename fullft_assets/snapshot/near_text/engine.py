"""The dataframe engine that compares the rows of all batches: in this process, or on a Ray cluster."""

from __future__ import annotations

import logging
import os
import platform
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from types import ModuleType
from typing import TypeVar
from urllib.parse import urlsplit

from fullft_assets import kuberay
from fullft_assets.errors import SettingsError, WorkloadError
from fullft_assets.extras import require
from fullft_assets.settings.use_case import UseCase

#: No telemetry and no progress bars, here and on the machines of a cluster.
_ENVIRONMENT = {"DAFT_ANALYTICS_ENABLED": "0", "DAFT_PROGRESS_BAR": "0", "RAY_USAGE_STATS_ENABLED": "0"}
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
            this process compared rows without it before.
        WorkloadError: the cluster was not made.
    """
    settings = use_case.settings.compute.data
    if settings.engine == "native":
        yield
        return
    require("ray", "compute.data.engine")
    address = settings.address or ""
    if address.startswith("ray://"):
        _use(address)
        yield
        return
    import ray

    with kuberay.cluster(use_case.resolve(address)) as address:
        try:
            _use(address)
            yield
        finally:
            ray.shutdown()


def _use(address: str) -> None:
    import ray

    daft = load_engine()
    if daft.get_or_infer_runner_type() == "native" or not ray.is_initialized():
        _connect(address)
        try:
            daft.set_runner_ray()
        except Exception as error:
            raise SettingsError(
                "compute.data: this process has compared rows elsewhere before; take the snapshot in a"
                " process of its own"
            ) from error
    _require_equal_versions()


def _connect(address: str) -> None:
    import ray

    host = urlsplit(address)

    def connect() -> None:
        # Ray alone would wait for half a minute.
        socket.create_connection((host.hostname, host.port), 10).close()
        ray.init(
            address, runtime_env={"env_vars": _ENVIRONMENT}, log_to_driver=False, logging_level=logging.ERROR
        )

    try:
        _repeated(connect)
    except Exception as error:
        raise SettingsError(f"compute.data.address: {address} cannot be used: {_reason(error)}") from error


def _require_equal_versions() -> None:
    """Refuse machines that may compute tables in another way than this one."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # Pickled with its code: the cluster does not have this package.
    def versions() -> dict[str, str]:
        return {
            "Python": platform.python_version(),
            **{name: version(name) for name in ("ray", "daft", "pyarrow")},
        }

    for node in ray.nodes():
        if not node["Alive"]:
            continue
        strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        try:
            task = ray.remote(versions).options(num_cpus=0, scheduling_strategy=strategy).remote()
            answer = ray.get(task, timeout=60)
        except Exception as error:
            answer = _reason(error)
        if answer != versions():
            raise SettingsError(
                f"compute.data: {node['NodeManagerAddress']} of the Ray cluster has {answer}, and this"
                f" machine {versions()}; install the same versions on both"
            )


def searched(search: Callable[[], T]) -> T:
    """Return the result of a search with the engine. On a cluster a search that failed is repeated.

    Raises:
        WorkloadError: the cluster failed each time.
    """
    if load_engine().get_or_infer_runner_type() == "native":
        return search()
    try:
        return _repeated(search)
    except Exception as error:
        raise WorkloadError(
            f"compute.data: the Ray cluster failed {_ATTEMPTS} times: {_reason(error)}; look at its machines"
            " and run this again",
            "infrastructure",
        ) from error


def _repeated(act: Callable[[], T]) -> T:
    for _ in range(1, _ATTEMPTS):
        with suppress(Exception):
            return act()
    return act()


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
