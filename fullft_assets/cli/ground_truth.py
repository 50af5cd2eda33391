"""A labelling job of SageMaker Ground Truth for exported documents: its input on S3, and its request.

The job writes its output manifest below the folder that `documents.path` names, so that it is the next
delivery. Its input is in a hidden folder there, which is not read. A job has no volume of its own: there is
one only where a model labels, too.
(https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_CreateLabelingJob.html)
"""

import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from typing import Any

from fullft_assets.aws import reporting_client
from fullft_assets.documents.raw import masked_kinds
from fullft_assets.errors import FullftError
from fullft_assets.settings.use_case import UseCase
from fullft_assets.store import digest
from fullft_assets.task import task_of

#: Accounts of AWS with the functions of the built-in tasks, by region.
_ACCOUNTS = {
    "us-east-1": "432418664414",
    "us-east-2": "266458841044",
    "us-west-2": "081040173940",
    "ca-central-1": "918755190332",
    "eu-west-1": "568282634449",
    "eu-west-2": "487402164563",
    "eu-central-1": "203001061592",
    "ap-northeast-1": "477331159723",
    "ap-northeast-2": "845288260483",
    "ap-south-1": "565803892007",
    "ap-southeast-1": "377565633583",
    "ap-southeast-2": "454466003867",
}
#: Account of the page for spans, in every region.
_INTERFACES = "394669845002"
#: By target of a task: the built-in task of Ground Truth, and the element of the page that workers see; spans
#: have a page of AWS.
_TASKS = {
    "label": ("TextMultiClass", "crowd-classifier"),
    "labels": ("TextMultiClassMultiLabel", "crowd-classifier-multi-select"),
    "spans": ("NamedEntityRecognition", None),
}
_PAGE = """<script src="https://assets.crowd.aws/crowd-html-elements.js"></script>
<crowd-form>
  <ELEMENT name="ELEMENT" categories="{{ task.input.labels | to_json | escape }}" header="TITLE">
    <classification-target style="white-space: pre-wrap">{{ task.input.taskObject }}</classification-target>
    <full-instructions header="TITLE"></full-instructions>
    <short-instructions>TITLE</short-instructions>
  </ELEMENT>
</crowd-form>
"""
#: Longest line of an input manifest.
_MAX_CHARACTERS = 100_000


def check_job(use_case: UseCase, out: str, team: str, usd: float | None) -> None:
    """Refuse, before anything is written, a job whose output would not become the next delivery.

    Args:
        out, team, usd: see `create_job`.

    Raises:
        FullftError: names the option or the setting.
    """
    settings = use_case.settings
    label = settings.examples.label or ""
    path = settings.documents.path.rstrip("/")
    parts = re.fullmatch(r"arn:[\w-]+:sagemaker:([\w-]+):\d+:workteam/(\w+)-crowd/.+", team)
    is_public = parts is not None and parts[2] == "public"
    problems = {
        f"--team {team}: not the ARN of a work team in {', '.join(_ACCOUNTS)}": (
            parts is None or parts[1] not in _ACCOUNTS
        ),
        f"{out} is not in documents.path ({path}), on S3, where the output is the next delivery": (
            not out.startswith("s3://") or not f"{out.rstrip('/')}/".startswith(f"{path}/")
        ),
        f"Ground Truth takes no label attribute `{label}`: its name has letters, digits and dashes": (
            re.fullmatch(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,126}", label) is None
        ),
        "--usd is the price of an answer: the public workforce needs it, other teams have none": (
            is_public != (usd is not None)
        ),
        "the public workforce must not see personal data: set examples.pii: mask": (
            is_public and masked_kinds(use_case) is None
        ),
    }
    problem = next((text for text, is_wrong in problems.items() if is_wrong), None)
    if problem is not None:
        raise FullftError(f"{use_case.name}: {problem}")


