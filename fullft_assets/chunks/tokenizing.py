"""The stage of chunks: the valid examples of a batch -> token ids, cut into chunks."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import AliasChoices, Field

from fullft_assets.artifacts import (
    CHUNKS_COLUMN,
    CHUNKS_FILE,
    EXAMPLES_FILE,
    LABELED_EXAMPLES,
    TOKENIZED_CHUNKS,
)
from fullft_assets.chunks import cutting
from fullft_assets.chunks.chat import Rendered
from fullft_assets.chunks.tokenization import Tokenization, load_tokenization, tokenizer_digest_of
from fullft_assets.documents.names import alias
from fullft_assets.errors import DataError
from fullft_assets.examples.validation import ExamplesMetadata
from fullft_assets.settings import UseCaseSettings
from fullft_assets.settings.use_case import UseCase
from fullft_assets.store import CheckOutcome, Draft, Manifest, Outcome, Store
from fullft_assets.store.checks import CheckSpec
from fullft_assets.store.metadata import Metadata
from fullft_assets.task import TASKS, Task, task_of


class ChunksMetadata(Metadata):
    """Metadata of `tokenized_chunks`: what was counted of a batch's rows."""

    batch: str
    num_rows: int = 0
    num_tokens: int = 0
    num_chunks: int = Field(0, validation_alias=AliasChoices("num_chunks", "num_windows"))
    num_rows_of_several_chunks: int = Field(
        0, validation_alias=AliasChoices("num_rows_of_several_chunks", "num_rows_of_several_windows")
    )
    num_rows_cut: int = 0
    num_tokens_cut_off: int = 0
    num_trained_tokens: int = 0
    num_rows_without_trained_tokens: int = 0
    num_rows_with_control_tokens: int = 0
    num_spans_without_tokens: int = 0
    longest_text_tokens: int = 0
    num_erased: int | None = None


VERSION = "7"
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

    The column of chunks has token ids with special tokens. `marks` are aligned with them: task sft: 1 =
    trained, 0 = not (tokens repeated from the chunk before are trained there); token_classification: 0 =
    outside, k + 1 = first token of the row's span k, -(k + 1) = later token of it; else null.
    """

    lists = pa.list_(pa.list_(pa.int32()))
    return pa.schema(
        [("id", pa.string()), ("num_tokens", pa.int32()), (CHUNKS_COLUMN, lists), ("marks", lists)]
    )


def tokenize(store: Store, use_case: UseCase, examples: Manifest) -> Manifest:
    """Tokenise a batch once and write its chunks.

    Raises:
        GateError: a check on the batch's examples is red.
    """
    examples.require_green(TOKENIZED_CHUNKS)
    settings = use_case.settings

    def write(draft: Draft) -> Outcome:
        task = settings.examples.task
        counts, unfit = _write(
            (store.folder(examples) / EXAMPLES_FILE), draft, load_tokenization(use_case), task
        )
        metadata = ChunksMetadata(batch=ExamplesMetadata.of(examples).batch, **counts)
        return metadata.as_dict(), checks(counts, unfit, task, settings.examples.max_quarantined_share)

    return store.ensure(
        use_case.name,
        TOKENIZED_CHUNKS,
        write,
        version=VERSION,
        settings=key_settings(settings),
        inputs={LABELED_EXAMPLES: examples.content_digest, "tokenizer": tokenizer_digest_of(use_case)},
        seed=settings.seed,
    )


def key_settings(settings: UseCaseSettings) -> dict[str, Any]:
    """Return the settings that shape the chunks; added tokens are in the tokenizer's digest."""
    shaping = settings.chunks.shaping()
    if task_of(settings.examples).has_messages:
        shaping |= {
            "train_on": settings.chunks.train_on,
            "max_untrained_share": settings.examples.max_quarantined_share,
        }
    return {**shaping, "task": settings.examples.task}


@dataclass(frozen=True)
class Expected:
    """What chunks made today would be made with; read once for many batches, since it reads the tokenizer's
    file.
    """

    settings: dict[str, Any]
    tokenizer: str

    @classmethod
    def of(cls, use_case: UseCase) -> Self:
        """Read today's settings and tokenizer."""
        return cls(key_settings(use_case.settings), tokenizer_digest_of(use_case))


