"""Takes erased documents out of the tables of batches and windows, which have one row a document."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fullft_assets.chunks import WORDS
from fullft_assets.erasure.erased_documents import ErasedDocuments, whole_artifacts
from fullft_assets.erasure.file_names import scrub
from fullft_assets.erasure.report import ErasureReport
from fullft_assets.examples import QUARANTINED, count_labels, count_reasons, write_examples
from fullft_assets.settings import ExamplesSettings
from fullft_assets.store import CheckOutcome, Manifest, Store

if TYPE_CHECKING:
    import pyarrow as pa

#: The tables of each stage, the first one being the stage's own.
FILES = {
    "raw_documents": ["documents.parquet"],
    "production_documents": ["documents.parquet"],
    "labeled_examples": ["examples.parquet", QUARANTINED],
    "quarantined_examples": ["quarantined.parquet"],
    "tokenized_chunks": ["chunks.parquet"],
}


def drop_rows(store: Store, case: str, stage: str, erased: ErasedDocuments, report: ErasureReport) -> None:
    """Rewrite the artifacts of a stage without erased documents and the names of files that are gone.

    Chunks have ids alone, which may be made up. They follow their examples, which must still be there.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    of_examples = _ids_of_examples(store, case, erased) if stage == "tokenized_chunks" else {}
    for manifest, folder in whole_artifacts(store, case, stage):
        before = {name: pq.read_table(folder / name) for name in FILES[stage]}
        if stage == "tokenized_chunks":
            ids = of_examples.get(manifest.inputs["labeled_examples"], erased.ids)
            hit = [np.array([id_ in ids for id_ in before["chunks.parquet"]["id"].to_pylist()], bool)]
        else:
            hit = [erased.rows(table) for table in before.values()]
        said = {
            "metadata": manifest.metadata,
            "inputs": manifest.inputs,
            "checks": [check.model_dump() for check in manifest.checks],
        }
        scrubbed = scrub(said, erased.paths)
        if not any(rows.any() for rows in hit) and scrubbed == said:
            continue
        tables = {
            name: table.filter(pa.array(~rows))
            for (name, table), rows in zip(before.items(), hit, strict=True)
        }
        num_erased = int(hit[0].sum())

        def edit(
            path: Path,
            tables: Mapping[str, pa.Table] = tables,
            metadata: Mapping[str, Any] = scrubbed["metadata"],
            num_erased: int = num_erased,
            manifest: Manifest = manifest,
        ) -> Mapping[str, Any]:
            for name, table in tables.items():
                (write_examples if name == "examples.parquet" else pq.write_table)(table, path / name)
            if (path / WORDS).is_file() and num_erased:
                # Counts of the batch's words, the erased documents' among them; an audit goes on without this
                # batch.
                pq.write_table(pq.read_table(path / WORDS).slice(0, 0), path / WORDS)
            counts = {"num_erased": (metadata.get("num_erased") or 0) + num_erased}
            return {**metadata, **counts, **_counts(manifest, list(tables.values()))}

        checks = [CheckOutcome.model_validate(check) for check in scrubbed["checks"]]
        store.rewrite(manifest, edit, scrubbed["inputs"], checks)
        report.rewritten[stage] += 1


def _ids_of_examples(store: Store, case: str, erased: ErasedDocuments) -> dict[str, set[str]]:
    """Return the ids of the erased documents of each batch's examples, by the content digest of these."""
    import pyarrow.parquet as pq

    ids = {}
    for manifest, folder in whole_artifacts(store, case, "labeled_examples"):
        table = pq.read_table(folder / "examples.parquet")
        ids[manifest.content_digest] = set(table["id"].filter(erased.rows(table)).to_pylist())
    return ids


def _counts(manifest: Manifest, tables: list[pa.Table]) -> dict[str, Any]:
    """Return the metadata that counts rows."""
    if manifest.stage == "quarantined_examples":
        return {"num_quarantined": len(tables[0]), **count_reasons(tables[0])}
    if manifest.stage != "labeled_examples":
        return {"num_rows": len(tables[0])}
    valid, quarantined = tables
    return {
        "num_rows": len(valid) + len(quarantined),
        "num_valid": len(valid),
        "num_quarantined": len(quarantined),
        "label_counts": count_labels(valid, ExamplesSettings.from_manifest(manifest.settings)),
    }
