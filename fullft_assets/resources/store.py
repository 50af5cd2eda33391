"""The store of a use case as a Dagster resource, the pointers to its newest artifacts, and summaries of them.

A summary has the values that were derived from the newest artifact of each partition, so that not every
artifact is read again. One listing of the pointers says which of them changed; only their artifacts are read.
A summary that is lost, damaged, or of another version is made again from the artifacts. An artifact that is
gone still counts while its pointer stays.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg

from fullft_assets.resources.account import AccountResource
from fullft_assets.settings.use_case import UseCase
from fullft_assets.store import SCHEMES, Manifest, Store

#: Path of the UI below which its webserver shows the pages of reports.
REPORTS = "/fullft/reports/"


def store_resource(use_case: UseCase) -> dg.ResourceDefinition:
    """Return the resource that opens the use case's store."""

    def store(init: dg.InitResourceContext) -> Store:
        assert init.instance is not None, "a resource is made for an instance"
        return open_store(use_case, init.instance)

    return AccountResource(store, f"Store of the artifacts of {use_case.name}.")


def open_store(use_case: UseCase, instance: dg.DagsterInstance) -> Store:
    """Return a use case's store: `store` of its YAML, else $FULLFT_STORE, else `store` in Dagster's home.

    An s3:// store is reached as every AWS client is (see `fullft_assets.aws`).
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
    return (
        dg.MetadataValue.url(f"{REPORTS}{page}") if use_case.settings.store is None else place_in(store, page)
    )


def place_in(store: Store, path: str) -> dg.MetadataValue:
    """Return where a file or folder of the store is: an absolute path, or a link."""
    return (
        dg.MetadataValue.path(str(Path(store.url, path).absolute()))
        if store.is_local
        else dg.MetadataValue.url(f"{store.url}/{path}")
    )


def open_url(url: str, resolve: Callable[[str], Path] = Path) -> Store:
    """Return the store at a folder or in a bucket; $FULLFT_KMS_KEY, if it is set, names the key that encrypts
    objects on S3.
    """
    kms_key = os.environ.get("FULLFT_KMS_KEY")
    return Store(url, kms_key) if url.startswith(SCHEMES) else Store(str(resolve(url).absolute()))


def set_latest(store: Store, case: str, asset: str, manifest: Manifest, partition: str = "all") -> None:
    """Point an asset (partition) at its newest artifact."""
    store.write_pointer(f"latest/{case}/{asset}/{partition}", {"ref": manifest.ref})


def latest(store: Store, case: str, asset: str, partition: str = "all") -> Manifest | None:
    """Return the newest artifact of an asset (partition), or None before its first materialisation."""
    pointer = store.read_pointer(f"latest/{case}/{asset}/{partition}")
    return None if pointer is None else store.load(pointer["ref"])


def latest_by_partition(store: Store, case: str, asset: str) -> dict[str, Manifest]:
    """Return the newest artifact of each partition of an asset."""
    manifests = (
        (key, latest(store, case, asset, key)) for key in store.list_pointers(f"latest/{case}/{asset}")
    )
    return {key: manifest for key, manifest in manifests if manifest is not None}


#: Artifacts that are read before what is known of them is written.
_AT_ONCE = 1_000


def summary_by_partition(
    store: Store, case: str, asset: str, derive: Callable[[Manifest], Any], *, version: str
) -> dict[str, Any]:
    """Return by partition the result of `derive` for the newest artifact of each partition of an asset.

    Args:
        derive: returns JSON values.
        version: of `derive`.
    """
    # While artifacts are replaced under their keys, a pointer may stay as it is, and what it leads to change.
    made_after = store.last_rewriting(case)
    file = f"summaries/{case}/{asset}.json"
    pointers = store.versions(f"pointers/latest/{case}/{asset}")
    versions = {
        name.removesuffix(".json"): pointers[name] for name in sorted(pointers) if name.endswith(".json")
    }
    entries = {} if made_after is None else _read(store, file, [version, made_after])
    entries = {name: entry for name, entry in entries.items() if versions.get(name) == entry[0]}
    changed_names = [name for name in versions if name not in entries]

    def read(name: str) -> tuple[Any] | None:
        # The pointer may be newer than the listing: then the next listing has another version, and it is read
        # again.
        manifest = latest(store, case, asset, name)
        return None if manifest is None else (derive(manifest),)

    # Written as soon as it is known: a tick that ends early has not read in vain.
    for start in range(0, len(changed_names), _AT_ONCE):
        names = changed_names[start : start + _AT_ONCE]
        values = zip(names, store.each(read, names), strict=True)
        entries |= {name: [versions[name], *value] for name, value in values if value is not None}
        if made_after is not None:
            store.write_json(file, {"of": [version, made_after], "entries": entries})
    return {name: entries[name][1] for name in versions if name in entries}


def _read(store: Store, file: str, of: list[str]) -> dict[str, list[Any]]:
    """Return the entries of a summary by partition, each the version of its pointer and what was derived;
    none where it is lost, damaged, or not of this version.
    """
    try:
        content = store.read_json(file)
    except ValueError:  # JSON that is cut off
        return {}
    return content["entries"] if content is not None and content.get("of") == of else {}
