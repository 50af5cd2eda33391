"""A drift report over 10,000 documents against a reference of 10,000, and the bare embedding of the window's
documents.

`make bench ONLY=drift_report`, or `python -m benchmarks.drift_report [--documents N]`, prints seconds and the
ratio. Ours is the workload that Dagster launches, from the start of its process to the written report. The
other side loads the same base model with transformers and embeds the texts by length, in batches of 32. A
report predicts with the champion and embeds with the base model, two passes over the window; of the six
reference windows, sums are kept.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import replace
from itertools import islice
from pathlib import Path

from benchmarks.preparation import BASE_MODEL, documents as made_up, use_case
from benchmarks.table import Goal, Row, render
from benchmarks.timing import timed

NUM_DOCUMENTS, NUM_TRAINING, NUM_REFERENCE_WINDOWS, WORDS = 10_000, 1_000, 6, 40
_BATCH = 32


def measure_drift_report(scratch: Path, logs: Path, num_documents: int = NUM_DOCUMENTS) -> Row:
    """Return the row; each part runs in a process of its own."""
    scratch.mkdir(parents=True, exist_ok=True)

    def part(name: str, *command: str) -> tuple[float, float]:
        took = timed([sys.executable, *command], logs / f"drift-report-{name}.log")
        return took.wall, took.cpu

    here = ("-m", "benchmarks.drift_report", "--documents", str(num_documents), "--scratch", str(scratch))
    print("  a champion and its reference windows ...", file=sys.stderr, flush=True)
    part("prepare", *here, "--part", "prepare")
    uri = (scratch / "job").read_text()
    print("  the report ...", file=sys.stderr, flush=True)
    ours, ours_cpu = part("report", "-m", "fullft_assets.launch.workloads.monitoring", "--job", uri)
    print("  the bare embedding ...", file=sys.stderr, flush=True)
    theirs, theirs_cpu = part("embed", *here, "--part", "embed")
    report = (logs / "drift-report-report.log").read_text().splitlines()
    return Row(
        "drift_report", ours, "embedding", theirs, Goal("ratio", 2.0), ours_cpu, theirs_cpu, [report[-1]]
    )


def prepare(scratch: Path, num_documents: int) -> None:
    """Train a champion for a few steps, write a report for each reference window, and the job of the report
    to measure.
    """
    from fullft_assets import chunks, documents, examples, snapshot
    from fullft_assets.job import Job
    from fullft_assets.launch.workloads import monitoring, training
    from fullft_assets.progress import Progress
    from fullft_assets.store import Store

    _write(scratch / "documents", 0, NUM_TRAINING)
    case, store = use_case(scratch / "documents"), Store(str(scratch / "store"))
    settings = case.settings
    changed = {
        "training": settings.training.model_copy(update={"epochs": 0.2, "track": []}),
        "monitoring": settings.monitoring.model_copy(
            update={
                "path": str(scratch / "production"),
                "min_window_rows": 20,
            }
        ),
    }
    settings = settings.model_copy(update=changed)
    case = replace(case, settings=settings)
    (batch,) = documents.cut_batches(store, case.name, scratch / "documents", settings.documents)
    labeled, _ = examples.validate(store, case, documents.keep(store, case, batch.name))
    taken = snapshot.take(
        store, case, {batch.name: labeled}, {batch.name: chunks.tokenize(store, case, labeled)}
    )
    inputs, silent = {"training_snapshot": taken.ref}, Progress(silent=True)

    def job(stage: str, key: str, **more: str) -> Job:
        return Job(
            case=case.name,
            stage=stage,
            key=key,
            project_root=str(scratch),
            store_url=store.url,
            settings=settings,
            inputs={**inputs, **more},
        )

    monitoring.MAX_WINDOW_ROWS = num_documents
    training.work(job("finetuned_checkpoint", "k"), store, silent)
    (champion,) = store.artifacts(case.name, "finetuned_checkpoint")
    reference: dict[str, str] = {}
    size = num_documents // NUM_REFERENCE_WINDOWS
    for number in range(NUM_REFERENCE_WINDOWS + 1):
        is_last = number == NUM_REFERENCE_WINDOWS
        _write(
            scratch / "production",
            NUM_TRAINING + number * size,
            num_documents if is_last else size,
            f"window-{number}",
        )
        [window] = documents.cut_batches(
            store, case.name, scratch / "production", settings.documents, "window"
        )
        produced = documents.keep(store, case, window.name, "window")
        asked = job(
            "drift_report",
            f"k{number}",
            production_documents=produced.ref,
            finetuned_checkpoint=champion.ref,
            **reference,
        )
        if is_last:
            (scratch / "job").write_text(asked.write(store))
        else:
            monitoring.work(asked, store, silent)
            report = store.find(case.name, "drift_report", asked.key)
            assert report is not None
            reference[f"reference_{number:02d}"] = report.ref


def embed(folder: Path) -> None:
    """Embed the window's texts as a script would: mean pooling over the last hidden states."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    from fullft_assets.base_model import resolve_base_model

    path = str(resolve_base_model(BASE_MODEL, folder))
    tokenizer, model = AutoTokenizer.from_pretrained(path), AutoModel.from_pretrained(path).eval()
    lines = (
        (folder / "production" / f"window-{NUM_REFERENCE_WINDOWS}.jsonl")
        .read_text(encoding="utf-8")
        .splitlines()
    )
    texts = sorted((json.loads(line)["text"] for line in lines), key=len)
    with torch.inference_mode():
        for start in range(0, len(texts), _BATCH):
            batch = tokenizer(
                texts[start : start + _BATCH],
                padding=True,
                truncation=True,
                max_length=256,
                return_tensors="pt",
            )
            mask = batch["attention_mask"].unsqueeze(-1)
            _ = (model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1)


def _write(folder: Path, start: int, count: int, name: str = "delivery") -> None:
    """Write made-up documents, each cut after its first words; equal numbers are equal documents."""
    folder.mkdir(exist_ok=True)
    with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as file:
        for row in islice(made_up(start + count), start, None):
            file.write(json.dumps({**row, "text": " ".join(row["text"].split()[:WORDS])}) + "\n")


def _main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.drift_report", description=__doc__)
    parser.add_argument("--documents", type=int, default=NUM_DOCUMENTS, metavar="N")
    parser.add_argument("--part", choices=("prepare", "embed"), help=argparse.SUPPRESS)
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)
    parsed = parser.parse_args()
    if parsed.part == "prepare":
        prepare(parsed.scratch, parsed.documents)
    elif parsed.part == "embed":
        embed(parsed.scratch)
    else:
        with tempfile.TemporaryDirectory() as scratch:
            print(render([measure_drift_report(Path(scratch), Path(scratch, "logs"), parsed.documents)]))


if __name__ == "__main__":
    _main()
