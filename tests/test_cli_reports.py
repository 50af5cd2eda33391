"""`fullft report`: where the page is, and a copy that says how the release ended."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from fullft_assets import release, report
from fullft_assets.cli import commands, main
from fullft_assets.resources import set_latest
from fullft_assets.settings import ReleaseSettings
from fullft_assets.store import Manifest, Store
from tests import manifests
from tests.test_report import LABELS, evaluation_of, full_report

CHECKPOINT = "letters/finetuned_checkpoint/k1/1"


def reported(store: Store) -> Manifest:
    found = evaluation_of(LABELS)
    with store.create("letters", "evaluation_report", "k", version="1", seed=1) as draft:
        report.write(draft.path, full_report(found, verdict=release.verdict(found, ReleaseSettings())))
        made = draft.commit(settings={}, inputs={}, metadata=manifests.evaluation(checkpoint=CHECKPOINT))
    set_latest(store, "letters", "evaluation_report", made)
    return made


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    store = Store(str(tmp_path / "store"))
    use_it(store, monkeypatch)
    return store


def use_it(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "_open", lambda _: (SimpleNamespace(name="letters"), store))


def run(*arguments: str) -> int:
    return main(["report", "letters", *arguments, "--defs", "."])


def test_it_prints_where_the_page_is(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 1 and "`fullft run letters` writes" in capsys.readouterr().err
    made = reported(store)
    assert run() == 0 and capsys.readouterr().out == f"{store.folder(made) / 'report.html'}\n"


def test_a_copy_says_how_the_release_ended(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = reported(store)
    assert run("--out", str(tmp_path / "copies" / "page.html")) == 0
    copied = tmp_path / "copies" / "page.html"
    assert capsys.readouterr().out == f"{copied}\n" and "not been decided yet" in copied.read_text()
    kept = "Not promoted: the champion <b>has changed</b> since this candidate was judged."
    store.write_pointer("letters/decisions/k1", {"outcome": "kept", "sentence": kept})
    assert run("--out", str(copied)) == 0
    page = copied.read_text()
    assert "the champion &lt;b&gt;has changed&lt;/b&gt; since" in page and "Promoted:" not in page
    assert "How the release ended" not in (store.folder(made) / "report.html").read_text(), (
        "what is stored stays as it is"
    )
