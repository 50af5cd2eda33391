"""The sample `licences`: licence rules of the `licensedcode-data` package as Ground Truth output manifests.

The texts are by the ScanCode project (https://github.com/aboutcode-org/scancode-toolkit), CC-BY-4.0.
The label is the rule's kind (notice, text, reference or tag), the group its licence expression. Real
deliveries are not clean, so a few rows are added that no labelling job should have let through.
"""

import hashlib
import importlib.util
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fullft_assets.errors import SettingsError


@contextmanager
def written_whole(folder: Path) -> Iterator[Path]:
    """Yield a folder to write into, which gets its name at the end: a killed call leaves nothing
    half-written.
    """
    aside = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    yield aside
    aside.rename(folder)


KINDS = ("notice", "text", "reference", "tag")
_KIND = re.compile(r"^is_license_(\w+): yes$", re.MULTILINE)
_EXPRESSION = re.compile(r"^license_expression: (.+)$", re.MULTILINE)
_RULE = re.compile(r"\A---\n(.*?)\n---\n?(.*)\Z", re.DOTALL)
NUM_FILES = 6
#: One licence in so many only shows in production, unlabelled: in six weeks that are alike, then in two of
#: long texts only.
PRODUCTION_PART = 10
_USUAL_WEEKS = 6
_SHIFTED_WEEKS = 2
#: Texts of a licence in a week: more would only be read and predicted, as drift compares one of each.
_MOST_TEXTS = 2


def rules() -> Iterator[dict[str, str]]:
    """Yield `id`, `kind`, `expression` and `text` of every rule of exactly one of the four kinds."""
    spec = importlib.util.find_spec("licensedcode")
    if spec is None or not spec.submodule_search_locations:
        raise SettingsError("package licensedcode-data is not installed; pip install 'fullft-assets[demo]'")
    for path in sorted(Path(spec.submodule_search_locations[0], "data", "rules").glob("*.RULE")):
        match = _RULE.match(path.read_text(encoding="utf-8"))
        kinds = _KIND.findall(match[1]) if match else []
        expression = _EXPRESSION.search(match[1]) if match else None
        if match and len(kinds) == 1 and kinds[0] in KINDS and expression:
            yield {
                "id": path.stem,
                "kind": kinds[0],
                "expression": expression[1].strip("'\" "),
                "text": match[2].strip("\n"),
            }


def write(folder: Path, *, max_rules: int | None = None) -> Path:
    """Write the delivery below `folder` (`documents/` and `production/`); an existing one is left alone."""
    if folder.is_dir():
        return folder
    selection = sorted(rules(), key=lambda rule: hashlib.sha256(rule["id"].encode()).hexdigest())[:max_rules]
    # Production shows licences that were never delivered.
    expressions = sorted(
        {rule["expression"] for rule in selection}, key=lambda name: hashlib.sha256(name.encode()).hexdigest()
    )
    unseen = set(expressions[: len(expressions) // PRODUCTION_PART])
    production = [rule for rule in selection if rule["expression"] in unseen]
    training_rules = [rule for rule in selection if rule["expression"] not in unseen]
    lines = [_manifest_line(rule) for rule in training_rules]
    lines[100:100] = _dirt(training_rules)
    size = -(-len(lines) // NUM_FILES)
    with written_whole(folder) as aside:
        (aside / "documents").mkdir()
        (aside / "production").mkdir()
        for number in range(NUM_FILES):
            (aside / "documents" / f"delivery-{number + 1}.manifest").write_text(
                "\n".join(lines[number * size : (number + 1) * size]) + "\n", encoding="utf-8"
            )
        _write_production(aside / "production", production)
    return folder


def _manifest_line(rule: dict[str, str], **changes: Any) -> str:
    line = {
        "id": rule["id"],
        "source": rule["text"],
        "license-expression": rule["expression"],
        "license-kind": KINDS.index(rule["kind"]),
        "license-kind-metadata": {
            "class-name": rule["kind"],
            "confidence": 0.0,
            "type": "groundtruth/text-classification",
            "job-name": "labeling-job/licence-kind",
            "human-annotated": "yes",
            "creation-date": "2026-01-01T00:00:00.000000",
        },
    }
    return json.dumps({k: v for k, v in (line | changes).items() if v is not None}, ensure_ascii=False)


def _dirt(training_rules: list[dict[str, str]]) -> list[str]:
    sample = training_rules[:: max(1, len(training_rules) // 120)][:120]
    lines = [_manifest_line(rule, id=f"{rule['id']}-again") for rule in sample[:40]]
    lines += [_manifest_line(rule, id=f"{rule['id']}-empty", source="") for rule in sample[40:60]]
    odd = {
        "class-name": "poem",
        "confidence": 0.0,
        "type": "groundtruth/text-classification",
        "human-annotated": "yes",
    }
    for suffix, rules_of_kind, label, about in (
        ("odd", sample[60:80], 9, odd),
        ("bare", sample[80:100], None, None),
    ):
        lines += [
            _manifest_line(
                rule,
                id=f"{rule['id']}-{suffix}",
                source=f"{rule['text']} ({suffix})",
                **{"license-kind": label, "license-kind-metadata": about},
            )
            for rule in rules_of_kind
        ]
    return [*lines, '{"id": "cut-off", "source": "Licensed under th']


def _write_production(folder: Path, production: list[dict[str, str]]) -> None:
    # What a change of upstream does: only the long texts arrive.
    by_length = sorted(production, key=lambda rule: -len(rule["text"]))
    long = {rule["id"] for rule in by_length[: len(production) // 4]}
    usual, shifted = (
        [rule for rule in production if (rule["id"] in long) is is_long] for is_long in (False, True)
    )
    weeks = [usual[n::_USUAL_WEEKS] for n in range(_USUAL_WEEKS)] + [
        shifted[n::_SHIFTED_WEEKS] for n in range(_SHIFTED_WEEKS)
    ]
    for number, part in enumerate(weeks, start=1):
        texts: dict[str, list[str]] = {}
        for rule in part:
            row = {"id": rule["id"], "text": rule["text"], "license-expression": rule["expression"]}
            texts.setdefault(rule["expression"], []).append(json.dumps(row, ensure_ascii=False))
        rows = [row for of_licence in texts.values() for row in of_licence[:_MOST_TEXTS]]
        (folder / f"week-{number}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
