"""Loading a model from its folder: from safetensors alone, with code of its own only where the use case
trusts the folder; embeddings of added tokens; and classifiers of texts whose head reads the pooled hidden
states of all tokens.

Most encoders of transformers have a classifier that reads the class token alone, which a sentence encoder was
never trained to use. A folder of sentence-transformers says how its model pools; an encoder whose folder says
nothing is pooled by the mean of its tokens.
"""

import atexit
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any, Literal, cast

import torch
from safetensors.torch import load_file, save_file
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
    MODEL_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PretrainedConfig,
    PreTrainedModel,
    dynamic_module_utils,
)
from transformers.modeling_outputs import SequenceClassifierOutput

from fullft_assets.base_model import (
    MODULES,
    WEIGHTS,
    ModelFolder,
    TrustedFolder,
    own_code,
    pooling_config,
)
from fullft_assets.chunks import former_pieces
from fullft_assets.errors import SettingsError
from fullft_assets.extras import require_names
from fullft_assets.progress import ERROR_FILE

#: In a configuration: how a classifier pools hidden states. ModernBERT's own classifier reads it, too.
POOLING = "classifier_pooling"
#: Whether models are made from their configuration alone.
_WITHOUT_WEIGHTS: ContextVar[bool] = ContextVar("without_weights", default=False)
#: Layers of such models, in place of those of their configuration.
_NUM_LAYERS: ContextVar[int | None] = ContextVar("num_layers", default=None)
#: Options of `from_pretrained` that are about the weights it reads.
_OF_WEIGHTS = ("ignore_mismatched_sizes", "output_loading_info")
#: Of `transformers.dynamic_module_utils`: the folder from which code of models is imported.
_CACHE_CONSTANT = "HF_MODULES_CACHE"
# Were one renamed, a model could choose a kernel of the hub, and code would be imported from a shared folder.
require_names(PretrainedConfig, ("_attn_implementation", "_experts_implementation"))
require_names(dynamic_module_utils, (_CACHE_CONSTANT,))
_MAPPINGS = {
    AutoModel: MODEL_MAPPING,
    AutoModelForCausalLM: MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoModelForImageTextToText: MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoModelForSequenceClassification: MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoModelForTokenClassification: MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
}


def read_config(folder: ModelFolder) -> PretrainedConfig:
    """Read a model's configuration.

    Raises:
        SettingsError: it needs code of its own, which is not trusted or cannot be imported.
    """
    with _trust(folder) as is_trusted:
        return _config(folder, is_trusted, {})[0]


