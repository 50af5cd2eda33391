"""Added tokens: matched as whole words, in the tokenizer's digest, with embeddings that start as the mean of
their former pieces.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fullft_assets.chunks import Tokenization, former_pieces, save_tokenizer, tokenizer_digest
from fullft_assets.errors import SettingsError
from fullft_assets.launch.workloads import evaluation, planning
from fullft_assets.models.inference import load_classifier, predict_with
from fullft_assets.models.loading import initialise_added
from fullft_assets.settings import ChunksSettings
from fullft_assets.store import Manifest
from fullft_assets.tasks.classification import scoring
from fullft_assets.tasks.context import EvaluationContext
from tests import prepared, project as projects, smollm2
from tests.test_chunks import MODEL as MINILM

TERMS = ["sublicense", "hydroxychloroquine", "MIT-licence"]
TEXTS = [
    "You may sublicense it.",
    "sublicensees: no. Sublicense! SUBLICENSE",
    "(hydroxychloroquine) and the MIT-licence",
    "none of them",
]


@pytest.fixture(scope="module", params=["minilm", "smollm2", "smollm2 untied"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with a real tokenizer and narrow random weights."""
    folder = tmp_path_factory.mktemp("base")
    if request.param == "minilm":
        prepared.write_tiny_model(folder)
    else:
        smollm2.write_tiny_model(folder, tied=request.param == "smollm2")
    return folder


def load(folder: Path, *added: str) -> Tokenization:
    return Tokenization.load(folder, ChunksSettings(max_tokens=64, stride=0, added_tokens=list(added)))


class TestTokenizer:
    def test_a_term_is_one_token_where_it_is_a_word_and_all_else_stays(self, base: Path) -> None:
        before, after = load(base), load(base, *TERMS)
        new = {after.tokenizer.token_to_id(term): term for term in TERMS}
        assert len(new) == 3 and min(new) >= before.tokenizer.get_vocab_size()
        folds_case = before.tokenizer.encode("A").ids == before.tokenizer.encode("a").ids
        for text, count in zip(TEXTS, [1, 2 if folds_case else 0, 2, 0], strict=True):
            old, ids = before.encode([text])[0], after.encode([text])[0]
            assert sum(number in new for number in ids) == count, text
            assert (
                after.tokenizer.decode(ids).replace(" ", "").lower()
                == before.tokenizer.decode(old).replace(" ", "").lower()
            )
        assert after.encode([TEXTS[3]]) == before.encode([TEXTS[3]])

    def test_they_are_in_the_digest(self, base: Path) -> None:
        digests = [
            tokenizer_digest(base, ChunksSettings(added_tokens=added), "classification")
            for added in ([], ["sublicense"], ["sublicense", "licence"], ["licence", "sublicense"])
        ]
        assert len(set(digests)) == 4

    @pytest.mark.parametrize(
        ("terms", "says"),
        [
            ([" sublicense"], "' sublicense' is blank or has white space around it"),
            (["a", "b", "a"], "`a` is given twice"),
        ],
    )
    def test_what_cannot_be_added_is_one_line(self, terms: list[str], says: str) -> None:
        with pytest.raises(SettingsError, match=f"chunks.added_tokens: {says}"):
            load(MINILM, *terms)

    def test_a_saved_tokenizer_reads_as_the_one_it_was_made_of(self, base: Path, tmp_path: Path) -> None:
        from transformers import AutoTokenizer

        save_tokenizer(base, TERMS, tmp_path)
        # Added today, after the model was trained: it has no embedding.
        saved = Tokenization.load_saved(
            tmp_path, ChunksSettings(max_tokens=64, stride=0, added_tokens=["Permission"])
        )
        texts = [*TEXTS, *[row["text"] for row in projects.licence_rows(50)]]
        assert saved.chunks(texts) == load(base, *TERMS).chunks(texts)
        (tmp_path / "config.json").write_text((base / "config.json").read_text())
        for text in TEXTS:
            assert AutoTokenizer.from_pretrained(tmp_path)(text)["input_ids"] == saved.chunks([text])[0][0]


