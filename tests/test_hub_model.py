"""Models of the hub: found by their commit in a cache that is laid out as the hub's libraries do, pinned,
safe.
"""

from pathlib import Path

import pytest

from fullft_assets.base_model import read_header, resolve_base_model
from fullft_assets.errors import SettingsError
from tests.prepared import write_tiny_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A snapshot in the cache: links to blobs, as `hf download` leaves them."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    repository = tmp_path / "home" / "hub" / "models--acme--tiny-bert"
    folder, blobs = repository / "snapshots" / COMMIT, repository / "blobs"
    write_tiny_model(blobs)
    folder.mkdir(parents=True)
    for blob in list(blobs.iterdir()):
        (folder / blob.name).symlink_to(blob)
    return folder


def test_pinned_model_is_found_where_the_hubs_own_library_finds_it(snapshot: Path, tmp_path: Path) -> None:
    from huggingface_hub import snapshot_download

    assert resolve_base_model(f"acme/tiny-bert@{COMMIT}", tmp_path) == snapshot
    assert (
        Path(
            snapshot_download(
                "acme/tiny-bert",
                revision=COMMIT,
                cache_dir=tmp_path / "home" / "hub",
                local_files_only=True,
            )
        )
        == snapshot
    )
    assert read_header(snapshot).model_type == "bert"


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (
            "acme/tiny-bert",
            (
                r"folder not found: acme/tiny-bert; .* or pin a model of the hub: acme/tiny-bert@COMMIT, the"
                r" 40 digits"
            ),
        ),
        ("acme/tiny-bert@main", r"not pinned \(`main` can move\); write acme/tiny-bert@COMMIT"),
        (f"acme/tiny-bert@{COMMIT[:7]}", r"`0123456` can move"),
        (
            f"acme/other@{COMMIT}",
            (
                rf"acme/other@{COMMIT} is not in the hub's cache \(.*hub\); `hf download acme/other"
                rf" --revision {COMMIT} "
            ),
        ),
    ],
)
def test_what_is_not_pinned_or_not_there_is_one_line(
    snapshot: Path, tmp_path: Path, reference: str, message: str
) -> None:
    with pytest.raises(SettingsError, match=message) as error:
        resolve_base_model(reference, tmp_path)
    assert "\n" not in str(error.value)
