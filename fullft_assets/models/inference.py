"""Forward passes: label probabilities, or embeddings, of chunked documents, pooled to one row a document; and
the output layer of a classifier or tagger, with what it reads of the model below.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import torch
from scipy.special import softmax
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PretrainedConfig,
    PreTrainedModel,
    initialization,
)

from fullft_assets.base_model import ModelFolder
from fullft_assets.errors import OutOfMemory, SettingsError, is_out_of_memory
from fullft_assets.extras import require_names
from fullft_assets.models import layers, loading, precision
from fullft_assets.models.hardware import free_memory
from fullft_assets.progress import Listener
from fullft_assets.ranks import is_first_rank

_Result = TypeVar("_Result")
#: (document, chunk) of each chunk of a pass; and its inputs.
Items = list[tuple[int, int]]
Inputs = dict[str, torch.Tensor]
#: Padded tokens in one forward pass: a GPU needs many, a CPU as many as stay in its caches.
BATCH_TOKENS = {"gpu": 32_768, "cpu": 2_048}

#: `problem_type` of a configuration with several labels a row.
MULTI_LABEL = "multi_label_classification"
#: Attribute of weights that were read; transformers does not initialise them.
_INITIALIZED_MARK = "_is_hf_initialized"
_NO_CLASSIFIER = "labels in transformers, nor in its own code"
require_names(initialization, in_source=(_INITIALIZED_MARK,))
#: Names of the dropout of attention weights in configurations (BERT; Llama, Qwen, GPT-NeoX; GPT-2).
_ATTENTION_DROPOUT = ("attention_probs_dropout_prob", "attention_dropout", "attn_pdrop")


#: Whether the processes of a training, which have equal weights, score together: batches are dealt to them.
IS_DEALT = ContextVar("is dealt", default=False)
#: The device of a plan for another machine: what it would hold is counted on tensors without values.
PLANNED_DEVICE: ContextVar[str | None] = ContextVar("planned device", default=None)


def device() -> torch.device:
    """Return the accelerator, if there is one, else the CPU."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def to_device(value: Any) -> Any:
    """Return an input of a forward pass on the accelerator, if it is a tensor; no copy of pinned memory
    blocks.
    """
    return value.to(device(), non_blocking=True) if isinstance(value, torch.Tensor) else value


def claim_device() -> None:
    """Select a GPU of its own for each process of a machine, before models are loaded to the first one."""
    if torch.accelerator.is_available() and "LOCAL_RANK" in os.environ:
        torch.accelerator.set_device_index(int(os.environ["LOCAL_RANK"]))


def move(model: nn.Module, to: torch.device | None = None) -> None:
    """Move a model to a device; default: the accelerator, if there is one. A sharded one is where it belongs
    already, part of it perhaps in the host's memory.
    """
    if isinstance(model, PreTrainedModel) and (loading.is_outline(model) or is_sharded(model)):
        return
    # transformers wraps `PreTrainedModel.to` in a way that type checkers do not see through.
    nn.Module.to(model, device() if to is None else to)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Context in which a model is not in training; its mode is restored."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def load_classifier(folder: ModelFolder, **options: Any) -> Any:
    """Load a sequence classifier: one whose head reads pooled hidden states, or the architecture's own.

    Its `dtype` is that of `precision.of_scored_weights` by default, as that of a tagger is.
    """
    options = {"dtype": precision.of_scored_weights(), **options}
    if not loading.has_pooled_classifier(folder):
        return _load_with_head(AutoModelForSequenceClassification, folder, _NO_CLASSIFIER, options)
    loaded = loading.load(loading.saved_class(type(loading.read_config(folder))), folder, **options)
    # With `output_loading_info` it is a pair.
    loading.load_pooled_head(loaded[0] if isinstance(loaded, tuple) else loaded, folder)
    return loaded


