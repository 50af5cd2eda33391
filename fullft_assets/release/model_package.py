"""The champion as a model package in SageMaker's registry: its files in a bucket, to be approved by whoever
deploys it.
"""

from __future__ import annotations

import json
import tarfile
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fullft_assets.errors import StoreError
from fullft_assets.evaluation.metadata import EvaluationMetadata
from fullft_assets.release.champion import Champion, read_champion
from fullft_assets.store.files import Files
from fullft_assets.store.hashing import digest

if TYPE_CHECKING:
    from fullft_assets.settings.release import ModelPackageSettings
    from fullft_assets.settings.use_case import UseCase
    from fullft_assets.store import Manifest, Store

#: Beside the model's files in the bucket: which package they are in; written last.
_PACKAGE = "package.json"
_ARCHIVE, _METRICS = "model.tar.gz", "metrics.json"


def register_champion(store: Store, use_case: UseCase) -> str | None:
    """Register the champion in `release.model_package`; return the package's ARN, or None where there is
    nothing to register.

    Repeated, it returns the package that there is: SageMaker takes a request with the same token once, and a
    file in the bucket says which package that was.

    Raises:
        StoreError: SageMaker refuses.
    """
    asked, champion = use_case.settings.release.model_package, read_champion(store, use_case.name)
    if asked is None or champion is None:
        return None
    target, checkpoint = Files(asked.url), store.load(champion.checkpoint)
    name = f"{checkpoint.key}-{checkpoint.attempt}"
    known = target.read_json(f"{name}/{_PACKAGE}")
    if known is not None:
        return known["arn"]
    _upload(target, name, store.folder(checkpoint) / "model", store.load(champion.evaluation))
    arn = _create(asked, f"{target.url}/{name}", champion, checkpoint)
    target.write_json(f"{name}/{_PACKAGE}", {"arn": arn, "checkpoint": checkpoint.ref})
    return arn


def _upload(target: Files, name: str, model: Path, report: Manifest) -> None:
    """Write the model's files as one archive, as SageMaker's containers unpack it, and the scores of its
    evaluation.
    """
    target.make_folder(target.cache_folder)
    with tempfile.TemporaryDirectory(dir=target.cache_folder) as folder:
        # Compression saves little on weights: a level above the lowest only takes time.
        with tarfile.open(Path(folder, _ARCHIVE), "w:gz", compresslevel=1) as archive:
            for path in sorted(model.iterdir()):
                archive.add(path, arcname=path.name)
        metadata = EvaluationMetadata.of(report)
        scores = {
            key: value for key, value in metadata.measured.items() if isinstance(value, (int, float))
        } | {"scores": metadata.scores}
        Path(folder, _METRICS).write_text(json.dumps(scores, indent=1), encoding="utf-8")
        target.upload(Path(folder), name, [_ARCHIVE, _METRICS])


def _create(asked: ModelPackageSettings, url: str, champion: Champion, checkpoint: Manifest) -> str:
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    about = {
        "checkpoint": checkpoint.ref,
        "evaluation": champion.evaluation,
        "score": f"{champion.score:.6f}",
    }
    package: dict[str, Any] = {
        "ModelPackageGroupName": asked.group,
        "ModelPackageDescription": f"Champion of {checkpoint.case}: {checkpoint.ref}",
        "ModelApprovalStatus": "PendingManualApproval",
        "InferenceSpecification": {
            "Containers": [{"Image": asked.image, "ModelDataUrl": f"{url}/{_ARCHIVE}"}],
            "SupportedContentTypes": ["application/json"],
            "SupportedResponseMIMETypes": ["application/json"],
        },
        "ModelMetrics": {
            "ModelQuality": {"Statistics": {"ContentType": "application/json", "S3Uri": f"{url}/{_METRICS}"}}
        },
        "CustomerMetadataProperties": about,
        "ClientToken": digest([url, asked.group]),
    }
    try:
        client = boto3.client("sagemaker")
        if not _has_group(client, asked.group):
            client.create_model_package_group(ModelPackageGroupName=asked.group)
        return client.create_model_package(**package)["ModelPackageArn"]
    except (BotoCoreError, ClientError) as error:
        raise StoreError(f"release.model_package: SageMaker refused: {error}") from error


def _has_group(client: Any, group: str) -> bool:
    pages = client.get_paginator("list_model_package_groups").paginate(NameContains=group)
    return any(
        each["ModelPackageGroupName"] == group
        for page in pages
        for each in page["ModelPackageGroupSummaryList"]
    )
