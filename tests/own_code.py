"""A model that brings code of its own: BERT with a gate on what it puts out, in four Python files beside
random weights.
"""

import json
from pathlib import Path

from tests.prepared import write_tiny_model

CONFIGURATION = """
from transformers import BertConfig


class GatedConfig(BertConfig):
    model_type = "gated"
"""
GATES = """
import torch


class Gate(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(config.hidden_size))

    def forward(self, hidden):
        return None if hidden is None else hidden * self.weight
"""
MODELING = """
from transformers import BertForSequenceClassification, BertModel

from .configuration_gated import GatedConfig
from .gates import Gate


class GatedModel(BertModel):
    config_class = GatedConfig

    def __init__(self, config, add_pooling_layer=True):
        super().__init__(config, add_pooling_layer)
        self.gate = Gate(config)
        self.post_init()

    def forward(self, *inputs, **options):
        output = super().forward(*inputs, **options)
        output.last_hidden_state = self.gate(output.last_hidden_state)
        output.pooler_output = self.gate(output.pooler_output)
        return output


class GatedForSequenceClassification(BertForSequenceClassification):
    config_class = GatedConfig

    def __init__(self, config):
        super().__init__(config)
        self.bert = GatedModel(config)
        self.post_init()
"""
# What a checkpoint of another head does not import.
TAGGING = """
from transformers import BertForTokenClassification

from .configuration_gated import GatedConfig
from .modeling_gated import GatedModel


class GatedForTokenClassification(BertForTokenClassification):
    config_class = GatedConfig

    def __init__(self, config):
        super().__init__(config)
        self.bert = GatedModel(config, add_pooling_layer=False)
        self.post_init()
"""
AUTO_MAP = {
    "AutoConfig": "configuration_gated.GatedConfig",
    "AutoModel": "modeling_gated.GatedModel",
    "AutoModelForSequenceClassification": "modeling_gated.GatedForSequenceClassification",
    "AutoModelForTokenClassification": "tagging_gated.GatedForTokenClassification",
}
FILES = {
    "configuration_gated.py": CONFIGURATION,
    "gates.py": GATES,
    "modeling_gated.py": MODELING,
    "tagging_gated.py": TAGGING,
}


def write(folder: Path) -> Path:
    """Write the model with MiniLM's tokenizer and random weights, the same on every call; return the
    folder.
    """
    import torch
    from safetensors.torch import load_file, save_file

    write_tiny_model(folder)
    save_file(
        {**load_file(folder / "model.safetensors"), "gate.weight": torch.full((8,), 0.5)},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    for name, text in FILES.items():
        (folder / name).write_text(text)
    configure(folder, model_type="gated", auto_map=AUTO_MAP)
    return folder


def configure(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
