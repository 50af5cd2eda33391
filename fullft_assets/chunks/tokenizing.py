"""The stages of chunks: tokenise the valid examples of a batch, and audit the tokenizer over all batches."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fullft_assets.base_model import resolve_base_model
from fullft_assets.chunks import windows
from fullft_assets.chunks.audit import VERSION as AUDIT_VERSION
from fullft_assets.chunks.audit import (
    ChunkCounts,
    ChunksMetadata,
    WordCounts,
    draw_sample,
    folds_case,
    general_words_key,
    judge,
)
from fullft_assets.chunks.chat import Rendered
from fullft_assets.chunks.tokenization import Tokenization, tokenizer_digest
from fullft_assets.chunks.windows import Cuts, Encoded
from fullft_assets.documents.aliases import alias
from fullft_assets.errors import DataError
from fullft_assets.examples.validation import ExamplesMetadata
from fullft_assets.settings import ChunksSettings, UseCaseSettings
from fullft_assets.store import CheckOutcome, Draft, Manifest, Outcome, Store
from fullft_assets.store.checks import CheckSpec
from fullft_assets.task import TASKS, Task, task_of

if TYPE_CHECKING:
    from fullft_assets.settings.use_case import UseCase


VERSION = "5"
CHUNKS, WORDS = "chunks.parquet", "words.parquet"
#: Rows that are tokenised and written at a time (a row group of the file).
ROWS_AT_A_TIME = 4_096
WHOLE = CheckSpec("texts_are_kept_whole", "No token is cut off a text.")
NO_CONTROL_TOKENS = CheckSpec(
    "contents_hold_no_control_tokens", "No text and no message contains the model's special tokens."
)
TRAINED_TOKENS = CheckSpec(
    "rows_have_trained_tokens",
    "Each conversation has a token that is trained; the snapshot sets the others aside.",
    blocking=True,
)
SPANS_HAVE_TOKENS = CheckSpec("spans_have_tokens", "Each labelled span has a token of its own.")
#: Locations named in a red check.
_SHOWN = 5


def schema() -> pa.Schema:
    """Return the columns of `chunks.parquet`.

    `windows` are token ids with special tokens. `marks` are aligned with them: task sft: 1 = trained, 0 = not
    (tokens repeated from the window before are trained there); token_classification: 0 = outside, k + 1 =
    first token of the row's span k, -(k + 1) = later token of it; else null.
    """

    lists = pa.list_(pa.list_(pa.int32()))
    return pa.schema([("id", pa.string()), ("num_tokens", pa.int32()), ("windows", lists), ("marks", lists)])


def load_tokenization(use_case: UseCase) -> Tokenization:
    """Return the base model's tokenizer with the use case's settings; a process that needs it again and again
    reads it once.
    """
    settings = use_case.settings
    folder = resolve_base_model(settings.base_model, use_case.project_root)
    return _load(folder, settings.chunks.model_dump_json(), settings.examples.task, _digest(use_case))


@lru_cache(maxsize=4)
def _load(folder: Path, chunks: str, task: str, made_of: str) -> Tokenization:
    # The digest is there to notice a tokenizer whose files have changed.
    return Tokenization.load(folder, ChunksSettings.model_validate_json(chunks), task)


def tokenize(store: Store, use_case: UseCase, examples: Manifest) -> Manifest:
    """Tokenise a batch once and write its windows.

    Raises:
        GateError: a check on the batch's examples is red.
    """
    examples.require_green("tokenized_chunks")
    settings = use_case.settings

    def write(draft: Draft) -> Outcome:
        totals = _write(
            store.folder(examples) / "examples.parquet",
            draft,
            load_tokenization(use_case),
            settings.examples.task,
        )
        metadata = ChunksMetadata(batch=ExamplesMetadata.of(examples).batch, **totals.metadata)
        return metadata.as_dict(), checks(
            totals, settings.examples.task, settings.examples.max_quarantined_share
        )

    return store.ensure(
        use_case.name,
        "tokenized_chunks",
        write,
        version=VERSION,
        settings=key_settings(settings),
        inputs={"labeled_examples": examples.content_digest, "tokenizer": _digest(use_case)},
        seed=settings.seed,
    )


def key_settings(settings: UseCaseSettings) -> dict[str, Any]:
    """Return the settings that shape the chunks; added tokens are in the tokenizer's digest."""
    shaping = settings.chunks.model_dump(include={"max_tokens", "stride", "max_windows", "boundaries"})
    if task_of(settings.examples).has_messages:
        shaping |= {
            "train_on": settings.chunks.train_on,
            "max_untrained_share": settings.examples.max_quarantined_share,
        }
    return {**shaping, "task": settings.examples.task}


