"""A language model that reads pictures, too, learns from texts; what reads pictures stays as it was."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, Qwen3VLConfig

from fullft_assets.resources.champion import load_champion
from tests import manifests, smollm2
from tests.prepared import prepare_language_model
from tests.test_isolation import SMALL


@pytest.mark.heavy
def test_what_reads_pictures_is_kept_and_all_else_is_trained(tmp_path: Path) -> None:
    smollm2.write_tokenizer(tmp_path / "model")
    config = Qwen3VLConfig(
        text_config={**SMALL, "vocab_size": 49_152, "pad_token_id": 2},
        vision_config={"depth": 1, "hidden_size": 16, "num_heads": 2, "out_hidden_size": 16},
    )
    torch.manual_seed(5)
    base = AutoModelForImageTextToText.from_config(config)
    base.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "preprocessor_config.json").write_text("{}")
    prepared = prepare_language_model(tmp_path, rows=60, base_model="model")
    made = prepared.train("c", epochs=1, batch_size=8, micro_batch_size=8, weight_decay=0.1)
    manifests.promote(prepared.store, prepared.snapshot.case, made.ref, snapshot=prepared.snapshot.ref)
    champion = load_champion(prepared.store, prepared.snapshot.case, prepared.use_case.settings)
    assert champion.predict(["The license"], 5)
    assert (champion.path / "preprocessor_config.json").read_text() == "{}"
    after = AutoModelForImageTextToText.from_pretrained(prepared.store.folder(made) / "model").state_dict()
    changed = {name for name, weight in base.state_dict().items() if not torch.equal(weight, after[name])}
    assert changed == {name for name in after if ".visual." not in name}
    assert made.metadata["num_trained_parameters"] < made.metadata["num_parameters"]
