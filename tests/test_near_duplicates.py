"""Near-duplicates against slow references: every pair compared, pairs whose similarity is known."""

import math
import os
import re
import subprocess
import sys

import pytest

from fullft_assets.demos import licences
from fullft_assets.snapshot.near_text.pairs import SIMILARITY, near_duplicates


def shingles(text: str) -> set[str]:
    words = re.findall(r"\w+", text.lower())
    return {" ".join(words[i : i + 3]) for i in range(max(1, len(words) - 2))}


def test_found_are_those_that_comparing_every_pair_finds() -> None:
    texts = sorted(
        {rule["text"] for rule in licences.rules() if rule["text"].strip()}, key=lambda text: text[::-1]
    )[::24]
    sets = [shingles(text) for text in texts]
    reference, candidates = range(0, len(texts), 4), [i for i in range(len(texts)) if i % 4]
    alike = {
        i: [k for k in reference if len(sets[i] & sets[k]) >= SIMILARITY * len(sets[i] | sets[k])]
        for i in candidates
    }
    found = near_duplicates([texts[i] for i in reference], [texts[i] for i in candidates], SIMILARITY)
    near = [n for n, i in enumerate(candidates) if alike[i]]
    assert len(near) >= 20 and all(4 * partner in alike[candidates[n]] for n, partner in found.items())
    # A pair exactly at the threshold is proposed in 99 of 100 cases.
    assert len(found) >= 0.98 * len(near)


def test_texts_that_differ_in_case_and_punctuation_are_found_in_a_bucket_of_thousands() -> None:
    """Each candidate is in the buckets of many texts that share most of its words, and equal to one."""
    words = [f"word{n}" for n in range(100)]
    reference = [" ".join([*words[:60], *(f"{n}k{k}" for k in range(20)), *words[80:]]) for n in range(1_000)]
    candidates = [text.upper().replace("WORD5 ", "WORD5, ") for text in reference[::50]]
    assert near_duplicates(reference, candidates) == {n: 50 * n for n in range(len(candidates))}


@pytest.mark.parametrize("similarity", [0.8, 0.85])
def test_texts_of_that_similarity_are_found(similarity: float) -> None:
    """Of 400 pairs that share so many of their 900 shingles at least 99% are found, and none that share
    less.
    """
    size = 900
    num_shared = math.ceil(2 * similarity * size / (1 + similarity))
    pairs = [text_pair(n, size, num_shared) for n in range(400)]
    found = near_duplicates(*map(list, zip(*pairs, strict=True)), similarity)
    assert all(candidate == partner for candidate, partner in found.items()) and len(found) >= 0.99 * len(
        pairs
    )
    less = [text_pair(n, size, num_shared - 10) for n in range(20)]
    assert near_duplicates(*map(list, zip(*less, strict=True)), similarity) == {}


def text_pair(number: int, size: int, num_shared: int) -> tuple[str, str]:
    """Return two texts of `size` shingles that share so many of them."""
    first = [f"{number}n{n}" for n in range(size + 2)]
    return " ".join(first), " ".join(
        [*first[: num_shared + 2], *(f"{number}x{n}" for n in range(size - num_shared))]
    )


_COMPARISON = """
import socket, sys, time
from contextlib import suppress
from pathlib import Path
from fullft_assets.snapshot.near_text.pairs import near_duplicates

def num_packets():
    names, values = (line.split() for line in Path("/proc/net/snmp").read_text().splitlines()[:2])
    counts = dict(zip(names, values))
    return int(counts["OutRequests"]) + int(counts["OutNoRoutes"])

assert "daft" not in sys.modules
assert near_duplicates(["any text at all"], ["any text at all"]) == {0: 0}
assert "daft" in sys.modules
time.sleep(1)
before = num_packets()
with suppress(OSError):
    socket.create_connection(("127.0.0.1", 9))
print(before, num_packets() > before)
"""


def test_a_comparison_sends_nothing_and_loads_the_engine_when_it_is_needed() -> None:
    """In a network of its own, which counts also what it cannot send."""
    if os.system("unshare --map-root-user --net true 2> /dev/null") != 0:
        pytest.skip("a network of one's own is forbidden here")
    command = ["unshare", "--map-root-user", "--net", sys.executable, "-c", _COMPARISON]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == "0 True\n"
