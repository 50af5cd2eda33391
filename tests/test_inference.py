"""Batched, padded, pooled over chunks: the same answers as one document, one chunk at a time."""

import json
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch

from fullft_assets.base_model import resolve_base_model
from fullft_assets.chunks import Tokenization
from fullft_assets.demos import licences
from fullft_assets.errors import SettingsError
from fullft_assets.models import inference, loading, precision
from fullft_assets.settings import ChunksSettings
from tests import machine
from tests.prepared import MINILM, write_tiny_model

pytestmark = pytest.mark.numeric

LABELS = ["notice", "reference", "tag", "text"]


@pytest.fixture(scope="module")
def base_model() -> Path:
    return resolve_base_model(MINILM, Path())


@pytest.fixture(scope="module")
def chunks(base_model: Path) -> list[list[list[int]]]:
    """Real licence texts of one to several chunks, in an order that is neither long to short nor short to
    long.
    """
    texts = sorted({rule["text"] for rule in licences.rules()}, key=len)
    found = Tokenization.load(base_model, ChunksSettings(max_tokens=32, stride=4, max_chunks=6)).chunks(
        texts[200 :: len(texts) // 20]
    )
    assert {1, 6} <= {len(document) for document in found}
    return [found[i] for i in np.random.default_rng(0).permutation(len(found))]


@pytest.fixture(scope="module")
def model(base_model: Path):
    torch.manual_seed(0)
    return inference.load_for_training(base_model, LABELS).eval()


def slowly(model, chunks: list[list[list[int]]]) -> tuple[np.ndarray, np.ndarray]:
    """One chunk at a time, unpadded, in plain loops."""
    probabilities, embeddings = [], []
    with torch.no_grad():
        for document in chunks:
            outputs = [
                model(input_ids=torch.tensor([chunk]), output_hidden_states=True) for chunk in document
            ]
            probabilities.append(
                torch.softmax(torch.stack([output.logits[0] for output in outputs]).mean(0), -1).numpy()
            )
            embeddings.append(
                torch.stack([output.hidden_states[-1][0].mean(0) for output in outputs]).mean(0).numpy()
            )
    return np.array(probabilities), np.array(embeddings)


@pytest.mark.parametrize("batch_tokens", [2_048, 1])  # 1: one chunk a batch, and never none
def test_pooled_batches_equal_the_slow_loop(model, chunks, fp32, monkeypatch, batch_tokens: int) -> None:
    monkeypatch.setitem(inference.BATCH_TOKENS, "cpu", batch_tokens)
    found = inference.predict_with(model, chunks)
    probabilities, embeddings = slowly(model, chunks)
    np.testing.assert_allclose(found, probabilities, atol=2e-5)
    np.testing.assert_allclose(inference.embed(model, chunks), embeddings, atol=2e-5)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-6)


def test_embeddings_without_a_head_are_the_same(base_model, model, chunks, fp32) -> None:
    np.testing.assert_allclose(
        inference.embed(inference.load_base(base_model), chunks), inference.embed(model, chunks), atol=2e-5
    )


def test_bf16_answers_stay_near(model, chunks, monkeypatch) -> None:
    found = []
    for has_bf16 in (True, False):
        monkeypatch.setattr(precision, "_cpu_has_bf16_units", lambda has_bf16=has_bf16: has_bf16)
        found.append(inference.predict_with(model, chunks))
    np.testing.assert_allclose(found[0], found[1], atol=0.01)
    assert not np.array_equal(found[0], found[1])


@pytest.mark.parametrize("pad", [None, 99])
def test_a_decoder_without_a_padding_token_pads_with_the_end_token(
    fp32, tmp_path: Path, pad: int | None
) -> None:
    """As GPT-2 and Llama: one token ends texts and pads them, and the classifier reads the last token before
    the padding.
    """
    from transformers import GPT2Config, GPT2Model

    config = GPT2Config(
        vocab_size=100,
        n_positions=32,
        n_embd=16,
        n_layer=1,
        n_head=2,
        bos_token_id=98,
        eos_token_id=98,
        pad_token_id=pad,
    )
    GPT2Model(config).save_pretrained(tmp_path)
    decoder = inference.load_for_training(tmp_path, LABELS).eval()
    assert decoder.config.pad_token_id == (98 if pad is None else pad)
    chunks = [[[5, 6, 7, 8, 9]], [[7]], [[3, 98, 4], [98, 2]]]
    torch.testing.assert_close(inference.predict_with(decoder, chunks), slowly(decoder, chunks)[0])


def test_each_process_of_a_machine_takes_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which one is asked for: no GPU takes part."""
    taken: list[int] = []
    monkeypatch.setattr(torch.accelerator, "set_device_index", taken.append)
    for has_card, rank in ((False, "1"), (True, None), (True, "1")):
        machine.set_card(monkeypatch, has_card)
        monkeypatch.delenv("LOCAL_RANK", raising=False)
        if rank is not None:
            monkeypatch.setenv("LOCAL_RANK", rank)
        inference.claim_device()
    assert taken == [1]


class TestPrecision:
    @pytest.mark.parametrize(
        ("has_gpu", "unit", "onednn_takes_it", "expected"),
        [
            (True, "bf16", True, "bf16"),
            (True, "", True, "fp16"),
            (False, "amx_bf16", True, "bf16"),
            (False, "avx512_bf16", True, "bf16"),
            (False, "amx_bf16", False, "fp32"),
            (False, "avx512_f", True, "fp32"),
        ],
    )
    def test_auto_is_what_the_hardware_is_good_at(
        self,
        has_gpu: bool,
        unit: str,
        onednn_takes_it: bool,
        expected: str,
        monkeypatch: pytest.MonkeyPatch,
    ):
        """What it is good at is injected; emulated bf16, which older GPUs have as well, does not count."""
        machine.set_card(monkeypatch, has_gpu)
        monkeypatch.setattr(
            torch.cuda,
            "is_bf16_supported",
            lambda including_emulation=True: unit == "bf16" or including_emulation,
        )
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {unit: True})
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: onednn_takes_it)
        assert precision.resolve("auto") == expected
        assert precision.resolve("bf16") == "bf16" and precision.resolve("fp32") == "fp32"

    @pytest.mark.skipif(torch.cuda.is_available(), reason="this machine's GPU has fp16")
    def test_fp16_without_a_gpu_is_refused(self):
        with pytest.raises(SettingsError, match=r"training\.precision: fp16 needs a GPU"):
            precision.resolve("fp16")


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "experts_implementation"])
@pytest.mark.parametrize("without_weights", [False, True])
def test_what_computes_is_not_chosen_by_the_models_folder(
    tmp_path: Path, key: str, without_weights: bool
) -> None:
    """`config.json` may name a kernel of the hub, which transformers would fetch and run."""
    write_tiny_model(tmp_path)
    (tmp_path / "config.json").write_text(
        json.dumps({**json.loads((tmp_path / "config.json").read_text()), key: "somebody/kernel"})
    )
    with loading.without_weights() if without_weights else nullcontext():
        model = inference.load_classifier(tmp_path, num_labels=3)
    assert (model.config._attn_implementation, model.config.num_labels) == ("sdpa", 3)
    assert model.config._experts_implementation in (None, "grouped_mm", "eager")
