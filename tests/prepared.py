"""A project whose data stages are done, for tests of the workloads; with a base model of 1 MB where speed
matters.
"""

import shutil
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fullft_assets import chunks, documents, examples, snapshot
from fullft_assets.base_model import resolve_base_model
from fullft_assets.job import Job
from fullft_assets.progress import Progress
from fullft_assets.settings import TrainingSettings
from fullft_assets.settings.use_case import UseCase
from fullft_assets.store import Manifest, Store
from tests import project as projects, smollm2

MINILM = projects.QUICK["base_model"]
QUIET = Progress(silent=True)


@dataclass(frozen=True)
class Prepared:
    """A small project with its snapshot."""

    project: projects.Project
    use_case: UseCase
    store: Store
    snapshot: Manifest

    @property
    def base_model(self) -> Path:
        return resolve_base_model(self.use_case.settings.base_model, self.use_case.project_root)

    @property
    def labels(self) -> list[str]:
        return snapshot.label_names(self.snapshot)

    def split(self, name: snapshot.SplitName) -> snapshot.Split:
        return snapshot.load_split(self.store, self.snapshot, name)

    @property
    def recipe(self) -> Any:
        """What training, planning and the pilot would train."""
        from fullft_assets.tasks.context import open_recipe

        return open_recipe(self.job("finetuned_checkpoint"), self.store, self.snapshot)

    @property
    def baseline_context(self) -> Any:
        """What the baselines of its recipe may use, silently."""
        from fullft_assets.tasks.context import baseline_context

        return self.recipe._with_recipe(
            baseline_context(self.job("pilot_run"), self.store, self.snapshot, QUIET)
        )

    def job(self, stage: str, key: str = "k1", **sections: Any) -> Job:
        """Return a job of this stage; `sections` replace keys of the settings' sections."""
        settings = self.use_case.settings
        changed = {
            name: getattr(settings, name).model_copy(update=section) for name, section in sections.items()
        }
        return Job(
            case=self.use_case.name,
            stage=stage,
            key=key,
            project_root=str(self.use_case.project_root),
            store_url=self.store.url,
            settings=settings.model_copy(update=changed),
            inputs={"training_snapshot": self.snapshot.ref},
        )

    def take_again(self) -> Manifest:
        """Take the snapshot once more over the same batches."""
        parts = self.snapshot.metadata["parts"]
        labeled, tokenized = (
            {name: self.store.load(part[kind]) for name, part in parts.items()}
            for kind in ("examples", "chunks")
        )
        return snapshot.take(self.store, self.use_case, labeled, tokenized)

    def train(self, key: str, **changes: Any) -> Manifest:
        """Train in this process, with changed settings of the training, and return the checkpoint."""
        from fullft_assets.launch.workloads import training

        job = self.job("finetuned_checkpoint", key, training=changes)
        training.work(job, self.store, QUIET)
        return self.store.find(job.case, job.stage, key)


def quick(**changes: object) -> TrainingSettings:
    """Return the settings of a short training in fp32, with these changes."""
    values = {
        "epochs": 1.0,
        "batch_size": 8,
        "micro_batch_size": 8,
        "learning_rate": 1e-3,
        "precision": "fp32",
    }
    return TrainingSettings.model_validate(values | changes)


def prepare(
    root: Path, *, tiny: bool = False, delivered: list[dict[str, Any]] | None = None, **options: Any
) -> Prepared:
    """Create a project and take its snapshot; `tiny` replaces the real model by one of two narrow layers.

    Args:
        root: folder of the project.
        tiny: use `write_tiny_model`.
        delivered: rows in place of the project's own.
        options: of `tests.project.create`.
    """
    if tiny:
        write_tiny_model(root / "model")
        options["base_model"] = "model"
    project = projects.create(root, **options)
    if delivered is not None:
        project.deliver("delivery-1.jsonl", delivered)
    return take(project)


