"""Texts inside longer ones on the other side of the split: mails quoted in replies, made of real licence
texts, against comparing all pairs.
"""

import random
import re
import textwrap
from functools import cache

import numpy as np
import pyarrow as pa
import pytest

from fullft_assets.demos import licences
from fullft_assets.snapshot.near_text import pairs as near_texts

SHARE, SEED, NUM_MAILS = 0.95, 17, 150


@cache
def passages() -> list[str]:
    """Real texts of 30 to 250 words, no two of which begin alike."""
    found: dict[str, str] = {}
    for rule in sorted(licences.rules(), key=lambda rule: rule["id"][::-1]):
        words = re.findall(r"\w+", rule["text"].lower())
        if 30 <= len(words) <= 250:
            found.setdefault(" ".join(words[:6]), rule["text"])
    return list(found.values())[: 6 * NUM_MAILS]


def quoted(text: str) -> str:
    """Return a text as a mail program quotes it: wrapped, each line with a mark."""
    return textwrap.indent(textwrap.fill(" ".join(text.split()), 72), "> ")


@cache
def mails() -> tuple[list[str], list[str]]:
    """Return mails, and other ones: the first are replies to the mails, the rest have nothing of theirs."""
    chosen, texts = random.Random(SEED), passages()
    first, rest = texts[:NUM_MAILS], texts[NUM_MAILS:]
    replies = [
        f"{chosen.choice(rest)}\n\nOn Monday someone wrote:\n{quoted(text)}\n-- \n{chosen.choice(rest)}"
        for text in first
    ]
    return first, [*replies, *rest]


@cache
def shingles(text: str) -> frozenset[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return frozenset(tuple(words[n : n + 3]) for n in range(len(words) - 2))


def share_of(first: str, second: str) -> float:
    """Return the share of the shingles of the shorter one of two texts that the other one has."""
    mine, theirs = shingles(first), shingles(second)
    return len(mine & theirs) / min(len(mine), len(theirs))


def containing(reference: list[str], candidates: list[str]) -> set[int]:
    texts = pa.array([*reference, *candidates])
    roles = np.repeat([near_texts.REFERENCE, near_texts.UNLIKE], [len(reference), len(candidates)])
    found = near_texts.Texts([near_texts.sketch(texts).column], texts.take).compare_contained(
        roles, np.zeros_like(roles), SHARE
    )
    return set(np.flatnonzero(found[len(reference) :] == near_texts.ALIKE).tolist())


def test_found_are_those_that_comparing_every_pair_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_texts, "MAX_ROWS", 10_000)  # the texts of licences have standard clauses
    reference, candidates = mails()
    expected = {
        n for n, text in enumerate(candidates) if any(share_of(first, text) >= SHARE for first in reference)
    }
    assert set(range(NUM_MAILS)) <= expected, "each mail is in its reply"
    assert containing(reference, candidates) == expected


@pytest.mark.parametrize(("num_edits", "least"), [(1, 0.95), (2, 0.9)])
def test_a_quote_with_an_edit_is_found(num_edits: int, least: float) -> None:
    """Words replaced in quotes so long that this leaves 95% of the shingles."""
    chosen = random.Random(SEED)
    reference = [text for text in passages() if len(text.split()) > 80 * num_edits]
    changed = []
    for text in reference:
        words = text.split()
        for at in chosen.sample(range(len(words)), num_edits):
            words[at] = "otherwise"
        changed.append(f"{chosen.choice(passages())} {' '.join(words)}")
    expected = {n for n, text in enumerate(changed) if share_of(reference[n], text) >= SHARE}
    assert len(expected) > 50 and len(containing(reference, changed) & expected) >= least * len(expected)