def load_new_classifier(folder: ModelFolder, **options: Any) -> Any:
    """Load a base model with a new head for labels, which reads the hidden states pooled as the model pools
    them.
    """
    config = loading.read_config(folder)
    pooling = loading.pooling_of(folder, config)
    if pooling is not None:
        # The classifiers of ModernBERT and EuroBERT pool as their configuration says, each in its own words.
        options["pooling"] = "bos" if (config.model_type, pooling) == ("eurobert", "cls") else pooling
        if not hasattr(type(config), loading.POOLING):
            return loading.load(loading.pooled_class(type(config)), folder, **options)
    return _load_with_head(AutoModelForSequenceClassification, folder, _NO_CLASSIFIER, options)


def load_tagger(folder: ModelFolder, **options: Any) -> Any:
    """Load a token classifier."""
    return _load_with_head(
        AutoModelForTokenClassification,
        folder,
        "tokens in transformers; give an encoder such as BERT",
        {"dtype": precision.of_scored_weights(), **options},
    )


def _load_with_head(kind: type, folder: ModelFolder, missing: str, options: dict[str, Any]) -> Any:
    config = loading.read_config(folder)
    if not loading.has_kind(config, kind):
        raise SettingsError(
            f"base_model: {folder} (model_type {config.model_type}) has no head for {missing}"
        )
    return loading.load(kind, folder, **options)


def load_for_training(
    folder: ModelFolder,
    labels: list[str],
    added_tokens: Sequence[str] = (),
    *,
    load: Callable[..., Any] = load_classifier,
    keeps_head: bool = False,
    dtype: torch.dtype = torch.float32,
    **changes: object,
) -> PreTrainedModel:
    """Load a pretrained model with a new head for these labels and embeddings for added tokens, on the CPU.

    A head in the folder is not used, even if it has as many labels: its outputs may stand for other labels.

    Args:
        keeps_head: the folder's head is for these labels.

    Raises:
        SettingsError: weights below the head do not have the shapes of its configuration.
    """
    config = loading.read_config(folder)
    # A base model that was fine-tuned before may have another problem type.
    options = _without_attention_dropout(config) | {"problem_type": None, **changes}
    text = config.get_text_config()
    if getattr(text, "pad_token_id", None) is None:
        # A decoder's classifier looks for the last token that is not padding, and refuses batches without a
        # padding token.
        end = getattr(text, "eos_token_id", None)  # Llama 3 and others have several
        padding = {"pad_token_id": (end[0] if isinstance(end, list) else end) or 0}
        options |= padding if text is config else {"text_config": padding}
    model, loading_info = load(
        folder,
        num_labels=len(labels),
        id2label=dict(enumerate(labels)),
        label2id={label: i for i, label in enumerate(labels)},
        dtype=dtype,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
        **options,
    )
    head = () if keeps_head or model.base_model is model else layers.head_prefixes(model)
    misfits = sorted(name for name, *_ in loading_info["mismatched_keys"] if not name.startswith(head))
    if misfits:
        raise SettingsError(
            f"base_model: {folder}: {misfits[0]} does not have the shape of its config.json; copy the model"
            " again"
        )
    if {name for name in model.state_dict() if name.startswith(head)} - set(loading_info["missing_keys"]):
        _draw_anew(model, head)
    loading.initialise_added(model, folder, added_tokens)
    return model


@torch.no_grad()
def _draw_anew(model: PreTrainedModel, head: tuple[str, ...]) -> None:
    for prefix in head:
        for module in model.get_submodule(prefix.removesuffix(".")).modules():
            for weight in module.parameters(recurse=False):
                setattr(weight, _INITIALIZED_MARK, False)
            model._init_weights(module)


#: Models that take no text without a picture, whose language model is no part of its own, or whose logits are
#: not those of a head.
_OF_PICTURES = (
    "blip", "blip-2", "instructblip", "instructblipvideo", "pi0", "idefics", "kosmos-2", "molmo2",
    "chameleon", "nemotron_h_omni", "evolla", "git", "diffusion_gemma",
)  # fmt: skip


