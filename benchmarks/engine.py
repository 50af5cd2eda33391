"""Counts of the training engine on its own code, which need no GPU: `python -m benchmarks.engine [PART ...]`.

| part | what it counts |
|---|---|
| families | of 53 small models: how the engine feeds them, and loss and gradients against a pass a document |
| syncs | operations of an optimizer step for which a GPU's host waits, with their places |
| loss | bytes that the loss of a language model moves, at the vocabularies of today |
| flops | work of a step against 6 N D, with and without recomputed activations |
| graphs | graph breaks and compilations of a compiled model whose rows vary in length |
| ranks | what a process holds after loading and at the peak of a step, sharded by FSDP2, at 1B to 70B and of a mixture |

`ranks` and the last two rows of `flops` take real sizes: their tensors have shapes and no values.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import transformers
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSpeechSeq2Seq,
    PreTrainedModel,
)

from benchmarks.engine_families import FAMILIES
from fullft_assets.errors import FullftError
from fullft_assets.models import documents, precision, token_loss
from fullft_assets.models.documents import probe
from fullft_assets.models.inference import load_causal
from fullft_assets.models.token_loss import PREDICTED, TokenLoss
from fullft_assets.progress import Progress
from fullft_assets.settings import TrainingSettings
from fullft_assets.settings.optimizers import Weights
from fullft_assets.snapshot import Split, Training, packing
from fullft_assets.tasks.language.recipe import NextTokenRecipe
from fullft_assets.training import feed, loop
from fullft_assets.training.feed import Pieces, first_tokens
from fullft_assets.training.finetuning import fine_tune

CAPACITY = 48
_GIB = 2**30
_aten: Any = torch.ops.aten


def table(header: str, rows: Iterator[list[Any]]) -> None:
    """Print rows as Markdown as they come."""
    print(f"| {header} |\n|{'---|' * (header.count('|') + 1)}", flush=True)
    for row in rows:
        print(f"| {' | '.join(str(cell) for cell in row)} |", flush=True)


# Families


@dataclass
class Family:
    """What the engine makes of a small model.

    Attributes:
        feed: packed, padded, or the line with which it is refused.
        loss, gradient, weights: relative difference of the feed from one forward pass a document by the
            family's own attention and all of its logits; of the weights after a step of AdamW at a rate of
            1e-3, which moves a weight whose true gradient is 0 (the bias of a key) by noise. None where
            refused.
        is_causal: whether logits do not depend on later tokens.
    """

    name: str
    feed: str
    loss: float | None = None
    gradient: float | None = None
    weights: float | None = None
    is_causal: bool | None = None
    is_fused: bool | None = None


def chunks(count: int = 14, seed: int = 1) -> Training:
    """Return documents of random tokens, the longest as long as a row."""
    rng = np.random.default_rng(seed)
    lengths = [CAPACITY, CAPACITY, *rng.integers(2, CAPACITY, count).tolist()]
    ids = [rng.integers(3, 96, length).tolist() for length in lengths]
    return Training(ids, None, packing.plan(np.array(lengths), CAPACITY, seed=7))


def saved(name: str, folder: Path) -> Path:
    """Write a small model of a family with random weights that matter: the usual .02 would hide leaks."""
    kind, options = FAMILIES[name]
    config = AutoConfig.for_model(kind, **options)
    torch.manual_seed(5)
    kinds = (
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
        AutoModelForSeq2SeqLM,
        AutoModelForSpeechSeq2Seq,
        AutoModelForMaskedLM,
    )
    # What is no causal model is saved as what it is: the engine is to say so.
    known = [each for each in kinds if type(config) in each._model_mapping]
    chosen = AutoModelForMaskedLM if kind == "bert" else known[0]
    model = chosen.from_config(config)
    for weight in model.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.15)
    model.save_pretrained(folder)
    return folder


def family(name: str) -> Family:
    """Return what the engine makes of a family."""
    with tempfile.TemporaryDirectory() as folder:
        saved(name, Path(folder))
        try:
            model = load_causal(Path(folder))
        except FullftError as error:
            return Family(name, f"refused: {error}".replace(folder, "FOLDER"))
        except Exception as error:
            return Family(name, f"FAILS: {type(error).__name__}: {' '.join(str(error).split())[:90]}")
    try:
        return _fed(name, model)
    except FullftError as error:
        return Family(name, f"refused: {error}")
    except Exception as error:
        return Family(name, f"FAILS: {type(error).__name__}: {' '.join(str(error).split())[:90]}")


def _fed(name: str, model: PreTrainedModel) -> Family:
    is_causal = _is_causal(model)
    pieces = Pieces(chunks())
    alone = [
        {
            "input_ids": torch.tensor([pieces.ids(number).tolist()]),
            "labels": torch.tensor([pieces.labels(number).tolist()]),
        }
        for number in range(len(pieces))
    ]
    expected, gradients = _total(model, token_loss.plain, alone)
    documents.attend_apart_where_equal(model, CAPACITY)
    is_packed = probe(model, CAPACITY).is_isolated
    packed = feed.packed(pieces, 2, 1, 3, 0)
    chosen = packed if is_packed else feed.padded(pieces, 2, 4, 1, 3, 0)
    loss = TokenLoss(model, first_tokens(packed.batch(0), 32))
    total, fed = _total(model, loss.total, list(chosen.batches()))
    expected_weights, weights = (_after_a_step(model, each) for each in (gradients, fed))
    return Family(
        name,
        "packed" if is_packed else "padded",
        abs(total - expected) / expected,
        float((fed - gradients).norm() / gradients.norm()),
        float((weights - expected_weights).norm() / expected_weights.norm()),
        is_causal,
        loss.is_fused,
    )


def _total(
    model: PreTrainedModel, loss: Callable[..., torch.Tensor], batches: list[dict[str, Any]]
) -> tuple[float, torch.Tensor]:
    model.zero_grad(set_to_none=True)
    model.train()
    total = 0.0
    for batch in batches:
        inputs = dict(batch)
        part = loss(model, inputs, inputs.pop("labels"))
        part.backward()
        total += part.item()
    of_weights = [
        (torch.zeros(weight.numel()) if weight.grad is None else weight.grad.flatten().float())
        for weight in model.parameters()
    ]
    return total, torch.cat(of_weights)


def _after_a_step(model: PreTrainedModel, gradients: torch.Tensor) -> torch.Tensor:
    weights = torch.nn.utils.parameters_to_vector(model.parameters()).detach().requires_grad_()
    weights.grad = gradients
    torch.optim.AdamW([weights], lr=1e-3).step()
    return weights.detach()


@torch.no_grad()
def _is_causal(model: PreTrainedModel) -> bool:
    model.eval()
    ids = torch.randint(3, 96, (1, 20), generator=torch.Generator().manual_seed(3))
    changed = ids.clone()
    changed[0, -1] = 7 if ids[0, -1] != 7 else 8
    before, after = (model(input_ids=each).logits[0, :-1] for each in (ids, changed))
    return bool((before - after).abs().max() <= 1e-5 * before.abs().max())


def families(names: list[str]) -> Iterator[list[Any]]:
    """Yield a row for each family."""
    for name in names:
        result = family(name)
        numbers = [
            "" if value is None else f"{value:.0e}"
            for value in (result.loss, result.gradient, result.weights)
        ]
        flags = [
            "" if flag is None else "yes" if flag else "NO" for flag in (result.is_fused, result.is_causal)
        ]
        yield [name, result.feed, *numbers, *flags]


# Synchronisations

_VALUES = {
    _aten._local_scalar_dense.default,
    _aten.nonzero.default,
    _aten.masked_select.default,
    _aten.equal.default,
    _aten._unique2.default,
    _aten.repeat_interleave.Tensor,
}
_INDEXED = {
    _aten.index.Tensor,
    _aten.index_put_.default,
    _aten.index_put.default,
    _aten._index_put_impl_.default,
}
_SHOWN = ("fullft_assets/", "transformers/", "accelerate/", "torch/optim", "clip_grad")


class Syncs(TorchDispatchMode):
    """Counts operations whose result's value or size the host needs, by their place, while `is_on`."""

    def __init__(self) -> None:
        super().__init__()
        self.places: collections.Counter[str] = collections.Counter()
        self.is_on = False

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.is_on and (function in _VALUES or self._is_masked(function, args)):
            frames = [
                frame
                for frame in traceback.extract_stack()
                if any(part in frame.filename for part in _SHOWN) and "dispatch" not in frame.name
            ]
            place = f"{'/'.join(frames[-1].filename.split('/')[-2:])}:{frames[-1].name}" if frames else "?"
            self.places[f"{function} in {place}"] += 1
        return function(*args, **(kwargs or {}))

    @staticmethod
    def _is_masked(function: Any, args: Any) -> bool:
        return function in _INDEXED and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )


