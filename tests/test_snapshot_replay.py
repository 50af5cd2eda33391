"""Replay: general documents by token share, the same whatever files they lie in, and none that would leak."""

import json
import random
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings, strategies as st

from fullft_assets import snapshot
from fullft_assets.chunks import load_tokenization
from fullft_assets.errors import DataError
from fullft_assets.snapshot import general as drawing, packing
from fullft_assets.snapshot.screening import read_external
from fullft_assets.store import Manifest, Store
from tests import prepared, project as projects, smollm2
from tests.test_snapshot_packing import read_back

SHARE = 0.2


@pytest.fixture(scope="module")
def general() -> list[str]:
    """Real texts that no licence is like: modules of Python's library, cut to a page."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    texts = [file.read_text(encoding="utf-8", errors="replace")[:2_000] for file in files]
    return [text for text in dict.fromkeys(texts) if len(text) > 500][:100]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("smollm2") / "model"
    smollm2.write_tiny_model(folder)
    return folder


class Case:
    """A project with general documents, its settings and its store."""

    def __init__(self, root: Path, model: Path, **sections: Any):
        self.project = projects.create(root, rows=0)
        self.model = model
        self.configure(**sections)
        self.store = Store(str(root / "store"))

    def configure(self, task: str = "language_modeling", share: float = SHARE, **sections: Any) -> None:
        sections = {
            "base_model": str(self.model),
            "examples": {"task": task, "label": None, "labels": None},
            "chunks": {"max_tokens": 96, "max_chunks": None, "stride": 0},
            "snapshot": {
                "replay": {"path": "general", "share": share},
                "min_train_rows": 20,
                **sections.pop("snapshot", {}),
            },
            **sections,
        }
        self.project.configure(**sections)

    @property
    def folder(self) -> Path:
        return self.project.root / "general"

    def give(self, rows: list[dict[str, Any]], file: str = "general.jsonl") -> Path:
        return projects.write_rows(self.folder / file, rows)

    def draw(
        self,
        num_task_tokens: int = 20_000,
        held_out: list[str] | None = None,
        screened: list[str] | None = None,
    ) -> Manifest:
        return drawing.draw_replay(
            self.store, self.project.use_case(), num_task_tokens, held_out or [], screened or []
        )

    def read(self, manifest: Manifest, name: str) -> list[dict[str, Any]]:
        return pq.read_table(self.store.folder(manifest) / f"{name}.parquet").to_pylist()

    def texts(self, manifest: Manifest) -> list[str]:
        return [row["text"] for row in self.read(manifest, "examples")]


@pytest.fixture
def case(tmp_path: Path, model: Path, general: list[str]) -> Case:
    made = Case(tmp_path, model)
    made.give([{"text": text} for text in general])
    return made


@given(st.integers(0, 10**9), st.floats(0.001, 0.99))
@settings(deadline=None, max_examples=100)
def test_tokens_make_up_the_share_and_no_more(num_task_tokens: int, share: float) -> None:
    found = drawing.num_replay_tokens(num_task_tokens, share)
    assert found >= share * (found + num_task_tokens) * (1 - 1e-9)
    assert found == 0 or (found - 1) < share * (found - 1 + num_task_tokens) * (1 + 1e-9)


class TestDraw:
    @pytest.mark.parametrize("share", [0.05, 0.5])
    def test_share_is_met_to_within_a_chunk(self, case: Case, share: float) -> None:
        case.configure(share=share)
        made = case.draw()
        lengths = [len(chunk) for row in case.read(made, "chunks") for chunk in row["windows"]]
        assert sum(lengths) == made.metadata["num_tokens"]
        needed = drawing.num_replay_tokens(20_000, share)
        assert needed <= sum(lengths) < needed + 96
        assert made.metadata["share"] == pytest.approx(share, abs=0.005)
        assert made.metadata["num_rows"] == len(case.texts(made)) > 1

    def test_files_their_names_and_order_do_not_matter(self, case: Case, general: list[str]) -> None:
        first = case.draw()
        texts = random.Random(3).sample([*general, *general[:20]], len(general) + 20)
        case.give([{"text": text, "id": f"n{n}"} for n, text in enumerate(texts[:70])], "z/late.jsonl")
        case.give([{"text": text} for text in texts[70:]])
        again = case.draw()
        assert case.texts(again) == case.texts(first) and again.ref != first.ref
        assert again.content_digest == first.content_digest

    def test_larger_share_takes_the_same_documents_and_more(self, case: Case) -> None:
        case.configure(share=0.1)
        few = case.texts(case.draw())
        case.configure(share=0.4)
        many = case.texts(case.draw())
        assert many[: len(few)] == few and len(many) > 2 * len(few)

    def test_documents_that_are_not_kept_at_hand_are_read_again(
        self, case: Case, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = case.draw()
        reads = []
        monkeypatch.setattr(drawing, "_CHARACTERS_A_TOKEN", 1)
        monkeypatch.setattr(
            drawing, "read_external", lambda *given: reads.append(given) or read_external(*given)
        )
        case.configure(documents={"max_batch_files": 1})
        for number, text in enumerate(case.texts(first)):
            case.give([{"text": text}], f"copies/{number}.jsonl")
        again = case.draw()
        assert len(reads) == 2 and again.ref != first.ref
        assert case.texts(again) == case.texts(first)


def test_conversations_and_texts_together(tmp_path: Path, model: Path, general: list[str]) -> None:
    case = Case(tmp_path, model, task="sft")
    case.give(
        [
            *prepared.conversations(60, characters=None),
            *({"text": text} for text in general[:40]),
            {"messages": [{"role": "user", "content": "Alone?"}]},
        ]
    )
    made = case.draw(40_000)
    rows = list(zip(case.read(made, "examples"), case.read(made, "chunks"), strict=True))
    said = [(row, chunked) for row, chunked in rows if row["messages"] is not None]
    written = [(row, chunked) for row, chunked in rows if row["messages"] is None]
    assert len(said) > 5 and len(written) > 5
    tokenization = load_tokenization(case.project.use_case())
    for row, chunked in said[:-1]:
        assert (
            sum(chunked["windows"], []) == tokenization.encode([tokenization.chat.render(row["messages"])])[0]
        )
        trained = [
            t for t, mark in zip(sum(chunked["windows"], []), sum(chunked["marks"], []), strict=True) if mark
        ]
        assert tokenization.tokenizer.decode(trained).strip().startswith(row["messages"][1]["content"])
    for _, chunked in written:
        assert [len(chunk) for chunk in chunked["windows"]] == [len(marks) for marks in chunked["marks"]]
        assert {mark for marks in chunked["marks"] for mark in marks} == {1}


class TestOneLine:
    def message(self, case: Case, **arguments: Any) -> str:
        with pytest.raises(DataError) as raised:
            case.draw(**arguments)
        assert "\n" not in str(raised.value)
        assert not list((case.project.root / "store").rglob("manifest.json"))
        return str(raised.value)

    def test_nothing_usable(self, tmp_path: Path, model: Path) -> None:
        case = Case(tmp_path, model)
        case.give([{"note": "a"}, {"text": "  "}, {"note": "b"}])
        assert self.message(case) == (
            "snapshot.replay: general holds no usable document (2 rows: malformed row; 1 rows: empty text); "
            "give each row a field `text` (for sft: or messages)"
        )

    def test_too_little(self, case: Case, general: list[str]) -> None:
        message = self.message(case, num_task_tokens=10_000_000)
        tokenization = load_tokenization(case.project.use_case())
        have = sum(len(chunk) for chunks in tokenization.chunks(general) for chunk in chunks)
        assert message.startswith(
            f"snapshot.replay: general holds {have:,} usable tokens, {2_500_000 - have:,} fewer than"
        )


class TestSnapshot:
    """Conversations through every data stage, with the real tokenizer of SmolLM2."""

    def take(self, case: Case, batches: list[list[dict[str, Any]]]) -> Manifest:
        return snapshot.take(case.store, case.project.use_case(), *self.ingest(case, batches))

    def ingest(
        self, case: Case, batches: list[list[dict[str, Any]]]
    ) -> tuple[dict[str, Manifest], dict[str, Manifest]]:
        for number, rows in enumerate(batches):
            case.project.deliver(f"delivery-{number}.jsonl", rows)
        return prepared.ingest(case.store, case.project.use_case())

    def sft(self, root: Path, model: Path, general: list[str], max_batch_files: int = 100) -> Case:
        case = Case(root, model)
        case.configure(
            task="sft",
            chunks={"max_tokens": 384, "max_chunks": None, "stride": 0},
            documents={"max_batch_files": max_batch_files, "settle_seconds": 0},
            snapshot={"screen": ["evaluation.jsonl"], "test_share": 0.2, "validation_share": 0.15},
        )
        case.give([{"text": text[:700] + "<|im_end|>" * (number % 2)} for number, text in enumerate(general)])
        return case

    @pytest.fixture(scope="class")
    def taken(
        self, tmp_path_factory: pytest.TempPathFactory, model: Path, general: list[str]
    ) -> tuple[Case, Manifest]:
        case = self.sft(tmp_path_factory.mktemp("taken"), model, general)
        rows = prepared.conversations(300, characters=None)
        questions = [row["messages"][0]["content"] for row in rows[:50]]
        projects.write_rows(
            case.project.root / "evaluation.jsonl", [{"question": q} for q in [*questions, general[7][:700]]]
        )
        # General documents that hold a delivered conversation, whichever split it is in.
        case.give(
            [{"text": f"{row['messages'][0]['content']}\n\n{row['messages'][1]['content']}"} for row in rows],
            "copied.jsonl",
        )
        return case, self.take(case, [rows])

    def test_rows_are_packed_with_their_share_of_replay(self, taken: tuple[Case, Manifest]) -> None:
        case, manifest = taken
        training = snapshot.load_training(case.store, manifest)
        train = snapshot.load_split(case.store, manifest, "train")
        own = [chunk.tolist() for chunks in train.chunks for chunk in chunks]
        assert sorted(training.chunks[: len(own)].to_pylist()) == sorted(own)
        num_replayed = sum(len(chunk) for chunk in training.chunks[len(own) :])
        assert num_replayed == manifest.metadata["num_replay_tokens"]
        needed = drawing.num_replay_tokens(sum(map(len, own)), SHARE)
        assert needed <= num_replayed < needed + 384
        plan = training.packing
        lengths = np.array([len(chunk) for chunk in training.chunks])
        assert all((counts == 1).all() for counts in read_back(plan, lengths))
        assert plan.capacity == 384 and plan.num_rows <= -(-plan.num_tokens // 384) + 1
        # General documents are spread over the rows of training, not kept for the end.
        places = []
        for plan in (packing.plan(lengths, 384, seed) for seed in range(20)):
            rows = np.repeat(np.arange(plan.num_rows), np.diff(plan.row_offsets))[plan.source >= len(own)]
            places.append(rows.mean() / plan.num_rows)
        assert 0.45 < np.mean(places) < 0.55

    def test_marks_are_those_of_the_answers_and_of_all_that_is_replayed(
        self, taken: tuple[Case, Manifest]
    ) -> None:
        case, manifest = taken
        training = snapshot.load_training(case.store, manifest)
        tokenizer = load_tokenization(case.project.use_case()).tokenizer
        num_own = sum(map(len, snapshot.load_split(case.store, manifest, "train").chunks))
        chunks, marks_of_chunks = training.chunks.to_pylist(), training.marks.to_pylist()
        for chunk, marks in zip(chunks[:num_own], marks_of_chunks[:num_own], strict=True):
            text = tokenizer.decode([t for t, mark in zip(chunk, marks, strict=True) if mark])
            assert "Which kind of licence clue" not in text
        assert all(set(marks) == {1} for marks in marks_of_chunks[num_own:])

    def test_nothing_held_out_or_screened_is_trained_on(
        self, taken: tuple[Case, Manifest], general: list[str]
    ) -> None:
        case, manifest = taken
        assert manifest.metadata["left_out"]["train rows that overlap an external evaluation set"] > 10
        drawn = case.store.load(manifest.metadata["replay"])
        replayed = set(case.texts(drawn))
        assert general[7][:700] not in replayed
        assert not any("<|im_end|>" in text for text in replayed), "the model would read it as an end"
        for split in ("validation", "test"):
            assert not replayed & set(snapshot.load_split(case.store, manifest, split).texts)
        evaluated = {
            json.loads(line)["question"]
            for line in (case.project.root / "evaluation.jsonl").read_text().splitlines()
        }
        for text in [*snapshot.load_split(case.store, manifest, "train").texts, *replayed]:
            assert not any(question in text for question in evaluated if len(question.split()) >= 22)
        assert drawn.metadata["num_near_held_out"] > 10 and drawn.metadata["num_screened"] > 5
