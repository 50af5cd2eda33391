"""Forward passes: label probabilities and embeddings of windowed documents, pooled to one row a document."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PretrainedConfig,
    PreTrainedModel,
)

from fullft_assets.base_model import ModelFolder
from fullft_assets.errors import OutOfMemory, SettingsError, is_out_of_memory
from fullft_assets.models import layers, loading, precision
from fullft_assets.models.embeddings import initialise_added
from fullft_assets.models.precision import Precision

if TYPE_CHECKING:
    from fullft_assets.jobs.process import Progress

_Found = TypeVar("_Found")
#: Padded tokens in one forward pass: a GPU wants many, a CPU as many as stay in its caches.
BATCH_TOKENS = {"cuda": 32_768, "cpu": 2_048}

#: What a configuration calls several labels a row (`problem_type`).
MULTI_LABEL = "multi_label_classification"
#: What configurations call the dropout of attention weights (BERT; Llama, Qwen, GPT-NeoX; GPT-2).
_ATTENTION_DROPOUT = ("attention_probs_dropout_prob", "attention_dropout", "attn_pdrop")


@dataclass(frozen=True)
class Prediction:
    """`probabilities` [rows, labels] and mean-pooled last hidden states `embeddings` [rows, hidden], float32."""

    probabilities: np.ndarray
    embeddings: np.ndarray


def device() -> torch.device:
    """Return the accelerator that is there, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def claim_device() -> None:
    """Have each of a machine's processes compute on a GPU of its own. Trainer does so, too, but after models are loaded to the first one."""
    if torch.cuda.is_available() and "LOCAL_RANK" in os.environ:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))


def place(model: PreTrainedModel) -> None:
    """Move a model to the accelerator; one that lies in parts on several processes is where it belongs, some of it in the host's memory."""
    if not _is_in_parts(model):
        model.to(device())


def load_classifier(folder: ModelFolder, *, dtype: torch.dtype = torch.float32, **options: object) -> PreTrainedModel:
    """Load a sequence classifier.

    Raises:
        SettingsError: models of its kind have no such head.
    """
    config = loading.read_config(folder)
    if not loading.has_kind(config, AutoModelForSequenceClassification):
        raise SettingsError(
            f"base_model: {folder} (model_type {config.model_type}) has no head for labels in transformers, nor in its own code"
        )
    return loading.load(AutoModelForSequenceClassification, folder, dtype=dtype, **options)


def load_tagger(folder: ModelFolder, *, dtype: torch.dtype = torch.float32, **options: object) -> PreTrainedModel:
    """Load a token classifier.

    Raises:
        SettingsError: models of its kind have no head for tokens.
    """
    config = loading.read_config(folder)
    if not loading.has_kind(config, AutoModelForTokenClassification):
        raise SettingsError(
            f"base_model: {folder} (model_type {config.model_type}) has no head for tokens in transformers; give an encoder such as BERT"
        )
    return loading.load(AutoModelForTokenClassification, folder, dtype=dtype, **options)


