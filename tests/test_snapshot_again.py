"""Later snapshots compare what is new, and are those that comparing all texts gives."""

import random
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from fullft_assets import erasure
from fullft_assets.errors import StoreError
from fullft_assets.snapshot.ledger import ROLES_FILE
from fullft_assets.snapshot.near_text import pairs as near_texts
from tests.project import licence_rows
from tests.test_erasure_batches import CASE, Batches


@pytest.fixture(autouse=True)
def bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few texts make a clause a standard one, and only the nearest of some near texts are looked at."""
    monkeypatch.setattr(near_texts, "MAX_ROWS", 12)
    monkeypatch.setattr(near_texts, "_SLOTS", 8)


def drawn_texts(count: int, draw: random.Random) -> list[str]:
    """Return texts of real words: their own, near-copies and quotes of others, and with some clauses."""
    vocabulary = sorted({word for row in licence_rows(400) for word in row["text"].lower().split()})
    clauses = [" ".join(draw.choices(vocabulary, k=25)) for _ in range(6)]
    texts: list[str] = [*clauses]
    while len(texts) < count:
        fresh = " ".join(draw.choices(vocabulary, k=35))
        words = draw.choice(texts).split()
        words[draw.randrange(len(words))] = "otherwise"
        texts.append(
            draw.choice(
                [fresh, " ".join(words), f"{fresh} {draw.choice(texts)}", f"{draw.choice(clauses)} {fresh}"]
            )
        )
    return texts


def versions(draw: random.Random) -> list[str]:
    """Return texts that differ from each other in two to four words, so that one that is near to another may
    share fewer MinHashes with it than with one that is not.
    """
    vocabulary = [f"word{number}" for number in range(500)]
    texts = []
    for original in [draw.choices(vocabulary, k=40) for _ in range(20)]:
        for _ in range(20):
            words = [*original]
            for _ in range(draw.choice([1, 1, 2])):
                words[draw.randrange(len(words))] = draw.choice(vocabulary)
            texts.append(" ".join(words))
    return texts


@pytest.mark.parametrize(("name", "seed"), [("near", 3), ("contained", 2)])
def test_what_changed_is_compared_as_if_all_were(
    name: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(near_texts, "_SLOTS", 4)  # so that reference texts displace each other
    draw = np.random.default_rng(seed)
    texts = pa.array(
        versions(random.Random(seed)) if name == "near" else drawn_texts(300, random.Random(seed)),
        pa.string(),
    )
    compared = near_texts.Texts(
        [near_texts.sketch(texts[:100]).column, near_texts.sketch(texts[100:]).column], texts.take
    )
    compare = compared.compare_near if name == "near" else partial(compared.compare_contained, share=0.6)
    roles = draw.choice(
        [near_texts.ABSENT, near_texts.REFERENCE, near_texts.UNLIKE], len(texts), p=[0.3, 0.25, 0.45]
    ).astype(np.int8)
    last = np.zeros(len(texts), np.int8)
    num_changed = 0
    for _ in range(40):
        found = compare(roles, last)
        assert (
            np.array_equal(
                np.minimum(found, near_texts.ALIKE),
                np.minimum(compare(roles, np.zeros_like(last)), near_texts.ALIKE),
            )
            and (found >= near_texts.ALIKE).sum() > 10
        )
        num_changed += int(
            ((found >= near_texts.UNLIKE) & (last >= near_texts.UNLIKE) & (found != last)).sum()
        )
        last = found
        roles = np.where(draw.random(len(texts)) < 0.06, draw.integers(0, 3, len(texts)), roles).astype(
            np.int8
        )
    assert num_changed > 20


def test_the_snapshot_is_that_of_comparing_all_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    searched: list[int] = []
    propose_near = near_texts.Texts._propose_near

    def counted(self: near_texts.Texts, reference: np.ndarray, candidates: np.ndarray, *more: Any) -> Any:
        if len(more) == 1:  # with all reference texts, not with those that came or went
            searched.append(len(reference) * len(candidates))
        return propose_near(self, reference, candidates, *more)

    monkeypatch.setattr(near_texts.Texts, "_propose_near", counted)
    texts = drawn_texts(300, random.Random(1))
    rows = [{"id": f"row-{n}-", "text": text, "kind": "ab"[len(text) % 2]} for n, text in enumerate(texts)]
    batches = Batches(tmp_path)

    def assert_equal(*, reuses: bool) -> None:
        searched.clear()
        taken = batches.take()
        num_searched = sum(searched)
        searched.clear()
        folder = batches.store.folder(taken)
        shutil.rmtree(folder.parent)
        for path in folder.parents[1].rglob(ROLES_FILE):
            path.write_bytes(path.read_bytes()[:-1])
        again = batches.take()
        assert (num_searched < 0.6 * sum(searched)) is reuses
        assert again.content_digest == taken.content_digest
        assert again.metadata["left_out"] == taken.metadata["left_out"]
        for name in (" near ", "contain"):
            assert sum(number for reason, number in taken.metadata["left_out"].items() if name in reason) > 5

    batches.deliver("first.jsonl", rows[:100])
    batches.deliver("second.jsonl", rows[100:270])
    assert_equal(reuses=False)
    batches.deliver("more.jsonl", rows[270:280])
    assert_equal(reuses=True)
    lines: list[str] = []
    batches.deliver("last.jsonl", rows[285:290])
    batches.take(say=lines.append)
    assert lines[0].startswith("sketching the 5 texts of ")
    assert lines[1:3] == ["looking for rows near a test row", "looking for rows near a validation row"]
    assert len(lines) == 5
    batches.deliver("first.jsonl", [*rows[20:100], *({**row, "id": "row-2-"} for row in rows[280:281])])
    assert_equal(reuses=True)
    erasure.erase(batches.store, CASE, [row["id"] for row in rows[100:270:9]])
    assert_equal(reuses=False)
    del batches.made[min(batches.made)]
    assert_equal(reuses=False)


def test_damaged_roles_are_one_line_and_without_them_all_texts_are_compared(tmp_path: Path) -> None:
    texts = drawn_texts(100, random.Random(1))
    batches = Batches(tmp_path)
    batches.deliver("first.jsonl", [{"text": text, "kind": "ab"[len(text) % 2]} for text in texts])
    path = batches.store.folder(batches.take()) / ROLES_FILE
    roles = dict(np.load(path))
    size = path.stat().st_size
    np.savez_compressed(path, **{name: part[:, ::-1] for name, part in roles.items()})
    path.write_bytes(path.read_bytes()[:size].ljust(size, b"\0"))
    batches.deliver("more.jsonl", [{"text": f"{texts[0]} indeed", "kind": "a"}])
    with pytest.raises(
        StoreError, match=r"^letters/training_snapshot/\S+ differs from its digest: delete it"
    ):
        batches.take()
    path.unlink()
    assert batches.take().metadata["num_batches"] == 2
