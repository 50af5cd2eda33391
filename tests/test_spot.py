"""Spot notices from a server that speaks EC2's protocol. A training that gets one: test_resume."""

from collections.abc import Iterator

import pytest

from fullft_assets.errors import SettingsError
from fullft_assets.progress import Progress
from fullft_assets.settings import LauncherSettings
from fullft_assets.training import spot
from tests import metadata_server
from tests.machine import wait_for

pytestmark = pytest.mark.quick

AWS = LauncherSettings(spot_notice="aws")


@pytest.fixture
def metadata(monkeypatch: pytest.MonkeyPatch) -> Iterator[metadata_server.MetadataServer]:
    with metadata_server.serve() as server:
        monkeypatch.setenv(spot.ENDPOINT, server.endpoint)
        monkeypatch.setenv(
            "http_proxy", "http://127.0.0.1:9"
        )  # which the machine's own address does not go through
        monkeypatch.delenv("LOCAL_RANK", raising=False)
        monkeypatch.setattr(spot, "POLL_SECONDS", 0.02)
        yield server


def test_a_notice_asks_for_the_stop_and_says_so(metadata, capsys):
    progress = Progress()
    with spot.stop_on_notice(AWS, progress):
        wait_for(lambda: metadata.num_looks >= 3, "three looks")
        assert not progress.stop_requested
        metadata.announce()
        wait_for(lambda: progress.stop_requested, "the stop")
    assert 'spot notice: {"action": "terminate", ' in capsys.readouterr().out


def test_a_service_that_falls_silent_is_asked_on(metadata, capsys):
    progress = Progress()
    with spot.stop_on_notice(AWS, progress):
        give = metadata.RequestHandlerClass.do_GET
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(metadata.RequestHandlerClass, "do_GET", lambda handler: handler.reply(503))
            wait_for(
                lambda: "warning: spot notices cannot be read (HTTP Error 503" in capsys.readouterr().out,
                "the warning",
            )
        assert metadata.RequestHandlerClass.do_GET is give
        metadata.announce()
        wait_for(lambda: progress.stop_requested, "the stop")


def test_without_the_service_nothing_is_trained_in_vain(monkeypatch):
    monkeypatch.setenv(spot.ENDPOINT, "http://127.0.0.1:9")
    with (
        pytest.raises(
            SettingsError,
            match=r"launcher\.spot_notice: aws, .* at http://127\.0\.0\.1:9/ \(.*refused",
        ),
        spot.stop_on_notice(AWS, Progress(silent=True)),
    ):
        raise AssertionError("it began")


@pytest.mark.parametrize(
    ("settings", "rank"),
    [(LauncherSettings(), "0"), (AWS, "1")],
    ids=["none", "another process of the machine"],
)
def test_nobody_asks_who_need_not(metadata, monkeypatch, settings, rank):
    monkeypatch.setenv("LOCAL_RANK", rank)
    with spot.stop_on_notice(settings, Progress(silent=True)):
        pass
    assert metadata.tokens == set()
