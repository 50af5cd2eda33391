"""The champion copied out of the store, into a folder and into a bucket, and registered in SageMaker."""

import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import boto3
import pytest
from pydantic import ValidationError

from fullft_assets import release
from fullft_assets.cli import commands, main
from fullft_assets.errors import StoreError
from fullft_assets.release import push
from fullft_assets.settings import ReleaseSettings
from fullft_assets.settings.production import ModelPackageSettings
from fullft_assets.store import Files, Manifest
from tests.project import write_files
from tests.s3_server import S3Server
from tests.test_release import Lab, evaluated, lab as lab, store as store, use_case as use_case, with_settings


@pytest.fixture(params=["folder", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    """Where champions are copied to, as the YAML names it, and where its files are."""
    if request.param == "folder":
        return "served/models", tmp_path / "served" / "models"
    server: S3Server = request.getfixturevalue("s3_env")
    return "s3://served-models/mail", server.make_bucket("served-models") / "mail"


def promoted(lab: Lab, name: str, stage: str = "finetuned_checkpoint") -> Manifest:
    with lab.store.create("demo", stage, name, version="1", seed=17) as draft:
        write_files(
            draft.path / "model", {"config.json": json.dumps({"name": name}), "onnx/weights.bin": name}
        )
        made = lab.checkpoint(f"about-{name}").metadata
        if stage == "baseline_model":
            made = {**made, "system": "tfidf"}
        checkpoint = draft.commit(settings={"training": {"epochs": 3}}, inputs={}, metadata=made)
    lab.publish(lab.report(checkpoint, evaluated(), f"report-{name}"), checkpoint)
    champion = release.read_champion(lab.store, "demo")
    if champion is None or champion.checkpoint != checkpoint.ref:
        release.promote_by_hand(lab.store, lab.use_case, checkpoint.ref, reason="chosen", by="run")
    return checkpoint


def test_each_champion_has_a_folder_and_the_pointer_follows(lab: Lab, place: tuple[str, Path]) -> None:
    url, folder = place
    case = with_settings(lab.use_case, release={"push_to": url})
    assert release.push_champion(lab.store, case) is None, "there is no champion yet"
    for name, stage in (("first", "finetuned_checkpoint"), ("second", "baseline_model")):
        checkpoint = promoted(lab, name, stage)
        where = release.push_champion(lab.store, case)
        assert where is not None and where.endswith(f"/{checkpoint.key}-{checkpoint.attempt}")
        model = folder / f"{checkpoint.key}-{checkpoint.attempt}"
        assert json.loads((model / "config.json").read_text()) == {"name": name}
        assert (model / "onnx" / "weights.bin").read_bytes() == name.encode()
        assert (model / "README.md").read_text().startswith("---\n")
        assert json.loads((folder / "champion.json").read_text())["model"] == model.name
    release.rollback(lab.store, "demo", reason="worse", by="somebody")
    release.push_champion(lab.store, case)
    assert json.loads((folder / "champion.json").read_text())["model"].startswith("first-")
    assert model.name.startswith("second-") and (model / "README.md").is_file()


def test_another_attempt_of_a_key_has_its_own_weights(lab: Lab, tmp_path: Path) -> None:
    first, case = promoted(lab, "same"), with_settings(lab.use_case, release={"push_to": "out"})
    release.push_champion(lab.store, case)
    second = promoted(lab, "same")
    assert (first.key, first.ref) == (
        second.key,
        release.read_history(lab.store, "demo")[0].champion.checkpoint,
    )
    release.push_champion(lab.store, case)
    model = json.loads((tmp_path / "out" / "champion.json").read_text())["model"]
    assert model == f"same-{second.attempt}" and (tmp_path / "out" / f"same-{first.attempt}").is_dir()


@pytest.mark.parametrize(("given", "folder", "file"), [(None, 0o755, 0o644), (0o770, 0o770, 0o660)])
def test_whoever_may_read_the_folder_may_read_all_of_it(
    lab: Lab, tmp_path: Path, given: int | None, folder: int, file: int
) -> None:
    promoted(lab, "first")
    out = tmp_path / "out"
    if given is not None:
        out.mkdir()
        out.chmod(given)
    before = os.umask(0o077)
    try:
        release.push_champion(lab.store, with_settings(lab.use_case, release={"push_to": "out"}))
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (out, *out.rglob("*")) if path.is_dir()} == {folder}
    assert {path.stat().st_mode & 0o777 for path in out.rglob("*") if path.is_file()} == {file}


def test_nothing_is_copied_unasked_and_a_lost_card_is_written_again(lab: Lab, tmp_path: Path) -> None:
    promoted(lab, "first")
    assert release.push_champion(lab.store, lab.use_case) is None
    for card in lab.store.artifacts("demo", "champion_model"):
        lab.store.delete(card)
    release.push_champion(lab.store, with_settings(lab.use_case, release={"push_to": "out"}))
    assert next((tmp_path / "out").glob("first-*/README.md")).read_text().startswith("---\n")


def test_where_to_push_changes_no_key_and_is_checked() -> None:
    package = ModelPackageSettings(group="letters", image="image", url="s3://bucket/prefix")
    assert (
        ReleaseSettings(push_to="s3://bucket/prefix", model_package=package).model_dump()
        == ReleaseSettings().model_dump()
    )
    with pytest.raises(ValidationError):
        ReleaseSettings(push_to="ftp://bucket")


@pytest.fixture
def registry(aws: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A client of SageMaker's registry, beside a bucket `packages`."""
    monkeypatch.setenv("FULLFT_CACHE", str(tmp_path / "cache"))
    boto3.client("s3").create_bucket(Bucket="packages")
    return boto3.client("sagemaker")


#: How a champion is registered in the bucket of these tests.
PACKAGE = {
    "group": "letters",
    "image": "1.dkr.ecr.us-east-1.amazonaws.com/huggingface:2",
    "url": "s3://packages/mail",
}


def test_each_champion_is_one_package_to_be_approved(lab: Lab, registry: Any) -> None:
    case, bucket = with_settings(lab.use_case, release={"model_package": PACKAGE}), boto3.client("s3")
    assert list(release.hand_over(lab.store, case)) == [], "there is no champion yet"

    def body(url: str) -> bytes:
        return bucket.get_object(Bucket="packages", Key=url.removeprefix("s3://packages/"))["Body"].read()

    arns = []
    for name in ("first", "second"):
        checkpoint = promoted(lab, name)
        [said] = release.hand_over(lab.store, case)
        arns.append(said.removeprefix("registered as "))
        assert list(release.hand_over(lab.store, case)) == [said]
        package = registry.describe_model_package(ModelPackageName=arns[-1])
        assert (package["ModelPackageGroupName"], package["ModelApprovalStatus"]) == (
            "letters",
            "PendingManualApproval",
        )
        assert package["CustomerMetadataProperties"]["checkpoint"] == checkpoint.ref
        scores = json.loads(body(package["ModelMetrics"]["ModelQuality"]["Statistics"]["S3Uri"]))
        assert f"{scores['macro_f1']:.6f}" == package["CustomerMetadataProperties"]["score"]
        [container] = package["InferenceSpecification"]["Containers"]
        with tarfile.open(fileobj=io.BytesIO(body(container["ModelDataUrl"]))) as archive:
            assert {member.name for member in archive if member.isfile()} == {
                "config.json",
                "onnx/weights.bin",
            }
            weights = archive.extractfile("onnx/weights.bin")
            assert weights is not None and weights.read() == name.encode()
    release.rollback(lab.store, "demo", reason="worse", by="somebody")
    assert release.register_champion(lab.store, case) == arns[0]
    registered = registry.list_model_packages(ModelPackageGroupName="letters")["ModelPackageSummaryList"]
    assert {each["ModelPackageArn"] for each in registered} == set(arns)


def test_a_pooled_classifier_takes_along_how_it_is_served(lab: Lab, tmp_path: Path) -> None:
    checkpoint = promoted(lab, "a")
    write_files(tmp_path / "model", {"modules.json": "[]"})
    push._upload(
        Files(str(tmp_path / "out")), "a", tmp_path / "model", lab.report(checkpoint, evaluated(), "r")
    )
    with tarfile.open(tmp_path / "out" / "a" / "model.tar.gz") as archive:
        assert archive.getnames() == ["modules.json", "code/inference.py"]


def test_a_refused_registration_is_one_line_and_nothing_is_recorded(
    lab: Lab, registry: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    promoted(lab, "first")
    case, warnings = with_settings(lab.use_case, release={"model_package": PACKAGE}), []
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL_SAGEMAKER", "http://127.0.0.1:9")
        patch.setenv("AWS_MAX_ATTEMPTS", "1")
        with pytest.raises(StoreError, match=r"^release\.model_package: SageMaker refused: .*127\.0\.0\.1"):
            release.register_champion(lab.store, case)
        release.try_to_hand_over(lab.store, case, warnings.append, warnings.append)
    [line] = warnings
    assert line.startswith("pushing to letters failed: release.model_package: ")
    assert "materialise champion_model " in line
    assert ":model-package/letters/" in (release.register_champion(lab.store, case) or "")


def test_the_command_that_rolls_back_moves_the_copy(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    case = with_settings(lab.use_case, release={"push_to": "out"})
    for name in ("first", "second"):
        promoted(lab, name)
        release.push_champion(lab.store, case)
    monkeypatch.setattr(commands, "_open", lambda _: (case, lab.store))
    command = ["rollback", "demo", "--reason", "worse", "--defs", "."]
    assert main(command) == 0 and f"copied to {tmp_path}/out/first-" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "champion.json").read_text())["model"].startswith("first-")
    assert main(command) == 1 and "first champion" in capsys.readouterr().err