class _Small(NextTokenRecipe):
    def load(self, settings: TrainingSettings) -> PreTrainedModel:
        kind, options = FAMILIES["llama"]
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **options))

    load_original = load


#: Settings of trainings that take less memory.
RUNGS: tuple[dict[str, Any], ...] = (
    {"precision": "bf16"},
    {"precision": "bf16", "optimizer": "adamw", "weights": "bf16"},
    {"precision": "bf16", "optimizer": "adafactor", "weights": "bf16"},
    {"precision": "bf16", "gradient_checkpointing": "selective"},
)


def syncs_of_a_step(passes: int, folder: Path, **options: Any) -> collections.Counter[str]:
    """Return the synchronisations of one optimizer step of so many passes, by place, in the middle of a
    training.

    Args:
        options: more settings of it.
    """
    data = chunks(40)
    count = len(data.chunks)
    rows = Split(
        ["a"] * count, [""] * count, np.zeros(count), ["a"] * count, [[each] for each in data.chunks], None
    )
    settings = TrainingSettings(
        epochs=6,
        batch_size=4,
        micro_batch_size=4 // passes,
        track=[],
        checkpoint_every_steps=1_000,
        **{"precision": "fp32", **options},
    )
    syncs, num_steps = Syncs(), 0

    def after_step(*_: Any) -> None:
        nonlocal num_steps
        num_steps += 1
        syncs.is_on = num_steps in (3, 4)

    read = loop.Step.read

    def count_and_read(step: loop.Step) -> dict[str, Any]:
        syncs.places["loss and norm of a step"] += syncs.is_on
        return read(step)

    hook = register_optimizer_step_post_hook(after_step)
    try:
        with syncs, mock.patch.object(loop.Step, "read", count_and_read):
            fine_tune(
                _Small(Path(), data, rows),
                settings,
                1,
                folder,
                progress=Progress(silent=True),
                evaluate_at=(),
                resumable=True,
            )
    finally:
        hook.remove()
    return collections.Counter({place: number / 2 for place, number in syncs.places.items()})


