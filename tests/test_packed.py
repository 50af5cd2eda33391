"""Training on packed rows: what is fed, what the loss is, that packing changes no gradient, and that a run
resumes exactly.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.nn import functional
from transformers import (
    Gemma2Config,
    Gemma3Config,
    Lfm2Config,
    LlamaConfig,
    MixtralConfig,
    PhiConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3MoeConfig,
)
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from fullft_assets.errors import DataError, Interrupted, SettingsError
from fullft_assets.models import precision
from fullft_assets.models.token_loss import IGNORED, TokenLoss, plain
from fullft_assets.progress import Progress
from fullft_assets.settings import TrainingSettings
from fullft_assets.snapshot import Split, Training, packing
from fullft_assets.tasks.language.recipe import NextTokenRecipe
from fullft_assets.training import feed, loop as training_loop
from fullft_assets.training.feed import Feed, Pieces, planned_rows, sums_between
from fullft_assets.training.finetuning import Fit, fine_tune
from tests.optimizer_steps import Stopping, gradients, hook_passes, keeping
from tests.test_isolation import SMALL, build

pytestmark = pytest.mark.numeric

CAPACITY = 24
LLAMA = LlamaConfig(**SMALL, pad_token_id=0)
#: Its text part alone is trained.
MULTI_MODAL = Gemma3Config(
    text_config={**SMALL, "pad_token_id": 0},
    vision_config={
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "image_size": 28,
        "patch_size": 14,
    },
    mm_tokens_per_image=4,
)
#: Its convolutions read across documents where no kernel keeps them apart, so it is padded.
LFM2 = Lfm2Config(**SMALL, layer_types=["conv", "full_attention"], pad_token_id=0)
SETTINGS = TrainingSettings(
    epochs=1,
    batch_size=4,
    micro_batch_size=2,
    learning_rate=1e-2,
    precision="fp32",
    max_grad_norm=1e9,
    track=[],
)


def training(
    count: int = 30,
    *,
    marked: bool = False,
    seed: int = 1,
    capacity: int = CAPACITY,
    tokens: tuple[int, int] = (3, 96),
) -> Training:
    rng = np.random.default_rng(seed)
    chunks = [rng.integers(*tokens, rng.integers(1, capacity + 1)).tolist() for _ in range(count)]
    marks = [rng.integers(0, 2, len(chunk)).tolist() for chunk in chunks] if marked else None
    return Training(chunks, marks, packing.plan(np.array([len(chunk) for chunk in chunks]), capacity, seed=7))


@dataclass(frozen=True)
class Built(NextTokenRecipe):
    """With a model built from its configuration, the same each time, in place of one that is read."""

    config: PreTrainedConfig | None = None

    def load(self, settings: TrainingSettings) -> PreTrainedModel:
        return build(self.config, dtype=precision.of_weights(settings))

    load_original = load


def documents(data: Training) -> Split:
    """Each chunk as a document."""
    count = len(data.chunks)
    marks = None if data.marks is None else [[chunk] for chunk in data.marks]
    return Split(
        [str(number) for number in range(count)],
        [""] * count,
        np.zeros(count),
        ["a"] * count,
        [[chunk] for chunk in data.chunks],
        marks,
    )


def recipe(config: PreTrainedConfig, data: Training, validation: Training | None = None) -> Built:
    """Train on these chunks, and score them or those given for validation."""
    return Built(Path(), data, documents(validation or data), config=config)


def fit(
    config: PreTrainedConfig,
    data: Training,
    chosen: TrainingSettings,
    folder: Path,
    validation: Training | None = None,
    **options: object,
) -> Fit:
    options = {"progress": Progress(silent=True), "evaluate_at": (), "resumable": False} | options
    return fine_tune(recipe(config, data, validation), chosen, 1, folder, **options)


# The tokens to learn never occur in the validation rows, so the validation loss rises from the first scored
# step on, by far more than the arithmetic of one CPU differs from another's.
OVERFITTING = {"data": training(tokens=(3, 50)), "validation": training(seed=2, tokens=(50, 96))}
KEEP_BEST = SETTINGS.model_copy(update={"epochs": 3, "keep_best": True, "scheduler": "constant_with_warmup"})


def trained_tokens(data: Training) -> list[tuple[int, int]]:
    """(chunk, place) of each token that must be learned once an epoch."""
    marks = data.marks or [[1] * len(chunk) for chunk in data.chunks]
    return [(n, i) for n, of_chunk in enumerate(marks) for i, mark in enumerate(of_chunk) if mark and i > 0]


def alone(model: PreTrainedModel, data: Training) -> torch.Tensor:
    """Gradients of the mean loss with every chunk in a forward pass of its own, written as plainly as can
    be.
    """
    model.zero_grad()
    wanted = trained_tokens(data)
    for n, chunk in enumerate(data.chunks):
        places = [i for of, i in wanted if of == n]
        if places:
            logits = model(input_ids=torch.tensor([chunk])).logits[0]
            losses = functional.cross_entropy(
                logits[[i - 1 for i in places]], torch.tensor(chunk)[places], reduction="sum"
            )
            (losses / len(wanted)).backward()
    found = gradients(model).clone()
    model.zero_grad()
    return found


def documents_in(feed: Feed) -> list[tuple[list[int], list[int]]]:
    """The documents of a feed with their labels, separated as a model does; without those of padding."""
    found = []
    for batch in feed.batches():
        for n, (ids, labels) in enumerate(zip(batch["input_ids"], batch["labels"], strict=True)):
            if "position_ids" in batch:
                starts = [*torch.nonzero(batch["position_ids"][n] == 0).flatten().tolist(), len(ids)]
                spans = list(zip(starts, starts[1:], strict=False))
            else:
                spans = [(0, int(batch["attention_mask"][n].sum()))]
            found += [(ids[a:b].tolist(), labels[a:b].tolist()) for a, b in spans]
    return [document for document in found if set(document[0]) != {0}]


FEEDS: dict[str, Callable[[Pieces, float], Feed]] = {
    "packed": lambda pieces, epochs: feed.packed(pieces, 2, epochs, 3, 0),
    "padded": lambda pieces, epochs: feed.padded(pieces, 2, 4, epochs, 3, 0),
}


@pytest.mark.parametrize("name", FEEDS)
@settings(max_examples=15, deadline=None)
@given(count=st.integers(1, 40), seed=st.integers(0, 2**16), marked=st.booleans(), epochs=st.integers(1, 3))
def test_every_token_is_fed_and_trained_once_an_epoch(
    name: str, count: int, seed: int, marked: bool, epochs: int
) -> None:
    data = training(count, marked=marked, seed=seed)
    feed = FEEDS[name](Pieces(data), epochs)
    found = documents_in(feed)
    assert sorted(ids for ids, _ in found) == sorted(data.chunks * epochs)
    trained = sorted((ids, i) for ids, labels in found for i, label in enumerate(labels) if label != IGNORED)
    assert trained == sorted((data.chunks[n], i) for n, i in trained_tokens(data) * epochs)
    assert all(
        label in (IGNORED, token) for ids, labels in found for token, label in zip(ids, labels, strict=True)
    )
    assert feed.lengths.sum() == epochs * sum(map(len, data.chunks))
    batches = list(feed.batches())
    assert [batch["input_ids"].numel() for batch in batches if (batch["labels"] != IGNORED).any()] == [
        size for size, batch in zip(feed.sizes, batches, strict=True) if (batch["labels"] != IGNORED).any()
    ]
    predicted = sums_between(feed.num_predicted, feed.bounds)
    assert [int((batch["labels"] != IGNORED).sum()) for batch in batches] == predicted.tolist()
    assert len(batches) == feed.num_passes


def test_padding_is_a_document_that_nothing_is_learned_from() -> None:
    data = Training([[5, 6, 7, 8], [9, 10]], None, packing.plan(np.array([4, 2]), 4, seed=0))
    (batch,) = feed.packed(Pieces(data), 2, 1, 0, 0).batches()
    short = batch["input_ids"].tolist().index([9, 10, 0, 0])
    assert batch["position_ids"][short].tolist() == [0, 1, 0, 1]
    assert batch["labels"][short].tolist() == [IGNORED, 10, IGNORED, IGNORED]


def test_piece_of_a_cut_chunk_trains_all_but_its_first_token() -> None:
    chunk = list(range(10, 20))
    found = documents_in(
        feed.packed(Pieces(Training([chunk], None, packing.plan(np.array([10]), 6, seed=0))), 1, 1, 0, 0)
    )
    assert sorted(found) == [(chunk[:6], [IGNORED, *chunk[1:6]]), (chunk[6:], [IGNORED, *chunk[7:]])]


@settings(max_examples=50, deadline=None)
@given(rows=st.integers(1, 50), epochs=st.floats(0.05, 4), seed=st.integers(0, 99))
def test_rows_come_in_the_plans_order_then_shuffled(rows: int, epochs: float, seed: int) -> None:
    order = planned_rows(rows, epochs, seed)
    assert len(order) == max(1, round(epochs * rows))
    assert order[:rows].tolist() == list(range(min(rows, len(order))))
    for start in range(0, len(order), rows):
        part = order[start : start + rows]
        assert len(set(part.tolist())) == len(part)


@pytest.mark.parametrize(
    ("config", "marked", "micro_batch_size"),
    [
        *((LLAMA, marked, micro_batch_size) for marked in (False, True) for micro_batch_size in (1, 2, 4)),
        (LFM2, True, 4),
    ],
)
def test_gradients_are_those_of_documents_alone(
    tmp_path: Path, config: PreTrainedConfig, marked: bool, micro_batch_size: int
) -> None:
    """One optimizer step over everything: whatever the passes, the mean over all trained tokens. A model that
    would leak is trained on padded rows and says so.
    """
    data = training(marked=marked)
    chosen = SETTINGS.model_copy(update={"batch_size": 40, "micro_batch_size": micro_batch_size})
    expected = alone(build(config), data)
    seen: list[torch.Tensor] = []
    done = fit(config, data, chosen, tmp_path, watch=keeping(seen))
    assert done.about["is_packed"] is (config is LLAMA)
    assert ("keep documents apart" in done.about["isolation"]) is (config is LFM2)
    assert done.num_steps == 1 and done.num_tokens == sum(map(len, data.chunks))
    (found,) = seen
    assert (found - expected).norm() / expected.norm() < 1e-5
    assert (found - expected).abs().max() / expected.abs().max() < 1e-5


@pytest.mark.parametrize("config", [LLAMA, MULTI_MODAL], ids=["llama", "multi-modal"])
def test_step_loss_is_the_mean_over_its_trained_tokens(config: PreTrainedConfig, tmp_path: Path) -> None:
    data = training(marked=True)
    done = fit(config, data, SETTINGS.model_copy(update={"learning_rate": 1e-30}), tmp_path)
    losses = [line["loss"] for line in done.history if "loss" in line]
    model = build(config)
    batches = list(feed.packed(Pieces(data), SETTINGS.batch_size, 1, 1, 0).batches())
    assert len(losses) == len(batches) == done.num_steps > 1
    with torch.no_grad():
        for batch, found in zip(batches, losses, strict=True):
            labels = batch.pop("labels")
            assert found == pytest.approx(
                plain(model, batch, labels).item() / int((labels != IGNORED).sum()), rel=1e-5
            )


def test_step_of_prompts_alone_is_no_number_problem(tmp_path: Path) -> None:
    chunks = [[5] * CAPACITY for _ in range(8)]
    marks = [[0] * CAPACITY for _ in range(7)] + [[1] * CAPACITY]
    data = Training(chunks, marks, packing.plan(np.full(8, CAPACITY), CAPACITY, seed=0))
    losses = [line["loss"] for line in fit(LLAMA, data, SETTINGS, tmp_path).history if "loss" in line]
    assert len(losses) == 2 and np.isfinite(losses).all()
    assert min(losses) == 0


@pytest.mark.parametrize(
    ("config", "is_fused"),
    [
        (LLAMA, True),
        (
            PhiConfig(
                vocab_size=96,
                hidden_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                intermediate_size=32,
            ),
            True,
        ),
        (LlamaConfig(**SMALL, tie_word_embeddings=True), True),
        (MixtralConfig(**SMALL, num_local_experts=2), True),
        # Caps its logits: the head's own are not what is given out.
        (Gemma2Config(**SMALL, final_logit_softcapping=0.01), False),
    ],
    ids=["llama", "phi_with_bias", "tied", "mixtral", "gemma2"],
)
def test_fused_loss_is_the_models_own(
    config: object, is_fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "fullft_assets.models.token_loss._CHUNK_ELEMENTS", {"cpu": 7 * 96}
    )  # several chunks, the last one short
    model = build(config)
    if getattr(model.get_output_embeddings(), "bias", None) is not None:
        torch.nn.init.normal_(model.get_output_embeddings().bias)
    batch = next(feed.packed(Pieces(training(marked=True)), 4, 1, 0, 0).batches())
    labels = batch.pop("labels")
    loss = TokenLoss(model, batch)
    assert loss.is_fused is is_fused
    plain(model, batch, labels).backward()
    expected, wanted = gradients(model), plain(model, batch, labels).item()
    model.zero_grad()
    found = loss.total(model, batch, labels)
    (3 * found).backward()
    assert found.item() == pytest.approx(wanted, rel=1e-6)
    assert (gradients(model) / 3 - expected).norm() / expected.norm() < 1e-6
    assert model(**batch).logits.shape[-1] == 96  # the head is itself again


@pytest.mark.parametrize("is_packed", [True, False])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", [MixtralConfig, Qwen3MoeConfig])
def test_routers_are_balanced_as_transformers_does_it(
    kind: type[PreTrainedConfig], checkpointing: bool, is_packed: bool
) -> None:
    experts = {
        **{"num_local_experts": 4, "num_experts": 4, "moe_intermediate_size": 8},
        **{"num_experts_per_tok": 2, "router_aux_loss_coef": 0.5, "output_router_logits": True},
    }
    model = build(kind(**SMALL, **experts)).train()
    pieces = Pieces(training(5, marked=True))
    batch = (feed.packed(pieces, 4, 1, 0, 0) if is_packed else feed.padded(pieces, 4, 4, 1, 0, 0)).batch(0)
    labels = batch.pop("labels")
    mask = batch["is_token" if is_packed else "attention_mask"]
    num_labels = (labels != IGNORED).sum()
    balance = 0.5 * load_balancing_loss_func(model(**batch, use_cache=False).router_logits, 4, 2, mask)
    expected = plain(model, batch, labels) / num_labels + balance
    expected.backward()
    wanted = gradients(model)
    model.zero_grad()
    if not is_packed:
        torch.testing.assert_close(model(**batch, labels=labels).loss, expected)
    if checkpointing:
        model.activation_checkpointing_enable()
    found = TokenLoss(model, batch).total(model, batch, labels) / num_labels
    found.backward()
    torch.testing.assert_close(found, expected)
    assert (gradients(model) - wanted).norm() / wanted.norm() < 1e-6
    model.config.output_router_logits = False
    torch.testing.assert_close(
        TokenLoss(model, batch).total(model, batch, labels), (expected - balance) * num_labels
    )


def test_fused_loss_in_bf16_is_as_near_as_the_plain_one() -> None:
    model = build(LLAMA)
    batch = next(feed.packed(Pieces(training()), 4, 1, 0, 0).batches())
    labels = batch.pop("labels")
    loss = TokenLoss(model, batch)

    def computed(total: Callable[..., torch.Tensor], *args: object) -> torch.Tensor:
        model.zero_grad()
        total(*args).backward()
        return gradients(model).clone()

    exact = computed(plain, model, batch, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough, fused = computed(plain, model, batch, labels), computed(loss.total, model, batch, labels)
    assert (fused - exact).norm() < 1.2 * (rough - exact).norm() and (
        rough - exact
    ).norm() < 0.02 * exact.norm()


@pytest.mark.parametrize("name", ["packed", "padded"])
def test_resumed_run_is_bit_identical(tmp_path: Path, name: str) -> None:
    """Stopped in the second epoch, with dropout."""
    config = LlamaConfig(**SMALL, pad_token_id=0, attention_dropout=0.1) if name == "packed" else LFM2
    chosen = SETTINGS.model_copy(update={"epochs": 2, "checkpoint_every_steps": 3, "max_grad_norm": 1.0})
    data = training(40)
    whole = fit(config, data, chosen, tmp_path / "whole", resumable=True, evaluate_at=None)
    with pytest.raises(Interrupted, match="stopped at step 7"):
        fit(
            config, data, chosen, tmp_path / "stopped", progress=Stopping(7), resumable=True, evaluate_at=None
        )
    resumed = fit(config, data, chosen, tmp_path / "stopped", resumable=True, evaluate_at=None)
    assert resumed.resumed_from_step == 7 < resumed.num_steps == whole.num_steps
    assert all(
        torch.equal(value, resumed.model.state_dict()[key]) for key, value in whole.model.state_dict().items()
    )
    scored = [[line for line in done.history if "validation_loss" in line] for done in (whole, resumed)]
    assert scored[0] == scored[1] and len(scored[0]) >= 4


@pytest.mark.parametrize(
    ("name", "shares"),
    [
        ("cosine_with_min_lr", {10: 1.0, 55: 0.55, 100: 0.1}),
        ("warmup_stable_decay", {10: 1.0, 89: 1.0, 95: 1 - 0.5**0.5, 100: 0.0}),
    ],
)
def test_schedules_end_at_a_floor_or_decay_late(name: str, shares: dict[int, float]) -> None:
    chosen = SETTINGS.model_copy(update={"scheduler": name, "warmup_share": 0.1})
    share = training_loop.share_of_rate(chosen, torch.optim.SGD([torch.nn.Parameter(torch.ones(1))]), 100)
    assert {step: share(step) for step in shares} == pytest.approx(shares) and 0 < share(5) < 1


def test_what_is_read_a_step_late_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on an accelerator, also where it is stopped, and resumed."""
    chosen = SETTINGS.model_copy(update={"epochs": 2, "checkpoint_every_steps": 3})
    progress, ahead = Stopping(99), []

    def watch(moment: str, loop: object) -> None:
        ahead.append(loop.step - progress.last) if moment == "step" else None

    def lines(name: str, **options: object) -> list[tuple]:
        done = fit(LLAMA, training(40), chosen, tmp_path / name, resumable=True, evaluate_at=None, **options)
        return [
            tuple(line.get(key) for key in ("step", "loss", "grad_norm", "validation_loss"))
            for line in done.history
        ]

    at_once = lines("at once", progress=progress, watch=watch)
    assert set(ahead) == {1}
    monkeypatch.setattr(training_loop, "most_unread_steps", lambda: 1)
    progress, ahead = Stopping(99), []
    assert lines("late", progress=progress, watch=watch) == at_once
    assert set(ahead) == {1, 2}, "never more than one step ahead of what was read"
    with pytest.raises(Interrupted, match="stopped at step 8"):
        lines("stopped", progress=Stopping(7))
    assert lines("stopped") == at_once


