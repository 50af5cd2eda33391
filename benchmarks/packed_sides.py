"""The sides of `packed_training`: our training, and the alternatives to it, over the same documents.

One side by hand: `python -m benchmarks.packed_sides SIDE MODEL_FOLDER cpu`, then a line `go` for each step.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.turns import Turns

if TYPE_CHECKING:
    from fullft_assets.snapshot import Training

#: Rows of a padded pass: Trainer's default.
NUM_PADDED_ROWS = 8
_SEED = 35


@dataclass(frozen=True)
class StepSize:
    """The size of an optimizer step.

    Attributes:
        capacity: tokens of a packed row, and of the longest document.
        num_rows: of a packed pass; a step is one.
        num_tokens: useful ones of a step; its rows have room for a few more.
        median_tokens: of a document.
    """

    capacity: int
    num_rows: int
    num_tokens: int
    median_tokens: int = 120


SCALES = {"cpu": StepSize(512, 4, 2_030), "gpu": StepSize(2_048, 8, 16_260, 400)}


def documents(model: Path, scale: StepSize) -> list[list[int]]:
    """Return token ids of documents as long as those of instruction data are: lognormal, on a CPU with a
    median of 120 tokens.

    There, padded to the longest of eight, 57.7% of a batch is padding; of many thousands drawn so it is
    57.9%. The text is that of the licence rules of the sample.
    """
    from tokenizers import Tokenizer

    from fullft_assets.demos import licences

    generator = np.random.default_rng(_SEED)
    lengths: list[int] = []
    while (missing := scale.num_tokens - sum(lengths)) > 0:
        lengths.append(
            min(
                missing,
                int(np.clip(generator.lognormal(np.log(scale.median_tokens), 0.9), 8, scale.capacity)),
            )
        )
    tokenizer, stream = Tokenizer.from_file(str(model / "tokenizer.json")), []
    for rule in licences.rules():
        stream += tokenizer.encode(rule["text"]).ids
        if len(stream) >= scale.num_tokens:
            break
    starts = np.cumsum([0, *lengths])
    return [stream[begin:end] for begin, end in zip(starts, starts[1:], strict=False)]


def packed(chunks: list[list[int]], scale: StepSize) -> Training:
    """Return the documents as planned rows."""
    from fullft_assets.snapshot import Training, packing

    plan = packing.plan(np.array([len(chunk) for chunk in chunks]), scale.capacity, _SEED)
    assert plan.num_rows == scale.num_rows, plan.num_rows
    return Training(chunks, None, plan)


def _load(model: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(str(model), dtype=torch.float32).train()


def _arguments(folder: str, **more: Any) -> dict[str, Any]:
    import torch

    from fullft_assets.models import precision

    return {
        "output_dir": folder,
        "num_train_epochs": 1_000,
        "learning_rate": 1e-5,
        "optim": "adamw_torch_fused",
        "max_grad_norm": 1.0,
        "bf16": precision.resolve("auto") == "bf16",
        "use_cpu": not torch.cuda.is_available(),
        "dataloader_pin_memory": torch.cuda.is_available(),
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        **more,
    }


def with_ours(model: Path, folder: str, turns: Turns, scale: StepSize) -> None:
    """Train as the workload does."""
    from fullft_assets.progress import Progress
    from fullft_assets.settings import TrainingSettings
    from fullft_assets.snapshot import Split
    from fullft_assets.tasks.language.recipe import NextTokenRecipe
    from fullft_assets.training.finetuning import fine_tune

    chunks = documents(model, scale)
    nothing_scored = Split(["a"], [""], np.zeros(1), ["a"], [chunks[:1]])
    settings = TrainingSettings(
        epochs=1_000, batch_size=scale.num_rows, micro_batch_size=scale.num_rows, learning_rate=1e-5
    )
    about = {"num_tokens": scale.num_tokens, "about": f"{scale.num_rows} packed rows of {scale.capacity}"}
    fine_tune(
        NextTokenRecipe(model, packed(chunks, scale), nothing_scored),
        settings,
        _SEED,
        Path(folder),
        Progress(silent=True),
        evaluate_at=(),
        resumable=False,
        watch=lambda moment, loop: turns.step_done(about) if moment == "step" else None,
    )


def with_padding(model: Path, folder: str, turns: Turns, scale: StepSize) -> None:
    """Train with Trainer as its examples do."""
    from datasets import Dataset
    from transformers import AutoTokenizer, DataCollatorForLanguageModeling, Trainer, TrainingArguments

    chunks = documents(model, scale)
    passes = {
        "per_device_train_batch_size": NUM_PADDED_ROWS,
        "gradient_accumulation_steps": -(-len(chunks) // NUM_PADDED_ROWS),
    }
    trainer = Trainer(
        model=_load(model),
        args=TrainingArguments(**_arguments(folder, **passes)),
        train_dataset=Dataset.from_dict(
            {"input_ids": chunks, "attention_mask": [[1] * len(chunk) for chunk in chunks]}
        ),
        data_collator=DataCollatorForLanguageModeling(AutoTokenizer.from_pretrained(str(model)), mlm=False),
        callbacks=[
            turns.callback(
                lambda: {
                    "num_tokens": scale.num_tokens,
                    "about": f"{len(chunks)} rows, {_padding(chunks):.0%} padding",
                }
            )
        ],
    )
    trainer.train()


def _padding(chunks: list[list[int]]) -> float:
    """Return the share of padding that shuffled passes hold in the mean."""
    generator, sizes = np.random.default_rng(0), np.array([len(chunk) for chunk in chunks])
    spent = 0
    for _ in range(1_000):
        order = sizes[generator.permutation(len(sizes))]
        spent += sum(
            int(order[i : i + NUM_PADDED_ROWS].max()) * len(order[i : i + NUM_PADDED_ROWS])
            for i in range(0, len(order), NUM_PADDED_ROWS)
        )
    return 1 - 1_000 * int(sizes.sum()) / spent


def with_trl(
    model: Path, folder: str, turns: Turns, scale: StepSize, *, rows_a_pass: int | None = None
) -> None:
    """Train with TRL, its rows as full as ours."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    rows_a_pass = rows_a_pass or scale.num_rows
    passes = {
        "per_device_train_batch_size": rows_a_pass,
        "gradient_accumulation_steps": scale.num_rows // rows_a_pass,
    }
    packing = {"packing": True, "packing_strategy": "bfd_split", "max_length": scale.capacity}
    chosen = _arguments(folder, gradient_checkpointing=False, **passes, **packing)
    trainer = SFTTrainer(
        model=_load(model),
        args=SFTConfig(**chosen),
        train_dataset=Dataset.from_dict({"input_ids": documents(model, scale)}),
        processing_class=AutoTokenizer.from_pretrained(str(model)),
        callbacks=[turns.callback(lambda: about)],
    )
    packed_rows: Any = trainer.train_dataset
    rows = [sum(lengths) for lengths in packed_rows["seq_lengths"]]
    assert (len(rows), sum(rows)) == (scale.num_rows, scale.num_tokens), rows
    about = {
        "num_tokens": scale.num_tokens,
        "about": f"{len(rows)} packed rows, of which it feeds {rows_a_pass} as one",
    }
    trainer.train()


