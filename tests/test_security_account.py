"""An AWS account (moto's server) as `security_audit` sees it through Prowler, in an environment of its
own.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import boto3
import pytest

from fullft_assets.security import findings

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[1]
PROWLER = "prowler==5.46.0"
ACCOUNT = "123456789012"
TRUST = {
    "Version": "2012-10-17",
    "Statement": [
        {"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"}
    ],
}
EVERYTHING = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}


@pytest.fixture
def account(aws: None, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A new account; `account("s3")` is a client of it."""
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    return boto3.client


def plant(account: Any) -> set[tuple[str, str]]:
    """Make everything once as the documentation wants it and once not; return what is wrong: check and end of
    the resource's name.
    """
    kms, rds, iam, ec2 = (account(name) for name in ("kms", "rds", "iam", "ec2"))
    key = kms.create_key()["KeyMetadata"]["KeyId"]
    kms.enable_key_rotation(KeyId=key)
    unrotated = kms.create_key()["KeyMetadata"]["KeyId"]
    plant_bucket(account("s3"), "good", key)
    account("s3").create_bucket(
        Bucket="bad", CreateBucketConfiguration={"LocationConstraint": "eu-central-1"}
    )
    for name, is_good in (("good", True), ("bad", False)):
        rds.create_db_instance(
            DBInstanceIdentifier=name,
            DBInstanceClass="db.t4g.small",
            Engine="postgres",
            AllocatedStorage=20,
            MasterUsername="fullft",
            MasterUserPassword="planted-1",
            StorageEncrypted=is_good,
            **({"KmsKeyId": key} if is_good else {}),
            BackupRetentionPeriod=7,
            DBParameterGroupName=parameters(rds),
        )
        iam.create_role(RoleName=name, AssumeRolePolicyDocument=json.dumps(TRUST))
        ec2.create_volume(
            AvailabilityZone="eu-central-1a",
            Size=1,
            Encrypted=is_good,
            **({"KmsKeyId": key} if is_good else {}),
        )
        train(account("sagemaker"), name, key if is_good else None)
    policy = iam.create_policy(PolicyName="everything", PolicyDocument=json.dumps(EVERYTHING))["Policy"]
    iam.attach_role_policy(RoleName="bad", PolicyArn=policy["Arn"])
    volumes = ec2.describe_volumes(Filters=[{"Name": "encrypted", "Values": ["false"]}])["Volumes"]
    ec2.enable_ebs_encryption_by_default()
    jobs = ("volume_and_output_encryption", "network_isolation", "intercontainer_encryption")
    buckets = (
        "kms_encryption",
        "level_public_access_block",
        "lifecycle_enabled",
        "object_versioning",
        "secure_transport_policy",
    )
    return {
        *((f"s3_bucket_{check}", "bad") for check in buckets),
        ("kms_cmk_rotation_enabled", unrotated),
        ("rds_instance_storage_encrypted", "bad"),
        ("iam_customer_attached_policy_no_administrative_privileges", "everything"),
        *(("ec2_ebs_volume_encryption", volume["VolumeId"]) for volume in volumes),
        *((f"sagemaker_training_jobs_{check}_enabled", "bad") for check in jobs),
        ("sagemaker_training_jobs_vpc_settings_configured", "bad"),
    }


def parameters(rds: Any) -> str:
    """Return a group of parameters of a database that refuses connections without TLS."""
    if not rds.describe_db_parameter_groups()["DBParameterGroups"]:
        rds.create_db_parameter_group(
            DBParameterGroupName="tls", DBParameterGroupFamily="postgres17", Description="tls"
        )
        forced = {"ParameterName": "rds.force_ssl", "ParameterValue": "1", "ApplyMethod": "immediate"}
        rds.modify_db_parameter_group(DBParameterGroupName="tls", Parameters=[forced])
    return "tls"


def plant_bucket(s3: Any, name: str, key: str) -> None:
    s3.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})
    s3.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
    blocks = ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets")
    s3.put_public_access_block(Bucket=name, PublicAccessBlockConfiguration=dict.fromkeys(blocks, True))
    by_key = {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": key}
    s3.put_bucket_encryption(
        Bucket=name,
        ServerSideEncryptionConfiguration={"Rules": [{"ApplyServerSideEncryptionByDefault": by_key}]},
    )
    rule = {
        "ID": "old",
        "Status": "Enabled",
        "Filter": {"Prefix": ""},
        "NoncurrentVersionExpiration": {"NoncurrentDays": 7},
    }
    s3.put_bucket_lifecycle_configuration(Bucket=name, LifecycleConfiguration={"Rules": [rule]})
    denied = {
        "Effect": "Deny",
        "Principal": "*",
        "Action": "s3:*",
        "Resource": [f"arn:aws:s3:::{name}", f"arn:aws:s3:::{name}/*"],
        "Condition": {"Bool": {"aws:SecureTransport": "false"}},
    }
    s3.put_bucket_policy(Bucket=name, Policy=json.dumps({"Version": "2012-10-17", "Statement": [denied]}))


def train(sagemaker: Any, name: str, key: str | None) -> None:
    """Start a job, isolated and encrypted with a key or not."""
    is_good = key is not None
    sagemaker.create_training_job(
        TrainingJobName=name,
        AlgorithmSpecification={"TrainingImage": "image", "TrainingInputMode": "File"},
        RoleArn=f"arn:aws:iam::{ACCOUNT}:role/good",
        OutputDataConfig={"S3OutputPath": "s3://good/out", **({"KmsKeyId": key} if is_good else {})},
        ResourceConfig={
            "InstanceType": "ml.g5.xlarge",
            "InstanceCount": 1,
            "VolumeSizeInGB": 1,
            **({"VolumeKmsKeyId": key} if is_good else {}),
        },
        StoppingCondition={"MaxRuntimeInSeconds": 60},
        EnableNetworkIsolation=is_good,
        EnableInterContainerTrafficEncryption=is_good,
        **({"VpcConfig": {"SecurityGroupIds": ["sg-1"], "Subnets": ["subnet-1"]}} if is_good else {}),
    )


def test_what_is_wrong_in_an_account_is_found_and_nothing_else(account: Any, tmp_path: Path) -> None:
    planted = plant(account)
    assert len(planted) >= 12
    environment = ROOT / "build" / "prowler"
    if not (environment / "bin" / "prowler").exists():
        subprocess.run([sys.executable, "-m", "venv", environment], check=True)
        subprocess.run(
            [environment / "bin" / "python", "-m", "pip", "install", "--quiet", "--no-compile", PROWLER],
            check=True,
        )
    home = tmp_path / "home"
    # As docs/security.md has it.
    line = (
        "aws --checks-file deploy/aws/prowler.json --output-formats json-ocsf"
        f" --output-directory {home / 'security'} --output-filename prowler"
    )
    done = subprocess.run(
        [environment / "bin" / "prowler", *line.split(), "--region", "eu-central-1"],
        cwd=ROOT,
        env=os.environ,
        capture_output=True,
        text=True,
        check=False,
    )
    # 3: some checks failed.
    assert done.returncode == 3, done.stdout[-3_000:] + done.stderr[-3_000:]
    imported = [*findings.of_account(home)]
    found = {
        (finding.id, name)
        for finding in imported
        for name in [finding.evidence.partition(": ")[0].rpartition(":")[2].rpartition("/")[2]]
    }
    assert found == planted
    errors = {finding.id for finding in imported if finding.severity == "error"}
    assert {"rds_instance_storage_encrypted", "ec2_ebs_volume_encryption"} <= errors
    assert "s3_bucket_lifecycle_enabled" not in errors
