"""The batches that a snapshot is taken over: which they are, and what the split needs of each."""

from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.feather as feather
import pyarrow.parquet as pq

from fullft_assets.artifacts import EXAMPLES_FILE, LABELED_EXAMPLES, NEAR_DUPLICATE_INDEX
from fullft_assets.chunks import (
    VERSION as CHUNKS_VERSION,
    ChunksMetadata,
    Expected,
    rows_without_trained_tokens,
)
from fullft_assets.documents.names import alias
from fullft_assets.errors import DataError
from fullft_assets.examples import (
    VERSION as EXAMPLES_VERSION,
    ExamplesMetadata,
    key_settings as example_settings,
)
from fullft_assets.examples.identity import COLUMNS
from fullft_assets.settings.use_case import UseCase
from fullft_assets.snapshot.all_rows import BatchRows
from fullft_assets.snapshot.frozen_batches import content_of, read_rows
from fullft_assets.snapshot.metadata import NearDuplicateIndexMetadata
from fullft_assets.snapshot.near_text.pairs import sketch
from fullft_assets.snapshot.screening import EvaluationTexts, Screen
from fullft_assets.store import CheckOutcome, Draft, Manifest, Outcome, Store
from fullft_assets.store.checks import CheckSpec
from fullft_assets.store.hashing import unit_hash

#: Of the sketches of a batch.
VERSION = "6"
_FILE = "sketches.arrow"

