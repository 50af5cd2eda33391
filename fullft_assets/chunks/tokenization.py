"""Tokenization: texts and conversations -> chunks of token ids, by a model's tokenizer and the settings.

Domain terms may be added to the tokenizer as tokens of their own.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fullft_assets.base_model import ModelFolder, resolve_base_model
from fullft_assets.chunks import cutting
from fullft_assets.chunks.chat import ChatTemplate, read_special_tokens, read_template
from fullft_assets.errors import SettingsError
from fullft_assets.settings import ChunksSettings
from fullft_assets.store import digest
from fullft_assets.task import TASKS

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from fullft_assets.settings.use_case import UseCase

#: What a transformers folder has of a tokenizer, and for pictures, beside weights and configuration.
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "vocab.txt",
    "vocab.json", "merges.txt", "processor_config.json", "preprocessor_config.json",
    "video_preprocessor_config.json",
)  # fmt: skip


def read_tokenizer(model_folder: ModelFolder, added_tokens: Sequence[str] = ()) -> Tokenizer:
    """Read a model folder's `tokenizer.json` and add tokens to it.

    Raises:
        SettingsError: there is no such file, it cannot be read, or a token cannot be added.
    """
    from tokenizers import Tokenizer

    path = _tokenizer_file(model_folder)
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception for whatever is wrong in the file
        raise SettingsError(f"{path}: not a tokenizer ({error})") from error
    # Files often carry a truncation and a padding of their own; both would cut or pad silently here.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    add_terms(tokenizer, added_tokens)
    return tokenizer


def _tokenizer_file(model_folder: ModelFolder) -> Path:
    if not (path := model_folder / "tokenizer.json").is_file():
        raise SettingsError(f"{path}: not found; base_model needs a fast tokenizer (tokenizer.json)")
    return path


def save_tokenizer(model_folder: ModelFolder, added_tokens: Sequence[str], target: Path) -> None:
    """Copy a model's tokenizer files and chat template, with tokens added, into the folder of a model that
    was trained with them.
    """
    for name in TOKENIZER_FILES:
        if (model_folder / name).is_file():
            shutil.copy(model_folder / name, target / name)
    if added_tokens:
        read_tokenizer(model_folder, added_tokens).save(str(target / "tokenizer.json"))


def add_terms(tokenizer: Tokenizer, terms: Sequence[str]) -> None:
    """Add terms as tokens that match complete words.

    Raises:
        SettingsError: a term is blank, or is given twice.
    """
    from tokenizers import AddedToken

    for term in terms:
        if not term.strip() or term != term.strip():
            raise SettingsError(
                f"chunks.added_tokens: {term!r} is blank or has white space around it; give the word itself"
            )
    if twice := {term for term in terms if terms.count(term) > 1}:
        raise SettingsError(f"chunks.added_tokens: `{min(twice)}` is given twice")
    # A normalizer that lower-cases must do so to the term, too. One that writes spaces as a mark would put a
    # mark before the term, which then is not seen as the beginning of a word.
    normalized = tokenizer.normalizer is not None and tokenizer.normalizer.normalize_str("a a") == "a a"
    tokenizer.add_tokens(
        [AddedToken(term, single_word=True, normalized=normalized, special=False) for term in terms]
    )


def pieces(tokenizer: Tokenizer, terms: Sequence[str]) -> list[list[int]]:
    """Return the ids that each term is split into inside a text: with or without a space before it, whichever
    are fewer.
    """
    plain = tokenizer.encode_batch_fast(list(terms), add_special_tokens=False)
    after_space = tokenizer.encode_batch_fast([f" {term}" for term in terms], add_special_tokens=False)
    return [min(a.ids, b.ids, key=len) for a, b in zip(plain, after_space, strict=True)]


def former_pieces(model_folder: ModelFolder, added_tokens: Sequence[str]) -> dict[int, list[int]]:
    """Return for each token that is new to a model's tokenizer the ids that its term was split into before.

    The mean of their embeddings is where the new token's embedding starts (Hewitt, "Initializing New Word
    Embeddings for Pretrained Language Models", 2021: a random start ruins a language model's predictions). A
    term that the vocabulary has already is no new token.
    """
    base = read_tokenizer(model_folder)
    extended = read_tokenizer(model_folder, added_tokens).get_vocab()
    base_ids = set(base.get_vocab().values())
    return {
        extended[term]: ids
        for term, ids in zip(added_tokens, pieces(base, added_tokens), strict=True)
        if extended[term] not in base_ids
    }


@dataclass(frozen=True)
class Tokenization:
    """A tokenizer with the use case's chunk settings.

    Attributes:
        tokenizer: with `chunks.added_tokens`, without truncation and padding.
        prefix: special tokens before each chunk.
        suffix: special tokens behind each chunk.
        unknown_id: id of the unknown token, if there is one.
        settings: of the chunks.
        digest: of the tokenizer, see `tokenizer_digest`.
        end_id: token behind each text (task language_modeling).
        chat: the model's chat template (task sft); it writes the special tokens, so a chunk gets none of its
            own.
    """

    tokenizer: Tokenizer = field(repr=False)
    prefix: list[int]
    suffix: list[int]
    unknown_id: int | None
    settings: ChunksSettings
    digest: str
    end_id: int | None = None
    chat: ChatTemplate | None = None

    @classmethod
    def load(
        cls, model_folder: ModelFolder, settings: ChunksSettings, task: str = "classification"
    ) -> Tokenization:
        """Read the tokenizer of a base model and add `chunks.added_tokens` to it.

        Raises:
            SettingsError: there is no `tokenizer.json`; special tokens leave no room for text; or the task
                needs an end-of-text token or a chat template that the model lacks.
        """
        if (kind := TASKS.get(task)).ends_texts:
            # Also of the plain texts that conversations are mixed with: all their tokens are trained, and a
            # shared one would count twice.
            settings = settings.model_copy(update={"stride": 0})
        tokenizer = read_tokenizer(model_folder, settings.added_tokens)
        prefix, suffix = _special_ids(tokenizer)
        end_id = None
        chat = None
        if kind.ends_texts:
            suffix = []
            end_id = _end_id(model_folder, tokenizer)
        elif kind.has_messages:
            prefix = []
            suffix = []
            chat = ChatTemplate.load(model_folder, _special_tokens(tokenizer))
        if len(prefix) + len(suffix) + 1 > settings.max_tokens - settings.stride:
            raise SettingsError(
                f"chunks.max_tokens: {settings.max_tokens} leaves no room beside special tokens and stride"
            )
        unknown_token = getattr(tokenizer.model, "unk_token", None)
        unknown_id = tokenizer.token_to_id(unknown_token) if unknown_token else None
        return cls(
            tokenizer,
            prefix,
            suffix,
            unknown_id,
            settings,
            tokenizer_digest(model_folder, settings, task),
            end_id,
            chat,
        )

    @classmethod
    def load_saved(
        cls, model_folder: ModelFolder, settings: ChunksSettings, task: str = "classification"
    ) -> Tokenization:
        """Read the tokenizer of a fine-tuned model, whose file has the tokens that were added when it was
        trained.

        What the YAML adds today would have no embedding in it.
        """
        return cls.load(model_folder, settings.model_copy(update={"added_tokens": []}), task)

    @property
    def room(self) -> cutting.Room:
        """The size of a chunk without special tokens."""
        settings = self.settings
        return cutting.Room(
            settings.max_tokens - len(self.prefix) - len(self.suffix), settings.stride, settings.max_chunks
        )

    @cached_property
    def _control(self) -> re.Pattern[str] | None:
        special = sorted(filter(None, _special_tokens(self.tokenizer)))
        return re.compile("|".join(map(re.escape, special))) if special else None

    def holds_control_token(self, text: str) -> bool:
        """Return whether a text spells out a special token, which the tokenizer reads as that token."""
        return self._control is not None and self._control.search(text) is not None

    @cached_property
    def byte_tokens(self) -> np.ndarray:
        """For each id whether its token is only a part of a character: bool [vocabulary]."""
        size = max(self.tokenizer.get_vocab().values()) + 1
        # What is no whole character cannot be decoded by itself.
        alone = self.tokenizer.decode_batch([[number] for number in range(size)])
        return np.array(["\ufffd" in text for text in alone])

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Return each text's token ids, without special tokens."""
        tokens = cutting.encode(self.tokenizer, texts)
        return [part.tolist() for part in np.split(tokens.ids, tokens.bounds[1:-1])] if texts else []

    def read(self, texts: Sequence[str], *, spans: bool = False) -> tuple[cutting.Encoded, cutting.Cuts]:
        """Tokenise texts and cut them into chunks, flat; `spans`: with the characters of every token."""
        tokens = cutting.encode(self.tokenizer, texts, spans=spans)
        if self.end_id is not None:
            tokens = _append(tokens, self.end_id)
        return tokens, cutting.cut(tokens, self.room)

    def chunks(self, texts: Sequence[str]) -> list[list[list[int]]]:
        """Return each text's chunks of token ids, with special tokens, as in a batch's `chunks.parquet`."""
        return self.chunks_with_lengths(texts)[0]

    def chunks_with_lengths(self, texts: Sequence[str]) -> tuple[list[list[list[int]]], list[int]]:
        """Return each text's chunks, and its length in tokens."""
        tokens, cuts = self.read(texts)
        chunks_of_texts = cutting.to_lists(*cutting.gather(tokens.ids, cuts, self.prefix, self.suffix), cuts)
        return chunks_of_texts, tokens.lengths().tolist()


