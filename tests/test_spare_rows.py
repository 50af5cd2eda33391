"""Spare rows: texts that their batch left out are kept with their tokens, in case an equal row is to stand over all batches."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from fullft_assets import erasure, snapshot
from fullft_assets.chunks import UNFIT_SPARE
from fullft_assets.examples import write_examples
from fullft_assets.store import Manifest
from tests import project as projects
from tests import smollm2
from tests.test_chunks_retokenize import said
from tests.test_erasure_batches import CASE, PLAIN, SPLITS, Batches, rows


class TestSpareRows:
    SAID = "nobody else has said these few words about licences and notices so far"

    @pytest.fixture
    def disputed(self, tmp_path: Path) -> Batches:
        """One batch with a contradiction, and with an older version of `v` in another group and another file."""
        batches = Batches(tmp_path, examples={**PLAIN["examples"], "group": "patient"})
        delivered = [{**row, "patient": f"p{n}"} for n, row in enumerate(rows(60))]
        dispute = [{"id": id_, "text": self.SAID, "kind": kind, "patient": id_} for id_, kind in (("x", "a"), ("y", "b"))]
        old = {"id": "v", "text": f"{self.SAID}, or rather otherwise", "kind": "a", "patient": "p-old"}
        projects.write_rows(batches.project.documents / "old.jsonl", [old])
        os.utime(batches.project.documents / "old.jsonl", (batches.time, batches.time))
        batches.deliver("a.jsonl", [{**old, "text": "a wholly other text for v", "patient": "p-new"}, *dispute, *delivered])
        return batches

    def settle(self, batches: Batches) -> Manifest:
        """Withdraw the newer version of `v` and one side of the contradiction; return the snapshot."""
        batches.deliver(
            "a.jsonl", [{**row, "patient": f"p{n}"} for n, row in enumerate([*rows(60), {"id": "x", "text": self.SAID, "kind": "a"}])]
        )
        return batches.take()

    def test_the_other_version_stands_and_is_read(self, disputed: Batches):
        before = disputed.texts(disputed.take())
        assert not {"x", "y"} & before.keys() and before["v"][0] == "a wholly other text for v"
        assert disputed.texts(self.settle(disputed))["v"][0].endswith("or rather otherwise")

    @pytest.mark.parametrize(("listed", "by"), [("p-old", "group"), ("x", "id"), ("d7", "id")])
    def test_rows_keep_their_tokens_whatever_is_erased(self, disputed: Batches, listed: str, by: Any):
        """A document that a group is erased with goes in all its versions."""
        settled = self.settle(disputed)
        before = disputed.texts(settled)
        (first, *_) = disputed.made.values()
        counted = disputed.store.load(first[1].ref).metadata["num_valid"]
        erasure.erase(disputed.store, CASE, [listed], by=by)
        gone = {"p-old": {"v"}, "x": {"x"}, "d7": {"d7"}}[listed]
        assert disputed.texts(settled) == {id_: row for id_, row in before.items() if id_ not in gone}
        assert disputed.store.load(first[1].ref).metadata["num_valid"] == counted - (listed != "x")
        assert disputed.texts(disputed.take()) == disputed.texts(settled)
        if listed == "p-old":
            assert disputed.traces("or rather otherwise") == []

    def test_tokenisation_counts_none(self, tmp_path: Path):
        """What is told of a batch's tokens, its checks and words is that of its valid rows, also once some were erased."""
        batches = Batches(tmp_path, chunks={"max_tokens": 256, "max_windows": 1})
        delivered = rows(60)
        projects.write_rows(batches.project.documents / "old.jsonl", [{**row, "text": f"{self.SAID} " * 40} for row in delivered[:9]])
        os.utime(batches.project.documents / "old.jsonl", (batches.time, batches.time))
        _, valid, _, made = batches.deliver("a.jsonl", delivered)
        assert made.check("texts_are_kept_whole").passed
        assert made.metadata["num_rows"] == made.metadata["num_sampled_texts"] == valid.metadata["num_valid"] == 60
        assert pq.read_metadata(batches.store.folder(made) / "chunks.parquet").num_rows == 61
        assert "nobody" not in pq.read_table(batches.store.folder(made) / "words.parquet")["word"].to_pylist()
        erasure.erase(batches.store, CASE, ["d0", "d20"])
        left = batches.store.load(made.ref)
        assert (left.metadata["num_rows"], left.metadata["num_erased"]) == (58, 2)

    def test_an_outvoted_answer_keeps_its_own_marks(self, tmp_path: Path):
        """Spans shape what a row is tokenised to: where those who outvoted it take theirs back, no other row has its tokens."""
        batches = Batches(tmp_path, examples={**PLAIN["examples"], "task": "token_classification", "label": "spans"})
        delivered = [{"id": row["id"], "text": row["text"], "spans": [{"start": 0, "end": 5, "label": "a"}]} for row in rows(60)]
        for who, (start, end) in {"ann": (0, 6), "bob": (0, 6), "cat": (7, 11)}.items():
            answer = {"id": "x", "text": self.SAID, "spans": [{"start": start, "end": end, "label": "a"}], "annotator": who}
            projects.write_rows(batches.project.documents / f"{who}.jsonl", [answer])
            os.utime(batches.project.documents / f"{who}.jsonl", (batches.time, batches.time))
        batches.deliver("a.jsonl", delivered)
        for who in ("ann", "bob"):
            batches.deliver(f"{who}.jsonl", [{**delivered[0], "id": f"of {who}", "text": f"something else that {who} has read"}])
        taken = batches.take()
        splits = [snapshot.load_split(batches.store, taken, name) for name in SPLITS]
        ((marks,),) = (marks for split in splits for id_, marks in zip(split.ids, split.marks, strict=True) if id_ == "x")
        assert marks[:4] == [0, 0, 1, 0], "of [CLS], nobody, else and has"

    def test_what_an_earlier_version_wrote_is_erased(self, disputed: Batches):
        """Its examples have no column that tells spare rows."""
        disputed.take()
        for made in disputed.store.artifacts(CASE, "labeled_examples"):
            num_valid = made.metadata["num_valid"]

            def edit(folder: Path) -> dict[str, Any]:
                found = pq.read_table(folder / "examples.parquet")
                write_examples(found.filter(pc.invert(found["spare"])).drop_columns(["spare"]), folder / "examples.parquet")
                return {}

            disputed.store.rewrite(made, edit)
        erasure.erase(disputed.store, CASE, ["d7"])
        assert "d7" not in disputed.ids("labeled_examples", "examples.parquet") | disputed.ids("tokenized_chunks", "chunks.parquet")
        (left,) = disputed.store.artifacts(CASE, "labeled_examples")
        assert left.metadata["num_valid"] == num_valid - 1


