"""Pointers to the newest artifact of each asset, or of each of its partitions."""

from fullft_assets.store import Manifest, Store


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
