"""Ray clusters of Kubernetes that are made for one use and removed after it, by KubeRay's operator."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import yaml

from fullft_assets.errors import SettingsError, WorkloadError
from fullft_assets.extras import require

#: How long a cluster may take to be there, and how long it may be used.
_READY_SECONDS = 900.0
_LONGEST_SECONDS = 86_400


@contextmanager
def cluster(manifest: Path) -> Iterator[str]:
    """Make a cluster, yield its address for clients within Kubernetes, and remove it.

    It belongs to a RayJob that sleeps: where this process is killed, both end after a day.

    Args:
        manifest: a file with a RayCluster, whose metadata name the namespace.

    Raises:
        SettingsError: the file is no such thing.
        WorkloadError: the cluster was not made, or not removed.
    """
    require("dagster_ray", "compute.data.address")
    from dagster_ray.kuberay.client import RayJobClient

    try:
        content = yaml.safe_load(manifest.read_text(encoding="utf-8"))
        spec, namespace = content["spec"], content["metadata"]["namespace"]
    except (OSError, yaml.YAMLError, LookupError, TypeError) as error:
        raise SettingsError(
            f"{manifest}: no RayCluster with metadata.namespace and spec ({error})"
        ) from error
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
            "rayClusterSpec": spec,
        },
    }
    with _explained(name, namespace):
        client: Any = RayJobClient()
        client.create(job, namespace)
    try:
        with _explained(name, namespace):
            _, ports = client.wait_until_ready(name, namespace, _READY_SECONDS)
            of_job = client.get_ray_cluster_name(name, namespace, _READY_SECONDS)
            # Its address: its name is known within the cluster alone.
            head = client.ray_cluster_client.get_status(of_job, namespace)["head"]
        yield f"ray://{head['serviceIP']}:{ports['client']}"
    finally:
        with _explained(name, namespace):
            client.delete(name, namespace)


@contextmanager
def _explained(name: str, namespace: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        reason = getattr(error, "reason", None) or str(error).splitlines()[0]
        raise WorkloadError(
            f"compute.data.address: RayJob {namespace}/{name}: {reason}; see whether KubeRay's operator runs,"
            " and whether the account has the Role fullft-ray of deploy/helm/manifests.yaml",
            "infrastructure",
        ) from error
