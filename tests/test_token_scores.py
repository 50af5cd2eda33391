"""Scores of trained tokens: those that a plain loop finds, one chunk at a time."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    BartConfig,
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    Gemma2Config,
    LlamaConfig,
    PreTrainedModel,
    T5Config,
    WhisperConfig,
)

from fullft_assets.errors import Interrupted, OutOfMemory, SettingsError
from fullft_assets.models import inference, token_loss
from fullft_assets.progress import Progress
from tests.test_isolation import APART, LEAKING, SMALL, build

pytestmark = [pytest.mark.numeric, pytest.mark.usefixtures("fp32")]


def documents(seed: int = 0) -> tuple[list[list[list[int]]], list[list[list[int]]]]:
    """Return chunks and marks of ten documents, some chunks of one token, some without a trained one."""
    rng = np.random.default_rng(seed)
    chunks = [
        [rng.integers(3, 96, rng.integers(1, 40)).tolist() for _ in range(rng.integers(1, 3))]
        for _ in range(10)
    ]
    return chunks, [
        [(rng.integers(0, 2, len(chunk)) * rng.integers(0, 2)).tolist() for chunk in document]
        for document in chunks
    ]


@torch.no_grad()
def slowly(model: PreTrainedModel, chunks: list, marks: list | None) -> token_loss.DocumentScores:
    found = np.zeros((3, len(chunks)))
    for number, document in enumerate(chunks):
        for place, chunk in enumerate(document):
            scores = torch.log_softmax(model(input_ids=torch.tensor([chunk])).logits[0].float(), -1)
            for i in range(1, len(chunk)):
                if marks is None or marks[number][place][i]:
                    found[:, number] += (
                        1,
                        -scores[i - 1, chunk[i]].item(),
                        scores[i - 1].argmax() == chunk[i],
                    )
    return token_loss.DocumentScores(*found)


MODELS = {
    **APART,
    "opt": LEAKING["opt"],
    "mamba": LEAKING["mamba"],
    "caps its logits": Gemma2Config(**SMALL, final_logit_softcapping=0.01),
}


@pytest.mark.parametrize("marked", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_scores_are_those_of_chunks_alone(name: str, marked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_loss, "_CHUNK_ELEMENTS", {"cpu": 7 * 96})  # several chunks, the last one short
    monkeypatch.setitem(inference.BATCH_TOKENS, "cpu", 100)
    model = build(MODELS[name]).eval()
    # Sharper than random weights are, so that some tokens are ranked first.
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(20)
    chunks, marks = documents()
    chunks[3] = [[7] * 30]
    marks[3] = [[1] * 30]
    passes: list[torch.Size] = []
    model.register_forward_pre_hook(
        lambda _, args, options: passes.append(options["input_ids"].shape), with_kwargs=True
    )
    found = token_loss.score_documents(model, chunks, marks if marked else None)
    # Where all logits of a pass are there at a time, it is as small as a part, or one chunk.
    assert all(size[0] == 1 or size.numel() <= 7 for size in passes) is (name == "caps its logits")
    expected = slowly(model, chunks, marks if marked else None)
    assert found.num_tokens.tolist() == expected.num_tokens.tolist()
    assert found.num_right.tolist() == expected.num_right.tolist()
    assert found.loss == pytest.approx(expected.loss, rel=1e-4, abs=1e-4)
    assert found.mean_loss() == pytest.approx(expected.mean_loss(), rel=1e-5)


def test_a_head_that_fsdp2_has_given_a_class_of_its_own_is_replaced_as_well() -> None:
    model, inputs = build(APART["llama"]), {"input_ids": torch.ones((1, 4), dtype=torch.long)}
    head = model.get_output_embeddings()
    head.__class__ = type("FSDPLinear", (type(head),), {})
    assert token_loss.TokenLoss(model, inputs).is_fused
    head.__class__ = type("Scaled", (type(head),), {"forward": lambda self, hidden: 2 * hidden})
    assert not token_loss.TokenLoss(model, inputs).is_fused


@pytest.mark.parametrize(
    "load", [inference.load_causal, inference.load_new_classifier, inference.load_tagger]
)
@pytest.mark.parametrize("kind", [BartConfig, T5Config, WhisperConfig])
def test_an_encoder_decoder_is_one_line(load: Any, kind: type, tmp_path: Path) -> None:
    kind().save_pretrained(tmp_path)
    with pytest.raises(
        SettingsError, match=rf"^base_model: {kind.model_type} is an encoder-decoder, .*Llama$"
    ):
        load(tmp_path)


def test_outputs_that_are_not_finite_are_no_scores() -> None:
    model = build(APART["llama"])
    with torch.no_grad():
        model.lm_head.weight.fill_(torch.nan)
    found = token_loss.score_documents(model, [[[5, 6, 7]], [[5]]], None)
    assert np.isnan(found.loss).tolist() == [True, False]
    assert all(map(math.isnan, (found.mean_loss(), found.token_probability(), found.token_accuracy())))
    empty = token_loss.score_documents(model, [[[5]]], None)
    assert empty.num_tokens.tolist() == [0]
    assert math.isnan(empty.mean_loss())
    assert math.isnan(empty.token_accuracy())


def test_model_is_left_as_it_was_and_a_stop_ends_it() -> None:
    model = build(APART["gpt2"]).train()
    state = torch.random.get_rng_state()
    chunks, _ = documents()
    first, again = (token_loss.score_documents(model, chunks, None).loss.tolist() for _ in range(2))
    assert first == again, "dropout is off meanwhile"
    assert model.training and torch.equal(state, torch.random.get_rng_state())
    stopped = Progress(silent=True)
    stopped.stop_requested = True
    with pytest.raises(Interrupted):
        token_loss.score_documents(model, chunks, None, progress=stopped)
    assert model.training and "forward" not in vars(model.lm_head)


def test_documents_are_scored_in_smaller_batches_where_memory_runs_out() -> None:
    model, sizes = build(APART["llama"]), []
    chunks, marks = documents()
    expected = token_loss.score_documents(model, chunks, marks)

    def hook(module: torch.nn.Module, args: object, kwargs: dict) -> None:
        # Beside the first try with a few tokens, what a batch takes grows with its tokens.
        sizes.append(kwargs["input_ids"].numel())
        if len(sizes) > 1 and sizes[-1] > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    model.register_forward_pre_hook(hook, with_kwargs=True)
    most = 80
    found = token_loss.score_documents(model, chunks, marks)
    assert max(sizes) > most and len([size for size in sizes if size <= most]) > 3
    assert (
        found.num_tokens.tolist() == expected.num_tokens.tolist()
        and found.num_right.tolist() == expected.num_right.tolist()
    )
    assert found.loss == pytest.approx(expected.loss, rel=1e-5)
    most = 2
    sizes.clear()
    with pytest.raises(OutOfMemory, match=r"^memory ran out .*\(a single chunk of \d+ "):
        token_loss.score_documents(model, chunks, marks)
    assert "forward" not in vars(model.lm_head)


class TestLoad:
    @pytest.mark.parametrize("tied", [True, False])
    def test_language_model_is_loaded_whole(self, tmp_path: Path, tied: bool) -> None:
        before = build(LlamaConfig(**SMALL, tie_word_embeddings=tied, attention_dropout=0.3))
        before.save_pretrained(tmp_path)
        after = inference.load_causal(tmp_path)
        assert all(
            torch.equal(value, after.state_dict()[name]) for name, value in before.state_dict().items()
        )
        assert after.config.attention_dropout == 0.0 and not after.training

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (
                lambda: build(APART["llama"]).model,
                "its weights lack lm_head.weight; give one whose safetensors have its output head",
            ),
            (
                lambda: BertModel(
                    BertConfig(
                        hidden_size=8,
                        num_hidden_layers=1,
                        num_attention_heads=1,
                        intermediate_size=8,
                        vocab_size=9,
                    )
                ),
                "its weights lack cls.predictions",
            ),
            (
                lambda: DistilBertModel(
                    DistilBertConfig(dim=8, n_layers=1, n_heads=1, hidden_dim=8, vocab_size=9)
                ),
                r"\(model_type distilbert\); give one that predicts the next token",
            ),
        ],
        ids=["no head", "encoder with a head elsewhere", "encoder"],
    )
    def test_what_has_no_head_of_its_own_is_refused(self, tmp_path: Path, make, message: str) -> None:
        make().save_pretrained(tmp_path)
        with pytest.raises(SettingsError, match=f"base_model: .* no causal language model.*{message}"):
            inference.load_causal(tmp_path)
