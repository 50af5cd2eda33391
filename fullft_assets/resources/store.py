"""The store of a use case as a Dagster resource."""

import os
from pathlib import Path
from typing import Any

import dagster as dg

from fullft_assets.settings.use_case import UseCase
from fullft_assets.store import Store


def store_resource(use_case: UseCase) -> dg.ResourceDefinition:
    """Return the resource that opens the use case's store."""

    @dg.resource(description=f"Store of the artifacts of {use_case.name}.")
    def store(init: dg.InitResourceContext) -> Store:
        assert init.instance is not None, "a resource is made for an instance"
        return open_store(use_case, init.instance)

    return store


def open_store(use_case: UseCase, instance: dg.DagsterInstance) -> Store:
    """Return a use case's store: `store` of its YAML, else $FULLFT_STORE, else `store` in Dagster's home.

    An s3:// store is reached as every AWS client is: AWS_ENDPOINT_URL, AWS_DEFAULT_REGION, AWS_PROFILE and the
    credentials come from the environment or the machine's role. Launched workloads inherit them; a resource's
    configuration would not reach a workload before it has read its job file from that store.
    """
    url = use_case.settings.store or os.environ.get("FULLFT_STORE")
    if url is None:
        return Store(str(Path(instance.root_directory) / "store"))
    if url.startswith("s3://"):
        return Store(url, s3_options())
    return Store(str(use_case.resolve(url)))


def s3_options() -> dict[str, Any]:
    """Return the fsspec options of an s3:// store: encryption with the key $FULLFT_KMS_KEY on every write, if it is set."""
    key = os.environ.get("FULLFT_KMS_KEY")
    return {"s3_additional_kwargs": {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": key, "BucketKeyEnabled": True}} if key else {}
