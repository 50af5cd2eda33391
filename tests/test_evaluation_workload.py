"""The evaluation's process on a small snapshot, a small real transformer and real baselines."""

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification

from fullft_assets import snapshot
from fullft_assets.errors import StoreError
from fullft_assets.evaluation import read_evaluation
from fullft_assets.evaluation.verdict import read_verdict
from fullft_assets.job import Job
from fullft_assets.launch.workloads.evaluation import work
from fullft_assets.progress import Progress
from fullft_assets.settings import ReleaseSettings, UseCaseSettings
from fullft_assets.settings.use_case import UseCase
from fullft_assets.store import Manifest, Store
from fullft_assets.tasks.baseline import BaselineContext
from fullft_assets.tasks.classification.baselines import FrozenProbe, Majority, Tfidf
from fullft_assets.tasks.classification.recipe import ClassificationRecipe
from fullft_assets.tasks.classification.scoring import map_labels
from tests import manifests
from tests.checkpoint_metadata import checkpoint_metadata
from tests.prepared import ingest
from tests.project import write_rows

WORDS = {
    "invoice": ["amount", "due", "payment", "bank", "total", "tax"],
    "letter": ["dear", "sir", "regards", "sincerely", "meeting", "hope"],
    "order": ["deliver", "pieces", "item", "quantity", "ship", "address"],
}
COMMON = [f"word{i}" for i in range(60)]


def write_documents(folder: Path) -> None:
    rng = np.random.default_rng(0)
    folder.mkdir()
    with (folder / "documents.jsonl").open("w") as file:
        for number in range(360):
            label = sorted(WORDS)[number % 3]
            words = [*rng.choice(WORDS[label], 2), *rng.choice(COMMON, 14)]
            row = {
                "id": f"d{number}",
                "text": " ".join(rng.permutation(words)),
                "kind": label,
                "author": f"a{number // 4}",
                "label": f"shelf {number // 4 % 2}",
            }
            file.write(json.dumps(row) + "\n")


def write_tokenizer(folder: Path) -> None:
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        *COMMON,
        *(word for group in WORDS.values() for word in group),
    ]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))


def small_model(
    labels: list[str], order: list[int], *, head: list[str] | None = None
) -> BertForSequenceClassification:
    """A seeded model whose outputs are in the given order of the same head's rows."""
    torch.manual_seed(3)
    names = head or [labels[i] for i in order]
    config = BertConfig(
        vocab_size=100,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        num_labels=len(labels),
        id2label=dict(enumerate(names)),
        label2id={name: i for i, name in enumerate(names)},
    )
    model = BertForSequenceClassification(config)
    with torch.no_grad():
        # Sharper than an initial model, so that the answers differ from row to row.
        model.classifier.weight.copy_(torch.randn(len(labels), 32)[order])
    return model


def with_test_share(settings: UseCaseSettings, share: float) -> UseCaseSettings:
    return settings.model_copy(
        update={"snapshot": settings.snapshot.model_copy(update={"test_share": share})}
    )