class TestEmbeddings:
    def models(self, base: Path) -> list[tuple[Any, Any]]:
        from transformers import AutoModel, AutoModelForCausalLM

        kinds = (
            [AutoModel]
            if json.loads((base / "config.json").read_text())["model_type"] == "bert"
            else [AutoModel, AutoModelForCausalLM]
        )
        return [(kind.from_pretrained(base), kind.from_pretrained(base)) for kind in kinds]

    def test_each_is_the_mean_of_its_former_pieces_and_the_others_stay(self, base: Path) -> None:
        former = former_pieces(base, TERMS)
        assert list(map(len, former.values())) == [len(min(pieces(base, term), key=len)) for term in TERMS]
        for before, model in self.models(base):
            initialise_added(model, base, TERMS)
            for old, new in zip(tables(before), tables(model), strict=True):
                assert len(new) == max(len(old), max(former) + 1)
                for number, ids in former.items():
                    torch.testing.assert_close(new[number], old[ids].mean(0))
                kept = [number for number in range(len(old)) if number not in former]
                assert torch.equal(new[kept], old[kept])
            if before.get_output_embeddings() is not None and before.config.tie_word_embeddings:
                assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
            assert model.config.vocab_size == len(model.get_input_embeddings().weight)
            ids = load(base, *TERMS).chunks(TEXTS[2:3])[0][0]
            assert torch.isfinite(model(input_ids=torch.tensor([ids]))[0]).all()


def pieces(base: Path, term: str) -> list[list[int]]:
    tokenizer = load(base).tokenizer
    return [tokenizer.encode(text, add_special_tokens=False).ids for text in (term, f" {term}")]


def tables(model: Any) -> list[torch.Tensor]:
    head = model.get_output_embeddings()
    return [model.get_input_embeddings().weight.detach(), *([] if head is None else [head.weight.detach()])]


class TestWorkloads:
    """From the plan to the report with a small model, once without added tokens and once with."""

    ADDED = ["redistribute", "warranty", "licensor"]

    @pytest.fixture(scope="class")
    def made(
        self, tmp_path_factory: pytest.TempPathFactory
    ) -> tuple[prepared.Prepared, dict[str, Manifest], dict[str, Manifest]]:
        case = prepared.prepare(tmp_path_factory.mktemp("plain"), tiny=True)
        plain = self.train(case, "plain")
        case.project.configure(base_model="model", chunks={"added_tokens": self.ADDED})
        case = prepared.take(case.project)
        return case, plain, {**self.train(case, "extended"), **self.plan(case)}

    def train(self, case: prepared.Prepared, key: str) -> dict[str, Manifest]:
        return {"finetuned_checkpoint": case.train(key), "training_snapshot": case.snapshot}

    def plan(self, case: prepared.Prepared) -> dict[str, Manifest]:
        planning.work(case.job("feasibility_plan", "k"), case.store, prepared.QUIET)
        return {
            stage: case.store.find(case.use_case.name, stage, "k")
            for stage in ("cheaper_baselines", "pilot_run")
        }

    def test_the_trained_model_has_their_embeddings_and_their_tokenizer(self, made) -> None:
        case, plain, extended = made
        test = case.split("test")
        new = set(former_pieces(case.base_model, self.ADDED))
        used = {number for document in case.split("train").chunks for chunk in document for number in chunk}
        assert len(new & used) > 1
        folder = case.store.folder(extended["finetuned_checkpoint"]) / "model"
        assert len(load_classifier(folder).get_input_embeddings().weight) == max(new) + 1
        assert (
            Tokenization.load_saved(folder, case.use_case.settings.chunks).chunks(test.texts) == test.chunks
        )
        assert len(
            load_classifier(case.store.folder(plain["finetuned_checkpoint"]) / "model")
            .get_input_embeddings()
            .weight
        ) == min(new)

    def test_a_champion_of_another_tokenizer_reads_the_test_rows_with_its_own(self, made) -> None:
        case, plain, extended = made
        job = case.job("evaluation_report", "k")
        inputs = {**extended, "champion": plain["finetuned_checkpoint"]}
        job = job.model_copy(update={"inputs": {name: manifest.ref for name, manifest in inputs.items()}})
        test = case.split("test")
        found = scoring.predict_all(
            EvaluationContext(job, case.store, inputs, prepared.QUIET), test, case.labels
        )
        for name, checkpoint in (("champion", plain), ("finetuned", extended)):
            folder = case.store.folder(checkpoint["finetuned_checkpoint"]) / "model"
            chunks = Tokenization.load_saved(folder, case.use_case.settings.chunks).chunks(test.texts)
            np.testing.assert_allclose(found[name], predict_with(load_classifier(folder), chunks), atol=1e-5)
        evaluation.work(job, case.store, prepared.QUIET)
        assert case.store.find(case.use_case.name, "evaluation_report", "k").metadata["num_test_rows"] == len(
            test
        )
