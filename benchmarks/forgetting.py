"""What a language model forgets of its old texts while it learns new ones: plain fine-tuning against ways to
keep what it knew.

Old: documentation in the modules of Python's library and of numpy; new: licence texts. A Llama of 0.4 million
    parameters,
with a tokenizer of the old texts, is trained on the old ones for a minute or two, then fine-tuned on the new
ones by the platform's own engine, by each recipe, three times: seed by seed other rows are drawn, and in
another order. Forgotten is the rise of the loss on old texts that neither training saw; learned is the fall
of the loss on licences of other families.

One seed by hand: `python -m benchmarks.forgetting MODEL_FOLDER SEED`.
"""

from __future__ import annotations

import ast
import json
import os
import random
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.table import Goal, Row

REPOSITORY = Path(__file__).parent.parent
SEEDS = (1, 2, 3)
CAPACITY = 256
VOCABULARY = 2_048
_OLD_PACKAGES = ("numpy",)
_OLD_CHARACTERS = 1_500_000
_DOCUMENT_CHARACTERS = 2_000
_NUM_NEW, _NUM_NEW_HELD_OUT, _NUM_OLD_HELD_OUT = 100, 32, 32
_MOST_RISE, _LEAST_GAIN = 0.35, 0.95
_PRETRAINING = {
    "epochs": 2.0,
    "batch_size": 8,
    "micro_batch_size": 8,
    "learning_rate": 3e-3,
    "scheduler": "cosine",
}
_FINE_TUNING = {"epochs": 4.0, "batch_size": 8, "micro_batch_size": 8, "learning_rate": 1e-3}


@dataclass(frozen=True)
class Way:
    """How to fine-tune: the share of replayed tokens and settings of training."""

    replay: float = 0.0
    training: dict[str, Any] = field(default_factory=dict)


WAYS = {
    "plain": Way(),
    "replay": Way(0.125),
    "distillation on replay": Way(0.125, {"distillation": {"weight": 1.0}}),
    "EWC": Way(0.0, {"ewc": 0.01}),
    "WiSE-FT": Way(0.0, {"wise_ft": [0.7]}),
}


@dataclass(frozen=True)
class ForgettingRow(Row):
    """A row in nats a token; its ratio is the largest of all seeds."""

    ratios: Sequence[float] = ()

    @property
    def ratio(self) -> float:
        """Rise of the best recipe over plain's."""
        return max(self.ratios)

    def cells(self) -> tuple[str, ...]:
        """See `Row`."""
        found = list(super().cells())
        found[1], found[3] = f"{self.ours:+.3f} nats", f"{self.theirs:+.3f} nats"
        return tuple(found)

    def as_json(self) -> dict[str, Any]:
        """See `Row`."""
        found = super().as_json()
        return {
            name.replace("_seconds", "_nats"): value for name, value in found.items() if "cpu" not in name
        }


def measure_forgetting(logs: Path, seeds: Sequence[int] = SEEDS) -> Row:
    """Pretrain once and fine-tune by each way and seed; two seeds at a time."""
    with tempfile.TemporaryDirectory(prefix="fullft-forgetting-") as scratch:
        folder = Path(scratch)
        [pretrained] = _run([[str(folder), "pretrain"]], logs)
        runs = [
            run
            for start in range(0, len(seeds), 2)
            for run in _run([[str(folder), str(seed)] for seed in seeds[start : start + 2]], logs)
        ]
    return row_of(runs, pretrained)


def row_of(runs: Sequence[dict[str, dict[str, float]]], pretrained: dict[str, float]) -> Row:
    """Make the row: the recipe that forgets least among those that keep enough of plain's gain with every
    seed.

    Args:
        runs: of each seed, by way: `rise` of the old loss and `gain`, the fall of the new.
        pretrained: losses before.
    """
    rises = {way: [run[way]["rise"] / run["plain"]["rise"] for run in runs] for way in runs[0]}
    gains = {way: [run[way]["gain"] / run["plain"]["gain"] for run in runs] for way in runs[0]}
    others = [way for way in rises if way != "plain"]
    # Where none keeps enough, the one that keeps most is shown, and the goal is not met.
    good = [way for way in others if min(gains[way]) >= _LEAST_GAIN]
    best = (
        min(good, key=lambda way: max(rises[way])) if good else max(others, key=lambda way: min(gains[way]))
    )
    notes = [
        f"loss before: {pretrained['old']:.3f} on old texts, {pretrained['new']:.3f} on licences; {len(runs)}"
        f" seeds; goal also: at least {_LEAST_GAIN:.0%} of plain's gain with every seed"
    ]
    for way in rises:
        rise, gain = (fmean(run[way][what] for run in runs) for what in ("rise", "gain"))
        notes.append(
            f"{way}: rise {rise:+.3f} ({min(rises[way]):.0%} to {max(rises[way]):.0%} of plain's), gain"
            f" {gain:.3f} ({min(gains[way]):.1%} to {max(gains[way]):.1%})"
        )
    return ForgettingRow(
        name="forgetting",
        ours=fmean(run[best]["rise"] for run in runs),
        other=f"plain (ours: {best})",
        theirs=fmean(run["plain"]["rise"] for run in runs),
        goal=Goal("ratio", _MOST_RISE),
        notes=notes,
        details={"best": best, "runs": list(runs), "keeps_enough": bool(good)},
        ratios=rises[best] if good else [float("inf")],
    )


