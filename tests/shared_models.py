"""Scenes of two processes that share a model (FSDP2): `python -m tests.shared_models FOLDER SCENE ...`

Prints by scene what each process returned.
"""

import hashlib
import json
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pyarrow.parquet as pq
import torch
from torch._dynamo.utils import counters
from torch.distributed import fsdp
from torch.distributed.tensor import DTensor
from transformers import BertConfig, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from fullft_assets.errors import Interrupted
from fullft_assets.launch.workloads import planning
from fullft_assets.launch.workloads.evaluation import work
from fullft_assets.models import inference
from fullft_assets.models.token_loss import TokenLoss
from fullft_assets.settings import DistillationSettings
from fullft_assets.snapshot.general import General
from fullft_assets.store import Manifest
from fullft_assets.tasks.classification.baselines import Majority
from fullft_assets.tasks.classification.recipe import ClassificationRecipe
from fullft_assets.tasks.context import store_baseline
from fullft_assets.tasks.language import scoring
from fullft_assets.tasks.language.recipe import NextTokenRecipe
from fullft_assets.tasks.prompting import BaseModel
from fullft_assets.training import ranks, stored_checkpoints
from fullft_assets.training.checkpoints import step_of
from fullft_assets.training.finetuning import TrainingSegment, fine_tune
from fullft_assets.training.loop import Loop
from fullft_assets.training.optimizers.low_memory import local
from fullft_assets.training.recipe import Recipe
from fullft_assets.training.sharding import Part
from fullft_assets.training.watching import Validator
from tests.prepared import QUIET, Prepared, prepare, write_tiny_model
from tests.scattered_trainings import Noting
from tests.test_evaluation_language_workload import Lab
from tests.test_isolation import SMALL
from tests.test_lora import LABELLED
from tests.test_packed import LLAMA, SETTINGS, documents, recipe, training
from tests.two_ranks import play

SHARED = SETTINGS.model_copy(update={"sharding": "fsdp2", "micro_batch_size": 1})
#: The last chunks are replayed ones; all passes have some, but for that of one process at a time.
RECIPE = replace(
    recipe(LLAMA, replace(training(60, marked=True), num_task_chunks=55)),
    general=General([], [[each] for each in training(6, seed=2).chunks]),
)
#: What makes a model forget less.
LEVERS: dict[str, Any] = {
    "wise_ft": [0.3, 0.6],
    "l2_sp": 0.5,
    "ewc": 0.5,
    "distillation": DistillationSettings(weight=0.9),
}
#: Rungs of the memory ladder with weights in bf16.
BF16: dict[str, dict[str, Any]] = {
    name: {"optimizer": name, "weights": "bf16", "precision": "auto"} for name in ("adamw", "adafactor")
}


def main(folder: Path, scenes: list[str]) -> None:
    torch.set_num_threads(1)
    print(json.dumps({scene: SCENES[scene](folder / scene) for scene in scenes}))


class Begun(Exception):
    """A segment is set up."""


def begin(recipe: Recipe, folder: Path, count: int) -> list[dict[str, Any]]:
    """Set up a training in so many processes; return what each holds, with digests of the whole weights."""

    def scene(work: Path, rank: int) -> dict[str, Any]:
        held: dict[str, Any] = {}

        def look(segment: TrainingSegment) -> None:
            model = segment.model
            inference.reshard(model)
            tensors = dict([*model.named_parameters(), *model.named_buffers()])
            wholes = {
                name: each.full_tensor() if isinstance(each, DTensor) else each
                for name, each in tensors.items()
            }
            held["part"] = sum(
                each.numel() for each in {id(each): local(each) for each in tensors.values()}.values()
            )
            held["digests"] = {
                name: hashlib.sha256(each.detach().contiguous().numpy().tobytes()).hexdigest()
                for name, each in wholes.items()
            }
            raise Begun

        TrainingSegment._train = look
        if rank:  # the weights are read by the first process alone
            PreTrainedModel.from_pretrained = None
        try:
            fine_tune(
                recipe,
                SHARED if count > 1 else SETTINGS,
                3,
                work,
                QUIET,
                num_processes=count,
                resumable=False,
            )
        except Begun:
            return held

    return play(folder, scene, count)


def llama_recipe(folder: Path, *added_tokens: str, **changes: Any) -> NextTokenRecipe:
    """Save a Llama with these changes of its configuration to a folder; return a recipe that trains it."""
    write_tiny_model(folder / "model")
    LlamaForCausalLM(
        LlamaConfig(**{**SMALL, "vocab_size": 30_522}, pad_token_id=0, **changes)
    ).save_pretrained(folder / "model")
    data = training()
    return NextTokenRecipe(folder / "model", data, documents(data), added_tokens=added_tokens)