def load_tokenization(use_case: UseCase) -> Tokenization:
    """Return the base model's tokenizer with the use case's settings; a process that needs it again and again
    reads it once.
    """
    settings = use_case.settings
    folder = resolve_base_model(settings.base_model, use_case.project_root)
    return _load(
        folder, settings.chunks.model_dump_json(), settings.examples.task, tokenizer_digest_of(use_case)
    )


@lru_cache(maxsize=4)
def _load(folder: Path, chunks: str, task: str, digest: str) -> Tokenization:
    # The digest is there to notice a tokenizer whose files have changed.
    return Tokenization.load(folder, ChunksSettings.model_validate_json(chunks), task)


def tokenizer_digest_of(use_case: UseCase) -> str:
    """Return the `tokenizer_digest` of a use case's base model and settings."""
    settings = use_case.settings
    folder = resolve_base_model(settings.base_model, use_case.project_root)
    return tokenizer_digest(folder, settings.chunks, settings.examples.task)


def tokenizer_digest(model_folder: ModelFolder, settings: ChunksSettings, task: str) -> str:
    """Return the digest of what turns a text into ids: the tokenizer's file, added tokens and, per task, end
    token and chat template.

    Raises:
        SettingsError: there is no `tokenizer.json`.
    """
    file = hashlib.sha256(_tokenizer_file(model_folder).read_bytes()).hexdigest()[:20]
    more = {}
    if settings.added_tokens:
        more["added_tokens"] = list(settings.added_tokens)
    if TASKS.get(task).is_generative:
        more["special_tokens"] = read_special_tokens(model_folder)
    if TASKS.get(task).has_messages:
        more["chat_template"] = read_template(model_folder)
    return digest({"tokenizer": file, **more}) if more else file


