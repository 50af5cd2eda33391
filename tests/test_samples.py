"""samples: the demo's delivery is real, dirty on purpose, the same each time, and never half there."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

from fullft_assets.demos import licences
from tests.licence_delivery import Delivery


def lines_of(folder: Path, name: str) -> list[str]:
    return [
        line
        for path in sorted((folder / name).iterdir())
        for line in path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    ]


def test_the_whole_delivery_holds_every_rule_once_and_the_dirt_beside(licence_delivery: Delivery) -> None:
    rules = {rule["id"]: rule for rule in licences.rules()}
    records = [
        json.loads(line) for line in lines_of(licence_delivery.folder, "documents") if line.endswith("}")
    ]
    production = [json.loads(line) for line in lines_of(licence_delivery.folder, "production")]
    delivered = [record for record in records if record["id"] in rules]
    assert len(rules) > 33_000
    unseen = {rule["license-expression"] for rule in production}
    assert len(unseen) == len({rule["expression"] for rule in rules.values()}) // licences.PRODUCTION_PART
    expected = {rule["id"] for rule in rules.values() if rule["expression"] not in unseen}
    assert len(delivered) == len(expected)
    assert {record["id"] for record in delivered} == expected
    for record in delivered[::100]:
        rule = rules[record["id"]]
        assert (record["source"], record["license-expression"]) == (rule["text"], rule["expression"])
        assert (
            licences.KINDS[record["license-kind"]]
            == record["license-kind-metadata"]["class-name"]
            == rule["kind"]
        )
    assert Counter(record["id"].rsplit("-", 1)[1] for record in records if record["id"] not in rules) == {
        "again": 40, "empty": 20, "odd": 20, "bare": 20,
    }  # fmt: skip


def test_a_killed_writer_leaves_no_delivery(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys, pathlib\nfrom fullft_assets.demos import licences\n"
        "licences._write_production = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "licences.write(pathlib.Path(sys.argv[1]), max_rules=200)"
    )
    killed = subprocess.run([sys.executable, "-c", program, str(tmp_path / "a")], env=os.environ, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "a").exists()
    assert (tmp_path / ".a.partial/documents/delivery-1.manifest").exists(), (
        "the writer was killed before it wrote"
    )
    folder = licences.write(tmp_path / "a", max_rules=200)
    assert {json.loads(line)["license-expression"] for line in lines_of(folder, "production")}
    assert len(lines_of(folder, "documents")) > 101
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