def with_bare_loop(
    model: Path, folder: str, turns: Turns, scale: StepSize, *, same_loss: bool = False
) -> None:
    """Train with the least code."""
    import torch

    from fullft_assets.models import precision
    from fullft_assets.models.token_loss import IGNORED, TokenLoss
    from fullft_assets.training import feed

    network = _load(model)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-5, weight_decay=0.01, fused=True)
    pieces = feed.Pieces(packed(documents(model, scale), scale))
    batches = feed.packed(pieces, scale.num_rows, 1_000, _SEED, 0).batches()
    first = next(feed.packed(pieces, 1, 1, _SEED, 0).batches())
    loss_of = TokenLoss(network, feed.first_tokens(first, scale.capacity))
    chosen = precision.resolve("auto")
    for batch in batches:
        with precision.autocast(chosen):
            if same_loss:
                labels = batch.pop("labels")
                loss = loss_of.total(network, batch, labels) / (labels != IGNORED).sum()
            else:
                names = ("input_ids", "position_ids", "labels")
                loss = network(**{name: batch[name] for name in names}, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        turns.step_done(
            {"num_tokens": scale.num_tokens, "about": f"{scale.num_rows} packed rows of {scale.capacity}"}
        )


SIDES: dict[str, Callable[[Path, str, Turns, StepSize], None]] = {
    "ours": with_ours,
    "padded": with_padding,
    "trl": with_trl,
    "trl_row_by_row": lambda model, folder, turns, scale: with_trl(
        model, folder, turns, scale, rows_a_pass=1
    ),
    "bare": with_bare_loop,
    "bare_same_loss": lambda model, folder, turns, scale: with_bare_loop(
        model, folder, turns, scale, same_loss=True
    ),
}


def _main(side: str, model: str, scale: str) -> None:
    turns = Turns()
    with tempfile.TemporaryDirectory(prefix="fullft-bench-") as folder:
        SIDES[side](Path(model), folder, turns, SCALES[scale])


if __name__ == "__main__":
    _main(*sys.argv[1:])