def load_causal(
    folder: ModelFolder,
    added_tokens: Sequence[str] = (),
    *,
    dtype: torch.dtype | None = None,
) -> PreTrainedModel:
    """Load a causal language model with embeddings for added tokens, on the CPU. Of one that reads pictures,
    too, what reads them is frozen.

    Args:
        folder: a transformers folder with safetensors: a base model, or a fine-tuned one, which has its added
            tokens already.
        dtype: of the weights. Default: `precision.of_scored_weights`.

    Raises:
        SettingsError: there is no language model in it.
    """
    config = loading.read_config(folder)
    problem = f"base_model: {folder} is no causal language model"
    # All of a model that reads pictures, too: what is not trained is saved as it was.
    kinds = (AutoModelForImageTextToText, AutoModelForCausalLM)
    kind = next((kind for kind in kinds if loading.has_kind(config, kind)), None)
    if kind is None or config.model_type in _OF_PICTURES:
        raise SettingsError(
            f"{problem} (model_type {config.model_type}); give one that predicts the next token, such as"
            " Llama or Qwen"
        )
    model, loading_info = loading.load(
        kind,
        folder,
        dtype=dtype or precision.of_scored_weights(),
        output_loading_info=True,
        **_without_attention_dropout(config),
    )
    if loading_info["missing_keys"]:
        # The missing weights would be random.
        raise SettingsError(
            f"{problem}: its weights lack {sorted(loading_info['missing_keys'])[0]}; give one whose"
            " safetensors have its output head"
        )
    loading.initialise_added(model, folder, added_tokens)
    if kind is AutoModelForImageTextToText:
        model.requires_grad_(False)
        for part in (model.get_decoder(), model.get_output_embeddings()):
            part.requires_grad_(True)
    return model


def _without_attention_dropout(config: PretrainedConfig) -> dict[str, object]:
    return {name: 0.0 for name in _ATTENTION_DROPOUT if hasattr(config, name)}


def predict_with(
    model: PreTrainedModel, chunks: Sequence[Sequence[Sequence[int]]], *, progress: Listener | None = None
) -> np.ndarray:
    """Return the probabilities [rows, labels] that a classifier gives documents, each pooled over its chunks,
    float32; the model's mode is restored.

    One label a row: the mean of the chunks' logits, then a softmax. Several: the mean of the chunks'
    probabilities of each label. A label of a single chunk still counts then, which a mean of logits would
    hide.
    """
    assert model.config.num_labels is not None, "a classifier knows its labels"
    logits = np.zeros((len(chunks), model.config.num_labels), np.float32)
    has_several = model.config.problem_type == MULTI_LABEL

    def read(items: Items, _: Inputs, output: Any) -> tuple[list[int], np.ndarray]:
        outputs = output.logits.float()
        return [row for row, _ in items], (outputs.sigmoid() if has_several else outputs).cpu().numpy()

    for rows, outputs in forward_batches(model, chunks, progress, read):
        np.add.at(logits, rows, outputs)
    logits /= np.array([len(document) for document in chunks], np.float32)[:, None]
    return logits if has_several else softmax(logits, axis=1)


def load_base(folder: ModelFolder) -> PreTrainedModel:
    """Load a base model without a head, in fp32."""
    return loading.load(AutoModel, folder, dtype=torch.float32)


def embed(
    model: PreTrainedModel, chunks: Sequence[Sequence[Sequence[int]]], *, progress: Listener | None = None
) -> np.ndarray:
    """Return a model's mean-pooled last hidden states [rows, hidden]; its mode is restored."""
    embeddings = np.zeros((len(chunks), model.config.hidden_size), np.float32)

    def read(items: Items, inputs: Inputs, output: Any) -> tuple[list[int], np.ndarray]:
        states = loading.pool(output.hidden_states[-1].float(), inputs["attention_mask"], "mean")
        return [row for row, _ in items], states.cpu().numpy()

    for rows, states in forward_batches(model, chunks, progress, read, output_hidden_states=True):
        np.add.at(embeddings, rows, states)
    return embeddings / np.array([len(document) for document in chunks], np.float32)[:, None]


def collate(chunks: Sequence[Sequence[int]], pad_id: int) -> dict[str, torch.Tensor]:
    """Pad chunks to the longest: `input_ids` and `attention_mask` [chunks, tokens]."""
    ids = [torch.tensor(chunk, dtype=torch.long) for chunk in chunks]
    masks = [torch.ones_like(chunk) for chunk in ids]
    return {
        "input_ids": pad_sequence(ids, batch_first=True, padding_value=pad_id),
        "attention_mask": pad_sequence(masks, batch_first=True),
    }


