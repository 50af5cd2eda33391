"""The evaluation's process on language models: real licence texts, a real tokenizer, a Llama of 1 MB that has
learned or not.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM

from fullft_assets.chunks import Tokenization, save_tokenizer
from fullft_assets.evaluation import BASE_MODEL, read_evaluation
from fullft_assets.evaluation.verdict import read_verdict
from fullft_assets.launch.workloads.evaluation import work
from fullft_assets.models.inference import load_causal
from fullft_assets.snapshot import load_values
from fullft_assets.store import Manifest
from fullft_assets.tasks.context import EvaluationContext
from fullft_assets.tasks.language import scoring
from fullft_assets.tasks.language.assessment import LanguageEvaluation
from tests import manifests, prepared as preparations
from tests.checkpoint_metadata import checkpoint_metadata

TASKS = ("language_modeling", "sft")


class Lab:
    """A use case of a task with everything up to its evaluation; `learned` has seen the training rows, `base`
    has not.
    """

    def __init__(self, root: Path, task: str):
        self.task = task
        self.prepared = preparations.prepare_language_model(
            root,
            task,
            rows=150,
            chunks={"max_chunks": None if task == "sft" else 2},
            snapshot={"min_train_rows": 10, "test_share": 0.25},
            release={"min_effective_groups": 5},
        )
        self.model = self.prepared.base_model
        self.store, self.snapshot = self.prepared.store, self.prepared.snapshot
        self.test = self.prepared.split("test")
        self.baselines = self.artifact("cheaper_baselines", "b", manifests.baselines([], {BASE_MODEL: 0.0}))
        self.pilot = self.artifact(
            "pilot_run", "p", manifests.pilot([{"rows": 8, "token_probability": 1e-4}], best=BASE_MODEL)
        )

    def artifact(self, stage: str, key: str, metadata: dict, model: Path | None = None) -> Manifest:
        with self.store.create("letters", stage, key, version="1", seed=17) as draft:
            if model is not None:
                AutoModelForCausalLM.from_pretrained(str(model)).save_pretrained(draft.path / "model")
                save_tokenizer(model, [], draft.path / "model")
                (draft.path / "logs").mkdir()
                log = [
                    {"step": 1, "loss": 9.0},
                    {"step": 2, "loss": 7.0},
                    {"step": 2, "validation_loss": 7.5},
                ]
                (draft.path / "logs" / "metrics.jsonl").write_text(
                    "".join(json.dumps(line) + "\n" for line in log)
                )
            return draft.commit(
                settings={"training": {"epochs": 1}},
                inputs={"training_snapshot": self.snapshot.content_digest},
                metadata=metadata,
            )

    def checkpoint(self, name: str, model: Path, snapshot: Manifest | None = None) -> Manifest:
        return self.artifact(
            "finetuned_checkpoint", name, checkpoint_metadata(snapshot=(snapshot or self.snapshot).ref), model
        )

    def learn(self, folder: Path, steps: int = 8) -> Path:
        """Train the tiny model on the training rows for a moment."""
        model = load_causal(self.model).train()
        train = self.prepared.split("train")
        flat = [
            (ids.tolist(), None if train.marks is None else train.marks[d][w])
            for d, ws in enumerate(train.chunks)
            for w, ids in enumerate(ws)
        ]
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.03)
        rng = np.random.default_rng(0)
        for _ in range(steps):
            for number in rng.choice(len(flat), 4):
                ids, marks = flat[number]
                targets = torch.tensor([i if marks is None or marks[k] else -100 for k, i in enumerate(ids)])
                functional.cross_entropy(
                    model(input_ids=torch.tensor([ids])).logits[0][:-1], targets[1:]
                ).backward()
            optimizer.step()
            optimizer.zero_grad()
        model.save_pretrained(folder)
        save_tokenizer(self.model, [], folder)
        return folder

    def context(
        self, checkpoint: Manifest, champion: Manifest | None = None, key: str = "k", **sections
    ) -> EvaluationContext:
        inputs = {
            "training_snapshot": self.snapshot,
            "finetuned_checkpoint": checkpoint,
            "cheaper_baselines": self.baselines,
            "pilot_run": self.pilot,
            **({"champion": champion} if champion else {}),
        }
        job = self.prepared.job("evaluation_report", key, **sections)
        job = job.model_copy(update={"inputs": {name: manifest.ref for name, manifest in inputs.items()}})
        return EvaluationContext(job, self.store, inputs, preparations.QUIET)

    def evaluate(self, *arguments, **options) -> Manifest:
        context = self.context(*arguments, **options)
        work(context.job, self.store, preparations.QUIET)
        return self.store.find("letters", "evaluation_report", context.job.key)

    def read(self, report: Manifest) -> LanguageEvaluation:
        return read_evaluation((self.store.folder(report) / "evaluation.json").read_bytes())


@pytest.fixture(scope="module", autouse=True)
def few_words() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "MAX_NEW_TOKENS", 4)
        yield


@pytest.fixture(scope="module", params=TASKS)
def lab(request, tmp_path_factory) -> Lab:
    return Lab(tmp_path_factory.mktemp("labs") / request.param, request.param)


@pytest.fixture(scope="module")
def learned(lab, tmp_path_factory) -> Manifest:
    return lab.checkpoint("learned", lab.learn(tmp_path_factory.mktemp("learned") / "model"))


@pytest.fixture(scope="module")
def untaught(lab) -> Manifest:
    return lab.checkpoint("untaught", lab.model)


@pytest.fixture(scope="module")
def report(lab, learned) -> Manifest:
    return lab.evaluate(learned, key="first")


def losses_one_by_one(model: Path, lab: Lab) -> list[tuple[float, int]]:
    """Return summed loss and number of trained tokens of each test document, chunk by chunk from the
    logits.
    """
    loaded, found = AutoModelForCausalLM.from_pretrained(str(model)), []
    for number, document in enumerate(lab.test.chunks):
        total, count = 0.0, 0
        for place, ids in enumerate(document):
            marks = [1] * len(ids) if lab.test.marks is None else lab.test.marks[number][place]
            with torch.no_grad():
                logits = loaded(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
            for position in range(1, len(ids)):
                if marks[position]:
                    total, count = total - float(logits[position - 1, ids[position]]), count + 1
        found.append((total, count))
    return found


def test_scores_are_those_of_the_tokens_one_by_one(lab: Lab, learned: Manifest, report: Manifest) -> None:
    table = pq.read_table(lab.store.folder(report) / "predictions.parquet").to_pydict()
    assert table["id"] == lab.test.ids and table["group"] == lab.test.groups
    for name, model in (("finetuned", lab.store.folder(learned) / "model"), ("base_model", lab.model)):
        expected = losses_one_by_one(model, lab)
        assert table["num_tokens"] == [count for _, count in expected]
        assert table[f"loss_{name}"] == pytest.approx(
            [loss for loss, _ in expected], rel=1e-3
        )  # bf16 where the CPU has it
        assert table[f"num_tokens_{name}"] == table["num_tokens"]
        assert all(
            0 <= right <= count
            for right, count in zip(table[f"num_right_{name}"], table["num_tokens"], strict=True)
        )
    assert report.metadata["num_test_tokens"] == sum(table["num_tokens"])


@pytest.mark.parametrize("lab", ["sft"], indirect=True)
def test_what_each_system_answers_is_stored_and_scored(
    lab: Lab, learned: Manifest, report: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = lab.store.folder(report)
    rows = [json.loads(line) for line in (folder / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    conversations = load_values(lab.store, lab.snapshot, "test", "messages")
    found = lab.read(report).answers
    assert found is not None and found.num_answers == len(rows) == len(lab.test) < 100
    writer = scoring.Writer(
        load_causal(lab.store.folder(learned) / "model"),
        Tokenization.load_saved(
            lab.store.folder(learned) / "model", lab.prepared.use_case.settings.chunks, "sft"
        ),
        found.max_new_tokens,
    )
    # Padding among others in a batch changes no answer.
    for row in rows[:3]:
        assert row["finetuned"] == writer.write(conversations[row["id"]][:-1])
    exact = [row["finetuned"].split() == conversations[row["id"]][-1]["content"].split() for row in rows]
    weights = [1 / min(10, sum(other["group"] == row["group"] for other in rows)) for row in rows]
    assert found.scores["exact_match"]["finetuned"].estimate == pytest.approx(
        np.average(exact, weights=weights)
    )
    assert set(found.scores) == {"exact_match", "rouge_l", "chrf"}
    assert set(found.scores["chrf"]) == {"finetuned", "base_model"}
    page = (folder / "report.html").read_text()
    assert "Answers against the held-out ones" in page and "ROUGE-L" in page
    monkeypatch.setattr(scoring, "MAX_ANSWER_TOKENS", 30)
    stored = lab.read(lab.evaluate(learned, learned, key="few", evaluation={"generated_answers": 5})).answers
    assert stored.num_answers == 5 and stored.num_groups == 5
    assert stored.gains["chrf"]["champion"].estimate == 0
    none = lab.evaluate(learned, key="none", evaluation={"generated_answers": 0})
    assert lab.read(none).answers is None and "answers.jsonl" not in none.files


def test_a_model_that_has_learned_beats_its_base_and_is_promoted(lab: Lab, report: Manifest) -> None:
    found = report.metadata
    assert found["promote"] and found["justified"]
    assert found["best_baseline"] == "base_model"
    assert found["token_probability"] > 2 * found["scores"]["base_model"]["token_probability"]
    assert (
        found["perplexity_low"]
        < found["perplexity"]
        < found["perplexity_high"]
        < found["scores"]["base_model"]["perplexity"]
    )
    gain = report.check("beats_baselines").metadata
    assert gain["gain"] == found["gain_over_best_baseline"] and gain["gain_low"] > 0
    assert report.check("score_is_sufficient").metadata == {"token_probability": found["token_probability"]}
    decision = read_verdict(lab.store.folder(report))
    assert decision.promote and found["verdict"] == decision.sentence


def test_a_worse_candidate_than_the_champion_is_refused(
    lab: Lab, learned: Manifest, untaught: Manifest
) -> None:
    found = lab.evaluate(untaught, learned, key="worse")
    assert not found.check("beats_champion").passed and not found.check("beats_baselines").passed
    # The same weights as the base model's: no gain at all.
    assert found.metadata["gain_over_best_baseline"] == 0.0
    assert found.metadata["scores"]["champion"]["perplexity"] < found.metadata["perplexity"]
    assert found.metadata["incumbent"] == learned.ref and lab.read(found).has_champion


def test_the_report_is_complete_and_texts_are_only_in_the_html(lab: Lab, report: Manifest) -> None:
    folder = lab.store.folder(report)
    assert {f"pictures/{name}.png" for name in ("scores", "loss", "learning_curve")} <= set(report.files)
    page = (folder / "report.html").read_text()
    for said in (
        "base model, not fine-tuned",
        "What it writes",
        report.metadata["justification"][:60],
    ):
        assert said in page, said
    continued = page.split("<h3>What it writes</h3>")[1].split("</section>")[0]
    shown = re.findall(r'<tr data-document="([^"]+)">', continued)
    assert len(shown) == 4 and set(shown) <= set(lab.test.ids)
    words = (
        {
            messages[0]["content"][-40:]
            for messages in load_values(lab.store, lab.snapshot, "test", "messages").values()
        }
        if lab.task == "sft"
        else {text[:40] for text in lab.test.texts if len(text) > 60}
    )
    for name in ("report.md", "evaluation.json", "decision.json", "manifest.json"):
        assert not [text for text in words if text in (folder / name).read_text()], name
    # What goes to Dagster's event log, which nothing can be erased from, names no document either.
    for name in ("report.md", "manifest.json"):
        assert not [
            id_
            for id_ in lab.test.ids
            if f"`{id_}`" in (folder / name).read_text() or f'"{id_}"' in (folder / name).read_text()
        ]


class TestWriter:
    def writer(self, lab: Lab, checkpoint: Manifest) -> scoring.Writer:
        folder = lab.store.folder(checkpoint) / "model"
        tokenization = Tokenization.load_saved(folder, lab.prepared.use_case.settings.chunks, lab.task)
        return scoring.Writer(load_causal(folder), tokenization, 6)

    def test_the_likeliest_token_each_time_and_no_more_than_asked(self, lab: Lab, learned: Manifest) -> None:
        writer = self.writer(lab, learned)
        prompt = "Licensed under" if lab.task != "sft" else [{"role": "user", "content": "What is this?"}]
        ids, expected = writer._read(prompt), []
        model = AutoModelForCausalLM.from_pretrained(str(lab.store.folder(learned) / "model"))
        for _ in range(6):
            with torch.no_grad():
                token = int(model(input_ids=torch.tensor([[*ids, *expected]])).logits[0, -1].argmax())
            expected.append(token)
            if token in writer._end_ids:
                break
        assert writer.write(prompt) == writer.write(prompt) == writer._tokenization.tokenizer.decode(expected)

    @pytest.mark.parametrize("lab", ["sft"], indirect=True)
    def test_a_conversation_is_asked_through_the_template(self, lab: Lab, learned: Manifest) -> None:
        writer = self.writer(lab, learned)
        assert writer._tokenization.tokenizer.decode(
            writer._read([{"role": "user", "content": "Why?"}]), skip_special_tokens=False
        ).endswith("<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n")

    def test_a_prompt_longer_than_the_model_reads_is_cut_at_its_beginning(
        self, lab: Lab, learned: Manifest
    ) -> None:
        writer = self.writer(lab, learned)
        prompt = "word " * 2_000 if lab.task != "sft" else [{"role": "user", "content": "word " * 2_000}]
        assert len(writer._read(prompt)) == 512 - 6
        writer.write(prompt)


def test_a_champion_with_another_tokenizer_is_compared_by_equal_text(
    lab: Lab, learned: Manifest, tmp_path: Path
) -> None:
    """The same weights under a tokenizer whose file differs, though it cuts the same: nothing may change but
    what can't be compared.
    """
    other = tmp_path / "other"
    AutoModelForCausalLM.from_pretrained(str(lab.store.folder(learned) / "model")).save_pretrained(other)
    save_tokenizer(lab.model, [], other)
    (other / "tokenizer.json").write_text((other / "tokenizer.json").read_text() + "\n")
    part = next(iter(lab.snapshot.metadata["parts"].values()))
    cut = manifests.write(lab.store, "letters", "tokenized_chunks", "other", inputs={"tokenizer": "another"})
    about = {**lab.snapshot.metadata, "parts": {"b": {**part, "chunks": cut.ref}}}
    folder = lab.store.folder(lab.snapshot)
    files = {name: (folder / name).read_bytes() for name in ("index.parquet", "places.parquet")}
    taken = manifests.write(lab.store, "letters", "training_snapshot", "other", about, files=files)
    context = lab.context(learned, lab.checkpoint("other", other, taken))
    assert context.has_tokenizer_of_snapshot(
        "finetuned_checkpoint"
    ) and not context.has_tokenizer_of_snapshot("champion")
    found = scoring.evaluate(context, lab.test).evaluation
    assert isinstance(found, LanguageEvaluation) and found.rescaled == ["champion"]
    assert "champion" not in found.columns["token_accuracy"]
    assert found.gain_over_champion.estimate == pytest.approx(0, abs=1e-6)