def create_job(
    use_case: UseCase,
    out: str,
    lines: Sequence[str],
    labels: Sequence[str],
    *,
    team: str,
    role: str,
    kms_key: str | None,
    annotators: int,
    usd: float | None,
) -> int:
    """Write a job's input, create it, and return its number of documents: too long ones are left out.

    The same job on the same day has the same name, and AWS refuses it.

    Args:
        out: folder on S3.
        lines: of the input manifest.
        labels: those that people choose from.
        team: ARN of the work team, whose region is the job's.
        role: ARN of the role that reads the input and writes the output.
        kms_key: key that encrypts both. None: the bucket's.
        annotators: people who label each document.
        usd: price of an answer, of the public workforce alone.

    Raises:
        FullftError: AWS refuses.
    """
    lines = [line for line in lines if len(line) <= _MAX_CHARACTERS]
    title = f"Label documents of {use_case.name}"[:128]
    case = re.sub("[^a-zA-Z0-9]+", "-", use_case.name).strip("-")[:40]
    key = digest([out, *lines, *labels, team, role, kms_key, annotators, usd])
    name = f"{case}-{datetime.now(UTC):%Y%m%d}-{key[:8]}"
    out = out.rstrip("/")
    inputs = f"{out}/.{name}"
    bucket, _, folder = inputs.removeprefix("s3://").partition("/")
    _, partition, _, region, *_ = team.split(":")
    task, element = _TASKS[task_of(use_case.settings.examples).target or "label"]
    functions = f"arn:{partition}:lambda:{region}:{_ACCOUNTS[region]}:function"
    categories = {
        "document-version": "2018-11-28",
        "labels": [{"label": label} for label in labels],
        **({} if element else {"instructions": {"shortInstruction": title, "fullInstruction": title}}),
    }
    files = {"input.manifest": "\n".join(lines), "labels.json": json.dumps(categories)}
    interface = {"HumanTaskUiArn": f"arn:{partition}:sagemaker:{region}:{_INTERFACES}:human-task-ui/{task}"}
    if element:
        files["page.liquid.html"] = _PAGE.replace("ELEMENT", element).replace("TITLE", escape(title))
        interface = {"UiTemplateS3Uri": f"{inputs}/page.liquid.html"}
    encryption = {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": kms_key} if kms_key else {}
    people: dict[str, Any] = {
        "WorkteamArn": team,
        "UiConfig": interface,
        "PreHumanTaskLambdaArn": f"{functions}:PRE-{task}",
        "AnnotationConsolidationConfig": {"AnnotationConsolidationLambdaArn": f"{functions}:ACS-{task}"},
        "TaskTitle": title,
        "TaskDescription": title,
        "NumberOfHumanWorkersPerDataObject": annotators,
        # A document waits for a worker as long as AWS lets it: 30 days, 6 hours of the public workforce.
        "TaskTimeLimitInSeconds": 3_600,
    }
    attributes: dict[str, Any] = {}
    if usd is not None:
        cents, tenth = divmod(round(usd * 1_000), 10)
        amount = {"Dollars": cents // 100, "Cents": cents % 100, "TenthFractionsOfACent": tenth}
        people["PublicWorkforceTaskPrice"] = {"AmountInUsd": amount}
        # Without it the public workforce is refused.
        attributes = {"DataAttributes": {"ContentClassifiers": ["FreeOfPersonallyIdentifiableInformation"]}}
    with (
        reporting_client("s3", out, FullftError) as s3,
        reporting_client("sagemaker", out, FullftError, region) as sagemaker,
    ):
        for file, text in files.items():
            s3.put_object(Bucket=bucket, Key=f"{folder}/{file}", Body=text.encode(), **encryption)
        sagemaker.create_labeling_job(
            LabelingJobName=name,
            LabelAttributeName=use_case.settings.examples.label,
            InputConfig={
                "DataSource": {"S3DataSource": {"ManifestS3Uri": f"{inputs}/input.manifest"}},
                **attributes,
            },
            OutputConfig={"S3OutputPath": out, **({"KmsKeyId": kms_key} if kms_key else {})},
            RoleArn=role,
            LabelCategoryConfigS3Uri=f"{inputs}/labels.json",
            StoppingConditions={"MaxHumanLabeledObjectCount": len(lines)},
            HumanTaskConfig=people,
        )
    return len(lines)