def load_for_training(
    folder: ModelFolder,
    labels: list[str],
    attention_dropout: float | None,
    added_tokens: Sequence[str] = (),
    *,
    load: Callable[..., PreTrainedModel] = load_classifier,
    keeps_head: bool = False,
    dtype: torch.dtype = torch.float32,
    **changes: object,
) -> PreTrainedModel:
    """Load a pretrained model with a new head for these labels and embeddings for added tokens, on the CPU.

    A head that the folder has is left out, be it of as many labels: which labels its outputs were is not known to be the same. What was left
    out is the model's `left_out_head`, which is empty where there was none.

    Args:
        folder: a transformers folder with safetensors.
        labels: names of the head's outputs.
        attention_dropout: in place of the model's own.
        added_tokens: that its tokenizer did not have.
        load: what reads the model.
        keeps_head: the folder's head is the one for these labels.
        dtype: of the weights.
        changes: of its configuration.

    Raises:
        SettingsError: weights below the head do not have the shapes that its configuration says.
    """
    config = loading.read_config(folder)
    # A base model that was fine-tuned before may name another problem.
    options = _dropout(config, attention_dropout) | {"problem_type": None, **changes}
    if config.pad_token_id is None:
        # A decoder's classifier looks for the last token that is no padding, and refuses batches without a padding token.
        options["pad_token_id"] = _end_token(config)
    model, found = load(
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
    misfits = sorted(name for name, *_ in found["mismatched_keys"] if not name.startswith(head))
    if misfits:
        raise SettingsError(f"base_model: {folder}: {misfits[0]} does not have the shape that its config.json says; copy the model again")
    brought = {name for name in model.state_dict() if name.startswith(head)} - set(found["missing_keys"])
    if brought:
        _draw_anew(model, head)
    model.left_out_head = f"of {config.num_labels} labels" if brought else ""
    initialise_added(model, folder, added_tokens)
    return model


@torch.no_grad()
def _draw_anew(model: PreTrainedModel, head: tuple[str, ...]) -> None:
    for prefix in head:
        for module in model.get_submodule(prefix.removesuffix(".")).modules():
            for weight in module.parameters(recurse=False):
                # transformers' mark of what was read, which it does not draw.
                weight._is_hf_initialized = False
            model._init_weights(module)


def load_causal(
    folder: ModelFolder, added_tokens: Sequence[str] = (), *, attention_dropout: float | None = None, dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """Load a causal language model with embeddings for added tokens, on the CPU.

    Args:
        folder: a transformers folder with safetensors: a base model, or a fine-tuned one, which has its added tokens.
        added_tokens: that a base model's tokenizer did not have.
        attention_dropout: in place of the model's own.
        dtype: of the weights.

    Raises:
        SettingsError: there is no language model in it.
    """
    config = loading.read_config(folder)
    refusal = f"base_model: {folder} is no causal language model"
    if not loading.has_kind(config, AutoModelForCausalLM):
        raise SettingsError(f"{refusal} (model_type {config.model_type}); give one that predicts the next token, such as Llama or Qwen")
    model, found = loading.load(AutoModelForCausalLM, folder, dtype=dtype, output_loading_info=True, **_dropout(config, attention_dropout))
    if found["missing_keys"]:
        # They would be random.
        raise SettingsError(
            f"{refusal}: its weights lack {sorted(found['missing_keys'])[0]}; give one whose safetensors have its output head"
        )
    initialise_added(model, folder, added_tokens)
    return model


def _dropout(config: PretrainedConfig, attention_dropout: float | None) -> dict[str, object]:
    return {name: attention_dropout for name in _ATTENTION_DROPOUT if attention_dropout is not None and hasattr(config, name)}


def _end_token(config: PretrainedConfig) -> int:
    # Llama 3 and others name several.
    end = config.eos_token_id
    return (end[0] if isinstance(end, list) else end) or 0


def predict(model_folder: ModelFolder, windows: list[list[list[int]]], *, progress: Progress | None = None) -> Prediction:
    """Classify documents with a fine-tuned model, each pooled over its windows.

    One label a row: the mean of the windows' logits, then a softmax. Several: the mean of the windows' probabilities, each
    label's own. What stands in one window alone still counts there, where a mean of logits would drown it.

    Args:
        model_folder: a transformers folder with a sequence classifier.
        windows: each document's windows of token ids.
        progress: told how many windows are done.
    """
    return predict_with(load_classifier(model_folder), windows, progress=progress)


def predict_with(model: PreTrainedModel, windows: list[list[list[int]]], *, progress: Progress | None = None) -> Prediction:
    """Like `predict`, with a model that is loaded already; its mode is restored."""
    logits = np.zeros((len(windows), model.config.num_labels), np.float32)
    embeddings = np.zeros((len(windows), model.config.hidden_size), np.float32)
    has_several = model.config.problem_type == MULTI_LABEL
    for rows, output, pooled in _forward(model, windows, progress):
        found = output.logits.float()
        np.add.at(logits, rows, (found.sigmoid() if has_several else found).cpu().numpy())
        np.add.at(embeddings, rows, pooled)
    counts = np.array([len(document) for document in windows], np.float32)[:, None]
    logits /= counts
    if has_several:
        return Prediction(logits, embeddings / counts)
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return Prediction(shifted / shifted.sum(axis=1, keepdims=True), embeddings / counts)


def embed(
    model_folder: ModelFolder,
    windows: list[list[list[int]]],
    *,
    added_tokens: Sequence[str] = (),
    computed_in: Precision | None = None,
    progress: Progress | None = None,
) -> np.ndarray:
    """Return the mean-pooled last hidden state [rows, hidden] of a base model, as it is before any training.

    Args:
        model_folder: a transformers folder with safetensors.
        windows: each document's windows of token ids.
        added_tokens: that its tokenizer did not have.
        computed_in: of the passes. Default: what `auto` is on this machine.
        progress: told how many windows are done.
    """
    model = loading.load(AutoModel, model_folder, dtype=torch.float32)
    model.scored_in = computed_in
    initialise_added(model, model_folder, added_tokens)
    return embed_with(model, windows, progress=progress)


def embed_with(model: PreTrainedModel, windows: list[list[list[int]]], *, progress: Progress | None = None) -> np.ndarray:
    """Like `embed`, with a model that is loaded already; its mode is restored."""
    embeddings = np.zeros((len(windows), model.config.hidden_size), np.float32)
    for rows, _, pooled in _forward(model, windows, progress):
        np.add.at(embeddings, rows, pooled)
    return embeddings / np.array([len(document) for document in windows], np.float32)[:, None]


def collate(windows: list[list[int]], pad_id: int) -> dict[str, torch.Tensor]:
    """Pad windows to the longest: `input_ids` and `attention_mask` [windows, tokens]."""
    longest = max(map(len, windows))
    ids = torch.full((len(windows), longest), pad_id, dtype=torch.long)
    mask = torch.zeros((len(windows), longest), dtype=torch.long)
    for i, window in enumerate(windows):
        ids[i, : len(window)] = torch.tensor(window)
        mask[i, : len(window)] = 1
    return {"input_ids": ids, "attention_mask": mask}


def _forward(model: PreTrainedModel, windows: list[list[list[int]]], progress: Progress | None) -> Iterator:
    for items, inputs, output in forward_batches(model, windows, progress, output_hidden_states=True):
        mask = inputs["attention_mask"].unsqueeze(-1)
        hidden = output.hidden_states[-1].float() * mask
        pooled = (hidden.sum(1) / mask.sum(1)).cpu().numpy()
        yield np.array([row for row, _ in items]), output, pooled


def forward_batches(
    model: PreTrainedModel, windows: list[list[list[int]]], progress: Progress | None, **options: object
) -> Iterator[tuple[list[tuple[int, int]], dict[str, torch.Tensor], Any]]:
    """Yield (document, window) of each window of a pass, its inputs, padded, and the model's output; the mode is restored.

    Args:
        model: not wrapped.
        windows: each document's windows of token ids.
        progress: told how many windows are done.
        options: of the forward pass.

    Raises:
        OutOfMemory: a single window does not fit.
    """
    was_training = model.training
    model.eval()
    place(model)
    pad_id = model.config.pad_token_id or 0
    flat = [(row, number) for row, document in enumerate(windows) for number in range(len(document))]
    # Longest first: a batch that does not fit fails at once, and equal lengths waste no padding.
    flat.sort(key=lambda item: -len(windows[item[0]][item[1]]))

    def look(start: int, end: int) -> tuple[list[tuple[int, int]], dict[str, torch.Tensor], Any]:
        items = flat[start:end]
        inputs = {name: value.to(device()) for name, value in collate([windows[i][n] for i, n in items], pad_id).items()}
        return items, inputs, model(**inputs, **options)

    with torch.no_grad(), precision.autocast(precision.of_scores(model)):
        yield from in_batches([len(windows[row][number]) for row, number in flat], look, model, progress)
    model.train(was_training)


def in_batches(lengths: Sequence[int], look: Callable[[int, int], _Found], model: nn.Module, progress: Progress | None) -> Iterator[_Found]:
    """Yield what `look` finds in batches of windows that are scored; where memory runs out they are halved, down to a single window.

    Args:
        lengths: tokens of each window, the longest first.
        look: makes the forward pass of the windows from a first one up to, not including, a last one.
        model: that is scored. Halving is no way for one in parts: its processes wait for each other within a pass.
        progress: told how many windows are done, and asked whether to stop after each batch of those that there are without halving.

    Raises:
        OutOfMemory: a single window does not fit.
        Interrupted: a stop was requested.
    """
    done, most_tokens = 0, BATCH_TOKENS[device().type]

    def end_of(start: int, tokens: int) -> int:
        return min(len(lengths), start + max(1, tokens // lengths[start]))

    asked_at = end_of(0, most_tokens) if lengths else 0
    while done < len(lengths):
        end = end_of(done, most_tokens)
        ran_out = False
        try:
            found = look(done, end)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if end - done == 1 or _is_in_parts(model):
                many = "a single window" if end - done == 1 else f"{end - done:,} windows"
                raise _scoring_ran_out(f"{many} of {lengths[done]:,} tokens in a pass") from error
            ran_out = True
        if ran_out:
            # The exception is gone here, and with it the frames that held the tensors of the failed pass.
            most_tokens = (end - done) // 2 * lengths[done]
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            continue
        yield found
        done = end
        if progress is None:
            continue
        # Ranks ask together: each as often, whoever halves its batches.
        while asked_at <= done:
            progress.raise_if_stopped()
            if asked_at == len(lengths):
                break
            asked_at = end_of(asked_at, BATCH_TOKENS[device().type])
        progress.step(done, len(lengths))


@contextmanager
def scoring() -> Iterator[None]:
    """Say what memory ran out in: training takes it for a pass of its own, and would halve those in vain.

    Raises:
        OutOfMemory: memory ran out.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise _scoring_ran_out("beside the passes") from error


def _scoring_ran_out(where: str) -> OutOfMemory:
    return OutOfMemory(
        f"memory ran out while scoring ({where}), not while training; lower chunks.max_tokens, go down the memory ladder "
        "(training.optimizer, training.weights) or use a machine with more memory"
    )


def _is_in_parts(model: nn.Module) -> bool:
    return any(isinstance(weight, DTensor) for weight in model.parameters())