ARCHIVED_FILES_COUNT = CheckSpec(
    "archived_files_count", "Files that were taken away since their delivery count as they were read."
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
        if name not in chunks or chunks[name].inputs[LABELED_EXAMPLES] != manifest.content_digest:
            raise DataError(f"batch {name}: its examples were not tokenised, or others than today's; {fix}")
        for part, version, settings in (
            (manifest, EXAMPLES_VERSION, example_settings(use_case.settings)),
            (chunks[name], CHUNKS_VERSION, expected.settings),
        ):
            if (part.version, part.settings) != (version, settings):
                raise DataError(
                    f"batch {name}: {part.stage} were made with other settings than today's; {fix}"
                )
    stale_batches = [name for name in usable if chunks[name].inputs["tokenizer"] != expected.tokenizer]
    if stale_batches:
        raise DataError(
            f"{len(stale_batches):,} of {len(usable):,} batches were tokenised with another tokenizer than"
            f" base_model's with chunks.added_tokens; `fullft run {use_case.name}` tokenises them again"
        )
    usable = {name: manifest for name, manifest in usable.items() if not chunks[name].red_gates}
    if examples and not usable:
        name, (gate, *_) = min(red_gates(examples, chunks).items())
        reason = gate.description.removeprefix(f"batch {name}: ")
        extent = "the only batch" if len(examples) == 1 else f"each of {len(examples):,} batches, such as"
        raise DataError(f"snapshot: red checks hold back {extent} {name} ({gate.name}): {reason}")
    return usable


def red_gates(
    examples: Mapping[str, Manifest], chunks: Mapping[str, Manifest]
) -> dict[str, list[CheckOutcome]]:
    """Return the red gates of each batch that has some."""
    return {
        name: red
        for name, part in examples.items()
        if (red := [*part.red_gates, *(chunks[name].red_gates if name in chunks else [])])
    }


def archive_check(examples: Mapping[str, Manifest], usable: Mapping[str, Manifest]) -> CheckOutcome:
    """Return whether the rows of files that were taken away since their delivery still count.

    They do as long as the settings ask for nothing that was not read then; a file that was delivered again is
    no loss.
    """
    present_files = {path for manifest in usable.values() for path in ExamplesMetadata.of(manifest).files}
    files = {
        name: sorted({*(ExamplesMetadata.of(part).taken_away or ())} - present_files)
        for name, part in sorted(examples.items())
    }
    files = {name: paths for name, paths in files.items() if paths}
    num_files = sum(map(len, files.values()))
    description = ""
    if files:
        names = list(files)
        more = f" and {len(names) - 5:,} more" if len(names) > 5 else ""
        description = (
            f"{num_files:,} files (such as {alias(files[names[0]][0])}) of {len(names):,} batches"
            f" ({', '.join(names[:5])}{more}) are excluded: they were taken away since they were read with"
            " other settings; deliver them again, or change the settings back (files_are_readable of"
            " raw_documents names them)"
        )
    return CheckOutcome(
        name=ARCHIVED_FILES_COUNT.name,
        passed=not files,
        severity="warn",
        description=description,
        metadata={"num_files_left_out": num_files, "num_batches": len(files)},
    )


def read_batches(
    store: Store,
    use_case: UseCase,
    usable: Mapping[str, Manifest],
    chunks: Mapping[str, Manifest],
    evaluation: EvaluationTexts | None,
    roles: Mapping[str, np.ndarray],
    say: Callable[[str], None],
) -> dict[str, BatchRows]:
    """Return the columns of each usable batch that the split needs, and the roles of its rows in the last
    snapshot. Sketches that are not in the store yet are made.
    """

    @cache
    def screen() -> Screen | None:
        return None if evaluation is None else Screen(evaluation.texts)

    batches = {}
    for name, manifest in usable.items():
        sketches = _ensure_sketches(
            store, use_case.name, manifest, use_case.settings.seed, evaluation, screen, say
        )
        path = store.folder(manifest) / EXAMPLES_FILE
        untrained = np.zeros(0, np.int64)
        if ChunksMetadata.of(chunks[name]).num_rows_without_trained_tokens:
            untrained = rows_without_trained_tokens(store.folder(chunks[name]))
        batches[name] = BatchRows(
            rows=pq.read_table(path, columns=list(COLUMNS), read_dictionary=["group", "source"])
            .unify_dictionaries()
            .combine_chunks(),
            files=ExamplesMetadata.of(manifest).files,
            sketches=partial(_read_column, store.folder(sketches) / _FILE),
            texts=partial(read_rows, path, "text"),
            untrained=untrained,
            roles=roles.get(name),
        )
    return batches


def _read_column(path: Path, name: str) -> pa.ChunkedArray:
    """Return a column of sketches, mapped: it takes memory as it is read, until it is let go."""
    return feather.read_table(str(path), columns=[name], use_threads=False, memory_map=True)[name]


def build_sketches(rows: pa.Table, seed: int, screen: Screen | None = None) -> pa.Table:
    """Return the sketches of rows with `text`, `text_hash` and `group`, their `place` in the split, and
    whether each `overlaps` a screen's texts.
    """
    overlaps = np.zeros(len(rows), bool) if screen is None else screen.overlapping(rows["text"])
    # A row's place is that of its group, or of its text if it has none.
    groups = pc.coalesce(rows["group"], rows["text_hash"]).combine_chunks().dictionary_encode()
    places = np.array([unit_hash(seed, "split", name) for name in groups.dictionary.to_pylist()], np.float64)
    return (
        sketch(rows["text"])
        .append_column("place", pa.array(places[groups.indices.to_numpy()]))
        .append_column("overlaps", pa.array(overlaps))
    )


def _ensure_sketches(
    store: Store,
    case: str,
    examples: Manifest,
    seed: int,
    evaluation: EvaluationTexts | None,
    screen: Callable[[], Screen | None],
    say: Callable[[str], None],
) -> Manifest:
    """Return the sketches of a batch's examples, made if there are none yet.

    Args:
        store, case, examples, seed: the batch, and the key of the split's hashes.
        evaluation: texts of the external evaluation sets, that the rows are screened for.
        screen: makes the look-up of these; only called where the batch has no sketches yet.
        say: reports that they are made.
    """

    def write(draft: Draft) -> Outcome:
        say(f"sketching the {examples.metadata['num_valid']:,} texts of {examples.metadata['batch']}")
        rows = pq.read_table(store.folder(examples) / EXAMPLES_FILE, columns=["text", "text_hash", "group"])
        # Without compression it is mapped, not read; in few parts, as each of them takes time.
        feather.write_feather(
            build_sketches(rows, seed, screen()).combine_chunks(),
            str(draft.path / _FILE),
            compression="uncompressed",
        )
        return NearDuplicateIndexMetadata(
            batch=ExamplesMetadata.of(examples).batch, num_rows=len(rows)
        ).as_dict(), []

    return store.ensure(
        case,
        NEAR_DUPLICATE_INDEX,
        write,
        version=VERSION,
        settings={},
        inputs={
            LABELED_EXAMPLES: content_of(examples),
            **({} if evaluation is None else {"evaluation_texts": evaluation.digest}),
        },
        seed=seed,
    )