def syncs() -> Iterator[list[Any]]:
    """Yield a row for each number of passes a step, and each rung of the memory ladder."""
    for passes, options in (*((passes, {}) for passes in (1, 2, 4)), *((2, rung) for rung in RUNGS)):
        with tempfile.TemporaryDirectory() as folder:
            places = syncs_of_a_step(passes, Path(folder), **options)
        shown = "; ".join(f"{number:g} {place}" for place, number in places.most_common())
        rung = " ".join(f"{value}" for value in options.values())
        yield [passes, rung, f"{sum(places.values()):g}", shown]


# Bytes and work


class Moved(TorchDispatchMode):
    """Counts the bytes that operations read and write, without fusion. Views and a question for the device
    move none; of a table that is gathered from or scattered to, only what is taken or written.
    """

    _VIEWS = (
        "prim.device",
        "permute",
        "view",
        "slice",
        "alias",
        "detach",
        "transpose",
        "t.default",
        "unsqueeze",
        "expand",
        "empty",
        "select",
    )

    def __init__(self) -> None:
        super().__init__()
        self.num_bytes = 0
        self.num_operations = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if not any(word in str(function) for word in self._VIEWS):
            tensors = {
                id(leaf): leaf
                for leaf in tree_leaves((args, kwargs, result))
                if isinstance(leaf, torch.Tensor)
            }
            sizes = [each.numel() * each.element_size() for each in tensors.values()]
            if str(function).startswith(("aten.gather", "aten.scatter")):
                sizes.remove(max(sizes))
            self.num_bytes += sum(sizes)
            self.num_operations += 1
        return result


