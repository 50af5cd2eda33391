"""Classifiers of texts whose head reads the pooled hidden states of all tokens, and the folder that they are
saved in.

Most encoders of transformers have a classifier that reads the class token alone, which a sentence encoder was
never trained to use. A folder of sentence-transformers says how its model pools; an encoder whose folder says
nothing is pooled by the mean of its tokens.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any, Literal, cast

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import MODEL_FOR_MASKED_LM_MAPPING, MODEL_MAPPING, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from fullft_assets.base_model import ModelFolder, TrustedFolder, own_code
from fullft_assets.errors import SettingsError
from fullft_assets.models.loading import POOLING

#: Which hidden states a head reads: the mean of all tokens', or the class token's.
Pooling = Literal["mean", "cls"]
#: File of a sentence-transformers folder with its parts in their order.
_MODULES = "modules.json"
_POOLING, _DENSE = "1_Pooling", "2_Dense"
_WEIGHTS = "model.safetensors"


def pooling_of(folder: ModelFolder, config: PretrainedConfig) -> Pooling | None:
    """Return how the hidden states of a base model's tokens are pooled for a new head; None where its own
    classifier does it.

    That is so for decoders, whose classifier reads the last token, for encoder-decoders, and for models with
    code of their own.
    """
    path = folder.path if isinstance(folder, TrustedFolder) else Path(folder)
    if own_code(path):
        return None
    stated = _stated_pooling(path)
    if stated is not None and type(config) in MODEL_MAPPING:
        return stated
    is_encoder = type(config) in MODEL_FOR_MASKED_LM_MAPPING and not config.is_encoder_decoder
    return "mean" if is_encoder else None


def pools_itself(config: PretrainedConfig) -> bool:
    """Return whether an architecture's own classifier pools as its configuration says."""
    return hasattr(type(config), POOLING)


def _stated_pooling(folder: Path) -> Pooling | None:
    if not (folder / _MODULES).is_file():
        return None
    for module in json.loads((folder / _MODULES).read_text(encoding="utf-8")):
        if module["type"].endswith(".Pooling"):
            config = json.loads((folder / module["path"] / "config.json").read_text(encoding="utf-8"))
            mode = config.get("pooling_mode")
            if config.get("pooling_mode_mean_tokens") or mode == "mean":
                return "mean"
            return "cls" if config.get("pooling_mode_cls_token") or mode == "cls" else None
    return None


def pool(hidden: torch.Tensor, mask: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """Return one vector a text [texts, hidden] of hidden states [texts, tokens, hidden], padded where the
    mask [texts, tokens] is 0.
    """
    if pooling == "cls":
        return hidden[:, 0]
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(1) / weights.sum(1)


class PooledClassifier(PreTrainedModel):
    """A linear head on the pooled hidden states of an encoder; `pooled_class` makes the class of an
    architecture.

    The encoder is an attribute with the name that its architecture gives it, as in transformers' own
    classifiers.
    """

    #: Of the encoder.
    encoder_class: type[PreTrainedModel]

    def __init__(self, config: PretrainedConfig):
        super().__init__(config)
        encoder = self.encoder_class(cast(Any, config))
        # A pooler on the class token would be a weight without a gradient.
        if getattr(encoder, "pooler", None) is not None:
            encoder.register_module("pooler", None)
        setattr(self, self.base_model_prefix, encoder)
        self.classifier = nn.Linear(config.hidden_size, int(config.num_labels or 0))
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        **options: Any,
    ) -> SequenceClassifierOutput:
        """Return the logits [texts, labels]; input ids and mask are [texts, tokens]."""
        output = self.base_model(input_ids=input_ids, attention_mask=attention_mask, **options)
        hidden = output.last_hidden_state
        mask = hidden.new_ones(hidden.shape[:2]) if attention_mask is None else attention_mask
        logits = self.classifier(pool(hidden, mask, getattr(self.config, POOLING)))
        return SequenceClassifierOutput(logits=logits, hidden_states=output.hidden_states)


@cache
def _class_of(config_class: type[PretrainedConfig]) -> type[PooledClassifier]:
    encoder: Any = MODEL_MAPPING[config_class]
    # What transformers has to know of an architecture (its layers, attention, first weights) is in the class
    # that all of its models share.
    shared = next(each for each in encoder.__mro__[1:] if issubclass(each, PreTrainedModel))
    name = f"Pooled{encoder.__name__}"
    return cast(
        type[PooledClassifier],
        type(name, (PooledClassifier, shared), {"encoder_class": encoder, "__module__": __name__}),
    )


def pooled_class(config: PretrainedConfig) -> type[PooledClassifier]:
    """Return the class of pooled classifiers of an architecture."""
    return _class_of(type(config))


@cache
def saved_class(config_class: type[PretrainedConfig]) -> type[PooledClassifier]:
    """Return the class that loads what `save` wrote: the head, in a file of its own, is not missed."""
    ignored = {"_keys_to_ignore_on_load_missing": [r"classifier\.(weight|bias)"]}
    whole = _class_of(config_class)
    return cast(type[PooledClassifier], type(whole.__name__, (whole,), {**ignored, "__module__": __name__}))


def is_saved_in(folder: ModelFolder) -> bool:
    """Return whether a folder has a pooled classifier that `save` wrote."""
    return (Path(str(folder)) / _DENSE / _WEIGHTS).is_file()


def load_head(model: PooledClassifier, folder: ModelFolder) -> None:
    """Load the head of a saved classifier.

    Raises:
        SettingsError: it does not fit the model.
    """
    weights = load_file(Path(str(folder)) / _DENSE / _WEIGHTS)
    try:
        model.classifier.load_state_dict(
            {name.removeprefix("linear."): weight for name, weight in weights.items()}
        )
    except RuntimeError as error:
        raise SettingsError(
            f"{folder}: {_DENSE}/{_WEIGHTS} does not fit config.json; copy the model again"
        ) from error


def save(model: PreTrainedModel, folder: Path, max_tokens: int) -> None:
    """Save a model as a folder of transformers; a pooled classifier as one of sentence-transformers, whose
    embeddings are the logits.

    Args:
        max_tokens: longest window, special tokens included.
    """
    if not isinstance(model, PooledClassifier):
        model.save_pretrained(folder, safe_serialization=True)
        return
    encoder: Any = model.base_model
    encoder.save_pretrained(folder, safe_serialization=True)
    config = model.config
    pooling: Pooling = getattr(config, POOLING)
    parts = {"": "Transformer", _POOLING: "Pooling", _DENSE: "Dense"}
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (path, kind) in enumerate(parts.items())
    ]
    _write_json(folder / _MODULES, modules)
    _write_json(folder / "sentence_bert_config.json", {"max_seq_length": max_tokens, "do_lower_case": False})
    modes = {"pooling_mode_cls_token": pooling == "cls", "pooling_mode_mean_tokens": pooling == "mean"}
    _write_json(folder / _POOLING / "config.json", {"word_embedding_dimension": config.hidden_size, **modes})
    dense = {"in_features": config.hidden_size, "out_features": config.num_labels, "bias": True}
    _write_json(
        folder / _DENSE / "config.json", {**dense, "activation_function": "torch.nn.modules.linear.Identity"}
    )
    head = {
        f"linear.{name}": weight.detach().cpu().contiguous()
        for name, weight in model.classifier.state_dict().items()
    }
    save_file(head, folder / _DENSE / _WEIGHTS, {"format": "pt"})


def _write_json(path: Path, content: object) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")