@pytest.mark.parametrize("name", ["packed", "padded"])
def test_smaller_passes_after_a_lack_of_memory_read_the_same(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen in what the optimizer is given: the same steps, as in a run that began with passes of one row."""
    config = LLAMA if name == "packed" else LFM2
    chosen = SETTINGS.model_copy(update={"micro_batch_size": 4, "checkpoint_every_steps": 2})
    data = training(40, marked=True)
    small = fit(
        config, data, chosen.model_copy(update={"micro_batch_size": 1}), tmp_path / "small", resumable=True
    )
    passes = []

    def limit(module: torch.nn.Module, args: object, kwargs: dict, output: object) -> None:
        if module.training and torch.is_grad_enabled():
            passes.append(kwargs["input_ids"].numel())
            if len(passes) > 2 and passes[-1] > CAPACITY:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    hook_passes(monkeypatch, Built, "load", limit)
    limited = fit(config, data, chosen, tmp_path / "limited", resumable=True)
    assert [
        (incident.kind, incident.to_step, incident.micro_batch_size) for incident in limited.incidents
    ] == [
        ("out_of_memory", 2, 2),
        ("out_of_memory", 2, 1),
    ]
    assert (limited.num_steps, limited.num_tokens, limited.micro_batch_size) == (
        small.num_steps,
        small.num_tokens,
        1,
    )
    losses = [[line["loss"] for line in done.history if "loss" in line] for done in (small, limited)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


@pytest.mark.parametrize("name", ["packed", "padded"])
def test_roll_back_reads_on_from_its_checkpoint(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Step 5, of two passes, is spoiled once; that of step 4 is then not known to be good."""
    passes, spoiled = [], [0]

    def spoil(module: torch.nn.Module, args: object, kwargs: dict, output: object) -> None:
        if module.training and torch.is_grad_enabled():
            passes.append(kwargs["input_ids"].tolist())
            if len(passes) == spoiled[0]:
                output.logits = output.logits * torch.nan

    hook_passes(monkeypatch, Built, "load", spoil)
    chosen = SETTINGS.model_copy(update={"checkpoint_every_steps": 2})
    config, data = LLAMA if name == "packed" else LFM2, training(40, marked=True)
    fit(config, data, chosen, tmp_path / "straight", resumable=True)
    straight, passes[:], spoiled[0] = list(passes), [], 9
    done = fit(config, data, chosen, tmp_path / "rolled", resumable=True)
    assert [(incident.kind, incident.step, incident.to_step) for incident in done.incidents] == [
        ("roll_back", 5, 2)
    ]
    assert passes == straight[:10] + straight[4:]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"windows": [], "marks": None}, DataError, "no training row"),
        (
            {"windows": [[5, 6, 7]], "marks": [[1, 0, 0]]},
            DataError,
            "no trained token; look at chunks.train_on",
        ),
        (
            {"windows": [[5, 96, 7]], "marks": None},
            DataError,
            "token 96, the model knows 96: its tokenizer is not base_model's",
        ),
        (
            {"windows": [[5] * 129], "marks": None, "capacity": 256},
            SettingsError,
            "chunks.max_tokens: 129 is more than the 128 positions",
        ),
        (
            {"windows": [[5, 6]], "marks": None, "capacity": 5},
            SettingsError,
            "rows of 5 tokens are too short",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused(change: dict, error: type[Exception], message: str) -> None:
    plan = packing.plan(
        np.array([len(chunk) for chunk in change["windows"]], int), change.get("capacity", CAPACITY), seed=0
    )
    made = recipe(LLAMA, Training(change["windows"], change["marks"], plan))
    with pytest.raises(error, match=message):
        made.prepare(build(LLAMA), SETTINGS, 1)


def test_first_rows_are_those_of_the_plan() -> None:
    whole = recipe(LLAMA, training())
    part = whole.first(3)
    assert (part.num_rows, whole.num_rows) == (3, training().packing.num_rows)
    assert sorted(documents_in(part.prepare(build(LLAMA), SETTINGS, 1).feed)) == sorted(
        documents_in(feed.packed(Pieces(training()), 1, 3 / whole.num_rows, 1, 0))
    )