def _append(tokens: cutting.Encoded, end_id: int) -> cutting.Encoded:
    at = tokens.bounds[1:]
    if (spans := tokens.spans) is not None:
        # It covers no character: an empty place behind the text's last.
        ends = np.where(tokens.lengths() > 0, spans[np.maximum(at - 1, 0), 1], 0)
        spans = np.insert(spans, at, np.stack([ends, ends], axis=1), axis=0)
    return cutting.Encoded(
        np.insert(tokens.ids, at, end_id),
        tokens.bounds + np.arange(len(tokens.bounds)),
        spans,
    )


def _special_tokens(tokenizer: Tokenizer) -> list[str]:
    return [token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special]


def _special_ids(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    plain = tokenizer.encode("a", add_special_tokens=False).ids
    full = tokenizer.encode("a", add_special_tokens=True).ids
    for start in range(len(full) - len(plain) + 1):
        if full[start : start + len(plain)] == plain:
            return full[:start], full[start + len(plain) :]
    raise SettingsError("tokenizer.json: its post-processor changes the text's own ids; it cannot be chunked")


def _end_id(model_folder: ModelFolder, tokenizer: Tokenizer) -> int:
    token = read_special_tokens(model_folder).get("eos_token")
    number = tokenizer.token_to_id(token) if token else None
    if number is None:
        raise SettingsError(
            f"base_model: {model_folder}/tokenizer_config.json names no eos_token of its tokenizer, which"
            " marks where a plain text ends; name it there"
        )
    return number
