"""The store as Dagster sees it: where it lies, and an IO manager that passes manifests, never objects."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg

from fullft_assets.errors import FullftError, GateError, WorkloadError
from fullft_assets.settings.use_case import UseCase
from fullft_assets.store import Manifest, Store


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
    return {"s3_additional_kwargs": {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": key}} if key else {}


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn an error that the user can mend into a failure that shows its one line first, and is not retried.

    What it is put down to stands in the failure's metadata; of launched work also behind its line.
    """
    try:
        yield
    except FullftError as error:
        shown = f"{error} [{error.failure}]" if isinstance(error, WorkloadError) and error.failure != "unknown" else str(error)
        raise dg.Failure(description=shown, metadata={"failure": error.failure}, allow_retries=False) from error


class ManifestIOManager(dg.IOManager):
    """Hands a consumer the manifest that its producer emitted last; a partitioned producer's by partition."""

    def __init__(self, store: Store):
        self.store = store

    def handle_output(self, context: dg.OutputContext, obj: Manifest) -> None:
        """Point the asset (partition) at its newest artifact."""
        partition = context.partition_key if context.has_partition_key else "all"
        case, asset = context.asset_key.path
        set_latest(self.store, case, asset, obj, partition)

    def load_input(self, context: dg.InputContext) -> Manifest | dict[str, Manifest]:
        """Return the producer's manifest, or one for each partition that was ever materialised."""
        if not context.has_asset_partitions:
            return self._load(context.asset_key, "all")
        if context.has_partition_key:
            return self._load(context.asset_key, context.partition_key)
        made = set(self.store.list_pointers("/".join(("latest", *context.asset_key.path))))
        return {key: self._load(context.asset_key, key) for key in context.asset_partition_keys if key in made}

    def _load(self, key: dg.AssetKey, partition: str) -> Manifest:
        pointer = self.store.read_pointer(self._pointer(key, partition))
        with one_line_errors():
            if pointer is None:
                where = "" if partition == "all" else f" for {partition}"
                raise GateError(f"{key.to_user_string()} was never materialised{where}; materialise it first")
            return self.store.load(pointer["ref"])

    @staticmethod
    def _pointer(key: dg.AssetKey, partition: str) -> str:
        return "/".join(("latest", *key.path, partition))


def set_latest(store: Store, case: str, asset: str, manifest: Manifest, partition: str = "all") -> None:
    """Point an asset (partition) at its newest artifact."""
    store.write_pointer(f"latest/{case}/{asset}/{partition}", {"ref": manifest.ref})


def latest(store: Store, case: str, asset: str) -> Manifest | None:
    """Return the newest artifact of an unpartitioned asset, or None before its first materialisation."""
    pointer = store.read_pointer(f"latest/{case}/{asset}/all")
    return None if pointer is None else store.load(pointer["ref"])


def latest_by_partition(store: Store, case: str, asset: str) -> dict[str, Manifest]:
    """Return the newest artifact of each partition of an asset."""
    keys = store.list_pointers(f"latest/{case}/{asset}")
    return {key: store.load(store.read_pointer(f"latest/{case}/{asset}/{key}")["ref"]) for key in keys}