class Lab:
    """A use case with everything up to its evaluation."""

    def __init__(self, root: Path):
        write_documents(root / "data")
        self.base_model = root / "base"
        self.labels = sorted(WORDS)
        small_model(self.labels, [0, 1, 2]).save_pretrained(self.base_model)
        write_tokenizer(self.base_model)
        settings = UseCaseSettings(
            base_model=str(self.base_model),
            documents={"path": "data"},
            examples={"label": "kind", "group": "author", "slice_by": "label"},
            chunks={"max_tokens": 16, "stride": 2},
            snapshot={"test_share": 0.3},
        )
        self.store, self.root = Store(str(root / "store")), root
        self.use_case = UseCase(
            name="mail", settings=settings, yaml_path=root / "defs.yaml", project_root=root
        )
        ingested = ingest(self.store, self.use_case)
        self.take = lambda use_case: snapshot.take(self.store, use_case, *ingested)
        self.snapshot = self.take(self.use_case)
        self.test = snapshot.load_split(self.store, self.snapshot, "test")
        self.context = BaselineContext(
            self.base_model,
            self.labels,
            Progress(silent=True),
            settings,
            lambda: snapshot.load_split(self.store, self.snapshot, "train"),
        )
        train, validation = (
            snapshot.load_split(self.store, self.snapshot, name) for name in ("train", "validation")
        )
        recipe = ClassificationRecipe(self.base_model, train, validation, self.labels)
        self.context = dataclasses.replace(self.context, open_recipe=lambda: recipe)
        scores = dict.fromkeys(settings.baselines, 0.5)
        self.baselines = self.artifact(
            "cheaper_baselines", "b", self._fit_baselines, manifests.baselines(self.labels, scores)
        )
        curve = [{"rows": 50, "macro_f1": 0.4}, {"rows": 100, "macro_f1": 0.5}]
        self.pilot = self.artifact("pilot_run", "p", lambda folder: None, manifests.pilot(curve))

    def artifact(
        self, stage: str, key: str, fill: Callable[[Path], None], metadata: dict | None = None
    ) -> Manifest:
        with self.store.create("mail", stage, key, version="1", seed=17) as draft:
            fill(draft.path)
            return draft.commit(
                settings={"training": {"epochs": 3}},
                inputs={"training_snapshot": self.snapshot.content_digest},
                metadata=metadata or {},
            )

    def _fit_baselines(self, folder: Path) -> None:
        train = snapshot.load_split(self.store, self.snapshot, "train")
        for kind in (Majority, Tfidf, FrozenProbe):
            kind.fit(train, self.context).save(folder)

    def checkpoint(self, name: str, model: BertForSequenceClassification, **measured: float) -> Manifest:
        def fill(folder: Path) -> None:
            model.save_pretrained(folder / "model")
            shutil.copy(self.base_model / "tokenizer.json", folder / "model" / "tokenizer.json")
            log = [{"step": 1, "loss": 1.1}, {"step": 2, "loss": 0.9}, {"step": 2, "validation_loss": 1.0}]
            write_rows(folder / "logs" / "metrics.jsonl", log)

        return self.artifact(
            "finetuned_checkpoint",
            name,
            fill,
            checkpoint_metadata(training_seconds=61.0, snapshot=self.snapshot.ref, **measured),
        )

    def evaluate(
        self,
        checkpoint: Manifest,
        key: str,
        champion: Manifest | None = None,
        settings: UseCaseSettings | None = None,
        taken: Manifest | None = None,
        brought: Mapping[str, Manifest] | None = None,
    ) -> Manifest:
        inputs = {
            "training_snapshot": (taken or self.snapshot).ref,
            "finetuned_checkpoint": checkpoint.ref,
            "cheaper_baselines": self.baselines.ref,
            "pilot_run": self.pilot.ref,
        }
        more = {**({"champion": champion} if champion else {}), **(brought or {})}
        inputs |= {name: manifest.ref for name, manifest in more.items()}
        job = Job(
            case="mail",
            stage="evaluation_report",
            key=key,
            project_root=str(self.root),
            store_url=self.store.url,
            settings=settings or self.use_case.settings,
            inputs=inputs,
        )
        work(job, self.store, Progress(silent=True))
        return self.store.find("mail", "evaluation_report", key)


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Lab:
    return Lab(tmp_path_factory.mktemp("mail"))


@pytest.fixture(scope="module")
def candidate(lab) -> Manifest:
    return lab.checkpoint("candidate", small_model(lab.labels, [0, 1, 2]))


@pytest.fixture(scope="module")
def report(lab, candidate) -> Manifest:
    return lab.evaluate(candidate, "first")


def test_the_artifact_is_whole(lab, report):
    names = set(report.files)
    assert {"report.html", "report.md", "predictions.parquet", "decision.json", "evaluation.json"} <= names
    assert {
        f"pictures/{name}.png" for name in ("scores", "confusion", "reliability", "loss", "learning_curve")
    } <= names
    gates = ["test_set_is_large_enough", "beats_baselines", "beats_champion", "score_is_sufficient"]
    gates += ["no_slice_is_worse"]
    assert [check.name for check in report.checks] == gates
    assert all(check.severity == "warn" for check in report.checks)
    assert report.check("beats_champion").description == "no champion yet"


def test_fields_of_ones_own_are_slices(lab, report):
    slices = read_evaluation((lab.store.folder(report) / "evaluation.json").read_bytes()).slices.found
    assert {"length", "label", "field label"} <= {each.kind for each in slices}
    shelves = {each.name: each.num_rows for each in slices if each.kind == "field label"}
    assert set(shelves) == {"shelf 0", "shelf 1"} and sum(shelves.values()) == len(lab.test)


def test_rows_that_a_model_learned_from_in_an_older_snapshot_are_excluded(lab, candidate):
    # A larger test share moves groups from training to test: the older checkpoint has seen them.
    newer = lab.take(dataclasses.replace(lab.use_case, settings=with_test_share(lab.use_case.settings, 0.6)))
    test = snapshot.load_split(lab.store, newer, "test")
    learned = set(snapshot.load_split(lab.store, lab.snapshot, "train").texts)
    assert learned & set(test.texts)
    found = lab.evaluate(candidate, "newer", taken=newer)
    rows = pq.read_table(lab.store.folder(found) / "predictions.parquet")["id"].to_pylist()
    left = [id_ for id_, text in zip(test.ids, test.texts, strict=True) if text not in learned]
    assert rows == left and found.metadata["num_test_rows_left_out"] == len(test) - len(left)