def _digest(use_case: UseCase) -> str:
    settings = use_case.settings
    return tokenizer_digest(
        resolve_base_model(settings.base_model, use_case.project_root),
        settings.chunks,
        settings.examples.task,
    )


@dataclass(frozen=True)
class Expected:
    """What chunks made today would be made with; read once for many batches, since it reads the tokenizer's
    file.
    """

    settings: dict[str, Any]
    tokenizer: str

    @classmethod
    def of(cls, use_case: UseCase) -> Expected:
        """Read today's settings and tokenizer."""
        return cls(key_settings(use_case.settings), _digest(use_case))

    def matches(self, manifest: Manifest | None, examples: Manifest) -> bool:
        """Return whether a batch's chunks are what `tokenize` would make of its examples today."""
        if manifest is None or (manifest.version, manifest.settings) != (VERSION, self.settings):
            return False
        return manifest.inputs == {"labeled_examples": examples.content_digest, "tokenizer": self.tokenizer}


def _write(path: Any, draft: Draft, tokenization: Tokenization, task: str) -> Totals:

    file = pq.ParquetFile(path)
    sampled = draw_sample(pq.read_table(path, columns=["text_hash"])["text_hash"])
    words = WordCounts(folds_case(tokenization.tokenizer))
    columns = [
        "id",
        "text",
        "source",
        "row",
        *(["messages"] if TASKS.get(task).has_messages else []),
        *(["spans"] if TASKS.get(task).target == "spans" else []),
    ]
    counts = Counter[str]()
    unfit = []
    done = 0
    # Ids hardly repeat in a way that a dictionary of a whole page would catch, and building one costs more
    # than it saves.
    with pq.ParquetWriter(
        draft.path / CHUNKS,
        schema(),
        compression="zstd",
        use_dictionary=["id"],  # pyright: ignore[reportArgumentType]  # its stubs know no lists of columns
    ) as writer:
        for batch in file.iter_batches(ROWS_AT_A_TIME, columns=columns):
            chunked = chunk(batch, tokenization, task)
            writer.write_table(chunked.table)
            _count_words(words, batch, chunked, sampled[done : done + len(batch)], tokenization, task)
            counts.update(
                {name: count for name, count in chunked.metadata.items() if name != "longest_text_tokens"}
            )
            counts["longest_text_tokens"] = max(
                counts["longest_text_tokens"], chunked.metadata["longest_text_tokens"]
            )
            unfit += chunked.unfit[: _SHOWN - len(unfit)]
            done += len(batch)
    pq.write_table(words.table(), draft.path / WORDS)
    return Totals({name: counts[name] for name in COUNTS} | words.metadata(), unfit)


def _count_words(
    words: WordCounts,
    examples: pa.RecordBatch,
    chunked: Chunked,
    sampled: np.ndarray,
    tokenization: Tokenization,
    task: str,
) -> None:
    texts = examples["text"].filter(sampled).to_pylist()
    if TASKS.get(task).has_messages:
        # A conversation's tokens include the template's, which are no words.
        num_tokens = windows.encode(tokenization.tokenizer, texts).bounds[-1]
    else:
        num_tokens = chunked.table["num_tokens"].to_numpy()[sampled].sum()
    words.count(texts, int(num_tokens))


#: What is counted of a batch's rows.
COUNTS = tuple(ChunkCounts.model_fields)


@dataclass(frozen=True)
class Totals:
    """What was counted of a batch, and the first places (file:row) of rows without a trained token."""

    metadata: dict[str, Any]
    unfit: list[str]


@dataclass(frozen=True)
class Chunked:
    """Examples' windows (see `schema`), what was counted on the way, and the places (file:row) of the first
    rows without a trained token.
    """

    table: pa.Table
    metadata: dict[str, int]
    unfit: list[str]