def language_model(folder: Path) -> Any:
    """Tied embeddings and added tokens."""
    recipe = llama_recipe(folder, "warranty", "licensor", tie_word_embeddings=True)
    return {"whole": begin(recipe, folder / "one", 1), "shared": begin(recipe, folder / "two", 2)}


def classifier_recipe(folder: Path, **changes: Any) -> ClassificationRecipe:
    """Save a BERT with these changes of its configuration to a folder; return a recipe that trains it."""
    write_tiny_model(folder / "model")
    BertConfig.from_pretrained(folder / "model", **changes).save_pretrained(folder / "model")
    ids = torch.randint(10, 200, (24, 12), generator=torch.Generator().manual_seed(1)).tolist()
    rows = replace(
        documents(training(24)), chunks=[[each] for each in ids], labels=torch.arange(24).remainder(2).numpy()
    )
    return ClassificationRecipe(folder / "model", rows, rows, ["no", "yes"], general=RECIPE.general)


def classifier(folder: Path) -> Any:
    """A new head, which begins as the probe."""
    recipe = classifier_recipe(folder)
    return {"whole": begin(recipe, folder / "one", 1), "shared": begin(recipe, folder / "two", 2)}


def base_model(folder: Path) -> Any:
    """The baseline without training, on the validation rows."""
    recipe = llama_recipe(folder)

    def predict(count: int) -> list[Any]:
        settings = SimpleNamespace(training=SHARED if count > 1 else SETTINGS)
        context: Any = SimpleNamespace(
            settings=settings,
            base_model=folder / "model",
            added_tokens=(),
            progress=QUIET,
            listener=ranks.StopListener(QUIET),
            shares_models=count > 1,
            open_recipe=lambda: recipe,
        )

        def scene(_: Path, rank: int) -> dict[str, Any]:
            passes = note_passes()
            if rank:
                PreTrainedModel.from_pretrained = None
            return {
                "losses": BaseModel(context).predict(recipe.validation).loss.tolist(),
                "num_passes": len(passes),
            }

        return play(folder / str(count), scene, count)

    return {"whole": predict(1), "shared": predict(2)}


def note_passes() -> list[Any]:
    """Make small passes of a language model that is scored; return the list to which each adds its shape."""
    passes: list[Any] = []
    of_tokens = TokenLoss.of_tokens

    def counted(loss: TokenLoss, model: Any, inputs: Any, labels: Any) -> Any:
        passes.append(labels.shape)
        return of_tokens(loss, model, inputs, labels)

    TokenLoss.of_tokens, inference.BATCH_TOKENS["cpu"] = counted, 128
    return passes


def evaluation(folder: Path) -> Any:
    """The evaluation of a trained model beside the base model: scores and answers."""
    lab = Lab(folder / "lab", "sft")
    checkpoint = lab.checkpoint("learned", lab.learn(folder / "learned"))
    scoring.MAX_ANSWER_TOKENS = 30

    def evaluate(count: int) -> dict[str, Any]:
        chosen = {"evaluation": {"generated_answers": 5}, "training": {"sharding": "fsdp2"}}
        job = lab.context(checkpoint, key=f"of-{count}", **chosen).job

        def scene(_: Path, rank: int) -> int:
            passes = note_passes()
            if rank:
                PreTrainedModel.from_pretrained = None
            work(job, lab.store, QUIET)
            return len(passes)

        num_passes = play(folder / job.key, scene, count)
        report = lab.store.folder(lab.store.find(job.case, job.stage, job.key))
        rows = pq.read_table(report / "predictions.parquet")
        return {
            "losses": {name: rows[f"loss_{name}"].to_pylist() for name in ("finetuned", "base_model")},
            "answers": (report / "answers.jsonl").read_text(encoding="utf-8"),
            "num_passes": num_passes,
        }

    return {"whole": evaluate(1), "shared": evaluate(2)}


def stages(folder: Path) -> Any:
    """Plan, baselines, pilot and evaluation of each labelled task, beside a champion that shares nothing."""
    return {task: stages_of(prepare(folder / task, tiny=True, **LABELLED[task])) for task in LABELLED}