VOCABULARIES = {
    "Llama-3.1-8B": (128_256, 4_096),
    "Qwen3-8B": (151_936, 4_096),
    "Gemma-3-1B": (262_144, 1_152),
}


#: Bytes that the loss of November 2026 moved: the `LinearCrossEntropy` of a5a7f54c under `Moved`.
BEFORE = {"Llama-3.1-8B": 930e9, "Qwen3-8B": 1_274e9, "Gemma-3-1B": 1_191e9}


def moved(name: str) -> Moved:
    """Return what the loss moves in a pass of 32,768 trained tokens on a GPU, in bf16."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    vocabulary, hidden = VOCABULARIES[name]
    with FakeTensorMode():
        options: dict[str, Any] = {"dtype": torch.bfloat16, "requires_grad": True}
        states = torch.empty(32_768, hidden, **options)
        head = torch.empty(vocabulary, hidden, **options)
        targets = torch.zeros(32_768, dtype=torch.long)
        # Chunks are as large as on a GPU, although the tensors are on a CPU.
        token = token_loss.PLANNED_DEVICE.set("cuda")
        try:
            with Moved() as counter:
                token_loss.LinearCrossEntropy.apply(states, head, None, targets).backward()
        finally:
            token_loss.PLANNED_DEVICE.reset(token)
    return counter


def loss() -> Iterator[list[Any]]:
    """Yield a row for each vocabulary."""
    for name, (vocabulary, _) in VOCABULARIES.items():
        counter = moved(name)
        share = f"{counter.num_bytes / BEFORE[name]:.2f}"
        yield [name, f"{vocabulary:,}", f"{counter.num_bytes / 1e9:,.0f} GB", share, counter.num_operations]


_LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 128_256,
    "max_position_embeddings": 131_072,
    "rope_theta": 500_000.0,
    "tie_word_embeddings": False,
    "head_dim": 128,
    "num_key_value_heads": 8,
}
_QWEN: dict[str, Any] = {
    **_LLAMA,
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": 151_936,
    "max_position_embeddings": 40_960,
    "rope_theta": 1_000_000.0,
}
_MIXTURE: dict[str, Any] = {
    **_QWEN,
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "moe_intermediate_size": 768,
    "num_experts": 128,
    "num_experts_per_tok": 8,
}


def _sized(
    base: dict[str, Any], hidden: int, inner: int, layers: int, heads: int, **more: Any
) -> dict[str, Any]:
    sizes = {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
    }
    return {**base, **sizes, **more}


MODELS = {
    "Llama-3.2-1B": _sized(_LLAMA, 2_048, 8_192, 16, 32, head_dim=64, tie_word_embeddings=True),
    "Llama-3.1-8B": _sized(_LLAMA, 4_096, 14_336, 32, 32),
    "Qwen3-32B": _sized(_QWEN, 5_120, 25_600, 64, 64),
    "Llama-3.3-70B": _sized(_LLAMA, 8_192, 28_672, 80, 64),
    "Qwen3-30B-A3B": _sized(_MIXTURE, 2_048, 6_144, 48, 32, num_key_value_heads=4),
}


def _inputs(rows: int, tokens: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Return rows of documents of 512 tokens, all of which but a row's first are trained."""
    ids = torch.zeros((rows, tokens), dtype=torch.long)
    positions = torch.arange(tokens).repeat(rows, 1) % 512
    predicted = torch.arange(rows * (tokens - 1))
    return {"input_ids": ids, "position_ids": positions, PREDICTED: predicted}, torch.zeros_like(ids)