def chunk(
    examples: pa.Table | pa.RecordBatch, tokenization: Tokenization, task: str = "classification"
) -> Chunked:
    """Tokenise examples.

    Args:
        examples: with `id` and `text`; for sft also `messages`, for token_classification `spans`; `source`
            and `row` to name rows by.
        tokenization: the tokenizer and window settings, loaded for this task.
        task: what the model learns.
    """

    texts = examples["text"].to_pylist()
    marks = None
    counts = Counter[str]()
    unfit: list[str] = []
    if TASKS.get(task).has_messages:
        rendered, refused = _render(examples, tokenization)
        encoded, cuts = tokenization.read([conversation.text for conversation in rendered], spans=True)
        trained = windows.train_spans(encoded, [conversation.trained for conversation in rendered])
        num_trained = windows.count_trained(trained, encoded, cuts)
        counts["num_trained_tokens"] = int(num_trained.sum())
        untrained = np.flatnonzero(num_trained == 0)
        counts["num_rows_without_trained_tokens"] = len(untrained)
        unfit = [
            f"{alias(examples['source'][row].as_py())}:{examples['row'][row].as_py()}{refused.get(row, '')}"
            for row in untrained[:_SHOWN].tolist()
        ]
        marks = windows.to_arrow(*windows.train_once(trained, cuts), cuts)
    elif TASKS.get(task).target == "spans":
        encoded, cuts = tokenization.read(texts, spans=True)
        spans = [
            [(span["start"], span["end"]) for span in row or []] for row in examples["spans"].to_pylist()
        ]
        span_marks, counts["num_spans_without_tokens"] = windows.locate_spans(encoded, texts, spans)
        zeros = [0] * len(tokenization.prefix), [0] * len(tokenization.suffix)
        marks = windows.to_arrow(*windows.gather(span_marks, cuts, *zeros), cuts)
    else:
        encoded, cuts = tokenization.read(texts)
    counts.update(_counts(encoded, cuts, tokenization))
    counts["num_rows_with_control_tokens"] = sum(map(tokenization.holds_control_token, texts))
    cut = windows.to_arrow(*windows.gather(encoded.ids, cuts, tokenization.prefix, tokenization.suffix), cuts)
    columns = [
        pa.array(examples["id"].to_pylist(), pa.string()),
        pa.array(encoded.lengths(), pa.int32()),
        cut,
        pa.nulls(len(texts), cut.type) if marks is None else marks,
    ]
    return Chunked(
        pa.Table.from_arrays(columns, schema=schema()), {name: counts[name] for name in COUNTS}, unfit
    )


def _counts(encoded: Encoded, cuts: Cuts, tokenization: Tokenization) -> dict[str, int]:
    lengths = encoded.lengths()
    cut_off = encoded.bounds[1:] - cuts.covered()
    unknown = tokenization.unknown_id
    return {
        "num_rows": len(lengths),
        "num_tokens": int(lengths.sum()),
        "num_windows": len(cuts.first),
        "num_unknown_tokens": 0 if unknown is None else int((encoded.ids == unknown).sum()),
        "num_byte_tokens": int(tokenization.byte_tokens[encoded.ids].sum()),
        "num_rows_of_several_windows": int((np.diff(cuts.bounds) > 1).sum()),
        "num_rows_cut": int((cut_off > 0).sum()),
        "num_tokens_cut_off": int(cut_off.sum()),
        "longest_text_tokens": int(lengths.max(initial=0)),
    }


def _render(
    examples: pa.Table | pa.RecordBatch, tokenization: Tokenization
) -> tuple[list[Rendered], dict[int, str]]:
    assert tokenization.chat is not None
    rendered, refused = [], {}
    for row, messages in enumerate(examples["messages"].to_pylist()):
        try:
            rendered.append(tokenization.chat.render_trained(messages, tokenization.settings.train_on))
        except DataError as error:
            rendered.append(Rendered("", []))
            refused[row] = f" ({error})"
    return rendered, refused


def check_specs(task: Task) -> tuple[CheckSpec, ...]:
    """Return the checks on a batch's chunks that the task has."""
    messages = (TRAINED_TOKENS,) if task.has_messages else ()
    spans = (SPANS_HAVE_TOKENS,) if task.target == "spans" else ()
    return WHOLE, NO_CONTROL_TOKENS, *messages, *spans


