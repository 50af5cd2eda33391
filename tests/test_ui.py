"""The UI as a person uses it, in a real browser: from two delivered files to a judged model.

The tests build on each other, in the order of this file, on one project.
"""

import json
import re
from collections.abc import Iterator
from contextlib import closing
from urllib.parse import urlencode

import dagster as dg
import pytest
from playwright.sync_api import expect
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Origin, Subprotocol

from tests import project as projects
from tests.machine import wait_for
from tests.prepared import write_tiny_model
from tests.ui import Screen, Services, chromium

pytestmark = [pytest.mark.browser, pytest.mark.slow]

#: The pilot of such a small project predicts no gain; here it may train nevertheless.
SECTIONS = {
    "base_model": "model",
    "documents": {"path": "data/letters/documents", "max_batch_files": 1},
    "monitoring": {"path": "data/letters/production"},
    "planning": {"min_predicted_gain": -1.0},
}
SUCCESS, CANCELED, FAILURE = (
    dg.DagsterRunStatus.SUCCESS,
    dg.DagsterRunStatus.CANCELED,
    dg.DagsterRunStatus.FAILURE,
)


@pytest.fixture(scope="module")
def screen(tmp_path_factory) -> Iterator[Screen]:
    """A browser on `dagster dev` over a project with two delivered files, nothing run yet."""
    with chromium() as page:
        root = tmp_path_factory.mktemp("ui")
        write_tiny_model(root / "model")
        project = projects.create(root, rows=200, **SECTIONS)
        project.deliver("delivery-2.jsonl", projects.licence_rows(200, skip=200))
        settings = project.home / "dagster.yaml"
        # Dead runs give their pool slots back after seconds, not half minutes.
        settings.write_text(
            re.sub(
                r"(poll_interval|free_slots_after_run_end)_seconds: \d+",
                r"\1_seconds: 3",
                settings.read_text(),
            )
        )
        services = Services(project)
        try:
            services.start()
            with dg.DagsterInstance.from_config(str(project.home)) as instance:
                yield Screen(page, services, instance)
        finally:
            services.stop()


@pytest.fixture(scope="module")
def batches(screen: Screen) -> list[str]:
    """The names of the batches that the sensor cuts, as its preview in the browser shows them."""
    page = screen.open_sensor("new_documents")
    page.get_by_role("button", name="Preview tick result").click()
    page.get_by_role("button", name="Continue").click()
    expect(page.get_by_text("2 run requests")).to_be_visible()
    screen.shoot("sensor-preview")
    names = re.findall(r"\b\d{5}-[0-9a-f]{8}\b", page.get_by_role("dialog").inner_text())
    page.get_by_role("button", name="Close").click()
    return names


@pytest.fixture(scope="module")
def ingested(screen: Screen, batches: list[str]) -> list[str]:
    """The partitions that a backfill launched from the browser has made."""
    page = screen.open_job("ingest")
    page.get_by_role("button", name="Materialize all").click()
    for name in batches:
        page.get_by_role("button", name="Add a partition").click()
        page.get_by_placeholder("name", exact=True).fill(name)
        page.get_by_role("button", name="Save").click()
        expect(page.get_by_placeholder("name", exact=True)).to_be_hidden()
    page.get_by_role("button", name="All", exact=True).click()
    expect(page.get_by_role("dialog").get_by_text("2 partitions")).to_be_visible()
    screen.shoot("backfill")
    page.get_by_role("button", name="Launch backfill").click()
    wait_for(
        lambda: _num_succeeded(screen, "ingest") == 2, "both runs of the backfill", 600, poll_seconds=0.3
    )
    return batches


@pytest.fixture(scope="module")
def made(screen: Screen, ingested: list[str]) -> str:
    """The run of the model job, launched from the browser, successful."""
    screen.open_job("model")
    run_id = screen.materialize("Materialize all")
    assert screen.finished(run_id, 900) == SUCCESS, f"see {screen.services.log}"
    return run_id


def _num_succeeded(screen: Screen, job: str) -> int:
    runs = screen.instance.get_runs(dg.RunsFilter(job_name=f"{screen.case}_{job}"))
    assert all(run.status not in (FAILURE, CANCELED) for run in runs), f"see {screen.services.log}"
    return sum(run.status == SUCCESS for run in runs)


def test_no_page_of_another_origin_acts(screen: Screen):
    """What Dagster's own webserver does for each of these requests, and what programs may go on to do."""
    run = 'mutation { setConcurrencyLimit(concurrencyKey: "forged", limit: 7) }'
    key = f"{screen.case}/finetuned_checkpoint"
    report = f"/report_asset_materialization/{key}?" + urlencode(
        {"metadata": json.dumps({"artifact": "forged"})}
    )
    evil, json_type = {"Origin": "http://evil.example"}, {"Content-Type": "application/json"}
    body = json.dumps({"query": run}).encode()
    assert screen.answer("GET", f"/graphql?{urlencode({'query': run})}") == 403
    assert screen.answer("POST", f"/graphql?{urlencode({'query': run})}", {}) == 403
    assert screen.answer("POST", "/graphql", {**json_type, **evil}, body) == 403
    assert screen.answer("POST", report, evil) == 403
    assert screen.answer("GET", "/server_info", {"Host": "evil.example"}) == 403
    address = f"{screen.services.url.replace('http', 'ws')}/graphql"
    with pytest.raises(InvalidStatus, match="403"):
        connect(address, origin=Origin("http://evil.example"), subprotocols=[Subprotocol("graphql-ws")])
    assert "forged" not in screen.instance.event_log_storage.get_concurrency_keys()
    assert screen.instance.get_latest_materialization_event(dg.AssetKey(key.split("/"))) is None

    connect(address, subprotocols=[Subprotocol("graphql-ws")]).close()
    assert screen.answer("POST", "/graphql", json_type, json.dumps({"query": "{ version }"}).encode()) == 200


def test_report_file_opens(screen: Screen, made: str):
    screen.open_asset("evaluation_report")
    with screen.page.expect_popup() as opened:
        screen.metadata("report_file").get_by_role("link").first.click()
    with closing(opened.value) as page:
        assert page.url.startswith(f"{screen.services.url}/fullft/reports/letters/evaluation_report/")
        expect(page.get_by_role("heading", name="Evaluation of letters")).to_be_visible()
        _expect_pictures(page, 4)
    screen.open_asset("training_snapshot")
    with screen.page.expect_popup() as opened:
        screen.metadata("data_report").get_by_role("link").first.click()
    with closing(opened.value) as page:
        expect(page.get_by_role("heading", name="Data report of letters")).to_be_visible()


def _expect_pictures(place, at_least: int) -> None:
    widths = place.locator("img").evaluate_all(
        "all => Promise.all(all.map(i => i.decode().then(() => i.naturalWidth)))"
    )
    assert len(widths) >= at_least
    assert min(widths) > 200