def _write(path: Path, draft: Draft, tokenization: Tokenization, task: str) -> tuple[Counter[str], list[str]]:
    kind = TASKS.get(task)
    columns = ["id", "text", "source", "row"]
    columns += ["messages"] if kind.has_messages else []
    columns += ["spans"] if kind.target == "spans" else []
    counts = Counter[str]()
    unfit: list[str] = []
    longest = 0
    # Ids hardly repeat in a way that a dictionary of a whole page would catch, and building one costs more
    # than it saves.
    with pq.ParquetWriter(
        draft.path / CHUNKS_FILE,
        schema(),
        compression="zstd",
        use_dictionary=["id"],  # pyright: ignore[reportArgumentType]  # its stubs know no lists of columns
    ) as writer:
        for batch in pq.ParquetFile(path).iter_batches(ROWS_AT_A_TIME, columns=columns):
            chunked = chunk(batch, tokenization, task)
            writer.write_table(chunked.table)
            counts.update(chunked.counts)
            longest = max(longest, chunked.counts["longest_text_tokens"])
            unfit += chunked.unfit[: _SHOWN - len(unfit)]
    counts["longest_text_tokens"] = longest
    return counts, unfit


@dataclass(frozen=True)
class Chunked:
    """Examples' chunks (see `schema`), what was counted on the way (see `ChunksMetadata`), and the places
    (file:row) of the first rows without a trained token.
    """

    table: pa.Table
    counts: Counter[str]
    unfit: list[str]


def chunk(
    examples: pa.Table | pa.RecordBatch, tokenization: Tokenization, task: str = "classification"
) -> Chunked:
    """Tokenise examples.

    Args:
        examples: with `id` and `text`; for sft also `messages`, for token_classification `spans`; `source`
            and `row` to name rows by.
        tokenization: the tokenizer and chunk settings, loaded for this task.
        task: what the model learns.
    """

    texts = examples["text"].to_pylist()
    marks = None
    counts = Counter[str]()
    unfit: list[str] = []
    if TASKS.get(task).has_messages:
        rendered, refusals = _render(examples, tokenization)
        tokens, cuts = tokenization.read([text for text, _ in rendered], spans=True)
        trained_marks = cutting.train_spans(tokens, [spans for _, spans in rendered])
        num_trained = cutting.count_trained(trained_marks, tokens, cuts)
        counts["num_trained_tokens"] = int(num_trained.sum())
        untrained = np.flatnonzero(num_trained == 0)
        counts["num_rows_without_trained_tokens"] = len(untrained)
        unfit = [
            f"{alias(examples['source'][row].as_py())}:{examples['row'][row].as_py()}{refusals.get(row, '')}"
            for row in untrained[:_SHOWN].tolist()
        ]
        marks = cutting.to_arrow(*cutting.train_once(trained_marks, cuts), cuts)
    elif TASKS.get(task).target == "spans":
        tokens, cuts = tokenization.read(texts, spans=True)
        spans = [
            [(span["start"], span["end"]) for span in row or []] for row in examples["spans"].to_pylist()
        ]
        span_marks, counts["num_spans_without_tokens"] = cutting.locate_spans(tokens, texts, spans)
        zeros = [0] * len(tokenization.prefix), [0] * len(tokenization.suffix)
        marks = cutting.to_arrow(*cutting.gather(span_marks, cuts, *zeros), cuts)
    else:
        tokens, cuts = tokenization.read(texts)
    counts.update(_counts(tokens, cuts))
    counts["num_rows_with_control_tokens"] = sum(map(tokenization.holds_control_token, texts))
    cut = cutting.to_arrow(*cutting.gather(tokens.ids, cuts, tokenization.prefix, tokenization.suffix), cuts)
    columns = [
        pa.array(examples["id"].to_pylist(), pa.string()),
        pa.array(tokens.lengths(), pa.int32()),
        cut,
        pa.nulls(len(texts), cut.type) if marks is None else marks,
    ]
    return Chunked(pa.Table.from_arrays(columns, schema=schema()), counts, unfit)


def _counts(tokens: cutting.Encoded, cuts: cutting.Cuts) -> dict[str, int]:
    lengths = tokens.lengths()
    cut_off = tokens.bounds[1:] - cuts.covered()
    return {
        "num_rows": len(lengths),
        "num_tokens": int(lengths.sum()),
        "num_chunks": len(cuts.first),
        "num_rows_of_several_chunks": int((np.diff(cuts.bounds) > 1).sum()),
        "num_rows_cut": int((cut_off > 0).sum()),
        "num_tokens_cut_off": int(cut_off.sum()),
        "longest_text_tokens": int(lengths.max(initial=0)),
    }


