"""Dagster's services over a small project, and the pages that a person uses, in a real headless Chromium."""

import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType

import dagster as dg
import psutil
from playwright.sync_api import Page, expect, sync_playwright

from tests import machine
from tests.project import Project

SCREENSHOTS = Path(__file__).parents[1] / "build" / "screenshots"
_CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

#: Script that returns the words on several lines within the elements of a selector.
BROKEN = """selector => [...document.querySelectorAll(selector)].flatMap(element => {
    const walker = document.createTreeWalker(element, NodeFilter.SHOW_TEXT), broken = []
    for (let node = walker.nextNode(); node; node = walker.nextNode())
        for (const word of node.data.matchAll(/\\S+/g)) {
            const range = document.createRange()
            range.setStart(node, word.index)
            range.setEnd(node, word.index + word[0].length)
            const lines = new Set([...range.getClientRects()].map(r => Math.round(r.top)))
            if (lines.size > 1) broken.push(word[0])
        }
    return broken
})"""
#: Script that returns the elements that are not within a page's width, code excepted.
_OUTSIDE = """width => [...document.querySelectorAll('html, body *')].filter(
    e => !e.closest('pre') && Math.max(e.getBoundingClientRect().right, e.scrollWidth) > width + 1
).map(e => e.outerHTML.slice(0, 80))"""
_REPOSITORY = "__repository__@my_project"
# The default of 5 seconds is short on a slow machine whose cores other tests share.
expect.set_options(timeout=30_000)


def open_file(page: Page, path: Path, width: int) -> list[str]:
    """Open a file at a width in pixels; return the elements that a person has to scroll to."""
    page.set_viewport_size({"width": width, "height": 900})
    page.goto(f"file://{path}")
    return page.evaluate(_OUTSIDE, width)


class Services:
    """`fullft ui` over a project: webserver, daemons and code server, in a home of their own."""

    def __init__(self, project: Project):
        self.project = project
        self.url = f"http://127.0.0.1:{machine.free_port()}"
        self.log = project.root / "dagster-dev.log"

    def start(self) -> None:
        """Start the services and wait until the webserver answers."""
        # On a fresh home the services race for the schema of the database: one command goes before.
        self._dagster("instance", "info")
        command = [
            sys.executable,
            "-m",
            "fullft_assets.cli",
            "ui",
            "-w",
            "workspace.yaml",
            "-p",
            self.url.rsplit(":", 1)[1],
        ]
        with self.log.open("wb") as log:
            process = subprocess.Popen(
                command,
                cwd=self.project.root,
                env=self.project.env(),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

        def answers() -> bool:
            assert process.poll() is None, f"dagster dev ended at once: {self.log.read_text()[-3000:]}"
            with suppress(urllib.error.URLError, ConnectionError, TimeoutError):
                return urllib.request.urlopen(f"{self.url}/server_info", timeout=5).status == 200
            return False

        machine.wait_for(answers, "dagster dev answers", poll_seconds=0.3)

    def stop(self) -> None:
        """Kill the services, and whatever else lives in their home."""
        for _ in range(3):
            left = self.processes()
            for process in left:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(left, timeout=10)

    def processes(self, command: str = "") -> list[psutil.Process]:
        """Return the live processes of this home whose command line contains a text."""
        return machine.processes_with("DAGSTER_HOME", self.project.home, command)

    def _dagster(self, *arguments: str) -> None:
        subprocess.run(
            [sys.executable, "-m", "dagster", *arguments],
            cwd=self.project.root,
            env=self.project.env(),
            capture_output=True,
            check=True,
            timeout=60,
        )


class Screen:
    """One tab of the browser on the services of a project."""

    def __init__(self, page: Page, services: Services, instance: dg.DagsterInstance):
        self.page, self.services, self.instance = page, services, instance
        self.case = services.project.name

    def open(self, path: str) -> Page:
        self.page.goto(f"{self.services.url}/{path}")
        return self.page

    def answer(
        self, method: str, path: str, headers: Mapping[str, str] = MappingProxyType({}), body: bytes = b""
    ) -> int:
        """Send a request as a program does, and return the status of its answer."""
        request = urllib.request.Request(f"{self.services.url}{path}", body or None, headers, method=method)
        try:
            return urllib.request.urlopen(request, timeout=60).status
        except urllib.error.HTTPError as error:
            return error.code

    def open_asset(self, name: str, view: str = "overview") -> Page:
        return self.open(f"assets/{self.case}/{name}?view={view}")

    def open_job(self, job: str) -> Page:
        return self.open(f"locations/{_REPOSITORY}/jobs/{self.case}_{job}")

    def open_sensor(self, sensor: str) -> Page:
        return self.open(f"locations/{_REPOSITORY}/sensors/{self.case}_{sensor}")

    def shoot(self, name: str) -> None:
        """Keep a picture for people, once the page has come to rest."""
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        with suppress(Exception):  # a page that polls never rests; the picture is a by-product
            self.page.wait_for_load_state("networkidle", timeout=3_000)
        self.page.wait_for_timeout(500)
        self.page.screenshot(path=SCREENSHOTS / f"{name}.png")

    def metadata(self, key: str):
        """Return the value cell of a row of the asset page's metadata table."""
        return (
            self.page.get_by_role("row")
            .filter(has=self.page.get_by_text(key, exact=True))
            .first.locator("xpath=./td[3]")
        )

    def materialize(self, button: str = "Materialize") -> str:
        """Press the button that launches a run, and return the new run's id."""
        known = {run.run_id for run in self.instance.get_runs()}
        self.page.get_by_role("button", name=button).first.click()
        new = machine.wait_for(
            lambda: [r for r in self.instance.get_runs() if r.run_id not in known],
            "the launched run",
            seconds=30,
            poll_seconds=0.3,
        )
        return new[0].run_id

    def status(self, run_id: str) -> dg.DagsterRunStatus:
        return self.instance.get_run_by_id(run_id).status

    def finished(self, run_id: str, seconds: float) -> dg.DagsterRunStatus:
        machine.wait_for(
            lambda: self.instance.get_run_by_id(run_id).is_finished,
            f"the end of run {run_id}",
            seconds,
            poll_seconds=0.3,
        )
        return self.status(run_id)


@contextmanager
def chromium() -> Iterator[Page]:
    """Open a page in the system's Chromium; without one, skip, but fail where CI promised one."""
    if _CHROMIUM is None:
        machine.lacks("no Chromium on this machine: install Debian's `chromium`")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=_CHROMIUM, args=list(_FLAGS))
        try:
            page = browser.new_page(viewport={"width": 1500, "height": 950})
            page.set_default_timeout(20_000)
            yield page
        finally:
            browser.close()
