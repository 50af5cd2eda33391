"""Spot instances: a notice of interruption asks for the same stop as SIGTERM, two minutes before the machine
is taken away.

Where a cluster sends SIGTERM itself (Kubernetes, SageMaker) none of this is needed. ECS stops the tasks of a
service then, and leaves alone those that were started one by one, as ours are.
"""

import os
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException

from fullft_assets.errors import SettingsError
from fullft_assets.progress import Progress
from fullft_assets.ranks import is_first_local_rank
from fullft_assets.settings import LauncherSettings

#: Names another endpoint of instance metadata, as for botocore.
ENDPOINT = "AWS_EC2_METADATA_SERVICE_ENDPOINT"
_DEFAULT_ENDPOINT = "http://169.254.169.254/"
_NOTICE = "latest/meta-data/spot/instance-action"
_TOKEN_SECONDS = 60
_TIMEOUT_SECONDS = 2.0
#: Time between two looks for a notice, which comes two minutes before the interruption.
POLL_SECONDS = 5.0
#: Errors of a service that is not there, or that is not instance metadata.
_NO_ANSWER = (OSError, HTTPException, ValueError)


def look(endpoint: str) -> str | None:
    """Return the notice of EC2's instance metadata service, such as `{"action": "terminate", "time":
    "2026-11-25T18:02:00Z"}`, or None; by version 2, where each request carries a token of the session.

    https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html

    Raises:
        OSError, HTTPException, ValueError: the service does not answer, or does not follow this protocol.
    """
    # The address is on the machine itself: no proxy reaches it.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def ask(path: str, headers: dict[str, str], method: str = "GET") -> str:
        with opener.open(
            urllib.request.Request(endpoint + path, headers=headers, method=method), timeout=_TIMEOUT_SECONDS
        ) as answer:
            return answer.read().decode()

    token = ask(
        "latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_SECONDS)}, method="PUT"
    )
    try:
        return " ".join(ask(_NOTICE, {"X-aws-ec2-metadata-token": token}).split())
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise


@contextmanager
def stop_on_notice(settings: LauncherSettings, progress: Progress) -> Iterator[None]:
    """Look for a notice every `POLL_SECONDS` while the block runs; a notice requests a stop. On each
    machine one process looks.

    Raises:
        SettingsError: the settings ask for notices, and there is no service to ask.
    """
    if settings.spot_notice == "none" or not is_first_local_rank():
        yield
        return
    endpoint = (os.environ.get(ENDPOINT) or _DEFAULT_ENDPOINT).rstrip("/") + "/"
    end = threading.Event()
    try:
        first = look(endpoint)
    except _NO_ANSWER as error:
        raise SettingsError(
            f"launcher.spot_notice: aws, but no instance metadata at {endpoint} ({error}); set it to"
            " none outside of EC2; in a container on an EC2 instance, raise the metadata's hop limit to 2"
        ) from error
    watcher = threading.Thread(target=_watch, args=(endpoint, first, progress, end), name="spot", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        end.set()
        watcher.join()


def _watch(endpoint: str, notice: str | None, progress: Progress, end: threading.Event) -> None:
    has_failed = False
    while notice is None and not end.wait(POLL_SECONDS):
        try:
            notice = look(endpoint)
            has_failed = False
        except _NO_ANSWER as error:
            # Training need not end for this: SIGTERM still comes, but later.
            if not has_failed:
                progress.say(f"warning: spot notices cannot be read ({error}); trying again")
            has_failed = True
    if notice is not None and not end.is_set():
        progress.say(f"spot notice: {notice}; stopping at the next checkpoint")
        progress.stop_requested = True
