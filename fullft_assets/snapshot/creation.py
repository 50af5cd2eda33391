"""How a snapshot is created: its batches are read, their rows split, chunks packed, and all of it frozen
under one key.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fullft_assets.artifacts import CHUNKS_COLUMN, CHUNKS_FILE, EXAMPLES_FILE, REPORT_PAGE, TRAINING_SNAPSHOT
from fullft_assets.chunks import VERSION as CHUNKS_VERSION, Expected, load_tokenization
from fullft_assets.documents import names
from fullft_assets.examples.agreement import metadata_of
from fullft_assets.settings import UseCaseSettings
from fullft_assets.settings.use_case import UseCase
from fullft_assets.snapshot import checks, data_report, general, packing, screening
from fullft_assets.snapshot.all_rows import BatchRows
from fullft_assets.snapshot.batches import (
    VERSION as SKETCHES_VERSION,
    archive_check,
    read_batches,
    usable_batches,
)
from fullft_assets.snapshot.frozen_batches import (
    by_batch,
    chunk_lengths,
    content_of,
    find_rows,
    in_order,
    pin,
    read_rows,
    to_lists,
)
from fullft_assets.snapshot.ledger import FILE, ROLES_FILE, LedgerHistory, read_history, read_roles
from fullft_assets.snapshot.metadata import GeneralMetadata, ReplayMetadata, SnapshotMetadata
from fullft_assets.snapshot.near_text.engine import engine_of
from fullft_assets.snapshot.split import Frozen, freeze_batches
from fullft_assets.store import CheckOutcome, Draft, Identity, Manifest, Outcome, Store, artifact_key
from fullft_assets.task import task_of

VERSION = "15"
#: Conversations of which the data report shows one.
_EXAMPLES = 20


def take(
    store: Store,
    use_case: UseCase,
    examples: Mapping[str, Manifest],
    chunks: Mapping[str, Manifest],
    *,
    suggest_group: Callable[[], str | None] = lambda: None,
    say: Callable[[str], None] = lambda line: None,
) -> Manifest:
    """Freeze the snapshot over every batch that is validated and tokenised.

    Its content digest is that of the rows, their splits and what their chunks are made with: it does not
    depend on the batches.

    Args:
        store: where the batches' artifacts live.
        use_case: the settings.
        examples: `labeled_examples` by batch name; batches with a red gate are excluded.
        chunks: `tokenized_chunks` by batch name, likewise.
        suggest_group: returns what the data report of the first snapshot says of a field that may tie rows
            together.
        say: reports what is done.

    Raises:
        DataError: see `freeze_batches`; or a batch was not tokenised, or not from today's examples, settings
            and tokenizer.
    """
    settings = use_case.settings
    expected = Expected.of(use_case)
    creation = _Creation(
        store=store,
        use_case=use_case,
        examples=examples,
        usable=usable_batches(use_case, examples, chunks, expected),
        chunks=chunks,
        expected=expected,
        evaluation=screening.read_evaluation_texts(use_case) if settings.snapshot.screen else None,
        history=read_history(store, use_case.name, settings.seed),
        suggest_group=suggest_group,
        say=say,
    )
    version_inputs = {"version": VERSION, "settings": settings.snapshot.model_dump(), "seed": settings.seed}
    inputs = creation.inputs()
    snapshot = _find_newest(store, creation.history, inputs, version_inputs)
    if snapshot is not None:
        return snapshot
    ledger_digest = creation.history.ledger.digest
    if ledger_digest is not None:
        inputs["ledger"] = ledger_digest
    return store.ensure(use_case.name, TRAINING_SNAPSHOT, creation.write, inputs=inputs, **version_inputs)


def _find_newest(
    store: Store, history: LedgerHistory, inputs: Mapping[str, Any], version_inputs: Mapping[str, Any]
) -> Manifest | None:
    """Return the newest snapshot if the one to be taken would have the same inputs and settings, or None. The
    ledger that the newest snapshot itself wrote does not count as another input.
    """
    if len(history.newest) != 1:
        return None
    (newest,) = history.newest
    ledger_inputs = {name: value for name, value in newest.inputs.items() if name == "ledger"}
    if newest.key != artifact_key(TRAINING_SNAPSHOT, inputs={**inputs, **ledger_inputs}, **version_inputs):
        return None
    return store.find(newest.case, newest.stage, newest.key)


@dataclass(frozen=True)
class _Creation:
    store: Store
    use_case: UseCase
    examples: Mapping[str, Manifest]
    usable: Mapping[str, Manifest]
    chunks: Mapping[str, Manifest]
    expected: Expected
    evaluation: screening.EvaluationTexts | None
    history: LedgerHistory
    suggest_group: Callable[[], str | None]
    say: Callable[[str], None]

    def inputs(self) -> dict[str, Any]:
        """Return the inputs of the snapshot, each identified by its content."""
        settings = self.use_case.settings.snapshot
        inputs: dict[str, Any] = {
            name: [content_of(self.usable[name]), content_of(self.chunks[name])]
            for name in sorted(self.usable)
        }
        if self.evaluation is not None:
            inputs["evaluation_texts"] = self.evaluation.digest
        if settings.replay is not None:
            inputs["replay"] = general.pin_files(settings.replay.path, self.use_case, "snapshot.replay")
        if settings.general is not None:
            inputs["general"] = general.pin_files(settings.general.path, self.use_case, "snapshot.general")
        return inputs

    def write(self, draft: Draft) -> Outcome:
        """Write the snapshot's tables and the data report."""
        settings = self.use_case.settings
        # What the roles of a batch's rows depend on.
        version = f"2 {VERSION} {SKETCHES_VERSION} {settings.snapshot.contained_share}"
        keys = {f"{name} {content_of(part)} {version}": name for name, part in sorted(self.usable.items())}
        with engine_of(self.use_case):
            batches = read_batches(
                self.store,
                self.use_case,
                self.usable,
                self.chunks,
                self.evaluation,
                read_roles(self.store, self.history.newest, keys),
                self.say,
            )
            frozen = freeze_batches(
                batches,
                settings.snapshot,
                settings.seed,
                task=task_of(settings.examples),
                ledger=self.history.ledger,
                id_field=settings.documents.id,
                say=self.say,
            )
        frozen.ledger.write(draft.path / FILE, self.history.keys)
        ends = np.cumsum([len(batches[name].rows) for name in keys.values()])
        parts: dict[str, Any] = dict(zip(keys, np.split(frozen.roles, ends, axis=1), strict=False))
        np.savez_compressed(draft.path / ROLES_FILE, **parts)
        pq.write_table(frozen.index, draft.path / "index.parquet", compression="zstd")
        pq.write_table(
            frozen.places.drop_columns(["position"]), draft.path / "places.parquet", compression="zstd"
        )
        general_set: Manifest | None = None
        if settings.snapshot.general is not None:
            general_set = general.draw_general(
                self.store, self.use_case, frozen.index["text_hash"].to_pylist()
            )
        plan: packing.Packing | None = None
        replay: Manifest | None = None
        files = ["index.parquet"]
        values = {
            "labels": frozen.labels,
            "chunks": [CHUNKS_VERSION, self.expected.settings],
            "tokenizer": self.expected.tokenizer,
        }
        if general_set is not None:
            values["general"] = general_set.content_digest
        if task_of(settings.examples).is_generative:
            plan, replay = self._pack(frozen, batches, general_set)
            pq.write_table(plan.to_table(), draft.path / "packing.parquet", compression="zstd")
            files.append("packing.parquet")
            values |= {"capacity": plan.capacity, "replay": replay and replay.content_digest}
        row_checks = [*frozen.checks, *checks.identity_outcomes(frozen, settings.examples)]
        # Who goes on with another artifact of this content must find the same gates open.
        values["gates"] = {check.name: check.passed for check in row_checks if check.severity == "error"}
        draft.identity = Identity(files=files, values=values)
        positions = frozen.places["position"].to_numpy()
        num_tokens = np.zeros(len(positions), np.int64)
        for name, numbers in by_batch(frozen.places):
            num_tokens[numbers] = read_rows(
                self.store.folder(self.chunks[name]) / CHUNKS_FILE, "num_tokens", positions[numbers]
            ).to_numpy()
        metadata = SnapshotMetadata(
            **frozen.metadata,
            **metadata_of(frozen.agreement),
            batches_left_out=sorted(set(self.examples) - set(self.usable)),
            parts={name: pin(self.usable[name], self.chunks[name]) for name in sorted(self.usable)},
            general=general_set and general_set.ref,
            num_general_tokens=general_set and GeneralMetadata.of(general_set).num_tokens,
            replay=replay and replay.ref,
            num_replay_rows=replay and ReplayMetadata.of(replay).num_rows,
            num_replay_tokens=replay and ReplayMetadata.of(replay).num_tokens,
            num_packed_rows=plan and plan.num_rows,
            packing_fill=plan and plan.fill,
            packing_capacity=plan and plan.capacity,
            packing_cuts_to_fill=plan and _cuts_to_fill(settings),
            **data_report.length_metadata(num_tokens, settings.chunks.max_tokens),
            num_evaluation_texts=None if self.evaluation is None else self.evaluation.num_texts,
        )
        outcomes = [
            *row_checks,
            frozen.order,
            archive_check(self.examples, self.usable),
        ]
        report = self._report_on_data(frozen, metadata, num_tokens, batches, outcomes)
        (draft.path / "report.md").write_text(report, encoding="utf-8")
        (draft.path / REPORT_PAGE).write_text(data_report.to_page(report), encoding="utf-8")
        return metadata.as_dict(), outcomes

    def _pack(
        self, frozen: Frozen, batches: Mapping[str, BatchRows], general_set: Manifest | None
    ) -> tuple[packing.Packing, Manifest | None]:
        """Plan the rows of training: chunks of the training split in the index's order, then those of the
        replayed documents.

        `measured`: the general set, whose texts are not replayed.
        """

        settings = self.use_case.settings
        is_trained = pc.equal(frozen.index["split"], "train")
        lengths = _lengths(frozen.places.filter(is_trained), self._files())
        replay = None
        if settings.snapshot.replay is not None:
            heldout_texts = _texts(frozen.places.filter(pc.invert(is_trained)), batches)
            evaluation_texts = self.evaluation.texts if self.evaluation else ()
            general_texts = {} if general_set is None else general.texts_by_hash(self.store, general_set)
            replay = general.draw_replay(
                self.store, self.use_case, int(lengths.sum()), heldout_texts, evaluation_texts, general_texts
            )
            lengths = np.concatenate([lengths, _replay_lengths(self.store, replay)])
        return packing.plan(
            lengths, settings.chunks.max_tokens, settings.seed, cut_to_fill=_cuts_to_fill(settings)
        ), replay

    def _files(self) -> dict[str, Path]:
        return {name: self.store.folder(self.chunks[name]) / CHUNKS_FILE for name in self.usable}

    def _report_on_data(
        self,
        frozen: Frozen,
        metadata: SnapshotMetadata,
        num_tokens: np.ndarray,
        batches: Mapping[str, BatchRows],
        outcomes: list[CheckOutcome],
    ) -> str:
        settings = self.use_case.settings
        folders = {name: self.store.folder(manifest) for name, manifest in self.usable.items()}
        outcomes = [*outcomes, checks.verdict_check(metadata, settings)]
        facts = data_report.gather(self.examples, self.chunks, folders, frozen, batches, outcomes)
        # Only of the first snapshot: it takes seconds, and the fields stay.
        if not self.history.newest and (suggestion := self.suggest_group()) is not None:
            facts.to_do.append(("group", suggestion))
        if splits := names.splits_of(path for batch in batches.values() for path in batch.files):
            facts.to_do.append(
                (
                    "splits",
                    names.mixed_splits(splits, frozen.places["source"].to_pylist(), settings.examples.group),
                )
            )
        return data_report.render(
            metadata,
            num_tokens,
            max_tokens=settings.chunks.max_tokens,
            max_chunks=settings.chunks.max_chunks,
            facts=facts,
            example=self._example(frozen, batches),
            case=self.use_case.name,
            source=settings.documents.path,
        )

    def _example(self, frozen: Frozen, batches: Mapping[str, BatchRows]) -> data_report.Example | None:
        """Return the first training row in the order of the texts' hashes: any, but always the same. Of the
        first conversations it is one with reasoning or tools, if there is one.
        """
        numbers = pc.indices_nonzero(pc.equal(frozen.index["split"], "train"))[:_EXAMPLES].to_numpy()
        if not len(numbers):
            return None
        has_messages = task_of(self.use_case.settings.examples).has_messages
        conversations = in_order(
            frozen.places.take(numbers),
            lambda batch, rows: read_rows(
                self.store.folder(self.usable[batch]) / EXAMPLES_FILE, "messages", rows
            ).to_pylist(),
        )
        number = numbers[
            np.argmax([any(turn.get("extras") for turn in turns or []) for turns in conversations])
        ]
        location = frozen.places.slice(number, 1)
        file = self._files()[location["batch"][0].as_py()]
        chunks, marks = (
            to_lists(read_rows(file, column, location["position"].to_numpy()))[0]
            for column in (CHUNKS_COLUMN, "marks")
        )
        tokenizer = load_tokenization(self.use_case).tokenizer
        tokens = [tokenizer.id_to_token(i) or "" for i in chunks[0]]
        [text] = _texts(location, batches)
        return data_report.Example(
            text=text,
            target=data_report.target_of(frozen.index.slice(number, 1).to_pylist()[0], text, has_messages),
            tokens=data_report.with_marks(tokens, marks[0]) if has_messages else tokens,
        )


