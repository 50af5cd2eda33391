"""Training from the champion: its weights, the refusals, and a complete lineage."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fullft_assets import erasure, snapshot
from fullft_assets.checkpoint import lineage
from fullft_assets.errors import GateError
from fullft_assets.launch.workloads import evaluation, training
from fullft_assets.progress import Progress
from fullft_assets.release import starting_point
from fullft_assets.store import Manifest
from tests import manifests, project as projects, small_language_model
from tests.prepared import Prepared, prepare, prepare_language_model

STAGE = "finetuned_checkpoint"
#: Steps that change next to nothing.
STILL = {"learning_rate": 1e-12, "weight_decay": 0.0}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    quick = {"checkpoint_every_steps": 3, "learning_rate": 1e-3, "precision": "fp32"}
    return prepare(tmp_path_factory.mktemp("encoder"), tiny=True, training=quick)


def train(
    case: Prepared, key: str, start: Manifest | None = None, on: Manifest | None = None, **changes: object
) -> Manifest:
    job = case.job(STAGE, key, training=changes)
    inputs = {
        "training_snapshot": (on or case.snapshot).ref,
        **({} if start is None else {"champion": start.ref}),
    }
    training.work(job.model_copy(update={"inputs": inputs}), case.store, Progress(silent=True))
    return case.store.find(job.case, STAGE, key)


def weights(case: Prepared, made: Manifest) -> Mapping[str, torch.Tensor]:
    return load_file(case.store.folder(made) / "model" / "model.safetensors")


def assert_near(case: Prepared, one: Manifest, other: Manifest) -> None:
    first, second = weights(case, one), weights(case, other)
    assert set(first) == set(second)
    assert all(torch.allclose(first[name], second[name], atol=1e-8) for name in first)


@pytest.fixture(scope="module")
def champion(encoder: Prepared) -> Manifest:
    return train(encoder, "first", retrain_from="champion")


class TestTraining:
    def test_continues_from_the_champions_weights_head_included(
        self, encoder: Prepared, champion: Manifest
    ) -> None:
        assert_near(encoder, champion, train(encoder, "second", champion, **STILL))
        other = train(encoder, "from base", **STILL)
        name = "encoder.layer.0.output.dense.weight"
        assert not torch.allclose(weights(encoder, champion)[name], weights(encoder, other)[name], atol=1e-4)

    def test_a_language_model_continues_with_its_added_tokens(self, tmp_path: Path) -> None:
        small_language_model.write(tmp_path / "model", [row["text"] for row in projects.licence_rows(80)])
        options = {
            "training": {
                "epochs": 1,
                "batch_size": 8,
                "micro_batch_size": 8,
                "learning_rate": 1e-2,
                "precision": "fp32",
            }
        }
        case = prepare_language_model(
            tmp_path, rows=80, base_model="model", chunks={"added_tokens": ["sublicense"]}, **options
        )
        first = train(case, "first")
        assert_near(case, first, train(case, "second", first, **STILL))

    def test_l2_sp_holds_on_to_the_base_model_not_to_the_champion(
        self, encoder: Prepared, champion: Manifest
    ) -> None:
        # So strong a pull that it decides alone.
        held = train(encoder, "held", champion, l2_sp=1e4, learning_rate=1e-4, epochs=3)
        base = load_file(encoder.base_model / "model.safetensors")
        moved = [
            sum(
                float((weights(encoder, made)[name] - base[name]).abs().sum())
                for name in base
                if name in weights(encoder, made)
            )
            for made in (champion, held)
        ]
        assert moved[1] < 0.9 * moved[0]

    def test_lists_every_training_over_all_generations(self, encoder: Prepared, champion: Manifest) -> None:
        second = train(encoder, "second", champion, **STILL)
        third = train(encoder, "third", second, **STILL)
        assert champion.metadata["trained_from"].startswith("the base model: ")
        assert (third.metadata["trained_from"], third.inputs["champion"]) == (
            second.ref,
            second.content_digest,
        )
        assert [each["checkpoint"] for each in third.metadata["lineage"]] == [champion.ref, second.ref]
        rows = lineage.rows(third)
        assert [name for name, _ in rows] == ["Trained from", "Training 1", "Training 2", "Learning rate"]
        assert rows[1][1] == f"{champion.ref} on {encoder.snapshot.ref}"
        assert lineage.snapshots_learned_from(third) == [encoder.snapshot.ref]


class TestStartingPoint:
    @pytest.fixture(autouse=True)
    def no_champion(self, encoder: Prepared) -> None:
        """Begin without a champion: the store is shared, and other tests promote one."""
        Path(encoder.store.url, "pointers", encoder.use_case.name, "champion.json").unlink(missing_ok=True)

    def find(
        self,
        case: Prepared,
        decision: str,
        on: Manifest | None = None,
        retrain_from: str = "champion",
        revision: str = "",
    ) -> Manifest | None:
        settings = case.job(STAGE, training={"retrain_from": retrain_from}).settings
        found = case.store.find(case.use_case.name, STAGE, "first")
        revision = revision or found.metadata["base_model_revision"]
        return starting_point.find(
            case.store,
            case.use_case.name,
            settings,
            on or case.snapshot,
            revision=revision,
            decision=decision,
        )

    def crown(self, case: Prepared, made: Manifest) -> None:
        manifests.promote(case.store, case.use_case.name, made.ref, snapshot=made.metadata["snapshot"])

    def test_is_fixed_when_it_is_first_asked_for(self, encoder: Prepared, champion: Manifest) -> None:
        assert self.find(encoder, "one") is None
        self.crown(encoder, champion)
        assert self.find(encoder, "one") is None and self.find(encoder, "two") == champion
        assert self.find(encoder, "three", retrain_from="base") is None
        self.crown(encoder, train(encoder, "second", champion, **STILL))
        assert self.find(encoder, "two") == champion and self.find(encoder, "four").key == "second"

    def test_another_base_model_or_other_labels_are_one_line(
        self, encoder: Prepared, champion: Manifest
    ) -> None:
        self.crown(encoder, champion)
        fix = "set training.retrain_from: base"
        with pytest.raises(
            GateError,
            match=f"^training.retrain_from: the champion {champion.ref} has another base_model; {fix}$",
        ):
            self.find(encoder, "other base", revision="other")
        other = encoder.snapshot.model_copy(
            update={"metadata": {**encoder.snapshot.metadata, "labels": ["a", "b"]}}
        )
        with pytest.raises(GateError, match=f"other labels: .* lacks .* adds .*; {fix}$"):
            self.find(encoder, "other labels", on=other)
        # Nothing was fixed.
        assert encoder.store.read_pointer(f"{encoder.use_case.name}/starting_points/other labels") is None


class TestWhatItLearned:
    def test_rows_of_an_earlier_training_are_not_tested_on(
        self, encoder: Prepared, champion: Manifest
    ) -> None:
        reseeded = encoder.use_case.settings.model_copy(update={"seed": 3})
        other = replace(encoder, use_case=replace(encoder.use_case, settings=reseeded)).take_again()
        test = snapshot.load_split(encoder.store, other, "test")
        seen = set(test.texts) & set(encoder.split("train").texts)
        assert len(seen) > 10
        for start, expected in ((None, seen), (champion, set())):
            made = train(encoder, f"elsewhere {start and start.key}", start, on=other, **STILL)
            judged = evaluation.unseen(
                encoder.job("evaluation_report"),
                encoder.store,
                {"training_snapshot": other, "finetuned_checkpoint": made},
                test,
            )
            assert set(judged.texts) & seen == expected

    def test_a_model_with_erased_documents_of_an_earlier_training_is_named_and_not_trained_further(
        self, tmp_path: Path
    ) -> None:
        case = prepare(tmp_path, tiny=True, training={"precision": "fp32"})
        first = train(case, "first")
        second = train(case, "second", first, **STILL)
        finder = TestStartingPoint()
        finder.crown(case, second)
        assert finder.find(case, "before") == second
        report = erasure.erase(case.store, case.use_case.name, [case.split("train").ids[0]])
        assert set(report.trained_on) == {first.ref, second.ref}
        today = case.store.load(case.snapshot.ref)
        with pytest.raises(GateError, match="documents that were erased"):
            finder.find(case, "after", on=today)
        # What was trained on what is left is clean.
        finder.crown(case, train(case, "anew", on=today))
        assert finder.find(case, "anew", on=today).key == "anew"
