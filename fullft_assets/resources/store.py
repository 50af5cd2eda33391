"""The store of a use case as a Dagster resource."""

import os
from collections.abc import Callable
from pathlib import Path

import dagster as dg

from fullft_assets.settings.use_case import UseCase
from fullft_assets.store import SCHEMES, Manifest, Store

#: Path of the UI below which its webserver shows the pages of reports.
REPORTS = "/fullft/reports/"


def store_resource(use_case: UseCase) -> dg.ResourceDefinition:
    """Return the resource that opens the use case's store."""

    @dg.resource(description=f"Store of the artifacts of {use_case.name}.")
    def store(init: dg.InitResourceContext) -> Store:
        assert init.instance is not None, "a resource is made for an instance"
        return open_store(use_case, init.instance)

    return store


def open_store(use_case: UseCase, instance: dg.DagsterInstance) -> Store:
    """Return a use case's store: `store` of its YAML, else $FULLFT_STORE, else `store` in Dagster's home.

    An s3:// store is reached as every AWS client is: AWS_ENDPOINT_URL, AWS_DEFAULT_REGION, AWS_PROFILE and
    the credentials come from the environment or the machine's role. Launched workloads inherit them; a
    resource's configuration would not reach a workload before it has read its job file from that store.
    """
    url = use_case.settings.store
    return (
        default_store(Path(instance.root_directory), use_case.resolve)
        if url is None
        else open_url(url, use_case.resolve)
    )


def default_store(home: Path, resolve: Callable[[str], Path] = Path) -> Store:
    """Return the store of all use cases whose YAML names none: $FULLFT_STORE, else `store` in Dagster's home.

    Args:
        resolve: returns the folder of a path that may be relative.
    """
    url = os.environ.get("FULLFT_STORE")
    return Store(str(home / "store")) if url is None else open_url(url, resolve)


def report_link(use_case: UseCase, store: Store, manifest: Manifest) -> dg.MetadataValue:
    """Return where the page of an artifact's report opens: in the UI, where its webserver knows the store,
    else its file or object.
    """
    page = f"{manifest.ref}/report.html"
    if use_case.settings.store is None:
        return dg.MetadataValue.url(f"{REPORTS}{page}")
    return (
        dg.MetadataValue.path(str(Path(store.url, page)))
        if store.is_local
        else dg.MetadataValue.url(f"{store.url}/{page}")
    )


def open_url(url: str, resolve: Callable[[str], Path] = Path) -> Store:
    """Return the store at a folder or in a bucket; objects on S3 are encrypted with the key $FULLFT_KMS_KEY if it
    is set.
    """
    if url.startswith(SCHEMES):
        return Store(url, os.environ.get("FULLFT_KMS_KEY"))
    return Store(str(resolve(url).absolute()))