def _run(arguments: Sequence[Sequence[str]], logs: Path) -> list[dict[str, Any]]:
    """Run this module with each list of arguments at the same time; return what each printed last."""
    logs.mkdir(parents=True, exist_ok=True)
    # One thread each: matrices of a model this small gain nothing by a second one, and threads that wait for
    # one another lose on a busy machine.
    env = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    files = [logs / f"forgetting-{given[1]}.log" for given in arguments]
    running = []
    for given, path in zip(arguments, files, strict=True):
        with path.open("w") as log:
            command = [sys.executable, "-m", "benchmarks.forgetting", *given]
            running.append(
                subprocess.Popen(command, cwd=REPOSITORY, env=env, stdout=log, stderr=subprocess.STDOUT)
            )
    codes = [process.wait() for process in running]
    for code, path in zip(codes, files, strict=True):
        if code:
            raise RuntimeError(f"benchmarks.forgetting ended with {code}; see {path}")
    return [json.loads(path.read_text().splitlines()[-1]) for path in files]


def old_texts() -> list[str]:
    """Return pieces of documentation, the same on every call, in random order."""
    import sysconfig
    from importlib.resources import files

    folders = [Path(sysconfig.get_paths()["stdlib"]), *(Path(str(files(name))) for name in _OLD_PACKAGES)]
    texts: dict[str, None] = {}
    for folder in folders:
        paths = sorted(folder.glob("*.py") if folder == folders[0] else folder.rglob("*.py"))
        for path in paths:
            if "tests" not in path.parts:
                texts.update(dict.fromkeys(_documentation(path)))
    found = list(texts)
    random.Random(17).shuffle(found)
    kept, size = [], 0
    for text in found:
        kept.append(text[:_DOCUMENT_CHARACTERS])
        size += len(kept[-1])
        if size > _OLD_CHARACTERS:
            break
    return kept


