"""Which of several rows with one id or one text counts, whatever order and files they came in.

Of one id the newest sound row counts; rows of several annotators on one text are merged by majority. Equal texts
with different targets all go; of equal texts with one target the one that the split puts first stays, so that a
later copy can move a text from train to test, never from test to train.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fullft_assets.settings import ExamplesSettings
from fullft_assets.store.hashing import unit_hash

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

#: One annotator's target of an item; the item is named by the number of one of its rows.
Rating = tuple[int, str, str]


@dataclass(frozen=True)
class Identity:
    """What becomes of each row, as masks over the batch; a row is in one of them at most.

    `superseded_in_file` is the part of `superseded` whose newer row stands in the same file. `ratings` are those of
    rows with one id, one text and several annotators; of such rows one is left, the rest is in `merged` or all in `tied`.
    """

    superseded: np.ndarray
    superseded_in_file: np.ndarray
    merged: np.ndarray
    tied: np.ndarray
    conflicting: np.ndarray
    repeated: np.ndarray
    ratings: list[Rating]


def resolve(table: pa.Table, sound: np.ndarray, settings: ExamplesSettings, rules: set[str], seed: int) -> Identity:
    """Decide about the rows that share an id or a text.

    Args:
        table: the batch, with `text_hash`.
        sound: rows that no other rule quarantines; only these can stand for or against another.
        settings: the task.
        rules: the rules that apply; what `texts_are_unique` and `equal_texts_have_equal_labels` say only counts with them.
        seed: of the split.
    """
    rows = _rows(table, sound)
    masks = {name: np.zeros(len(table), bool) for name in ("superseded", "superseded_in_file", "merged", "tied", "conflicting", "repeated")}
    ratings = _one_row_an_id(rows, table, settings, masks)
    left = rows[~(masks["superseded"] | masks["merged"])[rows.index]]
    same = left[left["text_hash"].duplicated(keep=False)]
    same = same.assign(target=targets(table, same.index.to_numpy(), settings))
    if "equal_texts_have_equal_labels" in rules:
        many = same.groupby("text_hash")["target"].transform("nunique") > 1
        masks["conflicting"][same.index[many]] = True
        masks["conflicting"] &= ~masks["tied"]
    if "texts_are_unique" in rules:
        same = same[~(masks["conflicting"] | masks["tied"])[same.index]]
        masks["repeated"][_all_but_first(same, seed)] = True
    return Identity(**masks, ratings=ratings)


def targets(table: pa.Table, rows: np.ndarray, settings: ExamplesSettings) -> list[str]:
    """Return what the model is to learn of each of the rows, as text that is equal where it is the same."""
    if settings.task == "token_classification":
        spans = table["spans"].take(rows).to_pylist()
        return [json.dumps(sorted(found or [], key=lambda s: (s["start"], s["end"], s["label"])), ensure_ascii=False) for found in spans]
    if settings.task == "classification" and settings.multi_label:
        return [json.dumps(sorted(set(found or [])), ensure_ascii=False) for found in table["labels"].take(rows).to_pylist()]
    if settings.task == "classification":
        return table["label"].take(rows).to_pylist()
    return [""] * len(rows)


def _rows(table: pa.Table, sound: np.ndarray) -> pd.DataFrame:
    """Return the sound rows' identities; `rank` orders them from the oldest delivery to the newest."""
    import pandas as pd

    names = ("id", "text_hash", "annotator", "group", "source", "row", "delivered_ns")
    frame = pd.DataFrame({name: pd.Series(table[name].to_numpy(), dtype=object) for name in names})[sound]
    order = frame.sort_values(["delivered_ns", "source", "row"], kind="stable").index
    return frame.assign(rank=pd.Series(range(len(order)), index=order))


def _one_row_an_id(rows: pd.DataFrame, table: pa.Table, settings: ExamplesSettings, masks: dict[str, np.ndarray]) -> list[Rating]:
    """Mark all but one row of each id, and return the ratings of ids that several annotators labelled."""
    same = rows[rows["id"].duplicated(keep=False)]
    if same.empty:
        return []
    newest = same.loc[same.groupby("id")["rank"].idxmax()].set_index("id")
    of_newest = same[["id"]].join(newest, on="id", lsuffix="_own")
    is_newest = same["rank"] == of_newest["rank"]
    votes = same[(same["text_hash"] == of_newest["text_hash"]) & same["annotator"].notna() & of_newest["annotator"].notna()]
    votes = votes.loc[votes.groupby(["id", "annotator"])["rank"].idxmax()]
    votes = votes[votes["id"].duplicated(keep=False)]
    stays = same.index[is_newest & ~same["id"].isin(votes["id"])].union(votes.index)
    old = same.index.difference(stays)
    masks["superseded"][old] = True
    in_file = (same["source"] == of_newest["source"]) & (same["delivered_ns"] == of_newest["delivered_ns"])
    masks["superseded_in_file"][old.intersection(same.index[in_file])] = True
    if votes.empty:
        return []
    votes = votes.assign(target=targets(table, votes.index.to_numpy(), settings))
    _elect(votes, masks)
    items = votes.groupby("id")["target"].transform(lambda rows: rows.index[0])
    return list(zip(items, votes["annotator"], votes["target"], strict=True))


def _elect(votes: pd.DataFrame, masks: dict[str, np.ndarray]) -> None:
    """Keep the newest row with the target that most annotators chose; without such a target all are tied."""
    counts = votes.groupby(["id", "target"])["rank"].agg(["size", "max"]).reset_index()
    most = counts.groupby("id")["size"].transform("max")
    leading = counts[counts["size"] == most]
    undecided = set(leading["id"][leading["id"].duplicated(keep=False)])
    is_tied = votes["id"].isin(undecided)
    masks["tied"][votes.index[is_tied]] = True
    elected = leading["max"][~leading["id"].isin(undecided)]
    masks["merged"][votes.index[~is_tied & ~votes["rank"].isin(elected)]] = True


def _all_but_first(same: pd.DataFrame, seed: int) -> np.ndarray:
    """Return the rows of equal texts (and targets) that do not come first in (place of the group, group, id)."""
    split = same.assign(split_by=same["group"].where(same["group"].notna(), same["text_hash"]))
    places = {group: unit_hash(seed, "split", group) for group in split["split_by"].unique()}
    ordered = split.assign(place=split["split_by"].map(places)).sort_values(["place", "split_by", "id", "rank"], kind="stable")
    return ordered.index[ordered.duplicated(["text_hash", "target"], keep="first")].to_numpy()
