"""Tasks of the lm-evaluation-harness: kept in the store, scored as the logits say, shown in the report;
nothing is downloaded.
"""

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from fullft_assets.errors import DataError, SettingsError
from fullft_assets.evaluation import external
from fullft_assets.settings import LmEvalSettings
from fullft_assets.store import Manifest, Store
from fullft_assets.tasks.language.assessment import task_scores
from tests import project as projects

needs_lm_eval = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="needs the extra `lm-eval`"
)
ROWS = [
    {"question": "The colour of the sky is", "choices": ["blue", "seven"], "answer": 0},
    {"question": "Permission is hereby", "choices": ["a cat", "granted, free of charge"], "answer": 1},
    {"question": "One and one make", "choices": ["two", "not"], "answer": 0},
    {"question": "This licence has no", "choices": ["warranty of any kind", "water"], "answer": 0},
    # Of these two a model is right on one.
    {"question": "The rights to use, copy and", "choices": ["modify", "bake"], "answer": 0},
    {"question": "The rights to use, copy and", "choices": ["modify", "bake"], "answer": 1},
]


def write_tasks(folder: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    task = {
        "task": "facts",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": "facts.jsonl"}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        **changes,
    }
    (folder / "facts.yaml").write_text(json.dumps(task))
    (folder / "facts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return folder


def test_each_row_counts_once_and_gains_are_paired() -> None:
    rng = np.random.default_rng(0)
    ours, theirs = rng.integers(0, 2, 90).astype(float), rng.integers(0, 2, 90).astype(float)
    found = {
        name: {"facts": {"acc": values}} for name, values in (("finetuned", ours), ("base_model", theirs))
    }
    (scores,) = task_scores(found, 0.95)
    assert (scores.task, scores.metric, scores.num_rows) == ("facts", "acc", 90)
    assert scores.scores["base_model"].estimate == pytest.approx(theirs.mean())
    gain = scores.gains["base_model"]
    expected = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    assert (gain.low, gain.high) == pytest.approx((expected.low, expected.high))
    assert set(scores.gains) == {"base_model"}


def test_a_task_that_is_always_right_has_an_interval_below_one() -> None:
    found = {name: {"facts": {"acc": np.ones(20)}} for name in ("finetuned", "base_model")}
    (scores,) = task_scores(found, 0.95)
    assert (scores.scores["finetuned"].estimate, scores.scores["finetuned"].high) == (1, 1)
    assert scores.scores["finetuned"].low < 0.9
    assert scores.gains["base_model"].low < 0 < scores.gains["base_model"].high


def test_the_folder_is_kept_by_its_content(tmp_path: Path) -> None:
    project = projects.create(
        tmp_path, examples={"task": "language_modeling", "label": None, "labels": None}, chunks={"stride": 0}
    )
    folder, store = write_tasks(tmp_path / "tasks"), Store(str(tmp_path / "store"))
    settings = project.use_case().settings
    assert external.keep(store, "mail", settings, tmp_path) == {}
    asked = settings.evaluation.model_copy(
        update={"lm_eval": LmEvalSettings(folder="tasks", tasks=["facts"])}
    )
    settings = settings.model_copy(update={"evaluation": asked})
    (folder / ".hidden").write_text("x")

    def kept() -> Manifest:
        return external.keep(store, "mail", settings, tmp_path)[external.HARNESS_TASKS]

    first = kept()
    assert first.ref == kept().ref
    copies = store.folder(first) / external.FOLDER
    assert sorted(path.name for path in copies.iterdir()) == ["facts.jsonl", "facts.yaml"]
    (folder / "facts.jsonl").write_text("{}\n")
    assert kept().content_digest != first.content_digest


def test_the_check_of_a_yaml_names_what_cannot_be_scored(tmp_path: Path) -> None:
    project = projects.create(tmp_path, evaluation={"lm_eval": {"folder": "tasks", "tasks": ["facts"]}})
    with pytest.raises(
        SettingsError, match="is for language models, and the task classification makes none"
    ) as caught:
        project.use_case()
    assert "evaluation.lm_eval.folder: there is no folder" in str(caught.value)


def test_without_the_extra_it_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fullft_assets.jobs.progress import Progress
    from fullft_assets.tasks.language.harness import score_tasks

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    asked = LmEvalSettings(folder="tasks", tasks=["facts"])
    with pytest.raises(
        SettingsError, match=r"lm-eval is not installed; pip install 'fullft-assets\[lm-eval\]'"
    ):
        score_tasks(None, tmp_path, tmp_path, asked, 0, Progress(silent=True))


@pytest.mark.long
@needs_lm_eval
class TestWithLmEval:
    @pytest.fixture(scope="class")
    def model(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        from tests import small_language_model

        return small_language_model.write(
            tmp_path_factory.mktemp("models") / "m", [row["question"] for row in ROWS] * 20
        )

    def score(self, model: Path, folder: Path) -> Any:
        from fullft_assets.jobs.progress import Progress
        from fullft_assets.models.inference import load_causal
        from fullft_assets.tasks.language.harness import score_tasks

        settings = LmEvalSettings(folder="tasks", tasks=["facts"])
        return score_tasks(load_causal(model), model, folder, settings, 0, Progress(silent=True))

    def test_a_row_is_right_where_the_logits_prefer_its_answer(self, model: Path, tmp_path: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        loaded, tokenizer = (
            AutoModelForCausalLM.from_pretrained(str(model)),
            AutoTokenizer.from_pretrained(str(model)),
        )
        expected = []
        for row in ROWS:
            sums = []
            for choice in row["choices"]:
                before, ids = (
                    tokenizer(text).input_ids for text in (row["question"], f"{row['question']} {choice}")
                )
                with torch.no_grad():
                    logits = loaded(torch.tensor([ids])).logits[0].log_softmax(-1)
                sums.append(
                    sum(float(logits[place - 1, ids[place]]) for place in range(len(before), len(ids)))
                )
            expected.append(float(int(np.argmax(sums)) == row["answer"]))
        found = self.score(model, write_tasks(tmp_path / "tasks"))
        assert found["facts"]["acc"].tolist() == expected
        assert 0 < sum(expected) < len(expected)

    def test_what_cannot_be_scored_is_one_line(self, model: Path, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="no YAML file in the folder has the task facts; it has"):
            self.score(model, write_tasks(tmp_path / "other", task="other"))
        with pytest.raises(DataError, match="lm-eval cannot load facts"):
            self.score(
                model, write_tasks(tmp_path / "gone", dataset_kwargs={"data_files": {"test": "gone.jsonl"}})
            )
        perplexity = {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{question}}",
        }
        perplexity |= {"doc_to_choice": None, "metric_list": [{"metric": "word_perplexity"}]}
        with pytest.raises(DataError, match="the task facts has no metric that is a mean over its rows"):
            self.score(model, write_tasks(tmp_path / "perplexity", **perplexity))

    def test_the_report_shows_them(self, tmp_path: Path) -> None:

        from tests.test_evaluation_language_workload import QUIET, Lab, work

        lab = Lab(tmp_path / "lab", "language_modeling")
        learned = lab.checkpoint("learned", lab.learn(tmp_path / "model"))
        context = lab.context(learned, key="tasks")
        asked = {"lm_eval": LmEvalSettings(folder="tasks", tasks=["facts"])}
        settings = context.job.settings
        settings = settings.model_copy(update={"evaluation": settings.evaluation.model_copy(update=asked)})
        write_tasks(tmp_path / "lab" / "tasks")
        kept = external.keep(lab.store, "letters", settings, tmp_path / "lab")[external.HARNESS_TASKS]
        job = context.job.model_copy(
            update={"settings": settings, "inputs": {**context.job.inputs, external.HARNESS_TASKS: kept.ref}}
        )
        work(job, lab.store, QUIET)
        report = lab.store.find("letters", "evaluation_report", "tasks")
        assert report is not None
        (found,) = lab.read(report).other_tasks
        assert (found.task, found.num_rows, set(found.scores)) == ("facts", 6, {"finetuned", "base_model"})
        assert "Other tasks" in (lab.store.folder(report) / "report.html").read_text()