def flops() -> Iterator[list[Any]]:
    """Yield a row for each model: a pass of two rows of 2,048 tokens, documents of 512."""
    from fullft_assets.models import loading
    from fullft_assets.training.recorder import ModelShape, step_flops

    rows, tokens = 2, 2_048
    for name in ("Llama-3.2-1B", "Llama-3.1-8B"):
        for recomputes in (False, True):
            with tempfile.TemporaryDirectory() as folder, loading.without_weights():
                Path(folder, "config.json").write_text(json.dumps(MODELS[name]))
                model = load_causal(Path(folder), dtype=torch.bfloat16)
                model.train()
                if recomputes:
                    model.gradient_checkpointing_enable()
                inputs, labels = _inputs(rows, tokens)
                fused = TokenLoss(model, first_tokens(inputs, 32))
                with FlopCounterMode(display=False) as counter:
                    fused.total(model, inputs, labels).backward()
            documents = np.full(rows * tokens // 512, 512)
            useful = step_flops(
                documents, documents - 1, np.array([0, len(documents)]), ModelShape.of(model)
            ).sum()
            counted, simple = counter.get_total_flops(), 6 * model.num_parameters() * rows * tokens
            yield [
                name,
                "yes" if recomputes else "no",
                f"{counted:.2e}",
                f"{counted / useful:.2f}",
                f"{counted / simple:.2f}",
            ]


def graphs() -> Iterator[list[Any]]:
    """Yield a row for each family: compiled as the engine compiles, for rows of one length with other
    documents in each of four passes.
    """
    import torch._dynamo as dynamo

    from fullft_assets.models import layers

    for name in (
        "llama",
        "qwen3",
        "qwen3, experts",
        "gemma3, text",
        "mistral",
        "deepseek-v3",
        "olmo3",
        "gpt-oss",
        "qwen3.5, text",
    ):
        kind, options = FAMILIES[name]
        torch.manual_seed(0)
        dynamo.reset()
        dynamo.utils.counters.clear()
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **options)).train()
        compiled: list[int] = []

        def backend(graph: Any, example: Any, compiled: list[int] = compiled) -> Callable[..., Any]:
            compiled.append(len(graph.graph.nodes))
            return graph.forward

        documents.attend_apart(model)
        is_packed = probe(model, 24).is_isolated
        fused = TokenLoss(model, first_tokens(_documents(12), 12))
        with mock.patch.object(torch, "compile", partial(torch.compile, backend=backend)):
            layers.compile_layers(model)
        for count in (2, 3, 4, 6):
            inputs = _documents(24, count)
            inputs = inputs if is_packed else {"input_ids": inputs["input_ids"]}
            fused.total(model, inputs, inputs["input_ids"]).backward()
        breaks = sum(dynamo.utils.counters["graph_break"].values())
        yield [name, len(compiled), breaks, sum(compiled)]
    dynamo.reset()


