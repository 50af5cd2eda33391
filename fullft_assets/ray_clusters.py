"""Clusters of Ray: connections to those that exist, and clusters of Kubernetes that are made for one use and
removed after it, by KubeRay's operator.
"""

import logging
import os
import platform
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import yaml

from fullft_assets.errors import SettingsError, WorkloadError
from fullft_assets.extras import require

#: Set before Ray is imported: it sends nothing, and starts no cluster here in place of one that was lost.
ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_AUTO_CONNECT": "0"}
#: How long a cluster may take to be there, and how long it may be used.
_READY_SECONDS = 900.0
_LONGEST_SECONDS = 86_400
#: Characters of another program's message that are shown at most.
_MOST_SHOWN = 400


def connect(address: str, environment: Mapping[str, str]) -> None:
    """Connect this process with a cluster.

    Args:
        address: `ray://HOST:PORT`, the port for clients.
        environment: variables of what runs there.

    Raises:
        SettingsError: it does not answer, refuses the token, or has another release of Ray or Python.
    """
    import ray

    host = urlsplit(address)
    # A busy head may fail to start a server for this client the first time.
    for is_last in (False, True):
        try:
            # Ray alone would wait for half a minute.
            socket.create_connection((host.hostname, host.port), 10).close()
            ray.init(
                address,
                runtime_env={"env_vars": dict(environment)},
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
            return
        except Exception as error:
            reason = shown(error)
            if "timeout" in reason:
                reason += "; a cluster with a token needs RAY_AUTH_MODE=token and RAY_AUTH_TOKEN here"
            elif not is_last:
                continue
            raise SettingsError(f"compute.data.address: {address} cannot be used: {reason}") from error


def is_connected() -> bool:
    """Return whether this process has a connection to a cluster."""
    from ray.util.client import ray

    return ray.is_connected()


def require_equal_versions(packages: Sequence[str]) -> None:
    """Refuse machines that may compute in another way than this one.

    Raises:
        SettingsError: one has another Python, or another version of a package.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # Pickled with its code: the cluster does not have this package.
    def versions() -> dict[str, str]:
        return {"Python": platform.python_version(), **{name: version(name) for name in packages}}

    for node in ray.nodes():
        if not node["Alive"]:
            continue
        on_node = ray.remote(versions).options(
            num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        )
        try:
            answer = ray.get(on_node.remote(), timeout=60)
        except Exception as error:
            answer = shown(error)
        if answer != versions():
            raise SettingsError(
                f"compute.data: {node['NodeManagerAddress']} of the Ray cluster has {answer}, and this"
                f" machine {versions()}; install the same versions on both"
            )


def read_manifest(path: Path) -> dict[str, Any]:
    """Return the RayCluster of a file.

    Raises:
        SettingsError: the file has none, or not its namespace.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        if content["kind"] != "RayCluster" or not (content["metadata"]["namespace"] and content["spec"]):
            raise ValueError(f"kind: {content['kind']}")
    except (OSError, ValueError, yaml.YAMLError, LookupError, TypeError) as error:
        raise SettingsError(
            f"{path} is no RayCluster with metadata.namespace and spec ({shown(error)})"
        ) from error
    return content


@contextmanager
def made_cluster(path: Path) -> Iterator[str]:
    """Make a cluster, yield its address for clients within Kubernetes, and remove it.

    It belongs to a RayJob that sleeps: where this process is killed, or cannot remove it, both end after a
    day.

    Args:
        path: of a file with a RayCluster.

    Raises:
        SettingsError: the file is no such thing.
        WorkloadError: the cluster was not made.
    """
    require("dagster_ray", "compute.data.address")
    from dagster_ray.kuberay.client import RayJobClient

    content = read_manifest(path)
    namespace = content["metadata"]["namespace"]
    name = f"fullft-{uuid4().hex[:12]}"
    job = {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {**content["metadata"], "name": name},
        "spec": {
            "entrypoint": f"sleep {_LONGEST_SECONDS}",
            "submissionMode": "HTTPMode",
            "activeDeadlineSeconds": _LONGEST_SECONDS,
            "shutdownAfterJobFinishes": True,
            "rayClusterSpec": content["spec"],
        },
    }
    with _explained(name, namespace):
        # The library reads the environment as it is imported.
        client: Any = RayJobClient(os.environ.get("KUBECONFIG"))
        client.create(job, namespace)
    try:
        with _explained(name, namespace):
            _, ports = client.wait_until_ready(name, namespace, _READY_SECONDS)
            of_job = client.get_ray_cluster_name(name, namespace, _READY_SECONDS)
            # Its address: its name is known within the cluster alone.
            head = client.ray_cluster_client.get_status(of_job, namespace)["head"]
        yield f"ray://{head['serviceIP']}:{ports['client']}"
    finally:
        try:
            client.delete(name, namespace)
        except Exception as error:
            # What was computed there stays, and so does the reason of a failure.
            logging.getLogger(__name__).warning(
                "RayJob %s/%s was not removed (%s); it ends after a day", namespace, name, shown(error)
            )


@contextmanager
def _explained(name: str, namespace: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise WorkloadError(
            f"compute.data.address: RayJob {namespace}/{name}:"
            f" {getattr(error, 'reason', None) or shown(error)}; see whether KubeRay's operator runs, and"
            " whether the account has the Role fullft-ray of deploy/helm/manifests.yaml",
            "infrastructure",
        ) from error


def shown(error: Exception) -> str:
    """Return what an error of another program says, on one line."""
    return " ".join(str(error).split())[:_MOST_SHOWN] or type(error).__name__
