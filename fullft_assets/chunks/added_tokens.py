"""Added tokens: domain terms that the tokenizer gets as tokens of their own, and what they were split into
before.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fullft_assets.base_model import ModelFolder
from fullft_assets.errors import SettingsError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

#: What a transformers folder has of a tokenizer, beside weights and configuration.
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "vocab.txt",
    "vocab.json", "merges.txt",
)  # fmt: skip


def read_tokenizer(model_folder: ModelFolder, added_tokens: Sequence[str] = ()) -> Tokenizer:
    """Read a model folder's `tokenizer.json` and add tokens to it.

    Raises:
        SettingsError: there is no such file, it cannot be read, or a token cannot be added.
    """
    from tokenizers import Tokenizer

    path = model_folder / "tokenizer.json"
    if not path.is_file():
        raise SettingsError(f"{path}: not found; base_model needs a fast tokenizer (tokenizer.json)")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception for whatever is wrong in the file
        raise SettingsError(f"{path}: not a tokenizer ({error})") from error
    # Files often carry a truncation and a padding of their own; both would cut or pad silently here.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    add(tokenizer, added_tokens)
    return tokenizer


def save_tokenizer(model_folder: ModelFolder, added_tokens: Sequence[str], target: Path) -> None:
    """Copy a model's tokenizer files and chat template, with tokens added, into the folder of a model that
    was trained with them.
    """
    for name in TOKENIZER_FILES:
        if (model_folder / name).is_file():
            shutil.copy(model_folder / name, target / name)
    if added_tokens:
        read_tokenizer(model_folder, added_tokens).save(str(target / "tokenizer.json"))


def add(tokenizer: Tokenizer, terms: Sequence[str]) -> None:
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
    twice = {term for term in terms if terms.count(term) > 1}
    if twice:
        raise SettingsError(f"chunks.added_tokens: `{min(twice)}` is given twice")
    # A normalizer that lower-cases must do so to the term, too. One that writes spaces as a mark would put a
    # mark before the term, which then is not seen as the beginning of a word.
    normalizer = tokenizer.normalizer
    normalized = normalizer is not None and normalizer.normalize_str("a a") == "a a"
    tokenizer.add_tokens(
        [AddedToken(term, single_word=True, normalized=normalized, special=False) for term in terms]
    )


def pieces(tokenizer: Tokenizer, terms: Sequence[str]) -> list[list[int]]:
    """Return the ids that each term is split into inside a text: with or without a space before it, whichever
    are fewer.
    """
    plain = tokenizer.encode_batch_fast(list(terms), add_special_tokens=False)
    spaced = tokenizer.encode_batch_fast([f" {term}" for term in terms], add_special_tokens=False)
    return [min(a.ids, b.ids, key=len) for a, b in zip(plain, spaced, strict=True)]


def former_pieces(model_folder: ModelFolder, added_tokens: Sequence[str]) -> dict[int, list[int]]:
    """Return for each token that is new to a model's tokenizer the ids that its term was split into before.

    The mean of their embeddings is where the new token's embedding starts (Hewitt, "Initializing New Word
    Embeddings for Pretrained Language Models", 2021: a random start ruins a language model's predictions). A
    term that the vocabulary has already is no new token.
    """
    base = read_tokenizer(model_folder)
    extended = read_tokenizer(model_folder, added_tokens)
    known = set(base.get_vocab().values())
    pieces_by_token = {}
    for term, former in zip(added_tokens, pieces(base, added_tokens), strict=True):
        new = extended.token_to_id(term)
        if new not in known:
            pieces_by_token[new] = former
    return pieces_by_token