def load(kind: type, folder: ModelFolder, *, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    """Return the result of `kind.from_pretrained` for a folder."""
    with _trust(folder) as is_trusted:
        if _WITHOUT_WEIGHTS.get():
            return _outline(kind, folder, is_trusted, dtype, options)
        config, options = _config(folder, is_trusted, options)
        return kind.from_pretrained(
            str(folder),
            config=config,
            use_safetensors=True,
            trust_remote_code=is_trusted,
            dtype=dtype,
            **options,
        )


def has_kind(config: PretrainedConfig, kind: type) -> bool:
    """Return whether transformers, or the model's own code, has a model of this kind for a configuration.

    Raises:
        SettingsError: it is an encoder-decoder, which has no last hidden state of its input alone.
    """
    if config.is_encoder_decoder:
        raise SettingsError(
            f"base_model: {config.model_type} is an encoder-decoder, which no task trains; give an encoder"
            " such as BERT, or a decoder such as Llama"
        )
    return type(config) in _MAPPINGS[kind] or kind.__name__ in (getattr(config, "auto_map", None) or {})


@contextmanager
def without_weights(num_layers: int | None = None) -> Iterator[FakeTensorMode]:
    """Make models of fake tensors, which have shapes and no values, from their configuration alone: no weight
    is read or held.

    Args:
        num_layers: that the models have, in place of those of their configuration.

    Operations on them need no memory, and fail where they ask for a value. Yields the mode that later
    operations on them need.
    """
    token, token_of_layers = _WITHOUT_WEIGHTS.set(True), _NUM_LAYERS.set(num_layers)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            yield mode
    finally:
        _WITHOUT_WEIGHTS.reset(token)
        _NUM_LAYERS.reset(token_of_layers)


def is_outline(model: PreTrainedModel) -> bool:
    """Return whether a model has no weights, see `without_weights`."""
    return isinstance(next(iter(model.parameters()), None), FakeTensor)


def _outline(
    kind: Any, folder: ModelFolder, is_trusted: bool, dtype: torch.dtype, options: dict[str, Any]
) -> Any:
    """Return what `from_pretrained` would, without weights; every tensor counts as found in the folder."""
    about_weights = {name: options.pop(name, None) for name in _OF_WEIGHTS}
    config, _ = _config(folder, is_trusted, options)
    if (number := _NUM_LAYERS.get()) is not None:
        text = config.get_text_config()
        text.num_hidden_layers = number
        if getattr(text, "layer_types", None):
            text.layer_types = text.layer_types[:number]
    model = (
        kind._from_config(config, dtype=dtype)
        if issubclass(kind, PreTrainedModel)
        else kind.from_config(config, dtype=dtype, trust_remote_code=is_trusted)
    )
    loading_info: dict[str, list[Any]] = {"missing_keys": [], "mismatched_keys": []}
    return (model, loading_info) if about_weights["output_loading_info"] else model


def _config(
    folder: ModelFolder, is_trusted: bool, options: dict[str, Any]
) -> tuple[PretrainedConfig, dict[str, Any]]:
    pooling = options.pop("pooling", None)
    config, other_options = cast(
        Any,
        AutoConfig.from_pretrained(
            str(folder), trust_remote_code=is_trusted, return_unused_kwargs=True, **options
        ),
    )
    if pooling is not None:
        # Not an option of every configuration.
        setattr(config, POOLING, pooling)
    # `config.json` may name a kernel, which transformers would fetch from the hub and run: transformers' own
    # choice is used instead.
    config._attn_implementation = config._experts_implementation = None
    return config, other_options


@contextmanager
def _trust(folder: ModelFolder) -> Iterator[bool]:
    """Yield whether a folder's code may run; turn errors of code that may not run, or cannot, into one
    line.
    """
    # A use case that trusts its base model may also have models without code: a champion of an earlier base
    # model.
    is_trusted = isinstance(folder, TrustedFolder) and bool(own_code(folder.path))
    if is_trusted:
        _use_private_folder()
    try:
        yield is_trusted
    except ValueError as error:
        if is_trusted or "trust_remote_code" not in str(error):
            raise
        raise SettingsError(
            f"base_model: {folder} has code of its own, which does not run without trust_remote_code: true;"
            " read its Python files and set that if you trust them, or use a model whose architecture"
            " transformers has"
        ) from error
    except ImportError as error:
        if not is_trusted:
            raise
        raise SettingsError(
            f"base_model: the code in {folder} cannot be imported: {str(error).strip().splitlines()[0]}"
        ) from error


@cache
def _use_private_folder() -> None:
    """Make transformers copy the code that it runs into a temporary folder of this process.

    By default it copies into the cache of the hub and imports from there: code that ran once stays there, and
    in a shared cache everybody who can write to it can make others run code.
    """
    # Beside the launcher's files, if there is a launcher: it removes them even if this process is killed.
    beside = os.environ.get(ERROR_FILE)
    folder = tempfile.mkdtemp(prefix="fullft-code-", dir=None if beside is None else Path(beside).parent)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    # transformers reads it from the environment when it is imported, and then uses this constant.
    setattr(dynamic_module_utils, _CACHE_CONSTANT, folder)


def initialise_added(model: PreTrainedModel, base_model: ModelFolder, added_tokens: Sequence[str]) -> None:
    """Set the embedding of each added token to the mean of the embeddings of its former pieces; nothing else
    changes.

    Input and, if there are any, output embeddings [vocabulary, hidden] grow if the vocabulary has no room
    left. Random embeddings would be far from all others, and ruin a language model's predictions (Hewitt,
    2021).

    Args:
        model: just loaded from `base_model`; changed in place.
        base_model: its folder, with the original tokenizer.

    Raises:
        SettingsError: the weights have no embedding for a token of the folder's own tokenizer.
    """
    former = former_pieces(base_model, added_tokens) if added_tokens else {}
    if not former:
        return
    num_tokens = input_embeddings(model).num_embeddings
    if (largest := max(piece for pieces in former.values() for piece in pieces)) >= num_tokens:
        raise SettingsError(
            f"base_model: its tokenizer has token {largest:,}, its weights have {num_tokens:,} tokens; use a"
            " folder where both belong together"
        )
    size = max(former) + 1
    if size > num_tokens:
        # `mean_resizing` would draw the new rows from the covariance of the old ones, for minutes in a large
        # model.
        model.resize_token_embeddings(size, mean_resizing=False)
    with torch.no_grad():
        for table in _tables(model):
            for new, pieces in former.items():
                table[new] = table[pieces].mean(dim=0)


def input_embeddings(model: PreTrainedModel) -> torch.nn.Embedding:
    """Return the word embeddings of a model."""
    embeddings = model.get_input_embeddings()
    assert isinstance(embeddings, torch.nn.Embedding), f"{type(model).__name__} has no word embeddings"
    return embeddings


def _tables(model: PreTrainedModel) -> list[torch.Tensor]:
    """Return the tensors with a row for each token: embeddings, and the head of a language model with its
    bias; tied ones once.
    """
    head = model.get_output_embeddings()
    tables = [input_embeddings(model).weight, getattr(head, "weight", None), getattr(head, "bias", None)]
    return list({id(table): table for table in tables if table is not None}.values())


#: Which hidden states a head reads: the mean of all tokens', or the class token's.
Pooling = Literal["mean", "cls"]
#: Parts of a sentence-transformers folder.
_POOLING = "1_Pooling"
_DENSE = "2_Dense"


def pooling_of(folder: ModelFolder, config: PretrainedConfig) -> Pooling | None:
    """Return how the hidden states of a base model's tokens are pooled for a new head; None where its own
    classifier does it.

    That is so for decoders, whose classifier reads the last token, for encoder-decoders, and for models with
    code of their own.
    """
    path = folder.path if isinstance(folder, TrustedFolder) else Path(folder)
    if own_code(path):
        return None
    pooling = _stated_pooling(path)
    if pooling is not None and type(config) in MODEL_MAPPING:
        return pooling
    return "mean" if (type(config) in MODEL_FOR_MASKED_LM_MAPPING and not config.is_encoder_decoder) else None


def _stated_pooling(folder: Path) -> Pooling | None:
    if (path := pooling_config(folder)) is None:
        return None
    config = json.loads(path.read_bytes())
    mode = config.get("pooling_mode")
    otherwise = "cls" if config.get("pooling_mode_cls_token") or mode == "cls" else None
    return "mean" if config.get("pooling_mode_mean_tokens") or mode == "mean" else otherwise


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
        self.classifier = torch.nn.Linear(config.hidden_size, int(config.num_labels or 0))
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
        return SequenceClassifierOutput(
            logits=self.classifier(pool(hidden, mask, getattr(self.config, POOLING))),
            hidden_states=output.hidden_states,
        )


@cache
def pooled_class(config_class: type[PretrainedConfig]) -> type[PooledClassifier]:
    """Return the class of pooled classifiers of an architecture."""
    encoder: Any = MODEL_MAPPING[config_class]
    # What transformers has to know of an architecture (its layers, attention, first weights) is in the class
    # that all of its models share.
    shared = next(base for base in encoder.__mro__[1:] if issubclass(base, PreTrainedModel))
    return cast(
        type[PooledClassifier],
        type(
            f"Pooled{encoder.__name__}",
            (PooledClassifier, shared),
            {"encoder_class": encoder, "__module__": __name__},
        ),
    )


@cache
def saved_class(config_class: type[PretrainedConfig]) -> type[PooledClassifier]:
    """Return the class that loads a model that `save_model` wrote, without a warning about the head, which is
    in a file of its own.
    """
    whole = pooled_class(config_class)
    return cast(
        type[PooledClassifier],
        type(
            whole.__name__,
            (whole,),
            {"_keys_to_ignore_on_load_missing": [r"classifier\.(weight|bias)"], "__module__": __name__},
        ),
    )


def has_pooled_classifier(folder: ModelFolder) -> bool:
    """Return whether a folder has a pooled classifier that `save_model` wrote."""
    return (Path(str(folder)) / _DENSE / WEIGHTS).is_file()


def load_pooled_head(model: PooledClassifier, folder: ModelFolder) -> None:
    """Load the head of a saved classifier.

    Raises:
        SettingsError: it does not fit the model.
    """
    if is_outline(model):
        return
    try:
        model.classifier.load_state_dict(
            {
                name.removeprefix("linear."): weight
                for name, weight in load_file(Path(str(folder)) / _DENSE / WEIGHTS).items()
            }
        )
    except RuntimeError as error:
        raise SettingsError(
            f"{folder}: {_DENSE}/{WEIGHTS} does not fit config.json; copy the model again"
        ) from error


def save_model(model: PreTrainedModel, folder: Path, max_tokens: int) -> None:
    """Save a model as a folder of transformers; a pooled classifier as one of sentence-transformers, whose
    embeddings are the logits.

    Args:
        max_tokens: longest chunk, special tokens included.
    """
    if not isinstance(model, PooledClassifier):
        model.save_pretrained(folder, safe_serialization=True)
        return
    cast(PreTrainedModel, model.base_model).save_pretrained(folder, safe_serialization=True)
    config = model.config
    pooling: Pooling = getattr(config, POOLING)
    parts = {"": "Transformer", _POOLING: "Pooling", _DENSE: "Dense"}
    _write_json(
        folder / MODULES,
        [
            {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for number, (path, kind) in enumerate(parts.items())
        ],
    )
    _write_json(folder / "sentence_bert_config.json", {"max_seq_length": max_tokens, "do_lower_case": False})
    _write_json(
        folder / _POOLING / "config.json",
        {
            "word_embedding_dimension": config.hidden_size,
            "pooling_mode_cls_token": pooling == "cls",
            "pooling_mode_mean_tokens": pooling == "mean",
        },
    )
    _write_json(
        folder / _DENSE / "config.json",
        {
            "in_features": config.hidden_size,
            "out_features": config.num_labels,
            "bias": True,
            "activation_function": "torch.nn.modules.linear.Identity",
        },
    )
    save_file(
        {
            f"linear.{name}": weight.detach().cpu().contiguous()
            for name, weight in model.classifier.state_dict().items()
        },
        folder / _DENSE / WEIGHTS,
        {"format": "pt"},
    )


def _write_json(path: Path, content: object) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")