def _documents(length: int, count: int = 2) -> dict[str, Any]:
    positions = (torch.arange(length) % (length // count)).repeat(2, 1)
    told = documents.bounds(positions.numpy())
    return {"input_ids": torch.randint(3, 96, (2, length)), "position_ids": positions, **told}


@dataclass
class Rank:
    """Bytes of one process of several.

    Attributes:
        weights: all of the model's.
        loaded: the most that it holds on its device while it loads its part.
        placed: its part of them.
        peak: the most that a forward and backward pass takes, weights and gradients included.
    """

    weights: float
    loaded: float
    placed: float
    peak: float


def rank(name: str, processes: int, weights: Weights = "fp32") -> Rank:
    """Return what the first of some processes holds in a pass of one row of 2,048 tokens, with recomputed
    activations.

    Args:
        weights: their format.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
    from torch.distributed.device_mesh import init_device_mesh
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from fullft_assets.training import sharding
    from fullft_assets.training.loop import place
    from fullft_assets.training.measuring import Tracker

    tokens = 2_048
    settings = TrainingSettings(
        sharding="fsdp2",
        weights=weights,
        gradient_checkpointing=True,
        precision="bf16",
        micro_batch_size=1,
        track=[],
    )
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=processes)
    # The mesh has numbers that are read, so it is made where tensors have values.
    mesh = init_device_mesh("cpu", (processes,))
    try:
        with (
            mock.patch(
                "torch.distributed.fsdp._fully_shard._fully_shard._init_default_mesh", return_value=mesh
            ),
            FakeTensorMode(allow_non_fake_inputs=True),
        ):
            options = dict(MODELS[name])
            config = AutoConfig.for_model(options.pop("model_type"), **options)
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(config, dtype=precision.of_weights(settings)).train()
            whole = sum(weight.numel() * weight.element_size() for weight in model.parameters())
            # As a process that is not the first one, which alone has weights.
            with mock.patch.dict(os.environ, RANK="1"), Tracker() as loading:
                sharding.shard(model, settings, sharding.fill)
            inputs, labels = _inputs(1, tokens)
            # What it returns has no values to compare.
            with mock.patch.object(TokenLoss, "_returns_logits_of_head", return_value=True):
                fused = TokenLoss(model, first_tokens(inputs, 32))
            place(model, settings, processes)
            placed = sum(
                # DTensors
                weight.to_local().numel() * weight.element_size()  # pyright: ignore[reportCallIssue]
                for weight in model.parameters()
            )
            optimizer = torch.optim.SGD(model.parameters())
            tracker = FSDPMemTracker(model, optimizer)
            tracker.track_inputs((*inputs.values(), labels))
            with tracker:
                fused.total(model, inputs, labels).backward()
            (peak,) = [parts["Total"] for parts in tracker.get_tracker_snapshot("peak").values()]
            return Rank(whole, loading.peak, placed, peak)
    finally:
        torch.distributed.destroy_process_group()


def planned(name: str, processes: int, optimizer: str = "adamw", weights: Weights = "fp32") -> float:
    """Return what the plan takes a process to hold, with the optimizer's moments, in the same pass."""
    from fullft_assets.training.measuring import Outline

    settings = TrainingSettings(
        sharding="fsdp2",
        optimizer=optimizer,
        weights=weights,
        gradient_checkpointing=True,
        batch_size=processes,
        micro_batch_size=1,
        track=[],
    )
    ids = [[1] * 2_048] * processes
    data = Training(ids, None, packing.plan(np.full(processes, 2_048), 2_048, seed=7))
    rows = Split(
        [""] * processes, [""] * processes, np.zeros(processes), [""] * processes, [[each] for each in ids]
    )
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(MODELS[name]))
        outline = Outline(NextTokenRecipe(Path(folder), data, rows), settings, seed=1)
        return outline.memory(settings, "bf16", is_gpu=True, processes=processes).peak


def ranks() -> Iterator[list[Any]]:
    """Yield a row for each model, rung of the ladder and number of processes. AdamW's moments, twice the
    part, come on top; the plan is made of no process at all.
    """
    for name in MODELS:
        rungs: list[tuple[str, Weights]] = [("adamw", "fp32"), ("adamw", "bf16"), ("adafactor", "bf16")]
        for optimizer, weights in rungs:
            for processes in (1, 8, 16):
                # The loss makes its logits in chunks as on a GPU.
                token = token_loss.PLANNED_DEVICE.set("cuda")
                try:
                    whole = rank(name, processes, weights)
                finally:
                    token_loss.PLANNED_DEVICE.reset(token)
                moments = 2 * whole.placed if optimizer == "adamw" else 0
                sizes = [whole.weights, whole.loaded, whole.placed, whole.peak, whole.peak + moments]
                started = time.monotonic()
                sizes.append(planned(name, processes, optimizer, weights))
                seconds = f"{time.monotonic() - started:.0f}"
                rung = f"{optimizer} {weights}"
                yield [name, rung, processes, *(f"{size / _GIB:.1f}" for size in sizes), seconds]


PARTS: dict[str, tuple[str, Callable[[], Iterator[list[Any]]]]] = {
    "families": (
        "family | fed | loss differs by | gradients differ by | weights differ by | chunked loss | causal",
        lambda: families(list(FAMILIES)),
    ),
    "syncs": ("passes a step | rung | synchronisations a step | where", syncs),
    "loss": ("model | vocabulary | moved | of before | operations", loss),
    "flops": ("model | recomputed | counted | counted / useful | counted / 6ND", flops),
    "ranks": (
        "model | rung | processes | weights, GiB | held while it loads | its part | peak of a pass"
        " | with moments | planned | seconds to plan",
        ranks,
    ),
    "graphs": ("family | compilations | breaks | nodes", graphs),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine")
    parser.add_argument("parts", nargs="*", choices=list(PARTS), metavar="PART")
    parsed = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    for part in parsed.parts or PARTS:
        began = time.time()
        print(f"\n## {part}\n")
        header, rows = PARTS[part]
        table(header, rows())
        print(f"\n{time.time() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