def stages_of(case: Prepared) -> dict[str, Any]:
    checkpoint = case.train("k", precision="fp32")

    def run(count: int) -> dict[str, Any]:
        key = f"of-{count}"
        job = case.job(
            "pilot_run",
            key,
            training={"sharding": "fsdp2", "precision": "fp32", "micro_batch_size": 4},
            launcher={"processes": 2},
            release={"min_effective_groups": 2},
            # The probe, which is the better one, is confirmed on the test rows.
            planning={"baselines": [case.use_case.settings.baselines[i] for i in (0, -1)]},
        )

        def made(stage: str) -> Manifest:
            return case.store.find(job.case, stage, key)

        def inputs_of_evaluation() -> dict[str, str]:
            inputs = {stage: made(stage) for stage in ("cheaper_baselines", "pilot_run")}
            baselines = inputs["cheaper_baselines"]
            champion = store_baseline(
                job, case.store, case.snapshot, baselines, job.settings.baselines[0], QUIET
            )
            inputs |= {"finetuned_checkpoint": checkpoint, "champion": champion}
            return {**job.inputs, **{stage: manifest.ref for stage, manifest in inputs.items()}}

        def scene(_: Path, rank: int) -> int:
            if rank:
                PreTrainedModel.from_pretrained = Majority.predict = None
            in_batches = inference.in_batches

            def of_parts(lengths: Any, forward: Any, model: Any, progress: Any) -> Any:
                assert inference.is_sharded(model) == (count > 1)
                return in_batches(lengths, forward, model, progress)

            inference.in_batches = of_parts
            planning.work(job, case.store, QUIET)
            work(
                job.model_copy(
                    update={
                        "stage": "evaluation_report",
                        "inputs": ranks.from_first({} if rank else inputs_of_evaluation()),
                    }
                ),
                case.store,
                QUIET,
            )
            return rank

        assert play(case.project.root / str(count), scene, count) == list(range(count))
        rows = pq.read_table(case.store.folder(made("evaluation_report")) / "predictions.parquet")
        return {
            "scores": made("cheaper_baselines").metadata["scores"],
            "pilot": made("pilot_run").metadata["learning_curve"][0],
            "rows": rows.to_pydict(),
        }

    return {"whole": run(1), "shared": run(2)}


def train(
    folder: Path,
    work: Path,
    count: int,
    *,
    stop_after: int = 1_000_000,
    is_slow: bool = False,
    of_host: int | None = None,
    read: Recipe = RECIPE,
    **changes: Any,
) -> dict[str, Any]:
    """Train in so many processes until the end or a stop; return what the first one found.

    Args:
        is_slow: no part is written before the step after it is taken.
        of_host: processes of each host; default: all.
        changes: of the settings.
    """
    settings = SHARED.model_copy(update={"checkpoint_every_steps": 2, "keep_best": True, **changes})

    def scene(_: Path, rank: int) -> dict[str, Any]:
        progress = Noting(stop_after)
        published: list[list[int]] = []
        loops: list[Loop] = []
        offloads: set[str] = set()
        reduced: list[bool] = []
        write, shard, score = Part.write, fsdp.fully_shard, Validator.score
        publish = stored_checkpoints.publish_everywhere

        def write_late(part: Part, to: Path) -> list[str]:
            # The last one has no step after it.
            deadline = time.monotonic() + 3
            while loops[0].step == step_of(to) and time.monotonic() < deadline:
                time.sleep(0.01)
            return write(part, to)

        def look(moment: str, loop: Loop) -> None:
            loops[:] = [loop]
            # Of the passes that a step adds up; a model in parts would else hold all of them whole until the
            # last.
            if moment == "pass":
                reduced.append(all(weight.grad is not None for weight in loop.model.parameters()))

        def fully_shard(*modules: Any, **options: Any) -> Any:
            offloads.add(type(options.get("offload_policy")).__name__)
            return shard(*modules, **options)

        def publish_noted(aside: Path, *arguments: Any, **options: Any) -> None:
            published.append([step_of(aside), loops[0].step])
            publish(aside, *arguments, **options)

        stored_checkpoints.publish_everywhere = publish_noted
        fsdp.fully_shard = fully_shard
        # As if another host had another arithmetic: the first process decides.
        Validator.score = lambda *given: {name: (-1) ** rank * value for name, value in score(*given).items()}
        if is_slow:
            Part.write = write_late
        try:
            done = fine_tune(
                read,
                settings,
                1,
                work,
                progress,
                num_processes=count,
                evaluate_at=(3,),
                watch=look,
            )
        except Interrupted as error:
            return {"stopped": str(error), "published": published}
        if rank == 0:
            done.model.save_pretrained(folder / "model")
        parts = b"".join(
            local(each).detach().view(torch.uint8).numpy()
            for loop in loops
            for each in loop.model.parameters()
        )
        return {
            "from": done.resumed_from_step,
            "log": [
                (line["step"], line["loss"], line["grad_norm"]) for line in done.history if "loss" in line
            ],
            "weights": (
                {name: each.tolist() for name, each in done.model.state_dict().items()} if rank == 0 else {}
            ),
            "published": published,
            "parts": ranks.of_all(hashlib.sha256(parts).hexdigest()),
            "offloads": sorted(offloads),
            "reduced": reduced,
            "model": str(folder / "model"),
            "scores": ranks.of_all(done.scores),
            "alphas": ranks.of_all(done.interpolated and done.interpolated.alpha),
            "said": progress.said,
            "step": done.step,
            "last": f"{work}/checkpoint-{done.num_steps}",
            "graphs": counters["stats"]["unique_graphs"],
            "graph_breaks": sum(counters["graph_break"].values()),
        }

    return play(folder, scene, count, of_host=of_host)[0]