def _render(
    examples: pa.Table | pa.RecordBatch, tokenization: Tokenization
) -> tuple[list[Rendered], dict[int, str]]:
    assert tokenization.chat is not None
    rendered: list[Rendered] = []
    refusals: dict[int, str] = {}
    for row, messages in enumerate(examples["messages"].to_pylist()):
        try:
            rendered.append(tokenization.chat.render_trained(messages, tokenization.settings.train_on))
        except DataError as error:
            rendered.append(("", []))
            refusals[row] = f" ({error})"
    return rendered, refusals


def check_specs(task: Task) -> tuple[CheckSpec, ...]:
    """Return the checks on a batch's chunks that the task has."""
    messages = (TRAINED_TOKENS,) if task.has_messages else ()
    return WHOLE, NO_CONTROL_TOKENS, *messages, *((SPANS_HAVE_TOKENS,) if task.target == "spans" else ())


def checks(
    counts: Mapping[str, int], unfit: Sequence[str], task: str, max_untrained_share: float
) -> list[CheckOutcome]:
    """Return the outcomes of the checks on a batch's chunks.

    Args:
        counts, unfit: see `Chunked`.
        task: what the model learns.
        max_untrained_share: share of conversations without a trained token above which the batch is held
            back.
    """
    kind = TASKS.get(task)
    cut = counts["num_rows_cut"]
    outcomes = [
        _warning(
            WHOLE,
            {"num_rows_cut": cut, "num_tokens_cut_off": counts["num_tokens_cut_off"]},
            f"{cut:,} texts end at chunks.max_chunks; {counts['num_tokens_cut_off']:,} tokens are not read; "
            "raise chunks.max_chunks or chunks.max_tokens",
        )
    ]
    if kind.has_messages:
        outcomes.append(_has_trained_tokens(counts, unfit, max_untrained_share))
    if kind.target == "spans":
        num_spans = counts["num_spans_without_tokens"]
        outcomes.append(
            _warning(
                SPANS_HAVE_TOKENS,
                {"num_spans_without_tokens": num_spans},
                f"{num_spans:,} labelled spans have no token of their own (white space, or inside another"
                " span); they are not learned",
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
    is_clean = not any(metadata.values())
    return CheckOutcome(
        name=spec.name,
        passed=is_clean,
        severity="warn",
        description="" if is_clean else description,
        metadata=metadata,
    )


def _has_trained_tokens(
    counts: Mapping[str, int], unfit: Sequence[str], max_untrained_share: float
) -> CheckOutcome:
    count = counts["num_rows_without_trained_tokens"]
    num_rows = counts["num_rows"]
    is_bounded = count < num_rows and count <= max_untrained_share * num_rows
    fate = "the snapshot sets them aside" if is_bounded else "the batch is held back"
    more = f" and {count - len(unfit):,} more" if count > len(unfit) else ""
    return CheckOutcome(
        name=TRAINED_TOKENS.name,
        passed=not count,
        severity="warn" if is_bounded else "error",
        description=(
            f"{count:,} of {num_rows:,} rows have no trained token: {', '.join(unfit)}{more}; {fate}."
            " Give them an answer by the assistant, raise chunks.max_chunks, or look at chunks.train_on"
            if count
            else ""
        ),
        metadata={
            "num_rows_without_trained_tokens": count,
            "num_trained_tokens": counts["num_trained_tokens"],
        },
    )


def rows_without_trained_tokens(folder: Path) -> np.ndarray:
    """Return the positions of a batch's conversations of which no token is trained.

    Args:
        folder: of the batch's `tokenized_chunks`.
    """

    is_untrained = [np.zeros(0, bool)]
    with pq.ParquetFile(folder / CHUNKS_FILE) as file:
        for batch in file.iter_batches(ROWS_AT_A_TIME, columns=["marks"]):
            chunks = batch["marks"].flatten()
            of_chunk = pc.list_parent_indices(chunks).filter(pc.equal(chunks.flatten(), 1))
            trained_rows = pc.list_parent_indices(batch["marks"]).take(of_chunk)
            is_untrained.append(~np.isin(np.arange(len(batch)), trained_rows.to_numpy()))
    return np.flatnonzero(np.concatenate(is_untrained))
