"""The whole sample delivery, 30 thousand licence rules with the dirt that real deliveries have, read and
validated once.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyarrow as pa

from fullft_assets import documents, examples
from fullft_assets.demos import licences
from fullft_assets.settings import DocumentsSettings, ExamplesSettings

EXAMPLES = ExamplesSettings(label="license-kind", group="license-expression", labels=list(licences.KINDS))


@dataclass(frozen=True)
class Delivery:
    """The delivered folder and what the first data stages make of it as one batch."""

    folder: Path

    @cached_property
    def raw(self) -> pa.Table:
        source = documents.Folder(self.folder / "documents")
        batch = documents.Batch(name="00001-all", files=documents.Folder(self.folder / "documents").files())
        found = documents.read_documents(source, batch, DocumentsSettings(path="unused"), EXAMPLES)
        assert found.unreadable == {}
        return found.table

    @cached_property
    def examined(self) -> examples.Examined:
        return examples.examine(self.raw, EXAMPLES, "00001-all")
