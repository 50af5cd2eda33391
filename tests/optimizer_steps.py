"""What the optimizer steps of a training see, and the same computed as plainly as can be."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from fullft_assets.models import inference
from fullft_assets.progress import Progress
from fullft_assets.training.finetuning import fine_tune
from fullft_assets.training.loop import Watch
from tests.prepared import Prepared


def gradients(model: PreTrainedModel) -> torch.Tensor:
    return torch.cat(
        [parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]
    )


def keeping(seen: list[torch.Tensor]) -> Watch:
    return lambda moment, loop: seen.append(gradients(loop.model)) if moment == "gradients" else None


def hook_passes(monkeypatch: pytest.MonkeyPatch, owner: object, load: str, hook: Callable[..., None]) -> None:
    """Call a hook (model, arguments, named arguments, output) after each pass of the models that this
    function of an owner loads.
    """
    load_plain = getattr(owner, load)

    def load_hooked(*args: object, **options: object) -> PreTrainedModel:
        model = load_plain(*args, **options)
        model.register_forward_hook(hook, with_kwargs=True)
        return model

    monkeypatch.setattr(owner, load, load_hooked)


class Stopping(Progress):
    """Asks for a stop after some optimizer steps; what is scored reports steps as well, without a loss."""

    def __init__(self, after: int):
        super().__init__(silent=True)
        self._after = after
        self.last = 0

    def step(self, done: int, total: int, **numbers: float | None) -> None:
        self.last = done if "loss" in numbers else self.last
        self.stop_requested |= "loss" in numbers and done >= self._after


def without_dropout(case: Prepared, folder: Path) -> Path:
    """Copy a project's base model into a folder, without the dropout that is drawn anew in each pass."""
    shutil.copytree(case.base_model, folder)
    (folder / "config.json").write_text(
        json.dumps(
            {
                **json.loads((folder / "config.json").read_text()),
                "hidden_dropout_prob": 0.0,
                "attention_probs_dropout_prob": 0.0,
            }
        )
    )
    return folder


def check_steps(
    case: Prepared,
    folder: Path,
    micro_batch_size: int,
    losses_of: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> None:
    """Train on 20 rows; each step's loss and gradient must be of the mean over all that its 8 chunks teach,
    each read alone.

    Args:
        case: of an encoder.
        folder: for what is trained.
        micro_batch_size: chunks of a pass.
        losses_of: (a chunk's logits, its labels) -> the loss of each thing that it teaches, [things].
    """
    recipe = replace(case.recipe, base_model=without_dropout(case, folder / "model")).first(20)
    changes = {
        "micro_batch_size": micro_batch_size,
        "precision": "fp32",
        "max_grad_norm": 1e9,
        "learning_rate": 1e-12,
    }
    chosen = case.use_case.settings.training.model_copy(update=changes)
    seen: list[torch.Tensor] = []
    done = fine_tune(
        recipe, chosen, 1, folder, Progress(silent=True), evaluate_at=(), resumable=False, watch=keeping(seen)
    )
    losses = [line["loss"] for line in done.history if "loss" in line]
    torch.manual_seed(1)
    model = recipe.load(chosen)
    if (weights := recipe.fit_head(model, chosen, Progress(silent=True))) is not None:
        inference.set_head_weights(model, weights)
    feed = recipe.prepare(model, chosen.model_copy(update={"micro_batch_size": 8}), 1).feed
    assert len(losses) == feed.num_passes >= 3
    for number, batch in enumerate(feed.batches()):
        model.zero_grad()
        rows = zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True)
        loss = torch.cat(
            [losses_of(model(input_ids=ids[mask == 1][None]).logits[0], labels) for ids, mask, labels in rows]
        ).mean()
        loss.backward()
        assert losses[number] == pytest.approx(loss.item(), rel=1e-4)
        assert torch.allclose(seen[number], gradients(model), rtol=1e-3, atol=1e-6)