def prepare_language_model(
    root: Path, task: str = "language_modeling", *, rows: int = 120, **options: Any
) -> Prepared:
    """Create a project about licence texts, or conversations about them (sft), with a Llama of 1 MB, and take
    its snapshot.

    Args:
        root: folder of the project.
        task: language_modeling or sft.
        rows: delivered documents.
        options: sections of the settings; `base_model` in place of the tiny one.
    """
    if "base_model" not in options:
        smollm2.write_tiny_model(root / "model")
        options["base_model"] = "model"
    options["examples"] = {"task": task, "label": None, "labels": None}
    stride = {"stride": 4} if task == "sft" else {"stride": 0}
    options["chunks"] = {"max_tokens": 64, "max_chunks": None, **stride, **options.get("chunks", {})}
    project = projects.create(root, rows=rows, **options)
    if task == "sft":
        project.deliver("delivery-1.jsonl", conversations(rows))
    return take(project)


def conversations(count: int, *, characters: int | None = 120) -> list[dict[str, Any]]:
    """Return conversations about real licence texts, or so many characters of each."""
    asked = "Which kind of licence clue is this, and of what?"
    return [
        {
            "id": row["id"],
            "messages": [
                {"role": "user", "content": f"{asked}\n\n{row['text'][:characters]}"},
                {"role": "assistant", "content": f"It is a {row['kind']} of {row['expression']}."},
            ],
            "expression": row["expression"],
        }
        for row in projects.licence_rows(count)
    ]


def write_general(folder: Path, count: int = 60, characters: int = 600) -> list[str]:
    """Write the beginnings of modules of Python's library, which no licence is like, as general documents;
    return them.
    """
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    texts = [file.read_text(encoding="utf-8", errors="replace")[:characters] for file in files]
    texts = [text for text in dict.fromkeys(texts) if len(text) == characters][:count]
    projects.write_rows(folder / "general.jsonl", [{"text": text} for text in texts])
    return texts


def validate(store: Store, use_case: UseCase) -> tuple[Manifest, Manifest, Manifest]:
    """Read and validate the one batch that is delivered; return its rows, and those valid and quarantined."""
    documents.cut_batches(store, use_case.name, documents.source_of(use_case), use_case.settings.documents)
    [batch] = documents.list_batches(store, use_case.name)
    raw = documents.keep(store, use_case, batch.name)
    return raw, *examples.validate(store, use_case, raw)


def ingest(store: Store, use_case: UseCase) -> tuple[dict[str, Manifest], dict[str, Manifest]]:
    """Run the data stages of each batch over what is delivered; return examples and chunks by batch."""
    labeled, tokenized = {}, {}
    documents.cut_batches(store, use_case.name, documents.source_of(use_case), use_case.settings.documents)
    for batch in documents.list_batches(store, use_case.name):
        labeled[batch.name], _ = examples.validate(
            store, use_case, documents.keep(store, use_case, batch.name)
        )
        tokenized[batch.name] = chunks.tokenize(store, use_case, labeled[batch.name])
    return labeled, tokenized


def take(project: projects.Project, *, store: Store | None = None, **options: Any) -> Prepared:
    """Run a project's data stages over what is delivered; `options` are those of `snapshot.take`."""
    use_case = project.use_case()
    store = store or Store(str(project.home / "store"))
    return Prepared(
        project, use_case, store, snapshot.take(store, use_case, *ingest(store, use_case), **options)
    )


def write_tiny_model(folder: Path) -> None:
    """Write a pretrained model with MiniLM's tokenizer and random weights, the same on every call."""
    import torch
    from transformers import BertConfig, BertModel

    minilm = resolve_base_model(MINILM, Path())
    config = BertConfig.from_pretrained(
        str(minilm),
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=64,
    )
    with torch.random.fork_rng():
        torch.manual_seed(5)
        BertModel(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        if (minilm / name).is_file():
            shutil.copy(minilm / name, folder / name)


def command(workload: str, uri: str, processes: int = 1) -> list[str]:
    """Return the line that a person runs by hand."""
    torchrun = (
        ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        if processes > 1
        else []
    )
    return [sys.executable, *torchrun, "-m", f"fullft_assets.launch.workloads.{workload}", "--job", uri]
