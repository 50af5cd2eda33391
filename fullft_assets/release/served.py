"""Serves a pooled classifier in SageMaker's Hugging Face container, which calls these two functions:
transformers has no model that reads such a folder. It is copied into `model.tar.gz` as `code/inference.py`,
and imports nothing of this package.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer


def model_fn(folder: str, context: Any = None) -> dict[str, Any]:
    """Return the parts of the classifier in a folder of sentence-transformers."""
    root = Path(folder)
    head = load_file(root / "2_Dense" / "model.safetensors")
    return {
        "tokenizer": AutoTokenizer.from_pretrained(folder),
        "encoder": AutoModel.from_pretrained(folder).eval(),
        # The encoder may be loaded in another format than the folder has.
        "weight": head["linear.weight"].float(),
        "bias": head["linear.bias"].float(),
        "first": json.loads((root / "1_Pooling" / "config.json").read_text())["pooling_mode_cls_token"],
        "size": json.loads((root / "sentence_bert_config.json").read_text())["max_seq_length"],
    }


@torch.no_grad()
def predict_fn(data: dict[str, Any], model: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """Return the labels of each text of `{"inputs": ...}` with their probabilities, the most likely first."""
    texts = data["inputs"] if isinstance(data["inputs"], list) else [data["inputs"]]
    options = {"truncation": True, "max_length": model["size"], "padding": True, "return_tensors": "pt"}
    inputs = model["tokenizer"](texts, **options)
    states = model["encoder"](**inputs).last_hidden_state.float()
    is_token = inputs["attention_mask"][:, :, None].to(states.dtype)
    vectors = states[:, 0] if model["first"] else (states * is_token).sum(1) / is_token.sum(1)
    logits = vectors @ model["weight"].T + model["bias"]
    config = model["encoder"].config
    is_multi_label = config.problem_type == "multi_label_classification"
    probabilities = logits.sigmoid() if is_multi_label else logits.softmax(-1)
    rows = [
        [{"label": config.id2label[n], "score": score} for n, score in enumerate(row)]
        for row in probabilities.tolist()
    ]
    return [sorted(row, key=lambda label: -label["score"]) for row in rows]