class TestWithoutATrainedToken:
    """An older version of a conversation whose answer is cut off: it holds no batch back, and never stands."""

    @pytest.fixture
    def chats(self, tmp_path: Path) -> Batches:
        smollm2.write_tiny_model(tmp_path / "model")
        settings = {**PLAIN["examples"], "task": "sft", "label": None}
        batches = Batches(tmp_path, examples=settings, base_model="model", chunks={"max_tokens": 64, "max_windows": 1})
        cut_off = [{"id": id_, "messages": [said("user", f"{id_}, a long question " * 20), said("assistant", "Yes.")]} for id_ in "uvwxyz"]
        projects.write_rows(batches.project.documents / "old.jsonl", cut_off)
        os.utime(batches.project.documents / "old.jsonl", (batches.time, batches.time))
        mended = [{"id": id_, "messages": [said("user", f"{id_}, short?"), said("assistant", "Yes.")]} for id_ in "uvwxyz"]
        batches.deliver("a.jsonl", mended + self.others())
        return batches

    def others(self) -> list[dict[str, Any]]:
        texts = [row["text"] for row in rows(40)]
        return [{"id": f"c{n}", "messages": [said("user", text[:40]), said("assistant", text[40:50])]} for n, text in enumerate(texts)]

    def test_it_fails_no_batch_and_is_left_out_and_counted(self, chats: Batches):
        (made,) = chats.made.values()
        assert made[3].check("rows_have_trained_tokens").passed
        assert {"u", "v"} <= chats.texts(chats.take()).keys()
        erasure.erase(chats.store, CASE, ["u", "c3"])
        chats.deliver("a.jsonl", self.others())
        assert len(chats.store.load(made[3].ref).metadata[UNFIT_SPARE]) == 5, "the others lie further up now"
        taken = chats.take()
        assert not set("uvwxyz") & chats.texts(taken).keys()
        # Of some a version was held out: those are left out for that.
        (count,) = [n for why, n in taken.metadata["left_out"].items() if "without a trained token" in why]
        assert 1 <= count <= 5
