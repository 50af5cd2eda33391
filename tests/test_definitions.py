"""What the definitions say: the demo's graph as a reviewed snapshot, and what loading them costs.

After a change that is meant, write the snapshot anew: `python -m tests.test_definitions`.
"""

import json
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import dagster as dg
import pytest

from fullft_assets import component
from fullft_assets.checking.project import DEFS
from fullft_assets.checking.validation import load_use_case
from fullft_assets.definitions import defs
from fullft_assets.demos import prepare
from tests import project as projects

SNAPSHOT = Path(__file__).parent / "graph_licences.txt"
HEAVY = (
    "torch",
    "transformers",
    "datasets",
    "great_expectations",
    "evaluate",
    "sklearn",
    "scipy",
    "pandas",
    "matplotlib",
    "spellchecker",
)


def describe(definitions: dg.Definitions) -> str:
    """Return the graph as text: one line for each asset, check, job, sensor and schedule."""
    graph = definitions.resolve_asset_graph()
    lines = []
    for key in sorted(graph.get_all_asset_keys(), key=lambda key: key.path):
        node = graph.get(key)
        partitions = f" [{node.partitions_def.name}]" if node.partitions_def else ""
        lines.append(
            f"asset {key.to_user_string()}{partitions}, group {node.group_name}, kinds"
            f" {', '.join(sorted(node.kinds))}"
        )
        lines += [
            f"  from {parent.to_user_string()}"
            for parent in sorted(node.parent_keys, key=lambda parent: parent.path)
        ]
        for check in sorted(graph.get_check_keys_for_assets({key}), key=lambda check: check.name):
            lines.append(f"  check {check.name}{' (blocking)' if graph.get(check).blocking else ''}")
    repository = definitions.get_repository_def()
    for job in sorted(repository.get_all_jobs(), key=lambda job: job.name):
        if not job.name.startswith("__"):
            keys = sorted(key.path[-1] for key in job.asset_layer.selected_asset_keys)
            lines.append(
                f"job {job.name}: {', '.join(keys) or 'op ' + ', '.join(node.name for node in job.nodes)}"
            )
    for sensor in sorted(repository.sensor_defs, key=lambda sensor: sensor.name):
        jobs = ", ".join(sorted(target.job_name for target in sensor.targets))
        lines.append(
            f"sensor {sensor.name} -> {jobs}, every {sensor.minimum_interval_seconds} s,"
            f" {sensor.default_status.value}"
        )
    for schedule in sorted(repository.schedule_defs, key=lambda schedule: schedule.name):
        lines.append(
            f"schedule {schedule.name} -> {schedule.job_name}, {schedule.cron_schedule},"
            f" {schedule.default_status.value}"
        )
    return "\n".join(lines) + "\n"


def is_second_demo(path: Path) -> bool:
    return path.parent.name == "licence_texts"


@pytest.fixture(scope="module")
def demo() -> dg.Definitions:
    prepare(DEFS / "licences" / "defs.yaml")
    with pytest.MonkeyPatch.context() as patch:
        # As on a fresh checkout: the second demo has no part in it before it is prepared.
        patch.setattr(component, "is_dormant", is_second_demo)
        return defs()


def test_loading_the_definitions_imports_nothing_heavy(demo):
    code = (
        "import json, sys\nfrom fullft_assets.definitions import defs\ndefs().get_repository_def()\n"
        f"print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=SNAPSHOT.parents[1]
    )
    assert json.loads(loaded.stdout) == []


def test_the_demos_graph_is_the_reviewed_one(demo):
    assert describe(demo) == SNAPSHOT.read_text()


def code_versions(project: projects.Project) -> dict[str, str]:
    loaded = component.FullFineTune(load_use_case(project.yaml_path)).build_defs()
    return {spec.key.path[-1]: spec.code_version for spec in loaded.resolve_all_asset_specs()}


@pytest.mark.parametrize(
    ("section", "edit", "stale"),
    [
        ("examples", {"max_quarantined_share": 0.4}, {"labeled_examples", "quarantined_examples"}),
        ("chunks", {"max_tokens": 64}, {"tokenized_chunks", "tokenizer_audit", "batch_predictions"}),
        ("snapshot", {"min_train_rows": 21}, {"training_snapshot"}),
        ("planning", {"max_hours": 2}, {"feasibility_plan", "cheaper_baselines", "pilot_run"}),
        (
            "planning",
            {"usd_per_point": 5},
            {"feasibility_plan", "cheaper_baselines", "pilot_run", "evaluation_report"},
        ),
        (
            "training",
            {"epochs": 2},
            {"feasibility_plan", "cheaper_baselines", "pilot_run", "finetuned_checkpoint"},
        ),
        ("release", {"min_score": 0.5}, {"evaluation_report", "champion_model"}),
        ("monitoring", {"min_window_rows": 80}, {"drift_report"}),
        ("retraining", {"cooldown_hours": 1}, set()),
    ],
)
def test_an_edit_of_a_section_makes_its_assets_stale_and_no_other(project, section, edit, stale):
    monitoring = {"path": "data/letters/production"}
    project.configure(monitoring=monitoring)
    before = code_versions(project)
    sections = {"monitoring": monitoring}
    sections[section] = {**sections.get(section, {}), **edit}
    project.configure(**sections)
    after = code_versions(project)
    assert {name for name in before if after[name] != before[name]} == stale


def test_what_is_delivered_is_overdue_when_a_silent_feed_is_reported(project):
    monitoring = {"path": "data/letters/production"}
    for hours, expected in ((None, {}), (24, {"raw_documents", "production_documents"})):
        project.configure(monitoring=monitoring, alerts={"silent_hours": hours})
        loaded = component.FullFineTune(load_use_case(project.yaml_path)).build_defs()
        policies = {
            spec.key.path[-1]: spec.freshness_policy
            for spec in loaded.resolve_all_asset_specs()
            if spec.freshness_policy
        }
        assert policies == dict.fromkeys(expected, dg.FreshnessPolicy.time_window(timedelta(hours=24)))


def test_what_runs_elsewhere_waits_for_no_gpu_of_this_machine(project):
    project.configure(
        launcher={"kind": "ssh", "host": "gpu1"},
        compute={"planning": {"kind": "local"}, "evaluation": {"host": "gpu2"}},
    )
    assert pools(component.FullFineTune(load_use_case(project.yaml_path)).build_defs()) == {
        "gpu",
        "ssh/gpu1",
        "ssh/gpu2",
    }


def pools(made: dg.Definitions) -> set[str]:
    return {
        op.pool
        for asset in made.assets or ()
        if isinstance(asset, dg.AssetsDefinition)
        for op in [asset.op]
        if op.pool
    }


if __name__ == "__main__":
    prepare(DEFS / "licences" / "defs.yaml")
    component.is_dormant = is_second_demo
    SNAPSHOT.write_text(describe(defs()))
