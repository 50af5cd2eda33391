"""Delivered files kept by hand as runs keep them, and cuts of batches that die while they write."""

from collections.abc import Callable
from typing import Any

import pyarrow.parquet as pq
import pytest

from fullft_assets import documents
from fullft_assets.store import Manifest, Store
from tests import project as projects


class Delivered:
    """A project whose delivered files are kept as a run does it."""

    def __init__(self, project: projects.Project):
        self.project, self.store = project, Store(str(project.home / "store"))

    def keep(self, batch: documents.Batch) -> Manifest:
        manifest = documents.keep(self.store, self.project.use_case(), batch.name)
        self.store.write_pointer(f"latest/letters/raw_documents/{batch.name}", {"ref": manifest.ref})
        return manifest

    def rows(self, manifest: Manifest) -> list[dict[str, Any]]:
        return pq.read_table(self.store.folder(manifest) / "documents.parquet").to_pylist()


def die_at_a_write(work: Callable[[], object], *, dies_after: bool) -> None:
    """Do what dies with the first file that it writes to a store, before or after the file is there."""
    write = Store.write_bytes

    def dying(store: Store, name: str, data: bytes) -> None:
        if dies_after:
            write(store, name, data)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "write_bytes", dying)
        with pytest.raises(KeyboardInterrupt):
            work()