def _texts(places: pa.Table, batches: Mapping[str, BatchRows]) -> list[str]:
    return in_order(places, lambda batch, rows: batches[batch].texts(rows).to_pylist())


def _lengths(places: pa.Table, files: Mapping[str, Path]) -> np.ndarray:
    """Return the number of tokens in each chunk of some rows, from the files with the chunks of batches."""
    lengths_of_rows = in_order(
        places, lambda batch, rows: chunk_lengths(read_rows(files[batch], CHUNKS_COLUMN, rows))
    )
    return np.array(list(chain.from_iterable(lengths_of_rows)), np.int64)


def _cuts_to_fill(settings: UseCaseSettings) -> bool:
    # In plain text one cut more costs nothing; an answer must not be parted from its question.
    return task_of(settings.examples).ends_texts


def pack_again(store: Store, snapshot: Manifest, index: pa.Table) -> packing.Packing:
    """Plan the rows of training for what is left of a snapshot.

    Args:
        store: where the batches' artifacts live.
        snapshot: the snapshot as it was, of a task with packed rows.
        index: the rows of `read_index` that are left.

    Raises:
        StoreError: a table of a batch, or what is replayed, is gone.
    """

    metadata = SnapshotMetadata.of(snapshot)
    assert metadata.packing_capacity is not None, "its training rows are packed"
    rows = find_rows(store, snapshot, index.filter(pc.equal(index["split"], "train")))
    lengths = _lengths(rows.places, rows.chunk_files)
    if metadata.replay is not None:
        lengths = np.concatenate([lengths, _replay_lengths(store, store.load(metadata.replay))])
    return packing.plan(
        lengths, metadata.packing_capacity, snapshot.seed, cut_to_fill=bool(metadata.packing_cuts_to_fill)
    )


def _replay_lengths(store: Store, replay: Manifest) -> np.ndarray:

    table = pq.read_table(store.folder(replay) / CHUNKS_FILE, columns=[CHUNKS_COLUMN])
    return np.array([*chain.from_iterable(chunk_lengths(table[CHUNKS_COLUMN]))], np.int64)