def test_predictions_are_stored_and_the_headline_is_in_the_metadata(lab, report):
    table = pq.read_table(lab.store.folder(report) / "predictions.parquet")
    systems = ["", "majority.", "tfidf.", "frozen_probe."]
    columns = [
        "id",
        "label",
        "group",
        *(f"{name}{what}" for name in systems for what in ("predicted", "probability")),
    ]
    # Likely label errors rest on all probabilities of the fine-tuned model.
    columns.append("probabilities")
    assert table.column_names == columns
    rows = table.to_pydict()
    assert rows["id"] == lab.test.ids and rows["label"] == [lab.labels[i] for i in lab.test.labels]
    found = read_evaluation((lab.store.folder(report) / "evaluation.json").read_bytes())
    assert report.metadata["accuracy"] == found.scores["accuracy"]["finetuned"].estimate
    assert report.metadata["macro_f1"] == found.scores["macro_f1"]["finetuned"].estimate
    assert report.metadata["macro_f1_low"] < report.metadata["macro_f1"] < report.metadata["macro_f1_high"]
    assert report.metadata["scores"]["tfidf"]["macro_f1"] == found.scores["macro_f1"]["tfidf"].estimate
    assert (report.metadata["num_test_rows"], report.metadata["num_test_groups"]) == (
        len(lab.test),
        len(set(lab.test.groups)),
    )
    tfidf = Tfidf.load(lab.store.folder(lab.baselines), lab.context).predict(lab.test).argmax(1)
    assert rows["tfidf.predicted"] == [lab.labels[i] for i in tfidf]


def test_an_untrained_model_is_not_promoted_and_the_report_says_why(lab, report):
    # The words give the label away to TF-IDF; a model that was never trained guesses.
    assert report.metadata["scores"]["tfidf"]["macro_f1"] > 0.8 > 0.6 > report.metadata["macro_f1"]
    decision = read_verdict(lab.store.folder(report))
    assert not decision.promote and not report.check("beats_baselines").passed
    assert report.metadata["verdict"] == decision.sentence and not report.metadata["justified"]
    page = (lab.store.folder(report) / "report.html").read_text()
    assert "Full fine-tuning was not worth it, a baseline is better" in page and "1 min 1 s" in page
    assert "price of a point at which this turns" in page and "training rows at which it turns" in page


def test_texts_are_only_in_the_html(lab, report):
    folder = lab.store.folder(report)
    assert len([text for text in lab.test.texts if text in (folder / "report.html").read_text()]) >= 5
    for name in ("report.md", "evaluation.json", "decision.json", "manifest.json"):
        content = (folder / name).read_text()
        assert not any(text in content for text in lab.test.texts), name


def test_a_champion_with_its_labels_in_another_order_is_read_by_name(lab, candidate, report):
    # The same model with its outputs in another order answers the same, so the gain is exactly zero.
    champion = lab.checkpoint("champion", small_model(lab.labels, [2, 0, 1]))
    second = lab.evaluate(candidate, "second", champion)
    assert second.metadata["incumbent"] == champion.ref
    assert second.metadata["scores"]["champion"]["macro_f1"] == pytest.approx(report.metadata["macro_f1"])
    assert second.metadata["gain_over_champion"] == 0.0 and not second.check("beats_champion").passed
    found = read_evaluation((lab.store.folder(second) / "evaluation.json").read_bytes())
    assert found.has_champion
    # The same seed, the same resamples: what is compared does not change the candidate's interval.
    assert found.score.low == report.metadata["macro_f1_low"]


def test_map_labels():
    mapped = map_labels(np.array([[0.2, 0.6, 0.2], [0.0, 1.0, 0.0]]), ["b", "gone", "a"], ["a", "b", "new"])
    assert mapped == pytest.approx(np.array([[0.5, 0.5, 0.0], [0.5, 0.5, 0.0]]))
    with pytest.raises(StoreError, match="none of .* `a`, `b`, only `x`, `y`"):
        map_labels(np.eye(2), ["x", "y"], ["a", "b"])


def test_likely_label_errors_are_a_file_of_ids(lab, report):
    pytest.importorskip("cleanlab")
    lines = [
        json.loads(line)
        for line in (lab.store.folder(report) / "label_errors.jsonl").read_text().splitlines()
    ]
    held_out = {*lab.test.ids, *snapshot.load_split(lab.store, lab.snapshot, "validation").ids}
    assert lines
    assert {line["id"] for line in lines} <= held_out
    assert all(line["kind"] != line["suggested"] for line in lines)


def test_settings_decide_which_checks_there_are(lab, candidate):
    gates = ReleaseSettings(gates={"is_calibrated": {"max_error": 0.01}})
    found = lab.evaluate(
        candidate, "calibrated", settings=lab.use_case.settings.model_copy(update={"release": gates})
    )
    assert not found.check("is_calibrated").passed
    enough = found.check("test_set_is_large_enough")
    assert enough.passed is (enough.metadata["effective_groups"] >= gates.min_effective_groups)
