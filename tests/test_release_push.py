"""The champion copied out of the store, into a folder and into a bucket."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import ValidationError

from fullft_assets import release
from fullft_assets.settings import ReleaseSettings
from fullft_assets.settings.use_case import UseCase
from fullft_assets.store import Manifest
from tests.s3_server import S3Server
from tests.test_release import Lab, evaluated
from tests.test_release import lab as lab
from tests.test_release import store as store
from tests.test_release import use_case as use_case


@pytest.fixture(params=["folder", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    """Where champions are copied to, as the YAML names it, and where its files are."""
    if request.param == "folder":
        return "served/models", tmp_path / "served" / "models"
    server: S3Server = request.getfixturevalue("s3_env")
    return "s3://served-models/mail", server.make_bucket("served-models") / "mail"


def pushing(use_case: UseCase, to: str) -> UseCase:
    changed = use_case.settings.release.model_copy(update={"push_to": to})
    settings = use_case.settings.model_copy(update={"release": changed})
    return replace(use_case, settings=settings, project_root=use_case.project_root)


def promoted(lab: Lab, name: str) -> Manifest:
    with lab.store.create("demo", "finetuned_checkpoint", name, version="1", seed=17) as draft:
        (draft.path / "model" / "onnx").mkdir(parents=True)
        (draft.path / "model" / "config.json").write_text(json.dumps({"name": name}))
        (draft.path / "model" / "onnx" / "weights.bin").write_bytes(name.encode())
        made = lab.checkpoint(f"about-{name}").metadata
        checkpoint = draft.commit(settings={"training": {"epochs": 3}}, inputs={}, metadata=made)
    lab.publish(lab.report(checkpoint, evaluated(), f"report-{name}"), checkpoint)
    champion = release.read_champion(lab.store, "demo")
    if champion is None or champion.checkpoint != checkpoint.ref:
        release.promote_by_hand(lab.store, lab.use_case, checkpoint.ref, reason="chosen", by="run")
    return checkpoint


def test_each_champion_has_a_folder_and_the_pointer_follows(lab: Lab, place: tuple[str, Path]) -> None:
    url, folder = place
    case = pushing(lab.use_case, url)
    assert release.push_champion(lab.store, case) is None, "there is no champion yet"
    for name in ("first", "second"):
        checkpoint = promoted(lab, name)
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
    first, case = promoted(lab, "same"), pushing(lab.use_case, "out")
    release.push_champion(lab.store, case)
    second = promoted(lab, "same")
    assert (first.key, first.ref) == (second.key, release.read_history(lab.store, "demo")[0].champion.checkpoint)
    release.push_champion(lab.store, case)
    model = json.loads((tmp_path / "out" / "champion.json").read_text())["model"]
    assert model == f"same-{second.attempt}" and (tmp_path / "out" / f"same-{first.attempt}").is_dir()


@pytest.mark.parametrize(("given", "folder", "file"), [(None, 0o755, 0o644), (0o770, 0o770, 0o660)])
def test_whoever_may_read_the_folder_may_read_all_of_it(lab: Lab, tmp_path: Path, given: int | None, folder: int, file: int) -> None:
    promoted(lab, "first")
    out = tmp_path / "out"
    if given is not None:
        out.mkdir()
        out.chmod(given)
    before = os.umask(0o077)
    try:
        release.push_champion(lab.store, pushing(lab.use_case, "out"))
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (out, *out.rglob("*")) if path.is_dir()} == {folder}
    assert {path.stat().st_mode & 0o777 for path in out.rglob("*") if path.is_file()} == {file}


def test_nothing_is_copied_unasked_and_a_lost_card_is_written_again(lab: Lab, tmp_path: Path) -> None:
    promoted(lab, "first")
    assert release.push_champion(lab.store, lab.use_case) is None
    for card in lab.store.artifacts("demo", "champion_model"):
        lab.store.delete(card)
    release.push_champion(lab.store, pushing(lab.use_case, "out"))
    assert next((tmp_path / "out").glob("first-*/README.md")).read_text().startswith("---\n")


def test_where_to_push_changes_no_key_and_is_checked() -> None:
    assert ReleaseSettings(push_to="s3://bucket/prefix").model_dump() == ReleaseSettings().model_dump()
    with pytest.raises(ValidationError):
        ReleaseSettings(push_to="gs://bucket")
