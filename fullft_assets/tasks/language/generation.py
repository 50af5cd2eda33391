"""What a language model writes: it continues texts (language_modeling) or answers conversations (sft),
greedily, so that it always writes the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from fullft_assets.chunks import Tokenization
from fullft_assets.chunks.chat import Message
from fullft_assets.errors import DataError
from fullft_assets.jobs.progress import Listener
from fullft_assets.models.inference import device, in_batches, move


class Writer:
    """A causal language model that writes with its tokenizer; it is moved to the accelerator, if there is
    one.
    """

    def __init__(self, model: PreTrainedModel, tokenization: Tokenization, max_new_tokens: int):
        self._model, self._tokenization = model, tokenization
        self._max_new_tokens = max_new_tokens
        self._end_ids = _end_ids(model, tokenization)

    def write(self, prompt: str | Sequence[Message]) -> str:
        """Return what follows a text, or the answer to a conversation; without special tokens.

        A prompt that leaves no room to write is cut at its beginning.

        Raises:
            DataError: there is nothing to continue, or the chat template refuses the conversation.
        """
        return self.write_all([prompt])[0]

    def write_all(
        self, prompts: Sequence[str | Sequence[Message]], progress: Listener | None = None
    ) -> list[str]:
        """Return what `write` returns for each prompt, several at a time."""
        read = [self._read(prompt) for prompt in prompts]
        # Longest first: a batch that does not fit fails at once.
        order = sorted(range(len(read)), key=lambda number: -len(read[number]))
        lengths = [len(read[number]) + self._max_new_tokens for number in order]

        def forward(start: int, end: int) -> list[tuple[int, str]]:
            batch_rows = order[start:end]
            return list(zip(batch_rows, self._continue([read[number] for number in batch_rows]), strict=True))

        written = dict(
            pair for batch in in_batches(lengths, forward, self._model, progress) for pair in batch
        )
        return [written[number] for number in range(len(read))]

    def _continue(self, prompts: Sequence[Sequence[int]]) -> list[str]:
        """Return what follows token ids; shorter prompts are padded on the left, where nothing attends to."""
        longest, end = max(map(len, prompts)), self._end_ids[0]
        inputs = torch.tensor([[end] * (longest - len(ids)) + list(ids) for ids in prompts], device=device())
        mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts], device=device())
        # Not the model folder's own settings: they may sample, and then no two answers are alike.
        config = GenerationConfig(
            max_new_tokens=self._max_new_tokens,
            do_sample=False,
            num_beams=1,
            use_cache=True,
            eos_token_id=self._end_ids,
            pad_token_id=self._end_ids[0],
        )
        was_training = self._model.training
        self._model.eval()
        move(self._model)
        try:
            # In the weights' own fp32: one token at a time, casting them costs more than it saves.
            with torch.inference_mode():
                generate: Any = self._model.generate
                generated = generate(inputs, attention_mask=mask, generation_config=config)
        finally:
            self._model.train(was_training)
        return [
            self._tokenization.tokenizer.decode(self._until_end(row), skip_special_tokens=True)
            for row in generated[:, longest:].tolist()
        ]

    def _until_end(self, ids: list[int]) -> list[int]:
        """Return the tokens up to the first that ends a text; what follows fills the batch."""
        ends = [place for place, token in enumerate(ids) if token in self._end_ids]
        return ids[: ends[0] + 1] if ends else ids

    def _read(self, prompt: str | Sequence[Message]) -> list[int]:
        tokenization = self._tokenization
        if isinstance(prompt, str):
            text, prefix = prompt, tokenization.prefix
        else:
            assert tokenization.chat is not None, "loaded for the task sft"
            text, prefix = tokenization.chat.render(prompt, add_generation_prompt=True), []
        ids = tokenization.tokenizer.encode(text, add_special_tokens=False).ids
        if not ids and not prefix:
            raise DataError("nothing to continue: the text is empty; give its beginning")
        longest = getattr(self._model.config, "max_position_embeddings", None)
        if isinstance(longest, int):
            ids = ids[-max(1, longest - self._max_new_tokens - len(prefix)) :]
        return [*prefix, *ids]


def _end_ids(model: PreTrainedModel, tokenization: Tokenization) -> list[int]:
    """Return the tokens that end what is written: the model's own, the text's end, and those that may end a
    turn.
    """
    named = [
        model.config.eos_token_id,
        getattr(model.generation_config, "eos_token_id", None),
        tokenization.end_id,
    ]
    if tokenization.chat is not None:
        named += [tokenization.tokenizer.token_to_id(token) for token in tokenization.chat.ends]
    flat = [number for name in named for number in (name if isinstance(name, list) else [name])]
    return list(dict.fromkeys(number for number in flat if number is not None)) or [0]
