"""The IO manager, which passes manifests from asset to asset, never objects; the launchers as a resource; and
errors as Dagster shows them: in one line, without what a document says.

A step may wait for hours behind a training while another run makes the same assets, so the newest artifact
need not be the one that the steps before were given. A run works with the artifact that it made, or else with
the newest. Dagster's events say which run made which; nothing else is kept.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from fullft_assets.errors import FullftError, GateError, WorkloadError, classify
from fullft_assets.resources.account import AccountResource
from fullft_assets.resources.driver import LaunchDriver
from fullft_assets.resources.store import latest, set_latest
from fullft_assets.settings import UseCaseSettings
from fullft_assets.settings.launcher_kinds import open_launcher
from fullft_assets.store import Manifest, Store


@contextmanager
def one_line_errors(store: Store, case: str) -> Iterator[None]:
    """Turn an error into a failure that shows one line; one that the user can fix is not retried.

    The failure's metadata contains the kind of failure; for launched work it follows the line, too. The line
    of an unexpected error has its type, where it was raised, and the file in the store with the traceback.
    Its message is left out, since it may quote a document and Dagster would keep it for ever. For the same
    reason no failure has a cause.

    Args:
        store: where such a file is written.
        case: the use case that it belongs to.
    """
    try:
        yield
    except FullftError as error:
        is_classified = isinstance(error, WorkloadError) and error.failure != "unknown"
        raise dg.Failure(
            description=f"{error} [{error.failure}]" if is_classified else str(error),
            metadata={"failure": error.failure},
            allow_retries=False,
        ) from None
    except (dg.Failure, dg.RetryRequested, dg.DagsterError):
        raise
    except Exception as error:
        raise dg.Failure(
            description=store.keep_traceback(case, error), metadata={"failure": classify(error)}
        ) from None


#: Metadata of each materialisation: `Manifest.ref` of the artifact.
ARTIFACT = "artifact"


def ref_for_run(
    instance: dg.DagsterInstance, run: dg.DagsterRun, key: dg.AssetKey, partition: str | None
) -> str | None:
    """Return the artifact of an asset (partition) that every step of a run reads, by its reference; None: the
    newest one.

    A run that executes a part of another one again goes on with what that one made.
    """
    ref = made_by_run(instance, run.run_id, key, partition)
    # Dagster executes again what failed of the parent run: only then the steps are a part of its own.
    is_part = run.step_keys_to_execute is not None or run.tags.get("dagster/is_asset_resume_retry") == "true"
    if ref is not None or run.parent_run_id is None or not is_part:
        return ref
    parent = instance.get_run_by_id(run.parent_run_id)
    return None if parent is None else ref_for_run(instance, parent, key, partition)


def made_by_run(
    instance: dg.DagsterInstance, run_id: str, key: dg.AssetKey, partition: str | None = None
) -> str | None:
    """Return the reference of the artifact that a run made of an asset (partition), or None."""
    records = instance.get_records_for_run(
        run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION, ascending=False
    ).records
    for record in records:
        event = record.event_log_entry.asset_materialization
        # Of a step of the asset's use case: a user of the UI can report such an event without a run, and any
        # other job can write one.
        is_own = (record.event_log_entry.step_key or "").startswith(f"{key.path[0]}__")
        if event and (event.asset_key, event.partition) == (key, partition) and is_own:
            ref = event.metadata.get(ARTIFACT)
            return None if ref is None else str(ref.value)
    return None


def manifest_io_manager(case: str, store_key: str) -> dg.IOManagerDefinition:
    """Return the IO manager of a use case's artifacts, in the store that is injected under this key."""

    @dg.io_manager(
        required_resource_keys={store_key}, description=f"Passes manifests of the artifacts of {case}."
    )
    def artifacts(init: dg.InitResourceContext) -> ManifestIOManager:
        return ManifestIOManager(getattr(init.resources, store_key), init.instance, init.run)

    return artifacts


class ManifestIOManager(dg.IOManager):
    """Hands a consumer the manifest of its input: see `ref_for_run`. Of all partitions together, it is the
    newest of each.

    Args:
        store: has the artifacts and the pointers to the newest ones.
        instance, run: whose steps are to read the same artifacts. Default: the newest ones are read.
    """

    def __init__(
        self, store: Store, instance: dg.DagsterInstance | None = None, run: dg.DagsterRun | None = None
    ):
        self.store = store
        self.instance = instance
        self.run = run

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


def launcher_resource(settings: UseCaseSettings) -> dg.ResourceDefinition:
    """Return the resource that runs workloads where `launcher` and `compute` say; a launcher's module is
    imported when a step asks for it.
    """

    return AccountResource(
        lambda _: LaunchDriver(lambda workload: open_launcher(settings.launcher_of(workload))),
        f"Runs workloads: {settings.launcher.kind}.",
    )
