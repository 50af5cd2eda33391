"""The batches that a snapshot is taken over: which they are, and what the split needs of each."""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache, partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fullft_assets.chunks import VERSION as CHUNKS_VERSION
from fullft_assets.chunks import ChunksMetadata, Expected, rows_without_trained_tokens
from fullft_assets.documents.aliases import alias
from fullft_assets.errors import DataError
from fullft_assets.examples import QUARANTINED, ExamplesMetadata
from fullft_assets.examples import VERSION as EXAMPLES_VERSION
from fullft_assets.examples import key_settings as example_settings
from fullft_assets.examples.identity import COLUMNS
from fullft_assets.settings.use_case import UseCase
from fullft_assets.snapshot import screening, sketches
from fullft_assets.snapshot.all_rows import BatchRows
from fullft_assets.snapshot.locations import read_rows
from fullft_assets.store import CheckOutcome, Manifest, Store
from fullft_assets.store.checks import CheckSpec

ARCHIVED_FILES_COUNT = CheckSpec(
    "archived_files_count", "Files that were taken away since their delivery count as they were read."
)
FILES_HAVE_ONE_SOURCE = CheckSpec(
    "files_have_one_source", "No file has the path of another source's file, whose rows it would supersede."
)


def usable_batches(
    use_case: UseCase, examples: Mapping[str, Manifest], chunks: Mapping[str, Manifest], expected: Expected
) -> dict[str, Manifest]:
    """Return the batches without a red gate.

    Raises:
        DataError: one of them is not tokenised as it would be today; or each batch has a red gate.
    """
    usable = {name: manifest for name, manifest in examples.items() if not manifest.red_gates}
    fix = f"launch {use_case.name}_ingest for it (the new-documents sensor does)"
    for name, manifest in usable.items():
        if name not in chunks:
            raise DataError(f"batch {name}: examples are there, but they were never tokenised; {fix}")
        if chunks[name].inputs["labeled_examples"] != manifest.content_digest:
            raise DataError(f"batch {name}: tokenized_chunks were made from older examples; {fix}")
        for part, version, settings in (
            (manifest, EXAMPLES_VERSION, example_settings(use_case.settings)),
            (chunks[name], CHUNKS_VERSION, expected.settings),
        ):
            if (part.version, part.settings) != (version, settings):
                raise DataError(
                    f"batch {name}: {part.stage} were made with other settings than today's; {fix}"
                )
    others = [name for name in usable if chunks[name].inputs["tokenizer"] != expected.tokenizer]
    if others:
        raise DataError(
            f"{len(others):,} of {len(usable):,} batches were tokenised with another tokenizer than"
            f" base_model's with chunks.added_tokens; `fullft run {use_case.name}` tokenises them again"
        )
    usable = {name: manifest for name, manifest in usable.items() if not chunks[name].red_gates}
    if examples and not usable:
        name, (gate, *_) = min(red_gates(examples, chunks).items())
        why = gate.description.removeprefix(f"batch {name}: ")
        held = "the only batch" if len(examples) == 1 else f"each of {len(examples):,} batches, such as"
        raise DataError(f"snapshot: red checks hold back {held} {name} ({gate.name}): {why}")
    return usable


def red_gates(
    examples: Mapping[str, Manifest], chunks: Mapping[str, Manifest]
) -> dict[str, list[CheckOutcome]]:
    """Return the red gates of each batch that has some."""
    gates_of = {
        name: [*part.red_gates, *(chunks[name].red_gates if name in chunks else [])]
        for name, part in examples.items()
    }
    return {name: red for name, red in gates_of.items() if red}


