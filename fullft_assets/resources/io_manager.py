"""The IO manager: it passes manifests from asset to asset, never objects."""

import dagster as dg

from fullft_assets.errors import GateError
from fullft_assets.resources.failures import one_line_errors
from fullft_assets.resources.of_run import ref_for_run
from fullft_assets.resources.pointers import latest, set_latest
from fullft_assets.store import Manifest, Store


def manifest_io_manager(case: str, store_key: str) -> dg.IOManagerDefinition:
    """Return the IO manager of a use case's artifacts, in the store that is injected under this key."""

    @dg.io_manager(
        required_resource_keys={store_key}, description=f"Passes manifests of the artifacts of {case}."
    )
    def artifacts(init: dg.InitResourceContext) -> ManifestIOManager:
        return ManifestIOManager(getattr(init.resources, store_key), init.instance, init.run)

    return artifacts


class ManifestIOManager(dg.IOManager):
    """Hands a consumer the manifest of its input: see `of_run`. Of all partitions together, it is the newest
    of each.

    Args:
        store: has the artifacts and the pointers to the newest ones.
        instance, run: whose steps are to read the same artifacts. Default: the newest ones are read.
    """

    def __init__(
        self, store: Store, instance: dg.DagsterInstance | None = None, run: dg.DagsterRun | None = None
    ):
        self.store = store
        self.instance, self.run = instance, run

    def handle_output(self, context: dg.OutputContext, obj: Manifest) -> None:
        """Point the asset (partition) at its newest artifact."""
        partition = context.partition_key if context.has_partition_key else "all"
        case, asset = context.asset_key.path
        set_latest(self.store, case, asset, obj, partition)

    def load_input(self, context: dg.InputContext) -> Manifest | dict[str, Manifest]:
        """Return the producer's manifest, or one for each partition that was ever materialised."""
        if not context.has_asset_partitions:
            return self.load_of_run(context.asset_key)
        if context.has_partition_key:
            return self.load_of_run(context.asset_key, context.partition_key)
        partitions = set(self.store.list_pointers("/".join(("latest", *context.asset_key.path))))
        return {
            key: self._load_newest(context.asset_key, key)
            for key in context.asset_partition_keys
            if key in partitions
        }

    def load_of_run(self, key: dg.AssetKey, partition: str | None = None) -> Manifest:
        """Return the manifest of an asset (partition) that every step of the run reads.

        Raises:
            GateError: it was never materialised.
        """
        if self.instance is not None and self.run is not None:
            ref = ref_for_run(self.instance, self.run, key, partition)
            if ref is not None:
                with one_line_errors(self.store, key.path[0]):
                    return self.store.load(ref)
        return self._load_newest(key, partition)

    def _load_newest(self, key: dg.AssetKey, partition: str | None) -> Manifest:
        case, asset = key.path
        with one_line_errors(self.store, case):
            manifest = latest(self.store, case, asset, partition or "all")
            if manifest is None:
                where = "" if partition is None else f" for {partition}"
                raise GateError(f"{key.to_user_string()} was never materialised{where}; materialise it first")
            return manifest
