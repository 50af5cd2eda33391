"""The champion handed over to whoever serves it: a folder for each model in the layout of the Hugging Face
hub, or a model package in the registry of SageMaker.
"""

import json
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fullft_assets.artifacts import BASELINE_FILE
from fullft_assets.aws import reporting_client
from fullft_assets.base_model import MODULES
from fullft_assets.errors import FullftError, StoreError
from fullft_assets.evaluation.metadata import EvaluationMetadata
from fullft_assets.release.champion import Champion, read_champion
from fullft_assets.release.decision import card_of_champion
from fullft_assets.release.model_card import CARD, card_of
from fullft_assets.settings.production import ModelPackageSettings
from fullft_assets.settings.use_case import UseCase
from fullft_assets.store import Manifest, Store
from fullft_assets.store.buckets import SCHEMES
from fullft_assets.store.files import Files
from fullft_assets.store.hashing import digest

#: Beside the model's files in the bucket: which package they are in; written last.
_PACKAGE = "package.json"
_ARCHIVE = "model.tar.gz"
_METRICS = "metrics.json"


def register_champion(store: Store, use_case: UseCase) -> str | None:
    """Register the champion in `release.model_package`; return the package's ARN, or None where there is
    nothing to register, as of a baseline that is no model of transformers.

    Repeated, it returns the package that there is: SageMaker takes a request with the same token once, and a
    file in the bucket says which package that was.

    Raises:
        StoreError: SageMaker refuses.
    """
    settings = use_case.settings.release.model_package
    champion = read_champion(store, use_case.name)
    if settings is None or champion is None:
        return None
    checkpoint = store.load(champion.checkpoint)
    if f"model/{BASELINE_FILE}" in checkpoint.files:
        return None  # no image of the service serves it
    target = Files(settings.url)
    name = f"{checkpoint.key}-{checkpoint.attempt}"
    package = target.read_json(f"{name}/{_PACKAGE}")
    if package is not None:
        return package["arn"]
    _upload(target, name, store.folder(checkpoint) / "model", store.load(champion.evaluation))
    arn = _create(settings, f"{target.url}/{name}", champion, checkpoint)
    target.write_json(f"{name}/{_PACKAGE}", {"arn": arn, "checkpoint": checkpoint.ref})
    return arn


def _upload(target: Files, name: str, model: Path, report: Manifest) -> None:
    target.make_folder(target.cache_folder)
    with tempfile.TemporaryDirectory(dir=target.cache_folder) as folder:
        # Compression saves little on weights: a level above the lowest only takes time.
        with tarfile.open(Path(folder, _ARCHIVE), "w:gz", compresslevel=1) as archive:
            for path in sorted(model.iterdir()):
                archive.add(path, arcname=path.name)
            # transformers would read the folder of sentence-transformers with a new head.
            if (model / MODULES).is_file():
                archive.add(Path(__file__).with_name("served.py"), arcname="code/inference.py")
        metadata = EvaluationMetadata.of(report)
        scores = {
            key: value for key, value in metadata.measured.items() if isinstance(value, (int, float))
        } | {"scores": metadata.scores}
        Path(folder, _METRICS).write_text(json.dumps(scores, indent=1), encoding="utf-8")
        target.upload(Path(folder), name, [_ARCHIVE, _METRICS])