def archive_check(examples: Mapping[str, Manifest], usable: Mapping[str, Manifest]) -> CheckOutcome:
    """Return whether the rows of files that were taken away since their delivery still count.

    They do as long as the settings ask for nothing that was not read then; a file that was delivered again is
    no loss.
    """
    delivered = {path for manifest in usable.values() for path in ExamplesMetadata.of(manifest).files}
    lost = {
        name: sorted({*(ExamplesMetadata.of(part).taken_away or ())} - delivered)
        for name, part in sorted(examples.items())
    }
    lost = {name: paths for name, paths in lost.items() if paths}
    num_files = sum(map(len, lost.values()))
    description = ""
    if lost:
        named, more = list(lost)[:5], f" and {len(lost) - 5:,} more" if len(lost) > 5 else ""
        description = (
            f"{num_files:,} files (such as {alias(lost[named[0]][0])}) of {len(lost):,} batches"
            f" ({', '.join(named)}{more}) are excluded: they were taken away since they were read with other"
            " settings; deliver them again, or change the settings back (files_are_readable of raw_documents"
            " names them)"
        )
    return CheckOutcome(
        name=ARCHIVED_FILES_COUNT.name,
        passed=not lost,
        severity="warn",
        description=description,
        metadata={"num_files_left_out": num_files, "num_batches": len(lost)},
    )


def source_check(usable: Mapping[str, Manifest]) -> CheckOutcome:
    """Return whether each file was delivered from one source: a file is known by its path below it, and a
    namesake supersedes its rows.
    """
    sources: dict[str, set[str]] = {}
    for metadata in map(ExamplesMetadata.of, usable.values()):
        for path in metadata.files:
            sources.setdefault(path, set()).add(metadata.uri)
    namesakes = {path: sorted(uris) for path, uris in sources.items() if len(uris) > 1}
    description = ""
    if namesakes:
        path, uris = min(namesakes.items())
        description = (
            f"{len(namesakes):,} files were delivered from several sources, such as {alias(path)} from"
            f" {' and '.join(uris)}; only the newest delivery of a path counts: if these are different files,"
            " rename those of one source and deliver them again; if documents.path has moved, nothing is"
            " wrong"
        )
    return CheckOutcome(
        name=FILES_HAVE_ONE_SOURCE.name,
        passed=not namesakes,
        severity="warn",
        description=description,
        metadata={"num_files_of_several_sources": len(namesakes)},
    )


def read_batches(
    store: Store,
    use_case: UseCase,
    usable: Mapping[str, Manifest],
    chunks: Mapping[str, Manifest],
    evaluation: screening.EvaluationTexts | None,
) -> dict[str, BatchRows]:
    """Return what the split needs of each usable batch; its sketches are made where they are not there
    yet.
    """

    @cache
    def screen() -> screening.Screen:
        assert evaluation is not None, "only texts of external sets are looked up"
        return screening.Screen(evaluation.texts)

    batches = {}
    for name, manifest in usable.items():
        made = sketches.ensure(store, use_case.name, manifest, use_case.settings.seed)
        index = partial(sketches.read_index, store.folder(made))
        path = store.folder(manifest) / "examples.parquet"
        quarantined = pq.read_table(path.with_name(QUARANTINED), columns=["id", "source", "delivered_ns"])
        batch = BatchRows(
            rows=pq.read_table(path, columns=list(COLUMNS)),
            files=ExamplesMetadata.of(manifest).files,
            places=np.array(index().places),
            index=index,
            texts=partial(read_rows, path, "text"),
            quarantined=quarantined,
        )
        if evaluation is not None:
            screened = sketches.ensure_screened(store, use_case.name, manifest, evaluation, screen)
            overlaps = np.load(store.folder(screened) / "overlaps.npy", allow_pickle=False)
            batch = replace(batch, overlaps=overlaps)
        if ChunksMetadata.of(chunks[name]).num_rows_without_trained_tokens:
            # Conversations without a trained token count as quarantined: no older version is superseded.
            untrained = rows_without_trained_tokens(store.folder(chunks[name]))
            rows = batch.rows.take(pa.array(untrained)).select(quarantined.column_names)
            rows = pa.concat_tables([quarantined, rows], promote_options="permissive")
            batch = replace(batch, untrained=untrained, quarantined=rows)
        batches[name] = batch
    return batches