def checks(totals: Totals, task: str, max_untrained_share: float) -> list[CheckOutcome]:
    """Return the outcomes of the checks on a batch's chunks.

    Args:
        totals: what was counted.
        task: what the model learns.
        max_untrained_share: share of conversations without a trained token above which the batch is held
            back.
    """
    kind, counts = TASKS.get(task), totals.metadata
    cut = counts["num_rows_cut"]
    outcomes = [
        _warning(
            WHOLE,
            {"num_rows_cut": cut, "num_tokens_cut_off": counts["num_tokens_cut_off"]},
            f"{cut:,} texts end at chunks.max_windows; {counts['num_tokens_cut_off']:,} tokens are not read; "
            "raise chunks.max_windows or chunks.max_tokens",
        )
    ]
    if kind.has_messages:
        outcomes.append(_has_trained_tokens(totals, max_untrained_share))
    if kind.target == "spans":
        lost = counts["num_spans_without_tokens"]
        outcomes.append(
            _warning(
                SPANS_HAVE_TOKENS,
                {"num_spans_without_tokens": lost},
                f"{lost:,} labelled spans have no token of their own (white space, or inside another span);"
                " they are not learned",
            )
        )
    controls = counts["num_rows_with_control_tokens"]
    read_as = "turns that nobody wrote" if kind.has_messages else "ends and marks that the text does not have"
    outcomes.append(
        _warning(
            NO_CONTROL_TOKENS,
            {"num_rows_with_control_tokens": controls},
            f"{controls:,} rows contain special tokens of the model (such as its end of a turn) in their"
            f" text; the model reads them as {read_as}; remove them in the source",
        )
    )
    return outcomes


def _warning(spec: CheckSpec, metadata: dict[str, int], description: str) -> CheckOutcome:
    """Return a check that is red where one of the counts in its metadata is not 0."""
    passed = not any(metadata.values())
    return CheckOutcome(
        name=spec.name,
        passed=passed,
        severity="warn",
        description="" if passed else description,
        metadata=metadata,
    )


def _has_trained_tokens(totals: Totals, max_untrained_share: float) -> CheckOutcome:
    count, num_rows = totals.metadata["num_rows_without_trained_tokens"], totals.metadata["num_rows"]
    is_bounded = count < num_rows and count <= max_untrained_share * num_rows
    fate = "the snapshot sets them aside" if is_bounded else "the batch is held back"
    more = f" and {count - len(totals.unfit):,} more" if count > len(totals.unfit) else ""
    return CheckOutcome(
        name=TRAINED_TOKENS.name,
        passed=not count,
        severity="warn" if is_bounded else "error",
        description=(
            f"{count:,} of {num_rows:,} rows have no trained token: {', '.join(totals.unfit)}{more}; {fate}."
            " Give them an answer by the assistant, raise chunks.max_windows, or look at chunks.train_on"
            if count
            else ""
        ),
        metadata={
            "num_rows_without_trained_tokens": count,
            "num_trained_tokens": totals.metadata["num_trained_tokens"],
        },
    )


def rows_without_trained_tokens(folder: Path) -> np.ndarray:
    """Return the positions of a batch's conversations of which no token is trained.

    Args:
        folder: of the batch's `tokenized_chunks`.
    """

    rows, done = [np.zeros(0, np.int64)], 0
    with pq.ParquetFile(folder / CHUNKS) as file:
        for batch in file.iter_batches(ROWS_AT_A_TIME, columns=["marks"]):
            windows = batch["marks"].flatten()
            of_window = pc.list_parent_indices(windows).filter(pc.equal(windows.flatten(), 1))
            trained = pc.list_parent_indices(batch["marks"]).take(of_window)
            rows.append(np.setdiff1d(np.arange(len(batch)), trained.to_numpy()) + done)
            done += len(batch)
    return np.concatenate(rows)


def audit_tokenizer(store: Store, use_case: UseCase, batches: Mapping[str, Manifest]) -> Manifest:
    """Audit the tokenizer over all batches and write the terms, costliest first, and a proposal of tokens to
    add.

    Raises:
        DataError: no batch was tokenised yet.
    """

    if not batches:
        raise DataError(f"{use_case.name}: no batch is tokenised yet; run {use_case.name}_ingest first")
    settings = use_case.settings
    languages = settings.examples.languages or []

    def write(draft: Draft) -> Outcome:
        words = (pq.read_table(store.folder(batch) / WORDS) for batch in batches.values())
        counts = [ChunksMetadata.of(batch).as_dict() for batch in batches.values()]
        audit = judge(counts, words, load_tokenization(use_case), languages)
        (draft.path / "terms.json").write_text(
            json.dumps(audit.terms, indent=1, ensure_ascii=False), encoding="utf-8"
        )
        (draft.path / "proposal.yaml").write_text(audit.proposal_yaml(), encoding="utf-8")
        return audit.metadata.as_dict(), audit.checks

    return store.ensure(
        use_case.name,
        "tokenizer_audit",
        write,
        version=AUDIT_VERSION,
        settings=general_words_key(languages),
        inputs={
            "tokenizer": _digest(use_case),
            "chunks": sorted(batch.content_digest for batch in batches.values()),
        },
        seed=settings.seed,
    )