def _create(settings: ModelPackageSettings, url: str, champion: Champion, checkpoint: Manifest) -> str:
    package: dict[str, Any] = {
        "ModelPackageGroupName": settings.group,
        "ModelPackageDescription": f"Champion of {checkpoint.case}: {checkpoint.ref}",
        "ModelApprovalStatus": "PendingManualApproval",
        "InferenceSpecification": {
            "Containers": [{"Image": settings.image, "ModelDataUrl": f"{url}/{_ARCHIVE}"}],
            "SupportedContentTypes": ["application/json"],
            "SupportedResponseMIMETypes": ["application/json"],
        },
        "ModelMetrics": {
            "ModelQuality": {"Statistics": {"ContentType": "application/json", "S3Uri": f"{url}/{_METRICS}"}}
        },
        "CustomerMetadataProperties": {
            "checkpoint": checkpoint.ref,
            "evaluation": champion.evaluation,
            "score": f"{champion.score:.6f}",
        },
        "ClientToken": digest([url, settings.group]),
    }
    with reporting_client("sagemaker", "release.model_package: SageMaker refused", StoreError) as client:
        pages = client.get_paginator("list_model_package_groups").paginate(NameContains=settings.group)
        if not any(
            summary["ModelPackageGroupName"] == settings.group
            for page in pages
            for summary in page["ModelPackageGroupSummaryList"]
        ):
            client.create_model_package_group(ModelPackageGroupName=settings.group)
        return client.create_model_package(**package)["ModelPackageArn"]


#: Beside the models' folders: which of them is the champion's.
POINTER = "champion.json"
#: Whoever serves the model is another user than the one who trains.
_READABLE_FOLDER = 0o755


def push_champion(store: Store, use_case: UseCase) -> str | None:
    """Copy the champion's model and card to `release.push_to`; return where they are, or None where nothing
    is to be copied.

    A reader never sees parts of two models: each has a folder of its own, whose card is written last, and the
    pointer is replaced in one step. Repeated, it only writes card and pointer again.

    Raises:
        StoreError: the champion's checkpoint is gone, or its card and the evaluation that it is written from.
    """
    push_to = use_case.settings.release.push_to
    champion = read_champion(store, use_case.name)
    if push_to is None or champion is None:
        return None
    # The bucket may be another account's, which the store's key for encryption is nothing to: its own
    # settings hold.
    target = Files(
        push_to if push_to.startswith(SCHEMES) else str(use_case.resolve(push_to)), own_mode=_READABLE_FOLDER
    )
    checkpoint = store.load(champion.checkpoint)
    card = card_of(store, use_case.name, champion) or card_of_champion(store, use_case, checkpoint)
    name = f"{checkpoint.key}-{checkpoint.attempt}"
    if target.read_bytes(f"{name}/{CARD}") is None:
        model = store.folder(checkpoint) / "model"
        files = sorted(path.relative_to(model).as_posix() for path in model.rglob("*") if path.is_file())
        copies = [Path(target.url, name, file) for file in files] if target.is_local else []
        for copy in copies:
            target.make_folder(copy.parent)
        target.upload(model, name, files)
        for copy in copies:
            copy.chmod(target.file_mode)
    target.write_bytes(f"{name}/{CARD}", (store.folder(card) / CARD).read_bytes())
    target.write_json(
        POINTER, {"model": name, "checkpoint": champion.checkpoint, "promoted_at": champion.promoted_at}
    )
    return f"{target.url}/{name}"


def hand_over(store: Store, use_case: UseCase) -> Iterator[str]:
    """Push the champion and register it, where the settings ask for it; yield a sentence on each step that
    was done.
    """
    if (url := push_champion(store, use_case)) is not None:
        yield f"copied to {url}"
    if (arn := register_champion(store, use_case)) is not None:
        yield f"registered as {arn}"


def try_to_hand_over(
    store: Store, use_case: UseCase, say: Callable[[str], None], warn: Callable[[str], None]
) -> None:
    """Hand the champion over after a change by hand, and say how it ended: a change that is made fails no
    more, or it would be made twice.
    """
    try:
        for sentence in hand_over(store, use_case):
            say(sentence)
    except Exception as error:
        problem = str(error) if isinstance(error, FullftError) else store.keep_traceback(use_case.name, error)
        release = use_case.settings.release
        targets = [release.push_to, release.model_package and release.model_package.group]
        warn(
            f"pushing to {' and '.join(filter(None, targets))} failed: {problem}; materialise champion_model"
            " to push it"
        )