def checkpoints(folder: Path) -> Any:
    """Two processes stop; as many go on, and four; and two where a part of the newest one is damaged."""
    stopped = train(folder / "stopped", folder / "work", 2, stop_after=5)
    for name in ("more", "damaged"):
        shutil.copytree(folder / "work", folder / name)
    part = folder / "damaged" / "checkpoint-5" / "part-00001.safetensors"
    content = bytearray(part.read_bytes())
    content[-1] ^= 1
    part.write_bytes(content)
    return {
        "straight": train(folder / "straight", folder / "alone", 2, is_slow=True),
        "stopped": stopped,
        "files": sorted(path.name for path in part.parent.iterdir()),
        "again": train(folder / "again", folder / "work", 2),
        "more": train(folder / "more-run", folder / "more", 4),
        "damaged": train(folder / "damaged-run", folder / "damaged", 2),
    }


def by_host(folder: Path) -> Any:
    """Two hosts of two processes have all parts each; they stop, and go on, also as two processes."""
    # All would read the best one from the same files.
    hosts: dict[str, Any] = {
        "of_host": 2,
        "sharding": "fsdp2_by_host",
        "keep_best": False,
        **BF16["adafactor"],
    }
    train(folder / "stopped", folder / "work", 4, stop_after=5, **hosts)
    shutil.copytree(folder / "work", folder / "fewer")
    return {
        "straight": train(folder / "straight", folder / "four", 4, **hosts),
        "files": sorted(path.name for path in (folder / "work" / "checkpoint-5").glob("*.safetensors")),
        "again": train(folder / "again", folder / "work", 4, **hosts),
        "fewer": train(folder / "fewer-run", folder / "fewer", 2, **BF16["adafactor"]),
    }


def rungs(folder: Path) -> Any:
    """Two processes and one of each rung below AdamW in fp32; the two stop, and go on."""
    return {
        name: {
            "alone": train(folder / f"{name} 1", folder / f"{name} of one", 1, sharding="none", **changes),
            "straight": train(folder / f"{name} 2", folder / f"{name} of two", 2, **changes),
            "stopped": train(folder / f"{name} 3", folder / name, 2, stop_after=5, **changes),
            "again": train(folder / f"{name} 4", folder / name, 2, **changes),
        }
        for name, changes in {"adafactor fp32": {"optimizer": "adafactor"}, **BF16}.items()
    }


def parts(folder: Path) -> Any:
    """One process, two with parts of the model, the same again, two whose parts are in the host's memory, and
    two whose layers are compiled.
    """
    # Graphs of layers as they are, without a minute of C++.
    with mock.patch.object(torch, "compile", partial(torch.compile, backend="aot_eager")):
        compiled = train(folder / "compiled", folder / "of-compiled", 2, compile=True)
    return {
        "compiled": compiled,
        "alone": train(folder / "alone", folder / "of-one", 1, sharding="none"),
        "parts": train(folder / "parts", folder / "of-parts", 2),
        "again": train(folder / "again", folder / "of-parts", 2),
        "offloaded": train(folder / "offloaded", folder / "of-offloaded", 2, sharding="fsdp2_offload"),
    }


def levers(folder: Path) -> Any:
    """All levers in one process and in two, and on two hosts of two processes."""
    cases: dict[str, dict[str, Any]] = {
        "offloaded": LEVERS | {"sharding": "fsdp2_offload"},
        "by host": LEVERS | {"sharding": "fsdp2_by_host", "keep_best": False},
        "of a classifier": LEVERS | {"read": classifier_recipe(folder, hidden_dropout_prob=0.0)},
    }
    return {
        name: {
            "alone": train(folder / f"{name} 1", folder / f"{name} of one", 1, **case | {"sharding": "none"}),
            "shared": train(
                folder / f"{name} 2",
                folder / f"{name} of many",
                4 if "by host" in name else 2,
                of_host=2,
                **case,
            ),
        }
        for name, case in cases.items()
    }


SCENES: dict[str, Callable[[Path], Any]] = {
    scene.__name__: scene
    for scene in (
        language_model,
        classifier,
        base_model,
        evaluation,
        stages,
        checkpoints,
        by_host,
        rungs,
        parts,
        levers,
    )
}

if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:] or list(SCENES))
