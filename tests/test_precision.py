"""What a pass of training computes in, and how often."""

from pathlib import Path

import pytest
import torch

from fullft_assets.models import precision
from fullft_assets.models.inference import load_causal
from fullft_assets.settings import TrainingSettings
from fullft_assets.training.loop import place
from tests.test_isolation import build
from tests.test_packed import LLAMA

pytestmark = pytest.mark.numeric


@pytest.mark.parametrize(("chosen", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_a_pass_computes_in_the_precision_and_returns_fp32(chosen: str, dtype: torch.dtype) -> None:
    model = build(LLAMA)
    computed: list[torch.dtype] = []
    model.lm_head.register_forward_hook(lambda module, inputs, output: computed.append(output.dtype))
    passing = place(model, TrainingSettings(precision=chosen), 1)
    assert passing(input_ids=torch.ones((1, 4), dtype=torch.long)).logits.dtype == torch.float32
    assert computed == [dtype]


@pytest.mark.parametrize(
    ("has_card", "auto", "dtype"),
    [(True, "bf16", torch.bfloat16), (True, "fp16", torch.float32), (False, "bf16", torch.float32)],
)
def test_a_language_model_is_scored_in_the_format_that_a_card_computes_in(
    has_card: bool, auto: str, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Autocast's copies beside weights in fp32 would take half as much again."""
    build(LLAMA).save_pretrained(tmp_path)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: has_card)
    monkeypatch.setattr(precision, "resolve", lambda setting: auto)
    assert load_causal(tmp_path).dtype == dtype
    assert load_causal(tmp_path, dtype=torch.float32).dtype == torch.float32


def test_gradient_checkpointing_computes_each_layer_twice_in_a_pass() -> None:
    counts = {False: 0, True: 0}
    for is_on in counts:
        model = build(LLAMA).train()

        def count(*arguments: object, is_on: bool = is_on) -> None:
            counts[is_on] += 1

        model.model.layers[0].mlp.register_forward_pre_hook(count)
        passing = place(model, TrainingSettings(precision="fp32", gradient_checkpointing=is_on), 1)
        passing(input_ids=torch.ones((1, 4), dtype=torch.long)).logits.sum().backward()
    assert counts == {False: 1, True: 2}