def _documentation(path: Path) -> Iterator[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = ast.parse(path.read_bytes())
    for node in ast.walk(module):
        if (
            isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
            and len(text := ast.get_docstring(node) or "") > 400
        ):
            yield text


def new_texts(seed: int) -> tuple[list[str], list[str]]:
    """Return licence texts to learn, and others, of families that none of these is of."""
    from fullft_assets.demos import standard_library

    by_family: dict[str, list[str]] = {}
    for row in standard_library.licence_texts():
        if len(row["text"]) > 800:
            by_family.setdefault(row["license-expression"], []).append(
                row["text"][: 2 * _DOCUMENT_CHARACTERS]
            )
    families = sorted(by_family)
    random.Random(17).shuffle(families)
    # The held-out ones are the same for all seeds.
    held_out, rest = families[:_NUM_NEW_HELD_OUT], families[_NUM_NEW_HELD_OUT:]
    random.Random(seed).shuffle(rest)
    return [by_family[name][0] for name in rest[:_NUM_NEW]], [by_family[name][0] for name in held_out]


class _Bench:
    """The texts as a model reads them."""

    def __init__(self, folder: Path):
        from fullft_assets.chunks import Tokenization
        from fullft_assets.settings import ChunksSettings

        self.folder = folder
        chosen = ChunksSettings(max_tokens=CAPACITY, stride=0)
        self.tokenization = Tokenization.load(folder, chosen, "language_modeling")

    def documents(self, texts: Sequence[str]) -> list[list[list[int]]]:
        return self.tokenization.chunks(list(texts))

    def recipe(
        self,
        task: Sequence[str],
        replayed: Sequence[str],
        share: float,
        new: Sequence[str],
        old: Sequence[str],
        seed: int,
    ) -> Any:
        """Return what the engine trains: the task's chunks, so many of the replayed ones, validated on new
        texts, measured on old ones.
        """
        import numpy as np

        from fullft_assets.snapshot import Split, Training, packing
        from fullft_assets.snapshot.general import General, num_replay_tokens
        from fullft_assets.tasks.language.recipe import NextTokenRecipe

        chunks = [chunk for document in self.documents(task) for chunk in document]
        num_task, missing = len(chunks), num_replay_tokens(sum(map(len, chunks)), share) if share else 0
        for document in self.documents(replayed) if missing else []:
            for chunk in document:
                if missing > 0:
                    chunks.append(chunk)
                    missing -= len(chunk)
        plan = packing.plan(np.array([len(chunk) for chunk in chunks]), CAPACITY, seed, cut_to_fill=True)
        held_out = self.documents(new)
        count = len(held_out)
        validation = Split(
            [str(n) for n in range(count)],
            list(new),
            np.zeros(count, np.int64),
            [str(n) for n in range(count)],
            held_out,
        )
        general = General(list(old), self.documents(old))
        return NextTokenRecipe(
            self.folder, Training(chunks, None, plan, num_task), validation, general=general
        )


def pretrain(folder: Path) -> dict[str, float]:
    """Write the tokenizer and the model of the old texts; return its losses."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    texts = old_texts()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<end>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=CAPACITY,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
        tie_word_embeddings=True,
    )
    torch.manual_seed(17)
    LlamaForCausalLM(config).save_pretrained(folder)
    (folder / "old.json").write_text(json.dumps(texts))
    held_out, trained = texts[:_NUM_OLD_HELD_OUT], texts[_NUM_OLD_HELD_OUT:]
    new = new_texts(0)[1]
    fit = _fit(_Bench(folder).recipe(trained, [], 0, new, held_out, 17), _PRETRAINING, 17)
    fit.model.save_pretrained(folder)
    return {"old": fit.scores["general_loss"], "new": fit.scores["validation_loss"]}


def fine_tune_by_each(folder: Path, seed: int) -> dict[str, dict[str, float]]:
    """Return what each way forgot and learned, in nats a token."""
    from fullft_assets.models.inference import load_causal
    from fullft_assets.models.token_loss import score_documents

    bench, texts = _Bench(folder), json.loads((folder / "old.json").read_text())
    held_out, replayed = texts[:_NUM_OLD_HELD_OUT], texts[_NUM_OLD_HELD_OUT:]
    random.Random(seed).shuffle(replayed)
    task, new = new_texts(seed)
    before = score_documents(load_causal(folder), bench.documents(new), None).mean_loss()
    found = {}
    for name, way in WAYS.items():
        recipe = bench.recipe(task, replayed, way.replay, new, held_out, seed)
        if "ewc" in way.training:  # what matters is estimated on old texts, none of them is trained on
            recipe = _with_replayed_for_importance(recipe, bench.documents(replayed[:64]))
        fit = _fit(recipe, _FINE_TUNING | way.training, seed)
        found[name] = {
            "rise": fit.scores["general_rise"],
            "gain": before - fit.scores["validation_loss"],
            "seconds": fit.seconds,
        }
        print(name, found[name], flush=True)
    return found


def _with_replayed_for_importance(recipe: Any, documents: list[list[list[int]]]) -> Any:
    from dataclasses import replace

    chunks = [*recipe.training.chunks, *(chunk for document in documents for chunk in document)]
    return replace(recipe, training=replace(recipe.training, chunks=chunks))


def _fit(recipe: Any, settings: dict[str, Any], seed: int) -> Any:
    from fullft_assets.progress import Progress
    from fullft_assets.settings import TrainingSettings
    from fullft_assets.training.finetuning import fine_tune

    with tempfile.TemporaryDirectory() as work:
        chosen = TrainingSettings(**settings)
        # Scored at the end alone.
        return fine_tune(
            recipe, chosen, seed, Path(work), Progress(silent=True), resumable=False, evaluate_at=[]
        )


def _main(folder: str, what: str) -> None:
    print(
        json.dumps(
            pretrain(Path(folder)) if what == "pretrain" else fine_tune_by_each(Path(folder), int(what))
        )
    )


if __name__ == "__main__":
    _main(*sys.argv[1:])