def forward_batches(
    model: PreTrainedModel,
    chunks: Sequence[Sequence[Sequence[int]]],
    progress: Listener | None,
    read: Callable[[Items, Inputs, Any], _Result],
    **options: object,
) -> Iterator[_Result]:
    """Yield what is read of each pass; the mode is restored.

    Args:
        read: returns it, in the host's memory, by the chunks of the pass, its inputs, padded, and the model's
            output.
        options: of the pass.
    """
    move(model)
    pad_id = model.config.get_text_config().pad_token_id or 0
    flat = [(row, number) for row, document in enumerate(chunks) for number in range(len(document))]
    # Longest first: a batch that does not fit fails at once, and equal lengths waste no padding.
    flat.sort(key=lambda item: -len(chunks[item[0]][item[1]]))

    def forward(start: int, end: int) -> _Result:
        items = flat[start:end]
        inputs = {
            name: value.to(device())
            for name, value in collate([chunks[i][n] for i, n in items], pad_id).items()
        }
        return read(items, inputs, model(**inputs, **options))

    with evaluating(model), torch.no_grad(), precision.autocast(precision.of_scores(model)):
        yield from in_batches([len(chunks[row][number]) for row, number in flat], forward, model, progress)


def in_batches(
    lengths: Sequence[int],
    forward: Callable[[int, int], _Result],
    model: nn.Module,
    progress: Listener | None,
    *,
    most_tokens: int | None = None,
) -> Iterator[_Result]:
    """Yield the result of each batch of chunks that are scored; if memory runs out, batches are halved, down
    to a single chunk.

    Args:
        forward: makes the forward pass of the chunks from the first index up to, not including, the second
            one, and returns what can be pickled.
        model: that is scored. Processes that share it, and those of `IS_DEALT`, have other batches at a
            time, and all get all results. Batches of a shared one are not halved: its processes wait for
            each other within a pass.
        progress: reports how many chunks are done; asked whether to stop after each batch.
        most_tokens: of a batch of several chunks. Default: what the device computes well.

    Raises:
        OutOfMemory: a single chunk does not fit.
        Interrupted: a stop was requested.
    """
    num_done = 0
    max_tokens = min(
        BATCH_TOKENS["cpu" if device().type == "cpu" else "gpu"], most_tokens or BATCH_TOKENS["gpu"]
    )
    is_shared = is_sharded(model)
    is_dealt = is_shared or IS_DEALT.get()
    num_processes = torch.distributed.get_world_size() if is_dealt else 1
    while num_done < len(lengths):
        edges = [num_done]
        while edges[-1] < len(lengths) and len(edges) <= num_processes:
            edges.append(min(len(lengths), edges[-1] + max(1, max_tokens // lengths[edges[-1]])))
        # All processes take part in each pass: one without a batch of its own makes the last one again.
        number = min(torch.distributed.get_rank() if is_dealt else 0, len(edges) - 2)
        start, end = edges[number : number + 2]
        results: list[Any] = [None]
        try:
            results[0] = forward(start, end)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if end - start == 1 or is_shared:
                raise _scoring_ran_out(
                    ("a single chunk" if end - start == 1 else f"{end - start:,} chunks")
                    + f" of {lengths[start]:,} tokens in a pass"
                ) from error
        if is_dealt:
            results *= num_processes
            torch.distributed.all_gather_object(results, results[0])
        if any(result is None for result in results):
            # The exception is gone here, and with it the frames that held the tensors of the failed pass.
            max_tokens = max((b - a) // 2 * lengths[a] for a, b in pairwise(edges))
            free_memory()
            continue
        yield from results[: len(edges) - 1]
        num_done = edges[-1]
        if progress is not None:
            progress.raise_if_stopped()
            progress.step(num_done, len(lengths))


@contextmanager
def scoring() -> Iterator[None]:
    """Report an out-of-memory error as one of scoring; training would otherwise halve its own passes, which
    does not help.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise _scoring_ran_out("beside the passes") from error


def _scoring_ran_out(where: str) -> OutOfMemory:
    return OutOfMemory(
        f"memory ran out while scoring ({where}), not while training; lower chunks.max_tokens, go down the"
        " memory ladder (training.optimizer, training.weights) or use a machine with more memory"
    )


def is_sharded(model: nn.Module) -> bool:
    """Return whether this process has only a part of the weights."""
    return any(isinstance(weight, DTensor) for weight in model.parameters())


def reshard(model: nn.Module) -> None:
    """Leave a sharded model its part of the weights; after a pass without gradients it still has the complete
    ones outside of its layers.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


#: Chunks of documents: the token ids of each.
Chunks = Sequence[Sequence[Sequence[int]]]


@dataclass(frozen=True)
class HeadWeights:
    """Weights of an output layer.

    Attributes:
        coefficients: [outputs, features].
        intercept: [outputs].
    """

    coefficients: np.ndarray
    intercept: np.ndarray


def output_layer(model: PreTrainedModel) -> nn.Linear:
    """Return the last linear layer of a model's head, which has an output for each label."""
    head = layers.head_prefixes(model)
    output_layers = [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and f"{name}.".startswith(head)
        and module.out_features == model.config.num_labels
    ]
    assert output_layers, f"{type(model).__name__} has a linear layer for its labels"
    return output_layers[-1]


def has_intercept(model: PreTrainedModel) -> bool:
    """Return whether a model's output layer has an intercept; the classifiers of decoders have none."""
    return output_layer(model).bias is not None


def set_head_weights(model: PreTrainedModel, weights: HeadWeights) -> None:
    """Put weights into a model's output layer; an intercept only where the layer has one. All processes that
    share the model must call this.
    """
    reshard(model)
    layer = output_layer(model)
    for weight, numbers in ((layer.weight, weights.coefficients), (layer.bias, weights.intercept)):
        if weight is not None:
            values = torch.from_numpy(numbers).to(weight.device, weight.dtype)
            if isinstance(weight, DTensor):
                values = distribute_tensor(values, weight.device_mesh, weight.placements)
            with torch.no_grad():
                weight.copy_(values)


def read_by_head(
    model: PreTrainedModel,
    chunks: Chunks,
    listener: Listener | None,
    pick: Callable[[Items, np.ndarray, list[int]], np.ndarray],
) -> Iterator[tuple[Items, np.ndarray]]:
    """Yield (document, chunk) of each chunk of a pass, and what is picked of what the output layer reads.

    Args:
        pick: takes the chunks, what the layer reads, and the chunks' lengths: [chunks, features] in a
            classifier, [chunks, tokens, features] in a tagger and in the classifier of a decoder. Processes
            that share the model send each other what it returns.
    """
    inputs_of_layer: list[torch.Tensor] = []
    hook = output_layer(model).register_forward_pre_hook(
        lambda layer, inputs: inputs_of_layer.append(inputs[0].float())
    )

    def read(items: Items, inputs: Inputs, _: Any) -> tuple[Items, np.ndarray]:
        return items, pick(
            items, inputs_of_layer.pop().cpu().numpy(), inputs["attention_mask"].sum(1).tolist()
        )

    try:
        yield from forward_batches(model, chunks, listener, read)
    finally:
        hook.remove()


def features_of_documents(
    model: PreTrainedModel, chunks: Chunks, listener: Listener | None = None
) -> np.ndarray:
    """Return the inputs of a classifier's output layer for each document [documents, features]: the means
    over its chunks. Of processes that share the model the first one gets them, the others zeros.
    """
    features = np.zeros((len(chunks), output_layer(model).in_features), np.float32)

    def pick(items: Items, states: np.ndarray, lengths: list[int]) -> np.ndarray:
        # A decoder's classifier: the last token decides.
        return states if states.ndim == 2 else states[np.arange(len(states)), np.array(lengths) - 1]

    for items, states in read_by_head(model, chunks, listener, pick):
        if is_first_rank():
            np.add.at(features, [row for row, _ in items], states)
    # Zeros that nobody writes take no memory.
    return (
        features / np.array([len(document) for document in chunks], np.float32)[:, None]
        if is_first_rank()
        else features
    )
