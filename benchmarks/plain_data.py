"""Ingestion and snapshot of the plain demo: delivered rows, cleaned, and split without leaks."""
# pandas annotates the result of an indexing as a frame or a column:
# pyright: reportArgumentType=false, reportCallIssue=false, reportAssignmentType=false

from __future__ import annotations

import json
import re
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pandas as pd
from rensa import RMinHash, RMinHashLSH  # pyright: ignore[reportAttributeAccessIssue]  # a compiled module

from fullft_assets.settings import SnapshotSettings, UseCaseSettings
from fullft_assets.snapshot.near_text.pairs import SIMILARITY

WORD = re.compile(r"\w+")


def read(folder: Path, settings: UseCaseSettings) -> pd.DataFrame:
    """Read Ground Truth output manifests; a line that is not JSON is skipped."""
    label, rows = settings.examples.label, []
    for path in sorted(folder.glob("*.manifest")):
        with path.open(encoding="utf-8") as file:
            for line in file:
                try:
                    record = json.loads(line)
                except ValueError:
                    continue
                name = record.get(f"{label}-metadata", {}).get("class-name")
                rows.append((record["id"], record.get("source"), name, record.get(settings.examples.group)))
    return pd.DataFrame(rows, columns=["id", "text", "label", "group"])


def label_names(settings: UseCaseSettings) -> list[str]:
    """Return the labels in the order of the model's outputs."""
    assert settings.examples.labels is not None, "this script does not find the labels itself"
    return sorted(settings.examples.labels)


def clean(rows: pd.DataFrame, labels: list[str]) -> pd.DataFrame:
    """Drop empty texts, missing and unknown labels, repeated ids and texts, and texts with two labels."""
    rows = rows[rows["text"].fillna("").str.strip().ne("") & rows["label"].isin(labels)]
    rows = rows.drop_duplicates("id").sort_values(["group", "id"], na_position="first")
    rows = rows[rows.groupby("text")["label"].transform("nunique").eq(1)].drop_duplicates("text")
    keys = [
        blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest() for text in rows["text"]
    ]
    # A group has one spelling on the platform, too.
    return rows.assign(key=keys, group=rows["group"].str.casefold().fillna(pd.Series(keys, rows.index)))


def place(seed: int, purpose: str, values: pd.Series) -> pd.Series:
    """Hash each value to [0, 1), as the platform does, so that both sides score the same rows."""
    key = f"{seed}/{purpose}".encode()
    hashes = (
        blake2b(value.encode("utf-8", "surrogatepass"), key=key, digest_size=7).digest() for value in values
    )
    return pd.Series([int.from_bytes(found) / 2**56 for found in hashes], values.index)


def split(rows: pd.DataFrame, settings: SnapshotSettings, seed: int) -> dict[str, pd.DataFrame]:
    """Split by group, cap the held-out rows of a group, drop rows near to a held-out one, subsample."""
    rows = rows.assign(
        place=place(seed, "split", rows["group"]), order=place(seed, "cap", rows["key"])
    ).sort_values("order")
    held_out_share = settings.least_test_share + settings.validation_share
    test = (
        rows[rows["place"] < settings.least_test_share]
        .groupby("group")
        .head(settings.max_heldout_rows_per_group)
    )
    validation = rows[rows["place"].between(settings.least_test_share, held_out_share, inclusive="left")]
    validation = validation.groupby("group").head(settings.max_heldout_rows_per_group)
    train = rows[rows["place"] >= held_out_share]
    validation, train = not_near(test, [validation, train], SIMILARITY, seed)
    (train,) = not_near(validation, [train], SIMILARITY, seed)
    parts = {
        "train": (train, settings.max_train_rows),
        "validation": (validation, settings.max_validation_rows),
        "test": (test, None),
    }
    found = {}
    for name, (part, most) in parts.items():
        chosen = (
            part.assign(order=place(seed, "subsample", part["key"]))
            .sort_values("order")
            .head(most or len(part))
        )
        found[name] = chosen.sort_values("key")
    return found


def shingles(text: str) -> set[str]:
    words = WORD.findall(text.lower())
    return {" ".join(words[i : i + 3]) for i in range(max(1, len(words) - 2))}


def not_near(
    reference: pd.DataFrame, others: list[pd.DataFrame], similarity: float, seed: int
) -> list[pd.DataFrame]:
    """Drop the rows whose shingles are similar to a reference row's."""
    index = RMinHashLSH(threshold=similarity, num_perm=128, num_bands=16)
    for number, sketch in enumerate(sketches(reference["text"], seed)):
        index.insert(number, sketch)
    sets = [shingles(text) for text in reference["text"]]

    def is_near(text: str, sketch: RMinHash) -> bool:
        found = index.query(sketch)
        mine = shingles(text) if found else set()
        return any(len(mine & sets[k]) / len(mine | sets[k]) >= similarity for k in found)

    kept = []
    for rows in others:
        near = [
            is_near(text, sketch)
            for text, sketch in zip(rows["text"], sketches(rows["text"], seed), strict=True)
        ]
        kept.append(rows[~np.array(near, bool)])
    return kept


def sketches(texts: pd.Series, seed: int) -> list[RMinHash]:
    return RMinHash.from_token_sets([list(shingles(text)) for text in texts], 128, seed)
